"""The cohorts of the study as data: origin, licence, layout and role, from `data_manifests/cohorts.yaml`."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from koa_lib import profile
from koa_lib.data.manifest import read_manifest, tail
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
    def example(self):
        """Where a picture lies below the root, for messages."""
        return "like train/0/9003175L.png" if self.group == "patient" else "like MedicalExpert-I/0Normal/NormalG0 (1).png"

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
    try:
        content = yaml.safe_load((MANIFESTS / "cohorts.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{MANIFESTS / 'cohorts.yaml'} is not valid YAML: {error}. Restore it from version control.") from error
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
        An unknown cohort, no manifest, or a row whose grade, split or id contradicts its path.
    """
    known, committed = facts(name), MANIFESTS / f"{name}.csv"
    path = committed if committed.is_file() or folder is None else Path(folder) / "manifest.csv"
    rows = read_manifest(path)
    for row in rows.itertuples():
        told = known.pattern.fullmatch(tail(row.path))
        wanted = told and {"image_id": told["id"].replace(" ", ""), "kl_grade": int(told["grade"]), "split": told.groupdict().get("split", row.split)}
        if not told or any(getattr(row, column) != value for column, value in wanted.items()):
            raise StudyError(f"{path}, row {row.Index + 2}: image_id {row.image_id}, split {row.split} and KL grade {row.kl_grade} contradict the path {row.path}. Correct the row.")
    return rows
