"""One published file, downloaded so that a cut connection goes on where it was."""

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256
from koa_lib.store import write_text

BLOCK = 1 << 16  # bytes; a cut connection loses at most one block
TIMEOUTS = (10, 60)  # seconds: to connect, between two pieces of data
RETRIES, PAUSE = 3, 2  # PAUSE in seconds
_CUT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def download(address, target, sha256=None):
    """Download a file, going on from the `<target>.part` of an earlier try.

    Parameters
    ----------
    address : str
        Web address (http or https).
    target : Path
        File to write.
    sha256 : str, optional
        Expected SHA-256, 64 hex digits.

    Returns
    -------
    Path
        The complete file, absolute.

    Raises
    ------
    StudyError
        No connection, an error of the server, a connection cut too often (what came stays in
        `<target>.part`), a wrong hash (the download is removed), a `<target>.part` of somebody else, or
        another process that downloads it.
    OSError
        A file that cannot be written.
    """
    target = Path(target).absolute()
    part = target.with_name(f"{target.name}.part")
    if part.exists() and not _note_path(part).exists():  # browsers name their unfinished downloads so, too
        raise StudyError(f"{part} is another program's. Wait until it is complete, rename or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target, part):
        _complete(address, target, part, sha256)
    return target


def _complete(address, target, part, sha256):
    try:
        _fetch(address, part)
    except (requests.RequestException, ValueError) as error:
        raise StudyError(f"{address} cannot be downloaded: {error}. Correct the address.") from error
    found = sha256 and file_sha256(part)
    if found == sha256:
        os.replace(part, target)
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)
    if found != sha256:
        raise StudyError(
            f"{address} has the SHA-256 {found} instead of {sha256}, and was removed. "
            "Run the same command again; if this repeats, the publisher changed it."
        )


@contextmanager
def _alone(target, part):
    # Two that write one file would make it a mixture.
    lock = part.with_name(f"{part.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise StudyError(f"Another process downloads {target}. Wait for it, or stop it, and run the same "
                         "command again.") from None


def _fetch(address, part):
    for attempt in range(1 + RETRIES):
        time.sleep(PAUSE if attempt else 0)
        try:
            if _receive(address, part):
                return
            problem = "it is not whole"
        except _CUT as error:
            problem = _first_cause(error)
    raise StudyError(
        f"{address} could not be downloaded in {1 + RETRIES} attempts: {problem}. Check the connection "
        f"and run the same command again: it goes on from the {_size(part) / 1e6:.1f} MB in {part}."
    )


def _first_cause(error):
    return _first_cause(error.__context__) if error.__context__ else error


def _receive(address, part):
    """One request for what is missing; True when `part` is complete."""
    have, note = _size(part), _note(part)
    validator = note.get("validator") if have and note.get("address") == address else None
    headers = {"Accept-Encoding": "identity"}
    if validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUTS) as answer:
        status, range_ = answer.status_code, answer.headers.get("Content-Range", "")
        if status not in (200, 206, 416):
            raise StudyError(
                f"The server answers {status} ({answer.reason}) to {address}. Try it in a browser."
            )
        if status == 416 and range_ == f"bytes */{have}":
            return True
        # Some servers know Range but not If-Range: the rest of another file must not be appended.
        same = validator and _validator(answer.headers) in (None, validator)
        goes_on = status == 206 and same and range_.startswith(f"bytes {have}-")
        if not goes_on:
            part.unlink(missing_ok=True)  # before the note: old bytes never stand beside a new validator
        if status == 200:
            note = {"address": address, "validator": _validator(answer.headers)}
            write_text(_note_path(part), json.dumps(note))
        elif not goes_on:
            return False
        _append(answer, part)
    return status == 200 or range_.endswith(("/*", f"/{_size(part)}"))


def _append(answer, part):
    have, coming = _size(part), int(answer.headers.get("Content-Length", 0))
    with open(part, "ab") as file:
        bar = {"total": have + coming, "initial": have, "desc": part.stem, "disable": None}
        with tqdm.wrapattr(file, "write", **bar) as out:
            for block in answer.iter_content(BLOCK):
                out.write(block)


def _validator(headers):
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")  # If-Range takes no weak ETag


def _note_path(part):
    return part.with_name(f"{part.name}.json")


def _note(part):
    try:
        return json.loads(_note_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged by a crash: the download begins anew
        return {}


def _size(path):
    return path.stat().st_size if path.exists() else 0
