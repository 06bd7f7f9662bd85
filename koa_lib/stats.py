"""Uncertainty and comparison: resampling of groups, predictions side by side, paired tests.

Groups (patients, duplicate groups) are resampled whole, because two knees of one patient are not independent.
"""

from itertools import chain

import numpy as np
import pandas as pd

from koa_lib import metrics
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES

CHUNK = 200
FEWEST_RUNS = 5
FLIPS = "flip_disagreement"


def group_bootstrap(grades, predicted, groups, draws=1000, seed=0):
    """Confusion matrices of bootstrap samples that draw whole groups with replacement.

    With fewer than two groups nothing can be resampled: the matrices are zero and their metrics NaN.

    Parameters
    ----------
    grades, predicted : int arrays (n,), 0-4
    groups : array (n,)
        Patient or duplicate group of each picture.

    Returns
    -------
    int array (draws, 5, 5)

    Raises
    ------
    StudyError
        When lengths differ, a group is missing or `draws` is below 1.
    """
    grades, predicted = metrics.checked_grades(grades), metrics.checked_grades(predicted, "predicted grades")
    if len(grades) != len(predicted):
        counts = f"{len(grades)} grades stand against {len(predicted)} predictions"
        raise StudyError(f"{counts}. Join them by image_id.")
    codes, number = group_codes(groups, len(grades))
    cells = _sums_by_group(codes, number, metrics.K * grades + predicted, metrics.K**2)
    matrices = np.concatenate([weights @ cells for weights in _weights(number, draws, seed)])
    return np.rint(matrices).astype(int).reshape(draws, metrics.K, metrics.K)


