"""Cohort manifests: one CSV row per picture, the only description of data that the study trusts.

A row holds what identifies a picture (id, path, two hashes), its reference and second grade, the group that
must stay together in splits and resampling, and its decoded format. `cohorts.manifest` reads one by its
cohort's name.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from koa_lib.errors import StudyError

FINDINGS = ("osteophytes", "jsn", "sclerosis")
SPLITS = ("train", "val", "test", "auto_test", "external")
_SIZE, _HASH = (
    ("[1-9][0-9]{0,8}", "is no size: build the manifest again"),
    ("[0-9a-f]{64}", "is no SHA-256: build the manifest again"),
)

# What a cell holds, as a regular expression, and what is wrong where it does not.
_RULES = {
    "image_id": (".+", "is there twice or empty: keep one row per picture"),
    # Neither absolute nor climbing out of the data folder, and with the two folders that tell split and
    # grade.
    "path": (
        r"(?![A-Za-z]:)(?!(.*[/\\])?\.\.([/\\]|\Z))([^/\\]+[/\\]+){2,}[^/\\]+",
        "is there twice, absolute, leads out of the data folder or lacks folders: "
        "give each picture's own path, like train/0/name.png",
    ),
    "split": ("|".join(SPLITS), f"is no split: use one of {', '.join(SPLITS)}"),
    "kl_grade": ("[0-4]", "is no KL grade: use 0, 1, 2, 3 or 4"),
    "kl_grade_reader2": ("[0-4]?", "is no KL grade: use 0-4 or leave it empty"),
    "group_id": (".+", "is empty: give the patient or duplicate group"),
    "side": ("[LR]?", "is no side: use L, R or leave it empty"),
    "sha256": _HASH,
    "pixel_sha256": _HASH,
    "width": _SIZE,
    "height": _SIZE,
    "bit_depth": ("8|16", "is no bit depth of a picture: 8 or 16"),
    "channels": ("1|3", "is no number of channels: 1 or 3"),
    "mode": (".+", "is empty: build the manifest again"),
}
COLUMNS = list(_RULES)
_RULES |= dict.fromkeys(FINDINGS, ("[0-3]?", "is no finding grade: use 0-3 or leave it empty"))
_UNIQUE = ("image_id", "path")
_WHOLE = ("kl_grade", "width", "height", "bit_depth", "channels")
_MAY_BE_EMPTY = ("kl_grade_reader2", *FINDINGS)


def write_manifest(frame, path):
    """Write a validated manifest as CSV with LF line ends, contract columns first."""
    validate(frame, path)
    columns = COLUMNS + [name for name in FINDINGS if name in frame]
    frame.to_csv(path, columns=columns, index=False, lineterminator="\n")


def read_manifest(path):
    """Read and validate a manifest.

    Returns
    -------
    DataFrame
        Contract columns; text as str, `kl_grade` int, `kl_grade_reader2` and findings nullable Int64.

    Raises
    ------
    StudyError
        Missing file or column, text or nothing where a number belongs, or what `validate` refuses: names
        file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(
            f"The manifest {path} does not exist. Build it with 'koa data build' or correct the path."
        )
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not a CSV table: {error}. Restore it from version control.") from error
    numbers = [name for name in (*_WHOLE, *_MAY_BE_EMPTY) if name in frame]
    frame[numbers] = frame[numbers].apply(digits)
    validate(frame, path)
    for name in numbers:
        frame[name] = pd.to_numeric(frame[name]).astype("int64" if name in _WHOLE else "Int64")
    return frame


def digits(cells):
    """Text cells with whole numbers as digits: '2.0', as pandas writes beside empty cells, is '2'."""
    numbers = pd.to_numeric(cells, errors="coerce")
    whole = (numbers.abs() < 1e9) & (numbers % 1 == 0)
    return cells.mask(whole, numbers[whole].map("{:.0f}".format))


def validate(frame, path="manifest"):
    """Check the rules that every manifest keeps; the error names file, row (header: 1) and value."""
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise StudyError(
            f"{path} lacks the column(s) {', '.join(missing)}. A manifest has: {', '.join(COLUMNS)}."
        )
    if frame.empty:
        raise StudyError(f"{path} has no rows. Build the manifest again from the picture folder.")
    check_cells(frame, path)


def check_cells(frame, path):
    """StudyError about the first wrong cell of a table that has some of a manifest's columns."""
    text = (
        frame.filter(list(_RULES)).reset_index(drop=True).map(lambda cell: "" if pd.isna(cell) else str(cell))
    )
    wrong = text.apply(lambda cells: cells.map(re.compile(_RULES[cells.name][0], re.DOTALL).fullmatch).isna())
    wrong |= text.apply(lambda cells: cells.duplicated() & (cells.name in _UNIQUE))
    if wrong.any(axis=None):
        row = wrong.any(axis=1).idxmax()
        name = wrong.loc[row].idxmax()
        picture = f" (image_id {text['image_id'][row]})" if "image_id" in text else ""
        more = wrong[name].sum() - 1
        raise StudyError(
            f"{path}, row {row + 2}{picture}: {name} '{text[name][row]}' {_RULES[name][1]}"
            f"{f' and {more} more like it' * bool(more)}."
        )


def natural(path):
    """Sorting key by which 'G0 (9)' comes before 'G0 (10)'."""
    parts = re.split("([0-9]+)", path)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def tail(path):
    """The last three parts of a path without suffix: <split>/<grade>/<name> in every published layout."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-3:])


def data_hash(manifest):
    """SHA-256 (first 12 hex digits) over ids, grades, splits and pixel hashes: names a data set in keys
    and reports.
    """
    columns = ("image_id", "split", "kl_grade", "pixel_sha256")
    text = map("|".join, zip(*(manifest[name].astype(str) for name in columns), strict=True))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]
