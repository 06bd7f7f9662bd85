"""Cohort manifests: one CSV row per picture, the only description of data that the study trusts.

A row holds what identifies a picture (id, path, two hashes), its reference and second grade, the group that
must stay together in splits and resampling, and its decoded format.
"""

import hashlib
import os
import re
from collections import Counter
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.read import decoded_sha256, file_sha256, is_picture

COLUMNS = (
    "image_id path split kl_grade kl_grade_reader2 group_id side sha256 pixel_sha256 width height bit_depth channels mode"
).split()
FINDINGS = ("osteophytes", "jsn", "sclerosis")
SPLITS = ("train", "val", "test", "auto_test", "external")
_WHOLE = ("kl_grade", "width", "height", "bit_depth", "channels")
_MAY_BE_EMPTY = ("kl_grade_reader2", *FINDINGS)
_HASH = r"[0-9a-f]{64}\Z"


@cache
def _schema():
    import pandera.pandas as pa  # slow to import, and only needed where a manifest is read

    def column(dtype, advice, *checks, unique=False):
        return pa.Column(dtype, list(checks), nullable=dtype == "Int64", unique=unique, report_duplicates="exclude_first", metadata={"advice": advice})

    grades = pa.Check.isin(GRADES)
    inside = pa.Check(lambda paths: paths.map(_lies_in_folders))
    digest = pa.Check.str_matches(_HASH)
    size = "is no size: build the manifest again"
    columns = {
        "image_id": column(str, "is there twice: keep one row per picture", unique=True),
        "path": column(str, "is there twice, absolute, leads out of the data folder or lacks folders: give each picture's own path, like train/0/name.png", inside, unique=True),
        "split": column(str, f"is no split: use one of {', '.join(SPLITS)}", pa.Check.isin(SPLITS)),
        "kl_grade": column(int, "is no KL grade: use 0, 1, 2, 3 or 4", grades),
        "kl_grade_reader2": column("Int64", "is no KL grade: use 0-4 or leave it empty", grades),
        "group_id": column(str, "is empty: give the patient or duplicate group", pa.Check.str_length(min_value=1)),
        "side": column(str, "is no side: use L, R or leave it empty", pa.Check.isin(("L", "R", ""))),
        "sha256": column(str, "is no SHA-256: build the manifest again", digest),
        "pixel_sha256": column(str, "is no SHA-256: build the manifest again", digest),
        "width": column(int, size, pa.Check.ge(1)),
        "height": column(int, size, pa.Check.ge(1)),
        "bit_depth": column(int, "is no bit depth of a picture: 8 or 16", pa.Check.isin((8, 16))),
        "channels": column(int, "is no number of channels: 1 or 3", pa.Check.isin((1, 3))),
        "mode": column(str, "is empty: build the manifest again", pa.Check.str_length(min_value=1)),
    }
    findings = {name: pa.Column("Int64", pa.Check.in_range(0, 3), nullable=True, required=False, metadata={"advice": "is no finding grade: use 0-3 or leave it empty"})
                for name in FINDINGS}
    return pa.DataFrameSchema({**columns, **findings})


def _lies_in_folders(path):
    # Neither absolute nor climbing out of the data folder, and with the two folders that tell split and grade.
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return len(parts) >= 3 and ".." not in parts and parts[0] != "/" and not re.match("[A-Za-z]:", path)


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
        Missing file or column, text or nothing where a number belongs, or what `validate` refuses: names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"The manifest {path} does not exist. Build it with 'koa data build' or correct the path.")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not a CSV table: {error}. Restore it from version control.") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise StudyError(f"{path} lacks the column(s) {', '.join(missing)}. A manifest has: {', '.join(COLUMNS)}.")
    for name in (*_WHOLE, *_MAY_BE_EMPTY):
        if name in frame:
            frame[name] = _whole_numbers(frame, name, path, required=name in _WHOLE)
    validate(frame, path)
    return frame


def _whole_numbers(frame, name, path, required):
    values = pd.to_numeric(frame[name].replace("", None), errors="coerce")
    bad = values.isna() & (required | (frame[name] != "")) | (values % 1 != 0) & values.notna()
    if bad.any():
        row = bad.idxmax()
        raise StudyError(f"{path}, row {row + 2}: {name} is '{frame[name][row]}', a whole number is needed. Correct the row{_others(bad)}.")
    return values.astype("int64" if required else "Int64")


def _others(bad):
    more = int(np.sum(bad)) - 1
    return f" and {more} more like it" if more else ""


