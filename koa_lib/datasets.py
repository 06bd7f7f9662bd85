"""From manifest rows to tensors: pictures with a role, normalisation and augmentation."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.store import digest

# mean and standard deviation per channel: ImageNet as the paper prints, CLIP as its weights expect
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class KneeDataset:
    """Pictures ready for a model, and what they may be used for.

    Attributes
    ----------
    rows : DataFrame
        Manifest rows, index 0..n-1.
    pixels : uint8 array (N, size, size)
        The decoded pictures of the whole cohort, usually memory-mapped.
    index : int array (n,)
        Where each row's picture lies in `pixels`.
    role : str
        'any' before splitting, then 'fit', 'select' or 'report': `training.fit` refuses other roles.
    mirrored : bool
        Whether pictures are shown with left and right exchanged.
    origin : str
        Digest of what `pixels` were made from.
    name : str
        '<cohort>__<geometry>-<intensity>', for files.

    Examples
    --------
    >>> rows = pd.DataFrame({"image_id": ["a", "b"], "kl_grade": [0, 4], "group_id": ["p", "q"]})
    >>> data = KneeDataset(rows, np.zeros((2, 112, 112), np.uint8), np.arange(2), role="fit")
    >>> data
    KneeDataset (fit): 2 pictures of 2 groups, per KL grade {0: 1, 4: 1}
    >>> to_tensor(data.images([1]), "clip").shape
    torch.Size([1, 3, 112, 112])
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    index: np.ndarray
    role: str = "any"
    mirrored: bool = False
    origin: str = ""
    name: str = ""

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        counts = self.rows["kl_grade"].value_counts().sort_index().to_dict()
        return (
            f"KneeDataset ({self.role}): {len(self)} pictures of {self.rows['group_id'].nunique()} groups, "
            f"per KL grade {counts}"
        )

    @property
    def grades(self):
        """Reference grades, int array (n,)."""
        return self.rows["kl_grade"].to_numpy()

    @cached_property
    def appearance(self):
        """Digest of the pictures and of how they are shown, without any label: for keys of what reads no
        label."""
        return digest([self.origin, digest(self.index.tobytes()), self.mirrored])

    @cached_property
    def fingerprint(self):
        """Digest of the pictures with their grades, groups and splits: for keys of what is fitted, chosen or
        reported on them."""
        return digest(
            [
                self.appearance,
                self.rows[["image_id", "kl_grade", "group_id", "split"]].astype(str).to_numpy().tolist(),
            ]
        )

    @property
    def whole(self):
        """All pictures of `pixels`, without any label, shown in the same way."""
        number = len(self.pixels)
        return replace(self, rows=pd.DataFrame(index=range(number)), index=np.arange(number), role="any")

    def images(self, positions):
        """Pictures at some positions, uint8 (k, size, size)."""
        images = np.asarray(self.pixels[self.index[positions]])
        return images[..., ::-1].copy() if self.mirrored else images

    def part(self, positions, role):
        """The rows at some positions, for one role."""
        return replace(
            self,
            rows=self.rows.iloc[positions].reset_index(drop=True),
            index=self.index[positions],
            role=role,
        )


def to_tensor(images, statistics):
    """uint8 or float gray images (n, H, W) as a normalised float tensor (n, 3, H, W).

    Raises
    ------
    StudyError
        When values are outside [0, 1] after scaling: a wrong intensity range gives silently wrong grades.
    """
    import torch

    values = torch.as_tensor(np.asarray(images))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):  # so that NaN is refused, too
        raise StudyError(
            f"Pictures hold values from {values.min():.2f} to {values.max():.2f}; the model needs [0, 1]. "
            "Read them with images.read_gray."
        )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in STATISTICS[statistics])
    return (values[:, None] - mean) / std


def augment(images, kind, generator):
    """Randomly changed copies of gray images (n, H, W), float in [0, 1].

    `as_printed`: horizontal flip with p = 0.5 and rotation within 10 degrees (section 3.5). `strong` (our
    protocol without pre-trained weights): also scale 10 %, shift 8 % of the side, gamma, contrast,
    brightness.
    """
    import torch
    import torch.nn.functional as F

    images = torch.as_tensor(np.asarray(images))[:, None]
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    n, size = len(images), images.shape[-1]

    def uniform(low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, flip = uniform(-1, 1) * (np.pi / 18), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    scale, shift_x, shift_y = (
        (uniform(0.9, 1.1), uniform(-0.16, 0.16), uniform(-0.16, 0.16))
        if kind == "strong"
        else (torch.ones(n), torch.zeros(n), torch.zeros(n))
    )
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [torch.stack([cos * flip, -sin, shift_x], 1), torch.stack([sin * flip, cos, shift_y], 1)], 1
    )
    grid = F.affine_grid(matrix, (n, 1, size, size), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if kind == "strong":
        gamma, contrast, brightness = (
            uniform(*limits).view(n, 1, 1, 1) for limits in ((-0.3, 0.3), (0.75, 1.25), (-0.1, 0.1))
        )
        images = images.clamp(1e-4, 1) ** torch.exp(gamma)
        mean = images.mean((2, 3), keepdim=True)
        images = (images - mean) * contrast + mean + brightness
    return images.clamp(0, 1)[:, 0]
