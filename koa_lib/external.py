"""The external result from all sides: by set and reader, by every metric, by the way of showing, and with adaptation."""

from dataclasses import replace

import numpy as np
import pandas as pd

from koa_lib import comparison, metrics, predictions, protocols, retrieval, shift, stats
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.shape import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES, arrays
from koa_lib.report import exhibits, labels

SHOTS = (5, 10, 20)  # labels per grade, as the closest public peer has them (METHODS 7.1)
DRAWS = 20
ABSENT = "not run: no external cohort was given (EXTERNAL=<folder>)"


def show(study, name, made, caption, why=ABSENT, **look):
    """Show a table or figure of the external cohort; where it could not be made (None), its place says why.

    `look` is handed on to `exhibits.show_table` or `exhibits.show_figure`.
    """
    if made is None:
        return exhibits.not_available(study, name, caption, why)
    return (exhibits.show_table if name.startswith("table") else exhibits.show_figure)(study, name, made, caption, **look)


def by_set(study, arms):
    """The external result by protocol, derived set and reader, from the mean probabilities of the folds.

    Parameters
    ----------
    arms : dict of str to DataFrame
        Arm name to its joined external frame (fold mean).

    Returns
    -------
    DataFrame
        arm, set, reader, n, accuracy, ci_low, ci_high, macro_f1, qwk.
    """
    rows = []
    for name, graded in arms.items():
        for subset in sets.SUBSETS:
            kept = graded[graded["image_id"].isin(sets.subset(graded, subset))]
            for reader, column in (("first", "kl_grade"), ("second", "kl_grade_reader2")):
                read = kept[kept[column].notna()]
                if len(read):
                    rows.append({"arm": name, "set": subset.replace("_", " "), "reader": reader, "n": len(read), **_with_interval(study, read, column)})
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
        status ('confirmatory', 'sensitivity' or 'exploratory'), geometry, intensity, as_trained (whether the model was
        trained on such pictures), n, accuracy, ci_low, ci_high, macro_f1, qwk.
    """
    rows, trained = [], (study.profile.our_protocol.geometry, study.profile.our_protocol.intensity)
    for (geometry, intensity), graded in views.items():
        kept = graded[graded["image_id"].isin(sets.subset(graded, "deduplicated"))]
        status = "exploratory" if {geometry, intensity} & EXPLORATORY else "confirmatory" if (geometry, intensity) == VIEWS[0] else "sensitivity"
        rows.append({"status": status, "geometry": geometry, "intensity": intensity, "as_trained": "yes" if (geometry, intensity) == trained else "no", "n": len(kept), **_with_interval(study, kept, "kl_grade")})
    return pd.DataFrame(rows)


def by_metric(study, graded, mirrored):
    """Every metric on each derived set, beside what the best constant answer reaches.

    Parameters
    ----------
    graded, mirrored : DataFrame
        Joined frames of the external cohort: as it is, and with left and right exchanged.

    Returns
    -------
    DataFrame
        metric, per set its value, low, high (95 % group bootstrap; empty for what has none), then best_constant on single knees.
    """
    columns = {}
    for name in sets.SUBSETS:
        kept = graded[graded["image_id"].isin(sets.subset(graded, name))]
        label = name.replace("_", " ")
        for column, values in _all_metrics(study, kept, mirrored).items():
            columns[label if column == "value" else f"{label} {column.removeprefix('ci_')}"] = values
    table = pd.DataFrame(columns)
    constant = metrics.best_constant(kept["kl_grade"])
    table["best_constant"] = [constant.get(metric, np.nan) if metric in ("accuracy", "within_one") else np.nan for metric in table.index]
    return table.rename_axis("metric").reset_index()


def _all_metrics(study, kept, mirrored):
    grades, probabilities = arrays(kept)
    summary = stats.bootstrap_summary(kept, study.profile.draws, study.seed).set_index("metric").drop(index=["kappa", "macro_sensitivity"])  # the latter is the balanced accuracy
    auc = pd.DataFrame({"value": metrics.per_grade(grades, probabilities)["auc"].to_numpy()}, index=[f"auc_kl_{grade}" for grade in GRADES])
    both = stats.paired(kept, mirrored[mirrored["image_id"].isin(kept["image_id"])])
    flips = metrics.flip_disagreement(*stats.paired_probabilities(both))
    return pd.concat([summary, auc, pd.DataFrame({"value": [flips]}, index=["flip_disagreement"])])


def adapted(study, arm, graded, trained_on):
    """The external result after prior correction: no longer zero-shot, because it knows all external pictures (not their grades).

    Parameters
    ----------
    arm : Arm
    graded : DataFrame
        Joined external frame.
    trained_on : int array
        Grades that the model was fitted on: the priors of its probabilities.

    Returns
    -------
    (DataFrame, array (5,))
        Joined frame with corrected probabilities, written as prediction file `..__em.csv`; and the estimated grade mix.
    """
    priors = np.bincount(trained_on, minlength=len(GRADES)) / len(trained_on)
    corrected, estimated = shift.prior_correction(arrays(graded)[1], priors)
    frame = predictions.frame(graded["image_id"], corrected)
    name = protocols.prediction_name(study, arm, "external", graded.attrs["fold"])
    predictions.write(frame, study.shown_dir / "predictions" / replace(name, adaptation="em").file)
    return frame.merge(graded.drop(columns=PROBABILITIES), on="image_id", validate="one_to_one"), estimated


def few_shot(study, runner, arm):
    """Draws of K labels per grade from the external cohort, a linear probe on the arm's embeddings, graded on the rest.

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


