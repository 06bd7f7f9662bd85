"""Where the findings of a phantom are drawn: regions of its picture, taken from the renderer's own geometry.

A map of where a model looks can be held against them. Nobody knows them on a real radiograph.
"""

import json
from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_opening, distance_transform_edt

from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.phantoms import draw
from koa_lib.phantoms.findings import Findings

NAMES = ("joint line", "margins", "subchondral bone")
# In units of half the plateau's width: a compartment lies between the spines and the bone's edge; spurs count
# with their surroundings.
COMPARTMENT, EDGE, AROUND = (0.2, 0.92), 0.8, 0.06
SLIVER = 4  # pixels: what is thinner is the spur's long tail along the bone
NARROWER = 1e-6  # makes a compartment the worse one without moving a bone
OTHER_SIDE = 0.25  # sclerosis of the other compartment over that of the worse one, as it is drawn
REACH = 0.6  # above and below the plateau, where nothing else is drawn for a finding
BONE = 0.1  # density of a drawn bone, at least; outside it is nearly 0
GEOMETRIES = ("stretch", "pad", "center_crop")  # need no look at the picture


def drawn(findings, view, traits):
    """The regions of one drawn knee.

    The *joint line* is the space between the bones' ends as wide as without narrowing, the *margins* are
    where spurs of the severest osteophytes would become bone, with a narrow border, *subchondral bone* is
    what the severest sclerosis would make denser, in either compartment.

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
    u, v = draw.coordinates(view)
    rows = np.abs(v[:, 0]) < REACH
    v, traits, across = v[rows], np.asarray(traits, np.float32), np.abs(u)
    inside = (across > COMPARTMENT[0]) & (across < COMPARTMENT[1])
    # Joint space as wide as in health; the worse compartment, which wears and grows dense, stays the worse
    # one.
    lateral = findings.lateral_jsn > findings.medial_jsn
    wide = replace(findings, medial_jsn=0.0, lateral_jsn=NARROWER * lateral)
    femur, tibia = draw.joint_ends(u, wide, traits)
    spurs = (_bones(u, v, findings, traits, osteophytes=1.0) > BONE) & (across > EDGE)
    spurs &= _bones(u, v, findings, traits, osteophytes=0.0) < BONE
    gain = _bones(u, v, wide, traits, sclerosis=1.0) - _bones(u, v, wide, traits, sclerosis=0.0)
    dense = gain > BONE * np.where((u > 0) == lateral, 1, OTHER_SIDE)
    found = (
        inside & (v > femur) & (v < tibia),
        binary_opening(spurs, np.ones((SLIVER, SLIVER))),
        inside & dense,
    )
    line, spurs, dense = (_turned(mask, rows, view) for mask in found)
    margins = distance_transform_edt(~spurs) <= AROUND * view.unit
    line &= ~margins
    return np.stack([line, margins, dense & ~line & ~margins])


def _bones(u, v, findings, traits, **changed):
    # The same texture for every call: what differs is the finding.
    return draw.bones(u, v, replace(findings, **changed), traits, np.random.default_rng(0))


def _turned(mask, rows, view):
    whole = np.zeros((len(rows), mask.shape[1]), np.float32)
    whole[rows] = mask
    return draw.place(whole, view) > 0.5


def of_cohort(study, rows, side):
    """Regions of pictures of the training phantoms, from what they were drawn with.

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
    profile = study.profile
    used = {recipe.geometry for recipe in (profile.as_printed, profile.our_protocol) if recipe}
    if profile.training.source != "phantoms" or len(used) > 1 or not used <= set(GEOMETRIES):
        raise StudyError(
            f"Regions are known for phantoms in one of the geometries {', '.join(GEOMETRIES)}, "
            f"not for {profile.training.name} in {', '.join(sorted(used))}."
        )
    (geometry,) = used
    known = json.loads((rows["file"].iloc[0].parents[2] / "knees.json").read_text())
    knees = (known[name][0] for name in rows["image_id"])
    masks = [drawn(Findings(**findings), draw.View(**view), traits) for findings, view, traits in knees]
    return np.stack(
        [
            [shape.squares(region.astype(np.float32), geometry, side)[0] > 0.5 for region in found]
            for found in masks
        ]
    )