def interval(values, level=0.95):
    """Percentile interval (low, high) of draws, NaN ignored; (nan, nan) when no draw is defined."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values, groups, draws=1000, seed=0, level=0.95):
    """Mean of the defined values with its group-bootstrap percentile interval.

    Parameters
    ----------
    values : float array (n,)
        NaN is left out.
    groups : array (n,)
        Patient or duplicate group of each value.

    Returns
    -------
    (mean, low, high) : floats
        NaN without a value; the interval is NaN with fewer than two groups.

    Raises
    ------
    StudyError
        When lengths differ, a group is missing or `draws` is below 1.
    """
    values = np.asarray(values, dtype=float)
    codes, _ = group_codes(groups, len(values))
    known = ~np.isnan(values)
    codes, number = group_codes(codes[known], known.sum())
    totals = np.stack([np.bincount(codes, weights, number) for weights in (values[known], None)], axis=1)
    sums, counts = np.concatenate([weights @ totals for weights in _weights(number, draws, seed)]).T
    means = sums / np.where(counts > 0, counts, np.nan)
    return values[known].mean() if known.any() else float("nan"), *interval(means, level)


def samples(graded, names, draws=1000, seed=0):
    """Metrics of graded pictures, then of each bootstrap draw of whole groups; a seed gives the same draws.

    Parameters
    ----------
    graded : DataFrame
        p0..p4, kl_grade, group_id; one row per picture. 'flip_disagreement' also needs p0_b..p4_b, the mirror
        image's (see `paired`).
    names : sequence of str
        Of `metrics.from_confusion`, 'macro_auc', 'ece' or 'flip_disagreement'.

    Returns
    -------
    dict of str to float array (1 + draws,)
        In the order of the names; with fewer than two groups all draws are NaN.

    Raises
    ------
    StudyError
        An unknown metric, or what `group_bootstrap` refuses.
    """
    grades, probabilities = metrics.checked(graded["kl_grade"], graded[PROBABILITIES])
    found = metrics.from_confusion(resampled(graded, draws, seed))
    if set(names) & {"macro_auc", "ece"}:
        auc, ece = _probability_draws(grades, probabilities, graded["group_id"], draws, seed)
        found |= {"macro_auc": metrics.mean_defined(auc), "ece": ece}
    if FLIPS in names:  # the mirror image's grade against the picture's
        same = _matrices(*predicted(graded), graded["group_id"], draws, seed)
        found[FLIPS] = 1 - metrics.from_confusion(same)["accuracy"]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise StudyError(f"The metric '{unknown[0]}' is unknown. Use one of: {', '.join(found)}.")
    return {name: found[name] for name in names}


def _matrices(grades, predicted, groups, draws, seed):
    # As they are, then of each draw.
    drawn = group_bootstrap(grades, predicted, groups, draws, seed)
    return np.concatenate([metrics.confusion(grades, predicted)[None], drawn])


def measured(graded, names, draws=1000, seed=0, level=0.95):
    """n, then each metric of `samples` with its percentile interval: `<name>`, `<name>_low`,
    `<name>_high`."""
    found = {"n": len(graded)}
    for name, values in samples(graded, names, draws, seed).items():
        found |= with_interval(name, values, level)
    return found


def with_interval(name, values, level=0.95):
    """`<name>`, `<name>_low` and `<name>_high` from a value and its draws, float array (1 + draws,)."""
    low, high = interval(values[1:], level)
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def gaps(a, b, names, draws=1000, seed=0, level=0.95):
    """Metrics of A minus those of B, with paired group-bootstrap intervals; as `measured`.

    Parameters
    ----------
    a, b : DataFrame
        As for `samples`, of the same pictures in any order.

    Raises
    ------
    StudyError
        As `aligned`.
    """
    first, second = samples(a, names, draws, seed), samples(aligned(b, a), names, draws, seed)
    found = {"n": len(a)}
    for name in names:
        found |= with_interval(name, first[name] - second[name], level)
    return found


def aligned(b, a):
    """The graded frame `b` in the order, and with the groups, of `a`; StudyError as `paired`."""
    paired(a, b)
    return b.set_index("image_id").loc[a["image_id"]].reset_index().assign(group_id=a["group_id"].to_numpy())


def resampled(graded, draws=1000, seed=0):
    """Confusion matrices (1 + draws, 5, 5) of graded pictures, see `samples`: as they are,
    then of each draw."""
    grades, probabilities = metrics.checked(graded["kl_grade"], graded[PROBABILITIES])
    return _matrices(grades, probabilities.argmax(1), graded["group_id"], draws, seed)


def resampled_auc(graded, draws=1000, seed=0):
    """One-vs-rest AUC of each grade (1 + draws, 5), see `resampled`; NaN where undefined."""
    return _probability_draws(*metrics.checked(graded["kl_grade"], graded[PROBABILITIES]),
                              graded["group_id"], draws, seed)[0]


def paired(a, b):
    """Two models' graded frames of the same pictures as one frame.

    Parameters
    ----------
    a, b : DataFrame
        image_id, p0..p4, kl_grade and whatever else; in any order.

    Returns
    -------
    DataFrame
        `a`, rows and columns in its order, with the probabilities of `b` as p0_b..p4_b.

    Raises
    ------
    StudyError
        When an id repeats, the pictures differ or their reference grades do.
    """
    for which, frame in (("first", a), ("second", b)):
        _refuse_repeats(frame["image_id"], f"in the {which} model's predictions; keep one row per picture")
    only_a, only_b = (one.loc[~one["image_id"].isin(two["image_id"]), "image_id"]
                      for one, two in ((a, b), (b, a)))
    if len(only_a) or len(only_b):
        example = [*only_a, *only_b][0]
        counts = f"{len(only_a)} only the first, {len(only_b)} only the second"
        raise StudyError(f"The two models graded different pictures ({counts}, such as '{example}'): "
                         "predict the same pictures with both.")
    other = b.set_index("image_id").loc[a["image_id"]]
    grades, others = (metrics.checked_grades(frame["kl_grade"].to_numpy()) for frame in (a, other))
    differ = np.flatnonzero(grades != others)
    if len(differ):
        example = f"'{a['image_id'].iloc[differ[0]]}', {grades[differ[0]]} against {others[differ[0]]}"
        raise StudyError(f"The reference grades differ for {len(differ)} of the pictures "
                         f"(such as {example}): join both to one manifest.")
    return a.assign(**{f"{name}_b": other[name].to_numpy() for name in PROBABILITIES})


def paired_probabilities(both):
    """Probabilities of A and of B, each (n, 5), from a frame made by `paired`."""
    other = [f"{name}_b" for name in PROBABILITIES]
    return both[PROBABILITIES].to_numpy(), both[other].to_numpy()


def predicted(both):
    """Predicted grades of A and of B, each (n,), from a frame made by `paired`."""
    return tuple(probabilities.argmax(1) for probabilities in paired_probabilities(both))


def against_constant(graded, draws=1000, seed=0):
    """Each metric of a confusion matrix beside the best that one grade for every picture reaches, paired.

    Parameters
    ----------
    graded : DataFrame
        p0..p4, kl_grade, group_id; one row per picture.

    Returns
    -------
    DataFrame
        By metric: value, constant, low, high (95 % group-bootstrap interval of their difference, the constant
        grade kept), against ('better', 'worse' or 'not clear', see `direction`).
    """
    matrices = resampled(graded, draws, seed)
    # Whoever gives one grade has all pictures of a draw in one column.
    fixed = [metrics.from_confusion(matrices.sum(-1)[..., None] * column) for column in np.eye(metrics.K)]
    rows = {}
    for name, own in metrics.from_confusion(matrices).items():
        sign = -1 if name == "mae" else 1
        answers = np.stack([values[name] for values in fixed])
        constant = answers[np.nan_to_num(sign * answers[:, 0], nan=-np.inf).argmax()]
        low, high = interval(own[1:] - constant[1:])
        against = direction(*sorted((sign * low, sign * high)))
        rows[name] = (float(own[0]), float(constant[0]), low, high, against)
    columns = ["value", "constant", "low", "high", "against"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("metric")


def direction(low, high):
    """What the interval of a difference says: 'better' above 0, 'worse' below it, else 'not clear'."""
    return "better" if low > 0 else "worse" if high < 0 else "not clear"


def mcnemar(correct_a, correct_b):
    """McNemar's test on paired right/wrong outcomes: two-sided exact and mid-p (Fagerland 2013).

    Pairs count as independent: the two knees of a patient are not, but the paper tests them so. `gaps`
    resamples patients.

    Returns
    -------
    dict
        b (only A right), c (only B right), p_exact, p_mid; p is 1 without discordant pairs, NaN without
        pairs.
    """
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar as test

    correct_a, correct_b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1:
        shapes = f"{correct_a.shape}, {correct_b.shape}"
        raise StudyError(f"Paired outcomes differ in length: {shapes}. Join by image_id.")
    b, c = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    if b + c == 0:
        p = 1.0 if len(correct_a) else float("nan")
        return {"b": b, "c": c, "p_exact": p, "p_mid": p}
    exact, point = test([[0, b], [c, 0]], exact=True).pvalue, binom.pmf(b, b + c, 0.5)
    return {"b": b, "c": c, "p_exact": float(exact), "p_mid": float(exact - (point / 2 if b == c else point))}


def holm(p_values):
    """Holm's adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    from statsmodels.stats.multitest import multipletests

    p_values = np.asarray(p_values, dtype=float)
    adjusted, known = np.full(p_values.shape, np.nan), ~np.isnan(p_values)
    if known.any():
        adjusted[known] = multipletests(p_values[known], method="holm")[1]
    return adjusted


