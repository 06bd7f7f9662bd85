"""The scorecard of a run: every published row, claim and finding of the audit, with verdict and reason."""

import math

import pandas as pd

from koa_lib import comparison, speed
from koa_lib.data import cohorts
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper import claims, consistency
from koa_lib.paper import scorecard as rules
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.published import read as read_published
from koa_lib.paper.scorecard import COLUMNS, DERIVED, Ours
from koa_lib.protocols import main_fold
from koa_lib.study import MANIFESTS

MAIN = "jpm2026"
COHORTS = ("oai_chen2018", "gornale2020")
DROP = ("text", "discussion", "train_test_drop")
P_VALUE = ("text", "mcnemar", "p_value")
# The rows that carry the papers' conclusions, and what they are called in the picture of them.
HEADLINES = {
    ("jpm2026", "table_2", "train", "accuracy"): ("The paper", "Accuracy, training part"),
    ("jpm2026", "table_2", "test", "accuracy"): ("The paper", "Accuracy, external"),
    ("jpm2026", "table_2", "test", "macro_f1"): ("The paper", "Macro-F1, external"),
    ("jpm2026", "text", "macro", "auc"): ("The paper", "Macro-AUC, external"),
    ("jpm2026", "table_4", "ViT", "accuracy"): ("The paper", "Accuracy of ViT, external"),
    ("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"): ("Other papers", "CLIP-KOA, accuracy"),
    ("LumbarCLIP", "abstract", "best", "accuracy"): ("Other papers", "LumbarCLIP, accuracy"),
    ("JIIM-2025", "abstract", "ConvNeXt-Small KLG", "weighted_kappa"): (
        "Other papers",
        "JIIM 2025, weighted κ",
    ),
}


def findings(study):
    """The arithmetic audit of the paper's numbers, and Table 3 grade by grade.

    Returns
    -------
    (DataFrame, DataFrame)
        As from `consistency.findings` and `consistency.per_grade`.
    """
    published, matrices = (read_published(study.published, name) for name in (MAIN, "confusion_matrices"))
    counts = consistency.manifest_counts(*(read_manifest(MANIFESTS / f"{name}.csv") for name in COHORTS))
    return consistency.findings(published, counts, matrices), consistency.per_grade(published, counts)


def scorecard(study, runs, others, systems):
    """The scorecard of a run.

    Parameters
    ----------
    study : Study
    runs : dict of int to dict
        Main arm: seed to results (split to graded frames, one per fold), as from `Runner.run_seeds`.
    others : dict of str to dict
        Baselines by their printed names to results.
    systems : dict
        Results for other systems, as from `answers.read`: (system, item, row, metric) -> `Ours`, (system,
        item, claim) -> `claims.Answer`.

    Returns
    -------
    DataFrame
        The columns of `scorecard.COLUMNS`. Rows with a model first: the paper's rows and claims, then those
        of other systems; then rows without one.

    Raises
    ------
    StudyError
        A published table that is absent, or a key that it does not hold.
    """
    published = {
        name: read_published(study.published, name)
        for name in (MAIN, "other_systems", "claims", "literature")
    }
    comparable, why = comparability(study)
    models = _external_models(study, runs, others)
    ours = (
        _measured(study, published[MAIN], runs, others, models)
        | _counted()
        | _cited(published[MAIN], published["literature"])
    )
    said, words = published["claims"], {}
    for row in said.itertuples():
        main = row.source == MAIN
        words[row.Index] = (
            claims.decide(row.test, models, study.profile.draws, study.seed)
            if main
            else _answer(row, systems)
        )
    parts = [
        rules.scorecard(published[MAIN], ours | _timed(study, published[MAIN]), comparable, why),
        _claims(said[said["source"] == MAIN], words, why),
        rules.scorecard(published["other_systems"], _of_systems(published, systems), comparable, why),
        _claims(said[said["source"] != MAIN], words, why),
        _audit(findings(study)[0]),
    ]
    whole = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return whole.sort_values("model", ascending=False, kind="stable", ignore_index=True)


