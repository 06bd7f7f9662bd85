"""Tables of where models look: what was mapped, shares inside the known regions, deletion and insertion, lost weights."""

import re

import numpy as np
import pandas as pd

from koa_lib import attribution, regions, stats
from koa_lib.attribution import CENTRE, RANDOM
from koa_lib.explanations import SIDE

NO_MODEL = "no model"
LEVEL = 0.05  # of the family of verdicts


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
        model, method, n (maps that are not all 0), inside (share), ci_low, ci_high; chance_area: what a map that knows nothing has;
        other_patients: mean of the maps of other patients laid over this knee; own_gain: inside - other_patients with its paired interval
        and own_p_holm; a column per region with share over area; p_holm and verdict on inside - chance_area. The last row is a map
        without a model. Each family of p-values is that of all rows.
    """
    rows = []
    for names, maps, groups in _maps(found):
        single = {name: _ratio(maps, part) for name, part in zip(regions.NAMES, masks.swapaxes(0, 1), strict=True)}
        rows.append(names | _against_chance("inside", maps, masks.any(1), groups, draws, seed) | single)
    return _judged(rows)


def pointing(found, masks, draws, seed):
    """The pointing game: how often a map's highest pixel lies in a region of the findings.

    Parameters and result as of `shares`, with hits (ratio) in place of inside and without a column per region.
    """
    return _judged([names | _against_chance("hits", attribution.highest(maps), masks.any(1), groups, draws, seed) for names, maps, groups in _maps(found)])


def _maps(found):
    groups = found[0].subject.part.rows["group_id"].to_numpy()
    for one in found:
        for method, maps in one.maps.items():
            yield {"model": one.subject.name, "method": method}, maps, groups
    yield {"model": NO_MODEL, "method": "bright in the middle"}, attribution.middle(len(groups), SIDE), groups


def _ratio(maps, part):
    values = attribution.inside(maps, part) / part.mean((1, 2))
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _against_chance(name, maps, whole, groups, draws, seed):
    value, area, others = attribution.inside(maps, whole), whole.mean((1, 2)), attribution.of_others(maps, whole, groups)
    row = {"n": int(np.isfinite(value).sum())}
    row[name], row["ci_low"], row["ci_high"] = attribution.mean_interval(value, groups, draws, seed)
    row |= {"chance_area": float(area.mean()), "other_patients": attribution.mean_interval(others, groups, draws, seed)[0]}
    return row | _gain("own", np.round(value - others, 12), groups, draws, seed) | {"excess": value - area, "groups": groups, "seed": seed}


def _gain(name, values, groups, draws, seed):
    mean, low, high = attribution.mean_interval(values, groups, draws, seed)
    return {f"{name}_gain": mean, f"{name}_gain_low": low, f"{name}_gain_high": high, f"{name}_p_holm": attribution.flip_p(values, groups, seed)}


def _judged(rows):
    # p-values corrected for the number of rows, and the verdict in words.
    excess = [row.pop("excess") for row in rows]
    p_values = [attribution.flip_p(values, row.pop("groups"), row.pop("seed")) for values, row in zip(excess, rows, strict=True)]
    table = pd.DataFrame(rows).assign(p_holm=stats.holm(p_values))
    table["own_p_holm"] = stats.holm(table["own_p_holm"])
    return table.assign(verdict=[_verdict(values, p) for values, p in zip(excess, table["p_holm"], strict=True)])


def _verdict(excess, p):
    if not np.isfinite(p):
        return "undefined"
    return "unclear" if p >= LEVEL else "above chance" if np.nanmean(excess) > 0 else "below chance"


def faithfulness(found, draws, seed):
    """Areas under the deletion and insertion curves beside those of two orders that know no model.

    Returns
    -------
    DataFrame
        model, method, curve ('deletion' or 'insertion'), n, curve_area (mean probability of the model's grade), that of the random and of
        the centre-out order; random_gain and centre_gain: how much lower (deletion) or higher (insertion) the map's area is, with paired
        95 % group-bootstrap intervals, and random_p_holm and centre_p_holm, each corrected for all rows.
    """
    rows = [_curve_row(one, method, curve, draws, seed) for one in found for method in one.maps for curve in ("deletion", "insertion")]
    table = pd.DataFrame(rows)
    return table.assign(**{name: stats.holm(table[name]) for name in ("random_p_holm", "centre_p_holm")})


def _curve_row(one, method, curve, draws, seed):
    groups, sign = one.subject.part.rows["group_id"].to_numpy(), 1 if curve == "insertion" else -1
    area, random, centre = (attribution.area(one.curves[order, curve]) for order in (method, RANDOM, CENTRE))
    row = {"model": one.subject.name, "method": method, "curve": curve, "n": len(area), "curve_area": float(area.mean()),
           "random": float(random.mean()), "centre": float(centre.mean())}
    return row | _gain("random", sign * (area - random), groups, draws, seed) | _gain("centre", sign * (area - centre), groups, draws, seed)


def sanity(found):
    """Mean similarity of a map to the trained model's own while its layers get random weights, from the output to the input.

    Returns
    -------
    DataFrame
        model, method, n (maps defined at the last step); other_patients: rank correlation of the trained model's maps of two patients;
        then rank correlation in a column per share of random layers, such as "25 %", and structural similarity, such as "SSIM, 25 %".
        NaN where no map is defined.
    """
    rows = []
    for one in found:
        groups = one.subject.part.rows["group_id"].to_numpy()
        for method, maps in one.maps.items():
            ranks, alike = (one.cascade[method, measure] for measure in ("rank correlation", "SSIM"))
            shares = [f"{100 * k / ranks.shape[1]:.0f} %" for k in range(1, ranks.shape[1] + 1)]
            row = {"model": one.subject.name, "method": method, "n": int(np.isfinite(ranks[:, -1]).sum()), "other_patients": _mean(attribution.likeness(maps, groups))}
            rows.append(row | dict(zip(shares, map(_mean, ranks.T), strict=True)) | {f"SSIM, {share}": _mean(values) for share, values in zip(shares, alike.T, strict=True)})
    return pd.DataFrame(rows)


def _mean(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def steps(table):
    """Columns of `sanity` with the rank correlation, in the order in which weights are lost."""
    return [column for column in table if re.fullmatch(r"\d+ %", column)]
