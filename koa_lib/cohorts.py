"""The cohorts of the study as data: origin, licence, layout and role, from `data_manifests/cohorts.yaml`."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from koa_lib import manifests, profile
from koa_lib.errors import StudyError
from koa_lib.study import MANIFESTS


@dataclass(frozen=True)
class CohortFacts:
    """What is known about a cohort before any picture is read; the keys are explained in `cohorts.yaml`."""

    name: str
    title: str
    about: str
    citation: str
    doi: str | None
    licence: str
    page: str | None
    address: str | None
    sha256: str | None
    roles: dict[str, str]
    group: str
    files: str
    layouts: dict[str, str]
    beside: dict[str, str]
    counts: dict[str, tuple[int, ...]] | None

    @cached_property
    def pattern(self):
        """The compiled expression for the last three parts of a picture's path, without suffix."""
        return re.compile(self.files)

    @property
    def archive(self):
        """Name of the file that is downloaded."""
        return self.address.rsplit("/", 1)[-1]

    def layout(self, root):
        """Name of the layout whose folders lead to a root, e.g. 'Mendeley'."""
        fitting = [name for name, folders in self.layouts.items() if Path(root).as_posix().endswith(folders)]
        return fitting[0] if fitting else next(iter(self.layouts))


@cache
def _all():
    content = yaml.safe_load((MANIFESTS / "cohorts.yaml").read_text(encoding="utf-8"))
    return {name: profile.build(CohortFacts, {"name": name, **facts}, "cohorts.yaml", f"{name}.") for name, facts in content.items()}


def names():
    """The cohorts that the study knows."""
    return list(_all())


def facts(name):
    """The facts of a cohort; StudyError for an unknown name."""
    if name not in _all():
        raise StudyError(f"The cohort '{name}' is unknown. Choose one of: {', '.join(names())}.")
    return _all()[name]


def manifest(name, folder=None):
    """A cohort's manifest: the committed one, or for phantoms the one in their folder.

    Raises
    ------
    StudyError
        An unknown cohort, or no manifest.
    """
    committed = MANIFESTS / f"{facts(name).name}.csv"
    return manifests.read_manifest(committed if committed.is_file() or folder is None else Path(folder) / "manifest.csv")
