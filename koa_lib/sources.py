"""What a grader is fed with: live pictures, or cached features of its frozen trunk."""

import os

import numpy as np
import torch

from koa_lib.datasets import augment, to_tensor
from koa_lib.device import autocast, device_of
from koa_lib.inference import quick

BATCH = 64  # pictures whose features are taken at once


class Pictures:
    """Live pictures for a model whose whole image tower is trained."""

    vectors = False

    def __init__(self, dataset, recipe):
        self.dataset, self.recipe, self.grades = dataset, recipe, dataset.grades

    def __len__(self):
        return len(self.dataset)

    def training_batch(self, positions, generator):
        """Augmented, normalised pictures (n, 3, H, W)."""
        return self._tensor(augment(self.dataset.images(positions), self.recipe.augmentation, generator))

    def batch(self, positions):
        """Unchanged, normalised pictures."""
        return self._tensor(self.dataset.images(positions))

    def _tensor(self, images):
        return to_tensor(images, self.recipe.normalisation).contiguous(memory_format=torch.channels_last)


class Features:
    """Cached trunk features (views, N, ...) of a cohort; view 0 is the unchanged picture, the others
    augmented."""

    def __init__(self, dataset, array):
        self.dataset, self.array, self.grades = dataset, array, dataset.grades
        self.vectors = array.ndim == 3  # one vector per picture: products too small for several threads

    def __len__(self):
        return len(self.dataset)

    def training_batch(self, positions, generator):
        """Features of a random view of each picture."""
        view = torch.randint(self.array.shape[0], (len(positions),), generator=generator).numpy()
        return torch.as_tensor(self.array[view, self.dataset.index[positions]].astype(np.float32))

    def batch(self, positions):
        """Features of the unchanged pictures."""
        return torch.as_tensor(self.array[0, self.dataset.index[positions]].astype(np.float32))

    def all(self):
        """Features of all unchanged pictures, float32 array (n, ...)."""
        return self.batch(np.arange(len(self))).numpy()


class Pairs:
    """Features of pictures and of their mirror images; with `either`, the first of a pair is drawn at each
    step.

    Parameters
    ----------
    pictures, mirrored : Features
        Of the same rows.
    either : bool
    """

    def __init__(self, pictures, mirrored, either):
        self.pictures, self.mirrored, self.either = pictures, mirrored, either
        self.dataset, self.grades, self.vectors = pictures.dataset, pictures.grades, pictures.vectors

    def __len__(self):
        return len(self.pictures)

    def training_batch(self, positions, generator):
        """Features of pairs (n, 2, ...)."""
        pairs = torch.stack([self.pictures.batch(positions), self.mirrored.batch(positions)], dim=1)
        if self.either:
            swap = torch.rand(len(pairs), generator=generator) < 0.5
            pairs[swap] = pairs[swap].flip(1)
        return pairs


@torch.no_grad()
def extract(path, build, dataset, recipe, seed):
    """Write features of a trunk (views, n, ...) as float16 .npy, streamed to disk in batches.

    Parameters
    ----------
    build : callable
        Makes the module that has `trunk`: normalised images (n, 3, H, W) to features.
    recipe
        With normalisation, augmentation and views.
    seed : int
        Of the augmentations.
    """
    grader = quick(build().eval(), "trunk", dataset.pixels.shape[-1], recipe.views * len(dataset))
    generator, out = torch.Generator().manual_seed(seed), None
    for view in range(recipe.views):
        for positions in np.array_split(np.arange(len(dataset)), max(1, len(dataset) // BATCH)):
            images = dataset.images(positions)
            images = images if view == 0 else augment(images, recipe.augmentation, generator)
            tensor = to_tensor(images, recipe.normalisation).contiguous(memory_format=torch.channels_last)
            with autocast(grader):
                features = grader.trunk(tensor.to(device_of(grader))).float().cpu().numpy()
            if out is None:
                out = np.lib.format.open_memmap(
                    path, "w+", np.float16, (recipe.views, len(dataset), *features.shape[1:])
                )
                _reserve(path)
            out[view, positions] = features
    out.flush()


def _reserve(path):
    # A full disk is told now: at a write into mapped memory it would kill the process without a word.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
