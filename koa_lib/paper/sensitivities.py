"""Table 3 of the paper grade by grade: what its sensitivities and intervals imply."""

import numpy as np
import pandas as pd

from koa_lib.grades import GRADES
from koa_lib.paper import arithmetic
from koa_lib.paper.printed import Paper, attained, slack

BOOTSTRAP_DRAWS = 1000  # "bootstrapping (N = 1000)", section 4.1 of the paper
SUMMED = "pictures that the interval widths imply, summed"


def per_grade(published, counts):
    """What the paper prints for each grade beside what follows from it.

    Returns
    -------
    DataFrame
        kl_grade, n, sensitivity, specificity, implied_precision, implied_f1, printed_low, printed_high (of
        the sensitivity), wilson_low, wilson_high (percent), width_ratio (printed over expected interval
        width), n_of_width (pictures that give the printed width), attainable ("yes" when the sensitivity can
        be k of n rounded, "only if cut" when it can with decimals cut); five rows.
    """
    paper, n = Paper(published), np.asarray(counts["external"], dtype=float)
    sensitivity, specificity = paper.grades("sensitivity"), paper.grades("specificity").value
    low, high = (paper.grades("sensitivity", side).value for side in ("ci_low", "ci_high"))
    precision, f1 = arithmetic.implied_precision(sensitivity.value, specificity, n)
    shares = list(zip(sensitivity.value, n.astype(int), strict=True))
    wilson = np.array([arithmetic.wilson(*share) for share in shares])
    return pd.DataFrame(
        {
            "kl_grade": GRADES,
            "n": n.astype(int),
            "sensitivity": sensitivity.value,
            "specificity": specificity,
            "implied_precision": precision,
            "implied_f1": f1,
            "printed_low": low,
            "printed_high": high,
            "wilson_low": wilson[:, 0],
            "wilson_high": wilson[:, 1],
            "width_ratio": arithmetic.ci_width_ratio(sensitivity.value, low, high, n),
            "n_of_width": arithmetic.pictures_of_width(sensitivity.value, low, high),
            "attainable": [_possible(*share, sensitivity.decimals) for share in shares],
        }
    )


def _possible(percent, n, decimals):
    if arithmetic.grim(percent, n, 1, decimals):
        return "yes"
    return "only if cut" if arithmetic.grim(percent, n, 1, decimals, truncated=True) else "no"


def attainable(paper, external):
    """Rows of the audit: each sensitivity beside the nearest that whole pictures of its grade can give."""
    printed, rows = paper.grades("sensitivity"), []
    for grade in GRADES:
        share, n = printed[grade], int(external[grade])
        *row, note = attained(f"sensitivity of grade {grade}", share, n)
        error = np.sqrt(share.value * (100 - share.value) / n / BOOTSTRAP_DRAWS)
        spread = f"the mean of {BOOTSTRAP_DRAWS} bootstrap draws has a standard error of {error:.2f} points"
        weak = f"; weak evidence: {spread}"
        rows.append((*row, note if arithmetic.grim(share.value, n, 1, share.decimals) else note + weak))
    return rows


def intervals(paper, external):
    """Rows of the audit: widths of the printed intervals, pictures they imply, where their centres lie."""
    sensitivity = paper.grades("sensitivity")
    low, high = (paper.grades("sensitivity", side) for side in ("ci_low", "ci_high"))
    point, half = sensitivity.value, arithmetic.ci_width(sensitivity.value, external) / 2
    # What rounding and the bootstrap explain is asked around the widths that the counts give.
    off = low.half + arithmetic.bootstrap_width_error(point, external, BOOTSTRAP_DRAWS) / 2
    honest = sensitivity.pair, (point - half, off), (point + half, off)

    def ratios(*interval):
        return arithmetic.ci_width_ratio(*interval, external)

    def pictures(*interval):
        return arithmetic.pictures_of_width(*interval).sum()

    note = (
        "over the width that n independent pictures give; "
        "the tolerance holds rounding and how far an interval of only "
        f"{BOOTSTRAP_DRAWS:,} bootstrap draws is off by chance; clusters or duplicates would give more than 1"
    )
    # 0 * x keeps an undefined width without an expectation, as NaN.
    widths = zip(GRADES, ratios(point, low.value, high.value), slack(ratios, *honest), strict=True)
    total = pictures(point, low.value, high.value)
    return [
        (
            SUMMED,
            "pictures",
            total,
            external.sum() + 0 * total,
            slack(pictures, *honest),
            "narrow intervals imply many pictures; another interval method would differ",
        ),
        *(
            (f"interval width ratio, grade {grade}", "ratio", ratio, 1.0 + 0 * ratio, explained, note)
            for grade, ratio, explained in widths
        ),
        _centres(sensitivity, low, high),
    ]


def _centres(sensitivity, low, high):
    offsets = np.round((low.value + high.value) / 2 - sensitivity.value, low.decimals + 1)
    side = -1 if (offsets < 0).sum() >= (offsets > 0).sum() else 1
    shown, explained = ", ".join(f"{offset:+g}" for offset in offsets), low.half + sensitivity.half
    note = (
        f"centre minus point {shown} points; rounding explains up to {explained:g} either way; "
        "cut decimals or the skew "
        "of a proportion give one direction"
    )
    return (
        "intervals off-centre in the same direction",
        "count",
        (np.sign(offsets) == side).sum(),
        np.nan,
        np.nan,
        note,
    )
