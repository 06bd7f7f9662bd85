"""The command line: a user's mistake is one sentence on stderr and exit code 1, never a traceback."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from koa_lib import cli, journal, notebooks, study
from koa_lib.data import cohorts
from koa_lib.data.manifest import COLUMNS, read_manifest


@pytest.fixture
def koa(monkeypatch, capsys, tmp_path):
    """A function that runs the command in this process; runs go to a folder of the test."""
    monkeypatch.setattr(study, "BUILD", tmp_path / "build")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["koa", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        return code, *capsys.readouterr()

    return run


def test_unknown_profile_in_a_real_process():
    done = subprocess.run([sys.executable, "-c", "from koa_lib.cli import main; main()", "inputs", "--profile", "dmeo"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("koa: ") and "'dmeo'" in line and "smoke" in line


@pytest.mark.parametrize("arguments, words", [
    (["inputs", "--profile", "oai"], "DATA=<folder"), (["inputs", "--profile", "oai", "--data", "nowhere"], "DATA=nowhere"),
    (["inputs", "--profile", "demo", "--data", "."], "phantoms"), (["notebook", "03_fine_tune", "--profile", "nope"], "'nope'"),
    (["notebook", "99_none", "--profile", "smoke"], "no notebook '99_none'"), (["report", "--profile", "smoke", "--seed", "8"], "koa"),
    (["summary", "--profile", "smoke", "--seed", "8"], "koa"), *(([*("data", command, "nothing"), "."], "'nothing'") for command in ("fetch", "build", "verify", "audit")),
    *((["data", command, "gornale2020", "nowhere"], "nowhere") for command in ("build", "verify", "audit")),
    (["data", "verify", "phantom_a", "nowhere"], "nowhere"), (["data", "fetch", "phantom_a"], "make reproduce")])
def test_mistake_is_one_line_and_exit_1(koa, arguments, words):
    code, out, err = koa(*arguments)
    assert code == 1 and err.startswith("koa: ") and words in err and "Traceback" not in err and len(err.splitlines()) == 1 and out == ""


def test_wrong_option_is_refused_by_name(koa):
    code, _, err = koa("inputs", "--sead", "4")
    assert code == 2 and "--sead" in err


@pytest.mark.parametrize("group", [[], ["data"]])
def test_help_names_the_commands(koa, group):
    _, out, err = koa(*group, "--help")
    assert all(word in out + err for word in (("fetch", "build", "verify", "audit", "phantoms") if group else ("inputs", "notebook", "report", "summary", "data")))


def test_inputs_are_written(koa, tmp_path):
    assert koa("inputs", "--profile", "smoke", "--seed", "7") == (0, "", "")
    assert (tmp_path / "build" / "smoke-seed7" / "inputs.yaml").is_file()


@pytest.mark.parametrize("raised, code, words", [
    (KeyboardInterrupt(), 130, "koa: stopped. Finished work is kept: the same command goes on from there."),
    (OSError(errno.ENOSPC, "No space left on device", "run.jsonl"), 1, "koa: The disk is full (run.jsonl). Free some space"),
    (OSError(errno.EACCES, "Permission denied", "run.jsonl"), 1, "koa: run.jsonl cannot be read or written (Permission denied)")])
@pytest.mark.parametrize("command", [["inputs"], ["notebook", "01_data_audit"], ["report"], ["summary"]])
def test_interrupt_and_full_disk_are_one_line(koa, monkeypatch, command, raised, code, words):
    def stop(*_):
        raise raised

    monkeypatch.setattr(notebooks.profiles, "load", stop)
    ended, out, err = koa(*command, "--profile", "smoke")
    assert ended == code and err.startswith(words) and len(err.splitlines()) == 1 and out == ""


def test_inputs_keep_the_journal_short(koa, tmp_path):
    folder = tmp_path / "build" / "smoke"
    folder.mkdir(parents=True)
    for _ in range(9):
        journal.append(folder, "01_data_audit", "built", 1, "executed", "01_data_audit")
    assert koa("inputs", "--profile", "smoke")[0] == 0 and len(journal.read(folder)) == 1


def test_phantoms_are_written_once_and_never_over_something(koa, tmp_path):
    code, out, _ = koa("data", "phantoms", tmp_path / "knees", "--patients", "4", "--seed", "2")
    assert code == 0 and "8 pictures" in out and len(read_manifest(tmp_path / "knees" / "manifest.csv")) == 8
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "knees").rglob("*"))
    code, _, err = koa("data", "phantoms", tmp_path / "knees")
    assert code == 1 and "exists already" in err and before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "knees").rglob("*"))


# Cohorts


@pytest.fixture
def copy(cohort_a, tmp_path, monkeypatch):
    """A copy of cohort A to spoil; the commands run beside it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(cohort_a[0], tmp_path / "copy"))


