"""What a student relies on: copies without solutions that are never overwritten, notebooks that run alone."""

import os
import re
import resource
import time

import nbformat
import pytest

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import running, student

SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
every_notebook = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
ALONE = 90  # seconds that a notebook may take in an empty run folder: under a minute on a quiet machine


def tags(cell):
    return cell.metadata.get("tags", [])


@every_notebook
def test_every_exercise_is_followed_by_its_solution_which_a_copy_leaves_out(path):
    notebook = nbformat.read(path, 4)
    kinds = [tag for cell in notebook.cells for tag in tags(cell) if tag in ("exercise", "solution")]
    pairs = "".join("E" if kind == "exercise" else "S" for kind in kinds)
    assert re.fullmatch("(E+S+)+", pairs) and pairs.count("ES") <= 4
    made = student.without_solutions(notebook)
    assert not any("solution" in tags(cell) for cell in made.cells)
    assert [cell.source for cell in made.cells if "answer" in tags(cell)] == [""] * pairs.count("ES")


# Copies


class Copies:
    """A notebook of the study and its copy, by the sources of their cells."""

    def __init__(self, folder):
        self.source, self.copy = folder / "notebooks/01_own.ipynb", folder / "student/01_own.ipynb"

    def study(self, *cells):
        made = [nbformat.v4.new_code_cell(code, metadata={"tags": list(tags)}) for code, *tags in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=made), self.source)

    def write(self):
        return student.write_copies(self.copy.parent)[self.source.name]

    def edit(self, change):
        there = nbformat.read(self.copy, 4)
        change(there.cells)
        nbformat.write(there, self.copy)

    def read(self):
        return [cell.source for cell in nbformat.read(self.copy, 4).cells]


@pytest.fixture
def copies(tmp_path, monkeypatch):
    monkeypatch.setattr(student, "FOLDER", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    made = Copies(tmp_path)
    made.study(("how_much()", "exercise"), ("6 * 7", "solution"), ("42", "solution"), ("end = 1",))
    return made


def test_copy_keeps_the_exercise_and_empties_the_solution(copies):
    assert copies.write() == "written" and copies.read() == ["how_much()", "", "end = 1"]
    nbformat.validate(nbformat.read(copies.copy, 4))


def test_changed_copy_is_kept_and_named(copies):
    copies.write()
    copies.edit(lambda cells: cells[1].update(source="my answer"))
    copies.study(("new = 2",))
    assert copies.write() == "kept" and copies.read()[1] == "my answer"
    assert "01_own.ipynb" in student.report({"01_own.ipynb": "kept"}, copies.copy.parent)


def test_copy_that_was_only_run_is_renewed_when_the_study_changes(copies):
    copies.write()
    output = nbformat.v4.new_output("stream", text="1")
    copies.edit(lambda cells: cells[2].update(outputs=[output], execution_count=1))
    assert copies.write() == "up to date" and nbformat.read(copies.copy, 4).cells[2].outputs
    copies.study(("new = 2",))
    assert copies.write() == "renewed" and copies.read() == ["new = 2"]


def test_file_that_is_no_notebook_is_kept(copies):
    copies.copy.parent.mkdir()
    copies.copy.write_text("notes of mine")
    assert copies.write() == "kept" and copies.copy.read_text() == "notes of mine"


def test_copies_do_not_go_into_the_notebooks_folder(copies):
    with pytest.raises(StudyError):
        student.write_copies(copies.source.parent)


# Alone


def processor():
    """Seconds that finished child processes have used: what a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@every_notebook
def test_notebook_runs_alone_in_an_empty_run_folder(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    cell.source = ('from pathlib import Path\nfrom koa_lib import study\nprofile, seed = "smoke", 42\n'
                   f"study.BUILD = Path({str(tmp_path)!r})")
    start, before = time.perf_counter(), processor()
    client = NotebookClient(notebook, timeout=10 * ALONE, kernel_name="python3",
                            resources={"metadata": {"path": running.FOLDER}})
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = min(time.perf_counter() - start, processor() - before)
    assert [path.name for path in (tmp_path / "smoke").iterdir()] == ["interactive"] and seconds < ALONE
