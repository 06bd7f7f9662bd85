"""One published zip, unpacked so that no member can do harm.

A published archive is somebody else's file: every member is judged before anything is written, and the folder gets its
own name only when it is complete.
"""

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from koa_lib.data.download import BLOCK, bar
from koa_lib.errors import StudyError
from koa_lib.images.read import SUFFIXES

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
    due: int = 0  # bytes announced and not yet written
    names: set = field(default_factory=set)


def unpack(archive, folder, max_bytes=MAX_BYTES, max_members=MAX_MEMBERS):
    """Unpack the pictures of a zip, and of zips directly inside it, into a new folder.

    A zip `a/b.zip` inside becomes the folder `a/b`; files without a picture's suffix are left out.

    Parameters
    ----------
    archive, folder : Path
        The zip; the folder, absent or empty, written as `<folder>.part` and renamed at the end.
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
    part = folder.with_name(f"{folder.name}.part")
    try:
        return _unpack_to(archive, part, folder, max_bytes, max_members)
    except OSError as error:
        raise StudyError(f"{error.filename or folder} cannot be written ({error.strerror or error}). Give a folder where you may write.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_to(archive, part, folder, max_bytes, max_members):
    if part.exists():
        shutil.rmtree(part)  # of a killed run
    with bar(archive.name, 0) as progress:
        count = _unpack_zip(_Job(archive, part, max_bytes, max_members, progress), archive)
    if not count:
        raise StudyError(f"{archive} holds no pictures ({', '.join(SUFFIXES)}). Check that it is the right archive.")
    if folder.exists():
        folder.rmdir()  # Windows replaces no folder, not even an empty one
    os.replace(part, folder)
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
        chosen = _choose(job, bundle.infolist(), where, inside)
        _check_sizes(job, [info for info, _ in chosen], where)
        for info, path in chosen:
            _write(job, bundle, info, job.root / path, where)
            if path.suffix.lower() == ".zip":
                count += _unpack_zip(job, job.root / path, path)
                (job.root / path).unlink()
            else:
                count += 1
    return count


def _choose(job, members, where, inside):
    """The members to write, with their paths below the root; the name and kind of every member are checked."""
    job.members_left -= len(members)
    if job.members_left < 0:
        raise _oversized(where, f"{len(members)} members, {-job.members_left} over the limit")
    chosen, below = [], inside.with_suffix("") if inside else PurePosixPath()
    for info in members:
        path = below / info.filename
        picked = path.suffix.lower() in (*SUFFIXES, ".zip") and not info.is_dir() and "__MACOSX" not in path.parts and not path.name.startswith("._")
        if reason := _danger(info) or picked and _clash(job, path, inside):
            raise _refusal(job, where, info, reason)
        if picked:
            job.names.add(path)
            chosen.append((info, path))
    for info, path in chosen:
        if not job.names.isdisjoint(path.parents):
            raise _refusal(job, where, info, "lies below a name that is a file")
    return chosen


def _danger(info):
    for name in (info.orig_filename, info.filename):  # zipfile cuts at zero bytes, turns backslashes, renames by Unicode fields
        if any(ord(letter) < 32 for letter in name):
            return "has control characters in its name"
        if "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
            return "has an absolute path, a drive letter or a backslash"
        # Windows drops dots and spaces at the end of a part, and '...zip' would be unpacked into '..'.
        if any(part not in ("", ".") and not re.sub(r"(?i)\.zip$", "", part).strip(". ") for part in name.split("/")):
            return "leads out of its folder ('..')"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or another special file"
    return "is encrypted" if info.flag_bits & 0x2041 else None  # three ways of encryption


def _clash(job, path, inside):
    if path.suffix.lower() == ".zip" and inside:
        return "is a zip inside a zip inside a zip, only one level is unpacked"
    return "is there twice" if path in job.names else None


def _refusal(job, where, info, reason):
    return StudyError(f"{where}: member {info.orig_filename[:200]!r} {reason}. Nothing was unpacked: delete {job.archive} and get it from its publisher again.")


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
    if total > job.bytes_left:
        raise _oversized(where, f"{total / 1e6:.1f} MB unpacked, {(total - job.bytes_left) / 1e6:.1f} MB over the limit")
    job.bytes_left, job.due, job.progress.total = job.bytes_left - total, job.due + total, job.progress.total + total
    missing = job.due - shutil.disk_usage(next(place for place in job.root.parents if place.exists())).free
    if missing > 0:
        raise StudyError(f"The disk of {job.root.parent} is too full to unpack {where} ({total / 1e6:.1f} MB): {missing / 1e6:.1f} MB are missing. Free some or give another folder.")


def _bomb(info, end):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # only these come out in limited pieces
        return f"is packed with method {info.compress_type}, only stored and deflated members are read"
    if info.header_offset < end:
        return "shares its bytes with another member, as in zip bombs"
    large = info.file_size > max(RATIO_FREE, MAX_RATIO * info.compress_size)
    return f"unpacks to more than {MAX_RATIO} times its size, as in zip bombs" if large else None


def _write(job, bundle, info, file, where):
    left = info.file_size
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with bundle.open(info) as source, open(file, "xb") as sink:  # x: names that differ in case may be one file
            while left >= 0 and (block := source.read(BLOCK)):
                sink.write(block)
                left, job.due = left - len(block), job.due - len(block)
                job.progress.update(len(block))
    except _DAMAGE as error:
        raise _refusal(job, where, info, f"is damaged ({error})") from error
    except OSError as error:
        raise StudyError(f"{where}: member {info.filename[:200]!r} cannot be written ({error.strerror or error}). Make space or give another folder.") from error
    if left:
        raise _refusal(job, where, info, f"does not have the {info.file_size} bytes that it announces")
