"""Arms side by side: folds, seeds, paired tests, and what folds over single pictures leak."""

from dataclasses import fields

import pandas as pd

from koa_lib import metrics, stats
from koa_lib.baselines import described as described_network
from koa_lib.data import sets
from koa_lib.predictions import arrays, joined_mean
from koa_lib.protocols import described, fold_mean, main_arm, main_fold, unseen_split

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
        tables = {seed: fold_table(results).rename(columns={"fold": "row"}).astype({"row": str}) for seed, results in runs.items()}
        for part, folds in next(iter(tables.values())).groupby("part", sort=False):
            means = pd.DataFrame([table.loc[table["part"] == part, list(_SHOWN)].mean() for table in tables.values()])
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


def fold_sentence(table):
    """Mean and standard deviation over the folds of the unseen parts, in words."""
    sentences = []
    for part, rows in table[table["part"] != "train"].groupby("part", sort=False):
        spread = f" ± {rows['qwk'].std():.3f}" if len(rows) > 1 else ""
        sentences.append(f"{part.replace('_', '-')}: accuracy {rows['accuracy'].mean():.3f}, quadratic kappa {rows['qwk'].mean():.3f}{spread} ({len(rows)} fold{'s' * (len(rows) > 1)})")
    return "; ".join(sentences) + "."


def untrained(arm):
    """The arm's grader before any graded knee: an adapter is switched off, everything else has its start weights."""
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
    for part, (data, source) in ((unseen_split(results), runner.unseen(arm, grader)), ("external", runner.external(arm, grader))):
        if data is not None:
            graded = predictions.join(predictions.frame(data.rows["image_id"], training.predict(grader, source)), data.rows)
            graded.attrs["fold"] = main_fold(study)
            found[part] = [graded]
    return found


def gain_in_words(study, before, results):
    """What training adds to the model of `before_training`, as paired differences on the pictures of the shown fold."""
    sentences = []
    for part, (untouched,) in before.items():
        both = stats.paired(shown_fold(study, results, part), untouched)
        told = [_gain(stats.difference(both, metric, study.profile.draws, study.seed), name)
                for metric, name in (("accuracy", "accuracy"), ("qwk", "quadratic kappa"))]
        sentences.append(f"{part.replace('_', '-')} (fold {main_fold(study)}, n = {len(both):,}): {' and '.join(told)}")
    return "; ".join(sentences) + "."


def _gain(gap, name):
    verdict = "a gain" if gap["ci_low"] > 0 else "a loss" if gap["ci_high"] < 0 else "no clear gain"
    interval = f"{gap['difference']:+.3f}, 95 % interval {gap['ci_low']:+.3f} to {gap['ci_high']:+.3f}".replace("-", "−")
    return f"{name} {gap['b']:.3f} before and {gap['a']:.3f} after training ({interval}: {verdict})"


def recipe_differences(arm, other):
    """Every setting in which the recipe of an arm differs from another's, in words, e.g. 'batch (64, here 32)'."""
    names = {"part": "trained part"}
    pairs = differing(other.recipe, arm.recipe).items()
    return ", ".join(f"{names.get(name, name.replace('_', ' '))} ({_setting(theirs)}, here {_setting(own)})" for name, (theirs, own) in pairs)


def differing(recipe, other):
    """The settings in which two recipes differ: name to (value, other value)."""
    pairs = {item.name: (getattr(recipe, item.name), getattr(other, item.name)) for item in fields(recipe)}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def _setting(value):
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _values(graded):
    grades, probabilities = arrays(graded)
    values = metrics.from_confusion(metrics.confusion(grades, probabilities.argmax(1)))
    return {name: float(values[name]) for name in _SHOWN}


def seed_table(study, runs):
    """Each seed's mean over its folds, then the spread over seeds and, apart from it, over the folds of the first seed.

    Parameters
    ----------
    runs : dict of int to dict
        As from `Runner.run_seeds`.

    Returns
    -------
    DataFrame
        row ('seed 42', ..., 'sd over seeds', 'sd over folds'), folds, then accuracy and qwk of the unseen and external part.
    """
    tables = {f"seed {seed}": fold_table(results) for seed, results in runs.items()}
    per_fold = {name: table.pivot(index="fold", columns="part", values=["accuracy", "qwk"]) for name, table in tables.items()}
    parts = [part for part in (unseen_split(next(iter(runs.values()))), "external") if part in next(iter(runs.values()))]
    rows = pd.DataFrame({name: values.mean() for name, values in per_fold.items()}).T
    first = next(iter(per_fold.values()))
    spread = pd.DataFrame({"sd over seeds": rows.std(), "sd over folds": first.std()}).T
    rows = pd.concat([rows, spread])
    columns = {f"{part.replace('_', '-')} {metric}": rows[metric, part] for part in parts for metric in ("accuracy", "qwk")}
    return pd.DataFrame({"row": rows.index, "folds": [len(first)] * len(runs) + [pd.NA, len(first)], **{name: column.to_numpy() for name, column in columns.items()}})


