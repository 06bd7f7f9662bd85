"""The scorecard of a run: every published row, claim and finding of the audit, with verdict and reason."""

import math

import pandas as pd

from koa_lib import speed
from koa_lib.comparison import NO_EXTERNAL, paired_tests, shown_fold
from koa_lib.data import cohorts
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper import claims, consistency
from koa_lib.paper import scorecard as rules
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.published import read as read_published
from koa_lib.paper.scorecard import DERIVED, Ours
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
    runs : Results
        Of the main arm, all seeds and folds.
    others : dict of str to Results
        Baselines by their printed names.
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
    names = (MAIN, "other_systems", "claims", "literature")
    published = {name: read_published(study.published, name) for name in names}
    comparable, why = comparability(study)
    models = _external_models(study, runs, others)
    ours = (_measured(study, published[MAIN], runs, others, models) | _counted()
            | _cited(published[MAIN], published["literature"]) | _timed(study, published[MAIN]))
    answers = {row.Index: claims.decide(row.test, models, runs.draws, runs.seed) if row.source == MAIN
               else _answer(row, systems) for row in published["claims"].itertuples()}
    said = _claims(published["claims"], answers, why)
    parts = [
        rules.scorecard(published[MAIN], ours, comparable, why),
        said[said["source"] == MAIN],
        rules.scorecard(published["other_systems"], _of_systems(published, systems), comparable, why),
        said[said["source"] != MAIN],
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
    found = {"train_images": len(internal), "participants": internal["group_id"].nunique(),
             "external_images": len(external)}
    return {("text", "data", name): Ours(number, note="counted in the manifest") for name, number in found.items()}


def _timed(study, published):
    times = speed.table(speed.measured(study), published).dropna(subset="published")
    return {("text", "runtime", row.metric): Ours(row.ours, note=f"{row.how}; {row.place}")
            for row in times.itertuples()}


def _cited(published, literature):
    # What was found in the cited source, for the rows that repeat another study or describe another system.
    columns = ["source_table", "item", "row", "metric"]
    known = dict(zip(literature[columns].astype(str).itertuples(index=False, name=None), literature.itertuples(),
                     strict=True))
    systems = "system" in published
    wanted = published[published["kind"].isin(["citation", "fact"] if systems else ["citation"])]
    ours = {}
    for row in wanted.itertuples():
        key = (str(row.item), str(row.row), str(row.metric))
        found = _found(known.get((row.system if systems else MAIN, *key)))
        ours[(row.system, *key) if systems else key] = found
    return ours


def _found(line):
    if line is None:
        return "literature.csv has no row for it"
    said = rules.joined(line.remark, line.where)
    if pd.isna(line.found):
        return said or "not found in the cited source"
    return Ours(float(line.found), note=said)


def _measured(study, published, runs, others, models):
    # Values of the model rows, or for each why there is none.
    fold = main_fold(study)
    wanted = published[published["kind"].isin(["model", "test"])]
    keys = list(wanted[["item", "row", "metric"]].astype(str).itertuples(index=False, name=None))
    train = rules.measured("table_2", "train", runs.of(split="train"), fold)
    if "external" not in runs:
        return dict.fromkeys(keys, NO_EXTERNAL) | train
    external = runs.of(split="external")
    ours = train | rules.measured("table_2", "test", external, fold) | rules.measured("table_3", "", external, fold)
    for item, name, metric in keys:
        if item == "table_4" and isinstance(models[name], str):
            ours[item, name, metric] = models[name]
        elif item == "table_4":
            found = rules.measured(item, name, others[name].of(split="external"), fold)
            told = claims.one_grade({name: models[name]})
            ours |= {key: value._replace(note=told) for key, value in found.items()}
    ours[DROP] = claims.train_test_drop(runs)
    tested = models[claims.TESTED]
    if not isinstance(tested, str):
        tested = paired_tests(study, runs, {claims.TESTED: others[claims.TESTED]}, "external")
    ours[P_VALUE] = claims.ahead(tested, models[claims.TESTED])
    return ours


def _external_models(study, runs, others):
    # The shown fold's external frame of each model, or why there is none.
    results = {claims.ORDER[0]: runs, **others}
    reasons = {spec.name: f"{spec.name}: {spec.reason}" for spec in study.profile.baselines if spec.reason}
    found = {}
    for name in (*claims.ORDER, claims.TESTED):
        found[name] = NO_EXTERNAL if "external" not in runs else reasons.get(name, f"this run has no {name}")
        if name in results and "external" in results[name]:
            found[name] = shown_fold(study, results[name], "external")
    return found


def _claims(table, answers, why):
    return rules.table([
        {"source": row.source, "item": row.item, "row": row.claim, "metric": "claim",
         "unit": answers[row.Index].unit, **rules.answered(answers[row.Index], row.test, why)}
        for row in table.itertuples()
    ])


def _answer(row, systems):
    if row.test.startswith("not run:"):
        return claims.not_run(row.test.removeprefix("not run:").strip())
    return systems.get((row.source, row.item, row.claim)) or claims.not_run(_notebook(row.source))


def _notebook(system):
    if system not in SYSTEMS:
        return "no notebook of the study covers it"
    return f"notebook {SYSTEMS[system].notebook} has not been run"


def _of_systems(published, given):
    table = published["other_systems"]
    ours = _cited(table, published["literature"])
    for row in table[table["kind"] == "model"].itertuples():
        noted = isinstance(row.note, str) and row.note.startswith("not run:")
        ours[row.system, row.item, row.row, row.metric] = row.note if noted else _notebook(row.system)
    known = set(published["claims"][["source", "item", "claim"]].itertuples(index=False, name=None))
    unknown = [key for key in given if key not in ours and key not in known]
    if unknown:
        raise StudyError(f"The published tables have no row {unknown[0]} of another system. Use their system, item, "
                         "row and metric, or system, item and claim.")
    return ours | {key: value for key, value in given.items() if key in ours}


def _audit(found):
    # What is a published row of its own does not count twice.
    judged = found[(found["verdict"] != "reference") & ~found["published_row"]]
    names = {"check": "row", "expected": "published", "value": "ours", "note": "reason"}
    judged = judged.rename(columns=names).assign(source="arithmetic", item="audit", metric="", model=False, rule=DERIVED)
    return rules.table(judged.to_dict("records"))
