"""One published zip, unpacked so that no member can do harm.

A published archive is somebody else's file: every member is judged before it is written, and the folder
gets its own name only when it is complete.
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
from koa_lib.images.read import is_picture

MAX_BYTES, MAX_MEMBERS = 40 * 10**9, 200_000  # of an archive with the zips inside it
MAX_RATIO, RATIO_FREE = (
    200,
    10**6,
)  # pictures reach 3:1, zip bombs 1000:1; what stays below RATIO_FREE does no harm
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # only these come out in limited pieces
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error, OverflowError)
# Absolute, with a drive letter or a control character, or with a part of dots and spaces, which Windows
# drops.
_UNSAFE = re.compile(r"^/|^[A-Za-z]:|[\x00-\x1f]|(^|/)([. ]{2,}| )(/|$)")


@dataclass
class _Job:
    """What an archive and the zips inside it share."""

    archive: Path
    progress: tqdm
    bytes_left: int
    members_left: int

    def refusal(self, what):
        """The error that ends the unpacking."""
        return StudyError(
            f"{what}. Nothing was unpacked: check that {self.archive} is the right archive, "
            "or delete it and get it from its publisher again."
        )


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
        No zip, a damaged, dangerous or oversized one, too little space, a folder in use. Nothing is left
        behind.
    """
    archive, folder = Path(archive), Path(folder).resolve()
    if not archive.is_file():
        raise StudyError(f"The archive {archive} does not exist. Download it first.")
    if folder.is_file() or folder.exists() and any(folder.iterdir()):
        raise StudyError(
            f"{folder} exists already and is not empty. Use it as it is, remove it, or give another folder."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as part:
            whole = Path(part) / folder.name  # the temporary folder itself is for nobody else to read
            with bar(archive.name, 0) as progress:
                job = _Job(archive, progress, MAX_BYTES, MAX_MEMBERS)
                count = _unpack_zip(job, archive, whole, str(archive))
            if not count:
                raise job.refusal(f"{archive} holds no pictures")
            if folder.exists():
                folder.rmdir()  # Windows replaces no folder, not even an empty one
            os.replace(whole, folder)
    except OSError as error:
        raise StudyError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}). "
            "Give a folder where you may write."
        ) from error
    return count


def _unpack_zip(job, file, folder, where, nested=False):
    try:
        bundle = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise job.refusal(
            f"{where} is no zip, perhaps an error page of the server, or it is cut off ({error})"
        ) from error
    count = 0
    with bundle:
        for info in _chosen(job, bundle.infolist(), where, folder):
            member = f"{where}: member {info.orig_filename[:200]!r}"
            written = _extract(job, bundle, info, folder, member)
            if is_picture(written):
                count += 1
            elif nested:
                raise job.refusal(f"{member} is a zip inside a zip inside a zip, only one level is unpacked")
            else:
                inner = f"{job.archive}, zip '{info.filename}'"
                count += _unpack_zip(job, written, written.with_suffix(""), inner, nested=True)
                written.unlink()
    return count


def _chosen(job, members, where, folder):
    """The pictures and zips among the members: all are judged by their names, these by their sizes too."""
    for info in members:
        if reason := _danger(info):
            raise job.refusal(f"{where}: member {info.orig_filename[:200]!r} {reason}")
        info.filename = info.filename.replace("\\", "/")
    chosen = sorted(filter(_is_wanted, members), key=lambda info: info.header_offset)
    for first, second in zip(chosen, chosen[1:], strict=False):
        if second.header_offset < first.header_offset + 30 + first.compress_size:  # 30: the smallest header
            raise job.refusal(
                f"{where}: member {second.filename!r} shares its bytes with another one, as in zip bombs"
            )
    size, packed = sum(info.file_size for info in chosen), sum(info.compress_size for info in chosen)
    job.bytes_left, job.members_left = job.bytes_left - size, job.members_left - len(members)
    job.progress.total += size
    if size > max(RATIO_FREE, MAX_RATIO * packed):
        raise job.refusal(f"{where} unpacks to more than {MAX_RATIO} times its size, as zip bombs do")
    if min(job.bytes_left, job.members_left) < 0:
        raise job.refusal(f"{where} holds {len(members):,} files, {size / 1e6:,.0f} MB: more than we unpack")
    if size > shutil.disk_usage(folder.parent).free:
        raise StudyError(
            f"The disk is too full to unpack {where}: {size / 1e6:.1f} MB are needed. Free some."
        )
    return chosen


def _danger(info):
    # zipfile cuts a name at a zero byte and renames by Unicode fields: both names are judged.
    if any(_UNSAFE.search(name.replace("\\", "/")) for name in (info.orig_filename, info.filename)):
        return "has a name that leads out of its folder, is absolute or holds control characters"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or another special file"
    if info.flag_bits & 0x2041:  # three ways of encryption
        return "is encrypted"
    if info.compress_type not in _METHODS and _is_wanted(info):
        return f"is packed with method {info.compress_type}: only stored and deflated members are read"
    return ""


def _is_wanted(info):
    path = PurePosixPath(info.filename)
    hidden = any(part[0] == "." or part == "__MACOSX" for part in path.parts)
    return not hidden and (is_picture(path) or path.suffix.lower() == ".zip") and not info.is_dir()


def _extract(job, bundle, info, folder, member):
    written = folder / info.filename
    try:
        if written.exists():  # also by names that differ in case, where the system takes them for one
            raise FileExistsError
        bundle.extract(info, folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise job.refusal(f"{member} is there twice, or lies below a name that is a file") from error
    except UnicodeEncodeError as error:
        raise StudyError(
            f"{member} cannot be written with the character set of this system. Set LC_ALL=C.UTF-8."
        ) from error
    except _DAMAGE as error:
        raise job.refusal(f"{member} is damaged ({error})") from error
    if written.stat().st_size != info.file_size:
        raise job.refusal(f"{member} does not have the {info.file_size} bytes that it announces")
    job.progress.update(info.file_size)
    return written
