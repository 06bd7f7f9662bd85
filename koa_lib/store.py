"""The artefact store: expensive results are made once and reused while their key stays the same."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

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
        self.folder, self.step, self._told = Path(folder), step, set()

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
        build(part)
        _note_path(path).unlink(missing_ok=True)
        _remove(path)
        os.replace(part, path)
        return time.perf_counter() - start

    def log(self, step, status, seconds, reason):
        """Append one line to `run.jsonl`; the terminal hears of what takes, or saved, a second or more."""
        line = {"step": step, "status": status, "seconds": round(seconds, 2), "reason": reason, "notebook": self.step,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        with open(self.folder / "run.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if seconds >= 1 and (status == "built" or step not in self._told):
            self._told.add(step)
            detail = f"built in {seconds:.1f} s because {reason}" if status == "built" else f"reused ({seconds:.0f} s saved)"
            print(f"{step}: {detail}", flush=True)


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


def versions():
    """Versions of the libraries that can change a result."""
    return {name: metadata.version(name) for name in _LIBRARIES}
