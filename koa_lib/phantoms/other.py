"""Phantoms of other anatomy, so that "is it a knee" means something to a pre-trained model."""

from itertools import pairwise

import numpy as np

from koa_lib.phantoms.draw import bump, film, ramp

KINDS = ("hand", "hip", "chest")
SIZE = 224


def render(kind, rng):
    """Draw a hand, hip or chest phantom on the same film as the knees.

    Returns
    -------
    float32 array (224, 224) in [0, 1]
    """
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    angle, scale = rng.normal(0, 0.06), rng.uniform(0.9, 1.1)
    x, y = scale * (x + angle * y) + rng.normal(0, 0.04), scale * (y - angle * x) + rng.normal(0, 0.04)
    density = {"hand": _hand, "hip": _hip, "chest": _chest}[kind](x if rng.random() < 0.5 else -x, y, rng)
    return film(density.astype(np.float32), False, rng)


def _bone(distance):
    # Positive inside: brighter at its cortex.
    return ramp(distance, 0.01) * (0.35 + 0.3 * bump(distance, 0.02, 0.02))


def _rod(x, y, start, end, radius):
    # Distance inside a straight bone with waisted shaft.
    (x0, y0), (x1, y1) = start, end
    length = np.hypot(x1 - x0, y1 - y0)
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length
    across = np.abs((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length
    waist = radius * (0.72 + 0.28 * (2 * along / length - 1) ** 2)
    return np.minimum(waist - across, np.minimum(along, length - along) + 0.3 * radius)


def _hand(x, y, rng):
    bones, flesh = np.zeros_like(x), ramp(0.52 - np.hypot(x * 1.05, y - 0.42), 0.04)
    for angle, reach in zip((-1.0, -0.34, -0.06, 0.2, 0.46), (0.95, 1.4, 1.5, 1.4, 1.2), strict=True):
        angle, reach = angle + rng.normal(0, 0.03), reach * rng.uniform(0.97, 1.03)
        joints = reach * np.array((0.12, 0.5, 0.75, 0.9, 1.0))
        points = [((0.25 + r) * np.sin(angle), 0.68 - r * np.cos(angle)) for r in joints]
        for start, end in pairwise(points):
            bones += _bone(_rod(x, y, start, end, 0.055))
        flesh = np.maximum(flesh, ramp(_rod(x, y, points[0], points[-1], 0.11), 0.03))
    for _ in range(8):
        bones += 0.6 * _bone(0.085 - np.hypot(x - rng.uniform(-0.18, 0.18), y - rng.uniform(0.66, 0.82)))
    radius, ulna = _rod(x, y, (-0.14, 0.9), (-0.14, 1.6), 0.15), _rod(x, y, (0.17, 0.92), (0.17, 1.6), 0.1)
    bones += _bone(radius) + _bone(ulna)
    return 0.25 * flesh + bones


def _hip(x, y, rng):
    radius = rng.uniform(0.26, 0.31)
    head = radius - np.hypot(x, y + 0.1)
    neck = _rod(x, y, (0.05, -0.05), (0.52, 0.28), 0.21)
    shaft, trochanter = _rod(x, y, (0.5, 0.1), (0.42, 1.6), 0.2), 0.17 - np.hypot(x - 0.6, y - 0.08)
    femur = np.maximum.reduce([head, neck, shaft, trochanter])
    socket = np.hypot(x, y + 0.1) - radius - 0.05
    wing = 0.62 - np.hypot(x + 0.45, (y + 0.75) * 0.8)
    ring = 0.16 - np.abs(np.hypot(x + 0.62, y - 0.35) - 0.38)
    pelvis = np.minimum(socket, np.maximum(wing, ring))
    return 0.3 + 0.1 * ramp(0.9 - x, 0.2) + _bone(femur) + _bone(pelvis)


def _chest(x, y, rng):
    lungs = np.zeros_like(x)
    for middle in (-0.43, 0.43):
        height = np.abs((y + 0.08) / rng.uniform(0.68, 0.8)) ** 2.6
        lungs = np.maximum(lungs, ramp(1 - ((x - middle) / 0.33) ** 2 - height, 0.1))
    heart = ramp(1 - ((x - 0.13) / 0.3) ** 2 - ((y - 0.3) / 0.33) ** 2, 0.1)
    spine = ramp(0.11 - np.abs(x), 0.03) * (0.8 + 0.2 * np.cos(34 * y))
    course = y + 0.28 * x**2 - 0.16 * np.abs(x)
    ribs = bump(np.sin(11 * course + rng.uniform(0, 3)), 0, 0.28) * (np.abs(x) > 0.1)
    body = ramp(0.95 - np.abs(x) - 0.1 * y, 0.05)
    collar = _bone(_rod(np.abs(x), y, (0.08, -0.72), (0.75, -0.86), 0.05))
    return 0.75 * body * (1 - 0.68 * lungs * (1 - heart)) + 0.12 * ribs * body + 0.25 * spine + 0.4 * collar
