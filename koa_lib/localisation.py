"""Scores of where models look: shares inside the known regions, deletion and insertion, lost weights."""

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
CURVES = ("deletion", "insertion")
# What a difference is called that is more and less than its control, where it is clear.
WORDS = {
    "chance": ("above chance", "below chance"),
    "own": ("more", "less"),
    "blob": ("more", "less"),
    "random": ("better", "worse"),
    "centre": ("better", "worse"),
}


def known(study, found):
    """Where the findings of the explained pictures are drawn.

    Returns
    -------
    bool array (n, regions, SIDE, SIDE)
        Without any region on real pictures: nobody knows where on them a model should look.
    """
    rows = found[0].subject.part.rows
    return (
        regions.of_cohort(study, rows, SIDE)
        if study.synthetic
        else np.zeros((len(rows), 0, SIDE, SIDE), bool)
    )


def unlearnt(found):
    """Names of the models that grade no more of the explained pictures rightly than one grade for all of
    them.
    """
    floor = metrics.best_constant(found[0].subject.part.grades)["accuracy"] if found else 0
    return [one.subject.name for one in found if accuracy(one) <= floor]


def accuracy(one):
    """Share of the explained pictures that a model grades rightly."""
    return float((one.grades == one.subject.part.grades).mean())


def mapped(found, absent):
    """What is explained, and how alike a map stays while the model loses its weights, from the output to the
    input (Adebayo 2018).

    Parameters
    ----------
    found : list of explanations.Explained
    absent : dict of str to str

    Returns
    -------
    DataFrame
        One row per model and map, then the models that are not run: model, method, as_run, layer, n, accuracy
        (on the explained pictures), above_constant (whether that is more than one grade for all reaches),
        commonest (the model's commonest answer), trained_patients (how many of the patients have another knee
        in the training), reason; defined (maps at the last step), rank_of_others (rank correlation of the
        trained model's maps of two patients), and the mean similarity to the trained model's map in a column
        per share of random layers, such as "rank correlation, 25 %" and "SSIM, 25 %"; NaN where no map is
        defined.
    """
    poor, rows = unlearnt(found), []
    for one in found:
        model = {
            "model": one.subject.name,
            "as_run": one.subject.as_run,
            "layer": _plain(one),
            "n": len(one.grades),
            "accuracy": accuracy(one),
            "above_constant": one.subject.name not in poor,
            "commonest": _commonest(one.grades),
            "trained_patients": _shared(one.subject),
            "reason": "",
        }
        rows += [model | {"method": method} | _lost(one, method) for method in one.maps]
    return pd.DataFrame(rows + [{"model": name, "n": 0, "reason": reason} for name, reason in absent.items()])


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


def _lost(one, method):
    others = attribution.likeness(one.maps[method], one.subject.part.rows["group_id"].to_numpy())
    row = {
        "defined": int(np.isfinite(one.cascade[method, "rank correlation"][:, -1]).sum()),
        "rank_of_others": _mean(others),
    }
    for measure in ("rank correlation", "SSIM"):
        steps = one.cascade[method, measure].T
        row |= {
            f"{measure}, {100 * k / len(steps):.0f} %": _mean(values) for k, values in enumerate(steps, 1)
        }
    return row


