"""From which fraction of the labels a frozen tower equals CLIP that was fine-tuned with all of them."""

import numpy as np
import pandas as pd

from koa_lib import metrics, predictions, stats
from koa_lib.claims import Answer
from koa_lib.efficiency import SELF_SUPERVISED
from koa_lib.scorecard import Ours

METRIC = "qwk"
MARGIN = 0.03  # quadratic kappa: what may be lost by a start that still equals the supervised result; the scorecard's tolerance for ratios
HALF = 0.5


def curve(study, found, reference):
    """The result for each start and fraction, held against the supervised result on the same pictures.

    A value is the mean over the seeds (over the folds, for the supervised result). Its interval resamples the patients of the reported pictures, the same
    for all seeds, folds and starts, and holds nothing of the draw of the labels, which `sd_over_seeds` shows.

    Parameters
    ----------
    found : DataFrame
        As from `efficiency.run`.
    reference : dict
        As from `efficiency.supervised`.

    Returns
    -------
    DataFrame
        cohort, start, fraction, patients, pictures (means over seeds, rounded), n, qwk, ci_low, ci_high, sd_over_seeds, accuracy, difference, difference_low,
        difference_high (qwk minus the supervised); the supervised rows have the start 'supervised' and fraction 1.
    """
    rows = []
    for cohort, frames in reference.items():
        full = _Mean(study, frames)
        rows.append({"cohort": cohort, "start": "supervised", "fraction": 1.0, **full.row()})
        for (start, fraction), group in found[found["cohort"] == cohort].groupby(["start", "fraction"], sort=False):
            mean = _Mean(study, [_in_order(graded, frames[0]) for graded in group["graded"]])
            low, high = stats.interval(mean.draws - full.draws)
            rows.append({"cohort": cohort, "start": start, "fraction": fraction, "patients": round(group["patients"].mean()), "pictures": round(group["pictures"].mean()),
                         **mean.row(), "difference": mean.value - full.value, "difference_low": low, "difference_high": high})
    table = pd.DataFrame(rows)
    order = ["cohort", "start", "fraction", "patients", "pictures", "n", METRIC, "ci_low", "ci_high", "sd_over_seeds", "accuracy"]
    table = table[[*order, "difference", "difference_low", "difference_high"]]
    return table.astype({"patients": "Int64", "pictures": "Int64"})


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
        return {"n": self.n, METRIC: self.value, "ci_low": low, "ci_high": high, "sd_over_seeds": sd, "accuracy": self.accuracy}


def _in_order(graded, like):
    # The same pictures in the same order, so that the same draws take the same patients.
    stats.paired(like, graded)
    return graded.set_index("image_id").loc[like["image_id"]].reset_index()


def seeds(found):
    """Quadratic kappa of each seed: cohort, start, fraction, seed, qwk."""
    rows = found.drop(columns=["graded", "patients", "pictures"])
    values = [metrics.from_confusion(metrics.confusion(grades, given.argmax(1)))[METRIC] for grades, given in map(predictions.arrays, found["graded"])]
    return rows.assign(**{METRIC: np.array(values, dtype=float)})


def equal(table):
    """From which fraction each start equals the supervised result.

    Returns
    -------
    DataFrame
        cohort, start, not_below (the smallest fraction whose interval of the difference reaches 0 or above: less can't be shown), within_margin (whose interval
        stays above minus `MARGIN`: much less can be excluded), as_high (whose value itself is as high); NaN where none is.
    """
    rows = []
    for (cohort, start), curve in table[table["start"] != "supervised"].groupby(["cohort", "start"], sort=False):
        rows.append({"cohort": cohort, "start": start, "not_below": _first(curve, curve["difference_high"] >= 0),
                     "within_margin": _first(curve, curve["difference_low"] > -MARGIN), "as_high": _first(curve, curve["difference"] >= 0)})
    return pd.DataFrame(rows)


def _first(curve, holds):
    return float(curve.loc[holds, "fraction"].min())


def answers(table):
    """The study's answers to OrthoFoundation's rows, from the unseen pictures of the training cohort.

    The claim is *replicated* when with at most half of the labels the interval of the difference stays above minus `MARGIN`, *not replicated* when with each such
    fraction it lies below 0, else *inconclusive*.
    """
    inside = table[(table["cohort"] != "external") & (table["start"] == SELF_SUPERVISED)]
    half, reached = inside[inside["fraction"] <= HALF], equal(inside).iloc[0]
    best = half.iloc[-1]
    verdict = "replicated" if (half["difference_low"] > -MARGIN).any() else "not replicated" if (half["difference_high"] < 0).all() else "inconclusive"
    said = (f"with {best.fraction:.0%} of the labels quadratic kappa is {best.difference:+.3f} ({best.difference_low:+.3f} to {best.difference_high:+.3f}) against CLIP fine-tuned with all; "
            f"the fraction is the smallest at which that interval reaches 0, {_share(reached.not_below)}; for the value itself it is {_share(reached.as_high)}")
    source = ("OrthoFoundation", "abstract")
    return {(*source, "label efficiency", "label_fraction"): Ours(reached.not_below, note=said),
            (*source, "half of the labels match the supervised full-label result"): Answer(reached.not_below, np.nan, np.nan, "ratio", verdict, said)}


def _share(fraction):
    return "none that was tried" if np.isnan(fraction) else f"{fraction:.0%}"
