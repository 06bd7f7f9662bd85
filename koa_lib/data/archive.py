"""One published zip, unpacked so that no member can do harm.

A published archive is somebody else's file: every member is judged before it is written, and the folder gets its own
name only when it is complete.
"""

import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from koa_lib.data.download import bar
from koa_lib.errors import StudyError
from koa_lib.images.read import SUFFIXES, is_picture

MAX_BYTES, MAX_MEMBERS = 40 * 10**9, 200_000
MAX_RATIO, RATIO_FREE = 200, 10**6  # pictures reach 3:1, zip bombs 1000:1; what is smaller than RATIO_FREE does no harm
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error, OverflowError)


@dataclass
class _Job:
    """What an archive and the zips inside it share."""

    archive: Path
    root: Path
    bytes_left: int
    members_left: int
    progress: tqdm


def unpack(archive, folder, max_bytes=MAX_BYTES, max_members=MAX_MEMBERS):
    """Unpack the pictures of a zip, and of zips directly inside it, into a new folder.

    A zip `a/b.zip` inside becomes the folder `a/b`; hidden files, and files without a picture's suffix, are left out.
    Backslashes in names, as Windows writes them, separate folders.

    Parameters
    ----------
    archive, folder : Path
        The zip; the folder, absent or empty, written in a temporary folder beside it and renamed at the end.
    max_bytes, max_members : int
        Limits of what is unpacked, zips inside included.

    Returns
    -------
    int
        Number of pictures written.

    Raises
    ------
    StudyError
        No zip, a damaged, dangerous or oversized one, too little space, a folder in use. Nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder).resolve()
    if not archive.is_file():
        raise StudyError(f"The archive {archive} does not exist. Download it first.")
    if folder.is_file() or folder.exists() and any(folder.iterdir()):
        raise StudyError(f"{folder} exists already and is not empty. Use it as it is, remove it, or give another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part, bar(archive.name, 0) as progress:
            root = Path(part) / folder.name  # the temporary folder itself is for nobody else to read
            count = _unpack_zip(_Job(archive, root, max_bytes, max_members, progress), archive)
            if not count:
                raise StudyError(f"{archive} holds no pictures ({', '.join(SUFFIXES)}). Check that it is the right archive.")
            if folder.exists():
                folder.rmdir()  # Windows replaces no folder, not even an empty one
            os.replace(root, folder)
    except (OSError, UnicodeEncodeError) as error:  # names that this system cannot write
        name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
        raise StudyError(f"{name or folder} cannot be written ({reason or error}). Give a folder where you may write.") from error
    return count


def _unpack_zip(job, file, inside=None):
    where, count = f"{job.archive}, zip '{inside}'" if inside else str(job.archive), 0
    try:
        bundle = zipfile.ZipFile(file)
    except _DAMAGE as error:
        with open(file, "rb") as opened:
            kind = "a cut off or damaged zip" if opened.read(2) == b"PK" else "no zip, perhaps an error page of the server"
        raise StudyError(f"{where} is {kind} ({error}). Delete {job.archive} and download it again.") from error
    with bundle:
        chosen = [info for info in _safe(job, bundle.infolist(), where) if _is_wanted(info)]
        _check_sizes(job, chosen, where)
        for info in chosen:
            if inside and not is_picture(info.filename):
                raise _refusal(job, where, info, "is a zip inside a zip inside a zip, only one level is unpacked")
            written = _extract(job, bundle, info, job.root / inside.with_suffix("") if inside else job.root, where)
            if is_picture(written):
                count += 1
            else:
                count += _unpack_zip(job, written, PurePosixPath(info.filename))
                written.unlink()
    return count


def _safe(job, members, where):
    # All members, after a look at the name and kind of each, also of those that are left out.
    job.members_left -= len(members)
    if job.members_left < 0:
        raise _oversized(where, f"{len(members)} members, {-job.members_left} over the limit")
    for info in members:
        info.filename = info.filename.replace("\\", "/")
        if reason := _danger(info):
            raise _refusal(job, where, info, reason)
    return members


def _is_wanted(info):
    path = PurePosixPath(info.filename)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not (hidden or info.is_dir()) and (is_picture(path) or path.suffix.lower() == ".zip")


def _danger(info):
    # zipfile cuts a name at zero bytes and renames by Unicode fields: both names are judged.
    for name in (info.orig_filename.replace("\\", "/"), info.filename):
        if any(ord(letter) < 32 for letter in name):
            return "has control characters in its name"
        if name.startswith("/") or re.match("[A-Za-z]:", name):
            return "has an absolute path or a drive letter"
        # Windows drops dots and spaces at the end of a part, and '...zip' would be unpacked into '..'.
        if any(part not in ("", ".") and not re.sub(r"(?i)\.zip$", "", part).strip(". ") for part in name.split("/")):
            return "leads out of its folder ('..')"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or another special file"
    return "is encrypted" if info.flag_bits & 0x2041 else None  # three ways of encryption


def _refusal(job, where, info, reason):
    return StudyError(f"{where}: member {info.orig_filename[:200]!r} {reason}. "
                      f"Nothing was unpacked: delete {job.archive} and get it from its publisher again.")


def _oversized(where, what):
    return StudyError(f"{where} has {what}. Nothing was unpacked: check that it is the right archive.")


def _check_sizes(job, members, where):
    """Judge the announced sizes before anything is written: method, overlap, ratio, limit, disk."""
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if reason := _bomb(info, end):
            raise _refusal(job, where, info, reason)
        end = info.header_offset + 30 + info.compress_size  # 30: the smallest header
    total, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if total > max(RATIO_FREE, MAX_RATIO * packed):
        raise _oversized(where, f"members that unpack to more than {MAX_RATIO} times their size, as in zip bombs")
    job.bytes_left, job.progress.total = job.bytes_left - total, job.progress.total + total
    if job.bytes_left < 0:
        raise _oversized(where, f"{total / 1e6:.1f} MB unpacked, {-job.bytes_left / 1e6:.1f} MB over the limit")
    missing = total - shutil.disk_usage(job.root.parent).free
    if missing > 0:
        raise StudyError(f"The disk of {job.root.parent.parent} is too full to unpack {where} ({total / 1e6:.1f} MB): "
                         f"{missing / 1e6:.1f} MB are missing. Free some or give another folder.")


def _bomb(info, end):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # only these come out in limited pieces
        return f"is packed with method {info.compress_type}, only stored and deflated members are read"
    if info.header_offset < end:
        return "shares its bytes with another member, as in zip bombs"
    large = info.file_size > max(RATIO_FREE, MAX_RATIO * info.compress_size)
    return f"unpacks to more than {MAX_RATIO} times its size, as in zip bombs" if large else None


def _extract(job, bundle, info, folder, where):
    written = folder / info.filename
    try:
        if written.exists():  # also by names that differ in case, where the system takes them for one
            raise FileExistsError
        bundle.extract(info, folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise _refusal(job, where, info, "is there twice, or lies below a name that is a file") from error
    except UnicodeEncodeError:
        raise
    except _DAMAGE as error:
        raise _refusal(job, where, info, f"is damaged ({error})") from error
    if written.stat().st_size != info.file_size:
        raise _refusal(job, where, info, f"does not have the {info.file_size} bytes that it announces")
    job.progress.update(info.file_size)
    return written
