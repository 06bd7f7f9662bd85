"""Arithmetic audit of published numbers: what follows from them, and whether they can stand together.

No model and no picture is needed. A number that is "not attainable" may still have a plain cause (a mean over runs,
a bootstrap mean, another subset, a typing slip): the notes name it.
"""

from fractions import Fraction

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES


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
    truncated : bool
        Cut after the last decimal instead of rounded (halves either way).
    """
    # Fractions: 76.945 is not a binary number, and the question is decided at such edges.
    value, unit, total = Fraction(f"{percent:.{decimals}f}"), Fraction(1, 10**decimals), n * runs
    low = max(0, value if truncated else value - unit / 2)
    high = value + (unit if truncated else unit / 2)
    k = -(-low * total // 100)
    return bool(k <= total and (100 * k < high * total or not truncated and 100 * k == high * total))


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


def largest_share(sensitivity, specificity, grades=(0, 3, 4)):
    """Largest share (percent) of `grades` with which false positives can equal false negatives.

    Balance needs sum_k w_k (2 - sens_k - spec_k) = sum_k (1 - spec_k); the share is largest when `grades` and the
    rest both sit on their largest term. NaN when that does not bind.
    """
    sensitivity, specificity = _floats(sensitivity, specificity)
    terms, needed = (200 - sensitivity - specificity) / 100, ((100 - specificity) / 100).sum()
    inside = terms[list(grades)].max()
    outside = np.delete(terms, list(grades)).max()
    if not inside < needed <= outside:
        return float("nan")
    return float(100 * (outside - needed) / (outside - inside))


def implied_accuracy(sensitivity, counts):
    """Accuracy (percent) that per-grade sensitivities (percent) and counts imply."""
    sensitivity, counts = _floats(sensitivity, counts)
    return float((sensitivity * counts).sum() / counts.sum())


def implied_precision(sensitivity, specificity, counts):
    """Per-grade precision and F1 (percent) that sensitivities, specificities and counts imply.

    Returns
    -------
    (precision, f1) : float arrays (5,)
    """
    sensitivity, specificity, counts = _floats(sensitivity, specificity, counts)
    hits = sensitivity / 100 * counts
    predicted = hits + (100 - specificity) / 100 * (counts.sum() - counts)
    return 100 * hits / predicted, 200 * hits / (predicted + counts)


def ci_width_ratio(percent, ci_low, ci_high, n):
    """Width of a printed 95 % interval over the width that n independent pictures give (normal approximation)."""
    percent, ci_low, ci_high, n = _floats(percent, ci_low, ci_high, n)
    return (ci_high - ci_low) / (2 * 1.959964 * np.sqrt(percent * (100 - percent) / n))


def wilson(percent, n):
    """Wilson 95 % interval (percent) of a proportion of n pictures."""
    p, z = percent / 100, 1.959964
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(100 * (centre - half) / (1 + z**2 / n)), float(100 * (centre + half) / (1 + z**2 / n))


def infonce_floor(priors, batch):
    """Lowest expected symmetric InfoNCE loss (nats) with diagonal targets when each grade has one caption.

    A picture cannot be told from the m - 1 others of its grade in the batch, so its loss is at least ln m.

    Parameters
    ----------
    priors : array (5,)
        Grade shares or counts.
    batch : int
        Pictures per batch, at least 1.
    """
    from scipy.stats import binom

    (priors,) = _floats(priors)
    others = np.arange(batch)
    chances = [binom.pmf(others, batch - 1, share) for share in priors / priors.sum()]
    least = [(chance * np.log1p(others)).sum() for chance in chances]
    return float(np.average(least, weights=priors))


def manifest_counts(internal, external):
    """What the audit counts in the two manifests: pictures per grade and internal patients.

    The automatically cropped copies ("auto_test") show knees of the test split again and are left out.
    """
    internal = internal[internal["split"] != "auto_test"]
    return {
        "internal": np.bincount(internal["kl_grade"], minlength=len(GRADES)),
        "external": np.bincount(external["kl_grade"], minlength=len(GRADES)),
        "patients": internal["group_id"].nunique(),
    }


def findings(published, counts):
    """The audit of the paper's numbers, from the published table and the manifests' counts alone.

    Parameters
    ----------
    published : DataFrame
        `published/jpm2026.csv`.
    counts : dict
        "external" and "internal": pictures per grade (5,); "patients": internal patients; see `manifest_counts`.

    Returns
    -------
    DataFrame
        check, value (what follows), expected (what is printed or must equal it), note.
    """
    external, internal = np.asarray(counts["external"], dtype=float), np.asarray(counts["internal"], dtype=float)
    rows = [
        *_overall(published, external),
        *_balance(published, external),
        *_intervals(published, external),
        *_wording(published, internal, int(counts["patients"])),
    ]
    return pd.DataFrame(rows, columns=["check", "value", "expected", "note"])


def _overall(published, external):
    n = int(external.sum())
    accuracy, sensitivity = _value(published, "table_2", "test", "accuracy"), _grades(published, "sensitivity")
    macro, auc = _value(published, "table_2", "test", "macro_sensitivity"), _value(published, "text", "macro", "auc")
    nearest, implied = 100 * round(accuracy * n / 100) / n, implied_accuracy(sensitivity, external)
    off = f"{abs(accuracy - implied) * n / 100:.1f} pictures apart; rounding explains {0.05 * n / 100:.1f}"
    baselines = published[(published["item"] == "table_4") & (published["kind"] == "model")]["value"]
    attainable = sum(grim(value, n, decimals=1) for value in baselines)
    agreement = f"{abs(sensitivity.mean() - macro):.2f} points apart; rounding of the grades explains 0.05"
    low, high = wilson(accuracy, n)
    absent = "not printed; clustered pictures would widen it"
    return [
        (f"external accuracy nearest to k of {n}", nearest, accuracy, _grim_note(accuracy, n)),
        ("accuracy implied by the sensitivities", implied, accuracy, off),
        ("baseline accuracies attainable as k of n", attainable, len(baselines), "to one decimal"),
        ("95 % Wilson interval of the accuracy, low", low, np.nan, absent),
        ("95 % Wilson interval of the accuracy, high", high, np.nan, absent),
        ("macro sensitivity from the grades", sensitivity.mean(), macro, agreement),
        ("mean AUC of the grades", _grades(published, "auc").mean(), auc, "0.89 by rounding, 0.88 by truncation"),
    ]


def _balance(published, external):
    sensitivity, specificity = _grades(published, "sensitivity"), _grades(published, "specificity")
    balance, share = fp_fn_balance(sensitivity, specificity, external), largest_share(sensitivity, specificity)
    precision, f1 = implied_precision(sensitivity, specificity, external)
    names = ("accuracy", "macro_precision", "macro_f1")
    accuracy, printed_precision, printed_f1 = (_value(published, "table_2", "test", name) for name in names)
    n, misses = external.sum(), balance["false_negatives"]
    # Each of the five printed specificities may be off by 0.05 points of the N - n_k other pictures, 4 N in all.
    rounding = f"must be equal; rounding of the specificities explains at most {0.0005 * 4 * n:.1f}"
    subset = "for any grade mix, expected is the manifest's; a subset of nearly only grades 1 and 2 would agree"
    basis = "from sensitivities, specificities and counts"
    return [
        ("sum of false positives", balance["false_positives"], misses, rounding),
        ("errors implied by the accuracy", n * (1 - accuracy / 100), misses, "must equal the false negatives"),
        ("accuracy implied by the specificities", balance["accuracy_from_specificity"], accuracy, basis),
        ("largest share of grades 0, 3, 4 in balance", share, 100 * external[[0, 3, 4]].sum() / n, subset),
        ("macro precision implied", precision.mean(), printed_precision, basis),
        ("macro F1 implied", f1.mean(), printed_f1, basis),
    ]


def _intervals(published, external):
    low, high = (_grades(published, "sensitivity", side) for side in ("ci_low", "ci_high"))
    ratios = ci_width_ratio(_grades(published, "sensitivity"), low, high, external)
    note = "printed width over that of n independent pictures; clusters or duplicates would give more than 1"
    return [(f"interval width ratio, grade {grade}", ratios[grade], 1.0, note) for grade in GRADES]


def _wording(published, internal, patients):
    names = ("accuracy", "macro_precision", "macro_sensitivity")
    test = {name: _value(published, "table_2", "test", name) for name in names}
    drop = _value(published, "table_2", "train", "accuracy") - test["accuracy"]
    text = {
        name: _value(published, "text", row, name)
        for row, name in (
            ("results and conclusion", "macro_precision"),
            ("conclusion", "macro_sensitivity"),
            ("discussion", "train_test_drop"),
            ("data", "train_images"),
            ("data", "participants"),
        )
    }
    enrolment = "counted in the manifest; the printed number may be the enrolment of the whole cohort study"
    floor = f"chance is {np.log(64):.2f}; five captions repeat in a batch, so a curve below it shows another loss"
    slip = "two values for one quantity; may be a typing slip"
    return [
        ("macro precision in the text", text["macro_precision"], test["macro_precision"], slip),
        ("macro sensitivity in the conclusion", text["macro_sensitivity"], test["macro_sensitivity"], slip),
        ("train minus external accuracy", drop, text["train_test_drop"], "printed as 'about 20 %'"),
        ("internal pictures", internal.sum(), text["train_images"], "counted in the manifest"),
        ("internal patients", patients, text["participants"], enrolment),
        ("lowest diagonal InfoNCE loss at batch 64, nats", infonce_floor(internal, 64), np.nan, floor),
    ]


def _grim_note(percent, n):
    if grim(percent, n) or grim(percent, n, truncated=True):
        return "attainable from one run"
    means = [runs for runs in range(2, 11) if grim(percent, n, runs)]
    means = f"a mean of {', '.join(map(str, means))} runs can" if means else "no mean of up to 10 runs can"
    return f"not attainable from one run, by rounding or truncation; {means}, as can a bootstrap mean or another subset"


def _value(published, item, row, metric, column="value"):
    found = published[(published[["item", "row", "metric"]] == [item, row, metric]).all(axis=1)]
    if len(found) != 1:
        raise StudyError(f"jpm2026.csv holds {len(found)} rows for {item}, {row}, {metric}; one is needed. Restore it.")
    return float(found[column].iloc[0])


def _grades(published, metric, column="value"):
    return np.array([_value(published, "table_3", str(grade), metric, column) for grade in GRADES])


def _floats(*arrays):
    return tuple(np.asarray(array, dtype=float) for array in arrays)
