"""What surrounds an exhibit: its entry in `reports/exhibits/<notebook>.yaml`,
with templates filled from the exhibit's own frame."""

import json
import re
from dataclasses import field
from functools import cache

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined, TemplateError
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT, Once
from koa_lib.report import words
from koa_lib.report.tables import Column

FOLDER = ROOT / "reports" / "exhibits"
COLUMNS = "columns.yaml"  # names and formats that all notebooks share
LISTED = "exhibits.json"  # of a run: what its notebooks have shown
_NOTED = {"name", "kind", "notebook", "title", "files", "reason", "commit", "data"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Entry:
    """One exhibit as its YAML declares it.

    Attributes
    ----------
    title : str
        A few words, for lists of exhibits.
    caption, says, alt : str
        Jinja templates; `says` is one sentence below the exhibit, `alt` makes the exhibit a figure.
    columns : dict
        Column (with `*` for a part of its name) to a format, or to head, format and hint.
    needs : list of str
        What some profiles lack: keys of a profile's `not_run`, or "external", "regions" (known places of the
        findings).
    undefined : str
        Why a number may be undefined.
    plot : str or dict
        A chart of `plots`, with its options.
    lead : list of str
        Columns that the page shows first, whatever their place in the file.
    """

    key: str
    notebook: str
    title: str
    caption: str
    says: str = ""
    alt: str = ""
    undefined: str = ""
    columns: dict[str, str | dict[str, str]] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    plot: str | dict = ""
    lead: list[str] = field(default_factory=list)

    @property
    def kind(self):
        """'figure' or 'table'."""
        return "figure" if self.alt else "table"

    @property
    def number(self):
        """The paper's number of its item ('6'), or ours by the order of the files ('S3')."""
        return (self.key.split("_")[1] if is_paper_item(self.key)
                else f"S{_own(self.kind).index(self.key) + 1}")

    @property
    def name(self):
        """'Figure 6' or 'Table S3'."""
        return f"{self.kind.capitalize()} {self.number}"

    def fill(self, template, facts):
        """A template with facts; StudyError names the exhibit, the template and what is unknown in it."""
        try:
            text = _templates().from_string(getattr(self, template)).render(**facts)
        except (TemplateError, ArithmeticError, AttributeError, KeyError, IndexError, TypeError,
                ValueError) as error:
            raise StudyError(f"{self.notebook}.yaml: {template} of '{self.key}' cannot be filled: {error}. "
                             f"Known: {', '.join(sorted(facts))}.") from error
        text = words.typeset(words.people(" ".join(text.split())))
        # Captions are Markdown, where a dollar begins a formula; an alternative text is none.
        return text if template == "alt" else text.replace("<", "&lt;").replace("$", "\\$")


def is_paper_item(key):
    """Whether an exhibit is a numbered item of the paper: 'table_3', 'figure_6'."""
    return bool(re.fullmatch(r"(table|figure)_\d+", key))


def label(key):
    """An exhibit's label as Sphinx writes it: 'table-3'."""
    return key.replace("_", "-")


def noted(run_dir):
    """What the notebooks of a run have shown, by key, as `show` noted it;
    StudyError when the list is damaged."""
    path = run_dir / LISTED
    try:
        listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if all(entry.keys() >= _NOTED for entry in listed.values()):
            return listed
    except (ValueError, AttributeError):  # no JSON, no mapping of mappings
        pass
    raise StudyError(f"{path} is damaged. Delete it and the folder nb beside it, and run make again.")


@cache
def read(notebook):
    """The entries of a notebook by key, in order; StudyError names an unknown setting or a missing one."""
    path = FOLDER / f"{notebook}.yaml"
    if not path.is_file():
        raise StudyError(f"{path} does not exist; the exhibits of {notebook} are declared there.")
    return {key: _entry(key, notebook, settings) for key, settings in _mapping(path).items()}


def every():
    """All entries by key, in the order of the notebooks."""
    return {key: entry for path in sorted(FOLDER.glob("[0-9]*.yaml"))
            for key, entry in read(path.stem).items()}


@cache
def shared_columns():
    """The columns that all notebooks share, as `Column` by name or pattern."""
    return {name: Column.of(name, settings) for name, settings in _mapping(FOLDER / COLUMNS).items()}


def _mapping(path):
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Once)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is no valid YAML: {' '.join(str(error).split())}. Correct it.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise StudyError(f"{path} must declare something under names. "
                         f"Restore it, e.g. with 'git checkout {path.name}'.")
    return content


def _entry(key, notebook, settings):
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not isinstance(settings, dict):
        raise StudyError(f"{notebook}.yaml: '{key}' must be a name of small letters with settings below it.")
    try:
        entry = Entry(key=key, notebook=notebook, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StudyError(f"{notebook}.yaml: '{key}' has an unknown, missing or wrong setting "
                         f"({where}: {first['msg']}).") from None
    if entry.plot and not entry.alt:
        raise StudyError(f"{notebook}.yaml: '{key}' has a chart and no alternative text (alt).")
    if is_paper_item(key) and not key.startswith(entry.kind):
        raise StudyError(f"{notebook}.yaml: '{key}' is a {entry.kind}, "
                         f"because it has {'an' if entry.alt else 'no'} alternative text.")
    return entry


def _own(kind):
    return [key for key, entry in every().items() if entry.kind == kind and not is_paper_item(key)]


@cache
def _templates():
    templates = Environment(undefined=StrictUndefined)
    templates.filters |= FILTERS
    return templates


def excluding_zero(frame, name="difference"):
    """The rows whose interval `<name>_low` to `<name>_high` excludes 0."""
    return frame[(frame[f"{name}_low"] > 0) | (frame[f"{name}_high"] < 0)]


def best(frame, name):
    """The row with the highest value of a column."""
    return frame.loc[frame[name].idxmax()]


def lowest(frame, name):
    """The row with the lowest value of a column."""
    return frame.loc[frame[name].idxmin()]


def where(frame, name, value):
    """The rows with this value in a column."""
    return frame[frame[name] == value]


def plural(number, noun):
    """'1 fold', '5 folds'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(texts):
    """'A', 'A and B', 'A, B and C'."""
    *first, last = map(str, texts) if len(texts) else ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def tally(frame, name):
    """'3 replicated, 1 not run': how often each value of a column is there."""
    return ", ".join(f"{count} {value}" for value, count in frame[name].value_counts().items()) or "none"


def fixed(number, decimals=3):
    """A number with this many decimals, '–' where it is undefined."""
    return "–" if pd.isna(number) else f"{number:,.{decimals}f}"


def signed(number, decimals=1):
    """The same with its sign."""
    return "–" if pd.isna(number) else f"{number:+,.{decimals}f}"


FILTERS = {function.__name__: function for function in
           (excluding_zero, best, lowest, where, plural, listed, tally, fixed, signed)}
