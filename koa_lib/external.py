"""The external result from all sides: by set and reader, metric, way of showing, and with adaptation."""

from dataclasses import replace

import numpy as np
import pandas as pd

from koa_lib import metrics, predictions, protocols, retrieval, shift, stats
from koa_lib.comparison import NO_EXTERNAL, shown_fold
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.shape import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES, arrays
from koa_lib.runner import MIRRORED

SHOTS = (5, 10, 20)  # labels per grade, as the closest public study of the same cohorts has them
DRAWS = 20


def shown_part(results):
    """The part that examples come from: the external cohort, or else an unseen part of the training cohort."""
    return "external" if "external" in results else protocols.unseen_split(results)


def place(study, part):
    """Where the pictures of a part come from: 'gornale2020', or 'oai_chen2018, held_out'."""
    if part == "external":
        return study.profile.external.name
    return f"{study.profile.training.name}, {part}{' split' * (part != 'held_out')}"


def pictures(runner, arm, part, image_ids):
    """The pictures of a part as the arm sees them, in the order of their ids."""
    data = runner.data("external" if part == "external" else "training", arm.recipe)
    position = pd.Series(range(len(data)), index=data.rows["image_id"])
    return list(data.images([int(position[name]) for name in image_ids]))


def first_of_each_grade(graded):
    """The first picture of each grade in the order of the manifest, and what it is graded."""
    first = graded.drop_duplicates("kl_grade").sort_values("kl_grade")
    return first.assign(graded=arrays(first)[1].argmax(1))[["image_id", "kl_grade", "graded", *PROBABILITIES]]


def derived(graded, name):
    """The rows of a derived set: 'raw', 'deduplicated' or 'single_knee'."""
    return graded[graded["image_id"].isin(sets.subset(graded, name))]


def overall(study, main, results, ours, our_results):
    """The frames of Table 2: the shown fold of the main arm, and our protocol's mean probabilities.

    Returns
    -------
    dict of (str, str) to DataFrame
        Arm and pictures to the graded frame.
    """
    found = {(main.name, part): shown_fold(study, results, part) for part in results}
    for part, pictured in (("test", "test"), ("external", "external, deduplicated")):
        mean = protocols.fold_mean(study, ours, our_results, part)
        if mean is not None:
            found.setdefault(
                (ours.name, pictured), derived(mean, "deduplicated") if part == "external" else mean
            )
    return found


def by_set(study, arms):
    """The external result by protocol, derived set and reader, from the mean probabilities of the folds.

    Parameters
    ----------
    arms : dict of str to DataFrame
        Arm name to its joined external frame (fold mean).

    Returns
    -------
    DataFrame
        arm, set, reader, n, accuracy, ci_low, ci_high, best_constant (accuracy of the best single grade on
        the same pictures), against_constant (paired, as `stats.against_constant`), macro_f1, qwk.
    """
    rows = []
    for name, graded in arms.items():
        for subset in sets.SUBSETS:
            kept = derived(graded, subset)
            for reader, column in (("first", "kl_grade"), ("second", "kl_grade_reader2")):
                read = kept[kept[column].notna()]
                if len(read):
                    rows.append(
                        {
                            "arm": name,
                            "set": subset.replace("_", " "),
                            "reader": reader,
                            "n": len(read),
                            **_with_interval(study, read, column),
                        }
                    )
    return pd.DataFrame(rows)


def by_view(study, views):
    """The external result in each geometry and intensity, on the deduplicated set against the first reader.

    Parameters
    ----------
    views : dict of (geometry, intensity) to DataFrame
        As from `Runner.external_views`.

    Returns
    -------
    DataFrame
        status ('confirmatory', 'sensitivity' or, last, 'exploratory'), geometry, intensity, as_trained
        (whether the model was trained on such pictures), n, then as `by_set`.
    """
    rows, trained = [], (study.profile.our_protocol.geometry, study.profile.our_protocol.intensity)
    for view, graded in views.items():
        kept = derived(graded, "deduplicated")
        status = (
            "exploratory"
            if set(view) & EXPLORATORY
            else "confirmatory"
            if view == VIEWS[0]
            else "sensitivity"
        )
        seen = {
            "status": status,
            "geometry": view[0],
            "intensity": view[1],
            "as_trained": "yes" if view == trained else "no",
        }
        rows.append({**seen, "n": len(kept), **_with_interval(study, kept, "kl_grade")})
    table = pd.DataFrame(rows)
    early = table["status"] == "exploratory"
    return pd.concat([table[~early], table[early]], ignore_index=True)


