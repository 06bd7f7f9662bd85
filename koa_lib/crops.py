"""The crops of a picture that self-supervised learning compares."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from koa_lib.datasets import to_tensor

STATISTICS = "imagenet"  # mean and standard deviation, as OrthoFoundation has them
GLOBAL, LOCAL = (0.4, 1.0), (0.05, 0.4)  # areas of the crops, as shares of the picture
# (probability, strength) of brightness and contrast; probability on the second large crop
JITTER, SOLARISE = (0.8, 0.4), 0.2
BLUR = (1.0, 0.1, 0.5)  # probability on the first large, the second large and the small crops


def views(images, chosen, generator):
    """The crops of a batch of gray pictures: two large and `chosen.local_crops` small ones.

    DINO's changes as far as they exist for gray pictures: crop, mirror, brightness and contrast, blur,
    solarise. The radius of the blur is for 224 pixels and shrinks with the crop. All pictures of a batch are
    changed at once.

    Parameters
    ----------
    images : uint8 array (n, H, W)
    generator : torch.Generator

    Returns
    -------
    list of float tensors (n, 3, h, h), normalised
    """
    pictures = torch.as_tensor(np.asarray(images))[:, None].float() / 255
    plan = [
        (chosen.crop, GLOBAL, BLUR[0], 0.0),
        (chosen.crop, GLOBAL, BLUR[1], SOLARISE),
        *[(chosen.local_crop, LOCAL, BLUR[2], 0.0)] * chosen.local_crops,
    ]
    return [to_tensor(_view(pictures, *one, generator)[:, 0], STATISTICS) for one in plan]


def _view(pictures, size, scale, blur, solarise, generator):
    def draw(low=0.0, high=1.0):
        return torch.rand(len(pictures), 1, 1, 1, generator=generator) * (high - low) + low

    crops = _crop(pictures, size, scale, draw)
    chance, strength = JITTER
    contrast, brightness, kept = (
        draw(1 - strength, 1 + strength),
        draw(1 - strength, 1 + strength),
        draw() >= chance,
    )
    mean = crops.mean((2, 3), keepdim=True)
    crops = torch.where(kept, crops, ((crops - mean) * contrast + mean) * brightness).clamp(0, 1)
    crops = torch.where(draw() < blur, _blurred(crops, draw(0.1, 2.0)[:, 0, 0, 0] * size / 224), crops)
    return torch.where((draw() < solarise) & (crops > 0.5), 1 - crops, crops)


def _crop(pictures, size, scale, draw):
    # A box of random area, aspect (3/4 to 4/3) and place inside the picture, mirrored half of the time.
    area, aspect = draw(*scale), torch.exp(draw(-1, 1) * math.log(4 / 3) / 2)
    width, height = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    across, down = draw(-1, 1) * (1 - width), draw(-1, 1) * (1 - height)
    width = torch.where(draw() < 0.5, -width, width)
    zero = torch.zeros_like(width)
    matrix = torch.cat([torch.cat([width, zero, across], 3), torch.cat([zero, height, down], 3)], 2)[:, 0]
    grid = F.affine_grid(matrix, (len(pictures), 1, size, size), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(
        0, 1
    )


def _blurred(crops, sigmas):
    # Each crop has its own Gaussian, as two one-dimensional passes over the crops as channels.
    reach = max(1, math.ceil(2 * float(sigmas.max())))
    kernels = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigmas[:, None].clamp(min=0.05)) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True))[:, None]
    stacked = F.pad(crops.transpose(0, 1), (reach,) * 4, mode="replicate")
    stacked = F.conv2d(
        F.conv2d(stacked, kernels[..., None, :], groups=len(crops)), kernels[..., None], groups=len(crops)
    )
    return stacked.transpose(0, 1)
