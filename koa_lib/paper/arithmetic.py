"""Arithmetic of published numbers: what follows from them, as pure functions of percentages and counts.

Percentages are 0-100. `consistency` applies these functions to the paper's tables.
"""

from fractions import Fraction

import numpy as np

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

Z = 1.959964  # the normal quantile of a two-sided 95 % interval


def grim(percent, n, runs=1, decimals=2, truncated=False):
    """Whether a printed percentage can be k / (n x runs) for a whole k (Brown and Heathers 2017).

    Parameters
    ----------
    percent : float
        As printed, 0-100.
    n : int
        Pictures per run.
    runs : int
        Runs of equal size whose mean is printed.
    decimals : int
        Printed decimals.
    truncated : bool
        Cut after the last decimal instead of rounded (halves either way).

    Raises
    ------
    StudyError
        Without pictures or runs.
    """
    if n < 1 or runs < 1:
        raise StudyError(
            f"A percentage of {n} pictures in {runs} runs is not defined. Give at least one of each."
        )
    # Fractions: 76.945 is not a binary number, and the question is decided at such edges.
    value, unit, total = Fraction(f"{percent:.{decimals}f}"), Fraction(1, 10**decimals), n * runs
    low = max(0, value if truncated else value - unit / 2)
    high = value + (unit if truncated else unit / 2)
    k = -(-low * total // 100)
    return bool(k <= total and (100 * k < high * total or not truncated and 100 * k == high * total))


def nearest(percent, n):
    """The percentage k / n, k whole, that lies nearest to a printed one."""
    return 100 * round(percent * n / 100) / n


def fp_fn_balance(sensitivity, specificity, counts):
    """False positives and false negatives, summed over grades: equal in any single-label confusion matrix.

    Parameters
    ----------
    sensitivity, specificity : arrays (5,)
        Percent.
    counts : array (5,)
        Pictures per grade.

    Returns
    -------
    dict
        false_positives, false_negatives (pictures), accuracy_from_specificity (percent).
    """
    sensitivity, specificity, counts = _floats(sensitivity, specificity, counts)
    total = counts.sum()
    false_positives = ((100 - specificity) / 100 * (total - counts)).sum()
    false_negatives = ((100 - sensitivity) / 100 * counts).sum()
    return {
        "false_positives": float(false_positives),
        "false_negatives": float(false_negatives),
        "accuracy_from_specificity": float(100 * (1 - false_positives / total)),
    }


def largest_share(sensitivity, specificity, grades=(0, 3, 4), slack=0.0):
    """Largest share (percent) of `grades`, over all grade mixes w, with as many false positives as negatives.

    Balance needs sum_k w_k (2 - sens_k - spec_k) = sum_k (1 - spec_k), a linear programme in w. NaN when no
    mix balances.

    Parameters
    ----------
    slack : float
        By how much (ratio) the two sides may differ.
    """
    from scipy.optimize import linprog

    sensitivity, specificity = _floats(sensitivity, specificity)
    terms, needed = (200 - sensitivity - specificity) / 100, ((100 - specificity) / 100).sum()
    gain, limits = np.isin(GRADES, grades).astype(float), [needed + slack, slack - needed]
    solution = linprog(-gain, A_ub=[terms, -terms], b_ub=limits, A_eq=[np.ones(len(GRADES))], b_eq=[1])
    return float(-100 * solution.fun) if solution.success else float("nan")


def implied_accuracy(sensitivity, counts):
    """Accuracy (percent) that per-grade sensitivities (percent) and counts imply."""
    sensitivity, counts = _floats(sensitivity, counts)
    return float((sensitivity * counts).sum() / counts.sum())


def implied_precision(sensitivity, specificity, counts):
    """Per-grade precision and F1 (percent) that sensitivities, specificities and counts imply.

    Returns
    -------
    (precision, f1) : float arrays (5,)
        NaN for a grade that is never predicted (precision), or neither predicted nor present (F1).
    """
    sensitivity, specificity, counts = _floats(sensitivity, specificity, counts)
    hits = sensitivity / 100 * counts
    predicted = hits + (100 - specificity) / 100 * (counts.sum() - counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 100 * hits / predicted, 200 * hits / (predicted + counts)


def ci_width(percent, n):
    """Width (points) of the 95 % interval of a proportion of n independent pictures (normal)."""
    percent, n = _floats(percent, n)
    return 2 * Z * np.sqrt(percent * (100 - percent) / n)


def ci_width_ratio(percent, ci_low, ci_high, n):
    """Width of a printed 95 % interval over that of n independent pictures; NaN at 0 and 100 %."""
    width, ci_low, ci_high = _floats(ci_width(percent, n), ci_low, ci_high)
    return (ci_high - ci_low) / np.where(width > 0, width, np.nan)


def pictures_of_width(percent, ci_low, ci_high):
    """Independent pictures whose 95 % interval (normal) has the printed width; NaN for no width."""
    percent, ci_low, ci_high = _floats(percent, ci_low, ci_high)
    width = np.where(ci_high > ci_low, ci_high - ci_low, np.nan)
    return (ci_width(percent, 1) / width) ** 2


def bootstrap_width_error(percent, n, draws):
    """How far (points) the width of a percentile bootstrap interval may be off by chance.

    Three standard errors of the difference of the 2.5 % and 97.5 % sample quantiles of `draws` normal values
    (David and Nagaraja, Order Statistics, 2003), and one step 1 / n of the proportion.
    """
    from scipy.stats import norm

    tail = 0.025
    error = np.sqrt(2 * tail * (1 - 2 * tail) / draws) / norm.pdf(Z)
    return 3 * error * ci_width(percent, n) / (2 * Z) + 100 / np.asarray(n, dtype=float)


def wilson(percent, n):
    """Wilson 95 % interval (percent) of a proportion of n pictures; of none it is unknown, (nan, nan)."""
    if not n:
        return float("nan"), float("nan")
    p, z = percent / 100, Z
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(100 * (centre - half) / (1 + z**2 / n)), float(100 * (centre + half) / (1 + z**2 / n))


def _floats(*arrays):
    return tuple(np.asarray(array, dtype=float) for array in arrays)