def _mean(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def scores(found, masks, draws, seed):
    """How much of each map lies in the regions of the findings, beside chance, other patients' maps and a
    blob without a model.

    Parameters
    ----------
    found : list of explanations.Explained
    masks : bool array (n, 3, SIDE, SIDE)
        From `known`.
    draws, seed : int
        Of the bootstrap over patients.

    Returns
    -------
    DataFrame
        model, method, accuracy, n (maps that are not all 0), inside (share), ci_low, ci_high; chance_area:
        what a map that knows nothing has; other_patients: mean of the maps of other patients laid over this
        knee; chance_gain, own_gain and blob_gain: inside minus chance_area, other_patients and the last row,
        a map without a model, each with its paired interval (NaN where all pictures are alike), p-value,
        corrected for all rows, and verdict in `WORDS`, `NONE` for the models of `unlearnt`; a column per
        region with share over area; the same for the pointing game (how often the highest pixel lies in a
        region), with pointing_ before each name and hits in place of inside.
    """
    whole, poor = masks.any(1), unlearnt(found)
    right = {one.subject.name: accuracy(one) for one in found}
    rows, pointed = [], []
    for names, maps, groups in _maps(found):
        single = {
            name: _ratio(maps, part) for name, part in zip(regions.NAMES, masks.swapaxes(0, 1), strict=True)
        }
        names = names | {"accuracy": right.get(names["model"], np.nan)}
        rows.append(names | _scored("inside", maps, whole, groups, draws, seed) | single)
        pointed.append(names | _scored("hits", attribution.highest(maps), whole, groups, draws, seed))
    table, hits = (_judged(pd.DataFrame(part), ("chance", "own", "blob"), poor) for part in (rows, pointed))
    return table.join(hits.drop(columns=["model", "method", "accuracy"]).add_prefix("pointing_"))


def _maps(found):
    groups = found[0].subject.part.rows["group_id"].to_numpy()
    for one in found:
        for method, maps in one.maps.items():
            yield {"model": one.subject.name, "method": method}, maps, groups
    yield {"model": NO_MODEL, "method": "bright in the middle"}, attribution.middle(len(groups), SIDE), groups


def _ratio(maps, part):
    return _mean(attribution.inside(maps, part) / part.mean((1, 2)))


def _scored(name, maps, whole, groups, draws, seed):
    middle = attribution.middle(len(maps), SIDE)
    blob = attribution.inside(attribution.highest(middle) if name == "hits" else middle, whole)
    value, area, others = (
        attribution.inside(maps, whole),
        whole.mean((1, 2)),
        attribution.of_others(maps, whole, groups),
    )
    row = {"n": int(np.isfinite(value).sum())}
    row[name], row["ci_low"], row["ci_high"] = _interval(value, groups, draws, seed)
    row |= {"chance_area": float(area.mean()), "other_patients": _interval(others, groups, draws, seed)[0]}
    for control, reached in {"chance": area, "own": others, "blob": blob}.items():
        row |= _gain(control, np.round(value - reached, 12), groups, draws, seed)
    return row


def _gain(name, values, groups, draws, seed):
    mean, low, high = _interval(values, groups, draws, seed)
    return {
        f"{name}_gain": mean,
        f"{name}_gain_low": low,
        f"{name}_gain_high": high,
        f"{name}_p_holm": attribution.flip_p(values, groups, seed),
    }


def _interval(values, groups, draws, seed):
    # Where all pictures are alike nothing can be resampled: no interval instead of one without width.
    mean, low, high = attribution.mean_interval(values, groups, draws, seed)
    return (
        (mean, low, high)
        if np.nanmax(values, initial=-np.inf) > np.nanmin(values, initial=np.inf)
        else (mean, np.nan, np.nan)
    )


def _judged(table, controls, poor):
    # p-values of each control corrected for all rows, and what they say.
    table = table.assign(
        **{f"{control}_p_holm": stats.holm(table[f"{control}_p_holm"]) for control in controls}
    )
    return table.assign(**{f"{control}_verdict": _verdicts(table, control, poor) for control in controls})


def _verdicts(table, control, poor):
    more, less = WORDS[control]
    gains, p_values = table[f"{control}_gain"], table[f"{control}_p_holm"]
    return [
        ""
        if model == NO_MODEL and control != "chance"
        else NONE
        if model in poor
        else "undefined"
        if not np.isfinite(p)
        else "unclear"
        if p >= LEVEL
        else more
        if gain > 0
        else less
        for model, gain, p in zip(table["model"], gains, p_values, strict=True)
    ]


def faithfulness(found, draws, seed):
    """Deletion and insertion curves of each map, and of two orders that know no model.

    Returns
    -------
    DataFrame
        model, method (a map, or `RANDOM` or `CENTRE`), curve, n, curve_area (mean probability of the model's
        grade), and the mean probability in a column per share of the cells that are changed, such as "at 50
        %". For a map also random_gain and centre_gain: how much lower (deletion) or higher (insertion) its
        area is than in that order, with paired 95 % group-bootstrap intervals; random_p_holm and
        centre_p_holm, each corrected for all maps; random_verdict and centre_verdict in `WORDS`, `NONE` for
        the models of `unlearnt`.
    """
    maps = [
        _curve_row(one, method, curve) | _gains(one, method, curve, draws, seed)
        for one in found
        for method in one.maps
        for curve in CURVES
    ]
    controls = [
        _curve_row(one, order, curve) for one in found for order in (RANDOM, CENTRE) for curve in CURVES
    ]
    return pd.concat(
        [_judged(pd.DataFrame(maps), ("random", "centre"), unlearnt(found)), pd.DataFrame(controls)],
        ignore_index=True,
    )


def _curve_row(one, order, curve):
    values = one.curves[order, curve]
    shares = np.linspace(0, 100, values.shape[1])
    row = {
        "model": one.subject.name,
        "method": order,
        "curve": curve,
        "n": len(values),
        "curve_area": float(attribution.area(values).mean()),
    }
    return row | {
        f"at {share:.0f} %": float(mean) for share, mean in zip(shares, values.mean(0), strict=True)
    }


def _gains(one, method, curve, draws, seed):
    groups, sign = one.subject.part.rows["group_id"].to_numpy(), 1 if curve == "insertion" else -1
    area, random, centre = (attribution.area(one.curves[order, curve]) for order in (method, RANDOM, CENTRE))
    return _gain("random", sign * (area - random), groups, draws, seed) | _gain(
        "centre", sign * (area - centre), groups, draws, seed
    )