def fold_means(found, split, numbers):
    """Mean probabilities over some folds for a split that each of them predicts, joined; a single fold as it is."""
    return joined_mean([frame for frame in found[split] if frame.attrs["fold"] in numbers])


def common_folds(*results, split):
    """Numbers of the folds that all arms predicted a split with."""
    return sorted(set.intersection(*({frame.attrs["fold"] for frame in found[split]} for found in results)))


def paired_tests(study, results, others, split):
    """CLIP against each baseline on the same pictures: mean probabilities of the folds both trained, single knees without repeats.

    A held-out fold is compared as it is: each fold holds out other pictures.

    Returns
    -------
    DataFrame
        baseline, folds, n, clip_only, baseline_only (discordant counts), p_exact, p_mid, p_holm, difference (of accuracy), ci_low, ci_high.
    """
    rows = []
    for name, found in others.items():
        numbers = [main_fold(study)] if split == "held_out" else common_folds(results, found, split=split)
        both = stats.paired(*(fold_means(arm, split, numbers) for arm in (results, found)))
        both = both[both["image_id"].isin(sets.subset(both, "single_knee"))]
        a, b = stats.predicted(both)
        test = stats.mcnemar(a == both["kl_grade"], b == both["kl_grade"])
        gap = stats.difference(both, "accuracy", study.profile.draws, study.seed)
        rows.append({"baseline": name, "folds": len(numbers), "n": len(both), "clip_only": test["b"], "baseline_only": test["c"], "p_exact": test["p_exact"],
                     "p_mid": test["p_mid"], "difference": gap["difference"], "ci_low": gap["ci_low"], "ci_high": gap["ci_high"]})
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(7, "p_holm", stats.holm(table["p_exact"]))
    return table


def leak(study, by_image, by_patient):
    """What folds over single pictures gain over folds that keep patients together, each picture graded by the fold that held it out.

    Parameters
    ----------
    by_image, by_patient : dict
        Results of the same recipe, as from `Runner.run`.

    Returns
    -------
    DataFrame
        metric, by_image, by_patient, difference, ci_low, ci_high; paired, patients resampled whole.
    """
    both = stats.paired(stats.pool(by_image["held_out"]), stats.pool(by_patient["held_out"]))
    gaps = [stats.difference(both, metric, study.profile.draws, study.seed) for metric in ("accuracy", "macro_f1", "qwk")]
    return pd.DataFrame(gaps).rename(columns={"a": "by_image", "b": "by_patient"})


def tests_in_words(tests):
    """Which baselines CLIP differs from after Holm's correction, from `paired_tests`."""
    clear = tests[tests["p_holm"] < 0.05] if len(tests) else tests
    ahead, behind = (", ".join(row.baseline for row in clear.itertuples() if (row.difference > 0) == better) or "none" for better in (True, False))
    return (f"After Holm's correction {len(clear)} of {len(tests)} differences are clear at 5 %: CLIP is ahead of {ahead} and behind {behind}. "
            "A network that gives nearly one grade to all pictures can be ahead where that grade is common")


def leak_in_words(table, by_image, by_patient):
    """How many held-out knees have their other side in training, and what that is worth, from `leak`."""
    line = table.set_index("metric").loc["accuracy"]
    seen = line.ci_low > 0 or line.ci_high < 0
    return (f"{parted_patients(by_image):.0%} of the held-out knees have their other side in the training part, {parted_patients(by_patient):.0%} when "
            f"patients stay together. Folds over pictures have {100 * line.difference:+.1f} points of accuracy more ({100 * line.ci_low:+.1f} to "
            f"{100 * line.ci_high:+.1f}); other seeds and other folds are not in this interval. "
            + ("It excludes 0." if seen else "It contains 0: no leak is seen with this trained part, which does not mean that one with more weights has none."))


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
            rows[f"{main.name}, {split.replace('_', ' ')}"] = (*_tested(study, split), shown_fold(study, results, split))
    for split in ("test", "external"):
        if split in our_results:
            rows[f"{ours.name}, {split}"] = (*_tested(study, split), fold_mean(study, ours, our_results, split))
    return rows


def _tested(study, split):
    protocol = "phantoms" if study.synthetic else "OAI to Gornale" if split == "external" else "OAI internal"
    place = study.profile.external.name if split == "external" else f"{study.profile.training.name}, {split.replace('_', ' ')}"
    return protocol, place


def parted_patients(results):
    """Share of held-out pictures with another knee of the same patient in their training part, over all folds."""
    parted = [held_out["group_id"].isin(set(train["group_id"])) for train, held_out in zip(results["train"], results["held_out"], strict=True)]
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
    absent = "no external cohort was given"
    outside = {name: shown_fold(study, found, "external") if "external" in found else absent
               for name, found in results.items()}
    inside = {name: shown_fold(study, found, unseen_split(found)) for name, found in results.items()}
    as_run = {spec.name: described_network(spec) for spec in study.profile.baselines if spec.name in results}
    return reasons | outside, as_run | {"Fine-tuned CLIP": described(main_arm(study), study)}, inside
