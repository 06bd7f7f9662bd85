"""The notebooks: clean and thin in the repository, executed as a whole, kept for reading when they fail."""

import ast
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import make
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from koa_lib import journal, predictions, profile
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper.published import SYSTEMS
from koa_lib.profile import ROOT
from koa_lib.report import closing, entries, kernels, running, stamps
from reports import build, reference

SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
KEPT = ROOT / "tests" / "smoke"  # a few of the smoke run's tables
EXTRA_KEYS = "metadata.papermill cell.metadata.papermill metadata.language_info cell.metadata.execution"
MACHINE = r"[\"'(\s](?:/(?:home|work|root|tmp|Users|mnt|data|opt|usr)/|[A-Z]:\\\\)|[!%]pip|!conda|sys\.path"


def test_notebooks_are_stripped():
    command = [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", EXTRA_KEYS, *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run `make strip`:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_has_the_common_skeleton_and_leaves_code_to_the_library(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    parts = ("**Question.**", "**Paper items:**", "## Recap", "**Try it.**")
    assert words.startswith("# ") and all(part in words for part in parts)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (given,) = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(given).body}
    assert values == {"profile": "demo", "seed": profile.load("demo").seed}
    text = "\n".join(cell.source for cell in code)
    assert text.count("study = Study.open(profile, seed)") == 1
    own = ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, own)]
    assert not re.findall(MACHINE, path.read_text(encoding="utf-8"))


# One run of all


def test_smoke_run_executed_every_notebook_and_showed_what_is_declared(smoke_run):
    assert {path.name for path in (smoke_run / "nb").iterdir()} == {source.name for source in SOURCES}
    for source in SOURCES:
        executed = nbformat.read(smoke_run / "nb" / source.name, 4)
        code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
        assert all(cell.execution_count for cell in code), source.name
        (injected,) = [cell for cell in code if "injected-parameters" in cell.metadata.get("tags", [])]
        assert "smoke" in injected.source and "\x1e" not in (smoke_run / "nb" / source.name).read_text()
    listed = json.loads((smoke_run / "exhibits.json").read_text(encoding="utf-8"))
    assert set(listed) == set(entries.every())
    for key, exhibit in listed.items():
        for file in exhibit["files"]:
            content = (smoke_run / file).read_bytes()
            whole = content.startswith(b"\x89PNG") if file.endswith("png") else content.count(b"\n") > 1
            assert whole, key
    assert {path.stem for path in (smoke_run / "answers").glob("*.json")} == set(SYSTEMS)


def test_smoke_run_logged_every_step_with_its_memory(smoke_run):
    last = {line["step"]: line for line in journal.read(smoke_run)}
    for source in SOURCES:
        assert last[source.stem]["status"] == "built" and last[source.stem]["peak_mib"] > 100
        assert "code cell 1 of" in (smoke_run / "logs" / f"{source.stem}.log").read_text()
    told = (smoke_run / "logs" / "03_fine_tune.log").read_text()
    assert "checkpoints/clip-as_printed__fold1__seed42: " in told


def test_smoke_predictions_keep_the_contract(smoke_run):
    lists = {path.parent.name: read_manifest(path) for path in smoke_run.glob("data/*/manifest.csv")}
    pattern = r"([\w.-]+)__(phantom_[ab])-(\w+?)__(\w+)-(\w+)__fold(\d+|mean)__seed(42|43)(__\w+)?\.csv"
    arms = set()
    for path in (smoke_run / "predictions").glob("*.csv"):
        arm, cohort, split, *_ = re.fullmatch(pattern, path.name).groups()
        graded = predictions.join(predictions.read(path), lists[cohort])
        assert len(graded) and (split not in ("test", "val", "external") or set(graded["split"]) == {split})
        arms.add(arm)
    assert arms >= {"clip-as_printed", "clip-our_protocol", "resnet50", "vgg19"}
    named = json.loads((smoke_run / "primary.json").read_text())
    assert "phantom_b-external" in named
    assert all((smoke_run / "predictions" / file).is_file() for file in named.values())