def by_metric(study, graded, mirrored):
    """Every metric on each derived set, beside what the best constant answer reaches on the same set.

    Parameters
    ----------
    graded, mirrored : DataFrame
        Joined frames of the external cohort: as it is, and with left and right exchanged.

    Returns
    -------
    DataFrame
        metric; per set its value, <set>_low, <set>_high (95 % group bootstrap; NaN for what has none),
        <set>_constant (NaN where one grade has none) and <set>_against ('better', 'worse', 'not clear').
    """
    tables = []
    for name in sets.SUBSETS:
        found = _all_metrics(study, derived(graded, name), mirrored)
        tables.append(found.add_prefix(f"{name}_").rename(columns={f"{name}_value": name}))
    return pd.concat(tables, axis=1).rename_axis("metric").reset_index()


def _all_metrics(study, kept, mirrored):
    grades, probabilities = arrays(kept)
    summary = stats.bootstrap_summary(kept, study.profile.draws, study.seed).set_index("metric")
    constant = stats.against_constant(kept, study.profile.draws, study.seed)[["constant", "against"]]
    summary = summary.set_axis(["value", "low", "high"], axis=1).join(constant)
    summary = summary.drop(index=["kappa", "macro_sensitivity"])  # the latter is the balanced accuracy
    auc = summary.loc["macro_auc"]
    summary.loc["macro_auc", ["constant", "against"]] = (
        0.5,
        stats.direction(auc["low"] - 0.5, auc["high"] - 0.5),
    )
    each = metrics.per_grade(grades, probabilities)["auc"].to_numpy()
    both = stats.paired(kept, mirrored[mirrored["image_id"].isin(kept["image_id"])])
    flips = metrics.flip_disagreement(*stats.paired_probabilities(both))
    rows = pd.DataFrame(
        {"value": [*each, flips], "constant": [0.5] * len(GRADES) + [0.0]},
        index=[*(f"auc_kl_{grade}" for grade in GRADES), "flip_disagreement"],
    )
    return pd.concat([summary, rows]).fillna({"against": ""})


def mirrored(study, runner, arm):
    """Mean probabilities of an arm's folds on the external pictures with left and right exchanged."""
    return protocols.fold_mean(study, arm, {"external": runner.mirrored(arm)}, "external", MIRRORED)


def label_shift(study, arm, results):
    """How much of the change of accuracy the external mix of grades explains, from mean probabilities.

    Returns
    -------
    DataFrame
        As `shift.decomposition`; internal (the split: test, or else val), n_internal, n_external.
    """
    inner = "test" if "test" in results else "val"
    inside, outside = (protocols.fold_mean(study, arm, results, part) for part in (inner, "external"))
    outside = derived(outside, "deduplicated")
    parts = shift.decomposition(inside, outside, study.profile.draws, study.seed)
    return parts.assign(internal=inner, n_internal=len(inside), n_external=len(outside))


def adaptation(study, runner, arm, results):
    """Zero-shot, prior-corrected and K-shot results on single knees; the latter two are no longer zero-shot.

    Returns
    -------
    DataFrame
        adaptation, zero_shot (yes/no), labels, n, then as `by_set`, reason, assumed_0 .. assumed_4 (the mix
        of grades that the probabilities presume). Intervals: group bootstrap; for K-shot the middle 95 % of
        the draws, and n and best_constant their means.
    """
    graded = shown_fold(study, results, "external")
    trained_on = shown_fold(study, results, "train")["kl_grade"]
    priors = np.bincount(trained_on, minlength=len(GRADES)) / len(trained_on)
    corrected, estimated = adapted(study, arm, graded, priors)
    rows = []
    for name, frame, mix in (("none", graded, priors), ("prior correction (EM)", corrected, estimated)):
        kept = derived(frame, "single_knee")
        row = {
            "adaptation": name,
            "zero_shot": "yes" if frame is graded else "no",
            "labels": 0,
            "n": len(kept),
        }
        assumed = {f"assumed_{grade}": mix[grade] for grade in GRADES}
        rows.append({**row, **_with_interval(study, kept, "kl_grade"), "reason": "", **assumed})
    return pd.DataFrame(rows + _few_shot_rows(*few_shot(study, runner, arm)))


