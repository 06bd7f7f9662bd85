"""Metrics of five-grade predictions: pure functions of grades and probabilities.

Everything that depends on grade pairs alone is computed from confusion matrices (rows true, columns
predicted), vectorised over leading axes, so that thousands of bootstrap draws cost one call.
"""

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

K = len(GRADES)
SUM_TOLERANCE = 1e-3


def confusion(grades, predicted):
    """Count true (rows) against predicted (columns) grades.

    Parameters
    ----------
    grades, predicted : int arrays (n,), 0-4

    Returns
    -------
    int array (5, 5)

    Raises
    ------
    StudyError
        When the lengths differ or a value is no grade.
    """
    grades, predicted = checked_grades(grades), checked_grades(predicted, "predicted grades")
    if len(grades) != len(predicted):
        raise StudyError(f"{len(grades)} grades stand against {len(predicted)} predictions. "
                         "Join them by image_id.")
    return np.bincount(K * grades + predicted, minlength=K * K).reshape(K, K)


def from_confusion(cm):
    """All metrics that a confusion matrix determines.

    Macro means run over the grades that occur in the truth; a grade that is never predicted has precision and
    F1 of 0. Kappas follow Cohen 1968. What is undefined (no picture, no disagreement expected) is NaN.

    Parameters
    ----------
    cm : array (..., 5, 5)
        Rows true, columns predicted.

    Returns
    -------
    dict of float arrays (...)
        accuracy, balanced_accuracy, macro_precision, macro_sensitivity, macro_f1, kappa (unweighted), qwk,
        linear_kappa, mae (grades), within_one; ratios but for mae.
    """
    cm = np.asarray(cm, dtype=float)
    if cm.shape[-2:] != (K, K):
        raise StudyError(f"A confusion matrix has the shape (..., {K}, {K}), not {cm.shape}.")
    total, truth, guess = cm.sum((-2, -1)), cm.sum(-1), cm.sum(-2)
    hits = np.diagonal(cm, axis1=-2, axis2=-1)
    distance = np.abs(np.subtract.outer(np.arange(K), np.arange(K)))
    sensitivity = _mean_of_present(_ratio(hits, truth), truth)
    return {
        "accuracy": _ratio(hits.sum(-1), total),
        "balanced_accuracy": sensitivity,
        "macro_precision": _mean_of_present(np.nan_to_num(_ratio(hits, guess)), truth),
        "macro_sensitivity": sensitivity,
        "macro_f1": _mean_of_present(_ratio(2 * hits, truth + guess), truth),
        "kappa": _kappa(cm, distance > 0),
        "qwk": _kappa(cm, distance**2),
        "linear_kappa": _kappa(cm, distance),
        "mae": _ratio((cm * distance).sum((-2, -1)), total),
        "within_one": _ratio((cm * (distance <= 1)).sum((-2, -1)), total),
    }


def best_constant(grades):
    """The best that one grade given to every picture reaches, for accuracy and for within-one.

    Returns
    -------
    dict
        accuracy, accuracy_grade, within_one, within_one_grade (lowest grade on ties; NaN and None without
        pictures).
    """
    counts = np.bincount(checked_grades(grades), minlength=K)
    near = np.convolve(counts, [1, 1, 1], mode="same")
    result = {}
    for name, hits in (("accuracy", counts), ("within_one", near)):
        result[name] = float(_ratio(hits.max(), counts.sum()))
        result[f"{name}_grade"] = int(hits.argmax()) if counts.sum() else None
    return result


def rates(cm):
    """Sensitivity and specificity of each grade, arrays (..., 5), from confusion matrices (..., 5, 5);
    NaN where undefined."""
    cm = np.asarray(cm, dtype=float)
    truth, guess, hits = cm.sum(-1), cm.sum(-2), np.diagonal(cm, axis1=-2, axis2=-1)
    rest = cm.sum((-2, -1))[..., None] - truth
    return _ratio(hits, truth), _ratio(rest - (guess - hits), rest)


def per_grade(grades, probabilities):
    """Sensitivity, specificity and one-vs-rest AUC of each grade (ratios; NaN where undefined).

    Returns
    -------
    DataFrame
        grade, n, sensitivity, specificity, auc; five rows.
    """
    grades, probabilities = checked(grades, probabilities)
    cm = confusion(grades, probabilities.argmax(1))
    sensitivity, specificity = rates(cm)
    return pd.DataFrame(
        {
            "grade": list(GRADES),
            "n": cm.sum(1),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "auc": _one_vs_rest(grades, probabilities),
        }
    )


