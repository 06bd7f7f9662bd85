"""Arms side by side: folds, seeds, paired tests, and what folds over single pictures leak."""


import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.baselines import described as described_network
from koa_lib.data import sets
from koa_lib.predictions import arrays, joined_mean
from koa_lib.protocols import described, fold_mean, main_arm, main_fold, unseen_split

NO_EXTERNAL = "no external cohort was given"
SIGNIFICANT = 0.05  # of p after Holm's correction
_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "qwk", "mae", "within_one")


def fold_table(results):
    """Metrics of each fold on each part.

    Parameters
    ----------
    results : dict of str to list of DataFrame
        As from `Runner.run`.

    Returns
    -------
    DataFrame
        part, fold, n, accuracy, balanced_accuracy, macro_f1, qwk, mae, within_one (ratios; mae in grades).
    """
    rows = []
    for part, frames in results.items():
        for number, graded in enumerate(frames, start=1):
            fold = graded.attrs.get("fold", number)
            rows.append({"part": part, "fold": fold, "n": len(graded), **_values(graded)})
    return pd.DataFrame(rows)


def folds_and_seeds(arms, before):
    """Each fold of several arms, with the mean and spread over folds and over seeds.

    Parameters
    ----------
    arms : dict of str to dict of int to dict
        Arm -> seed -> results as from `Runner.run`; the folds of the first seed are shown.
    before : dict of str to dict
        Arm -> frames of the same model before training, as from `before_training`.

    Returns
    -------
    DataFrame
        arm, part, row (fold, 'mean over ...', 'SD over ...', 'before training'), n, then as `fold_table`.
    """
    rows = []
    for arm, runs in arms.items():
        tables = {
            seed: fold_table(results).rename(columns={"fold": "row"}).astype({"row": str})
            for seed, results in runs.items()
        }
        for part, folds in next(iter(tables.values())).groupby("part", sort=False):
            means = pd.DataFrame(
                [table.loc[table["part"] == part, list(_SHOWN)].mean() for table in tables.values()]
            )
            spreads = [_spread(folds[list(_SHOWN)], "folds"), _spread(means, "seeds")]
            untouched = fold_table({part: before.get(arm, {}).get(part, [])})
            start = [untouched.assign(row="before training").drop(columns="fold")] if len(untouched) else []
            rows.append(pd.concat([folds, *spreads, *start]).assign(arm=arm, part=part))
    return pd.concat(rows, ignore_index=True)[["arm", "part", "row", "n", *_SHOWN]].astype({"n": "Int64"})


def _spread(values, over):
    # Nothing is said of a single one.
    if len(values) < 2:
        return values.iloc[:0]
    return pd.DataFrame([values.mean(), values.std()]).assign(row=[f"mean over {over}", f"SD over {over}"])


def untrained(arm):
    """The arm's grader before any graded knee: an adapter is off, everything else has its start weights."""
    grader = arm.build()
    if grader.adapter is not None:
        grader.adapter.residual = 0.0
    return grader.eval()


def before_training(study, runner, arm, results):
    """An arm's model before any graded knee, on the pictures that its shown fold did not see.

    Parameters
    ----------
    runner : Runner
    results : dict
        Of the arm, as from `Runner.run`.

    Returns
    -------
    dict of str to list of DataFrame
        Unseen part and 'external' to one graded frame with the number of the shown fold.
    """
    from koa_lib import predictions, training

    grader, found = untrained(arm), {}
    for part, (data, source) in (
        (unseen_split(results), runner.unseen(arm, grader)),
        ("external", runner.external(arm, grader)),
    ):
        if data is not None:
            graded = predictions.join(
                predictions.frame(data.rows["image_id"], training.predict(grader, source)), data.rows
            )
            graded.attrs["fold"] = main_fold(study)
            found[part] = [graded]
    return found


def _values(graded):
    grades, probabilities = arrays(graded)
    values = metrics.from_confusion(metrics.confusion(grades, probabilities.argmax(1)))
    return {name: float(values[name]) for name in _SHOWN}


def fold_means(found, split, numbers):
    """Mean probabilities over some folds for a split that each predicts, joined; a single fold as it is."""
    return joined_mean([frame for frame in found[split] if frame.attrs["fold"] in numbers])


def common_folds(*results, split):
    """Numbers of the folds that all arms predicted a split with."""
    return sorted(set.intersection(*({frame.attrs["fold"] for frame in found[split]} for found in results)))


def paired_tests(study, results, others, split):
    """CLIP against each baseline on the same pictures, single knees without repeats.

    Compared are the mean probabilities of the folds that both trained; a held-out fold as it is, because each
    fold holds out other pictures.

    Returns
    -------
    DataFrame
        baseline, folds, n, clip_only, baseline_only (discordant counts), p_exact, p_mid, p_holm, difference
        (of accuracy), difference_low, difference_high (group bootstrap), ahead ('CLIP' or 'baseline' where
        Holm's p is below 0.05, else 'not clear'), one_answer (share of the pictures to which the baseline
        gives its commonest grade).
    """
    rows = [_paired_test(study, results, found, name, split) for name, found in others.items()]
    columns = (
        "baseline folds n clip_only baseline_only p_exact p_mid p_holm difference difference_low "
        "difference_high ahead one_answer"
    ).split()
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = stats.holm(table["p_exact"])
    leader = np.where(table["difference"] > 0, "CLIP", "baseline")
    return table.assign(ahead=np.where(table["p_holm"] < SIGNIFICANT, leader, "not clear"))