def _few_shot_rows(draws, missing):
    def named(shots, more=""):
        return {
            "adaptation": f"{shots}-shot linear probe{more}",
            "zero_shot": "no",
            "labels": shots * len(GRADES),
        }

    rows = []
    for row in shift.few_shot_summary(draws).itertuples() if len(draws) else ():
        interval = {"accuracy": row.accuracy, "ci_low": row.accuracy_low, "ci_high": row.accuracy_high}
        against = stats.direction(row.gain_low, row.gain_high)
        rows.append(
            {
                **named(row.shots, f", {row.draws} draws"),
                "n": round(row.n),
                **interval,
                "best_constant": row.best_constant,
                "against_constant": against,
                "macro_f1": row.macro_f1,
                "qwk": row.qwk,
                "reason": "",
            }
        )
    return rows + [{**named(shots), "n": 0, "reason": f"not run: {why}"} for shots, why in missing.items()]


def adapted(study, arm, graded, priors):
    """The external result after prior correction, which knows all external pictures, but no grade of theirs.

    Parameters
    ----------
    arm : Arm
    graded : DataFrame
        Joined external frame.
    priors : array (5,)
        Share of each grade among the pictures that the model was fitted on.

    Returns
    -------
    (DataFrame, array (5,))
        Joined frame with corrected probabilities, written as prediction file `..__em.csv`; the estimated mix.
    """
    corrected, estimated = shift.prior_correction(arrays(graded)[1], priors)
    frame = predictions.frame(graded["image_id"], corrected)
    name = protocols.prediction_name(study, arm, "external", graded.attrs["fold"])
    predictions.write(frame, study.shown_dir / "predictions" / replace(name, adaptation="em").file)
    return frame.merge(graded.drop(columns=PROBABILITIES), on="image_id", validate="one_to_one"), estimated


def few_shot(study, runner, arm):
    """Draws of K external labels per grade: a linear probe on the arm's embeddings grades the rest.

    Returns
    -------
    (DataFrame, dict)
        Draws as from `shift.few_shot` for each K of `SHOTS`; and K -> why it was not run.
    """
    grader = runner.grader(arm, protocols.main_fold(study))
    data, source = runner.external(arm, grader)
    embeddings = retrieval.image_embeddings(grader, source).numpy()
    keep = data.rows["image_id"].isin(sets.subset(data.rows, "single_knee")).to_numpy()
    rows, tables, missing = data.rows[keep].reset_index(drop=True), [], {}
    for shots in SHOTS:
        try:
            tables.append(shift.few_shot(embeddings[keep], rows, shots, DRAWS, study.seed))
        except StudyError as error:
            missing[shots] = str(error)
    return pd.concat(tables) if tables else pd.DataFrame(), missing


def headline(study, arm, results):
    """The line that closes a run in the terminal: the shown fold on unseen knees and on the external ones."""

    def told(part):
        values = metrics.summary(*arrays(shown_fold(study, results, part)))
        return values["n"], f"accuracy {values['accuracy']:.3f}, quadratic kappa {values['qwk']:.3f}"

    unseen = protocols.unseen_split(results)
    n, inside = told(unseen)
    outside = NO_EXTERNAL
    if "external" in results:
        outside = "{} (n = {}) with {}".format(study.profile.external.name, *told("external"))
    data = f"{study.profile.name}{' (synthetic phantoms)' * study.synthetic}"
    return f"{data}: {arm.name} grades unseen knees ({unseen}, n = {n}) with {inside}; {outside}."


def _with_interval(study, graded, column):
    graded = graded.assign(kl_grade=graded[column].astype(int))
    summary = stats.confusion_summary(graded, study.profile.draws, study.seed).set_index("metric")
    accuracy = summary.loc["accuracy"]
    constant = stats.against_constant(graded, study.profile.draws, study.seed).loc["accuracy"]
    return {
        "accuracy": accuracy.value,
        "ci_low": accuracy.ci_low,
        "ci_high": accuracy.ci_high,
        "best_constant": constant["constant"],
        "against_constant": constant["against"],
        "macro_f1": summary.value["macro_f1"],
        "qwk": summary.value["qwk"],
    }
