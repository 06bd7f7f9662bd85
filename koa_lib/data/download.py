"""One published file, downloaded so that a cut connection goes on where it was."""

import json
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
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
        `<target>.part`), a wrong hash (the download is removed), a `<target>.part` of somebody else, or a
        file that cannot be written.
    """
    target, sha256 = Path(target).absolute(), sha256 and sha256.lower()
    part = target.with_name(f"{target.name}.part")
    if part.exists() and not _note_path(part).exists():  # browsers name their unfinished downloads so, too
        raise StudyError(
            f"{part} was not left by this command. Wait until it is complete, rename or remove it."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(address, part)
        found = sha256 and file_sha256(part)
        if found == sha256:
            os.replace(part, target)
        part.unlink(missing_ok=True)
        _note_path(part).unlink(missing_ok=True)
    except (requests.RequestException, ValueError) as error:
        raise StudyError(f"{address} cannot be downloaded: {error}. Correct the address.") from error
    except OSError as error:
        raise StudyError(
            f"{error.filename or target} cannot be written ({error.strerror or error}). "
            "Give a folder with enough space where you may write."
        ) from error
    if found != sha256:
        raise StudyError(
            f"The download of {target} has the wrong content: "
            f"SHA-256 {sha256} was expected, {found} was found. "
            f"It was removed: run the same command again; if this repeats, the publisher changed {address}."
        )
    return target


def _fetch(address, part):
    host = urlsplit(address).netloc
    for attempt in range(1 + RETRIES):
        time.sleep(PAUSE if attempt else 0)
        try:
            if _receive(address, part):
                return
            problem = f"{host} did not send the whole file"
        except _CUT as error:
            problem = _problem(error, host)
    have, total = _size(part), _note(part).get("total")
    amount = f"{have / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB"
    then = (
        f"{amount} are in {part}: running the same command again goes on from there"
        if have
        else "Check the connection and run the same command again"
    )
    raise StudyError(f"{problem} (tried {1 + RETRIES} times). {then}.")


def _problem(error, host):
    cause = error.args[0] if error.args else error
    if hasattr(cause, "reason"):  # urllib3's error when no connection came about at all
        return f"No connection to {host}: {re.sub('^.*?>: |^HTTPS?Connection.*?: ', '', str(cause.reason))}"
    return (
        f"{host} sent nothing for {TIMEOUTS[1]} s"
        if "timed out" in str(error)
        else f"The connection to {host} was cut"
    )


def _receive(address, part):
    """One request for what is missing; True when `part` is complete."""
    have, note = _size(part), _note(part)
    validator = note.get("validator") if have and note.get("address") == address else None
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if validator else {}
    with requests.get(
        address, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=TIMEOUTS
    ) as answer:
        status, (first, total) = answer.status_code, _announced(answer.headers)
        if status not in (200, 206, 416):
            raise StudyError(
                f"The server answers {status} ({answer.reason}) to {address}. "
                "Try the address in a browser; if it fails there too, ask the publisher."
            )
        if status == 416 and validator and (first, total) == (None, have):
            return True
        # Some servers know Range but not If-Range: the rest of another file must not be appended.
        goes_on = (
            status == 206 and validator and first == have and _validator(answer.headers) in (None, validator)
        )
        if not goes_on:
            part.unlink(missing_ok=True)  # before the note: old bytes never stand beside a new validator
        if status != 200 and not goes_on:
            return False
        if status == 200:
            note = {"address": address, "validator": _validator(answer.headers), "total": total}
            write_text(_note_path(part), json.dumps(note))
        _append(answer, part, total)
    return total in (None, _size(part))


def _append(answer, part, total):
    with open(part, "ab") as file, bar(part.stem, total, file.tell()) as progress:
        for block in answer.iter_content(BLOCK):
            file.write(block)
            progress.update(len(block))


def bar(name, total, initial=0):
    """A progress bar of bytes on stderr, only where that is a terminal."""
    return tqdm(total=total, initial=initial, desc=name, unit="B", unit_scale=True, disable=None)


def _announced(headers):
    """First byte and total size by `Content-Range: bytes 5-9/10` or `bytes */10`, or by Content-Length;
    None if unknown.
    """
    found = re.fullmatch(r"bytes (\d+|\*)(?:-\d+)?/(\d+|\*)", headers.get("Content-Range", ""))
    texts = found.groups() if found else ("0", headers.get("Content-Length", ""))
    return tuple(int(text) if text.isdigit() else None for text in texts)


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
