"""One set of versions: project file, lock, conda file and Makefile hold together."""

import os
import re
import subprocess
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from koa_lib.profile import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["dicom"] + EXTRAS["systems"]]


def locked():
    """(requirement, text of its hashes) of every entry of the lock."""
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    return [(Requirement(entry.split("\\")[0].strip()), entry) for entry in entries if not entry.startswith("#")]


def on(platform, machine="x86_64"):
    systems = {"linux": "Linux", "darwin": "Darwin"}
    return {**default_environment(), "python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": platform, "platform_system": systems[platform],
            "platform_machine": machine, "extra": ""}


@pytest.mark.parametrize("platform, machine", [("linux", "x86_64"), ("darwin", "arm64")])
@pytest.mark.parametrize("wanted", DIRECT, ids=lambda requirement: requirement.name)
def test_direct_dependency_is_locked_once_and_fits(wanted, platform, machine):
    fitting = [entry for entry, _ in locked() if canonicalize_name(entry.name) == canonicalize_name(wanted.name)
               and (entry.marker is None or entry.marker.evaluate(on(platform, machine)))]
    assert len(fitting) == 1
    (pin,) = fitting[0].specifier
    assert pin.operator == "==" and wanted.specifier.contains(pin.version)


def test_every_locked_version_is_pinned_with_hashes():
    for entry, text in locked():
        assert len(entry.specifier) == 1 and next(iter(entry.specifier)).operator == "==", entry.name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", text), entry.name


def test_lock_names_no_address():
    assert "://" not in LOCK and "--index" not in LOCK and "--extra-index" not in LOCK and "@ " not in LOCK and "file:" not in LOCK


def test_heavy_optional_parts_stay_out():
    assert not {"ray", "jax", "tensorflow"} & {canonicalize_name(entry.name) for entry, _ in locked()}


def test_this_environment_has_the_locked_versions():
    pinned = {canonicalize_name(entry.name): next(iter(entry.specifier)).version for entry, _ in locked()
              if entry.marker is None or entry.marker.evaluate({**default_environment(), "extra": ""})}
    other = {name: metadata.version(name) for name in (canonicalize_name(item.name) for item in DIRECT) if metadata.version(name) != pinned[name]}
    assert not other, f"run `make setup`: these versions are not those of requirements.lock: {other}"


def test_conda_users_get_the_same_versions():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in content["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    assert "python=3.11" in plain and {"make", "git", "pip"} <= set(plain)
    assert "-r requirements.lock" in pip and "--require-hashes" in pip
    # Anything else named there would be a version that the lock does not know.
    assert len(pip) == 2 and set(plain) == {"python=3.11", "make", "git", "pip"} and content["channels"] == ["conda-forge"]


def test_python_is_the_same_everywhere():
    assert re.search(r"^PYTHON \?= .*python3\.11", (ROOT / "Makefile").read_text(), re.MULTILINE) and PROJECT["requires-python"] == ">=3.11"


def test_make_help_has_a_line_for_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {"setup", "reproduce", "test"} <= set(phony)
    for target in set(phony) - {"FORCE"}:
        assert len(re.findall(rf"^  make {target} +\S", shown, re.MULTILINE)) == 1, target


def test_ci_calls_the_documented_test_command():
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text() and script.stat().st_mode & 0o111


def test_make_uses_an_activated_environment_below_a_folder_with_a_space(tmp_path):
    environment = tmp_path / "a b" / ".venv"
    environment.mkdir(parents=True)
    (environment / ".koa-ready").touch()
    shown = subprocess.run(["make", "--no-print-directory", "-n", "student"], cwd=ROOT, env={**os.environ, "VIRTUAL_ENV": str(environment)}, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [f'"{environment}/bin/koa" student']
