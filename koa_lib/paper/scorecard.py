"""The scorecard of a run: every published row, claim and finding of the audit, with verdict and reason."""

import math
from functools import partial

import numpy as np
import pandas as pd

from koa_lib.comparison import NO_EXTERNAL, paired_tests, shown_fold
from koa_lib.data import MANIFESTS, cohorts
from koa_lib.data.manifest import read_manifest
from koa_lib.paper import claims, consistency, rules, sensitivities, speed
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.published import read as read_published
from koa_lib.paper.rules import DERIVED, KEY, MAIN, keys
from koa_lib.protocols import main_fold
from koa_lib.verdict import Ours, not_run

DROP = (MAIN, "text", "discussion", "train_test_drop")
THEIRS = ("ViT-B-32-quickgelu", "openai")  # the paper's model and its start
P_VALUE = (MAIN, "text", "mcnemar", "p_value")
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
        As from `consistency.findings` and `sensitivities.per_grade`.
    """
    published, matrices = (read_published(study.published, name) for name in (MAIN, "confusion_matrices"))
    counts = _manifest_counts()
    return consistency.findings(published, counts, matrices), sensitivities.per_grade(published, counts)


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
        Results for other systems, as from `answers.read`: (system, item, row, metric) -> `verdict.Ours`,
        (system, item, claim) -> `verdict.Answer`.

    Returns
    -------
    DataFrame
        The columns of `rules.COLUMNS`. Rows with a model first: the paper's rows and claims, then those
        of other systems; then rows without one.

    Raises
    ------
    StudyError
        A published table that is absent, or a key that it does not hold.
    """
    names = (MAIN, "other_systems", "claims", "literature")
    paper, others_printed, said, literature = (read_published(study.published, name) for name in names)
    printed = pd.concat([paper.assign(source=MAIN), others_printed.rename(columns={"system": "source"})])
    comparable, why = comparability(study)
    models = _external_models(study, runs, others)
    asked = set(said[["source", "item", "claim"]].itertuples(index=False, name=None))
    given = {key: value for key, value in systems.items() if key not in asked}
    ours = (_absent(printed) | _cited(printed, literature) | _counted() | _timed(paper)
            | _trained(study, paper, runs, others, models) | given)
    answers = [claims.decide(row.test, models, runs.draws, runs.seed) if row.source == MAIN
               else _answer(row, systems) for row in said.itertuples()]
    alone = partial(_alone, study.profile.not_comparable)
    numbers = rules.judge(printed, ours, comparable, why, alone)
    whole = pd.concat([numbers, _claims(said, answers, why, alone), _audit(findings(study)[0])],
                      ignore_index=True)
    # Rows with a model first; then the paper's before those of others, and claims after numbers.
    order = np.lexsort([whole["metric"] == "claim", whole["source"] != MAIN, ~whole["model"]])
    return whole.iloc[order].reset_index(drop=True)


