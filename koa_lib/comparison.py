"""Arms side by side: each fold and seed, paired tests, and what folds over single pictures leak."""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.data import sets
from koa_lib.predictions import arrays
from koa_lib.protocols import baseline_arm, main_fold

NO_EXTERNAL = "no external cohort was given"
BEFORE = "-before"  # ends the name of an arm that is another one's model before any training
SIGNIFICANT = 0.05  # p below it
SHOWN = ["accuracy", "balanced_accuracy", "macro_f1", "qwk", "mae", "within_one"]
LEAKED = ("accuracy", "macro_f1", "qwk")


def shown(study, results):
    """`Results` of the fold that the paper's tables show, with the study's own seed."""
    return results.of(seed=study.seed, fold=main_fold(study))


def shown_fold(study, results, split):
    """A split graded by the fold that the paper's tables show; of `Results` of one arm."""
    return shown(study, results).graded(split=split)


def place(study, split):
    """Where the pictures of a split come from: 'gornale2020', or 'oai_chen2018, held-out fold'."""
    if split == "external":
        return study.profile.external.name
    return f"{study.profile.training.name}, {'held-out fold' if split == 'held_out' else f'{split} split'}"


def baselines(experiment):
    """`Results` of each baseline that the profile runs, by the name that the paper prints: on unseen pictures
    and the external ones."""
    study = experiment.study
    specs = [spec for spec in study.profile.baselines if not spec.reason]
    parts = ("unseen", "external")
    return {spec.name: experiment.run(baseline_arm(study, spec), splits=parts) for spec in specs}


def accuracy_row(graded, draws, seed):
    """Accuracy beside what one grade for every picture reaches, and the metrics that do not reward it.

    Returns
    -------
    dict
        n, accuracy, ci_low, ci_high (95 % group bootstrap), best_constant (accuracy of the best single grade
        on the same pictures), against_constant (paired, as `stats.against_constant`), macro_f1, qwk; ratios.
    """
    found = stats.measured(graded, ("accuracy", "macro_f1", "qwk"), draws, seed)
    constant = stats.against_constant(graded, draws, seed).loc["accuracy"]
    return {"n": found["n"], "accuracy": found["accuracy"],
            "ci_low": found["accuracy_low"], "ci_high": found["accuracy_high"],
            "best_constant": constant["constant"], "against_constant": constant["against"],
            "macro_f1": found["macro_f1"], "qwk": found["qwk"]}


def folds_and_seeds(study, results):
    """Each fold of several arms, with the mean and spread over folds and over seeds.

    Parameters
    ----------
    results : Results
        The folds of the study's own seed are shown. An arm '<arm>-before' gives the row 'before training' of
        another: its shown fold.

    Returns
    -------
    DataFrame
        arm, part, row (fold, 'mean over ...', 'SD over ...', 'before training'), n, accuracy,
        balanced_accuracy, macro_f1, qwk, mae, within_one (ratios; mae in grades).
    """
    table = pd.DataFrame([
        {**where, **metrics.summary(*arrays(run.graded()))}
        for where, run in results.each("arm", "split", "seed", "fold")
    ])
    table = table.assign(row=table["fold"].astype(str))
    untrained = table["arm"].str.endswith(BEFORE)
    before = table[untrained & (table["fold"] == main_fold(study))].assign(row="before training")
    rows = []
    for (arm, split), found in table[~untrained].groupby(["arm", "split"], sort=False):
        folds = found[found["seed"] == study.seed]
        seeds = found.groupby("seed", sort=False)[SHOWN].mean()
        start = before[(before["arm"] == arm + BEFORE) & (before["split"] == split)]
        spreads = _spread(folds[SHOWN], "folds") + _spread(seeds, "seeds")
        rows.append(pd.concat([folds, *spreads, start]).assign(arm=arm, part=split))
    return pd.concat(rows, ignore_index=True)[["arm", "part", "row", "n", *SHOWN]].astype({"n": "Int64"})


def _spread(values, over):
    # Nothing is said of a single one.
    if len(values) < 2:
        return []
    return [pd.DataFrame([values.mean(), values.std()]).assign(row=[f"mean over {over}", f"SD over {over}"])]


