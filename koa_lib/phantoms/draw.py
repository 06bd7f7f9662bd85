"""Drawing one knee radiograph: findings and anatomy become a density map, the film makes a picture of it.

Knee coordinates in units of half the plateau's width: u grows to the lateral side (the fibula), v downwards
from the plateau. Bones are drawn upright, as depths below contours that are functions of u or of v alone,
and turned at last.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d, uniform_filter

GAP = 0.14  # normal joint space in units: about 12 pixels of a 224-pixel crop
TRAITS = 24  # numbers that make a person's anatomy, standard normal
MARGIN = 18  # pixels around the view, so that turning it shows no empty corner
TEXTURE = 768



# Contours of a healthy knee as (positions, values): ends of femur and tibia over u, half widths over v.
FEMUR_END = (
    (-1.06, -0.98, -0.88, -0.56, -0.30, -0.20, -0.13, -0.06, 0.06, 0.13, 0.20, 0.30, 0.56, 0.88, 0.98, 1.06),
    (-0.40, -0.17, -0.05, 0.01, -0.01, -0.08, -0.22, -0.30, -0.30, -0.22, -0.08, -0.01, 0.01, -0.04, -0.14,
     -0.40),
)
FEMUR_WIDTH = (
    (-1.7, -1.3, -1.0, -0.75, -0.5, -0.34, -0.2, 0.0),
    (0.70, 0.76, 0.86, 0.96, 1.01, 0.98, 0.96, 0.95),
)
TIBIA_END = (
    (-1.04, -0.94, -0.6, -0.3, -0.18, -0.11, -0.03, 0.04, 0.11, 0.18, 0.3, 0.6, 0.94, 1.04),
    (0.05, 0.0, 0.04, 0.0, -0.07, -0.17, -0.09, -0.09, -0.15, -0.06, 0.01, 0.0, 0.015, 0.07),
)
TIBIA_WIDTH = ((-0.1, 0.05, 0.14, 0.32, 0.6, 1.0, 1.6), (1.0, 1.0, 0.98, 0.94, 0.86, 0.75, 0.62))


@dataclass(frozen=True)
class View:
    """A knee's place on the film: size, unit and plateau's centre in pixels, degrees, side, wide or not."""

    height: int
    width: int
    unit: float
    centre: tuple[float, float]
    rotation: float
    side: str
    wide: bool = False


def render(knees, rng):
    """Draw one knee, or several beside each other on one film.

    Parameters
    ----------
    knees : list of (Findings, View, traits)
        `traits` are TRAITS standard normal numbers, nearly the same for the two knees of a person.
    rng : numpy Generator
        Draws texture and film.

    Returns
    -------
    float32 array (height, width) in [0, 1]
    """
    return film(np.concatenate([_density(*knee, rng) for knee in knees], axis=1), knees[0][1].wide, rng)


def joint_centre(view):
    """Where the middle of a healthy joint line lies on the film: (x, y) in pixels."""
    # The film is turned about the plateau's centre, half a gap below the line.
    angle = np.deg2rad(view.rotation)
    half_gap = GAP / 2 * view.unit
    return view.centre[0] + half_gap * np.sin(angle), view.centre[1] - half_gap * np.cos(angle)


def coordinates(view):
    """Knee coordinates of a view's pixels and of `MARGIN` more on each side: u (1, W) and v (H, 1)."""
    x, y = (np.arange(size + 2 * MARGIN, dtype=np.float32) - MARGIN for size in (view.width, view.height))
    u, v = (x - view.centre[0]) / view.unit, (y - view.centre[1]) / view.unit
    # On the film of a right knee the fibula lies at the viewer's left.
    return (u if view.side == "L" else -u)[None, :], v[:, None]


def _density(findings, view, traits, rng):
    u, v = coordinates(view)
    traits = np.asarray(traits, np.float32)  # double precision would leak into every map
    return place(_soft_tissue(u, v, traits, view.wide) + bones(u, v, findings, traits, rng), view)


def bones(u, v, findings, traits, rng):
    """Density of femur, tibia and fibula at knee coordinates, before the film is turned."""
    worse = _worse_side(u, findings)
    femur_end, tibia_end = joint_ends(u, findings, traits)
    grain = 1 + rng.uniform(0.08, 0.26) * _texture(np.broadcast(u, v).shape, traits, rng)
    lips = 0.17 * findings.osteophytes * np.clip(0.8 + 0.25 * traits[8:12], 0.4, 1.15)
    femur, below = _bone(
        u, v, femur_end, _half_width(v, FEMUR_WIDTH, traits[12:14], lips[:2], (-0.17, 0.07)), -1
    )
    shift = 0.07 * findings.deformity
    tibia, above = _bone(
        u - shift, v, tibia_end, _half_width(v, TIBIA_WIDTH, traits[14:16], lips[2:], (0.03, 0.06)), 1
    )
    density = _shade("body", femur) * (grain + _femur_marks(u, v, femur, traits)) + _shade("cortex", femur)
    density += _shade("body", tibia) * (grain + _tibia_marks(u, v, above, traits)) + _shade("cortex", tibia)
    density += _subchondral(femur, below, worse, 0.5, findings) + _subchondral(
        tibia, above, worse, 1.0, findings
    )
    return density + _fibula(u, v, traits, grain)


