"""The notebooks: clean and thin in the repository, executed as a whole under `smoke`, kept for reading when they fail."""

import ast
import json
import re
import subprocess
import sys
import time

import nbformat
import pytest
import yaml
from conftest import make

from koa_lib import manifests, notebooks, predictions, profile
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXTRA_KEYS = "metadata.papermill cell.metadata.papermill metadata.language_info cell.metadata.execution"
every_notebook = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def tagged(path, tag):
    return [cell for cell in cells(path) if tag in cell.metadata.get("tags", [])]


def test_the_study_has_its_notebooks():
    names = {path.stem for path in SOURCES}
    assert {"01_data_audit", "02_zero_shot_baseline", "03_fine_tune", "04_baselines", "05_external_evaluation", "06_statistics", "07_similarity_retrieval"} <= names


def test_notebooks_are_stripped():
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", EXTRA_KEYS, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, f"run `make strip`:\n{done.stdout}{done.stderr}"


@every_notebook
def test_kernel_is_the_one_everyone_has(path):
    assert nbformat.read(path, 4).metadata["kernelspec"]["name"] == "python3"


@every_notebook
def test_one_parameters_cell_with_two_literals(path):
    (cell,) = tagged(path, "parameters")
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == {"profile": "demo", "seed": profile.load("demo").seed}


@every_notebook
def test_common_skeleton(path):
    words = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert words.startswith("# ") and all(part in words for part in ("**Question.**", "**Paper items:**", "**Run time:**", "## Recap", "**Try it.**"))
    assert "Compared with the paper" in words or "## Scorecard" in words
    code = "\n".join(cell.source for cell in cells(path))
    assert code.count("study = Study.open(profile, seed)") == 1


@every_notebook
def test_code_is_thin_and_stays_in_the_library(path):
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= 14, cell.source
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)], cell.source


@every_notebook
def test_nothing_of_this_machine_and_no_installation(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"[\"'(\s](?:/(?:home|work|root|tmp|Users|mnt|data|opt|usr)/|[A-Z]:\\\\)|!pip|%pip|!conda|sys\.path", text)
    assert not found


# One run of all


def test_smoke_run_executed_every_notebook(smoke_run):
    for source in SOURCES:
        executed = nbformat.read(smoke_run / "nb" / source.name, 4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()), source.name
        (injected,) = [cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])]
        assert "smoke" in injected.source
    assert not list((smoke_run / "nb").glob("*.failed.ipynb")) + list((smoke_run / "nb").glob("*.running.ipynb"))


@pytest.mark.parametrize("name", [f"tables/table_{k}.csv" for k in range(1, 6)] + [f"figures/figure_{k}.png" for k in range(1, 9)])
def test_smoke_run_made_every_paper_item(smoke_run, name):
    content = (smoke_run / name).read_bytes()
    assert content.startswith(b"\x89PNG") if name.endswith("png") else len(content.splitlines()) > 1


def test_smoke_run_left_its_inputs_and_log(smoke_run):
    assert yaml.safe_load((smoke_run / "inputs.yaml").read_text())["profile"] == "smoke"
    steps = [json.loads(line) for line in (smoke_run / "run.jsonl").read_text().splitlines()]
    assert {source.stem for source in SOURCES} <= {line["step"] for line in steps} and {line["status"] for line in steps} <= {"built", "reused"}


def test_smoke_predictions_keep_the_contract(smoke_run):
    lists = {name: manifests.read_manifest(smoke_run / "data" / name / "manifest.csv") for name in ("phantom_a", "phantom_b")}
    files = sorted((smoke_run / "predictions").glob("*.csv"))
    for path in files:
        name = re.fullmatch(r"([\w-]+)__(phantom_[ab])-(\w+?)__(\w+)-(\w+)__fold(\d+|mean)__seed(42|43)(__\w+)?\.csv", path.name)
        assert name, path.name
        graded = predictions.join(predictions.read(path), lists[name[2]])
        assert len(graded) and (name[3] not in ("test", "val", "external") or set(graded["split"]) == {name[3]}), path.name
    assert {path.name.split("__")[0] for path in files} >= {"clip-as_printed", "clip-our_protocol", "resnet50", "vgg19"}


def test_smoke_primary_names_existing_predictions(smoke_run):
    named = json.loads((smoke_run / "primary.json").read_text())
    assert "phantom_b-external" in named and all((smoke_run / "predictions" / file).is_file() for file in named.values())


def test_second_make_does_nothing(smoke_run):
    before = {path: path.stat().st_mtime_ns for path in (smoke_run / "nb").iterdir()}
    start = time.perf_counter()
    done = make("reproduce", "PROFILE=smoke")
    seconds = time.perf_counter() - start
    assert done.returncode == 0 and "up to date" in done.stdout and str(smoke_run / "html" / "index.html") in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (smoke_run / "nb").iterdir()}
    assert seconds < 4  # 2 s on a machine that does nothing else


# Failure


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that puts a notebook with one more cell in a folder of its own; runs go beside it."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")

    def write(code):
        parameters = nbformat.v4.new_code_cell('profile = "demo"\nseed = 42', metadata={"tags": ["parameters"]})
        made = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, tmp_path / "01_own.ipynb")
        return tmp_path / "build" / "smoke" / "nb"

    return write


def test_failing_notebook_is_kept_for_reading_and_goes_when_it_works(own):
    folder = own('from koa_lib.errors import StudyError\nraise StudyError("Row 7 of the manifest has no grade.")')
    with pytest.raises(StudyError) as error:
        notebooks.execute("01_own", "smoke")
    message = str(error.value)
    assert "01_own" in message and "Row 7 of the manifest has no grade." in message and "Traceback" not in message
    assert str(folder / "01_own.failed.ipynb") in message and [path.name for path in folder.iterdir()] == ["01_own.failed.ipynb"]
    own("assert (profile, seed) == ('smoke', 42)")
    assert notebooks.execute("01_own", "smoke") == folder / "01_own.ipynb"
    assert [path.name for path in folder.iterdir()] == ["01_own.ipynb"]
    assert json.loads((folder.parent / "run.jsonl").read_text().splitlines()[-1])["step"] == "01_own"


def test_failing_notebook_shows_what_it_printed(own, capsys):
    own("print('epoch 1/3: loss 1.2')\n1 / 0")
    with pytest.raises(StudyError, match="ZeroDivisionError"):
        notebooks.execute("01_own", "smoke")
    assert "01 | epoch 1/3: loss 1.2" in capsys.readouterr().out


def test_unknown_notebook_lists_the_known(own):
    own("pass")
    with pytest.raises(StudyError, match="no notebook '99_none'.*01_own"):
        notebooks.execute("99_none", "smoke")


def test_summary_closes_with_result_time_and_place(tmp_path):
    (tmp_path / "headline.txt").write_text("Kappa is 0.7.\n")
    steps = [("01_a", "01_a", 60), ("checkpoints/x", "01_a", 600), ("01_a", "01_a", 120), ("02_b", "02_b", 60)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps({"step": s, "notebook": n, "seconds": t}) + "\n" for s, n, t in steps))
    assert notebooks.summarise(tmp_path).splitlines() == ["Kappa is 0.7.", "notebooks: 3.0 min", f"report: {tmp_path / 'html' / 'index.html'}"]
