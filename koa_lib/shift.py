"""Label shift: how much another cohort's mix of grades explains, and probabilities adapted to a mix."""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError

PRIOR_TOLERANCE = 1e-3


def reweight(cm, target_counts):
    """Accuracy that a confusion matrix gives under another grade mix, its rows kept as they are.

    Parameters
    ----------
    cm : array (..., 5, 5)
        Rows true, columns predicted.
    target_counts : array (..., 5)
        Pictures (or shares) per true grade of the other cohort.

    Returns
    -------
    float or float array (...)
        Ratio; NaN when the target holds a grade that the matrix lacks, or no picture.
    """
    cm, target = np.asarray(cm, dtype=float), np.asarray(target_counts, dtype=float)
    if cm.shape[-2:] != (metrics.K, metrics.K) or target.shape[-1:] != (metrics.K,):
        raise StudyError(
            f"Re-weighting needs (5, 5) matrices and 5 counts each, not {cm.shape} and {target.shape}."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, _ = metrics.rates(cm)
        accuracy = np.where(target > 0, recall * target, 0).sum(-1) / target.sum(-1)
    return float(accuracy) if accuracy.ndim == 0 else accuracy


def decomposition(internal, external, draws=1000, seed=0):
    """How much of an accuracy lost in another cohort its mix of grades explains.

    The label shift is what the external mix of grades alone would change, each grade being recognised as
    often as inside; the rest is other pictures, other readers and chance. Groups of both cohorts are
    resampled independently.

    Parameters
    ----------
    internal, external : DataFrame
        p0..p4, kl_grade, group_id; pictures that the model was not trained on, and those of the other cohort.

    Returns
    -------
    DataFrame
        part, value, ci_low, ci_high (ratios, 95 % percentile intervals of the draws that define it). NaN
        where a cohort has no pictures, or the internal one lacks a grade of the external one; one group has
        no interval.
    """
    seeds = np.random.SeedSequence(seed).spawn(2)
    inner, outer = (stats.resampled(graded, draws, own)
                    for graded, own in zip((internal, external), seeds, strict=True))
    inside, outside = (metrics.from_confusion(matrices)["accuracy"] for matrices in (inner, outer))
    expected = reweight(inner, outer.sum(-1))
    parts = {
        "internal accuracy": inside,
        "expected at the external grade mix": expected,
        "external accuracy": outside,
        "label shift": expected - inside,
        "rest": outside - expected,
    }
    rows = [(part, values[0], *stats.interval(np.where(np.isnan(values[0]), np.nan, values[1:])))
            for part, values in parts.items()]
    return pd.DataFrame(rows, columns=["part", "value", "ci_low", "ci_high"])


def prior_correction(probabilities, priors, iterations=1000, tolerance=1e-6):
    """Probabilities adapted to a cohort's unknown mix of grades, which is estimated without any grade.

    Expectation maximisation of Saerens, Latinne and Decaestecker 2002. It presumes calibrated probabilities
    and that pictures of one grade look alike in both cohorts.

    Parameters
    ----------
    probabilities : array (n, 5)
        Of the pictures of the other cohort.
    priors : array (5,)
        Share of each grade among the pictures trained on; all above zero.
    iterations, tolerance
        It ends after so many steps, or when no share changes by more than the tolerance.

    Returns
    -------
    (adapted, estimated) : arrays (n, 5) and (5,)
        Probabilities under the estimated shares, and these; without pictures the shares are NaN.

    Raises
    ------
    StudyError
        When the priors are not five shares above zero that sum to 1, or a row is no probability distribution.
    """
    probabilities, priors = metrics.checked_probabilities(probabilities), np.asarray(priors, dtype=float)
    if priors.shape != (metrics.K,) or not (priors > 0).all() or abs(priors.sum() - 1) > PRIOR_TOLERANCE:
        raise StudyError(
            f"The priors must be {metrics.K} shares above zero that sum to 1, not {priors.tolist()}. "
            "Take them from the pictures trained on."
        )
    if not len(probabilities):
        return probabilities, np.full(metrics.K, np.nan)
    estimated = priors
    for _ in range(iterations):
        before, estimated = estimated, _posterior(probabilities, estimated / priors).mean(0)
        if np.abs(estimated - before).max() <= tolerance:
            break
    return _posterior(probabilities, estimated / priors), estimated


def _posterior(probabilities, ratio):
    weighted = probabilities * ratio
    return weighted / weighted.sum(1, keepdims=True)
