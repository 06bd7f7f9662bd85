"""`make setup`: what it says, whom it asks for packages, what it refuses before anything is installed. The
Pythons, pip and uv are stand-ins that note what they are asked."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from koa_lib.profile import ROOT

FILES = ("Makefile", "pyproject.toml", "requirements.lock", "can_set_up.py")
# Runs a file as that version would, makes environments that hold itself, and is a pip that only listens.
PYTHON = """#!{real} -IS
import os, pathlib, runpy, shutil, sys, time
here, what = pathlib.Path(__file__), [word for word in sys.argv[1:] if word != "-I"]
sys.version_info = (3, {minor}, 0, "final", 0)
sys.executable = str(here)
sys.path.insert(0, str(here.parents[1] / "site"))
if what[:2] == ["-m", "venv"]:
    (pathlib.Path(what[2]) / "bin").mkdir(parents=True)
    shutil.copy(here, pathlib.Path(what[2]) / "bin" / "python")
elif what[:4] == ["-m", "pip", "config", "list"]:
    print(os.environ.get("PIP_SETTINGS", ""))
elif what[:3] == ["-m", "pip", "install"]:
    with open({log!r}, "a") as log:
        print("pip", *what[3:], file=log)
    time.sleep(float(os.environ.get("SLOW", 0)))
elif what[0] != "-m":
    sys.argv = what
    runpy.run_path(what[0], run_name="__main__")
"""


class Place:
    """A clone without its contents, and the programs that make finds there."""

    def __init__(self, folder):
        self.clone, self.programs, self.log = folder / "a clone", folder / "programs", folder / "log"
        for part in ("koa_lib", "data_manifests", "reports", "notebooks/profiles"):
            (self.clone / part).mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.clone / name)
        self.ready = self.clone / ".venv" / ".koa-ready"

    def program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, minor, name=None, folder=None):
        text = PYTHON.format(real=sys.executable, minor=minor, log=str(self.log))
        return self.program((folder or self.programs) / (name or f"python3.{minor}"), text)

    def environment(self, minor, clone=None):
        """An activated environment, with koa-clip installed from a clone."""
        folder = self.programs.parent / "active"
        self.python(minor, "python", folder / "bin")
        if clone:
            noted = folder / "site" / "koa_clip-0.1.0.dist-info"
            noted.mkdir(parents=True)
            (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: koa-clip\nVersion: 0.1.0\n")
            (noted / "direct_url.json").write_text(f'{{"url": "{clone.as_uri()}"}}')
        return folder

    def start(self, **given):
        known = {"PATH": f"{self.programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        return subprocess.Popen(
            ["make", "setup"], cwd=self.clone, env={**known, **{k: str(v) for k, v in given.items()}},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def make(self, **given):
        process = self.start(**given)
        return process.communicate(timeout=60)[0].splitlines(), process.returncode

    def asked(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_it_says_its_stages_installs_the_lock_then_the_clone_and_is_done_once(place):
    place.python(11)
    told, code = place.make()
    assert code == 0 and place.ready.is_file() and ".venv" in told[0]
    assert [line[:3] for line in told[1:-1]] == ["1/3", "2/3", "3/3"] and "ready" in told[-1]
    lock, clone = place.asked()
    assert "--require-hashes -r requirements.lock" in lock and clone.endswith("-e .")
    place.make()
    assert len(place.asked()) == 2


@pytest.mark.parametrize("settings, chosen", [("", "uv"), ("global.extra-index-url='https://own/'", "pip")])
def test_uv_is_asked_where_it_is_but_not_where_pip_is_told_of_another_place(place, settings, chosen):
    place.python(11)
    place.program(place.programs / "uv", f'#!/bin/sh\necho uv "$@" >> "{place.log}"\n')
    assert place.make(PIP_SETTINGS=settings)[1] == 0
    assert [line.split()[0] for line in place.asked()] == [chosen] * 2
    assert all(any(text in line for line in place.asked()) for text in ("--require-hashes", "-e ."))


def is_refused(place, done, *words):
    told, code = done
    sentence = "\n".join(line for line in told if not line.startswith("make: ***"))
    assert code != 0 and "\n" not in sentence and all(word in sentence for word in words), told
    return not place.asked() and not place.ready.exists()


@pytest.mark.parametrize("minor", [10, 14])
def test_another_python_is_refused_at_once_with_what_to_do(place, minor):
    place.python(minor, "python3")
    for name in ("python3.11", "python3.12", "python3.13"):  # as pyenv's, of versions that are not chosen
        place.program(place.programs / name, "#!/bin/sh\nexit 127\n")
    assert is_refused(place, place.make(), f"3.{minor}", "3.11", "PYTHON=")
    assert is_refused(place, place.make(PYTHON=place.python(minor, "mine")), f"3.{minor}", "mine")
    assert not (place.clone / ".venv").exists()
    active = place.environment(minor)
    assert is_refused(place, place.make(VIRTUAL_ENV=active), f"3.{minor}", "deactivate", str(active))


def test_a_python_that_fits_is_found_beside_others(place):
    place.python(10, "python3")
    place.program(place.programs / "python3.11", "#!/bin/sh\nexit 127\n")
    for minor in (12, 13):
        place.python(minor)
    assert place.make()[1] == 0 and place.ready.is_file()


def test_the_environment_of_another_clone_stays_with_it(place, tmp_path):
    other = tmp_path / "other clone"
    (other / "koa_lib").mkdir(parents=True)
    active = place.environment(11, other)
    assert is_refused(place, place.make(VIRTUAL_ENV=active), str(other), "deactivate")
    other.rename(tmp_path / "moved")  # nobody needs it there any more
    assert place.make(VIRTUAL_ENV=active)[1] == 0 and len(place.asked()) == 2


def test_an_interrupted_set_up_is_not_taken_for_a_finished_one(place):
    place.python(11)
    process, end = place.start(SLOW=60), time.time() + 30
    while not place.asked() and time.time() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not place.ready.exists()
    told, code = place.make()
    assert code == 0 and place.ready.is_file() and len(place.asked()) == 3, told
