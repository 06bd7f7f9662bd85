"""Tables of where models look: what was mapped, shares inside the known regions, deletion and insertion, lost weights."""

import numpy as np
import pandas as pd

from koa_lib import attribution, regions
from koa_lib.attribution import RANDOM
from koa_lib.explanations import SIDE

NO_MODEL = "no model"


def mapped(found, absent):
    """What is explained: one row per model, and those that are not run with the reason.

    Parameters
    ----------
    found : list of explanations.Explained
    absent : dict of str to str

    Returns
    -------
    DataFrame
        model, as_run, layer, n, accuracy (ratio, on the explained pictures), reason.
    """
    rows = [{"model": one.subject.name, "as_run": one.subject.as_run, "layer": one.layer, "n": len(one.grades),
             "accuracy": float((one.grades == one.subject.part.grades).mean()), "reason": ""} for one in found]
    rows += [{"model": name, "as_run": "not run", "layer": "", "n": 0, "accuracy": np.nan, "reason": reason} for name, reason in absent.items()]
    return pd.DataFrame(rows)


def shares(found, masks, draws, seed):
    """How much of each map lies in the regions of the findings, beside their share of the area.

    Parameters
    ----------
    found : list of explanations.Explained
    masks : bool array (n, 3, SIDE, SIDE)
        `regions.of_cohort` of the explained pictures.
    draws, seed : int
        Of the bootstrap over patients.

    Returns
    -------
    DataFrame
        model, method, n (maps that are not all 0), share, ci_low, ci_high; area: what a map that knows nothing has; other_picture: the
        share of the map of another picture of the sample; a column per region with share over area; verdict: 'above', 'below' or 'like'
        chance by the interval of share - area. The last row is a map without a model.
    """
    whole = masks.any(1)
    rows = [_share_row(names, maps, masks, whole, groups, draws, seed) for names, maps, groups in _maps(found)]
    return pd.DataFrame(rows)


def _maps(found):
    groups = found[0].subject.part.rows["group_id"]
    for one in found:
        for method, maps in one.maps.items():
            yield (one.subject.name, method), maps, groups
    yield (NO_MODEL, "bright in the middle"), attribution.middle(len(groups), SIDE), groups


def _share_row(names, maps, masks, whole, groups, draws, seed):
    area, value = whole.mean((1, 2)), attribution.inside(maps, whole)
    share, low, high = attribution.mean_interval(value, groups, draws, seed)
    other = attribution.mean_interval(attribution.inside(np.roll(maps, len(maps) // 2, axis=0), whole), groups, draws, seed)[0]
    single = {name: float(np.nanmean(attribution.inside(maps, part) / part.mean((1, 2)))) if np.isfinite(value).any() else np.nan
              for name, part in zip(regions.NAMES, masks.swapaxes(0, 1), strict=True)}
    return {"model": names[0], "method": names[1], "n": int(np.isfinite(value).sum()), "share": share, "ci_low": low, "ci_high": high,
            "area": float(area.mean()), "other_picture": other, **single, "verdict": _verdict(value - area, groups, draws, seed)}


def _verdict(excess, groups, draws, seed):
    _, low, high = attribution.mean_interval(excess, groups, draws, seed)
    return "above chance" if low > 0 else "below chance" if high < 0 else "like chance" if np.isfinite(low) else "undefined"


def pointing(found, masks, draws, seed):
    """The pointing game: how often a map's highest pixel lies in a region of the findings; parameters as of `shares`.

    Returns
    -------
    DataFrame
        model, method, n, hits (ratio), ci_low, ci_high, area (chance), verdict.
    """
    whole, rows = masks.any(1), []
    for (model, method), maps, groups in _maps(found):
        hits, area = attribution.pointing(maps, whole), whole.mean((1, 2))
        mean, low, high = attribution.mean_interval(hits, groups, draws, seed)
        rows.append({"model": model, "method": method, "n": int(np.isfinite(hits).sum()), "hits": mean, "ci_low": low, "ci_high": high,
                     "area": float(area.mean()), "verdict": _verdict(hits - area, groups, draws, seed)})
    return pd.DataFrame(rows)


def faithfulness(found, draws, seed):
    """Areas under the deletion and insertion curves beside those of a random order of the same cells.

    Returns
    -------
    DataFrame
        model, method, n, deletion, insertion, random (areas: mean probability of the model's grade); deletion_gain (random - deletion)
        and insertion_gain (insertion - random) with paired 95 % group-bootstrap intervals: above 0 the map finds what the model uses.
    """
    rows = []
    for one in found:
        groups = one.subject.part.rows["group_id"]
        random = attribution.area(one.curves[RANDOM, "deletion"])
        for method in one.maps:
            deletion, insertion = (attribution.area(one.curves[method, kind]) for kind in ("deletion", "insertion"))
            row = {"model": one.subject.name, "method": method, "n": len(random), "deletion": float(deletion.mean()),
                   "insertion": float(insertion.mean()), "random": float(random.mean())}
            for name, gain in (("deletion_gain", random - deletion), ("insertion_gain", insertion - random)):
                row[name], row[f"{name}_low"], row[f"{name}_high"] = attribution.mean_interval(gain, groups, draws, seed)
            rows.append(row)
    return pd.DataFrame(rows)


def sanity(found):
    """Mean similarity of a map to the trained model's own while its layers get random weights, from the output to the input.

    Returns
    -------
    DataFrame
        model, method, measure ('rank correlation' or 'SSIM'), n (maps defined at the last step), then a column per share of random
        layers, such as "20 %". NaN where no map is defined.
    """
    rows = []
    for one in found:
        for (method, measure), values in one.cascade.items():
            steps = values.shape[1]
            row = {"model": one.subject.name, "method": method, "measure": measure, "n": int(np.isfinite(values[:, -1]).sum())}
            means = [float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else np.nan for column in values.T]
            rows.append(row | {f"{100 * k / steps:.0f} %": mean for k, mean in enumerate(means, 1)})
    return pd.DataFrame(rows)
