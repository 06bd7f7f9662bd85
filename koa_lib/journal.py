"""The journal of a run, `run.jsonl`: one line per step, and what it says about the time that a run takes."""

import json
import os
import resource
import sys
import time
from datetime import datetime

from filelock import FileLock

FILE = "run.jsonl"
TIME = "%Y-%m-%dT%H:%M:%S"
STARTED = "KOA_STARTED"  # set by make: when it began, in seconds since 1970


def append(folder, step, status, seconds, reason, notebook, children=False, **more):
    """Add one step, with the peak memory of this process so far (or of its children) in MiB."""
    line = {"step": step, "status": status, "seconds": round(seconds, 2), "reason": reason,
            "notebook": notebook, "time": time.strftime(TIME), "peak_mib": peak_mib(children), **more}
    with _lock(folder), open(folder / FILE, "ab+") as file:
        if file.tell():  # a killed run may have left half a line
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def peak_mib(children=False):
    """Peak resident memory in MiB: of this process, or of the largest of its children that have ended."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def read(folder):
    """All steps, oldest first, as dicts; half lines of killed runs are left out."""
    path, lines = folder / FILE, []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and {"step", "status", "seconds", "notebook", "time"} <= set(line):
            lines.append(line)
    return lines


def compact(folder):
    """Keep each notebook's last execution and, marked as earlier, the last building of each other step: the
    journal does not grow from run to run."""
    if not (folder / FILE).is_file():
        return
    with _lock(folder):
        lines = read(folder)
        current = set().union(*executions(lines).values())
        built = {line["step"]: place for place, line in enumerate(lines) if line["status"] == "built"}
        kept = [lines[place] | ({} if place in current else {"earlier": True})
                for place in sorted({*current, *built.values()})]
        part = folder / f".part-{FILE}"
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, folder / FILE)


def executions(lines):
    """Where the lines of each notebook's last execution stand:
    name -> places. A notebook's own line closes an execution."""
    found, closed = {}, set()
    for place, line in enumerate(lines):
        name = line["notebook"]
        if line.get("earlier"):
            continue
        if name in closed:
            found[name] = []
            closed.discard(name)
        found.setdefault(name, []).append(place)
        if line["step"] == name:
            closed.add(name)
    return found


def started():
    """When make began, in seconds since 1970; None where a command was given by hand."""
    text = os.environ.get(STARTED, "")
    return float(text) if text.replace(".", "", 1).isdigit() else None


def since(lines, moment):
    """The lines written at or after a moment in seconds since 1970."""
    first = datetime.fromtimestamp(moment).strftime(TIME)
    return [line for line in lines if line["time"] >= first]


def _lock(folder):
    (folder / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(str(folder / ".locks" / f"{FILE}.lock"))