def run_interval(values, level=0.95):
    """Mean over runs (folds x seeds) with Student's t interval; the interval is NaN below five runs.

    Returns
    -------
    (mean, low, high) : floats
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if values.size < FEWEST_RUNS:
        return mean, float("nan"), float("nan")
    half = float(t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return mean, mean - half, mean + half


def group_codes(groups, length):
    """Groups numbered from 0, int array (length,), and how many there are; StudyError when one is missing."""
    codes, names = pd.factorize(np.asarray(groups))
    if len(codes) != length:
        raise StudyError(f"{length} pictures need {length} groups, not {len(codes)}.")
    if (codes < 0).any():
        raise StudyError("A picture has no group. Give each its patient or duplicate group in the manifest.")
    return codes, len(names)


def _refuse_repeats(image_ids, where):
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise StudyError(f"Picture '{repeated.iloc[0]}' is there more than once {where}.")


def _weights(number, draws, seed):
    # How often each group is drawn, in chunks (c, groups) that keep memory small.
    if draws < 1:
        raise StudyError(f"The bootstrap needs at least one draw, not {draws}.")
    generator = np.random.default_rng(seed)
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        if number < 2:
            yield np.zeros((size, number))
            continue
        picks = generator.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * number).reshape(size, number).astype(float)


def _sums_by_group(codes, number, column, columns, values=None):
    cells = np.bincount(codes * columns + column, values, minlength=number * columns)
    return cells.reshape(number, columns).astype(float)


def _probability_draws(grades, probabilities, groups, draws, seed, bins=15):
    # What needs the probabilities themselves: AUC of each grade (1 + draws, 5) and calibration error
    # (1 + draws,), as they are and then under the same draws as `group_bootstrap`.
    codes, number = group_codes(groups, len(grades))
    place, excess = metrics.calibration_bins(grades, probabilities, bins)
    gaps = _sums_by_group(codes, number, place, bins, excess)
    sizes = np.bincount(codes, minlength=number).astype(float)
    scores = [(grades == grade, *_ties(probabilities[:, grade])) for grade in range(metrics.K)]
    auc, calibration = [], []
    for weights in chain([np.ones((1, number))], _weights(number, draws, seed)):
        with np.errstate(invalid="ignore", divide="ignore"):
            calibration.append(np.abs(weights @ gaps).sum(1) / (weights @ sizes))
            auc.append(np.stack([_weighted_auc(weights[:, codes], *score) for score in scores], axis=1))
    return np.concatenate(auc), np.concatenate(calibration)


def _ties(score):
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    return order, starts


def _weighted_auc(weights, positive, order, starts):
    if len(order) == 0:
        return np.full(len(weights), np.nan)
    above = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    below = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    wins = above * (below.cumsum(1) - below / 2)
    return wins.sum(1) / (above.sum(1) * below.sum(1))
