"""Copies of the notebooks for students: exercises stay, solutions become empty cells,
and a student's own work is never lost."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path

import nbformat

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report.running import FOLDER, read
from koa_lib.store import write_text

COPIES = ROOT / "student"
EXERCISE, SOLUTION, ANSWER = "exercise", "solution", "answer"
_MADE = "koa_copy"  # key of a copy's metadata: the hash of its cells when it was written


def without_solutions(notebook):
    """A copy of a notebook in which each run of cells tagged `solution` is one empty code cell tagged
    `answer`."""
    made, cells, previous = deepcopy(notebook), [], False
    for cell in made.cells:
        solution = SOLUTION in cell.metadata.get("tags", [])
        if not solution:
            cells.append(cell)
        elif not previous:
            cells.append(nbformat.v4.new_code_cell(id=cell.id, metadata={"tags": [ANSWER]}))
        previous = solution
    made.cells = cells
    made.metadata[_MADE] = _work(made)
    return made


def write_copies(folder=COPIES):
    """Write a copy without solutions of every notebook; what a student has changed is kept.

    Returns
    -------
    dict of str to str
        File name to 'written', 'up to date', 'renewed' (nobody had changed the older copy) or 'kept'
        (somebody had).

    Raises
    ------
    StudyError
        When the folder is the one of the study's own notebooks, or a file; for a damaged notebook.
    """
    folder = Path(folder)
    if folder.resolve() == FOLDER.resolve() or (folder.exists() and not folder.is_dir()):
        raise StudyError(f"{folder} cannot take the copies: give a folder of their own, e.g. student.")
    folder.mkdir(parents=True, exist_ok=True)
    done = {}
    for source in sorted(FOLDER.glob("[0-9]*.ipynb")):
        copy = without_solutions(read(source))
        done[source.name] = _state(folder / source.name, copy)
        if done[source.name] in ("written", "renewed"):
            write_text(folder / source.name, nbformat.writes(copy) + "\n")
    return done


def report(done, folder):
    """What `write_copies` did, in a few lines."""
    kept = [name for name, state in done.items() if state == "kept"]
    written = sum(state in ("written", "renewed") for state in done.values())
    lines = [f"{written} notebooks without solutions written to {folder}, "
             f"{len(done) - written} left as they were."]
    lines += [f"{name} is kept, because it was changed. For a fresh copy rename or delete it."
              for name in kept]
    return "\n".join(lines)


def _state(path, copy):
    if not path.exists():
        return "written"
    try:
        there = read(path)
    except StudyError:  # whatever it is, it is not ours to overwrite
        return "kept"
    if _work(there) == _work(copy):
        return "up to date"
    return "renewed" if there.metadata.get(_MADE) == _work(there) else "kept"


def _work(notebook):
    # What a student writes: cells and their order. Outputs come back with the next run.
    cells = [(cell.cell_type, "".join(cell.source).rstrip()) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
