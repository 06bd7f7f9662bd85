"""The files of a cohort: one walk over folders, where its root is, and which file belongs to which row."""

import os
import sys
from collections import Counter
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.contrib.concurrent import thread_map

from koa_lib.data.manifest import natural, tail
from koa_lib.errors import StudyError, printable
from koa_lib.images.read import decoded_sha256, file_sha256, is_picture


def walk(folder, above=frozenset()):
    """Every file below a folder, in no order.

    Hidden files and folders ('.ipynb_checkpoints', and '._name' as macOS leaves beside each file) are left
    out, and so are folders that may not be read, which is told. Links are followed, but not back to a folder
    that they lie in (`above` holds the real paths of these); a link to nowhere counts as a file, a pipe does
    not.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with suppress(OSError), _scanned(folder) as inside:
        for path in (Path(entry.path) for entry in inside if entry.name[0] != "."):
            if os.path.isdir(path):
                yield from walk(path, above | {real})
            elif os.path.isfile(path) or not os.path.exists(path):
                yield path


def _scanned(folder):
    # What lies in it, one by one; nothing where it is absent or not ours to read.
    try:
        return os.scandir(folder)
    except PermissionError:
        _tell_once(f"koa: {printable(str(folder))} may not be read and is left out")
    return nullcontext(())


@cache
def _tell_once(sentence):
    # A cohort's folders are walked through more than once.
    print(sentence, file=sys.stderr)


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
    if not str(folder) or not Path(folder).is_dir():
        raise StudyError(f"The data folder '{folder}' is no folder. Give one that holds {expected}.")
    folder = Path(folder).resolve()
    votes = Counter(path.parents[2] for path in walk(folder) if is_picture(path) and known(tail(path)))
    if not votes:
        raise StudyError(f"{folder} holds none of {expected}. Give the folder that contains them.")
    root = min(votes, key=lambda root: (-_common_end(root, layouts), -votes[root], len(root.parts), root))
    below = {path.relative_to(root).as_posix(): path for path in walk(root)}
    return root, {name: below[name] for name in sorted(below, key=natural)}


def _common_end(root, layouts):
    # How many folders the root has in common with the end of a layout.
    ends = (PurePosixPath(layout).parts[::-1] for layout in layouts)
    return max((len(os.path.commonprefix([root.parts[::-1], end])) for end in ends), default=0)


def locate_listed(manifest, folder, layouts=()):
    """`locate` for the pictures of a manifest."""
    expected = f"the {len(manifest)} pictures of the manifest (first: {manifest['path'].iloc[0]})"
    return locate(folder, set(manifest["path"].map(tail)).__contains__, layouts, expected)


def place(name):
    """The path of a picture without its suffix: the same in every container."""
    return PurePosixPath(name).with_suffix("").as_posix()


def in_place(paths, names):
    """For each listed path the file that stands for it: this one, or else the picture of its name in another
    container.

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
    pictures = {place(name): name for name in reversed(names) if is_picture(name)}
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
        CSV with `file_sha256`, and `as_listed`: whether the bytes, or else the decoded pixels, are the
        manifest's.
    """
    columns = rows["file"], rows["sha256"], rows["pixel_sha256"]
    found = thread_map(_as_found, *columns, max_workers=2, disable=True)
    frame = pd.DataFrame(found, columns=["file_sha256", "as_listed"])
    frame.to_csv(path, index=False, lineterminator="\n")


def _as_found(file, listed, pixels):
    try:
        found = file_sha256(file)
        return found, found == listed or decoded_sha256(file) == pixels
    except StudyError:  # whoever reads the picture says what is wrong with it
        return found, False
