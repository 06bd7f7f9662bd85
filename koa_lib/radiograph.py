"""Drawing one knee radiograph from findings: bones as smooth fields on the pixel grid, then the film.

Knee coordinates: u runs from lateral (+1, fibula) to medial (-1), one unit is half the width of the tibial
plateau; v runs down, 0 at the plateau.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

GAP = 0.155  # normal joint space in units: about 13 pixels of a 224-pixel crop
TEXTURE = 512


@dataclass(frozen=True)
class Findings:
    """Continuous latent findings in [0, 1]; 0 is a healthy knee."""

    medial_jsn: float
    lateral_jsn: float
    osteophytes: float
    sclerosis: float
    deformity: float

    @property
    def jsn(self):
        """Joint-space narrowing of the worse compartment."""
        return max(self.medial_jsn, self.lateral_jsn)


@dataclass(frozen=True)
class View:
    """How a knee is placed on the film: size and unit in pixels, centre of the plateau, degrees, side."""

    height: int
    width: int
    unit: float
    centre: tuple[float, float]
    rotation: float
    side: str


def render(findings, view, rng, wide=False):
    """Draw a knee.

    Parameters
    ----------
    findings : Findings
    view : View
    rng : numpy Generator
        Draws this patient's anatomy, texture and film.
    wide : bool
        The look of the external cohort: limb against a dark background, softer contrast.

    Returns
    -------
    float32 array (height, width) in [0, 1]
    """
    u, v = _knee_coordinates(view)
    anatomy = rng.normal(0, 1, 8).astype(np.float32)
    lines = _contours(u, findings, anatomy)
    density = _soft_tissue(u, v, rng, wide)
    texture = _texture(view, rng) * rng.uniform(0.5, 1.5)
    for inside, depth in (_femur(u, v, lines, findings, anatomy), _tibia(u, v, lines, findings, anatomy)):
        density += _bone(inside, depth, texture, findings, u)
    scar = 0.05 * (_bump(v + 0.04 * np.cos(6 * u), -0.62, 0.02) + _bump(v - 0.03 * np.cos(5 * u), 0.42, 0.018)) * _bump(u, 0, 0.8)
    density += scar + _fibula(u, v, anatomy, texture) + _patella(u, v, anatomy)
    return _film(density, rng, wide)


def _knee_coordinates(view):
    y, x = np.mgrid[0 : view.height, 0 : view.width].astype(np.float32)
    dx, dy = (x - view.centre[0]) / view.unit, (y - view.centre[1]) / view.unit
    angle = np.deg2rad(view.rotation)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
    # On the film of a right knee the fibula lies at the viewer's left.
    return (u if view.side == "L" else -u), v


def _smooth(x):
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _bump(x, centre, width):
    return np.exp(-(((x - centre) / width) ** 2))


def _contours(u, findings, anatomy):
    """Lower edge of the femur and upper edge of the tibia, v as functions of u."""
    lateral = _smooth(u / 0.12)
    narrowing = findings.lateral_jsn * lateral + findings.medial_jsn * (1 - lateral)
    gap = GAP * (1 + 0.06 * anatomy[0]) * (1 - 0.9 * narrowing)
    # Narrowing is seen where the bones bear weight, towards the outer half of a compartment.
    waviness = findings.deformity * (0.035 * np.sin(9 * u + 3 * anatomy[1]) + 0.025 * np.sin(17 * u + anatomy[2]))
    plateau = 0.035 * _bump(np.abs(u), 0.52, 0.28) + waviness
    plateau = plateau + 0.10 * findings.deformity * (1 - lateral) * _bump(u, -0.75, 0.45)
    height = 0.15 + 0.02 * anatomy[3] + 0.05 * findings.osteophytes
    spines = 0.75 * height * _bump(u, -0.12, 0.075) + 0.65 * height * _bump(u, 0.11, 0.07) + 0.085 * _bump(u, 0, 0.26)
    lip = 0.11 * findings.osteophytes * _bump(np.abs(u), 1.02 + 0.1 * findings.osteophytes, 0.09)
    tibia = plateau - spines - lip
    roundness = 0.34 - 0.16 * findings.deformity
    arch = (0.36 + 0.03 * anatomy[4]) * _bump(u, 0.0, 0.19 + 0.01 * anatomy[5]) + 0.04 * _bump(u, 0, 0.45)
    edge = roundness * np.maximum(np.abs(u) - 0.62, 0) ** 2 / 0.16
    femur = 0.02 - gap - arch - edge - 0.5 * waviness
    return femur, tibia


def _femur(u, v, lines, findings, anatomy):
    femur, _ = lines
    width = 0.74 + (0.24 + 0.01 * anatomy[6]) * _bump(v, -0.38, 0.42)
    margin = _bump(v, -0.26, 0.085)
    width = width + (0.03 * margin + 0.17 * findings.osteophytes * margin) - 0.05 * _smooth((v + 0.12) / 0.03)
    depth = np.minimum(femur - v, width - np.abs(u))
    return _smooth(depth / 0.013), depth


def _tibia(u, v, lines, findings, anatomy):
    _, tibia = lines
    width = 0.60 + (0.39 + 0.01 * anatomy[7]) * np.exp(-((np.maximum(v, 0) / 0.75) ** 1.6))
    margin = _bump(v, 0.045, 0.07)
    width = width + 0.19 * findings.osteophytes * margin - 0.05 * _bump(v, 0.0, 0.02)
    depth = np.minimum(v - tibia, width - np.abs(u))
    return _smooth(depth / 0.013), depth


def _bone(inside, depth, texture, findings, u):
    cortex = _bump(depth, 0.022, 0.022)
    # Subchondral sclerosis: a bright band beneath the joint surface, in the narrower compartment.
    worse = _smooth(u / 0.12) if findings.lateral_jsn > findings.medial_jsn else 1 - _smooth(u / 0.12)
    band = np.exp(-np.maximum(depth, 0) / (0.05 + 0.10 * findings.sclerosis))
    sclerosis = findings.sclerosis * band * (0.35 + 0.65 * worse)
    return inside * (0.40 + 0.30 * cortex + 0.10 * _bump(depth, 0.09, 0.07) + 0.42 * sclerosis + 0.09 * texture)


def _fibula(u, v, anatomy, texture):
    centre_u, centre_v = 0.88 + 0.03 * anatomy[6], 0.66 + 0.05 * anatomy[5]
    head = 1 - np.sqrt(((u - centre_u) / 0.19) ** 2 + ((v - centre_v) / 0.25) ** 2)
    shaft = np.minimum(0.115 - np.abs(u - centre_u + 0.03), (v - centre_v) * 0.6)
    depth = np.maximum(0.2 * head, shaft)
    return _smooth(depth / 0.012) * (0.16 + 0.22 * _bump(depth, 0.02, 0.02) + 0.06 * texture)


def _patella(u, v, anatomy):
    distance = ((u - 0.06 * anatomy[1]) / 0.42) ** 2 + ((v + 0.78 + 0.05 * anatomy[2]) / 0.36) ** 2
    return 0.13 * _smooth((1 - distance) / 0.08)


def _soft_tissue(u, v, rng, wide):
    edge = rng.uniform(1.25, 1.7) + 0.12 * np.abs(v + 0.1)
    limb = _smooth((edge - np.abs(u + rng.normal(0, 0.05))) / (0.05 if wide else 0.12))
    return (0.30 if wide else 0.34) * limb * (1 + 0.10 * np.cos(u))


@cache
def _textures():
    # Trabeculae: strands along the bone's axis, with a finer grain; made once per process from a fixed seed.
    noise = np.random.default_rng(20).normal(size=(2, TEXTURE, TEXTURE)).astype(np.float32)
    strands, grain = gaussian_filter(noise[0], (4.0, 0.8), mode="wrap"), gaussian_filter(noise[1], 1.0, mode="wrap")
    return 0.75 * strands / strands.std() + 0.5 * grain / grain.std()


def _texture(view, rng):
    top, left = rng.integers(0, TEXTURE, 2)
    rows, columns = (np.arange(view.height) + top) % TEXTURE, (np.arange(view.width) + left) % TEXTURE
    return _textures()[np.ix_(rows, columns)]


def _film(density, rng, wide):
    """Exposure, gamma, uneven field, blur and grain; the result is clipped to [0, 1]."""
    height, width = density.shape
    field = 1 + rng.normal(0, 0.08) * np.linspace(-1, 1, height, dtype=np.float32)[:, None] + rng.normal(0, 0.05) * np.linspace(-1, 1, width, dtype=np.float32)
    exposure, contrast = rng.uniform(0.55, 1.05), rng.uniform(0.6, 1.15) if wide else rng.uniform(0.75, 1.5)
    brightness = rng.uniform(-0.02, 0.10) if wide else rng.uniform(-0.15, 0.32)
    image = np.maximum(density * field, 0) ** rng.uniform(0.8, 1.25)
    image = brightness + 0.5 + contrast * (exposure * image - 0.45)
    image = _smooth(3.4 * (image - 0.5))  # the film's shoulder: bright bone keeps its structure
    image = gaussian_filter(image, rng.uniform(0.3, 0.9))
    image += rng.uniform(0.008, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 1, dtype=np.float32)
