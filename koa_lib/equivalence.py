"""From which fraction of the labels a frozen tower equals CLIP that was fine-tuned with all of them."""

import numpy as np
import pandas as pd

from koa_lib import metrics, predictions, stats
from koa_lib.efficiency import RANDOM, SELF_SUPERVISED
from koa_lib.paper.claims import Answer
from koa_lib.paper.scorecard import Ours

METRIC, SUPERVISED = "qwk", "supervised"
MEANINGS = ("within_margin", "not_below", "as_high")  # of being as good as the supervised result
MARGIN = 0.03  # quadratic kappa: what may be lost by a start that still equals the supervised result; the scorecard's tolerance for ratios
HALF = 0.5
CHANCE = "the supervised result itself is not shown to be above chance, so being equal to it means little"


def curve(study, found, reference, labelled):
    """The result for each start and fraction, held against the supervised result and against the random start on the same pictures.

    A value is the mean over the seeds (over the folds, for the supervised result). Its interval resamples the patients of the reported pictures, the same
    for all seeds, folds and starts, and holds neither the draw of the labels, which `sd_over_draws` shows, nor the training of the towers.

    Parameters
    ----------
    found : DataFrame
        As from `efficiency.run`.
    reference, labelled
        As from `efficiency.supervised`.

    Returns
    -------
    DataFrame
        cohort, start, fraction, patients, pictures (means over seeds or folds, rounded), n, qwk, qwk_low,
        qwk_high, sd_over_draws, accuracy; qwk_seed_<seed> (each draw of labels); against_supervised and
        against_random (differences of qwk, the latter at the same fraction), each with _low and _high. The
        supervised rows have the start 'supervised' and fraction 1.
    """
    rows = []
    for cohort, frames in reference.items():
        full = _Mean(study, frames)
        rows.append({"cohort": cohort, "start": SUPERVISED, "fraction": 1.0, **_sizes(labelled), **full.row(), "sd_over_draws": np.nan})
        own = found[found["cohort"] == cohort]
        means = {key: _Mean(study, [_in_order(graded, frames[0]) for graded in group["graded"]]) for key, group in own.groupby(["start", "fraction"], sort=False)}
        for (start, fraction), mean in means.items():
            group = own[(own["start"] == start) & (own["fraction"] == fraction)]
            other = None if start == RANDOM else means.get((RANDOM, fraction))
            each = dict(zip((f"{METRIC}_seed_{seed}" for seed in group["seed"]), mean.each, strict=True))
            rows.append({"cohort": cohort, "start": start, "fraction": fraction, **_sizes(group), **mean.row(),
                         **each, **mean.against(full, "against_supervised"),
                         **mean.against(other, "against_random")})
    order = [f"against_{one}{bound}" for one in (SUPERVISED, RANDOM) for bound in ("", "_low", "_high")]
    table = pd.DataFrame(rows)
    return table[[*table.columns.drop(order, errors="ignore"), *order]].astype({"patients": "Int64", "pictures": "Int64"})


def _sizes(rows):
    return {name: round(rows[name].mean()) for name in ("patients", "pictures")}


class _Mean:
    """Mean quadratic kappa of several models on the same pictures, with its draws over patients."""

    def __init__(self, study, frames):
        values, draws = [], []
        for graded in frames:
            grades, probabilities = predictions.arrays(graded)
            predicted = probabilities.argmax(1)
            values.append(metrics.from_confusion(metrics.confusion(grades, predicted)))
            draws.append(metrics.from_confusion(stats.group_bootstrap(grades, predicted, graded["group_id"], study.profile.draws, study.seed))[METRIC])
        self.n, self.each = len(frames[0]), np.array([float(value[METRIC]) for value in values])
        self.value, self.accuracy, self.draws = self.each.mean(), float(np.mean([value["accuracy"] for value in values])), np.mean(draws, axis=0)

    def row(self):
        low, high = stats.interval(self.draws)
        sd = self.each.std(ddof=1) if len(self.each) > 1 else np.nan
        return {"n": self.n, METRIC: self.value, f"{METRIC}_low": low, f"{METRIC}_high": high,
                "sd_over_draws": sd, "accuracy": self.accuracy}

    def against(self, other, name):
        """Value minus another's, paired: the same patients are drawn for both."""
        low, high = (np.nan, np.nan) if other is None else stats.interval(self.draws - other.draws)
        return {name: np.nan if other is None else self.value - other.value, f"{name}_low": low, f"{name}_high": high}


