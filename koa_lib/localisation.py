"""Tables of where models look: what was mapped, shares inside the known regions, deletion and insertion, lost weights."""

import re

import numpy as np
import pandas as pd

from koa_lib import attribution, metrics, stats
from koa_lib.attribution import CENTRE, RANDOM
from koa_lib.explanations import SIDE
from koa_lib.phantoms import regions

NO_MODEL = "no model"
LEVEL = 0.05  # of the family of verdicts
NONE = "none"  # in place of a verdict on a model that has not learnt to grade


def unlearnt(found):
    """Names of the models that grade no more of the explained pictures rightly than one grade for all of them: nothing learnt to explain."""
    floor = metrics.best_constant(found[0].subject.part.grades)["accuracy"] if found else 0
    return [one.subject.name for one in found if _accuracy(one) <= floor]


def _accuracy(one):
    return float((one.grades == one.subject.part.grades).mean())


def mapped(found, absent):
    """What is explained: one row per model, and those that are not run with the reason.

    Parameters
    ----------
    found : list of explanations.Explained
    absent : dict of str to str

    Returns
    -------
    DataFrame
        model, as_run, layer, n, accuracy (ratio, on the explained pictures), above_constant (whether that is more than one grade for all
        reaches), commonest (the model's commonest answer), trained_patients (how many of the patients have another knee in the training),
        reason.
    """
    poor = unlearnt(found)
    rows = [{"model": one.subject.name, "as_run": one.subject.as_run, "layer": _plain(one), "n": len(one.grades), "accuracy": _accuracy(one),
             "above_constant": one.subject.name not in poor, "commonest": _commonest(one.grades), "trained_patients": _shared(one.subject),
             "reason": ""} for one in found]
    rows += [{"model": name, "as_run": "not run", "layer": "", "n": 0, "accuracy": np.nan, "above_constant": np.nan, "commonest": "", "reason": reason}
             for name, reason in absent.items()]
    return pd.DataFrame(rows).astype({"trained_patients": "Int64"} if rows and found else {})


def _commonest(grades):
    counts = np.bincount(grades)
    return f"grade {counts.argmax()}, {counts.max()} of {len(grades)}"


def _shared(subject):
    return int(subject.part.rows["group_id"].drop_duplicates().isin(subject.trained_patients).sum())


def _plain(one):
    # "output of layer2, 8 x 8 cells" in words: which of how many stages or blocks that is.
    end, name, cells = re.fullmatch(r"(input|output) of (\S+), (.+)", one.layer).groups()
    place = "tokens that enter the last block" if end == "input" else _stage(one.subject.untrained(), name)
    return f"{place} ({name}), {cells.replace(' x ', ' × ')}"


