"""Phantoms of other joints and the chest, so that "is it a knee" means something to a pre-trained model."""

import numpy as np
from scipy.ndimage import gaussian_filter

KINDS = ("hand", "hip", "chest")


def render(kind, size, rng):
    """Draw a hand, hip or chest phantom.

    Returns
    -------
    float32 array (size, size) in [0, 1]
    """
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    density = {"hand": _hand, "hip": _hip, "chest": _chest}[kind](x, y, rng)
    image = rng.uniform(0.05, 0.25) + rng.uniform(0.6, 1.0) * density
    image = gaussian_filter(image, size / 224 * rng.uniform(0.5, 1.2))
    image += rng.uniform(0.01, 0.03) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 1, dtype=np.float32)


def _edge(distance):
    # Bone from a signed distance (positive inside): brighter at its cortex.
    inside = 1 / (1 + np.exp(-np.clip(distance / 0.012, -30, 30)))
    return inside * (0.45 + 0.35 * np.exp(-((distance - 0.02) ** 2) / 0.0008))


def _hand(x, y, rng):
    density = 0.25 / (1 + np.exp(8 * (np.abs(x) - 0.75)))
    for finger in range(5):
        lean = (finger - 2) * 0.22 + rng.normal(0, 0.02)
        top = -0.85 + 0.12 * abs(finger - 2)
        for part in range(4):
            low, high = 0.75 - part * (0.75 - top) / 4, 0.75 - (part + 1) * (0.75 - top) / 4
            middle, half = (low + high) / 2, abs(low - high) / 2 - 0.025
            axis = lean * (1 - middle) * 0.75
            density = density + _edge(np.minimum(0.055 - np.abs(x - axis), half - np.abs(y - middle)))
    return density


def _hip(x, y, rng):
    head_x, head_y, radius = -0.1 + rng.normal(0, 0.05), -0.1 + rng.normal(0, 0.05), rng.uniform(0.27, 0.33)
    head = radius - np.hypot(x - head_x, y - head_y)
    along = (x - head_x) * 0.75 + (y - head_y) * 0.66
    neck = np.minimum(0.16 - np.abs((x - head_x) * 0.66 - (y - head_y) * 0.75), np.minimum(along, 0.75 - along))
    shaft = np.minimum(0.17 - np.abs(x - head_x - 0.5), y - 0.25)
    pelvis = np.minimum(np.hypot(x - head_x, y - head_y) - radius - 0.05, 0.75 - np.hypot(x + 0.7, y + 0.7))
    return 0.28 + _edge(np.maximum(np.maximum(head, neck), shaft)) + _edge(pelvis)


def _chest(x, y, rng):
    density = np.full_like(x, 0.62)
    for side in (-1, 1):
        lung = 1 - ((x - side * 0.42) / 0.32) ** 2 - ((y - 0.05) / rng.uniform(0.7, 0.8)) ** 2
        density -= 0.42 / (1 + np.exp(-np.clip(lung / 0.08, -30, 30)))
    ribs = np.cos(22 * (y + 0.35 * x**2 + rng.uniform(-0.1, 0.1)))
    heart = 1 - ((x - 0.12) / 0.26) ** 2 - ((y - 0.3) / 0.32) ** 2
    return density + 0.10 * np.maximum(ribs, 0) * (np.abs(x) < 0.8) + 0.28 / (1 + np.exp(-np.clip(heart / 0.1, -30, 30)))
