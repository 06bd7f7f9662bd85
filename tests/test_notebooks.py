"""The notebooks: clean and thin in the repository, executed as a whole under `smoke`, kept for reading when they fail."""

import ast
import json
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml
from conftest import make

from koa_lib import journal, predictions, profile
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper.published import SYSTEMS
from koa_lib.profile import ROOT
from koa_lib.report import closing, entries, running, stamps
from reports import build, reference

SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXTRA_KEYS = "metadata.papermill cell.metadata.papermill metadata.language_info cell.metadata.execution"
every_notebook = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def tagged(path, tag):
    return [cell for cell in cells(path) if tag in cell.metadata.get("tags", [])]


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
    assert words.startswith("# ") and all(part in words for part in ("**Question.**", "**Paper items:**", "## Recap", "**Try it.**"))
    code = "\n".join(cell.source for cell in cells(path))
    assert code.count("study = Study.open(profile, seed)") == 1


@every_notebook
def test_code_stays_in_the_library(path):
    for cell in cells(path):
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


def test_smoke_run_showed_what_is_declared(smoke_run):
    listed = json.loads((smoke_run / "exhibits.json").read_text(encoding="utf-8"))
    assert set(listed) == set(entries.every())
    for key, exhibit in listed.items():
        for file in exhibit["files"]:
            content = (smoke_run / file).read_bytes()
            assert content.startswith(b"\x89PNG") if file.endswith("png") else len(content.splitlines()) > 1, key


def test_smoke_run_answered_every_other_system(smoke_run):
    assert {path.stem for path in (smoke_run / "answers").glob("*.json")} == set(SYSTEMS)


def test_smoke_run_left_its_inputs_and_log(smoke_run):
    assert yaml.safe_load((smoke_run / "inputs.yaml").read_text())["profile"] == "smoke"
    steps = [json.loads(line) for line in (smoke_run / "run.jsonl").read_text().splitlines()]
    assert {source.stem for source in SOURCES} <= {line["step"] for line in steps} and {line["status"] for line in steps} <= {"built", "reused"}


def test_smoke_predictions_keep_the_contract(smoke_run):
    lists = {name: read_manifest(smoke_run / "data" / name / "manifest.csv") for name in ("phantom_a", "phantom_b")}
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


def test_smoke_run_told_little_and_logged_everything(smoke_run):
    for source in SOURCES:
        log = (smoke_run / "logs" / f"{source.stem}.log").read_text()
        assert all(f"code cell {number} of" in log for number in range(1, len([cell for cell in cells(source) if cell.source.strip()]) + 1)), source.stem
    assert "checkpoints/clip-as_printed__fold1__seed42: " in (smoke_run / "logs" / "03_fine_tune.log").read_text()
    assert not any("\x1e" in path.read_text() for path in (smoke_run / "nb").glob("*.ipynb"))


def test_steps_note_their_peak_memory(smoke_run):
    last = {line["step"]: line for line in journal.read(smoke_run)}
    assert all(last[source.stem]["peak_mib"] > 100 for source in SOURCES)


def test_verify_refuses_tables_of_another_state_of_the_code(smoke_run, monkeypatch):
    reference.check_fresh(smoke_run)
    monkeypatch.setattr(stamps, "of", lambda name, profile: "another")
    with pytest.raises(StudyError, match="01_data_audit|00_start_here.*older than the code"):
        reference.check_fresh(smoke_run)


