"""What a grader is fed with: live pictures, or cached features of its frozen trunk."""

import numpy as np
import torch

from koa_lib.datasets import augment, to_tensor
from koa_lib.device import autocast, device_of


class Pictures:
    """Live pictures for a model whose whole image tower is trained."""

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
    """Cached trunk features (views, N, ...) of a cohort; view 0 is the unchanged picture, the others augmented."""

    def __init__(self, dataset, array):
        self.dataset, self.array, self.grades = dataset, array, dataset.grades

    def __len__(self):
        return len(self.dataset)

    def training_batch(self, positions, generator):
        """Features of a random view of each picture."""
        view = torch.randint(self.array.shape[0], (len(positions),), generator=generator).numpy()
        return torch.as_tensor(self.array[view, self.dataset.index[positions]].astype(np.float32))

    def batch(self, positions):
        """Features of the unchanged pictures."""
        return torch.as_tensor(self.array[0, self.dataset.index[positions]].astype(np.float32))


@torch.no_grad()
def extract(grader, dataset, recipe, seed, path):
    """Write trunk features (views, n, ...) as float16 .npy, streamed to disk in batches."""
    grader.eval()
    generator = torch.Generator().manual_seed(seed)
    out = None
    for view in range(recipe.views):
        for positions in np.array_split(np.arange(len(dataset)), max(1, len(dataset) // 64)):
            images = dataset.images(positions)
            images = images if view == 0 else augment(images, recipe.augmentation, generator)
            tensor = to_tensor(images, recipe.normalisation).contiguous(memory_format=torch.channels_last)
            with autocast(grader):
                features = grader.trunk(tensor.to(device_of(grader))).float().cpu().numpy()
            if out is None:
                shape = (recipe.views, len(dataset), *features.shape[1:])
                out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            out[view, positions] = features
    out.flush()
