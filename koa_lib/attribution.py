"""Scores of maps of where a model looks: inside known regions, against deletion and insertion, and against lost weights."""

import numpy as np
import torch
import torch.nn.functional as F

from koa_lib import stats
from koa_lib.datasets import to_tensor
from koa_lib.device import device_of

CELLS = 14  # per side: what is deleted or inserted at once, and the grid on which two maps are compared (doubled)
BLUR = 0.1  # of the picture's side: hides joint space, spurs and bone edges, and draws no new edge as a gray patch would
MIDDLE = 0.25  # of the picture's side: width of the map that looks at no picture
BATCH = 64
RANDOM, CENTRE = "random order", "centre-out order"  # the controls of deletion and insertion: scattered cells, and a blob that grows from the middle
FLIPS = 10_000  # of signs, for a p-value


def inside(maps, masks):
    """Share of each map's sum that lies in its region.

    Parameters
    ----------
    maps : float array (n, H, W), not negative
    masks : bool array (n, H, W)

    Returns
    -------
    float array (n,)
        Chance, for a map that knows nothing, is the region's share of the area; NaN for a map of zeros.
    """
    total = maps.sum((1, 2), dtype=float)
    return np.divide((maps * masks).sum((1, 2), dtype=float), total, out=np.full(len(maps), np.nan), where=total > 0)


def of_others(maps, masks, groups):
    """Share of the maps of *other patients* inside the region of each picture: what is known without a look at it.

    Parameters
    ----------
    maps : float array (n, H, W), not negative
    masks : bool array (n, H, W)
    groups : array (n,)
        Patients.

    Returns
    -------
    float array (n,)
        Mean over the maps of other patients that are not all 0; NaN where there is none.
    """
    flat = maps.reshape(len(maps), -1).astype(float)
    total = flat.sum(1, keepdims=True)
    flat = np.divide(flat, total, out=np.full_like(flat, np.nan), where=total > 0)
    return _over_others(masks.reshape(len(masks), -1).astype(float) @ flat.T, groups)


def _over_others(values, groups):
    # Row means of (n, n) over the columns of other patients.
    groups = np.asarray(groups)
    known = (groups[:, None] != groups[None]) & np.isfinite(values)
    counts = known.sum(1)
    return np.divide(np.where(known, values, 0).sum(1), counts, out=np.full(len(values), np.nan), where=counts > 0)


def highest(maps):
    """Where each map (n, H, W) is highest, as a map of 0 and 1; all 0 for a map of zeros. `inside` of it is the pointing game."""
    top = maps.max((1, 2), keepdims=True)
    return ((maps == top) & (top > 0)).astype(float)


def middle(number, side):
    """Maps (number, side, side) that look at no picture: bright in the middle, where crops have the joint."""
    across = np.exp(-0.5 * ((np.arange(side) + 0.5 - side / 2) / (MIDDLE * side)) ** 2)
    return np.repeat((across[:, None] * across)[None], number, axis=0)


def resized(maps, side):
    """Maps (n, H, W) in another size, by the mean over what a pixel covers or bilinear."""
    return F.interpolate(torch.as_tensor(maps)[:, None].float(), (side, side), mode="bilinear", align_corners=False, antialias=True)[:, 0].numpy()


def order(maps, rng):
    """Cells of each map from the highest to the lowest, ties in random order.

    Returns
    -------
    int array (n, CELLS ** 2)
        A map of zeros gives a random order.
    """
    cells = resized(maps, CELLS).reshape(len(maps), -1)
    return np.lexsort((rng.random(cells.shape), -cells))


def curves(grader, pictures, statistics, orders, grades, steps):
    """Probability of a grade while the cells of a picture are blurred (deletion), or become sharp (insertion), one after another.

    Petsiuk 2018 (arXiv:1806.07421): a map that finds what the model uses makes deletion fall, and insertion rise, early.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    pictures : uint8 array (n, side, side)
    statistics : str
        Normalisation of the training.
    orders : dict of str to int array (n, CELLS ** 2)
        Cells in the order in which they are changed, from `order`.
    grades : int array (n,)
        Whose probability is followed.
    steps : int

    Returns
    -------
    dict of (str, str) to float array (n, steps + 1)
        By name of the order and 'deletion' or 'insertion'; from no changed cell to all of them.
    """
    sharp, hidden = (to_tensor(values, statistics) for values in (pictures, blurred(pictures)))
    ends = [_probability(grader, images, grades) for images in (sharp, hidden)]
    counts = np.linspace(0, CELLS**2, steps + 1).round().astype(int)[1:-1]
    made = {}
    for name, cells in orders.items():
        rank = torch.as_tensor(np.argsort(cells, axis=1)).view(-1, 1, CELLS, CELLS)
        for kind, (before, after), (first, last) in (("deletion", (sharp, hidden), ends), ("insertion", (hidden, sharp), ends[::-1])):
            if (name, kind) == (RANDOM, "insertion"):  # backwards it is a random order, too, and shows the same pictures
                made[name, kind] = made[name, "deletion"][:, ::-1]
                continue
            between = [_probability(grader, torch.where(_spread(rank < count, sharp), after, before), grades) for count in counts]
            made[name, kind] = np.stack([first, *between, last], axis=1)
    return made