def macro_auc(grades, probabilities):
    """Mean one-vs-rest AUC over the grades for which it is defined; NaN when there is none."""
    return mean_defined(_one_vs_rest(*checked(grades, probabilities)))


def ece(grades, probabilities, bins=15):
    """Expected calibration error of the top label with equal-width bins, right edge included (Guo 2017)."""
    grades, probabilities = checked(grades, probabilities)
    place, excess = calibration_bins(grades, probabilities, bins)
    return float(_ratio(np.abs(np.bincount(place, excess, minlength=bins)).sum(), len(grades)))


def calibration_bins(grades, probabilities, bins):
    """Each picture's confidence bin and its confidence minus its correctness (0 or 1)."""
    confidence = probabilities.max(1)
    # The tolerance keeps a confidence of exactly k/bins in the lower bin although k/bins is rounded.
    place = np.clip(np.ceil(confidence * bins - 1e-9).astype(int) - 1, 0, bins - 1)
    return place, confidence - (probabilities.argmax(1) == grades)


def summary(grades, probabilities):
    """Every metric of this module in one flat dict, beginning with n; NaN where undefined."""
    grades, probabilities = checked(grades, probabilities)
    values = from_confusion(confusion(grades, probabilities.argmax(1)))
    constant = best_constant(grades)
    return {
        "n": len(grades),
        **{name: float(value) for name, value in values.items()},
        "macro_auc": macro_auc(grades, probabilities),
        "ece": ece(grades, probabilities),
        "best_constant_accuracy": constant["accuracy"],
        "best_constant_within_one": constant["within_one"],
    }


def checked_grades(values, what="grades"):
    """The grades as an int array (n,); StudyError when one is missing or outside 0-4."""
    values = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(float, na_value=np.nan)
    if not np.isin(values, GRADES).all():
        raise StudyError(f"The {what} must be one row of whole numbers 0-4. "
                         "Drop the pictures without a grade.")
    return values.astype(int)


def checked(grades, probabilities):
    """Grades (n,) and probabilities (n, 5) as arrays; StudyError when they do not fit together."""
    grades, probabilities = checked_grades(grades), checked_probabilities(probabilities)
    if len(probabilities) != len(grades):
        raise StudyError(f"{len(grades)} grades need probabilities (n, {K}), not {probabilities.shape}. "
                         "Join them.")
    return grades, probabilities


def checked_probabilities(values):
    """Probabilities as a float array (n, 5); StudyError naming the first row that is none.

    Each row lies within [0, 1] and sums to one within 0.001, which files rounded to a few decimals keep.
    """
    values = np.asarray(values, dtype=float)
    if values.shape[:1] == (0,):
        return np.zeros((0, K))
    if values.ndim != 2 or values.shape[1] != K:
        raise StudyError(f"Probabilities have the shape (n, {K}), not {values.shape}. "
                         "Give one column per grade.")
    outside = ~((values >= 0) & (values <= 1)).all(1)
    sums = np.where(outside[:, None], 0, values).sum(1)
    wrong = outside | (np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        what = ("a probability that is missing or outside [0, 1]" if outside[row]
                else "probabilities that do not sum to one")
        numbers = ", ".join(f"{value:.4g}" for value in values[row])
        raise StudyError(f"Row {row + 1} of {len(values)} has {what} ({numbers}): predict the cohort again.")
    return values


def mean_defined(values):
    """Mean over the last axis ignoring NaN; NaN when nothing is defined."""
    defined = ~np.isnan(values)
    mean = _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))
    return float(mean) if mean.ndim == 0 else mean


def _ratio(above, below):
    above, below = np.broadcast_arrays(np.asarray(above, dtype=float), np.asarray(below, dtype=float))
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)


def _mean_of_present(values, truth):
    return _ratio(np.where(truth > 0, values, 0).sum(-1), (truth > 0).sum(-1))


def _kappa(cm, cost):
    expected = cm.sum(-1)[..., :, None] * cm.sum(-2)[..., None, :]
    chance = _ratio((expected * cost).sum((-2, -1)), cm.sum((-2, -1)))
    return 1 - _ratio((cm * cost).sum((-2, -1)), chance)


def _one_vs_rest(grades, probabilities):
    # Mann-Whitney: mid-ranks count ties as half.
    from scipy.stats import rankdata

    counts = np.bincount(grades, minlength=K)
    if len(grades) == 0:
        return np.full(K, np.nan)
    ranks = rankdata(probabilities, axis=0)
    sums = np.array([ranks[grades == grade, grade].sum() for grade in GRADES])
    return _ratio(sums - counts * (counts + 1) / 2, counts * (len(grades) - counts))