def comparability(study):
    """Whether model rows may be held against the paper, and why not."""
    reasons = []
    if study.dry:
        reasons.append("a dry run, which only tries the steps")
    if study.synthetic:
        reasons.append("synthetic phantoms")
    elif study.profile.name != "paper":
        model = study.profile.model
        reasons.append(
            f"{model.name} is not the paper's ViT-B/32"
            + " and starts from random weights" * (model.start == "random")
        )
    else:
        reasons += _incomplete(study)
    return not reasons, "; ".join(reasons)


def against_published(score, synthetic):
    """The headline numbers, published and ours, as shares of one: two rows each, for a forest plot.

    Parameters
    ----------
    score : DataFrame
        As from `scorecard`.
    synthetic : bool
        On phantoms the published values are of other pictures and only give orientation.

    Returns
    -------
    DataFrame
        group, label, which, verdict, value, value_low, value_high: of ours the 95 % prediction interval of
        one further training, undefined where there are fewer than five.
    """
    names = ("published (for orientation)", "this run (phantoms)") if synthetic else ("published", "this run")
    keyed = score.set_index(["source", "item", "row", "metric"])
    rows = []
    for key, (group, label) in HEADLINES.items():
        row = keyed.loc[key]
        scale = 1.0 if row.unit == "ratio" else 0.01
        ours = row.ours, row.prediction_low, row.prediction_high
        for which, numbers in zip(names, ((row.published, math.nan, math.nan), ours), strict=True):
            rows.append((group, label, which, row.verdict, *(scale * number for number in numbers)))
    return pd.DataFrame(rows, columns="group label which verdict value value_low value_high".split())


def _incomplete(study):
    # A part of the pictures, or lossy copies of them, are not the paper's data.
    note, found = study.data_note(), []
    for role in ("training", "external"):
        cohort = cohorts.facts(getattr(study.profile, role).name)
        listed = sum(map(sum, cohort.counts.values()))
        if role in note and note[role]["pictures"] < listed:
            found.append(f"{note[role]['pictures']:,} of {listed:,} {role} pictures")
        if role in note and note[role]["not_as_listed"]:
            found.append(f"{note[role]['not_as_listed']:,} {role} pictures that are not as listed")
    return found


def _counted():
    internal, external = (read_manifest(MANIFESTS / f"{name}.csv") for name in COHORTS)
    internal = internal[internal["split"] != "auto_test"]  # a second crop of knees that are there already
    found = {
        "train_images": len(internal),
        "participants": internal["group_id"].nunique(),
        "external_images": len(external),
    }
    return {
        ("text", "data", metric): Ours(number, note="counted in the manifest")
        for metric, number in found.items()
    }


def _timed(study, published):
    times = speed.table(speed.measured(study), published).dropna(subset="published")
    return {
        ("text", "runtime", row.metric): Ours(row.ours, note=f"{row.how}; {row.place}")
        for row in times.itertuples()
    }


def _cited(published, literature):
    # What was found in the cited source, for the rows that repeat another study or describe another system.
    columns, known = ["source_table", "item", "row", "metric"], {}
    for line in literature.itertuples():
        known[tuple(str(getattr(line, column)) for column in columns)] = line
    systems = "system" in published
    wanted = published[published["kind"].isin(["citation", "fact"] if systems else ["citation"])]
    ours = {}
    for row in wanted.itertuples():
        key = (str(row.item), str(row.row), str(row.metric))
        source = row.system if systems else MAIN
        ours[(source, *key) if systems else key] = _found(known.get((source, *key)))
    return ours


def _found(line):
    if line is None:
        return "literature.csv has no row for it"
    said = rules.joined(line.remark, line.where)
    return (
        (said or "not found in the cited source")
        if pd.isna(line.found)
        else Ours(float(line.found), note=said)
    )


