"""The cohorts of the study as data: origin, licence, layout and role, from `data_manifests/cohorts.yaml`."""

import re
from functools import cache
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from koa_lib.data import MANIFESTS
from koa_lib.data.manifest import read_manifest, tail
from koa_lib.errors import StudyError

FACTS = MANIFESTS / "cohorts.yaml"
PUBLISHED = ("oai_chen2018", "gornale2020")  # the sets behind the paper, internal and external


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
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
    files: re.Pattern[str]
    example: str
    layouts: dict[str, str]
    beside: dict[str, str]
    counts: dict[str, tuple[int, ...]] | None

    def told(self, paths):
        """What the paths of pictures tell, as text: a DataFrame of image_id, kl_grade and, where the layout
        tells them, split, group_id and side; empty cells (NaN) where a path is none of the layout's.
        """
        named = paths.map(tail).str.extract(f"^(?:{self.files.pattern})$")
        named = named.rename(columns={"id": "image_id", "grade": "kl_grade", "group": "group_id"})
        return named.assign(image_id=named["image_id"].str.replace(" ", ""))

    def uses(self, folds):
        """What each split is for in a run of so many folds: without folds, validation is only reported."""
        return {split: "internal test" if split == "val" and not folds else use
                for split, use in self.roles.items()}

    @property
    def archive(self):
        """Name of the file that is downloaded."""
        return self.address.rsplit("/", 1)[-1]

    def layout(self, root):
        """Name of the layout whose folders lead to a root, e.g. 'Mendeley'."""
        return next(name for name, folders in self.layouts.items() if Path(root).as_posix().endswith(folders))


@cache
def _all():
    try:
        content = yaml.safe_load(FACTS.read_text(encoding="utf-8"))
        named = {name: {"name": name, **facts} for name, facts in content.items()}
        return TypeAdapter(dict[str, CohortFacts]).validate_python(named)
    except (ValidationError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise StudyError(f"{FACTS} is not valid: {error}. Correct it, or restore the file.") from error


def names():
    """The cohorts that the study knows."""
    return list(_all())


def facts(name):
    """The facts of a cohort; StudyError for an unknown name."""
    if name not in _all():
        raise StudyError(f"The cohort '{name}' is unknown. Choose one of: {', '.join(names())}.")
    return _all()[name]


def committed(name, lists=None):
    """Where the committed manifest of a cohort lies; phantoms have none."""
    return (lists or MANIFESTS) / f"{name}.csv"


def manifest(name, folder=None, lists=None):
    """A cohort's manifest: the committed one, or for phantoms the one in their folder.

    Parameters
    ----------
    name : str
        A cohort; of one without facts, the paths are not looked into.
    folder : Path, optional
        Where phantoms lie.
    lists : Path, optional
        Another folder of committed manifests.

    Raises
    ------
    StudyError
        No manifest, one that `read_manifest` refuses, or a row whose grade, split or id contradicts its path.
    """
    listed = committed(name, lists)
    path = listed if listed.is_file() or folder is None else Path(folder) / "manifest.csv"
    rows = read_manifest(path)
    if name in names():
        told = facts(name).told(rows["path"]).filter(["image_id", "kl_grade", "split"])
        wrong = (told != rows[told.columns].astype(str)).any(axis=1)
        if wrong.any():
            row = rows.loc[wrong.idxmax()]
            found = ", ".join(f"{name} {row[name]}" for name in told)
            raise StudyError(f"{path}, row {row.name + 2}: {found} contradict {row['path']}. Correct it.")
    return rows
