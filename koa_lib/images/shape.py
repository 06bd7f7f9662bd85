"""Making pictures of different origin look alike: named choices of geometry and of intensity.

`stretch` and `none` are what the paper prints. `joint_crop` and `match_train` were suggested by an earlier
look at external labels, so results with them are headed *exploratory*; their parameters come from OAI
pictures alone.
"""

import numpy as np
from PIL.Image import Resampling

from koa_lib.errors import StudyError
from koa_lib.images import joint

GEOMETRIES = ("stretch", "pad", "center_crop", "joint_crop", "split")
INTENSITIES = ("none", "clahe", "match_train")
EXPLORATORY = frozenset(("joint_crop", "match_train"))
# What the external cohort is shown in, beside the way a model was trained: one factor at a time, and the two
# exploratory ones together.
VIEWS = (("stretch", "none"), ("pad", "none"), ("center_crop", "none"), ("split", "none"),
         ("stretch", "clahe"), ("stretch", "match_train"),
         ("joint_crop", "none"), ("joint_crop", "match_train"))
# Width over height from which a picture shows both knees (Gornale: 640 x 161 against 300 x 162).
TWO_KNEES = 3.0
# Share of the shorter side that `center_crop` keeps: OAI crops carry the joint line in their middle (our
# reading).
CENTRAL_SHARE = 0.82
FILE_SIDE = 224  # pixels of an OAI crop
LEVELS = 256


def squares(image, geometry, size, trained="stretch"):
    """Fit a gray picture into squares: one, or one per knee where the geometry parts two-knee pictures.

    Parameters
    ----------
    image : float array (H, W) in [0, 1]
    geometry : {'stretch', 'pad', 'center_crop', 'joint_crop', 'split'}
        `stretch` ignores the aspect ratio (as printed); `pad` fills to a square with the border's median;
        `center_crop` keeps the central square; `joint_crop` finds the joint and cuts OAI's field of view;
        `split` stretches the halves of a picture of two knees apart. `joint_crop` parts such pictures, too.
    size : int
        Side in pixels.
    trained : str
        Geometry of the training pictures: what `joint_crop` cuts looks like an OAI file, and is fitted like
        one.

    Returns
    -------
    list of float32 arrays (size, size) in [0, 1]

    Raises
    ------
    StudyError
        Another name of a geometry.
    """
    _check("geometry", geometry, GEOMETRIES)
    if geometry == "joint_crop":
        files = [joint.crop(half, FILE_SIDE) for half in halves(image)]
        return [square for file in files for square in squares(file, trained, size)]
    if geometry == "pad":
        image = _pad(image)
    if geometry == "center_crop":
        image = _central(image)
    parts = halves(image) if geometry == "split" else [image]
    return [np.clip(joint.resized(part, (size, size), Resampling.BILINEAR), 0, 1) for part in parts]


def halves(image):
    """The left and the right half of a picture of two knees, else the picture itself."""
    height, width = image.shape
    return [image] if width / height < TWO_KNEES else [image[:, : width // 2], image[:, (width + 1) // 2 :]]


def _pad(image):
    border = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
    missing = max(image.shape) - np.array(image.shape)
    around = np.stack([missing // 2, missing - missing // 2], axis=1)
    return np.pad(image, around, constant_values=border)


def _central(image):
    side = round(min(image.shape) * CENTRAL_SHARE)
    top, left = (np.array(image.shape) - side) // 2
    return image[top : top + side, left : left + side]


def adjust(square, intensity, reference=None):
    """Change the gray values of a square picture.

    Parameters
    ----------
    square : float array (size, size) in [0, 1]
    intensity : {'none', 'clahe', 'match_train'}
        `clahe`: contrast-limited adaptive histogram equalisation of scikit-image with its defaults (our
        reading); `match_train`: the gray values get the distribution `reference`, their order is kept.
    reference : float array (256,), optional
        Cumulative histogram of the training cohort, from `mean_histogram`; needed by `match_train`.

    Returns
    -------
    float array (size, size) in [0, 1]
    """
    _check("intensity", intensity, INTENSITIES)
    if intensity == "clahe":
        from skimage.exposure import equalize_adapthist

        return equalize_adapthist(square)
    if intensity == "match_train":
        values, place, counts = np.unique(square, return_inverse=True, return_counts=True)
        share_below = (np.cumsum(counts) - counts / 2) / square.size
        wanted = np.interp(share_below, reference, (np.arange(LEVELS) + 1) / LEVELS)
        return wanted[place].reshape(square.shape)
    return square


def _check(kind, name, known):
    if name not in known:
        raise StudyError(f"The {kind} '{name}' is unknown. Choose one of: {', '.join(known)}.")


def mean_histogram(pictures):
    """Cumulative mean histogram of pictures, each with the same weight; it needs no label.

    Parameters
    ----------
    pictures : iterable of float arrays in [0, 1]

    Returns
    -------
    float array (256,), increasing to 1
    """
    shares = [np.histogram(picture, LEVELS, (0, 1))[0] / picture.size for picture in pictures]
    return np.cumsum(np.mean(shares, axis=0))


def views(image, size, reference, trained):
    """One picture in every named way, for a contact sheet: name to array; of two knees the left one is
    shown.

    Parameters
    ----------
    image : float array (H, W) in [0, 1]
    size : int
        Side of the squares in pixels.
    reference : float array (256,)
        As for `adjust`.
    trained : str
        As for `squares`.
    """
    ways = {name: squares(image, name, size, trained)[0] for name in GEOMETRIES}
    for name in ("clahe", "match_train"):
        ways[f"joint_crop,\n{name}"] = adjust(ways["joint_crop"], name, reference)
    return {"file": image} | ways