def _measured(study, published, runs, others, models):
    # Values of the model rows, or for each why there is none.
    train, external = (
        [frame for results in runs.values() for frame in results.get(part, [])]
        for part in ("train", "external")
    )
    drawn = main_fold(study), study.profile.draws, study.seed
    ours = rules.measured("table_2", "train", train, *drawn)
    keys = [
        (row.item, str(row.row), row.metric)
        for row in published[published["kind"].isin(["model", "test"])].itertuples()
    ]
    if not external:
        return ours | {key: comparison.NO_EXTERNAL for key in keys if key[:2] != ("table_2", "train")}
    for item, name, metric in keys:
        if item == "table_4":
            ours |= _of_baseline(
                models[name],
                rules.measured(item, name, others.get(name, {}).get("external", []), *drawn),
                (item, name, metric),
            )
    ours |= rules.measured("table_2", "test", external, *drawn) | rules.measured(
        "table_3", "", external, *drawn
    )
    ours[DROP] = claims.train_test_drop(train, external) if train else "no run on the training part"
    ours[P_VALUE] = claims.ahead(_tests(study, runs, others, models), models[claims.TESTED])
    return ours


def _of_baseline(shown, found, key):
    # Why there is none; or an accuracy that one grade for every picture has as well says so.
    if isinstance(shown, str):
        return {key: shown}
    return {key: value._replace(note=claims.one_grade({key[1]: shown})) for key, value in found.items()}


def _tests(study, runs, others, models):
    if isinstance(models[claims.TESTED], str):
        return models[claims.TESTED]
    return comparison.paired_tests(
        study, runs[study.seed], {claims.TESTED: others[claims.TESTED]}, "external"
    )


def _external_models(study, runs, others):
    # The shown fold's external frame of each model, or why there is none.
    arms = {claims.ORDER[0]: runs.get(study.seed, {})} | {
        name: others.get(name, {}) for name in (*claims.ORDER[1:], claims.TESTED)
    }
    there = bool(arms[claims.ORDER[0]].get("external"))
    reasons = {spec.name: f"{spec.name}: {spec.reason}" for spec in study.profile.baselines if spec.reason}
    return {
        name: comparison.shown_fold(study, arm, "external")
        if arm.get("external")
        else reasons.get(name, f"this run has no {name}")
        if there
        else comparison.NO_EXTERNAL
        for name, arm in arms.items()
    }


def _claims(table, words, why):
    return rules.table(
        [
            rules.line(
                row.source,
                row.item,
                row.claim,
                "claim",
                words[row.Index].unit,
                **rules.answered(words[row.Index], row.test, why),
            )
            for row in table.itertuples()
        ]
    )


def _answer(row, systems):
    if row.test.startswith("not run:"):
        return claims.not_run(row.test.removeprefix("not run:").strip())
    return systems.get((row.source, row.item, row.claim)) or claims.not_run(_notebook(row.source))


def _notebook(system):
    return (
        f"notebook {SYSTEMS[system].notebook} has not been run"
        if system in SYSTEMS
        else "no notebook of the study covers it"
    )


def _of_systems(published, given):
    table = published["other_systems"]
    ours = _cited(table, published["literature"])
    for row in table[table["kind"] == "model"].itertuples():
        note = (
            row.note
            if isinstance(row.note, str) and row.note.startswith("not run:")
            else _notebook(row.system)
        )
        ours[row.system, row.item, row.row, row.metric] = note
    known = set(published["claims"][["source", "item", "claim"]].itertuples(index=False, name=None))
    unknown = [key for key in given if key not in ours and key not in known]
    if unknown:
        raise StudyError(
            f"The published tables have no row {unknown[0]} of another system. "
            "Use their system, item, row and metric, "
            "or system, item and claim."
        )
    return ours | {key: value for key, value in given.items() if key in ours}


def _audit(found):
    # What is a published row of its own does not count twice.
    judged = found[(found["verdict"] != "reference") & ~found["published_row"]]
    return rules.table(
        [
            rules.line(
                "arithmetic",
                "audit",
                row.check,
                "",
                row.unit,
                published=row.expected,
                ours=row.value,
                model=False,
                rule=DERIVED,
                verdict=row.verdict,
                follows_from=row.follows_from,
                reason=row.note,
            )
            for row in judged.itertuples()
        ]
    )[COLUMNS]
