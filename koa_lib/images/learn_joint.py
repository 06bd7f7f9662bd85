"""The joint template, learnt from OAI training pictures: `python -m koa_lib.images.learn_joint FOLDER`.

Takes the pictures below the folder, at most `MOST` of them evenly, and writes joint_template.npy where it is
run; moved beside this file it is the one that `joint.find` uses.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL.Image import Resampling

from koa_lib.images.joint import (
    CENTRE,
    HALF_HEIGHT,
    HALF_WIDTH,
    LINE,
    TEMPLATE,
    UNIT,
    normalised,
    resized,
    search,
)
from koa_lib.images.read import is_picture, read_gray

MARGIN = 12  # pixels around the template that its local contrast looks at
MOST = 400


def learn(images):
    """The template from undistorted square crops: their mean around the joint, found again with the template
    so far.

    Parameters
    ----------
    images : list of float arrays (side, side) in [0, 1]
        OAI training pictures. The first mean takes the joint where `CENTRE` and `LINE` expect it, and later
        ones keep these as medians, so that the template neither drifts nor grows.

    Returns
    -------
    float32 array (2 HALF_HEIGHT, 2 HALF_WIDTH)
    """
    expected = np.array((*CENTRE, LINE))  # shares of the side
    template = _mean_window(images, [expected] * len(images))
    for _ in range(2):
        found = pd.DataFrame([search(image, (1,), template) for image in images])
        places = found[["x", "y", "down"]].to_numpy() / np.array([[len(image)] for image in images])
        middle = np.median(places, axis=0)
        places[:, :2] += expected[:2] - middle[:2]
        places[:, 2] *= LINE / middle[2]
        kept = np.flatnonzero(found["score"] >= found["score"].quantile(0.2))
        template = _mean_window([images[k] for k in kept], places[kept])
    return template


def _mean_window(images, places):
    windows, half = [], np.array((HALF_WIDTH + MARGIN, HALF_HEIGHT + MARGIN))
    for image, (x, y, unit) in zip(images, places, strict=True):
        side = len(image)
        centre, reach = side * (np.array((x, y)) + 1), half * unit * side / UNIT  # + 1: padded by its side
        box = (*(centre - reach), *(centre + reach))
        window = normalised(resized(np.pad(image, side, mode="edge"), 2 * half, Resampling.BOX, box))
        windows.append(window[MARGIN:-MARGIN, MARGIN:-MARGIN])
    mean = np.mean(windows, axis=0).astype(np.float32)
    return (mean + mean[:, ::-1]) / 2  # as many left knees as right ones


if __name__ == "__main__":
    files = sorted(file for file in Path(sys.argv[1]).rglob("*") if is_picture(file))
    np.save(TEMPLATE.name, learn([read_gray(file) for file in files[:: len(files) // MOST + 1]]))
