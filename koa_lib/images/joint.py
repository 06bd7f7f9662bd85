"""Where the joint is: template matching without a trained network, and the crop with OAI's field of view.

The template is the locally normalised mean of OAI training pictures around the joint (`learn_joint`), so
nothing of an external cohort enters it. Width and height are matched apart, because some sets stretch their
pictures.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

UNIT = 12  # pixels of the template in half a joint line's width
SMOOTH = 4.7  # pixels: what is coarser is field and exposure, not bone
HALF_HEIGHT, HALF_WIDTH = 10, 13  # pixels of the template around the joint's centre
# An OAI crop as shares of its side: half the width of the joint line and of the bones there, and the line's
# centre.
LINE, PLATEAU, CENTRE = 0.375, 0.42, (0.5, 0.57)
# Rows above and below the joint line, in plateau heights, where bone ends sideways.
BANDS = ((-0.5, -0.15), (0.05, 0.35))
# Loss of correlation where the joint lies a quarter of the picture off its middle, is stretched by 1.65 (e to
# the 0.5) or is that much larger or smaller than in an OAI crop: ties go to what is usual.
PRIOR = 0.05
ASPECTS = (0.9, 1.3, 1.9)
# Half the plateau's width, measured down, as shares of the picture's height.
HEIGHTS = np.geomspace(0.22, 0.66, 7)
SMALLEST = 16  # pixels; a smaller picture is taken whole
NARROWEST = 0.8  # of the joint line's width: bones are not narrower than their joint
EDGE = 8  # rows or columns whose mean goes on beyond the picture
TEMPLATE = Path(__file__).with_name("joint_template.npy")


@dataclass(frozen=True)
class Joint:
    """A joint's place in pixels.

    Attributes
    ----------
    x, y : float
        Middle of the joint line.
    across : float
        Half the width of the bones at the joint.
    down : float
        Half the joint line's width on the vertical scale, which differs where a picture is stretched.
    score : float
        Correlation with the template, less what `PRIOR` takes for an unusual place or size; at most 1.
    """

    x: float
    y: float
    across: float
    down: float
    score: float


def find(image):
    """Find the knee joint of a picture of one knee.

    Parameters
    ----------
    image : float array (H, W) in [0, 1]

    Returns
    -------
    Joint
        The best place even when there is no knee; a `score` below 0.3 is a guess, -1 a picture too small to
        search.
    """
    height, width = image.shape
    if min(height, width) < SMALLEST:
        return Joint(CENTRE[0] * width, CENTRE[1] * height, PLATEAU * width, LINE * height, -1.0)
    best = search(image, ASPECTS, np.load(TEMPLATE))
    left, right = _bone_edges(image, best)
    # Edges are less sure than the template about the middle, and wrong where they nearly meet.
    return replace(best, across=max((right - left) / 2, NARROWEST * best.across))


def search(image, aspects, template):
    """The best `Joint` over all places, `HEIGHTS` and these aspects (width over height), refined twice."""
    middle, joints, step = _limb_middle(image), [], (HEIGHTS[1] / HEIGHTS[0]) ** 0.4
    stretches = (0.9, 1, 1.1) if len(aspects) > 1 else (1,)
    tries = [(share * len(image), aspect) for share in HEIGHTS for aspect in aspects]
    for _ in range(3):
        joints += [_match(image, down, aspect, middle, template) for down, aspect in tries]
        best = max(joints, key=lambda joint: joint.score)
        aspect = best.across / best.down
        scales = (1 / step, 1, step)
        tries = [(best.down * scale, aspect * stretch) for scale in scales for stretch in stretches]
        step **= 0.5
    return best


def _bone_edges(image, joint):
    # Where brightness falls most outwards, a little more or less than a joint line away; above and below the
    # line the nearer fall counts, because the other may be the skin.
    x, edges = np.arange(image.shape[1]), []
    for top, bottom in BANDS:
        rows = joint.y + np.array((top, bottom)) * joint.down
        first, last = np.clip(rows, 0, len(image) - 1).astype(int)
        profile = gaussian_filter1d(np.median(image[first : last + 1], axis=0), 1 + joint.across / 20)
        for side in (-1, 1):
            distance = np.clip(side * (x - joint.x) / joint.across, 1e-3, None)
            expected = np.exp(-0.5 * (np.log(distance / 1.15) / 0.4) ** 2) * (distance > 0.55)
            edges.append(x[np.argmax(-side * np.gradient(profile) * expected)])
    return max(edges[0], edges[2]), min(edges[1], edges[3])


def _match(image, down, aspect, middle, template):
    from skimage.feature import match_template  # slow to import, and rarely needed

    # Scales the picture so that a plateau of this size has the template's, and looks for the template
    # everywhere.
    height, width = image.shape
    across = down * aspect
    size = max(8, round(width * (UNIT / across))), max(8, round(height * (UNIT / down)))
    small = normalised(resized(image, size, Image.Resampling.BOX))
    pad_y, pad_x = HALF_HEIGHT // 2, HALF_WIDTH // 2
    padded = np.pad(small, ((pad_y, pad_y), (pad_x, pad_x)))
    if np.less(padded.shape, template.shape).any():
        return Joint(width / 2, height / 2, across, down, -1.0)
    score = match_template(padded, template)
    y = (np.arange(len(score)) - pad_y + HALF_HEIGHT + 0.5) * down / UNIT
    x = (np.arange(score.shape[1]) - pad_x + HALF_WIDTH + 0.5) * across / UNIT
    unusual = (2 * np.log(aspect)) ** 2 + (2 * np.log(down / (LINE * height))) ** 2
    score = score - PRIOR * ((4 * (y / height - 0.5)) ** 2)[:, None]
    score = score - PRIOR * (4 * (x - middle) / width) ** 2 - PRIOR * unusual
    row, column = np.unravel_index(score.argmax(), score.shape)
    return Joint(float(x[column]), float(y[row]), across, down, float(score[row, column]))


def normalised(image):
    """Local contrast: what differs from its surroundings, in units of what usually differs there."""
    difference = image - gaussian_filter(image, SMOOTH)
    return difference / np.sqrt(gaussian_filter(difference**2, SMOOTH) + 1e-4)


def resized(image, size, how, box=None):
    """A picture, or the box (left, top, right, bottom) of it, as float32 in another size (width, height)."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, how, box))