def test_the_numbers_of_the_smoke_run_are_those_that_are_kept(smoke_run, tmp_path, monkeypatch):
    # What needs no training exactly; what is trained, on so few pictures, within ten times what the demo may.
    rules = yaml.safe_load(reference.TOLERANCES.read_text(encoding="utf-8"))
    rules["rules"] = [{**rule, "within": rule["within"] and 10 * rule["within"]} for rule in rules["rules"]]
    (tmp_path / "tolerances.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    monkeypatch.setattr(reference, "TOLERANCES", tmp_path / "tolerances.yaml")
    monkeypatch.setattr(reference, "FOLDER", KEPT.parent)
    misses, kept = reference.compare(smoke_run).misses, {path.stem for path in KEPT.glob("*.csv")}
    misses = misses[misses["table"].isin(kept)]
    assert kept and misses.empty, (
        f"{misses.to_string()}\nMeant? Copy these from {smoke_run / 'tables'} to {KEPT}.")


def test_second_make_does_nothing(smoke_run):
    page = smoke_run / "html" / "index.html"

    def times():
        return {path: path.stat().st_mtime_ns for path in (page, *(smoke_run / "nb").iterdir())}

    before = times()
    done = make("reproduce", "PROFILE=smoke")
    assert done.returncode == 0 and f"up to date: {page}" in done.stdout and before == times()


def test_verify_refuses_tables_of_another_state_of_the_code(smoke_run, monkeypatch):
    reference.check_fresh(smoke_run)
    monkeypatch.setattr(stamps, "of", lambda name, profile: "another")
    with pytest.raises(StudyError, match="00_start_here"):
        reference.check_fresh(smoke_run)


# Failure


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that executes a notebook with this cell in a folder of its own; `run` is that of its run."""
    monkeypatch.setattr(running, "FOLDER", tmp_path)
    monkeypatch.setattr(running, "BUILD", tmp_path / "build")

    def write(code):
        parameters = new_code_cell('profile = "demo"\nseed = 42', metadata={"tags": ["parameters"]})
        question = new_markdown_cell('# T\n**Question.** Are "quotes" kept?\nMore.')
        made = new_notebook(cells=[question, parameters, new_code_cell(code)])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, tmp_path / "01_own.ipynb")

    def execute(code):
        write(code)
        return running.execute("01_own", "smoke")

    execute.write, execute.run = write, tmp_path / "build" / "smoke"
    return execute


def test_failing_notebook_is_kept_for_reading_and_goes_when_it_works(own, capsys):
    code = ("import os, warnings\nfrom koa_lib.errors import StudyError\nprint('loss 1.2')\n"
            "warnings.warn('odd')\nos.system('echo native >&2')\nraise StudyError('Row 7 has no grade.')")
    log, failed = own.run / "logs" / "01_own.log", own.run / "nb" / "01_own.failed.ipynb"
    with pytest.raises(StudyError) as error:
        own(code)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and "code cell 2" in lines[0] and lines[1] == "  Row 7 has no grade."
    assert str(log) in lines[2] and str(failed) in lines[3]
    # The log has everything, the terminal little.
    for told in ("loss 1.2", "UserWarning: odd", "native", "Traceback", "code cell 2 of 2"):
        assert told in log.read_text()
    assert "odd" not in capsys.readouterr().out and list((own.run / "nb").iterdir()) == [failed]
    made = own("from koa_lib import progress\nassert (profile, seed) == ('smoke', 42)\nprint('kept')\n"
               "progress.tell('data/a: built', event='built', step='data/a', seconds=3.0, reason='x')")
    assert list((own.run / "nb").iterdir()) == [made] and journal.read(own.run)[-1]["step"] == "01_own"
    head, step, done = capsys.readouterr().out.splitlines()
    assert 'Are "quotes" kept?' in head and "data/a: built" in step and "1 step built" in done
    outputs = [output.text for cell in nbformat.read(made, 4).cells for output in cell.get("outputs", [])]
    assert outputs == ["kept\n"]


@pytest.mark.parametrize("code, told", [
    ("import os\nos._exit(9)", "kernel died"),
    ("raise OSError(28, 'No space left on device')", "disk is full"),
    ("raise MemoryError()", "Memory ran out")])
def test_why_it_failed_is_said_in_plain_words(own, code, told):
    with pytest.raises(StudyError) as error:
        own(code)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and told in lines[1] and (own.run / "nb" / "01_own.failed.ipynb").is_file()


def start(folder):
    """Another process that executes the notebook, as make does."""
    # Tests that a shell runs in the background inherit "ignore" for this signal.
    program = f"""import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from koa_lib.cli import main
from koa_lib.report import running
running.FOLDER, running.BUILD = Path({str(folder)!r}), Path({str(folder)!r}) / 'build'
sys.argv = ['koa', 'notebook', '01_own', '--profile', 'smoke']
main()"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], **pipes)


def wait_until(done, seconds=240):  # a kernel starts slowly on a loaded machine
    end = time.time() + seconds
    while time.time() < end and not done():
        time.sleep(0.1)
    assert done()


@pytest.fixture(scope="module")
def forks():
    """A function that has the kernels of a test forked."""
    program = ("import sys\nfrom koa_lib.report import kernels\nkernels.LIBRARIES = ['pandas']\n"
               "sys.exit(kernels.serve('1', sys.argv[1:]))")
    command = ["sh", "-c", f"echo ${kernels.SOCKET}; read end; exit 7"]
    server = subprocess.Popen([sys.executable, "-c", program, *command], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    path = server.stdout.readline().strip()
    yield lambda patch: patch.setenv(kernels.SOCKET, path)
    server.communicate("end\n", timeout=60)
    assert server.returncode == 7 and not Path(path).parent.exists()


def test_a_forked_kernel_is_a_kernel_that_has_the_libraries(own, forks, monkeypatch):
    forks(monkeypatch)
    monkeypatch.setenv("GIVEN", "here")
    own("import os, sys\nassert 'pandas' in sys.modules and os.environ['GIVEN'] == 'here'\n"
        f"assert sys.path[0] != '' and os.getcwd() == {str(running.FOLDER)!r}\n"
        "os.system('echo native >&2')\n"
        "from pathlib import Path\nfrom koa_lib import journal\nkept = bytes(range(250)) * 10**6\n"
        f"journal.append(Path({str(own.run)!r}), 's', 'built', 1, '', '01_own')")
    assert "native" in (own.run / "logs" / "01_own.log").read_text()
    assert journal.read(own.run)[-1]["peak_mib"] > 250
    with pytest.raises(StudyError, match="kernel died"):
        own("import os\nos._exit(9)")


@pytest.mark.parametrize("forked", [False, True])
def test_stopped_by_hand_is_one_line_and_130(own, tmp_path, forks, monkeypatch, forked):
    if forked:
        forks(monkeypatch)
    process, started = started_kernel(own, tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)  # a loaded machine takes its time to end the kernel
    assert process.returncode == 130 and err.startswith("koa: stopped.") and err.count("\n") == 1
    assert "Traceback" not in out and list((own.run / "nb").iterdir()) == []
    wait_until(lambda: not any(path.exists() for path in started))


def test_no_forked_kernel_outlives_whoever_asked_for_it(own, tmp_path, forks, monkeypatch):
    forks(monkeypatch)
    process, started = started_kernel(own, tmp_path)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(path.exists() for path in started))


def started_kernel(own, folder):
    """A process that executes an endless notebook, and in /proc its kernel and the child of that."""
    own.write("import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
              "print(f'kernel {os.getpid()}, child {child.pid}', flush=True)\ntime.sleep(300)")
    process, log = start(folder), own.run / "logs" / "01_own.log"
    wait_until(lambda: log.is_file() and "child " in log.read_text())
    numbers = re.findall(r"(?:kernel|child) (\d+)", log.read_text())
    return process, [Path("/proc", number) for number in numbers]


@pytest.mark.parametrize("ends", [True, False], ids=["finished", "stopped"])
def test_of_two_at_once_the_second_says_whom_it_waits_for_and_takes_over_what_is_left(own, tmp_path, ends):
    going_on, executions = tmp_path / "go", tmp_path / "executions"
    own.write(f"""import time
from pathlib import Path
with open({str(executions)!r}, "a") as file:
    file.write("x")
while not Path({str(going_on)!r}).exists():
    time.sleep(0.05)""")
    first = start(tmp_path)
    wait_until(executions.exists)
    second = start(tmp_path)
    told = second.stdout.readline()
    assert "01_own" in told and "smoke" in told and second.poll() is None
    if ends:
        going_on.touch()
    else:
        first.send_signal(signal.SIGINT)
        wait_until(lambda: executions.read_text() == "xx")
        going_on.touch()
    codes = first.wait(timeout=240), second.wait(timeout=240)
    assert codes == (0 if ends else 130, 0) and executions.read_text() == ("x" if ends else "xx")
    assert [path.name for path in (own.run / "nb").iterdir()] == ["01_own.ipynb"]


def test_unknown_notebook_lists_the_known(own):
    own.write("pass")
    with pytest.raises(StudyError, match="'99_none'.*01_own"):
        running.execute("99_none", "smoke")


# The end


@pytest.mark.parametrize("started, took", [
    (None, ["3 min 0 s"]),
    (5, ["1 step built in 10 min 0 s", "1 reused (30 s saved)"])])
def test_summary_closes_with_result_time_and_place(tmp_path, monkeypatch, started, took):
    monkeypatch.delenv(journal.STARTED, raising=False)
    if started:
        monkeypatch.setenv(journal.STARTED, str(int(time.time()) - started))
    (tmp_path / "headline.txt").write_text("Kappa is 0.7.\n")
    for step, notebook, seconds, status in (
        ("01_a", "01_a", 60, "built"), ("x", "01_a", 600, "built"), ("01_a", "01_a", 120, "built"),
        ("x", "02_b", 9, "reused"), ("y", "02_b", 30, "reused"), ("02_b", "02_b", 60, "built"),
    ):
        journal.append(tmp_path, step, status, seconds, "r", notebook)
    noted = dict.fromkeys(("name", "notebook", "title", "files", "reason", "commit", "data"), "")
    listed = {f"{kind}_1": noted | {"kind": kind} for kind in ("table", "figure")}
    (tmp_path / "exhibits.json").write_text(json.dumps(listed))
    text = closing.summarise(tmp_path, "PROFILE=oai")
    for told in ("Kappa is 0.7.", "1 tables, 1 figures", "make pdf PROFILE=oai", "html/index.html", *took):
        assert told in text


def test_failing_report_is_five_lines_with_its_log(tmp_path, monkeypatch):
    def fail(folder):
        raise StudyError("\n".join(f"WARNING {k}" for k in range(9)))

    monkeypatch.setattr("reports.build.build", fail)
    with pytest.raises(StudyError) as error:
        build.tell_and_build(tmp_path)
    lines, log = str(error.value).splitlines(), tmp_path / "logs" / "report.log"
    assert len(lines) == 5 and lines[0] == "WARNING 0" and str(log) in lines[3]
    assert "WARNING 8" in log.read_text()
