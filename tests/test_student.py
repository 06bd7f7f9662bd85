"""What a student relies on: copies without solutions that are never overwritten, links that lead somewhere, notebooks that run alone."""

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
code, markdown = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
ALONE = 60  # seconds that a notebook may take in an empty run folder


def processor():
    """Seconds that finished child processes have used: what a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tags(cell):
    return cell.metadata.get("tags", [])


def exercises(notebook):
    """The order of cells that belong to exercises: E, and S for those of their solutions."""
    return "".join("E" if tag == "exercise" else "S" for cell in notebook.cells for tag in tags(cell) if tag in ("exercise", "solution"))


@every_notebook
def test_every_exercise_is_followed_by_its_solution(path):
    pairs = exercises(nbformat.read(path, 4))
    assert re.fullmatch("(E+S+)+", pairs) and pairs.count("ES") <= 4


# Copies


def exercise_notebook(answer="6 * 7"):
    cells = [markdown("How much is it?", metadata={"tags": ["exercise"]}), code(answer, metadata={"tags": ["solution"]}), markdown("Because.", metadata={"tags": ["solution"]}), code("end = 1")]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of one notebook of the study, and a folder for copies."""
    monkeypatch.setattr(student, "FOLDER", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    nbformat.write(exercise_notebook(), tmp_path / "notebooks" / "01_own.ipynb")
    return tmp_path / "notebooks" / "01_own.ipynb", tmp_path / "student"


def test_copy_keeps_the_exercise_and_empties_the_solution(own):
    source, folder = own
    assert student.write_copies(folder) == {"01_own.ipynb": "written"}
    copy = nbformat.read(folder / "01_own.ipynb", 4)
    nbformat.validate(copy)
    assert [(cell.cell_type, cell.source) for cell in copy.cells] == [("markdown", "How much is it?"), ("code", ""), ("code", "end = 1")]
    assert "6 * 7" not in (folder / "01_own.ipynb").read_text() and "6 * 7" in source.read_text()


def test_changed_copy_is_kept_and_named(own):
    source, folder = own
    student.write_copies(folder)
    copy = nbformat.read(folder / "01_own.ipynb", 4)
    copy.cells[1].source = "my answer"
    nbformat.write(copy, folder / "01_own.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[code("new = 2")]), source)
    done = student.write_copies(folder)
    assert done == {"01_own.ipynb": "kept"} and "01_own.ipynb is kept" in student.report(done, folder)
    assert nbformat.read(folder / "01_own.ipynb", 4).cells[1].source == "my answer"


def test_copy_that_was_only_run_is_renewed_when_the_study_changes(own):
    source, folder = own
    student.write_copies(folder)
    copy = nbformat.read(folder / "01_own.ipynb", 4)
    copy.cells[2].outputs, copy.cells[2].execution_count = [nbformat.v4.new_output("stream", text="1")], 1
    nbformat.write(copy, folder / "01_own.ipynb")
    assert student.write_copies(folder) == {"01_own.ipynb": "up to date"} and nbformat.read(folder / "01_own.ipynb", 4).cells[2].outputs
    nbformat.write(nbformat.v4.new_notebook(cells=[code("new = 2")]), source)
    assert student.write_copies(folder) == {"01_own.ipynb": "renewed"} and nbformat.read(folder / "01_own.ipynb", 4).cells[0].source == "new = 2"


def test_file_that_is_no_notebook_is_kept(own):
    _, folder = own
    folder.mkdir()
    (folder / "01_own.ipynb").write_text("notes of mine")
    assert student.write_copies(folder) == {"01_own.ipynb": "kept"} and (folder / "01_own.ipynb").read_text() == "notes of mine"


def test_copies_do_not_go_into_the_notebooks_folder(own):
    source, _ = own
    with pytest.raises(StudyError, match="folder of their own"):
        student.write_copies(source.parent)


@every_notebook
def test_study_copy_holds_no_solution(path):
    notebook = nbformat.read(path, 4)
    made = student.without_solutions(notebook)
    assert not any("solution" in tags(cell) for cell in made.cells)
    assert [cell.source for cell in made.cells if "answer" in tags(cell)] == [""] * exercises(notebook).count("ES")


@every_notebook
def test_linked_words_stand_in_the_glossary(path):
    entries = re.findall(r"^(\S.*)\n  ", (ROOT / "reports" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = {"term-" + re.sub(r"[^\w]+", "-", entry).strip("-") for entry in entries}
    assert set(re.findall(r"glossary\.md#([\w-]+)", path.read_text(encoding="utf-8"))) <= known


# Alone


@pytest.mark.slow
@every_notebook
def test_notebook_runs_alone_in_an_empty_run_folder(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    place = next(k for k, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    elsewhere = f"from pathlib import Path\nfrom koa_lib import study\nstudy.BUILD = Path({str(tmp_path)!r})"
    notebook.cells[place] = code(f'profile, seed = "smoke", 42\n{elsewhere}')
    start, before = time.perf_counter(), processor()
    NotebookClient(notebook, timeout=10 * ALONE, kernel_name="python3", resources={"metadata": {"path": running.FOLDER}}).execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds, worked = time.perf_counter() - start, processor() - before
    print(f"{path.stem}: {seconds:.0f} s, {worked:.0f} s of the processor")
    assert (tmp_path / "smoke" / "inputs.yaml").is_file() and all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
    assert min(seconds, worked) < ALONE
