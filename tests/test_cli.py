"""The command line: a user's mistake is one sentence on stderr and exit code 1, never a traceback."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from koa_lib import cli, journal, study
from koa_lib.data.manifest import COLUMNS, read_manifest
from koa_lib.profile import ROOT
from koa_lib.report import running
from reports import __main__ as pages

PAGES = ("build", "pdf", "verify", "reference")  # of `python -m reports`, which make calls


@pytest.fixture
def koa(monkeypatch, capsys, tmp_path):
    """A function that runs the command in this process, away from other runs: exit code, stdout, stderr."""
    monkeypatch.setattr(study, "BUILD", tmp_path / "build")
    monkeypatch.setattr(running, "BUILD", tmp_path / "build")

    def run(text, *more):
        arguments = [*text.split(), *map(str, more)]
        monkeypatch.setattr(sys, "argv", ["koa", *arguments])
        code = 0
        try:
            cli.run(pages.app if arguments[0] in PAGES else cli.app)
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def copy(cohort_a, tmp_path, monkeypatch):
    """A copy of cohort A to spoil; the commands run beside it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(cohort_a[0], tmp_path / "copy"))


def is_sentence(done, *words, code=1):
    ended, out, err = done
    one_line = (ended, out, err.count("\n"), err[:5]) == (code, "", 1, "koa: ")
    return one_line and all(word in err for word in words)


@pytest.mark.parametrize("arguments, word", [
    ("inputs --profile dmeo", "smoke"),
    ("inputs --profile oai", "DATA="),
    ("notebook 99_none --profile smoke", "99_none"),
    *((f"{command} --profile smoke --seed 8", "smoke-seed8") for command in (*PAGES, "summary")),
    *((f"{command} --profile dmeo", "smoke") for command in (*PAGES, "summary", "notebook 01_data_audit")),
    (f"student {ROOT / 'notebooks'}", "notebooks"),
    ("data fetch nothing .", "nothing"),
    ("data fetch phantom_a", "make reproduce"),
    ("data build gornale2020 nowhere", "nowhere"),
    ("data verify gornale2020 nowhere", "nowhere"),
    ("data audit gornale2020 nowhere", "nowhere"),
])
def test_mistake_is_one_line_and_exit_1(koa, arguments, word):
    assert is_sentence(koa(arguments), word)


def test_the_environment_of_another_clone_does_not_run_in_its_stead(koa, tmp_path, monkeypatch):
    (tmp_path / "other" / "koa_lib").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert is_sentence(koa("inputs --profile smoke"), str(tmp_path / "other"), str(ROOT), "deactivate")
    assert not (tmp_path / "build").exists()


def test_inputs_are_written_and_the_journal_kept_short(koa, tmp_path):
    run = tmp_path / "build" / "smoke-seed7"
    run.mkdir(parents=True)
    for _ in range(9):
        journal.append(run, "01_data_audit", "built", 1, "executed", "01_data_audit")
    assert koa("inputs --profile smoke --seed 7") == (0, "", "")
    assert (run / "inputs.yaml").is_file() and len(journal.read(run)) == 1


@pytest.mark.parametrize("raised, code, words", [
    (KeyboardInterrupt(), 130, []),
    (OSError(errno.ENOSPC, "No space", "run.jsonl"), 1, ["No space", "run.jsonl"]),
    (OSError(errno.EACCES, "Permission denied", "a\x1b[2J"), 1, ["a?[2J", "Permission denied"])])
def test_interrupt_and_full_disk_are_one_line(koa, monkeypatch, raised, code, words):
    def stop(*_):
        raise raised

    monkeypatch.setattr(running, "execute", stop)
    assert is_sentence(koa("notebook 01_data_audit"), *words, code=code)


def test_a_path_that_the_locale_cannot_write_is_no_traceback(copy, tmp_path):
    folder = copy.rename(tmp_path / "Größe 膝")
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    program = "from koa_lib.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "data", "verify", "phantom_a", folder],
                          env={**plain, "LC_ALL": "C", "PYTHONUTF8": "0"}, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


# Cohorts