def _limb_middle(image):
    # Bone and flesh are brighter than air: the mean column, weighted by the square of its brightness.
    column = image.mean(axis=0)
    weight = np.clip(column - np.quantile(column, 0.1), 0, None) ** 2 + 1e-9
    return float((weight * np.arange(len(column))).sum() / weight.sum())


def crop(image, size, joint=None):
    """Cut the field of view of an OAI crop around the joint and scale it to a square.

    Parameters
    ----------
    image : float array (H, W) in [0, 1]
    size : int
        Side of the result in pixels.
    joint : Joint, optional
        By default found in the picture.

    Returns
    -------
    float32 array (size, size) in [0, 1]
        Beyond the picture's edge the mean of its last rows or columns is repeated, because bones go on there.
    """
    joint = joint or find(image)
    side_x, side_y = joint.across / PLATEAU, joint.down / LINE
    left, top = joint.x - CENTRE[0] * side_x, joint.y - CENTRE[1] * side_y
    box = np.array((left, top, left + side_x, top + side_y))
    beyond = max(0, -left, -top, *(box[2:] - image.shape[::-1]))
    pad = int(np.ceil(beyond)) + 1
    padded = np.pad(image.astype(np.float32), pad, mode="mean", stat_length=EDGE)
    return np.clip(resized(padded, (size, size), Image.Resampling.BILINEAR, tuple(box + pad)), 0, 1)