def test_verify_says_that_all_is_right(koa, copy, cohort_a):
    code, out, err = koa("data", "verify", "phantom_a", copy)
    assert (code, err) == (0, "") and str(copy) in out and "as listed" in out and "all 24 pictures are there and right" in out


def test_verify_accepts_and_says_what_was_written_again_without_loss(koa, copy, cohort_a):
    from PIL import Image

    first, second = (copy / path for path in cohort_a[1]["path"][:2])
    Image.open(first).save(first.with_suffix(".webp"), lossless=True)
    first.unlink()
    with open(second, "ab") as file:
        file.write(b"more")
    code, out, _ = koa("data", "verify", "phantom_a", copy)
    words = [line.split() for line in out.splitlines()]
    assert code == 0 and ["22"] == [line[2] for line in words if line[:2] == ["as", "listed"]]
    assert any(line[:5] == "same pixels, other container 1".split() for line in words) and any(line[:5] == "changed bytes, same pixels 1".split() for line in words)


BAD_FILES = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "not an image": lambda path: path.write_text("<html>sorry</html>"),
}


@pytest.mark.parametrize("fault", [*BAD_FILES, "wrong extension", "missing"])
def test_verify_names_a_bad_file_and_the_remedy(koa, copy, cohort_a, fault):
    path = copy / cohort_a[1]["path"][5]
    name, remedy = cohort_a[1]["path"][5], "etch it"
    if fault == "wrong extension":
        path.rename(path.with_suffix(".dat"))
        name, remedy = name.replace(".png", ".dat"), f"rename it to {name}"
    elif fault == "missing":
        path.unlink()
    else:
        BAD_FILES[fault](path)
    code, out, err = koa("data", "verify", "phantom_a", copy)
    assert code == 1 and err.startswith("koa: 1 of 24 files need attention, see above; ") and len(err.splitlines()) == 1 and "Traceback" not in out + err
    assert name in out and remedy in out and "all 24" not in out


def spoil_three(copy, rows):
    paths = [copy / path for path in rows["path"][[1, 8, 20]]]
    for path, fault in zip(paths, BAD_FILES.values(), strict=True):
        fault(path)
    return paths


def test_verify_names_all_bad_files_at_the_end(koa, copy, cohort_a):
    paths = spoil_three(copy, cohort_a[1])
    code, out, err = koa("data", "verify", "phantom_a", copy, "--out", "list.csv")
    table = pd.read_csv("list.csv", keep_default_na=False)
    assert code == 1 and "3 of 24 files need attention" in err and "list.csv" in err and all(path.name in out for path in paths)
    assert sorted(table[table["status"] == "unreadable"]["found"]) == sorted(path.relative_to(copy).as_posix() for path in paths) and len(table) == 24


def test_build_names_all_bad_files_at_the_end_and_writes_nothing(koa, copy, cohort_a):
    paths = spoil_three(copy, cohort_a[1])
    code, out, err = koa("data", "build", "phantom_a", copy)
    assert code == 1 and err.startswith("koa: 3 of 24 files cannot be used") and all(str(path) in err for path in paths) and "Traceback" not in err
    assert not Path("phantom_a.csv").exists()


def test_audit_lists_all_bad_files_and_audits_the_rest(koa, copy, cohort_a):
    paths = spoil_three(copy, cohort_a[1])
    _, out, err = koa("data", "audit", "phantom_a", copy, "--out", "tables")
    findings, affected = (pd.read_csv(f"tables/{name}.csv", keep_default_na=False) for name in ("findings", "affected_files"))
    assert "Traceback" not in out + err and len(pd.read_csv("tables/sets.csv")) == 24 - 3
    assert findings.set_index("finding").loc["unreadable files", "files"] == 3
    assert sorted(affected[affected["finding"] == "unreadable files"]["path"]) == sorted(path.relative_to(copy).as_posix() for path in paths)


def test_audit_tells_how_many_of_the_listed_pictures_it_found(koa, copy, cohort_a):
    (copy / cohort_a[1]["path"][5]).unlink()
    code, out, _ = koa("data", "audit", "phantom_a", copy)
    assert code == 0 and f"phantom_a in {copy}: 23 of 24 listed pictures found" in out and "koa data verify" in out and len(pd.read_csv("phantom_a_audit/sets.csv")) == 23


def test_audit_is_never_written_over_another_one(koa, copy, cohort_a):
    assert koa("data", "audit", "phantom_a", copy, "--out", "tables")[0] == 0
    before = {path: path.read_bytes() for path in Path("tables").iterdir()}
    (copy / cohort_a[1]["path"][5]).unlink()
    code, out, err = koa("data", "audit", "phantom_a", copy, "--out", "tables")
    assert code == 1 and out == "" and "tables exists already" in err and "--out" in err
    assert before and before == {path: path.read_bytes() for path in Path("tables").iterdir()}