def test_phantoms_are_written_once_and_never_over_something(koa, tmp_path):
    assert koa("data phantoms --patients 2 --seed 2", tmp_path / "new" / "knees")[0] == 0
    assert len(read_manifest(tmp_path / "new" / "knees" / "manifest.csv")) == 4
    assert is_sentence(koa("data phantoms", tmp_path / "new"), "new")


def test_half_a_cohort_is_none_and_the_same_command_works_again(koa, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space", "knee.png")

    with monkeypatch.context() as patched:
        patched.setattr("koa_lib.phantoms.cohorts.write_manifest", full)
        code, _, said = koa("data phantoms --patients 2", tmp_path / "knees")
    assert code == 1 and "No space" in said and "goes on" not in said and not any(tmp_path.glob("*kn*"))
    assert koa("data phantoms --patients 2", tmp_path / "knees")[0] == 0


def test_verify_accepts_and_says_what_was_written_again_without_loss(koa, copy, cohort_a):
    first, second = (copy / path for path in cohort_a[1]["path"][:2])
    Image.open(first).save(first.with_suffix(".webp"), lossless=True)
    first.unlink()
    with open(second, "ab") as file:
        file.write(b"more")
    code, out, _ = koa("data verify phantom_a", copy)
    states = {"as listed": 22, "same pixels, other container": 1, "changed bytes, same pixels": 1}
    assert code == 0 and all(re.search(rf"{state} +{count}\b", out) for state, count in states.items())


@pytest.mark.parametrize("command, table", [
    ("verify phantom_a copy --out list.csv", "list.csv"),
    ("build phantom_a copy", None),
    ("audit phantom_a copy --out tables", "tables/affected_files.csv")])
def test_all_bad_files_are_named_at_the_end(koa, copy, cohort_a, command, table):
    bad = cohort_a[1]["path"][[1, 8, 20]].tolist()
    whole = (copy / bad[1]).read_bytes()
    for path, content in zip(bad, (b"", whole[:2000], b"<html>"), strict=True):
        (copy / path).write_bytes(content)
    code, *told = koa(f"data {command}")
    assert code == 1 and all(Path(path).name in "".join(told) for path in bad)
    assert not Path("phantom_a.csv").exists()
    if table:
        found = pd.read_csv(table, keep_default_na=False)
        unreadable = found.isin(["unreadable", "unreadable files"]).any(axis=1)
        assert sorted(found.loc[unreadable, "found" if "found" in found else "path"]) == sorted(bad)


def test_audit_tells_how_many_of_the_listed_pictures_it_found_and_is_never_written_over(koa, copy, cohort_a):
    (copy / cohort_a[1]["path"][5]).unlink()
    code, out, _ = koa("data audit phantom_a copy")
    assert code == 0 and "23 of 24" in out
    before = {path: path.read_bytes() for path in Path("phantom_a_audit").iterdir()}
    assert len(pd.read_csv("phantom_a_audit/sets.csv")) == 23
    assert is_sentence(koa("data audit phantom_a copy"), "phantom_a_audit", "--out")
    assert before == {path: path.read_bytes() for path in Path("phantom_a_audit").iterdir()}


@pytest.mark.parametrize("column, value", [("kl_grade", "severe"), ("path", "train/../../x.png")])
def test_bad_row_of_a_manifest_is_named(koa, copy, column, value):
    frame = pd.read_csv(copy / "manifest.csv", dtype=str, keep_default_na=False)
    frame.loc[6, column] = value
    frame.to_csv(copy / "manifest.csv", index=False)
    assert is_sentence(koa("data verify phantom_a", copy), str(copy / "manifest.csv"), "row 8", value)


def test_build_writes_a_manifest_once(koa, copy, cohort_a):
    code, out, _ = koa("data build phantom_a copy")
    assert code == 0 and "24 rows" in out and read_manifest("phantom_a.csv").equals(cohort_a[1][COLUMNS])
    assert is_sentence(koa("data build phantom_a copy"), "phantom_a.csv", "--out")


@pytest.mark.parametrize("command, out", [
    ("verify", "gone/list.csv"), ("build", "gone/new.csv"), ("audit", "copy/manifest.csv")])
def test_result_that_cannot_be_written_is_told_before_the_work(koa, copy, command, out):
    for path in copy.rglob("*.png"):
        path.unlink()  # the work would tell of this
    assert is_sentence(koa(f"data {command} phantom_a copy --out", out), out)
