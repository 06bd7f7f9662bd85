"""Which picture files are meant: files, folders and lists as a command names them, and the names to show."""

import os
from pathlib import Path

from koa_lib.data.manifest import natural
from koa_lib.errors import StudyError
from koa_lib.images.read import is_picture


def listing(given, stdin=()):
    """The picture files that are meant: files as they are, folders with all below them, lists line by line.

    Parameters
    ----------
    given : sequence of str
        Paths; a file with the suffix .txt is a list of paths, one per line, and '-' stands for such a list on stdin.
    stdin : iterable of str
        Lines of the standard input.

    Returns
    -------
    list of Path
        In the order given, folders sorted; a folder without a picture stays as itself, so that its row tells.

    Raises
    ------
    StudyError
        For an empty name.
    """
    paths = []
    for name in given:
        if not name.strip():
            raise StudyError("An empty name was given. Give picture files, folders or lists of them; '.' is the current folder.")
        if name == "-":
            paths += _listed(stdin, Path())
        elif Path(name).suffix.lower() == ".txt" and os.path.isfile(name):
            paths += _listed(Path(name).read_text(encoding="utf-8", errors="surrogateescape").splitlines(), Path(name).parent)
        else:
            paths += _expanded(Path(name))
    return paths


def _listed(lines, base):
    # Paths of a list hold where the command runs, or else beside the list.
    found = []
    for line in filter(None, (line.strip() for line in lines)):
        path = Path(line)
        found += _expanded(base / path if not os.path.exists(path) and os.path.exists(base / path) else path)
    return found


def _expanded(path):
    if not os.path.isdir(path):
        return [path]
    below = [Path(folder) / name for folder, _, names in os.walk(path) for name in names if not name.startswith(".")]
    found = [file for file in below if is_picture(file) or _is_dicom(file)]
    return sorted(found, key=lambda file: natural(file.as_posix())) or [path]


def _is_dicom(path):
    # Scanners write DICOM under names without a suffix. Opening a pipe would wait for ever.
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def short_names(paths):
    """Names to show: the file's name, with its folder where another file has the same."""
    names = [path.name for path in paths]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [f"{path.parent.name}/{path.name}" if path.name in twice and path.parent.name else path.name for path in paths]
