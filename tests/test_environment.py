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
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from koa_lib.profile import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK, MAKEFILE = ((ROOT / name).read_text() for name in ("requirements.lock", "Makefile"))
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for text in sum((EXTRAS[name] for name in ("dev", "dicom", "systems")),
                                            PROJECT["dependencies"])]
# (requirement, its text with hashes) of every entry of the lock.
LOCKED = [(Requirement(entry.split("\\")[0].strip()), entry)
          for entry in re.split(r"\n(?=\S)", LOCK.strip()) if not entry.startswith("#")]


def pins(**platform):
    """The locked versions of a platform, by name; each name once."""
    environment = {**default_environment(), "extra": "", **platform}
    fitting = [(canonicalize_name(entry.name), entry.specifier) for entry, _ in LOCKED
               if entry.marker is None or entry.marker.evaluate(environment)]
    assert len(fitting) == len(dict(fitting))
    return {name: next(iter(specifier)).version for name, specifier in fitting}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform, system, machine", [
    ("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64")])
def test_direct_dependencies_are_locked_and_fit(platform, system, machine, python):
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.9")
    locked = pins(sys_platform=platform, platform_system=system, platform_machine=machine,
                  python_version=python, python_full_version=f"{python}.9")
    for wanted in DIRECT:
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), wanted
    assert not {"ray", "jax", "tensorflow"} & set(locked)  # heavy optional parts stay out


def test_every_locked_version_is_pinned_with_hashes_and_names_no_address():
    for entry, text in LOCKED:
        assert [part.operator for part in entry.specifier] == ["=="], entry.name
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", text), entry.name
    assert not re.search("://|--index|--extra-index|@ |file:", LOCK)


def test_this_environment_has_the_locked_versions():
    locked = pins()
    names = {canonicalize_name(item.name) for item in DIRECT}
    other = {name for name in names if metadata.version(name) != locked[name]}
    assert not other, f"run `make setup`: these versions are not those of requirements.lock: {other}"


def test_conda_users_get_the_same_python_and_the_lock_and_nothing_else():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in content["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    assert set(plain) == {"python=3.11", "make", "git", "pip"} and content["channels"] == ["conda-forge"]
    assert set(pip) == {"-r requirements.lock", "--require-hashes"}
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")


def test_make_help_has_a_line_for_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()) - {"FORCE"}
    assert targets == set(re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)) and "reproduce" in targets


def test_make_uses_an_activated_environment_below_a_folder_with_a_space(tmp_path):
    environment = tmp_path / "a b" / ".venv"
    environment.mkdir(parents=True)
    (environment / ".koa-ready").touch()
    shown = subprocess.run(["make", "--no-print-directory", "-n", "student"], cwd=ROOT, capture_output=True,
                           text=True, env={**os.environ, "VIRTUAL_ENV": str(environment)})
    assert shown.stdout.splitlines() == [f'"{environment}/bin/koa" student']
