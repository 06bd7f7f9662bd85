"""Quality of pictures: how sharp, exposed and rich in contrast they are, whether failures are the poor ones, and pictures spoilt on purpose."""

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.paper.arithmetic import wilson
from koa_lib.paper.claims import Answer, not_run

MEASURES = {"sharpness": "sharpness", "exposure_error": "distance from the median exposure", "contrast": "contrast"}  # column: in words
POOR = 0.1  # share of the pictures, at the bad end of each measure, that count as of low quality
FEWEST_FAILURES = 5
# What a degraded picture has lost: standard deviation of a Gaussian blur as a share of the side, of added noise, and shares of the exposure.
STRENGTHS = {"blur": (0.01, 0.03, 0.09), "noise": (0.1, 0.3, 0.9), "under-exposure": (0.3, 0.6, 0.9), "over-exposure": (0.3, 0.6, 0.9)}


def share(name, right, ends):
    """A share of pictures with its Wilson interval as a dict with the given names; NaN without pictures.

    Parameters
    ----------
    right : bool array (n,)
    ends : (str, str)
        Names of the bounds.
    """
    if not len(right):
        return dict.fromkeys((name, *ends), np.nan)
    low, high = (round(end / 100, 12) for end in wilson(100 * np.mean(right), len(right)))  # exactly 0 where none is right
    return {name: float(np.mean(right)), ends[0]: low, ends[1]: high}


def measured(images):
    """How well pictures are taken, each measured on its gray values in [0, 1].

    Parameters
    ----------
    images : array (n, H, W)
        uint8, or float in [0, 1].

    Returns
    -------
    DataFrame
        sharpness (variance of the Laplacian; low is blurred), exposure (mean gray), contrast (standard deviation of the gray values).
    """
    from scipy.ndimage import laplace

    gray = _gray(images)
    # The edge row and column repeat a neighbour and say nothing.
    sharp = [laplace(picture)[1:-1, 1:-1].var() for picture in gray]
    return pd.DataFrame({"sharpness": np.array(sharp, dtype=float), "exposure": gray.mean((1, 2)).astype(float), "contrast": gray.std((1, 2)).astype(float)})


def _gray(images):
    values = np.asarray(images)
    return values / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)


def judged(pictures, wording):
    """Knees of one cohort with `failed`, `exposure_error` (distance from the median exposure) and `poor`.

    A picture is `poor` when it is among the worst tenth of these pictures in sharpness, contrast or exposure.
    """
    error = (pictures["exposure"] - pictures["exposure"].median()).abs()
    found = pictures.assign(failed=pictures[f"said_{wording}"] != "knee", exposure_error=error)
    low = [found[name] <= found[name].quantile(POOR) for name in ("sharpness", "contrast")]
    return found.assign(poor=low[0] | low[1] | (error >= error.quantile(1 - POOR)))


def failures(found, draws, seed):
    """Quality of failures against successes: means, their difference and the AUC of each measure, with group-bootstrap intervals.

    Parameters
    ----------
    found : DataFrame
        From `judged`.

    Returns
    -------
    DataFrame
        measure, failures, successes (means), mean_difference, worse_auc (chance that a failure is of worse quality), both with _low
        and _high; NaN where all or no pictures fail.
    """
    failed, rows = found["failed"].to_numpy(), []
    picks = _resampled(found["group_id"], draws, seed)
    for name, title in MEASURES.items():
        values = found[name].to_numpy(float)
        worse = values if name == "exposure_error" else -values
        drawn = np.array([_compared(values[pick], worse[pick], failed[pick]) for pick in picks])
        one = _compared(values, worse, failed)
        means = [float(values[chosen].mean()) if chosen.any() else np.nan for chosen in (failed, ~failed)]
        ends = [stats.interval(drawn[:, k]) for k in (0, 1)]
        rows.append((title, *means, one[0], *ends[0], one[1], *ends[1]))
    return pd.DataFrame(rows, columns="measure failures successes mean_difference mean_difference_low mean_difference_high worse_auc worse_auc_low worse_auc_high".split())


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

    *Replicated* when the Wilson interval of the share of failures that are of low quality lies above one half, *not replicated* when it lies below,
    else *inconclusive*; *not run* with fewer than five failures. Ours is that share.
    """
    failed = found["failed"]
    if failed.sum() < FEWEST_FAILURES:
        return not_run(f"{failed.sum()} of {len(found)} knees are not recognised, too few to say what they have in common")
    ours = share("share", found.loc[failed, "poor"].to_numpy(), ("low", "high"))
    verdict = "replicated" if ours["low"] > 0.5 else "not replicated" if ours["high"] < 0.5 else "inconclusive"
    reason = f"{found.loc[failed, 'poor'].sum()} of {failed.sum()} failures are of low quality (worst tenth in sharpness, contrast or exposure), {found.loc[~failed, 'poor'].mean():.0%} of the successes"
    return Answer(ours["share"], ours["low"], ours["high"], "ratio", verdict, reason)


def degrade(images, kind, strength, seed):
    """Pictures spoilt on purpose.

    Parameters
    ----------
    images : array (n, H, W)
        uint8, or float in [0, 1].
    kind : {'blur', 'noise', 'under-exposure', 'over-exposure'}
        Gaussian blur; Gaussian noise; all gray values darker by a share; all gray values brighter, those above white cut off.
    strength : float
        In the units of `STRENGTHS`.

    Returns
    -------
    float32 array (n, H, W) in [0, 1]
    """
    from scipy.ndimage import gaussian_filter

    gray = _gray(images)
    if kind == "blur":
        return gaussian_filter(gray, (0, *[strength * gray.shape[1]] * 2))
    if kind == "noise":
        return np.clip(gray + strength * np.random.default_rng(seed).standard_normal(gray.shape, dtype=np.float32), 0, 1)
    return gray * np.float32(1 - strength) if kind == "under-exposure" else np.clip(gray / np.float32(1 - strength), 0, 1)
