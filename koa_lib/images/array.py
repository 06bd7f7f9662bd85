"""The pictures of a cohort as one array of squares, decoded once: `pixels.npy` (n, size, size) uint8 and
`owners.npy` (n,), whose file each is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from koa_lib.images.read import read_gray, to_uint8
from koa_lib.images.shape import adjust, squares


def write_squares(files, geometry, size, trained, folder):
    """Decode picture files into squares, see `shape.squares`; a file of two knees may give two."""

    def decode(file):
        return [to_uint8(square) for square in squares(read_gray(file), geometry, size, trained)]

    with ThreadPoolExecutor(2) as pool:
        decoded = list(pool.map(decode, files))
    owners = np.repeat(np.arange(len(files)), [len(found) for found in decoded])
    _keep(folder, owners, [square for found in decoded for square in found])


def write_adjusted(pixels, owners, intensity, reference, folder):
    """Change the gray values of squares (n, size, size) uint8, see `shape.adjust`."""
    _keep(folder, owners, [to_uint8(adjust(square / 255, intensity, reference)) for square in pixels])


def _keep(folder, owners, pixels):
    folder.mkdir()
    np.save(folder / "owners.npy", owners)
    np.save(folder / "pixels.npy", np.stack(pixels))