@pytest.mark.parametrize("column, value", [("kl_grade", "other"), ("split", "other"), ("image_id", "9000001L"), ("path", "9.png")])
@pytest.mark.parametrize("command", ["verify", "audit"])
def test_row_that_contradicts_its_path_is_named(koa, copy, cohort_a, command, column, value):
    frame = pd.read_csv(copy / "manifest.csv", dtype=str, keep_default_na=False)
    other = {"kl_grade": str((int(frame["kl_grade"][6]) + 1) % 5), "split": "val" if frame["split"][6] != "val" else "test", "path": frame["path"][6].replace(".png", value)}
    frame.loc[6, column] = other.get(column, value)
    frame.to_csv(copy / "manifest.csv", index=False)
    code, out, err = koa("data", command, "phantom_a", copy)
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and all(word in err for word in (str(copy / "manifest.csv"), "row 8", "contradict", frame["path"][6], frame[column][6]))


@pytest.mark.parametrize("column, value, words", [
    ("kl_grade", "NaN", "'NaN'"), ("kl_grade", "", "kl_grade"), ("kl_grade", "severe", "'severe'"), ("kl_grade_reader2", "mild", "'mild'"), ("kl_grade_reader2", "7", "'7'"),
    ("image_id", None, "is there twice"), ("path", "/etc/passwd", "absolute"), ("path", "train/../../x.png", "leads out"), ("path", "C:/x.png", "absolute"),
    ("path", None, "is there twice"), ("path", "0/x.png", "lacks folders")])
@pytest.mark.parametrize("command", ["verify", "audit"])
def test_bad_row_of_a_manifest_is_named(koa, copy, cohort_a, command, column, value, words):
    frame = pd.read_csv(copy / "manifest.csv", dtype=str, keep_default_na=False)
    frame.loc[6, column] = frame.loc[2, column] if value is None else value
    frame.to_csv(copy / "manifest.csv", index=False)
    code, out, err = koa("data", command, "phantom_a", copy)
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and all(word in err for word in (str(copy / "manifest.csv"), "row 8", column, words))


def test_build_writes_a_manifest_once(koa, copy, cohort_a):
    code, out, _ = koa("data", "build", "phantom_a", copy)
    assert code == 0 and "24 rows written to phantom_a.csv" in out
    assert read_manifest("phantom_a.csv").equals(cohort_a[1][COLUMNS])
    before = Path("phantom_a.csv").read_bytes()
    (copy / cohort_a[1]["path"][0]).unlink()
    code, _, err = koa("data", "build", "phantom_a", copy)
    assert code == 1 and "phantom_a.csv exists already" in err and "--out" in err and Path("phantom_a.csv").read_bytes() == before
    assert koa("data", "build", "phantom_a", copy, "--out", "other.csv")[0] == 0 and len(read_manifest("other.csv")) == 23


def test_build_of_the_published_samples_agrees_with_the_committed_manifests(koa, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = koa("data", "build", "gornale2020", shared("gornale_sample"), "--readers", cohorts.MANIFESTS / "gornale2020.csv")
    assert code == 0 and "56 of them equal the committed manifest byte for byte, which lists 1,650." in out and "differ" not in out
    built, committed = (path.read_bytes().splitlines() for path in (tmp_path / "gornale2020.csv", cohorts.MANIFESTS / "gornale2020.csv"))
    assert len(built) == 57 and set(built) <= set(committed)


@pytest.mark.parametrize("content", ["image_id,kl_grade_reader2\nx,NaN\n", "image_id,grade\nx,1\n", None])
def test_wrong_readers_file_is_one_line(koa, copy, content):
    if content:
        Path("readers.csv").write_text(content)
    code, _, err = koa("data", "build", "phantom_a", copy, "--readers", "readers.csv")
    assert code == 1 and "readers.csv" in err and len(err.splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize("command, out", [("verify", "gone/list.csv"), ("build", "gone/list.csv"), ("verify", "."), ("audit", "copy/manifest.csv")])
def test_result_that_cannot_be_written_is_one_line(koa, copy, command, out):
    code, _, err = koa("data", command, "phantom_a", copy, "--out", out)
    assert code in (0, 1) and (code == 0 or out in err and len(err.splitlines()) == 1)


@pytest.mark.parametrize("command, work", [("verify", "koa_lib.data.fetch.verify"), ("build", "koa_lib.data.check.build")])
def test_read_only_folder_is_told_before_the_work(koa, copy, monkeypatch, command, work):
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    monkeypatch.setattr(work, lambda *_: pytest.fail("worked in vain"))
    code, out, err = koa("data", command, "phantom_a", copy, "--out", "list.csv")
    assert code == 1 and out == "" and "list.csv" in err and "read-only" in err


@pytest.mark.parametrize("command", ["verify", "build", "audit"])
def test_file_with_an_odd_name_is_no_traceback(koa, copy, command):
    (copy / "train" / "0" / "scan 1\u00b23.txt").write_text("notes")
    assert koa("data", command, "phantom_a", copy)[0] == 0
