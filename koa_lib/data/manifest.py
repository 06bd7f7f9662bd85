"""Cohort manifests: one CSV row per picture, the only description of data that the study trusts.

A row holds what identifies a picture (id, path, two hashes), its reference and second grade, the group that
must stay together in splits and resampling, and its decoded format. `cohorts.manifest` reads one by its
cohort's name.
"""

import hashlib
import re
from pathlib import PurePosixPath

import pandas as pd

from koa_lib.errors import StudyError

FINDINGS = ("osteophytes", "jsn", "sclerosis")
SPLITS = ("train", "val", "test", "auto_test", "external")
_GRADE = "0, 1, 2, 3 or 4"

# What a cell holds, as a regular expression and in words.
_SIZE, _HASH = ("[1-9][0-9]{0,8}", "a number of pixels"), ("[0-9a-f]{64}", "a SHA-256 in hex digits")
_RULES = {
    "image_id": (".+", "there, and once only"),
    # Neither absolute nor climbing out of the data folder, and with the two folders that tell split and
    # grade.
    "path": (
        r"(?![A-Za-z]:)(?!(.*[/\\])?\.\.([/\\]|\Z))([^/\\]+[/\\]+){2,}[^/\\]+",
        "a path inside the data folder like train/0/name.png, and there once only",
    ),
    "split": ("|".join(SPLITS), f"one of {', '.join(SPLITS)}"),
    "kl_grade": ("[0-4]", _GRADE),
    "kl_grade_reader2": ("[0-4]?", f"{_GRADE}, or empty"),
    "group_id": (".+", "the patient or the duplicate group"),
    "side": ("[LR]?", "L, R or empty"),
    "sha256": _HASH,
    "pixel_sha256": _HASH,
    "width": _SIZE,
    "height": _SIZE,
    "bit_depth": ("8|16", "8 or 16"),
    "channels": ("1|3", "1 or 3"),
    "mode": (".+", "there"),
}
COLUMNS = list(_RULES)
_RULES |= dict.fromkeys(FINDINGS, ("[0-3]?", "0, 1, 2, 3 or empty"))
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
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{path} is no manifest ({error}). Build it with 'koa data build' or correct the path."
        ) from error
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
        raise StudyError(f"{path} lacks the columns {', '.join(missing)}. Build it again.")
    if frame.empty:
        raise StudyError(f"{path} has no rows. Build it again.")
    check_cells(frame, path)


def check_cells(frame, path):
    """StudyError about the first wrong cell of a table that has some of a manifest's columns."""
    known = frame.filter(list(_RULES)).reset_index(drop=True)
    text = known.astype(object).map(str, na_action="ignore").fillna("")
    right = text.apply(lambda cells: cells.str.fullmatch(_RULES[cells.name][0], flags=re.DOTALL))
    right &= text.apply(lambda cells: ~cells.duplicated() | (cells.name not in _UNIQUE))
    if not right.all(axis=None):
        row = right.all(axis=1).idxmin()
        name = right.loc[row].idxmin()
        picture = f" (image_id {text['image_id'][row]})" if "image_id" in text else ""
        more = (~right[name]).sum() - 1
        raise StudyError(
            f"{path}, row {row + 2}{picture}: {name} is '{text[name][row]}' and must be {_RULES[name][1]}"
            f"{f'; {more} more rows are wrong' * bool(more)}. Correct it or build the manifest again."
        )


def natural(path):
    """Sorting key by which 'G0 (9)' comes before 'G0 (10)'."""
    parts = re.split("([0-9]+)", path)
    parts[1::2] = map(int, parts[1::2])
    return parts


def tail(path):
    """The last three parts of a path without suffix: <split>/<grade>/<name> in every published layout."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-3:])


def data_hash(manifest):
    """SHA-256 (first 12 hex digits) over ids, grades, splits and pixel hashes: names a data set in keys and
    reports.
    """
    columns = ("image_id", "split", "kl_grade", "pixel_sha256")
    text = map("|".join, zip(*(manifest[name].astype(str) for name in columns), strict=True))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]
