"""Reference tables: the numbers of a run, kept in the repository,
and how far those of a fresh run may be from them."""

import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from koa_lib import profile
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import entries, running, stamps
from reports import provenance

FOLDER = ROOT / "reports" / "reference"
TOLERANCES = FOLDER / "tolerances.yaml"
MISS = ("table", "row", "column", "reference", "found", "allowed")
SHOWN, SHOWN_PER_TABLE = 20, 3


@dataclass(frozen=True)
class Rule:
    """How far some cells may differ: the keys of `tolerances.yaml`, explained there;
    `within` None is not compared."""

    why: str
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    within: float | None


@dataclass(frozen=True)
class Tolerances:
    """`rounding` is what equal numbers may differ by, as a share (absolutely, below 1);
    of the `rules` the first that fits a cell holds."""

    rounding: float
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Comparison:
    """A run held against its reference: how many tables, numbers and texts were compared,
    how many cells were not, and what misses."""

    folder: Path
    tables: int
    numbers: int
    texts: int
    skipped: int
    misses: pd.DataFrame


def folder(run_dir):
    """Where a run's reference is: ``<run>/`` for phantoms, ``<run>/<data-hash>/`` for real data, which differ
    from place to place.

    Raises
    ------
    StudyError
        When the folder holds no run or the run has not read its data.
    """
    target, note = FOLDER / run_dir.name, run_dir / "data.json"
    if provenance.is_synthetic(provenance.inputs(run_dir)):
        return target
    if not note.is_file():
        raise StudyError(f"{run_dir} has not read its data. Run 'make reproduce' with this profile first.")
    return target / json.loads(note.read_text(encoding="utf-8"))["hash"]


def keep(run_dir):
    """Copy a run's tables to its reference folder; tables of an earlier run that are no longer made are
    removed.

    Returns
    -------
    Path

    Raises
    ------
    StudyError
        When the run has no tables, a damaged one, or has not read its data.
    """
    tables, target = _made(run_dir), folder(run_dir)
    gone = [table.name for table in tables if not table.is_file()]
    if gone:
        raise StudyError(f"{gone[0]} of {run_dir.name} is gone, so nothing was kept. "
                         "Delete the folder nb of the run and run make again.")
    for table in tables:
        _read(table)  # nothing is kept of a run with a damaged one
    target.mkdir(parents=True, exist_ok=True)
    for table in tables:
        shutil.copyfile(table, target / table.name)
    for old in {path.name for path in target.glob("*.csv")} - {path.name for path in tables}:
        (target / old).unlink()
    return target


def check_fresh(run_dir):
    """StudyError when a notebook of the run broke off, was not executed,
    or was made by another state of the code, lists or cells."""
    again = f"Run 'make reproduce' with the profile of {run_dir.name} first."
    unfinished = [path.name.split(".")[0] for path in (run_dir / "nb").glob("*.failed.ipynb")]
    if unfinished:
        raise StudyError(f"The last run of {run_dir.name} did not finish ({unfinished[0]} failed), "
                         f"so its tables may be old. {again}")
    settings = provenance.inputs(run_dir)["profile"]
    for name in running.names():
        path = run_dir / "nb" / f"{name}.ipynb"
        if not path.is_file():
            raise StudyError(f"{name} of {run_dir.name} has not been executed. {again}")
        if stamps.noted(path) != stamps.of(name, settings):
            raise StudyError(f"The tables of {name} in {run_dir.name} are older than the code, lists or "
                             f"notebook that make them. {again}")


