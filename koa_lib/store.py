"""The artefact store: expensive results are made once and reused while their key stays the same."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from koa_lib import journal, progress

PACKAGE = Path(__file__).resolve().parent
# Versions that can change a result; others are in the environment page.
_LIBRARIES = ("torch", "open_clip_torch", "timm", "numpy", "pillow")


class Store:
    """Artefacts below a run folder, each a file or folder with `<name>.json` beside it.

    Parameters
    ----------
    folder : Path
        The run folder.
    step : str
        Who asks, e.g. the notebook; written to `run.jsonl`.
    """

    def __init__(self, folder, step):
        self.folder, self.step, self._told, self._building = Path(folder), step, set(), 0

    def make(self, name, key, build, code=()):
        """Return the artefact's path, building it only when its key changed.

        Parameters
        ----------
        name : str
            Path below the run folder.
        key : dict
            Everything that the result depends on, JSON-able or dataclasses.
        build : callable
            ``build(path)`` writes the artefact to a temporary path, renamed on success.
        code : sequence of str
            Modules of `koa_lib` whose text belongs to the key.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        key = plain({**key, "code": code_hash(code)})
        with FileLock(str(self.folder / ".locks" / (name.replace("/", "__") + ".lock")), thread_local=False):
            reason = self._reason(path, key)
            if reason is None:
                self.log(name, "reused", json.loads(_note_path(path).read_text())["seconds"], "same key")
                return path
            progress.tell(f"{name}: being built because {reason}", due=False, event="building", step=name)
            seconds = self._build(path, build)
            note = {"key": key, "versions": versions(), "seconds": round(seconds, 2)}
            write_text(_note_path(path), json.dumps(note, indent=1, sort_keys=True))
            self.log(name, "built", seconds, reason)
        return path

    def _reason(self, path, key):
        note = _note_path(path)
        if not path.exists() or not note.exists():
            return "it did not exist"
        old = json.loads(note.read_text())["key"]
        changed = sorted(k for k in {*old, *key} if old.get(k) != key.get(k))
        return f"{', '.join(changed)} changed" if changed else None

    def _build(self, path, build):
        part = path.with_name(f".part-{path.name}")
        _remove(part)
        start = time.perf_counter()
        self._building += 1
        try:
            build(part)
        finally:
            self._building -= 1
        _note_path(path).unlink(missing_ok=True)
        _remove(path)
        os.replace(part, path)
        return time.perf_counter() - start

    def log(self, step, status, seconds, reason):
        """Add a step to the journal and tell of it; a person at a notebook hears of what takes, or saved, a second or more."""
        nested = {"nested": True} if self._building else {}  # its seconds are part of another step's
        journal.append(self.folder, step, status, seconds, reason, self.step, **nested)
        due = seconds >= 1 and (status == "built" or step not in self._told)
        if due:
            self._told.add(step)
        took = progress.duration(seconds)
        text = f"{step}: built in {took} because {reason}" if status == "built" else f"{step}: reused ({took} saved)"
        progress.tell(text, due, event=status, step=step, seconds=round(seconds, 2), reason=reason, **nested)


def _note_path(path):
    return path.with_name(path.name + ".json")


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file through a temporary name, so that a killed run leaves no half file."""
    part = Path(path).with_name(f".part-{os.getpid()}-{Path(path).name}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def plain(value):
    """A JSON-able copy: dataclasses become dicts, tuples lists, paths and the rest text."""
    if is_dataclass(value):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))


def code_hash(modules):
    """First 12 hex digits of SHA-256 over the text of some modules and their arrays, e.g. joint.py and joint_template.npy."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        for path in (PACKAGE / f"{module}.py", *sorted(PACKAGE.glob(f"{module}_*.npy"))):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def versions():
    """Versions of the libraries that can change a result."""
    return {name: metadata.version(name) for name in _LIBRARIES}
