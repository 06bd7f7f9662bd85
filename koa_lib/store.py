"""The artefact store: expensive results are made once and reused while their key stays the same."""

import hashlib
import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path

from filelock import FileLock

from koa_lib import journal, progress
from koa_lib.reach import reached


class Store:
    """Artefacts below a run folder, each a file or folder with `<name>.json` beside it.

    Parameters
    ----------
    folder : Path
        The run folder.
    step : str
        Who asks, e.g. the notebook; written to `run.jsonl`.
    out : Path, optional
        Where what is missing is made, by default the run folder: a session in JupyterLab reads the run and
        never writes to it.
    threads : int, optional
        In which torch computes whatever is made, so that numbers depend on no machine; as many as it likes by
        default.
    """

    def __init__(self, folder, step, out=None, threads=None):
        self.folder, self.step, self.out, self.threads = Path(folder), step, Path(out or folder), threads
        self._told, self._building = set(), 0

    def make(self, name, key, build, code=()):
        """Return the artefact's path, building it only when its key changed.

        Parameters
        ----------
        name : str
            Path below the run folder.
        key : dict
            Everything that the result depends on, JSON-able or dataclasses. The code that `build` reaches and
            the versions of its libraries are added here, see `reach`.
        build : callable
            ``build(path)`` writes the artefact to a temporary path, renamed on success.
        code : sequence of callables
            What `build` calls and does not import, e.g. functions that it was given.
        """
        key = plain({**key, **reached(build, *code)})
        places = dict.fromkeys((self.folder / name, self.out / name))
        if same := next((place for place in places if self._reason(place, key) is None), None):
            return self._reused(name, same)
        return self.missing(name, key, build)

    def missing(self, name, key, build):
        """What `make` does about an artefact that is missing or of another key: build it."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.out / ".locks" / (name.replace("/", "__") + ".lock")
        lock.parent.mkdir(exist_ok=True)
        with FileLock(str(lock), thread_local=False):
            reason = self._reason(path, key)
            if reason is None:  # another process made it while this one waited
                return self._reused(name, path)
            progress.tell(f"{name}: being built because {reason}", due=False, event="building", step=name)
            seconds = self._build(path, build)
            write_text(_note_path(path), json.dumps({"key": key, "seconds": round(seconds, 2)},
                                                    indent=1, sort_keys=True))
            self.log(name, "built", seconds, reason)
        return path

    def _reused(self, name, path):
        self.log(name, "reused", _note(path)["seconds"], "same key")
        return path

    @staticmethod
    def _reason(path, key):
        old = _note(path)
        if old is None:
            return "it did not exist"
        changed = sorted(name for name in {*old["key"], *key} if old["key"].get(name) != key.get(name))
        return f"{', '.join(changed)} changed" if changed else None

    def _build(self, path, build):
        part = path.with_name(f".part-{path.name}")
        _remove(part)
        start = time.perf_counter()
        self._building += 1
        try:
            with self._computing():
                build(part)
        finally:
            self._building -= 1
        _note_path(path).unlink(missing_ok=True)
        _remove(path)
        os.replace(part, path)
        return time.perf_counter() - start

    def _computing(self):
        if self.threads is None:
            return nullcontext()
        from koa_lib.device import threads  # torch is slow to import, and not every store computes

        return threads(self.threads)

    def log(self, step, status, seconds, reason):
        """Add a step to the journal and tell of it; a person at a notebook hears of what takes, or saved,
        a second or more."""
        nested = {"nested": True} if self._building else {}  # its seconds are part of another step's
        journal.append(self.out, step, status, seconds, reason, self.step, **nested)
        due = seconds >= 1 and (status == "built" or step not in self._told)
        if due:
            self._told.add(step)
        took = progress.duration(seconds)
        text = (f"{step}: built in {took} because {reason}" if status == "built"
                else f"{step}: reused ({took} saved)")
        progress.tell(text, due, event=status, step=step, seconds=round(seconds, 2), reason=reason, **nested)


def _note_path(path):
    return path.with_name(path.name + ".json")


def _note(path):
    # What is said beside an artefact; None where either is missing, or a crash left half a note.
    try:
        return json.loads(_note_path(path).read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError):
        return None


def made_from(path):
    """First 12 hex digits of SHA-256 over an artefact's key:
    what else is made from it has this in its own key."""
    return digest(_note(path)["key"])


def digest(value):
    """First 12 hex digits of SHA-256 over plain values, text or bytes."""
    data = value if isinstance(value, bytes) else json.dumps(plain(value), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text, errors="strict"):
    """Write a text file through a temporary name, so that a killed run leaves no half file; `errors` as of
    `open`."""
    part = Path(path).with_name(f".part-{os.getpid()}-{Path(path).name}")
    try:
        part.write_text(text, encoding="utf-8", errors=errors)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_table(path, table, errors="strict"):
    """Write a DataFrame as CSV, as `write_text`."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"), errors)


def plain(value):
    """A JSON-able copy: dataclasses become dicts, tuples lists, paths and the rest text."""
    if is_dataclass(value):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))
