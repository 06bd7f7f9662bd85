"""Quality of pictures: how sharp, exposed and rich in contrast they are, and whether the pictures on which a
model fails are the poor ones.
"""

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.paper.arithmetic import wilson
from koa_lib.paper.claims import Answer, not_run

MEASURES = {
    "sharpness": "sharpness",
    "exposure_error": "distance from the median exposure",
    "contrast": "contrast",
}
POOR = 0.1  # share of the pictures, at the bad end of each measure, that count as of low quality
FEWEST_FAILURES = 5


def share(right):
    """A share of pictures with its Wilson interval: (share, low, high), NaN without pictures.

    Parameters
    ----------
    right : bool array (n,)
    """
    if not len(right):
        return (np.nan,) * 3
    return float(np.mean(right)), *(
        round(end / 100, 12) for end in wilson(100 * np.mean(right), len(right))
    )  # exactly 0 where none is right


def measured(images):
    """How well pictures are taken, each measured on its gray values in [0, 1].

    Parameters
    ----------
    images : array (n, H, W)
        uint8, or float in [0, 1].

    Returns
    -------
    DataFrame
        sharpness (variance of the Laplacian; low is blurred), exposure (mean gray), contrast (standard
        deviation of the gray values).
    """
    from scipy.ndimage import laplace

    values = np.asarray(images)
    gray = values / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)
    # The edge row and column repeat a neighbour and say nothing.
    sharp = [laplace(picture)[1:-1, 1:-1].var() for picture in gray]
    return pd.DataFrame(
        {
            "sharpness": np.array(sharp, float),
            "exposure": gray.mean((1, 2)).astype(float),
            "contrast": gray.std((1, 2)).astype(float),
        }
    )


def judged(pictures, wording):
    """Knees of one cohort with `failed`, `exposure_error` (distance from the median exposure) and `poor`.

    A picture is `poor` when it is among the worst tenth of these pictures in sharpness, contrast or exposure.
    """
    error = (pictures["exposure"] - pictures["exposure"].median()).abs()
    found = pictures.assign(failed=pictures[f"said_{wording}"] != "knee", exposure_error=error)
    low = [found[name] <= found[name].quantile(POOR) for name in ("sharpness", "contrast")]
    return found.assign(poor=low[0] | low[1] | (error >= error.quantile(1 - POOR)))


def failures(found, draws, seed):
    """Quality of failures against successes: means, their difference and the AUC of each measure, with
    group-bootstrap intervals.

    Parameters
    ----------
    found : DataFrame
        From `judged`.

    Returns
    -------
    DataFrame
        measure, failures, successes (means), mean_difference, worse_auc (chance that a failure is of worse
        quality), both with _low and _high; NaN where all or no pictures fail.
    """
    failed, rows = found["failed"].to_numpy(), []
    picks = _resampled(found["group_id"], draws, seed)
    for name, title in MEASURES.items():
        values = found[name].to_numpy(float)
        worse = values if name == "exposure_error" else -values
        drawn = np.array([_compared(values[pick], worse[pick], failed[pick]) for pick in picks])
        difference, auc = _compared(values, worse, failed)
        means = [float(values[chosen].mean()) if chosen.any() else np.nan for chosen in (failed, ~failed)]
        rows.append(
            (title, *means, difference, *stats.interval(drawn[:, 0]), auc, *stats.interval(drawn[:, 1]))
        )
    names = [name + end for name in ("mean_difference", "worse_auc") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["measure", "failures", "successes", *names])


def _resampled(groups, draws, seed):
    # Positions of the pictures of groups that are drawn with replacement, for each draw.
    codes, number = stats.group_codes(groups, len(groups))
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=number))[:-1])
    rng = np.random.default_rng(seed)
    return [np.concatenate([members[k] for k in rng.integers(number, size=number)]) for _ in range(draws)]


def _compared(values, worse, failed):
    from scipy.stats import rankdata

    count = failed.sum()
    if not 0 < count < len(failed):
        return np.nan, np.nan
    wins = rankdata(worse)[failed].sum() - count * (count + 1) / 2
    return values[failed].mean() - values[~failed].mean(), wins / (count * (len(failed) - count))


def claim(found):
    """Whether zero-shot failures are mostly of low image quality, from `judged`.

    *Replicated* when the Wilson interval of the share of failures that are of low quality lies above one
    half, *not replicated* when it lies below, else *inconclusive*; *not run* with fewer than five failures.
    Ours is that share."""
    failed, poor = found["failed"], found["poor"]
    if failed.sum() < FEWEST_FAILURES:
        return not_run(
            f"{failed.sum()} of {len(found)} knees are not recognised, too few to say what they share"
        )
    value, low, high = share(poor[failed].to_numpy())
    verdict = "replicated" if low > 0.5 else "not replicated" if high < 0.5 else "inconclusive"
    reason = (
        f"{poor[failed].sum()} of {failed.sum()} failures are of low quality (worst tenth in sharpness, "
        f"contrast or exposure), {poor[~failed].mean():.0%} of the successes"
    )
    return Answer(value, low, high, "ratio", verdict, reason)