# Failure


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that puts a notebook with one more cell in a folder of its own; runs go beside it."""
    monkeypatch.setattr(running, "FOLDER", tmp_path)
    monkeypatch.setattr(running, "BUILD", tmp_path / "build")

    def write(code):
        parameters = nbformat.v4.new_code_cell('profile = "demo"\nseed = 42', metadata={"tags": ["parameters"]})
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# T\n**Question.** Are "quotes" kept?\nMore.'), parameters, nbformat.v4.new_code_cell(code)])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, tmp_path / "01_own.ipynb")
        return tmp_path / "build" / "smoke" / "nb"

    return write


def failure(code, own):
    folder = own(code)
    with pytest.raises(StudyError) as error:
        running.execute("01_own", "smoke")
    return str(error.value).splitlines(), folder


def test_failing_notebook_is_five_lines_is_kept_for_reading_and_goes_when_it_works(own):
    lines, folder = failure('from koa_lib.errors import StudyError\nraise StudyError("Row 7 of the manifest has no grade.")', own)
    assert lines == ["01_own failed in code cell 2: from koa_lib.errors import StudyError", "  Row 7 of the manifest has no grade.",
                     f"  full log: {folder.parent / 'logs' / '01_own.log'}", f"  the notebook as far as it came: {folder / '01_own.failed.ipynb'}",
                     "  Finished work is kept: the same command goes on from there."]
    assert "Traceback" in (folder.parent / "logs" / "01_own.log").read_text() and [path.name for path in folder.iterdir()] == ["01_own.failed.ipynb"]
    own("assert (profile, seed) == ('smoke', 42)")
    assert running.execute("01_own", "smoke") == folder / "01_own.ipynb"
    assert [path.name for path in folder.iterdir()] == ["01_own.ipynb"]
    assert journal.read(folder.parent)[-1]["step"] == "01_own"


@pytest.mark.parametrize("code, words", [
    ("import os\nos._exit(9)", "The kernel died"), ("raise OSError(28, 'No space left on device')", "The disk is full"),
    ("raise MemoryError()", "Memory ran out"), ("raise ValueError('first\\nsecond\\nthird')", "ValueError: first …")])
def test_why_it_failed_is_said_in_plain_words_and_five_lines(own, code, words):
    lines, folder = failure(code, own)
    assert len(lines) == 5 and code.split("\n")[0][:40] in lines[0] and words in lines[1] and (folder / "01_own.failed.ipynb").is_file()


def test_log_holds_prints_warnings_and_what_processes_say(own, capsys):
    _, folder = failure("import os, sys, warnings\nprint('loss 1.2')\nwarnings.warn('odd')\nos.system('echo native >&2')\n1 / 0", own)
    log = (folder.parent / "logs" / "01_own.log").read_text()
    assert all(word in log for word in ("loss 1.2", "UserWarning: odd", "native", "ZeroDivisionError", "code cell 2 of 2"))
    assert "odd" not in capsys.readouterr().out


def test_what_is_shown_of_a_notebook(own, capsys, monkeypatch):
    folder = own("from koa_lib import progress\nprogress.tell('data/a: built', event='built', step='data/a', seconds=3.0, reason='x')\nprint('kept')")
    running.execute("01_own", "smoke")
    head, step, done = capsys.readouterr().out.splitlines()
    assert head == '[1/1] 01_own: Are "quotes" kept?'
    assert step == "  01 | data/a: built" and done.startswith("[1/1] 01_own: done in ") and "1 step built" in done
    made = nbformat.read(folder / "01_own.ipynb", 4)
    assert [output.text for cell in made.cells for output in cell.get("outputs", [])] == ["kept\n"]


def test_stopped_by_hand_is_one_line_and_130(own, tmp_path):
    folder = own("import time\nprint('here', flush=True)\ntime.sleep(300)")
    # Tests that a shell runs in the background inherit "ignore" for this signal.
    program = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               f"import sys; from pathlib import Path; from koa_lib.report import entries, running; running.FOLDER = Path({str(tmp_path)!r}); running.BUILD = running.FOLDER / 'build'\n"
               "from koa_lib.cli import main; sys.argv = ['koa', 'notebook', '01_own', '--profile', 'smoke']; main()")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, end = folder.parent / "logs" / "01_own.log", time.time() + 60
    while time.time() < end and not (log.is_file() and " here" in log.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)  # a loaded machine takes its time to end the kernel
    assert process.returncode == 130 and err == "koa: stopped. Finished work is kept: the same command goes on from there.\n" and "Traceback" not in out
    assert list(folder.iterdir()) == []


def test_unknown_notebook_lists_the_known(own):
    own("pass")
    with pytest.raises(StudyError, match="no notebook '99_none'.*01_own"):
        running.execute("99_none", "smoke")


# The end


def write_run(folder, moment):
    (folder / "headline.txt").write_text("Kappa is 0.7.\n")
    steps = [("01_a", "01_a", 60, "built"), ("checkpoints/x", "01_a", 600, "built"), ("01_a", "01_a", 120, "built"), ("checkpoints/y", "02_b", 30, "reused"), ("02_b", "02_b", 60, "built")]
    lines = [json.dumps({"step": s, "notebook": n, "seconds": t, "status": how, "time": moment}) for s, n, t, how in steps]
    (folder / "run.jsonl").write_text("\n".join([*lines, '{"half a li']))
    for name in ("tables/table_1.csv", "figures/figure_1.png", "figures/figure_1.svg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    noted = dict.fromkeys(("name", "notebook", "title", "files", "reason", "commit", "data"), "")
    (folder / "exhibits.json").write_text(json.dumps({f"{kind}_1": noted | {"kind": kind} for kind in ("table", "figure")}))


def test_summary_closes_with_result_time_and_place(tmp_path, monkeypatch):
    monkeypatch.delenv(journal.STARTED, raising=False)
    write_run(tmp_path, "2026-01-02T03:04:05")
    result, made, took, following, report = closing.summarise(tmp_path, "PROFILE=oai").splitlines()
    assert result == "result: Kappa is 0.7." and made == f"made: 1 tables, 1 figures in {tmp_path}" and "3 min 0 s in notebooks" in took
    assert "make pdf PROFILE=oai" in following and "verify" not in following and report == f"report: file://{tmp_path}/html/index.html"


def test_summary_of_a_make_run_says_what_was_built_and_reused(tmp_path, monkeypatch):
    monkeypatch.setenv(journal.STARTED, str(int(time.time()) - 5))
    write_run(tmp_path, time.strftime(journal.TIME))
    assert "s in all; 1 step built in 10 min 0 s, 1 reused (30 s saved)" in closing.summarise(tmp_path)


def test_failing_report_is_five_lines_with_its_log(tmp_path, monkeypatch):
    def fail(folder):
        raise StudyError("Sphinx failed. It says:\n" + "\n".join(f"WARNING {k}" for k in range(9)))

    monkeypatch.setattr("reports.build.build", fail)
    with pytest.raises(StudyError) as error:
        build.tell_and_build(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and lines[:2] == ["Sphinx failed. It says:", "WARNING 0"] and str(tmp_path / "logs" / "report.log") in lines[3]
    assert "WARNING 8" in (tmp_path / "logs" / "report.log").read_text()