def comparability(study):
    """Whether the main arm's rows may be held against the paper, and why not: another model or start,
    phantoms, other or incomplete data. Rows that a profile trains otherwise are named by its
    `not_comparable`."""
    reasons = []
    if study.dry:
        reasons.append("a dry run, which only tries the steps")
    if study.synthetic:
        reasons.append("synthetic phantoms")
    elif (study.profile.model.name, study.profile.model.start) != THEIRS:
        model = study.profile.model
        reasons.append(
            f"this profile's CLIP is {model.name}, not ViT-B/32"
            + ", from random weights" * (model.start == "random")
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
    # Other cohorts, a part of the pictures, or lossy copies of them, are not the paper's data.
    note, found = study.data_note(), []
    for role, theirs in zip(("training", "external"), cohorts.PUBLISHED, strict=True):
        ours = getattr(study.profile, role).name
        if role in note and ours != theirs:
            found.append(f"{role} pictures of {ours}, not of {theirs}")
            continue
        listed = sum(map(sum, cohorts.facts(theirs).counts.values()))
        if role in note and note[role]["pictures"] < listed:
            found.append(f"{note[role]['pictures']:,} of {listed:,} {role} pictures")
        if role in note and note[role]["not_as_listed"]:
            found.append(f"{note[role]['not_as_listed']:,} {role} pictures that are not as listed")
    return found


def _manifest_counts():
    manifests = (read_manifest(MANIFESTS / f"{name}.csv") for name in cohorts.PUBLISHED)
    return consistency.manifest_counts(*manifests)


def _counted():
    counts = _manifest_counts()
    found = {"train_images": counts["internal"].sum(), "participants": counts["patients"],
             "external_images": counts["external"].sum()}
    return {(MAIN, "text", "data", name): Ours(number, note="counted in the manifest")
            for name, number in found.items()}


def _timed(published):
    times = speed.table(published)
    if isinstance(times, str):
        return dict.fromkeys(keys(published[published["row"] == "runtime"].assign(source=MAIN)), times)
    return {(MAIN, "text", "runtime", row.metric): Ours(row.ours, note=row.note)
            for row in times.dropna(subset="published").itertuples()}


def _absent(printed):
    # Why a model row of another system has no value, unless its notebook has been run.
    rows = printed[(printed["kind"] == "model") & (printed["source"] != MAIN)]
    return {tuple(row[name] for name in KEY): row["note"] if str(row["note"]).startswith("not run:")
            else _notebook(row["source"]) for row in rows.to_dict("records")}


def _cited(printed, literature):
    # What was found in the cited source, for the rows that repeat another study or describe another system.
    found = literature.rename(columns={"source_table": "source"})
    known = dict(zip(keys(found), found.itertuples(), strict=True))
    facts = (printed["kind"] == "fact") & (printed["source"] != MAIN)
    return {key: _found(known.get(key)) for key in keys(printed[facts | (printed["kind"] == "citation")])}


def _found(line):
    if line is None:
        return "literature.csv has no row for it"
    said = rules.joined(line.remark, line.where)
    if pd.isna(line.found):
        return said or "not found in the cited source"
    return Ours(float(line.found), note=said)


def _trained(study, published, runs, others, models):
    # Values of the model rows, or for each why there is none.
    fold = main_fold(study)
    asked = keys(published[published["kind"].isin(["model", "test"])].assign(source=MAIN))
    train = rules.trained("table_2", "train", runs.of(split="train"), fold)
    if "external" not in runs:
        return dict.fromkeys(asked, NO_EXTERNAL) | train
    external = runs.of(split="external")
    ours = train | rules.trained("table_2", "test", external, fold)
    ours |= rules.trained("table_3", "", external, fold)
    for key in [key for key in asked if key[1] == "table_4"]:
        name = key[2]
        if isinstance(models[name], str):
            ours[key] = models[name]
        else:
            found = rules.trained("table_4", name, others[name].of(split="external"), fold)
            told = claims.one_grade({name: models[name]})
            ours |= {each: value._replace(note=told) for each, value in found.items()}
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


def _alone(reasons, source, item, row):
    # Why a row is not scored where those of the main arm are: by the profile's `not_comparable`.
    if source != MAIN:
        return reasons.get("systems", "")
    others = item == "table_4" or row == P_VALUE[2] or claims.TESTED in row
    return reasons.get("networks", "") if others else ""


def _claims(said, answers, why, alone):
    return rules.table([
        {"source": row.source, "item": row.item, "row": row.claim, "metric": "claim", "unit": answer.unit,
         **rules.answered(answer, row.test, why or alone(row.source, row.item, row.claim))}
        for row, answer in zip(said.itertuples(), answers, strict=True)
    ])


def _answer(row, systems):
    if row.test.startswith("not run:"):
        return not_run(row.test.removeprefix("not run:").strip())
    return systems.get((row.source, row.item, row.claim)) or not_run(_notebook(row.source))


def _notebook(system):
    if system not in SYSTEMS:
        return "no notebook of the study covers it"
    return f"notebook {SYSTEMS[system].notebook} has not been run"


def _audit(found):
    # What is a published row of its own does not count twice.
    judged = found[(found["verdict"] != "reference") & ~found["published_row"]]
    names = {"check": "row", "expected": "published", "value": "ours", "note": "reason"}
    said = {"source": "arithmetic", "item": "audit", "metric": "", "model": False, "rule": DERIVED}
    judged = judged.rename(columns=names).assign(**said)
    return rules.table(judged.to_dict("records"))
