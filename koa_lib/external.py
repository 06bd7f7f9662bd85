"""The external result from all sides: by set and reader, metric, way of showing, and with adaptation.

Whatever uses the other cohort's pictures or grades to adapt is a secondary result, never the external result
itself.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, predictions, retrieval, shift, stats
from koa_lib.classifiers import linear
from koa_lib.comparison import NO_EXTERNAL, accuracy_row, shown_fold
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.experiment import prediction_file
from koa_lib.grades import GRADES
from koa_lib.images.shape import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES, arrays
from koa_lib.protocols import main_fold
from koa_lib.splits import unseen

READERS = {"first": "kl_grade", "second": "kl_grade_reader2"}
METRICS = ("accuracy", "balanced_accuracy", "macro_precision", "macro_f1", "qwk", "linear_kappa", "mae",
           "within_one", "macro_auc", "ece", "flip_disagreement")
SHOTS = (5, 10, 20)  # labels per grade, as the closest public study of the same cohorts has them
DRAWS = 20


def shown_part(results):
    """The part that examples come from: the external cohort, or else the unseen part of the other."""
    return "external" if "external" in results else unseen(results.splits)


def pictures(experiment, arm, part, image_ids):
    """The pictures of a part as the arm sees them, in the order of their ids."""
    data = experiment.data("external" if part == "external" else "training", arm)
    position = pd.Series(range(len(data)), index=data.rows["image_id"])
    return list(data.images([int(position[name]) for name in image_ids]))


def first_of_each_grade(graded):
    """The first picture of each grade in the order of the manifest, and what it is graded."""
    first = graded.drop_duplicates("kl_grade").sort_values("kl_grade")
    return first.assign(graded=arrays(first)[1].argmax(1))[["image_id", "kl_grade", "graded", *PROBABILITIES]]


def derived(graded, name):
    """The rows of a derived set: 'raw', 'deduplicated' or 'single_knee'."""
    return graded[graded["image_id"].isin(sets.subset(graded, name))]


def by_set(results):
    """The external result by protocol, derived set and reader, from the mean probabilities of the folds.

    Returns
    -------
    DataFrame
        arm, set, reader, then as `comparison.accuracy_row`.
    """
    rows = []
    for where, found in results.of(split="external", seed=results.seed).each("arm"):
        graded = found.graded()
        for subset in sets.SUBSETS:
            kept = derived(graded, subset)
            for reader, column in READERS.items():
                read = kept[kept[column].notna()]
                read = read.assign(kl_grade=read[column].astype(int))
                if len(read):
                    row = accuracy_row(read, results.draws, results.seed)
                    rows.append({**where, "set": subset.replace("_", " "), "reader": reader, **row})
    return pd.DataFrame(rows)


def in_views(experiment, arm):
    """`Results` of the external cohort in each way of showing, by the arm as it was trained."""
    first, *others = (experiment.run(arm, splits=["external"], view=view) for view in VIEWS)
    return sum(others, start=first)


def by_view(study, results):
    """The external result in each geometry and intensity, on the deduplicated set against the first reader.

    Parameters
    ----------
    results : Results
        As from `in_views`.

    Returns
    -------
    DataFrame
        status ('confirmatory', 'sensitivity' or, last, 'exploratory'), geometry, intensity, as_trained
        (whether the model was trained on such pictures), then as `comparison.accuracy_row`.
    """
    rows, ours = [], study.profile.our_protocol
    for where, found in results.each("view"):
        view = geometry, intensity = tuple(where["view"].split("-"))
        status = "exploratory" if set(view) & EXPLORATORY else "sensitivity"
        status = "confirmatory" if view == VIEWS[0] else status
        trained = "yes" if view == ours.view else "no"
        rows.append({"status": status, "geometry": geometry, "intensity": intensity, "as_trained": trained,
                     **accuracy_row(derived(found.graded(), "deduplicated"), results.draws, results.seed)})
    return pd.DataFrame(rows).sort_values("status", key=lambda status: status == "exploratory", kind="stable")


def by_metric(results):
    """Every metric on each derived set, beside what the best constant answer reaches on the same set.

    Parameters
    ----------
    results : Results
        Of one arm on the external cohort, as it is and with left and right exchanged.

    Returns
    -------
    DataFrame
        metric; per set its value, <set>_low, <set>_high (95 % group bootstrap; NaN for what has none),
        <set>_constant (NaN where one grade has none) and <set>_against ('better', 'worse', 'not clear').
    """
    graded, tables = results.graded(split="external"), []
    for name in sets.SUBSETS:
        found = _all_metrics(derived(graded, name), results.draws, results.seed)
        tables.append(found.add_prefix(f"{name}_").rename(columns={f"{name}_value": name}))
    return pd.concat(tables, axis=1).rename_axis("metric").reset_index()


def _all_metrics(kept, draws, seed):
    found = stats.measured(kept, METRICS, draws, seed)
    rows = {name: [found[name], found[f"{name}_low"], found[f"{name}_high"]] for name in METRICS}
    table = pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high"])
    table = table.join(stats.against_constant(kept, draws, seed)[["constant", "against"]])
    ends = table.loc["macro_auc", ["low", "high"]] - 0.5
    table.loc["macro_auc", ["constant", "against"]] = 0.5, stats.direction(*ends)
    table.loc["flip_disagreement", "constant"] = 0.0
    auc = metrics.per_grade(*arrays(kept))["auc"].rename("value").add_prefix("auc_kl_")
    each = auc.to_frame().assign(constant=0.5)
    return pd.concat([table.iloc[:-1], each, table.iloc[-1:]]).fillna({"against": ""})


def label_shift(results):
    """How much of the change of accuracy the external mix of grades explains, from mean probabilities.

    Returns
    -------
    DataFrame
        As `shift.decomposition`; internal (the split: test, or else val), n_internal, n_external.
    """
    inner = "test" if "test" in results else "val"
    inside, outside = results.graded(split=inner), derived(results.graded(split="external"), "deduplicated")
    parts = shift.decomposition(inside, outside, results.draws, results.seed)
    return parts.assign(internal=inner, n_internal=len(inside), n_external=len(outside))


def adaptation(experiment, arm, results):
    """Zero-shot, prior-corrected and K-shot results on single knees; the latter two are no longer zero-shot.

    What is adapted is written as prediction files, '..__em.csv' and '..__shots<K>-draw<d>.csv', and read from
    them.

    Returns
    -------
    DataFrame
        adaptation, zero_shot (yes/no), labels, then as `comparison.accuracy_row`, reason. Intervals: group
        bootstrap; for K-shot the middle 95 % of the draws, n and best_constant their means, and
        against_constant is empty.
    """
    graded, trained_on = (shown_fold(experiment.study, results, split) for split in ("external", "train"))
    priors = trained_on["kl_grade"].value_counts(normalize=True).reindex(GRADES, fill_value=0)
    adapted, _ = shift.prior_correction(arrays(graded)[1], priors)
    adapted = _kept(experiment.study, arm, predictions.frame(graded["image_id"], adapted), graded, "em")
    rows = [{"adaptation": name, "zero_shot": zero_shot, "labels": 0,
             **accuracy_row(derived(frame, "single_knee"), results.draws, results.seed), "reason": ""}
            for name, zero_shot, frame in (("none", "yes", graded), ("prior correction (EM)", "no", adapted))]
    return pd.DataFrame(rows + _few_shot_rows(experiment, arm))


def _few_shot_rows(experiment, arm):
    study, data = experiment.study, experiment.data("external", arm)
    single = data.rows["image_id"].isin(sets.subset(data.rows, "single_knee"))
    knees = data.part(np.flatnonzero(single), "report")
    grader = experiment.grader(arm, main_fold(study))
    embeddings = retrieval.image_embeddings(grader, experiment.source(arm, knees)).numpy()
    rows = []
    for shots in SHOTS:
        row = {"adaptation": f"{shots}-shot linear probe", "zero_shot": "no", "labels": shots * len(GRADES),
               "against_constant": ""}
        try:
            drawn = [few_shot(embeddings, knees.rows, shots, draw, study.seed) for draw in range(DRAWS)]
        except StudyError as error:
            rows.append({**row, "n": 0, "reason": f"not run: {error}"})
        else:
            row["adaptation"] += f", {DRAWS} draws"
            kept = [_kept(study, arm, frame, knees.rows, f"shots{shots}-draw{draw}")
                    for draw, frame in enumerate(drawn)]
            rows.append({**row, **over_draws(kept), "reason": ""})
    return rows


def _kept(study, arm, frame, rows, adaptation):
    path = study.own_dir / prediction_file(study, arm, "external", main_fold(study), adaptation=adaptation)
    predictions.write(frame, path)
    return predictions.join(predictions.read(path), rows)


def over_draws(frames):
    """Means over draws of labelled pictures, and how much hangs on which were drawn.

    Parameters
    ----------
    frames : list of DataFrame
        Graded test pictures of each draw.

    Returns
    -------
    dict
        As `comparison.accuracy_row`, without against_constant: the interval is the middle 95 % of the draws,
        which is none of other pictures.
    """
    table = pd.DataFrame([metrics.summary(*arrays(graded)) for graded in frames])
    mean, (low, high) = table.mean(), stats.interval(table["accuracy"])
    return {"n": round(mean["n"]), "accuracy": mean["accuracy"], "ci_low": low, "ci_high": high,
            "best_constant": mean["best_constant_accuracy"], "macro_f1": mean["macro_f1"],
            "qwk": mean["qwk"]}


def few_shot(embeddings, rows, shots, draw, seed=0):
    """Grading of a cohort by a logistic regression that saw a few of its own pictures per grade.

    Pictures are drawn at random, at most one of a group; all pictures of the drawn groups leave the test. The
    classifier is fixed beforehand (`classifiers.linear`): nothing is selected.

    Parameters
    ----------
    embeddings : array (n, d)
        One row for each of `rows`.
    rows : DataFrame
        image_id, kl_grade, group_id.
    shots, draw : int
        Pictures drawn per grade, and the number of the draw.

    Returns
    -------
    DataFrame
        image_id, p0..p4 of the test pictures.

    Raises
    ------
    StudyError
        When a grade has too few groups.
    """
    # The number of shots is no part of the seed, so that draws of more shots hold nearly all pictures of
    # fewer.
    train, test = few_shot_split(rows, shots, np.random.default_rng([seed, draw]))
    probe = linear().fit(embeddings[train], rows["kl_grade"].iloc[train])
    return predictions.frame(rows["image_id"].iloc[test], probe.predict_proba(embeddings[test]))


def few_shot_split(rows, shots, generator):
    """Positions to train on, `shots` per grade and one per group, and those of all other groups."""
    shuffled, drawn = rows.reset_index(drop=True).iloc[generator.permutation(len(rows))], []
    groups = rows.groupby("kl_grade")["group_id"].nunique().reindex(GRADES, fill_value=0)
    # The grade with the fewest groups draws first, lest other grades use them up.
    for grade in groups.sort_values(kind="stable").index:
        chosen = shuffled[shuffled["kl_grade"] == grade].drop_duplicates("group_id").head(shots)
        if groups[grade] <= shots or len(chosen) < shots:
            raise StudyError(
                f"Grade {grade} has {groups[grade]} group(s), too few to draw {shots} beside those of other "
                "grades and test on another: take fewer shots.")
        shuffled = shuffled[~shuffled["group_id"].isin(chosen["group_id"])]
        drawn += list(chosen.index)
    if shuffled.empty:
        raise StudyError(f"With {shots} shots per grade no group is left to test on: take fewer shots.")
    return drawn, sorted(shuffled.index)


def headline(study, results):
    """The line that closes a run in the terminal: the shown fold on unseen knees and on the external ones."""

    def told(split):
        values = metrics.summary(*arrays(shown_fold(study, results, split)))
        return "n = {n}) with accuracy {accuracy:.3f}, quadratic kappa {qwk:.3f}".format(**values)

    inside, arm = unseen(results.splits), results.frame["arm"].iloc[0]
    outside = f"{study.profile.external.name} ({told('external')}" if "external" in results else NO_EXTERNAL
    data = f"{study.profile.name}{' (synthetic phantoms)' * study.synthetic}"
    return f"{data}: {arm} grades unseen knees ({inside}, {told(inside)}; {outside}."