def _stage(grader, name):
    if hasattr(grader, "tower"):
        return "last stage"
    stages = [stage["module"] for stage in grader.network.feature_info]
    place = stages.index(name) + 1
    return "last stage" if place == len(stages) else f"stage {place} of {len(stages)}"


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
        other_patients: mean of the maps of other patients laid over this knee; chance_gain, own_gain and blob_gain: inside minus
        chance_area, other_patients and the last row, a map without a model, each with its paired interval (NaN where all pictures are
        alike) and p-value, corrected for all rows; a column per region with share over area; verdict on chance_gain, `NONE` for the
        models of `unlearnt`.
    """
    rows, blob = [], attribution.inside(_blob(len(masks)), masks.any(1))
    for names, maps, groups in _maps(found):
        single = {name: _ratio(maps, part) for name, part in zip(regions.NAMES, masks.swapaxes(0, 1), strict=True)}
        rows.append(names | _scored("inside", maps, blob, masks.any(1), groups, draws, seed) | single)
    return _judged(rows, unlearnt(found))


def pointing(found, masks, draws, seed):
    """The pointing game: how often a map's highest pixel lies in a region of the findings.

    Parameters and result as of `shares`, with hits (ratio) in place of inside and without a column per region.
    """
    blob = attribution.inside(attribution.highest(_blob(len(masks))), masks.any(1))
    rows = [names | _scored("hits", attribution.highest(maps), blob, masks.any(1), groups, draws, seed) for names, maps, groups in _maps(found)]
    return _judged(rows, unlearnt(found))


def _blob(number):
    return attribution.middle(number, SIDE)


def _maps(found):
    groups = found[0].subject.part.rows["group_id"].to_numpy()
    for one in found:
        for method, maps in one.maps.items():
            yield {"model": one.subject.name, "method": method}, maps, groups
    yield {"model": NO_MODEL, "method": "bright in the middle"}, _blob(len(groups)), groups


def _ratio(maps, part):
    values = attribution.inside(maps, part) / part.mean((1, 2))
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _scored(name, maps, blob, whole, groups, draws, seed):
    value, area, others = attribution.inside(maps, whole), whole.mean((1, 2)), attribution.of_others(maps, whole, groups)
    row = {"n": int(np.isfinite(value).sum())}
    row[name], row["ci_low"], row["ci_high"] = _interval(value, groups, draws, seed)
    row |= {"chance_area": float(area.mean()), "other_patients": _interval(others, groups, draws, seed)[0]}
    for control, reached in {"chance": area, "own": others, "blob": blob}.items():
        row |= _gain(control, np.round(value - reached, 12), groups, draws, seed)
    return row


def _gain(name, values, groups, draws, seed):
    mean, low, high = _interval(values, groups, draws, seed)
    return {f"{name}_gain": mean, f"{name}_gain_low": low, f"{name}_gain_high": high, f"{name}_p_holm": attribution.flip_p(values, groups, seed)}


def _interval(values, groups, draws, seed):
    # Where all pictures are alike nothing can be resampled: no interval instead of one without width.
    mean, low, high = attribution.mean_interval(values, groups, draws, seed)
    return (mean, low, high) if np.nanmax(values, initial=-np.inf) > np.nanmin(values, initial=np.inf) else (mean, np.nan, np.nan)


def _judged(rows, poor):
    table = pd.DataFrame(rows)
    table = table.assign(**{name: stats.holm(table[name]) for name in ("chance_p_holm", "own_p_holm", "blob_p_holm")})
    return table.assign(verdict=_verdicts(table, "chance", ("above chance", "below chance"), poor))


def _verdicts(table, control, words, poor):
    # On a gain, in words: for more, for less.
    gains, p_values = table[f"{control}_gain"], table[f"{control}_p_holm"]
    return [NONE if model in poor else "undefined" if not np.isfinite(p) else "unclear" if p >= LEVEL else words[0] if gain > 0 else words[1]
            for model, gain, p in zip(table["model"], gains, p_values, strict=True)]


def faithfulness(found, draws, seed):
    """Areas under the deletion and insertion curves beside those of two orders that know no model.

    Returns
    -------
    DataFrame
        model, method, curve ('deletion' or 'insertion'), n, curve_area (mean probability of the model's grade), that of the random and of
        the centre-out order; random_gain and centre_gain: how much lower (deletion) or higher (insertion) the map's area is, with paired
        95 % group-bootstrap intervals, and random_p_holm and centre_p_holm, each corrected for all rows; random_verdict and centre_verdict:
        'better', 'worse' or 'unclear', `NONE` for the models of `unlearnt`.
    """
    rows = [_curve_row(one, method, curve, draws, seed) for one in found for method in one.maps for curve in ("deletion", "insertion")]
    table = pd.DataFrame(rows)
    table = table.assign(**{name: stats.holm(table[name]) for name in ("random_p_holm", "centre_p_holm")})
    return table.assign(**{f"{control}_verdict": _verdicts(table, control, ("better", "worse"), unlearnt(found)) for control in ("random", "centre")})


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