def validate(frame, path="manifest"):
    """Check the rules that every manifest keeps; the error names file, row and value (the header is row 1)."""
    import pandera.errors

    if frame.empty:
        raise StudyError(f"{path} has no rows. Build the manifest again from the picture folder.")
    frame = frame.reset_index(drop=True)
    try:
        _schema().validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        case = cases.sort_values("index", kind="stable").iloc[0]
        if case["schema_context"] != "Column":
            raise StudyError(f"{path} lacks the column {case['failure_case']}. A manifest has: {', '.join(COLUMNS)}.") from None
        name, alike = case["column"], cases["column"] == case["column"]
        if pd.isna(case["index"]):
            raise StudyError(f"{path}: the column {name} holds {case['failure_case']} instead of {_schema().columns[name].dtype}. Read it with read_manifest.") from None
        row, advice = int(case["index"]), _schema().columns[name].metadata["advice"]
        raise StudyError(f"{path}, row {row + 2} (image_id {frame['image_id'][row]}): {name} '{frame[name][row]}' {advice}{_others(alike)}.") from None


def natural(path):
    """Sorting key by which 'G0 (9)' comes before 'G0 (10)'."""
    parts = re.split("([0-9]+)", path)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def tail(path):
    """The last three parts of a path without suffix: <split>/<grade>/<name> in every published layout."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-3:])


def locate(folder, known, layouts, expected):
    """Find the root of a cohort at, above or below a folder.

    Parameters
    ----------
    folder : Path
    known : callable
        Whether the last three parts of a path, without suffix, belong to the cohort.
    layouts : iterable of str
        Folders that lead to the root in published archives; a root that ends like one is preferred, because an
        archive may hold the same names in another size.
    expected : str
        What should be there, for the error.

    Returns
    -------
    root : Path
    files : list of Path
        Every file below the root, in natural order.

    Raises
    ------
    StudyError
        The folder is missing or holds no known picture.
    """
    if not str(folder):
        raise StudyError(f"No data folder is given. Give the one that holds {expected}.")
    folder = Path(folder)
    if not folder.is_dir():
        raise StudyError(f"The data folder {folder} {'is a file' if folder.exists() else 'does not exist'}. Give an existing folder that holds {expected}.")
    files = _files_below(folder.resolve())
    votes = Counter(path.parents[2] for path in files if is_picture(path) and known(tail(path.as_posix())))
    if not votes:
        raise StudyError(f"{folder} holds none of {expected} in folders of these names. Point to the folder that contains them.")

    root = min(votes, key=lambda root: (-max(map(len, _common_ends(root, layouts)), default=0), -votes[root], len(root.parts), root.as_posix()))
    files = files if root.is_relative_to(folder.resolve()) else _files_below(root)
    return root, sorted((path for path in files if path.is_relative_to(root)), key=lambda path: natural(path.as_posix()))


def locate_listed(manifest, folder, layouts=()):
    """`locate` for the pictures of a manifest."""
    keys = set(manifest["path"].map(tail))
    return locate(folder, keys.__contains__, layouts, f"the {len(manifest)} pictures of the manifest (first: {manifest['path'].iloc[0]})")


def _common_ends(root, layouts):
    # For each layout the folders at its end that the root ends with, too.
    for layout in layouts:
        pairs = zip(reversed(root.parts), reversed(PurePosixPath(layout).parts), strict=False)
        yield list(takewhile(lambda pair: pair[0] == pair[1], pairs))


def _files_below(folder):
    files, visited = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        files += [Path(place, name) for name in names if not name.startswith("._")]  # "._": macOS leaves such beside each file
    return files


def find_pictures(manifest, folder, layouts=()):
    """Find each row's file below `folder`, as listed or in another container.

    Returns
    -------
    DataFrame
        The rows found, with `file` (Path).

    Raises
    ------
    StudyError
        When the folder is missing or holds none of the pictures.
    """
    root, files = locate_listed(manifest, folder, layouts)
    listed = {path.relative_to(root).as_posix(): path for path in files if is_picture(path)}
    by_stem = {tail(name): path for name, path in reversed(listed.items())}
    rows = manifest.copy()
    rows["file"] = [listed.get(path) or by_stem.get(tail(path)) for path in rows["path"]]
    return rows[rows["file"].notna()].reset_index(drop=True)


def write_as_found(rows, path):
    """Write what the files of listed pictures are: CSV with `file_sha256`, and `as_listed`, whether bytes or else pixels are the manifest's.

    Parameters
    ----------
    rows : DataFrame
        file, sha256, pixel_sha256.
    """
    found = pd.DataFrame({"file_sha256": [file_sha256(file) for file in rows["file"]]})
    found["as_listed"] = [_same(*values) for values in zip(rows["file"], found["file_sha256"], rows["sha256"], rows["pixel_sha256"], strict=True)]
    found.to_csv(path, index=False, lineterminator="\n")


def _same(file, sha256, listed, pixels):
    try:
        return sha256 == listed or decoded_sha256(file) == pixels
    except StudyError:  # whoever reads the picture says what is wrong with it
        return False


def data_hash(manifest):
    """SHA-256 (first 12 hex digits) over ids, grades, splits and pixel hashes: names a data set in keys and reports."""
    text = map("|".join, zip(*(manifest[column].astype(str) for column in ("image_id", "split", "kl_grade", "pixel_sha256")), strict=True))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]
