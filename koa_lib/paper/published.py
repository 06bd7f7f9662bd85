"""The tables of published numbers, every cell checked: a slip in one of them must not become a verdict."""

from typing import NamedTuple

import pandas as pd

from koa_lib.errors import StudyError

# Columns that must be there, those that hold numbers (others may be empty), and what names a row once.
TABLES = {
    "jpm2026": (
        "item row metric relation value unit ci_low ci_high kind note".split(),
        ("value", "ci_low", "ci_high"),
        ("item", "row", "metric"),
    ),
    "other_systems": (
        "system item row metric relation value unit kind note".split(),
        ("value",),
        ("system", "item", "row", "metric"),
    ),
    "peers": (
        "protocol system test_set n accuracy macro_f1 qwk note".split(),
        ("n", "accuracy", "macro_f1", "qwk"),
        ("system", "test_set"),
    ),
    "literature": (
        "source_table item row metric found protocol remark where".split(),
        ("found",),
        ("source_table", "item", "row", "metric"),
    ),
    "confusion_matrices": (
        "system true_grade predicted_0 predicted_1 predicted_2 predicted_3 predicted_4 source".split(),
        ("true_grade", *(f"predicted_{grade}" for grade in range(5))),
        ("system", "true_grade"),
    ),
    "claims": ("source item claim test".split(), (), ("source", "claim")),
}
LIMITS = {"percent": (0, 100), "ratio": (0, 1), "p": (0, 1), "points": (-100, 100), "years": (0, 120),
          **dict.fromkeys(("count", "minutes", "milliseconds"), (0, float("inf")))}
RELATIONS = ("=", "<", "about")
RATIOS = {"accuracy": (0, 1), "macro_f1": (0, 1), "qwk": (-1, 1)}  # of peers.csv


class System(NamedTuple):
    """Another paper's system: the notebook that runs its method, and its key in `reports/references.bib`."""

    notebook: str
    reference: str


# As other_systems.csv and claims.csv name them.
SYSTEMS = {
    "CLIP-KOA": System("08_symmetry_consistency", "jeong2025"),
    "LumbarCLIP": System("09_projection_heads", "le2025"),
    "JIIM-2025": System("11_foundation_embeddings", "chavoshi2025"),
    "OrthoFoundation": System("10_label_efficiency", "yu2026"),
}


def read(folder, name):
    """Read a table of published numbers.

    Parameters
    ----------
    folder : Path
        `Study.published`.
    name : str
        One of `TABLES`.

    Returns
    -------
    DataFrame

    Raises
    ------
    StudyError
        No such file or no CSV, a missing column, no rows, text or nothing where a number belongs, a number
        outside the range of its unit, an interval that does not hold its value, or a row that is there twice:
        names file and row.
    """
    path = folder / f"{name}.csv"
    columns, numbers, key = TABLES[name]
    try:
        table = pd.read_csv(path)
    except FileNotFoundError as error:
        raise StudyError(
            f"The table of published numbers {name}.csv is not in data_manifests/published. "
            "Restore it from version control."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{name}.csv is not a CSV table: {error}. Restore it from version control."
        ) from error
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        raise StudyError(
            f"{name}.csv {f'lacks the column {missing[0]}' if missing else 'has no rows'}. "
            "Restore it from version control."
        )
    for column in numbers:
        parsed = pd.to_numeric(table[column], errors="coerce")
        needed = column == "value" or name == "confusion_matrices"
        _refuse(name, table, column, parsed.isna() & (table[column].notna() | needed), "a number is needed")
        table[column] = parsed
    _check_ranges(name, table)
    _refuse(name, table, key[-1], table.duplicated(list(key)), "the row is there twice")
    return table


def _check_ranges(name, table):
    if "unit" in table:
        _refuse(name, table, "unit", ~table["unit"].isin(LIMITS), f"known units: {', '.join(LIMITS)}")
        _refuse(
            name,
            table,
            "relation",
            ~table["relation"].isin(RELATIONS),
            f"known relations: {' '.join(RELATIONS)}",
        )
        low, high = (
            table["unit"].map({unit: limits[side] for unit, limits in LIMITS.items()}) for side in (0, 1)
        )
        _refuse(name, table, "value", ~table["value"].between(low, high), "outside the range of its unit")
    if "ci_low" in table:
        half = table["ci_low"].isna() != table["ci_high"].isna()
        _refuse(name, table, "ci_low", half, "an interval has two bounds")
        outside = table["ci_low"].notna() & ~table["value"].between(table["ci_low"], table["ci_high"])
        _refuse(name, table, "ci_low", outside, "the interval does not hold its value")
    if name == "peers":
        for column, limits in RATIOS.items():
            _refuse(
                name,
                table,
                column,
                table[column].notna() & ~table[column].between(*limits),
                "a ratio is needed",
            )
    if name == "confusion_matrices":
        for column in TABLES[name][1]:
            _refuse(name, table, column, (table[column] < 0) | (table[column] % 1 != 0), "a count is needed")


def _refuse(name, table, column, bad, why):
    if bad.any():
        place = int(bad.to_numpy().argmax())
        raise StudyError(
            f"{name}.csv, row {place + 2}: {column} is '{table[column].iloc[place]}'; {why}. "
            "Correct the row or restore the file."
        )
