"""`koa grade --out`: a large archive as JSON lines in a file, in constant memory; what it holds is kept."""

import fcntl
import json
import os
import sys
from array import array
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from koa_lib import engine
from koa_lib.errors import StudyError, printable
from koa_lib.grading import export, predict
from koa_lib.grading.listing import stream
from koa_lib.grading.show import described, heading

LONGEST = 1 << 20  # bytes of a first line; more are no output of ours


def run(given, weights, out):
    """What `koa grade --out` does: adds a line for each picture that the file does not hold yet.

    Parameters
    ----------
    given : list of str
        As in `listing`.
    weights : str or None
        Folder of exported weights; by default those of the newest run.
    out : str
        A new file, or that of a former command with the same weights; half a last line is cut off.

    Returns
    -------
    int
        0 when every picture in the file was graded, 1 when at least one could not be.

    Raises
    ------
    StudyError
        A file of other weights, with a damaged line or that is being written to; nothing to grade.
    """
    weights = Path(export.newest() if weights is None else weights).absolute()
    _model.cache_clear()  # the folder may hold other weights than before
    card = _model(weights).card
    with open(out, "ab+") as file:
        _begin(file, out, card)
        held, failed = _held(file, out)
        total = len(held)
        jobs = ((weights, card["weights_sha256"], paths) for paths in _new(stream(given, sys.stdin), held))
        with tqdm(desc="grading", initial=total, unit="picture", disable=None) as bar:
            for rows in engine.each(_rows, jobs, threads=1):
                file.writelines(map(_line, rows))
                file.flush()
                total, failed = total + len(rows), failed + sum(row["grade"] is None for row in rows)
                bar.update(len(rows))
    if not total:
        raise StudyError("No picture is named. Give picture files, folders or lists of them.")
    said = f"{out} holds {total:,} picture{'s' * (total != 1)}, {total - len(held):,} of them new"
    print(printable(f"{said}; {failed:,} could not be graded."), file=sys.stderr)
    return int(failed > 0)


def _begin(file, out, card):
    # A first line of this card, or one of the same weights.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StudyError(f"Another koa grade writes to {out}. Let it end, or give another name.") from None
    file.seek(0)
    head, first = _line(heading(card)), file.readline(LONGEST)
    if first != head and head.startswith(first):  # new, or killed at once
        file.truncate(0)
        file.write(head)
    elif (theirs := _parsed(first).get("weights_sha256")) is None:
        raise StudyError(f"{out} is no output of koa grade --out. Give another name.")
    elif theirs != card["weights_sha256"]:
        raise StudyError(f"{out} holds grades by other weights. Give those with --weights, or another name.")


def _held(file, out):
    # Sorted digests of the pictures in the file, and how many of them were not graded.
    held, failed, end = array("Q"), 0, file.tell()
    for number, line in enumerate(file, 2):
        if not line.endswith(b"\n"):  # killed while it wrote
            file.truncate(end)
            break
        row, end = _parsed(line), end + len(line)
        if row.get("path") is None:
            raise StudyError(f"{out}, line {number} is damaged. Delete it: its picture is graded again.")
        held.append(_digest(row["path"]))
        failed += row.get("grade") is None
    return np.sort(np.array(held)), failed


def _line(values):
    return json.dumps(values).encode() + b"\n"


def _parsed(line):
    # Empty for what is no line of ours.
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _digest(path):
    return np.frombuffer(blake2b(os.fsencode(path), digest_size=8).digest(), np.uint64)[0]


def _new(paths, held):
    # Lists of paths that the file does not hold, each as long as what is graded at once.
    def is_new(path):
        digest = _digest(path)
        return held.searchsorted(digest, "left") == held.searchsorted(digest, "right")

    new = filter(is_new, map(os.path.abspath, paths))
    while chunk := list(islice(new, predict.BATCH)):
        yield chunk


def _rows(weights, sha256, paths):
    model = _model(weights)
    if model.card["weights_sha256"] != sha256:
        raise StudyError(f"{weights} was changed meanwhile. Give another name with --out.")
    return [described(row, row.path.name) for row in predict.grade(model, paths)]


@lru_cache(1)
def _model(weights):
    # Loaded once by each process, of a cluster too.
    return predict.load(weights)
