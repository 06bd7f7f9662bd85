"""The files of a cohort: one walk over folders, where its root is, and which file belongs to which row."""

import os
from collections import Counter
from itertools import takewhile
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from koa_lib.data.manifest import natural, tail
from koa_lib.errors import StudyError
from koa_lib.images.read import decoded_sha256, file_sha256, is_picture


def walk(folder):
    """Every file below a folder, in no order.

    Hidden files and folders ('.ipynb_checkpoints', and '._name' as macOS leaves beside each file) are left
    out. Links are followed, but not back to a folder that they lie in; a link to nowhere counts as a file,
    a pipe does not.
    """
    above = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        above[place] = above.get(os.path.dirname(place), frozenset()) | {os.path.realpath(place)}
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and os.path.realpath(os.path.join(place, name)) not in above[place]
        ]
        files = [Path(place, name) for name in names if name[0] != "."]
        yield from (file for file in files if os.path.isfile(file) or not os.path.exists(file))


def attempt_all(function, files, label):
    """The result of a function for each file, or the StudyError that it raised; a bar shows on terminals."""

    def attempt(file):
        try:
            return function(file)
        except StudyError as error:
            return error

    return thread_map(attempt, files, max_workers=2, desc=label, unit="file", disable=None, tqdm_class=tqdm)


def locate(folder, known, layouts, expected):
    """Find the root of a cohort at, above or below a folder.

    Parameters
    ----------
    folder : Path
    known : callable
        Whether the last three parts of a path, without suffix, belong to the cohort.
    layouts : iterable of str
        Folders that lead to the root in published archives; a root that ends like one is preferred, because
        an archive may hold the same names in another size.
    expected : str
        What should be there, for the error.

    Returns
    -------
    root : Path
    files : dict of str to Path
        Every file below the root by its path from there, in natural order.

    Raises
    ------
    StudyError
        The folder is missing or holds no known picture.
    """
    if not str(folder):
        raise StudyError(f"No data folder is given. Give the one that holds {expected}.")
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise StudyError(f"The data folder {folder} {state}. Give an existing folder that holds {expected}.")
    files = list(walk(folder.resolve()))
    votes = Counter(path.parents[2] for path in files if is_picture(path) and known(tail(path.as_posix())))
    if not votes:
        raise StudyError(
            f"{folder} holds none of {expected} in folders of these names. "
            "Point to the folder that contains them."
        )
    root = min(
        votes, key=lambda root: (-_common_end(root, layouts), -votes[root], len(root.parts), root.as_posix())
    )
    files = files if root.is_relative_to(folder.resolve()) else walk(root)
    below = {path.relative_to(root).as_posix(): path for path in files if path.is_relative_to(root)}
    return root, {name: below[name] for name in sorted(below, key=natural)}


def _common_end(root, layouts):
    # How many folders the root has in common with the end of a layout.
    pairs = (
        zip(reversed(root.parts), reversed(PurePosixPath(layout).parts), strict=False) for layout in layouts
    )
    return max((len(list(takewhile(lambda pair: pair[0] == pair[1], pair))) for pair in pairs), default=0)


def locate_listed(manifest, folder, layouts=()):
    """`locate` for the pictures of a manifest."""
    first = manifest["path"].iloc[0]
    keys = set(manifest["path"].map(tail))
    return locate(
        folder, keys.__contains__, layouts, f"the {len(manifest)} pictures of the manifest (first: {first})"
    )


def in_place(paths, names):
    """For each listed path the file that stands for it: this one, or else the picture of its name in
    another container.

    Parameters
    ----------
    paths : sequence of str
        Listed paths.
    names : collection of str
        Paths of files below the root.

    Returns
    -------
    list of str, None where no file is in place
    """
    pictures = {
        PurePosixPath(name).with_suffix("").as_posix(): name for name in reversed(names) if is_picture(name)
    }
    return [path if path in names else pictures.get(tail(path)) for path in paths]


def find_pictures(manifest, folder, layouts=()):
    """Each row's file below `folder`, as `in_place` finds it; its hash tells whether it is as listed.

    Returns
    -------
    DataFrame
        The rows found, with `file` (Path).

    Raises
    ------
    StudyError
        When the folder is missing or holds none of the pictures.
    """
    _, files = locate_listed(manifest, folder, layouts)
    rows = manifest.assign(file=[files.get(name) for name in in_place(manifest["path"], files)])
    return rows[rows["file"].notna()].reset_index(drop=True)


def write_as_found(rows, path):
    """Write what the files of listed pictures are.

    Parameters
    ----------
    rows : DataFrame
        file, sha256, pixel_sha256.
    path : Path
        CSV with `file_sha256`, and `as_listed`: whether the bytes, or else the decoded pixels, are the manifest's.
    """
    found = thread_map(_as_found, rows["file"], rows["sha256"], rows["pixel_sha256"], max_workers=2, disable=True)
    frame = pd.DataFrame(found, columns=["file_sha256", "as_listed"])
    frame.to_csv(path, index=False, lineterminator="\n")


def _as_found(file, listed, pixels):
    try:
        found = file_sha256(file)
        return found, found == listed or decoded_sha256(file) == pixels
    except StudyError:  # whoever reads the picture says what is wrong with it
        return found, False