def _worse_side(u, findings):
    # 1 over the more narrowed compartment, 0.25 over the other, nothing between the spines.
    sign = 1 if findings.lateral_jsn > findings.medial_jsn else -1
    return bump(u, sign * 0.6, 0.36) + 0.25 * bump(u, -sign * 0.6, 0.36)


def joint_ends(u, findings, traits):
    """Lower edge of the femur and upper edge of the tibia: v at each u."""
    lateral = ramp(u, 0.35)
    width = GAP * (1 + 0.07 * traits[0] + 0.06 * traits[1] * (lateral - 0.5))
    width = width * (1 - 0.95 * (findings.lateral_jsn * lateral + findings.medial_jsn * (1 - lateral)))
    worse = -0.72 if findings.medial_jsn >= findings.lateral_jsn else 0.72
    wear = 0.10 * findings.deformity * bump(u, worse, 0.34)
    rough = findings.deformity * (
        0.018 * np.sin(15 * u + 3 * traits[2]) + 0.012 * np.sin(31 * u + 3 * traits[3])
    )
    reach = 1 + 0.15 * findings.osteophytes  # spurs carry the joint surface outwards
    notch = 1 + 0.12 * traits[4] * bump(u, 0, 0.3)
    femur = _curve(u / reach, FEMUR_END, 0.05) * notch - width + wear + rough
    tibia = _curve(u / reach, TIBIA_END, 0.02)
    spines = bump(u, 0, 0.2) * (0.10 * traits[5] + 0.35 * findings.osteophytes)
    lip = 0.10 * findings.osteophytes * bump(np.abs(u), reach, 0.07)
    tilt = 0.02 * traits[6] * u
    return femur + tilt, tibia * (1 + spines) + wear - rough - lip + tilt


def _half_width(v, knots, traits, lips, place):
    # Medial and lateral half width; a spur is a beak at the joint's margin with a blunt shoulder away from
    # it.
    centre, size = place
    base = _curve(v, knots, 0.05) + 0.012 * np.sin(8 * v + 4 * traits[0])  # epicondyles and tubercles differ
    away = np.where((v > centre) == (centre > 0), 1.6, 0.7) * size
    spur = np.exp(-(np.abs((v - centre) / away) ** 1.5))
    return tuple(base * (1 + 0.015 * trait) + lip * spur for trait, lip in zip(traits, lips, strict=True))


def _bone(u, v, end, half_width, direction):
    """Depth below the bone's outline and below its joint surface, in units."""
    slope = np.gradient(end[0]) / (u[0, 1] - u[0, 0])
    beneath = direction * (v - end) / np.sqrt(1 + slope**2, dtype=np.float32)
    medial, lateral = half_width
    sides = np.minimum(u + medial, lateral - u)
    # A minimum with round corners.
    return 0.5 * (sides + beneath - np.sqrt((sides - beneath) ** 2 + 0.0016)), beneath


def _shade(kind, depth):
    # Depths from -0.1 to 0.9 in steps of 0.002; beyond that nothing changes.
    return _profile(kind)[np.clip((depth + 0.1) * 500, 0, 499).astype(np.int16)]


@cache
def _profile(kind):
    depth = np.arange(500, dtype=np.float32) / 500 - 0.1
    inside, deep = 1 / (1 + np.exp(-np.clip(depth / 0.005, -30, 30))), np.maximum(depth, 0)
    if kind == "body":
        return inside * (0.16 + 0.30 * (1 - np.exp(-deep / 0.13)))
    return inside * (0.17 * bump(depth, 0.012, 0.014) + 0.08 * np.exp(-deep / 0.05))


def _subchondral(outline, beneath, worse, share, findings):
    # The bone plate of every knee, and sclerosis: a band that grows thicker and denser in the worse
    # compartment.
    dense = findings.sclerosis * worse * share
    shape = bump(np.clip(beneath, 0, 1), 0, 0.035 + 0.13 * findings.sclerosis)
    return (outline > 0) * (
        0.16 * share * bump(beneath, 0.025, 0.025) + (0.04 * share + 0.50 * dense) * shape
    )


def _femur_marks(u, v, depth, traits):
    # Patella, roof and walls of the notch, growth scar.
    patella = 1 - ((u - 0.06 * traits[16]) / (0.44 + 0.03 * traits[17])) ** 2
    patella = patella - ((v + 0.80 + 0.06 * traits[18]) / 0.38) ** 2
    marks = 0.20 * ramp(patella, 0.2) + 0.08 * bump(patella, 0.1, 0.12)
    walls = np.abs(u) - 0.24 - 0.10 * (-v - 0.2) - 0.02 * traits[19]
    marks += 0.30 * bump(walls, 0, 0.03) * ramp(v + 0.62, 0.1) * ramp(-v - 0.12, 0.1)
    scar = v + 0.58 + 0.05 * np.cos(4 * u + traits[20]) + 0.02 * np.sin(13 * u + 3 * traits[21])
    return marks + (0.16 + 0.05 * traits[21]) * bump(scar, 0, 0.022)


