"""Is a picture like those that a grader was trained on, and is it a knee radiograph at all? No label is read.

*Unlike the training pictures*: Mahalanobis distance (Lee 2018, arXiv:1807.03888; covariance by Ledoit and
Wolf) of what enters the tower's last blocks, averaged over the picture, and of simple statistics of the
picture. The threshold is a conformal quantile of pictures that were not fitted on: `RATE` of new pictures of
the same origin exceed it.

*Probably no knee radiograph*: unlike, and the joint template of `joint` (learnt from OAI) fits nowhere,
bright bone or dark.

Measured with the weights of `demo` (690 phantoms): unlike / no knee in % are 4 / 0 of the test split, 100 / 0
of cohort B, 100 / 1 of OAI radiographs, 100 / 87 of photographs, 98 / 88 of faces, 100 / 95 of noise, 100 /
100 of text, flat pictures, drawn hands and hips. Where it fails: a slight blur, noise or another brightness
is seen in 10 to 30 %, an upturned knee in 42 %. With a network trained on OAI 4 % of its unseen pictures are
unlike, but 5 of the 14 with KL 4: what is rare in training is warned about most. `tests/test_novelty.py`
measures again.
"""

from dataclasses import dataclass

import numpy as np
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter

from koa_lib.errors import StudyError
from koa_lib.images import joint
from koa_lib.images.shape import halves

ARRAYS = ("mean", "deviation", "precision")
RATE = 0.02
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
SCALES = (0, 1, 2, 4)  # pixels: how sharp a picture is at each
JOINT_SIDE = 128  # pixels of the longer side in which the joint is looked for
# of the template: of OAI training pictures of KL 3 1 % score less, but of KL 4, without a joint space, 10 %
FITS = 0.42


@dataclass(frozen=True)
class Novelty:
    """The training pictures' distribution: mean and deviation (d,), inverse covariance (d, d) and the
    threshold."""

    mean: np.ndarray
    deviation: np.ndarray
    precision: np.ndarray
    threshold: float

    def score(self, traits):
        """Distance of traits (n, d) as a multiple of the threshold, float array (n,): above 1 is unlike the
        training pictures."""
        centred = (traits - self.mean) / self.deviation
        squared = np.einsum("nd,de,ne->n", centred, self.precision, centred)
        return np.sqrt(squared.clip(min=0)) / self.threshold


def fit(traits, unseen, rate=RATE):
    """Learn what training pictures look like.

    Parameters
    ----------
    traits : float array (n, d)
        Of pictures that the grader was fitted on.
    unseen : float array (m, d)
        Of pictures of the same origin that it was not fitted on; they set the threshold.
    rate : float
        Share of new pictures of that origin allowed to exceed it; with fewer than ``1 / rate`` unseen
        pictures it is 1 / (m + 1).

    Raises
    ------
    StudyError
        With fewer than two training pictures or none that is unseen.
    """
    from sklearn.covariance import LedoitWolf  # slow to import, and not needed to grade

    if len(traits) < 2 or not len(unseen):
        raise StudyError(
            f"{len(traits)} training and {len(unseen)} unseen pictures are too few to learn "
            "what is usual. Use a larger cohort."
        )
    mean, deviation = traits.mean(0), traits.std(0) + 1e-6
    precision = LedoitWolf().fit((traits - mean) / deviation).precision_
    distances = np.sort(Novelty(mean, deviation, precision, 1.0).score(unseen))
    place = min(int(np.ceil((len(unseen) + 1) * (1 - rate))), len(unseen))
    return Novelty(mean, deviation, precision, float(distances[place - 1]))


def traits(entered, squares):
    """What is compared: what enters a tower's block, of tokens (n, tokens, c) or positions (n, c, h, w),
    averaged over the picture, beside the `statistics` of the squares; float array (n, c + 14)."""
    averaged = entered.mean(axis=1 if entered.ndim == 3 else (2, 3))
    return np.hstack([averaged, [statistics(square) for square in squares]])


def statistics(square):
    """Gray quantiles, sharpness at four scales, likeness to the mirrored and the upturned picture, and
    direction of the edges.

    Parameters
    ----------
    square : uint8 array (size, size)

    Returns
    -------
    list of 14 floats
    """
    gray = square / 255
    smooth = [np.gradient(gaussian_filter(gray, scale)) for scale in SCALES]
    sharpness = [np.log(np.hypot(*slopes).mean() + 1e-5) for slopes in smooth]
    down, across = (np.log((slope**2).mean() + 1e-6) for slope in np.gradient(gray))
    turns = [_likeness(gray, gray[:, ::-1]), _likeness(gray, gray[::-1])]
    return [*np.quantile(gray, QUANTILES), *sharpness, *turns, down - across]


def _likeness(one, other):
    # A flat picture is like any of its turns.
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() > 1e-6 else 1.0


def is_knee(image):
    """Whether a gray picture (H, W) in [0, 1] shows a knee upright, as far as the joint template can tell: it
    fits in one of two knees, in either polarity, by at least `FITS`."""
    shown = (view for half in halves(small(image)) for view in (half, 1 - half))
    return any(joint.find(view).score >= FITS for view in shown)  # lazily: a search takes a tenth of a second


def small(image):
    """A gray picture (H, W) reduced to what `is_knee` looks at: at most `JOINT_SIDE` pixels a side."""
    shrink = min(1, JOINT_SIDE / max(image.shape))
    height, width = (max(1, round(side * shrink)) for side in image.shape)
    return joint.resized(image, (width, height), Resampling.BOX)
