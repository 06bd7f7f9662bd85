"""Where the findings of a phantom are drawn: regions of its picture, taken from the renderer's own geometry.

A map of where a model looks can be held against them. Nobody knows them on a real radiograph.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.ndimage import binary_opening, distance_transform_edt

from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.phantoms import draw
from koa_lib.phantoms.cohorts import LIKENESS, _crop_view
from koa_lib.phantoms.findings import Findings

NAMES = ("joint line", "margins", "subchondral bone")
# In units of half the plateau's width: a compartment lies between the spines and the bone's edge; spurs count with their surroundings.
COMPARTMENT, EDGE, AROUND = (0.2, 0.92), 0.8, 0.06
SLIVER = 4  # pixels: what is thinner is the spur's long tail along the bone
NARROWER = 1e-6  # makes a compartment the worse one without moving a bone
OTHER_SIDE = 0.25  # sclerosis of the other compartment over that of the worse one, as it is drawn
REACH = 0.6  # above and below the plateau, where nothing else is drawn for a finding
BONE = 0.1  # density of a drawn bone, at least; outside it is nearly 0
GEOMETRIES = ("stretch", "pad", "center_crop")  # need no look at the picture


def drawn(findings, view, traits):
    """The regions of one drawn knee.

    The *joint line* is the space between the bones' ends as wide as without narrowing, the *margins* are where spurs of the severest
    osteophytes would become bone, with a narrow border, *subchondral bone* is what the severest sclerosis would make denser, in either compartment.

    Parameters
    ----------
    findings : Findings
    view : draw.View
    traits : float array (TRAITS,)

    Returns
    -------
    bool array (3, height, width)
        In the order of `NAMES`; no pixel lies in two of them.
    """
    u, v, rows = _coordinates(view)
    traits, across = np.asarray(traits, np.float32), np.abs(u)
    inside = (across > COMPARTMENT[0]) & (across < COMPARTMENT[1])
    wide = _not_narrowed(findings)
    femur, tibia = draw._joint(u, wide, traits)
    line, spurs = inside & (v > femur) & (v < tibia), _spurs(u, v, findings, traits) & (across > EDGE)
    dense = inside & _sclerotic(u, v, wide, traits)
    line, spurs, dense = (_turned(mask, rows, view) for mask in (line, binary_opening(spurs, np.ones((SLIVER, SLIVER))), dense))
    margins = distance_transform_edt(~spurs) <= AROUND * view.unit
    line = line & ~margins
    return np.stack([line, margins, dense & ~line & ~margins])


def _coordinates(view):
    # As `draw._density` lays them out, but only the rows around the joint.
    u = ((np.arange(view.width + 2 * draw.MARGIN, dtype=np.float32) - draw.MARGIN - view.centre[0]) / view.unit)[None, :]
    v = ((np.arange(view.height + 2 * draw.MARGIN, dtype=np.float32) - draw.MARGIN - view.centre[1]) / view.unit)[:, None]
    rows = np.flatnonzero(np.abs(v[:, 0]) < REACH)
    return (u if view.side == "L" else -u), v[rows], rows


def _bones(u, v, findings, traits, **changed):
    # The same texture for every call: what differs is the finding.
    return draw._bones(u, v, replace(findings, **changed), traits, np.random.default_rng(0))


def _spurs(u, v, findings, traits):
    return (_bones(u, v, findings, traits, osteophytes=1.0) > BONE) & (_bones(u, v, findings, traits, osteophytes=0.0) < BONE)


def _not_narrowed(findings):
    # Joint space as wide as in health; the worse compartment, which wears and grows dense, stays the worse one.
    return replace(findings, medial_jsn=0.0, lateral_jsn=NARROWER * (findings.lateral_jsn > findings.medial_jsn))


def _sclerotic(u, v, findings, traits):
    gain = _bones(u, v, findings, traits, sclerosis=1.0) - _bones(u, v, findings, traits, sclerosis=0.0)
    worse = u > 0 if findings.lateral_jsn > findings.medial_jsn else u < 0
    return gain > BONE * np.where(worse, 1, OTHER_SIDE)


def _turned(mask, rows, view):
    whole = np.zeros((view.height + 2 * draw.MARGIN, mask.shape[1]), np.float32)
    whole[rows] = mask
    return draw._place(whole, view) > 0.5


def of_cohort(study, rows, side):
    """Regions of pictures of the training phantoms, drawn again from the numbers that the pictures were drawn with.

    Parameters
    ----------
    study : Study
    rows : DataFrame
        Manifest rows of phantom cohort A with `file`.
    side : int
        Of the result, in pixels.

    Returns
    -------
    bool array (n, 3, side, side)
        As the models see the pictures; no pixel lies in two of them.

    Raises
    ------
    StudyError
        Real pictures, a geometry that depends on the picture, or protocols with different ones.
    """
    used = {recipe.geometry for recipe in (study.profile.as_printed, study.profile.our_protocol) if recipe}
    if study.profile.training.source != "phantoms" or len(used) > 1 or not used <= set(GEOMETRIES):
        raise StudyError(f"Regions are known for phantoms in one of the geometries {', '.join(GEOMETRIES)}, not for {study.profile.training.name} in {', '.join(sorted(used))}.")
    geometry, = used
    truth = pd.read_csv(rows["file"].iloc[0].parents[2] / "truth.csv").set_index("image_id")
    order = _patients(study.profile.training.size, study.seed)
    knees = [drawn(*knee(study.seed, order[int(row.group_id)], row.side, truth.loc[row.image_id])) for row in rows.itertuples()]
    return np.stack([[shape.squares(mask.astype(np.float32), geometry, side)[0] > 0.5 for mask in masks] for masks in knees])


def _patients(count, seed):
    # Number of a patient -> place in the plan, drawn as `write_cohort_a` draws it.
    numbers = 9_000_000 + np.random.default_rng([seed, 1]).choice(999_999, count, replace=False)
    return {int(number): place for place, number in enumerate(numbers)}


def knee(seed, place, side, truth):
    """Findings, view and traits of a knee of cohort A, from its patient's place in the plan and its row of `truth.csv`."""
    shared = np.random.default_rng([seed, 2, place]).normal(size=draw.TRAITS)
    rng = np.random.default_rng([seed, 3, place, "LR".index(side)])
    view = _crop_view(rng, side)
    traits = np.sqrt(LIKENESS) * shared + np.sqrt(1 - LIKENESS) * rng.normal(size=draw.TRAITS)
    latents = {name: float(truth[f"latent_{name}"]) for name in Findings.__dataclass_fields__}
    return Findings(**latents), view, traits