def _tibia_marks(u, v, beneath, traits):
    # The far rim of the plateau, and the growth scar.
    rim = beneath - 0.075 - 0.01 * traits[22] + 0.03 * np.cos(3 * u)
    scar = v - 0.36 + 0.05 * np.cos(4 * u + traits[20]) - 0.015 * np.sin(15 * u + 3 * traits[21])
    return 0.35 * bump(rim, 0, 0.02) * ramp(np.abs(u) - 0.25, 0.1) + (0.14 + 0.05 * traits[21]) * bump(
        scar, 0, 0.02
    )


def _fibula(u, v, traits, grain):
    u, v = u - 0.84 - 0.03 * traits[17], v - 0.74 - 0.06 * traits[7]
    head = 0.22 * (1 - np.sqrt((u / 0.23) ** 2 + ((v - 0.5 * u) / 0.24) ** 2))
    shaft = np.minimum(0.15 - np.abs(u + 0.03), v)
    depth = np.maximum(head, shaft)
    return 0.46 * _shade("body", depth) * grain + 0.55 * _shade("cortex", depth)


def _soft_tissue(u, v, traits, wide):
    limb = 1.42 + 0.10 * traits[23] + 0.14 * np.abs(v + 0.1) + 0.05 * traits[13] * np.sin(2 * v)
    across = np.clip(1 - (np.abs(u + 0.06 * traits[19]) / limb) ** 2, 0, 1)
    muscle = ramp(0.86 * limb - np.abs(u), 0.14)
    return (0.42 if wide else 0.34) * across**0.6 + 0.06 * muscle


@cache
def _textures():
    # Trabeculae: strands along the bone, fine grain, coarse mottling; made once per process from a fixed
    # seed.
    noise = np.random.default_rng(20).normal(size=(3, TEXTURE, TEXTURE)).astype(np.float32)
    widths = ((4.5, 0.7), (1.0, 0.9), (9, 5))
    layers = [gaussian_filter(layer, width) for layer, width in zip(noise, widths, strict=True)]
    return [layer / layer.std() for layer in layers]


def _texture(shape, traits, rng):
    weights = np.abs([0.55 + 0.15 * traits[2], 0.5 + 0.15 * traits[3], 0.3 + 0.1 * traits[4]])
    top, left = (int(rng.integers(0, TEXTURE - n)) for n in shape)
    crop = np.s_[top : top + shape[0], left : left + shape[1]]
    return sum(weight * layer[crop] for weight, layer in zip(weights, _textures(), strict=True))


def place(density, view):
    """Turn a map about the plateau's centre and cut its margin away."""
    angle, (x, y) = np.deg2rad(view.rotation), view.centre
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = (cos, sin, x + MARGIN - cos * x - sin * y, -sin, cos, y + MARGIN + sin * x - cos * y)
    picture, size = Image.fromarray(density.astype(np.float32)), (view.width, view.height)
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))


def film(density, wide, rng):
    """A picture in [0, 1] of a density map: uneven field, blur, local contrast, exposure, shoulder and grain.

    All of them vary widely, as between clinics, so that brightness says nothing about the grade.
    """
    down, across = (np.linspace(-1, 1, size, dtype=np.float32) for size in density.shape)
    image = density * (1 + rng.normal(0, 0.10) * down[:, None] + rng.normal(0, 0.06) * across)
    image = gaussian_filter(image, rng.uniform(0.35, 0.9), truncate=2.5)
    if wide:
        image = rng.uniform(0, 0.12) + rng.uniform(0.65, 1.1) / (0.3 + image.max()) * image
    else:  # OAI's crops look locally enhanced, the external set does not; some films are over-exposed
        image = image - rng.uniform(0.2, 0.85) * uniform_filter(image, 61)
        level, contrast = rng.uniform(0.45, 0.72), rng.uniform(0.13, 0.25)
        if rng.random() < 0.12:
            level, contrast = rng.uniform(0.70, 0.80), rng.uniform(0.10, 0.16)
        image = level + contrast / image.std() * (image - image.mean())
    image = np.clip(image, 0, None) ** rng.uniform(0.8, 1.3)
    image = np.where(image > 0.75, 0.75 + 0.25 * np.tanh((image - 0.75) / 0.25), image)  # the film's shoulder
    image = image + rng.uniform(0.006, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 1).astype(np.float32)


def _curve(x, knots, softness):
    step = abs(float(x.flat[1] - x.flat[0]))
    smooth = gaussian_filter1d(np.interp(x.ravel(), *knots), softness / step, mode="nearest")
    return smooth.reshape(x.shape).astype(np.float32)


def ramp(x, width):
    """From 0 to 1 around x = 0."""
    return np.clip(0.5 + x / (2 * width), 0, 1)


def bump(x, centre, width):
    """1 at the centre, and 1/e a width away from it."""
    return np.exp(-(((x - centre) / width) ** 2))