def paired_tests(study, results, others, split):
    """CLIP against each baseline on the same pictures, single knees without repeats.

    McNemar's test takes the two knees of a patient for independent, as the paper does; the interval of the
    difference beside it resamples patients. Compared are the mean probabilities of the folds that both
    trained; a held-out fold as it is, because each fold holds out other pictures.

    Parameters
    ----------
    results : Results
        Of the main arm.
    others : dict of str to Results
        Baselines by their printed names.

    Returns
    -------
    DataFrame
        baseline, folds, n, clip_only, baseline_only (discordant counts), p_exact, p_mid, p_holm, difference
        (of accuracy), difference_low, difference_high (group bootstrap), ahead ('CLIP' or 'baseline' where
        Holm's p is below 0.05 and the interval excludes 0, else 'not clear'), one_answer (share of the
        pictures to which the baseline gives its commonest grade).
    """
    columns = ("baseline folds n clip_only baseline_only p_exact p_mid p_holm difference difference_low "
               "difference_high ahead one_answer").split()
    rows = [{"baseline": name, **_paired_test(study, results, found, split)}
            for name, found in others.items()]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = stats.holm(table["p_exact"])
    clear = table["p_holm"] < SIGNIFICANT
    ahead = [clear & (table["difference_low"] > 0), clear & (table["difference_high"] < 0)]
    return table.assign(ahead=np.select(ahead, ["CLIP", "baseline"], "not clear"))


def _paired_test(study, results, found, split):
    both = [arm.of(seed=study.seed, split=split) for arm in (results, found)]
    folds = set(both[0].frame["fold"]) & set(both[1].frame["fold"])
    folds = {main_fold(study)} if split == "held_out" else folds
    clip, other = (arm.graded(fold=folds) for arm in both)
    knees = sets.subset(clip, "single_knee")
    clip, other = (graded[graded["image_id"].isin(knees)] for graded in (clip, other))
    a, b = stats.predicted(stats.paired(clip, other))
    test = stats.mcnemar(a == clip["kl_grade"], b == clip["kl_grade"])
    gap = stats.gaps(clip, other, ["accuracy"], results.draws, results.seed)
    return {"folds": len(folds), "n": len(clip), "clip_only": test["b"], "baseline_only": test["c"],
            "p_exact": test["p_exact"], "p_mid": test["p_mid"], "difference": gap["accuracy"],
            "difference_low": gap["accuracy_low"], "difference_high": gap["accuracy_high"],
            "one_answer": np.bincount(b).max() / len(b) if len(b) else np.nan}


def leak(by_image, by_patient):
    """What folds over pictures gain over folds over patients, on pictures that each fold held out.

    Parameters
    ----------
    by_image, by_patient : Results
        Of the same recipe.

    Returns
    -------
    DataFrame
        metric, n, by_image, by_patient, difference, difference_low, difference_high (paired, patients
        resampled whole), parted_by_image, parted_by_patient (shares of the pictures whose other knee was in
        training).
    """
    draws, seed = by_image.draws, by_image.seed
    a, b = (found.graded(split="held_out", seed=seed) for found in (by_image, by_patient))
    first, second = (stats.samples(graded, LEAKED, draws, seed) for graded in (a, stats.aligned(b, a)))
    parted = {"parted_by_image": parted_patients(by_image), "parted_by_patient": parted_patients(by_patient)}
    return pd.DataFrame([
        {"metric": name, "n": len(a), "by_image": first[name][0], "by_patient": second[name][0],
         **stats.with_interval("difference", first[name] - second[name]), **parted}
        for name in LEAKED
    ])


def parted_patients(results):
    """Share of held-out pictures whose patient has another knee in their training part, over all folds."""
    parted = []
    for _, fold in results.of(seed=results.seed).each("fold"):
        train, held_out = (fold.of(split=split).frame["group_id"] for split in ("train", "held_out"))
        parted.append(held_out.isin(set(train)))
    return float(pd.concat(parted).mean())