def _in_order(graded, like):
    # The same pictures in the same order, so that the same draws take the same patients.
    stats.paired(like, graded)
    return graded.set_index("image_id").loc[like["image_id"]].reset_index()


def equal(table):
    """From which fraction on each start equals the supervised result: there and with every larger fraction.

    Returns
    -------
    DataFrame
        cohort, start, and fractions: within_margin (the interval of the difference stays above minus `MARGIN`: a larger loss can be excluded), not_below (that
        interval reaches 0: a loss can't be shown), as_high (the value itself is as high); NaN where not even all labels suffice.
    """
    rows = []
    for (cohort, start), line in table[table["start"] != SUPERVISED].groupby(["cohort", "start"], sort=False):
        value, low, high = (line[f"against_supervised{bound}"] for bound in ("", "_low", "_high"))
        rows.append({"cohort": cohort, "start": start, "within_margin": _from(line, low > -MARGIN), "not_below": _from(line, high >= 0), "as_high": _from(line, value >= 0)})
    return pd.DataFrame(rows)


def _from(line, holds):
    # One lucky fraction is not enough: what holds must hold with all larger ones too.
    falling = holds[line["fraction"].sort_values(ascending=False).index]
    return float(line.loc[falling.index[falling.cummin()], "fraction"].min())


def fractions(table):
    """The table of `curve` with what holds from a fraction on.

    Returns
    -------
    DataFrame
        As from `curve`, fraction as label_percent; within_margin, not_below, as_high ('yes' where it holds
        there and with all larger fractions, 'no', or empty for the supervised rows), and supervised (the
        quadratic kappa of the cohort's supervised row).
    """
    since = table[["cohort", "start"]].merge(equal(table), how="left")
    full = table[table["start"] == SUPERVISED].set_index("cohort")[METRIC]
    held = {name: np.where(table["fraction"] >= since[name].to_numpy(), "yes", "no") for name in MEANINGS}
    held = {name: np.where(table["start"] == SUPERVISED, "", values) for name, values in held.items()}
    percent = table.assign(fraction=100 * table["fraction"]).rename(columns={"fraction": "label_percent"})
    return percent.assign(**held, supervised=table["cohort"].map(full))


def answers(table):
    """The study's answers to OrthoFoundation's rows, from the unseen pictures of the training cohort.

    The claim is decided by one comparison, with the largest fraction that is at most half: *replicated* when
    the interval of the difference stays above minus `MARGIN`, *not replicated* when it lies below 0, else, or
    where the supervised result is not above chance, *inconclusive*. The number is the fraction from which on
    that interval stays above minus `MARGIN`, infinite where no fraction does; it stands beside the claim too.
    """
    here = table[table["cohort"] != "external"]
    inside, full = here[here["start"] == SELF_SUPERVISED], here[here["start"] == SUPERVISED]
    half = inside[inside["fraction"] <= HALF].sort_values("fraction").iloc[-1]
    reached = equal(inside).iloc[0].within_margin
    low, high = half.against_supervised_low, half.against_supervised_high
    verdict = "replicated" if low > -MARGIN else "not replicated" if high < 0 else "inconclusive"
    said = (f"with {half.fraction:.0%} of the labels quadratic kappa differs from that of CLIP fine-tuned "
            f"with all by {half.against_supervised:+.3f} ({low:+.3f} to {high:+.3f})")
    found = "none" if np.isnan(reached) else f"{reached:.0%}"
    note = ("smallest share of the labels from which on the self-supervised start is shown to lose at most "
            f"{MARGIN:g} of quadratic kappa to CLIP fine-tuned with all labels: {found}")
    if (full[f"{METRIC}_low"] <= 0).any():
        verdict, said, note = "inconclusive", f"{said}; {CHANCE}", f"{note}; {CHANCE}"
    source, fraction = ("OrthoFoundation", "abstract"), np.inf if np.isnan(reached) else reached
    claim = (*source, "half of the labels match the supervised full-label result")
    return {(*source, "label efficiency", "label_fraction"): Ours(fraction, note=note),
            claim: Answer(fraction, np.nan, np.nan, "ratio", verdict, said)}
