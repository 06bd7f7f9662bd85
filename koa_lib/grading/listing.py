"""Which picture files are meant: files, folders and lists as a command names them, and the names to show."""

import codecs
import os
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

from koa_lib.data.files import walk
from koa_lib.data.manifest import natural
from koa_lib.errors import StudyError
from koa_lib.images.read import is_picture, kind_of


def listing(given, stdin=None):
    """The picture files that are meant: files as they are, folders with all below them, lists line by line.

    Parameters
    ----------
    given : sequence of str
        Paths; a file with the suffix .txt is a list of paths, one per line, and '-' stands for such a list on
        stdin. A list may be UTF-8 or, with its mark, UTF-16, and have its paths in quotes.
    stdin : text file, optional
        The standard input, of which the bytes are read.

    Returns
    -------
    list of Path
        In the order given, folders sorted; a folder without a picture stays as itself, so that its row tells.

    Raises
    ------
    StudyError
        For an empty name.
    """
    return list(stream(given, stdin, partial(sorted, key=lambda file: natural(file.as_posix()))))


def stream(given, stdin=None, order=iter):
    """The same as an iterator that holds one at a time; folders as the file system has them, or in an
    `order`."""
    if not all(name.strip() for name in given):
        raise StudyError("An empty name was given. Give picture files, folders or lists of them.")
    for name in given:
        if name == "-":
            if stdin is None:
                raise StudyError("The list on stdin is closed. Give one, or the pictures themselves.")
            yield from _listed(stdin.buffer, Path(), order)
        elif Path(name).suffix.lower() == ".txt" and os.path.isfile(name):
            with open(name, "rb") as file:
                yield from _listed(file, Path(name).parent, order)
        else:
            yield from _expanded(Path(name), order)


def _listed(file, base, order):
    for name in _names(file):  # a path where the command runs, or else beside the list
        beside = not os.path.exists(name) and os.path.exists(base / name)
        yield from _expanded(base / name if beside else Path(name), order)


def _names(file):
    first = file.readline()
    lines = chain([first.removeprefix(codecs.BOM_UTF8)], file)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
        lines = [(first + file.read()).decode("utf-16", errors="replace").encode()]
    for line in chain.from_iterable(map(bytes.splitlines, lines)):
        name = os.fsdecode(line.strip())  # bytes as the system has them: a name need not be text
        if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
            name = name[1:-1]
        if name:
            yield name


def _expanded(path, order):
    found = (file for file in walk(path) if is_picture(file) or _is_dicom(file))
    files = iter(order(found) if os.path.isdir(path) else ())
    yield next(files, path)  # a folder without pictures is named itself
    yield from files


def _is_dicom(path):
    with suppress(StudyError):  # scanners write DICOM under names without a suffix
        return kind_of(path) == "DICOM"


def short_names(paths):
    """Names to show: the file's name, with its folder where another file has the same."""
    counts = Counter(path.name for path in paths)
    return [f"{path.parent.name}/{path.name}" if counts[path.name] > 1 else path.name for path in paths]