def _paired_test(study, results, found, name, split):
    numbers = [main_fold(study)] if split == "held_out" else common_folds(results, found, split=split)
    both = stats.paired(*(fold_means(arm, split, numbers) for arm in (results, found)))
    both = both[both["image_id"].isin(sets.subset(both, "single_knee"))]
    a, b = stats.predicted(both)
    test = stats.mcnemar(a == both["kl_grade"], b == both["kl_grade"])
    gap = stats.difference(both, "accuracy", study.profile.draws, study.seed)
    return {
        "baseline": name,
        "folds": len(numbers),
        "n": len(both),
        "clip_only": test["b"],
        "baseline_only": test["c"],
        "p_exact": test["p_exact"],
        "p_mid": test["p_mid"],
        "difference": gap["difference"],
        "difference_low": gap["ci_low"],
        "difference_high": gap["ci_high"],
        "one_answer": np.bincount(b).max() / len(b) if len(b) else np.nan,
    }


def leak(study, by_image, by_patient):
    """What folds over pictures gain over folds over patients, on pictures that each fold held out.

    Parameters
    ----------
    by_image, by_patient : dict
        Results of the same recipe, as from `Runner.run`.

    Returns
    -------
    DataFrame
        metric, n, by_image, by_patient, difference, difference_low, difference_high (paired, patients
        resampled whole), parted_by_image, parted_by_patient (shares of the pictures whose other knee was in
        training).
    """
    both = stats.paired(stats.pool(by_image["held_out"]), stats.pool(by_patient["held_out"]))
    gaps = pd.DataFrame(
        [
            stats.difference(both, metric, study.profile.draws, study.seed)
            for metric in ("accuracy", "macro_f1", "qwk")
        ]
    )
    names = {"a": "by_image", "b": "by_patient", "ci_low": "difference_low", "ci_high": "difference_high"}
    gaps = gaps.rename(columns=names).assign(
        parted_by_image=parted_patients(by_image), parted_by_patient=parted_patients(by_patient)
    )
    gaps.insert(1, "n", len(both))
    return gaps


def beside_studies(study, main, results, ours, our_results):
    """This run's rows of Table 5: the shown fold of the main arm, and the fold means by our protocol.

    Parameters
    ----------
    main, ours : Arm
    results, our_results : dict
        As from `Runner.run`.

    Returns
    -------
    dict of str to (str, str, DataFrame)
        Name of the row to where it was trained and tested, the test set, and the graded frame.
    """
    rows = {}
    for split in results:
        if split != "train":
            rows[f"{main.name}, {split.replace('_', ' ')}"] = (
                *_tested(study, split),
                shown_fold(study, results, split),
            )
    for split in ("test", "external"):
        if split in our_results:
            rows[f"{ours.name}, {split}"] = (
                *_tested(study, split),
                fold_mean(study, ours, our_results, split),
            )
    return rows


def _tested(study, split):
    protocol = "phantoms" if study.synthetic else "OAI to Gornale" if split == "external" else "OAI internal"
    place = (
        study.profile.external.name
        if split == "external"
        else f"{study.profile.training.name}, {split.replace('_', ' ')}"
    )
    return protocol, place


def parted_patients(results):
    """Share of held-out pictures whose patient has another knee in their training part, over all folds."""
    parted = [
        held_out["group_id"].isin(set(train["group_id"]))
        for train, held_out in zip(results["train"], results["held_out"], strict=True)
    ]
    return float(pd.concat(parted).mean())


def shown_fold(study, results, split):
    """The frame of the main fold for a split."""
    return next(frame for frame in results[split] if frame.attrs["fold"] == main_fold(study))


def models(study, results):
    """The models of Table 4: what it is made of.

    Parameters
    ----------
    results : dict of str to dict
        Model to its results, as from `Runner.run`; "Fine-tuned CLIP" is the main arm.

    Returns
    -------
    (dict, dict, dict)
        Model to the shown fold's external frame (or why there is none), to how it was run, and to the shown
        fold's frame of the unseen part of the training cohort.
    """
    reasons = {spec.name: f"not run: {spec.reason}" for spec in study.profile.baselines if spec.reason}
    outside = {name: shown_fold(study, found, "external") if "external" in found else NO_EXTERNAL
               for name, found in results.items()}
    inside = {name: shown_fold(study, found, unseen_split(found)) for name, found in results.items()}
    as_run = {spec.name: described_network(spec) for spec in study.profile.baselines if spec.name in results}
    return reasons | outside, as_run | {"Fine-tuned CLIP": described(main_arm(study), study)}, inside
