"""One published zip, unpacked so that no member can do harm.

A published archive is somebody else's file: every member is judged before it is written, and the folder gets
its own name only when it is complete.
"""

import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from tqdm import tqdm

from koa_lib.errors import StudyError
from koa_lib.images.read import is_picture

MAX_BYTES, MAX_MEMBERS = 40 * 10**9, 200_000  # of an archive with the zips inside it
# Pictures reach 3:1, zip bombs 1000:1; what stays below RATIO_FREE does no harm.
MAX_RATIO, RATIO_FREE = 200, 10**6
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # only these come out in limited pieces
# The last two: a member is there twice, or lies below a name that is a file.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error, OverflowError),
    *(FileExistsError, NotADirectoryError),
)
# Absolute, with a drive letter or a control character, or with a part of dots and spaces, which Windows
# drops.
_UNSAFE = re.compile(r"^/|^[A-Za-z]:|[\x00-\x1f]|(^|/)([. ]{2,}| )(/|$)")


@contextmanager
def _within(place):
    """Put the place, an archive or its member, before the cause of an error."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{place}: {error}") from error


def unpack(archive, folder):
    """Unpack the pictures of a zip, and of zips directly inside it, into a new folder.

    A zip `a/b.zip` inside becomes the folder `a/b`; hidden files, and files without a picture's suffix, are
    left out. Backslashes in names, as Windows writes them, part folders.

    Parameters
    ----------
    archive, folder : Path
        The zip; the folder, absent or empty, written in a temporary folder beside it and renamed at the end.

    Returns
    -------
    int
        Number of pictures written.

    Raises
    ------
    StudyError
        No zip, a damaged, dangerous or oversized one, too little space.
    OSError
        No such archive, a folder that holds something or cannot be written. Nothing is left behind in any
        case.
    """
    archive, folder = Path(archive), Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part:
        whole = Path(part) / folder.name  # the temporary folder itself is for nobody else to read
        try:
            with _within(archive):
                left = SimpleNamespace(bytes=MAX_BYTES, members=MAX_MEMBERS)
                count = _unpack_zip(archive, whole, left)
                if not count:
                    raise ValueError("it holds no pictures")
        except ValueError as error:
            raise StudyError(
                f"{error}. Nothing was unpacked: check that it is the right archive, "
                "or delete it and get it from its publisher again."
            ) from error
        if folder.exists():
            folder.rmdir()  # only an empty one; Windows replaces none
        os.replace(whole, folder)
    return count


def _unpack_zip(file, folder, left, nested=False):
    with _within("no zip, perhaps a web page, or cut off"):
        bundle = zipfile.ZipFile(file)
    count = 0
    with bundle:
        for info in tqdm(_chosen(bundle.infolist(), folder, left), file.name, unit="file", disable=None):
            with _within(f"member {info.filename!r}"):
                written = _extract(bundle, info, folder)
                if is_picture(written):
                    count += 1
                    continue
                if nested:
                    raise ValueError("a zip inside a zip inside a zip: only one level is unpacked")
                count += _unpack_zip(written, written.with_suffix(""), left, nested=True)
                written.unlink()
    return count


def _chosen(members, folder, left):
    """The pictures and zips among the members: all are judged by their names, these by their sizes too."""
    for info in members:
        with _within(f"member {info.orig_filename[:200]!r}"):
            _refuse_dangerous(info)
        info.filename = info.filename.replace("\\", "/")
    chosen = sorted(filter(_is_wanted, members), key=lambda info: info.header_offset)
    for first, second in pairwise(chosen):
        if second.header_offset < first.header_offset + 30 + first.compress_size:  # 30: the smallest header
            raise ValueError(f"member {second.filename!r} shares its bytes with another, as in zip bombs")
    size, packed = sum(info.file_size for info in chosen), sum(info.compress_size for info in chosen)
    left.bytes -= size
    left.members -= len(members)
    if size > max(RATIO_FREE, MAX_RATIO * packed):
        raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size, as zip bombs do")
    if min(left.bytes, left.members) < 0:
        raise ValueError(f"{len(members):,} files, {size / 1e6:,.0f} MB: more than we unpack")
    if size > shutil.disk_usage(folder.parent).free:
        raise StudyError(f"The disk is too full to unpack: {size / 1e6:.1f} MB are needed. Free some.")
    return chosen


def _refuse_dangerous(info):
    # zipfile cuts a name at a zero byte and renames by Unicode fields: both names are judged.
    if any(_UNSAFE.search(name.replace("\\", "/")) for name in (info.orig_filename, info.filename)):
        raise ValueError("its name leads out of its folder, is absolute or holds control characters")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError("a symbolic link or another special file")
    if info.flag_bits & 0x2041:  # three ways of encryption
        raise ValueError("encrypted")
    if info.compress_type not in _METHODS and _is_wanted(info):
        raise ValueError(f"packed with method {info.compress_type}: only stored and deflated ones are read")


def _is_wanted(info):
    path = PurePosixPath(info.filename)
    hidden = any(part[0] == "." or part == "__MACOSX" for part in path.parts)
    return not hidden and (is_picture(path) or path.suffix.lower() == ".zip") and not info.is_dir()


def _extract(bundle, info, folder):
    written = folder / info.filename
    if written.exists():  # also by names that differ in case, where the system takes them for one
        raise ValueError("it is there twice")
    bundle.extract(info, folder)
    if written.stat().st_size != info.file_size:
        raise ValueError(f"it does not have the {info.file_size} bytes that it announces")
    return written
