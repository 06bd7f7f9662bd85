"""Which code made an executed notebook: a digest that is kept in it,
so that old results are known without file times."""

import hashlib
import json
from contextlib import suppress

from koa_lib.profile import ROOT

_KEY = "koa_stamp"
_PARTS = ("koa_lib/**/*.py", "koa_lib/**/*.json", "koa_lib/**/*.npy", "data_manifests/**/*.yaml",
          "data_manifests/**/*.csv", "reports/exhibits/columns.yaml")


def of(name, profile):
    """12 hex digits over everything in the repository that a notebook's results depend on: library, lists,
    profile, captions, cells."""
    own = (f"notebooks/{name}.ipynb", f"notebooks/profiles/{profile}.yaml", f"reports/exhibits/{name}.yaml")
    paths = sorted({path for part in (*_PARTS, *own) for path in ROOT.glob(part)})
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(ROOT).as_posix()}:"
                      f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def note(notebook, stamp):
    """Write a stamp into an executed notebook (a `NotebookNode`)."""
    notebook.metadata[_KEY] = stamp


def noted(path):
    """The stamp in an executed notebook's file; None without one, or where it is damaged."""
    with suppress(ValueError, KeyError):
        return json.loads(path.read_text(encoding="utf-8"))["metadata"].get(_KEY)