def adaptation_rows(study, zero_shot, corrected, draws, missing):
    """Zero-shot, prior-corrected and K-shot results on single knees, one row each, the latter two named as not zero-shot.

    Returns
    -------
    DataFrame
        adaptation, zero_shot (yes/no), labels, n, accuracy, ci_low, ci_high, macro_f1, qwk, reason. Intervals: group bootstrap; for K-shot
        the middle 95 % of the draws. `attrs["best_constant"]` holds the accuracy of the best constant answer on single knees.
    """
    rows = []
    for name, used, graded in (("none", "yes", zero_shot), ("prior correction (EM)", "no", corrected)):
        kept = graded[graded["image_id"].isin(sets.subset(graded, "single_knee"))]
        rows.append({"adaptation": name, "zero_shot": used, "labels": 0, "n": len(kept), **_with_interval(study, kept, "kl_grade"), "reason": ""})
    for row in shift.few_shot_summary(draws).itertuples() if len(draws) else ():
        rows.append({"adaptation": f"{row.shots}-shot linear probe, {row.draws} draws", "zero_shot": "no", "labels": row.shots * len(GRADES), "n": round(row.n),
                     "accuracy": row.accuracy, "ci_low": row.accuracy_low, "ci_high": row.accuracy_high, "macro_f1": row.macro_f1, "qwk": row.qwk, "reason": ""})
    rows += [{"adaptation": f"{shots}-shot linear probe", "zero_shot": "no", "labels": shots * len(GRADES), "n": 0, "reason": f"not run: {why}"} for shots, why in missing.items()]
    table = pd.DataFrame(rows)
    table.attrs["best_constant"] = metrics.best_constant(kept["kl_grade"])["accuracy"]
    return table


# What the tables show, in words; without an external cohort (None), why there is nothing to say.


def sets_in_words(rows):
    """The range of the external result over sets, readers and protocols, from `by_set`."""
    if rows is None:
        return ABSENT
    return (f"Across sets, readers and protocols accuracy lies between {rows['accuracy'].min():.3f} and {rows['accuracy'].max():.3f}, "
            f"quadratic kappa between {rows['qwk'].min():.3f} and {rows['qwk'].max():.3f}.")


def protocols_in_words(study):
    """All settings in which the two protocols differ, from the recipes: their rows compare bundles, not one change."""
    printed, ours = study.profile.as_printed, study.profile.our_protocol
    if printed is None:
        return "Only our protocol was run."
    pairs = comparison.differing(printed, ours).items()
    apart = ["folds (single pictures, whole patients)", *(f"{name.replace('_', ' ')} ({labels.words(str(a))}, {labels.words(str(b))})" for name, (a, b) in pairs)]
    return (f"The two models differ in all of this, as printed first: {', '.join(apart)}; and only our protocol chooses the epoch on an inner part. "
            "Their rows compare these bundles: no difference between them can be laid to the folds, or to any one setting.")