def compare(run_dir):
    """Hold a run's tables against the reference, within `tolerances.yaml`.

    Rows are matched by position. A table, column or row that only one side has, another text, and a number
    where the other side has none are misses; of a row whose texts differ the numbers are not looked at.

    Returns
    -------
    Comparison
        `misses` has the columns table, row (its leading cells), column, reference, found and allowed (a
        difference); where one side lacks a table, row or column, reference and found are 'there' and
        'missing', and allowed is NaN.

    Raises
    ------
    StudyError
        No tables, no reference for this data, a table that cannot be read, or an invalid `tolerances.yaml`.
    """
    target, found = folder(run_dir), {path.stem: path for path in _made(run_dir)}
    kept = {path.stem: path for path in sorted(target.glob("*.csv"))}
    if not kept:
        raise StudyError(f"no reference for this data: {_in_reports(target)} has no tables. "
                         "'make reference' with the same profile and seed keeps those of this run.")
    stated, counts, misses = tolerances(), Counter(), []
    free = [name for rule in stated.rules if (rule.columns, rule.rows, rule.within) == (("*",), (), None)
            for name in rule.tables]
    for name in sorted(name for name in {*kept, *found} if not _fits(name, free)):
        if name in kept and name in found:
            misses += _table_misses(name, _read(kept[name]), _read(found[name]), stated, counts)
        else:
            misses.append(_only_one(name, "", "", name in kept))
    return Comparison(target, len({*kept} & {*found}), counts["number"], counts["text"], counts["skipped"],
                      pd.DataFrame(misses, columns=list(MISS)))


def report(comparison):
    """A comparison in words: one sentence, or the first misses with the others counted."""
    place, misses = _in_reports(comparison.folder), comparison.misses
    if misses.empty:
        return (f"{comparison.tables} tables, {comparison.numbers:,} numbers agree within the stated "
                f"tolerances with {place}\n"
                f"also equal: {comparison.texts:,} texts; not compared: {comparison.skipped:,} cells, "
                f"see {_in_reports(TOLERANCES)}")
    shown = (misses if len(misses) <= SHOWN
             else misses.groupby("table", sort=False).head(SHOWN_PER_TABLE).head(SHOWN))
    lines = [f"{len(misses):,} differences from {place} beyond the stated tolerances:",
             *(f"  {_in_words(miss)}" for miss in shown.itertuples())]
    if len(misses) > len(shown):
        by_table = ", ".join(f"{table} {n:,}"
                             for table, n in misses["table"].value_counts(sort=False).items())
        lines.append(f"  and {len(misses) - len(shown):,} more; by table: {by_table}")
    return "\n".join([*lines, "If the study was changed on purpose, 'make reference' with the same profile "
                              "and seed keeps these tables as the new reference."])