def blurred(pictures):
    """Pictures (n, side, side) with all detail hidden, float in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pictures.astype(np.float32) / 255, (0, *2 * [BLUR * pictures.shape[-1]]))


def _spread(cells, images):
    return F.interpolate(cells.float(), images.shape[-2:]).bool()


def _probability(grader, images, grades):
    return probabilities(grader, images)[np.arange(len(images)), grades]


@torch.no_grad()
def probabilities(grader, images):
    """Probabilities (n, 5) of normalised images (n, 3, side, side), in full precision like the maps."""
    grader.eval()
    parts = [grader(part.to(device_of(grader)).contiguous(memory_format=torch.channels_last)).softmax(-1).cpu() for part in images.split(BATCH)]
    return torch.cat(parts).numpy()


def area(curves):
    """Mean height of curves (n, steps + 1) by the trapezoidal rule, (n,): 0 to 1."""
    return np.trapezoid(curves, axis=1) / (curves.shape[1] - 1)


def rank_correlation(first, second):
    """Spearman correlation of each pair of maps (n, H, W), on a grid of 2 `CELLS`; NaN where one is constant."""
    return (_ranked(first) * _ranked(second)).sum(1)


def likeness(maps, groups):
    """Mean rank correlation of each map with those of other patients, (n,): near 1 where a map hardly depends on the picture."""
    ranks = _ranked(maps)
    return _over_others(ranks @ ranks.T, groups)


def _ranked(maps):
    # Ranks of each map's cells, centred and of length 1; NaN for a constant map.
    from scipy.stats import rankdata

    ranks = rankdata(resized(maps, 2 * CELLS).reshape(len(maps), -1), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.sqrt((ranks**2).sum(1, keepdims=True))
    return np.divide(ranks, lengths, out=np.full_like(ranks, np.nan), where=lengths > 0)


def structural_similarity(first, second):
    """Structural similarity (SSIM, Wang 2004) of each pair of maps in [0, 1], on a grid of 2 `CELLS`; NaN where one is all 0."""
    from skimage.metrics import structural_similarity as ssim

    pairs = zip(resized(first, 2 * CELLS), resized(second, 2 * CELLS), strict=True)
    return np.array([ssim(a, b, data_range=1.0) if a.max() > 0 and b.max() > 0 else np.nan for a, b in pairs])


def mean_interval(values, groups, draws, seed):
    """Mean of the defined values with its 95 % group-bootstrap interval.

    Parameters
    ----------
    values : float array (n,)
        NaN is left out.
    groups : array (n,)
        What is resampled: patients.

    Returns
    -------
    (mean, low, high) : floats
        NaN without a value; the interval is NaN with fewer than two groups.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    codes, number = stats.group_codes(np.asarray(groups)[known], known.sum())
    if number < 2:
        return float(values[known].mean()), float("nan"), float("nan")
    sums, counts = np.bincount(codes, values[known], number), np.bincount(codes, minlength=number)
    times = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=draws)
    return float(values[known].mean()), *stats.interval(times @ sums / (times @ counts))


def flip_p(values, groups, seed):
    """Two-sided p-value of a mean of 0: the signs of whole patients are flipped at random, `FLIPS` times.

    Parameters
    ----------
    values : float array (n,)
        Paired differences; NaN is left out.
    groups : array (n,)
        Patients.

    Returns
    -------
    float
        At least 1 / (`FLIPS` + 1); NaN with fewer than two patients.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    codes, number = stats.group_codes(np.asarray(groups)[known], known.sum())
    if number < 2:
        return float("nan")
    sums = np.bincount(codes, values[known], number)
    flipped = np.abs((2.0 * np.random.default_rng(seed).integers(0, 2, (FLIPS, number), np.int8) - 1) @ sums)
    reached = flipped >= np.abs(sums.sum()) * (1 - 1e-9)
    return float((1 + reached.sum()) / (FLIPS + 1))
