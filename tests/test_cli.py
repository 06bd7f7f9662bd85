"""The command line: a user's mistake is one sentence on stderr and exit code 1, never a traceback."""

import subprocess
import sys

import pandas as pd
import pytest

from koa_lib import cli, manifests, notebooks, study
from koa_lib.study import MANIFESTS


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
    (["summary", "--profile", "smoke", "--seed", "8"], "koa"), (["data", "check", "nothing", "."], "nothing.csv"),
    (["data", "check", "gornale2020", "nowhere"], "nowhere")])
def test_mistake_is_one_line_and_exit_1(koa, arguments, words):
    code, out, err = koa(*arguments)
    assert code == 1 and err.startswith("koa: ") and words in err and "Traceback" not in err and len(err.splitlines()) == 1 and out == ""


def test_wrong_option_is_refused_by_name(koa):
    code, _, err = koa("inputs", "--sead", "4")
    assert code == 2 and "--sead" in err


@pytest.mark.parametrize("group", [[], ["data"]])
def test_help_names_the_commands(koa, group):
    _, out, err = koa(*group, "--help")
    assert all(word in out + err for word in (("check", "phantoms") if group else ("inputs", "notebook", "report", "summary", "data")))


def test_inputs_are_written(koa, tmp_path):
    assert koa("inputs", "--profile", "smoke", "--seed", "7") == (0, "", "")
    assert (tmp_path / "build" / "smoke-seed7" / "inputs.yaml").is_file()


def test_phantoms_are_written_once_and_never_over_something(koa, tmp_path):
    code, out, _ = koa("data", "phantoms", tmp_path / "knees", "--patients", "4", "--seed", "2")
    assert code == 0 and "8 pictures" in out and len(manifests.read_manifest(tmp_path / "knees" / "manifest.csv")) == 8
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "knees").rglob("*"))
    code, _, err = koa("data", "phantoms", tmp_path / "knees")
    assert code == 1 and "exists already" in err and before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "knees").rglob("*"))


def test_check_counts_same_changed_and_re_encoded(koa, tmp_path, monkeypatch, cohort_a):
    import shutil

    from PIL import Image

    folder, manifest = cohort_a
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(study, "MANIFESTS", tmp_path)
    shutil.copy(folder / "manifest.csv", tmp_path / "mine.csv")
    first, second = (copy / path for path in manifest["path"][:2])
    Image.open(first).save(first.with_suffix(".webp"), lossless=True)
    first.unlink()
    with open(second, "ab") as file:
        file.write(b"more")
    code, out, _ = koa("data", "check", "mine", copy)
    assert code == 0 and "24 of 24 pictures found: 22 with the same bytes, 1 changed, 1 re-encoded" in out


def test_check_accepts_the_original_files(koa, shared):
    code, out, _ = koa("data", "check", "oai_chen2018", shared("oai_original_sample"))
    total = len(pd.read_csv(MANIFESTS / "oai_chen2018.csv"))
    assert code == 0 and f"78 of {total} pictures found: 78 with the same bytes, 0 changed, 0 re-encoded" in out