def tolerances(path=None):
    """Read and check `tolerances.yaml`; StudyError names an unknown key,
    a missing one or a value that is not allowed."""
    path = Path(path or TOLERANCES)
    try:
        stated = profile.build(Tolerances, yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from error
    for key, value in {"rounding": stated.rounding, **{f"rules[{i}].within": rule.within for i, rule
                                                       in enumerate(stated.rules)}}.items():
        if value is not None and not 0 <= value < np.inf:
            raise StudyError(f"{path.name}: key '{key}' is {value}; allowed: a number of at least 0. "
                             "Correct it (null in a rule: not compared).")
    for i, rule in enumerate(stated.rules):
        if not rule.tables or not rule.columns or any("=" not in row for row in rule.rows):
            raise StudyError(f"{path.name}: rules[{i}] needs patterns of tables and columns, "
                             "and every entry of its rows reads column=pattern.")
    return stated


def _made(run_dir):
    # What the notebooks' exhibits say that they wrote.
    tables = sorted({run_dir / file for exhibit in entries.noted(run_dir).values()
                     for file in exhibit["files"] if file.endswith(".csv")})
    if not tables:
        raise StudyError(f"{run_dir} has no finished tables. Run 'make reproduce' with this profile first.")
    return tables


def _read(path):
    # As text, with line ends made equal first: within quotes the CSV reader would keep them.
    try:
        frame = pd.read_csv(io.StringIO(path.read_text(encoding="utf-8")), dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise StudyError(f"{path} is no CSV table: {error}. Delete the folder nb of the run and run "
                         "'make reproduce' again (what was trained is kept), or restore the reference."
                         ) from error
    return frame.fillna("").replace({"nan": "", "NaN": ""})


def _table_misses(name, reference, found, stated, counts):
    misses = [_only_one(name, "", column, column in reference) for column in [*reference, *found]
              if (column in reference) != (column in found)]
    columns = [column for column in reference if column in found]
    reference, found = reference[columns], found[columns]
    allowed = _allowed(name, reference, stated.rules)
    labels = _labels(reference, allowed)
    if len(reference) != len(found):
        kept, made = Counter(labels), Counter(_labels(found, _allowed(name, found, stated.rules)))
        rows = ([(row, True) for row in (kept - made).elements()]
                + [(row, False) for row in (made - kept).elements()])
        return misses + [_only_one(name, row, "", in_reference) for row, in_reference in rows]
    differs, kinds = _differs(reference, found, allowed, stated.rounding)
    counts.update(kinds)
    return misses + [
        dict(zip(MISS, (name, labels[i], columns[j], reference.iat[i, j], found.iat[i, j],
                        allowed.iat[i, j]), strict=True))
        for i, j in np.argwhere(differs)]


def _allowed(name, frame, rules):
    # Allowed difference of every cell: 0 unless a rule says otherwise, infinite where nothing is compared.
    allowed = pd.DataFrame(0.0, index=frame.index, columns=frame.columns)
    for rule in reversed(rules):
        selectors = [row.split("=", 1) for row in rule.rows]
        if not _fits(name, rule.tables) or any(column not in frame for column, _ in selectors):
            continue
        rows = np.ones(len(frame), bool)
        for column, patterns in selectors:
            rows &= np.array([_fits(cell, patterns.split("|")) for cell in frame[column]], bool)
        allowed.loc[rows, [column for column in frame if _fits(column, rule.columns)]] = (
            np.inf if rule.within is None else rule.within)
    return allowed


def _fits(text, patterns):
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _labels(frame, allowed):
    # What names a row: its leading cells that must be equal, at most four.
    labels = []
    for cells, limits in zip(frame.itertuples(index=False, name=None), allowed.to_numpy(), strict=True):
        leading = next((i for i, limit in enumerate(limits) if limit), len(cells))
        named = list(zip(frame, cells, strict=True))[:min(leading, 4)]
        labels.append(", ".join(f"{column} {_short(cell)}" for column, cell in named)
                      or f"row {len(labels) + 1}")
    return labels


def _differs(reference, found, allowed, rounding):
    # Which cells differ (bool array), and how many cells of each kind were compared.
    ours, theirs, limits = reference.to_numpy(object), found.to_numpy(object), allowed.to_numpy()
    a, b = _numbers(reference), _numbers(found)
    numeric, skipped = np.isfinite(a) & np.isfinite(b), np.isinf(limits)
    with np.errstate(invalid="ignore"):
        size = np.maximum(1, np.maximum(np.abs(a), np.abs(b)))
        near = numeric & (np.abs(a - b) <= limits + rounding * size)
    # Long whole numbers are counts or names: rounding is nothing to them.
    whole = _whole(reference) & _whole(found) & (limits == 0)
    differs = ~skipped & (ours != theirs) & ~(near & ~whole)
    text = (np.isnan(a) & (ours != "")) | (np.isnan(b) & (theirs != ""))
    other_row = (differs & text).any(axis=1, keepdims=True)
    kinds = {"number": int((numeric & ~skipped).sum()), "text": int((text & ~skipped).sum()),
             "skipped": int(skipped.sum())}
    return np.where(other_row, differs & text, differs), kinds


def _numbers(frame):
    return frame.apply(pd.to_numeric, errors="coerce").to_numpy(float)


def _whole(frame):
    return frame.apply(lambda column: column.str.fullmatch(r"-?\d+")).to_numpy(bool)


def _only_one(table, row, column, in_reference):
    sides = ("there", "missing") if in_reference else ("missing", "there")
    return dict(zip(MISS, (table, row, column, *sides, np.nan), strict=True))


def _in_words(miss):
    place = f"{miss.table} ({miss.row})" if miss.row else miss.table
    if np.isnan(miss.allowed):
        what = f"column '{miss.column}'" if miss.column else "this row" if miss.row else "this table"
        return f"{place}: {what} is only in the {'reference' if miss.found == 'missing' else 'run'}"
    limit = f"may differ by {miss.allowed:g}" if miss.allowed else "must be equal"
    return (f"{place}: {miss.column} is {_short(miss.found)}, "
            f"in the reference {_short(miss.reference)}; {limit}")


def _short(cell):
    try:
        return f"{float(cell):.6g}" if "." in cell else cell[:40] or "empty"
    except ValueError:
        return cell[:40]


def _in_reports(path):
    return path.relative_to(FOLDER.parents[1]).as_posix()