def metrics_in_words(every):
    """The result on single knees beside the best constant answer, from `by_metric`."""
    if every is None:
        return ABSENT
    single, constant = every.set_index("metric")["single knee"], every.set_index("metric")["best_constant"]
    return (f"On single knees accuracy is {single['accuracy']:.3f} where the best constant answer has {constant['accuracy']:.3f}; within one grade "
            f"{single['within_one']:.3f} against {constant['within_one']:.3f}; {100 * single['flip_disagreement']:.1f} % of the grades change when a picture is mirrored.")


def views_in_words(views):
    """How far the way of showing moves the quadratic kappa, from `by_view`."""
    if views is None:
        return ABSENT
    first, others = views.iloc[0], views[views["status"] == "sensitivity"]
    best = [rows.loc[rows["qwk"].idxmax()] for rows in (others, views[views["status"] == "exploratory"]) if len(rows)]
    said = [f"Quadratic kappa is {first.qwk:.3f} with {_view(first)} (confirmatory)", *(f"{row.qwk:.3f} at most with {_view(row)} ({row.status})" for row in best)]
    torn = others[(others["accuracy"] > first.accuracy + 0.01) & (others["qwk"] < first.qwk - 0.01)]
    gains = [f" With {_view(row)} accuracy rises from {first.accuracy:.3f} to {row.accuracy:.3f} while kappa falls to {row.qwk:.3f}: accuracy alone would "
             "call that a gain." for row in torn.itertuples()]
    return "; ".join(said) + "." + "".join(gains) + " No setting of the model or of a view was chosen by these numbers."


def _view(row):
    return f'"{labels.words(row.geometry)}"' + (f' and "{labels.words(row.intensity)}"' if row.intensity != "none" else "")


def shift_in_words(parts):
    """The change of accuracy in points and its two parts, from `shift.decomposition`."""
    if parts is None:
        return ABSENT
    step = 100 * parts.set_index("part")["value"]
    whole, mix, rest = (f"{value:+.1f}".replace("-", "−") for value in (step["external accuracy"] - step["internal accuracy"], step["label shift"], step["rest"]))
    return f"Accuracy changes by {whole} points, of which {mix} are the mix of grades and {rest} the rest."


def adaptation_in_words(rows, estimated, grades):
    """What adaptation gains, and the mix of grades it assumes beside the true one, from `adaptation_rows` and `adapted`."""
    if rows is None:
        return ABSENT
    shot, floor = rows.iloc[2:].dropna(subset=["accuracy"]), rows.attrs["best_constant"]
    mixes = [", ".join(f"{share:.2f}" for share in mix) for mix in (estimated, np.bincount(grades, minlength=len(GRADES)) / len(grades))]
    every = "; ".join(f"{row.accuracy:.3f} with {row.adaptation.partition(',')[0]} (n = {row.n:,})" for row in shot.itertuples()) or "no K could be run"
    reached = "no row is above it" if rows["accuracy"].max() <= floor else f"{(rows['accuracy'] > floor).sum()} of {rows['accuracy'].notna().sum()} rows are above it"
    return (f"Accuracy on single knees is {rows['accuracy'][0]:.3f} as it is (n = {rows['n'][0]:,}) and {rows['accuracy'][1]:.3f} with prior correction, which takes the mix "
            f"of grades 0 to 4 to be {mixes[0]} where it is {mixes[1]}; for K-shot it is, as a mean of the draws, {every}. The best constant answer has {floor:.3f} on all single knees: {reached}. "
            "K-shot rows are tested on fewer pictures, because the groups that were labelled leave the test: a difference between rows is also one of test sets.")


def _with_interval(study, graded, column):
    graded = graded.assign(kl_grade=graded[column].astype(int))
    summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
    accuracy = summary.loc["accuracy"]
    return {"accuracy": accuracy.value, "ci_low": accuracy.ci_low, "ci_high": accuracy.ci_high,
            "macro_f1": summary.value["macro_f1"], "qwk": summary.value["qwk"]}
