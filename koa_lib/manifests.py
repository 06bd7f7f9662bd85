"""Cohort manifests: one CSV row per picture, the only description of data that the study trusts.

A row holds what identifies a picture (id, path, two hashes), its reference and second grade, the group that
must stay together in splits and resampling, and its decoded format.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

COLUMNS = (
    "image_id path split kl_grade kl_grade_reader2 group_id side sha256 pixel_sha256 width height bit_depth channels mode"
).split()
FINDINGS = ("osteophytes", "jsn", "sclerosis")
SPLITS = ("train", "val", "test", "auto_test", "external")
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_TEXT = ("image_id", "path", "split", "group_id", "side", "sha256", "pixel_sha256", "mode")
_WHOLE = ("kl_grade", "width", "height", "bit_depth", "channels")


def file_sha256(path):
    """SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_sha256(pixels):
    """SHA-256 of decoded pixels, equal for the same picture in another container.

    Parameters
    ----------
    pixels : uint8 or uint16 array, (H, W) or (H, W, 3)
        As returned by `decode`.
    """
    height, width = pixels.shape[:2]
    colour = "x3" if pixels.ndim == 3 else ""
    digest = hashlib.sha256(f"{height}x{width}{colour}:{pixels.dtype.name}:".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def decode(path):
    """The pixels of a picture file and Pillow's name of its mode.

    Equal RGB channels become one, alpha is dropped, a palette is expanded; 16-bit gray stays 16-bit.

    Returns
    -------
    pixels : uint8 or uint16 array, (H, W) or (H, W, 3)
    mode : str

    Raises
    ------
    StudyError
        When the file is no readable picture.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            if mode.startswith("I"):
                return _sixteen_bit(np.asarray(picture), path), mode
            gray = mode in ("L", "1", "LA")
            pixels = np.asarray(picture.convert("L" if gray else "RGB"))
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{path} cannot be read as a picture ({error}). Replace the file or remove its row.") from error
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels, mode


def _sixteen_bit(values, path):
    # Pillow opens some 16-bit PNGs as 32-bit integers ("I").
    if values.min() < 0 or values.max() > 65535:
        raise StudyError(f"{path} holds values outside 16 bits ({values.min()} to {values.max()}). Convert it to 16-bit gray.")
    return values.astype(np.uint16)


def describe_picture(path):
    """The manifest columns that a file alone determines: two hashes, size, depth, channels, mode."""
    pixels, mode = decode(path)
    return {
        "sha256": file_sha256(path),
        "pixel_sha256": pixel_sha256(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "bit_depth": 8 * pixels.dtype.itemsize,
        "channels": 1 if pixels.ndim == 2 else 3,
        "mode": mode,
    }


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
        Missing file or column, repeated id, grade outside 0-4, unknown split: names the file and row.
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
    for name in (*_WHOLE, "kl_grade_reader2", *FINDINGS):
        if name in frame:
            frame[name] = _whole_numbers(frame, name, path, required=name in _WHOLE)
    validate(frame, path)
    return frame


def _whole_numbers(frame, name, path, required):
    values = pd.to_numeric(frame[name].replace("", None), errors="coerce")
    bad = values.isna() & (required | (frame[name] != "")) | (values % 1 != 0) & values.notna()
    if bad.any():
        row = bad.idxmax()
        raise StudyError(f"{path}, row {row + 2}: {name} is '{frame[name][row]}', a whole number is needed. Correct the row.")
    return values.astype("int64" if required else "Int64")


def validate(frame, path="manifest"):
    """Check the rules that every manifest keeps; the error names file, row and value (header is row 1)."""
    if frame.empty:
        raise StudyError(f"{path} has no rows. Build the manifest again from the picture folder.")
    checks = (
        ("image_id", frame["image_id"].duplicated(), "is there twice: keep one row per picture"),
        ("kl_grade", ~frame["kl_grade"].isin(GRADES), "is no KL grade: use 0, 1, 2, 3 or 4"),
        ("kl_grade_reader2", frame["kl_grade_reader2"].notna() & ~frame["kl_grade_reader2"].isin(GRADES), "is no KL grade: use 0-4 or leave it empty"),
        ("split", ~frame["split"].isin(SPLITS), f"is no split: use one of {', '.join(SPLITS)}"),
        ("group_id", frame["group_id"].isin(["", None]), "is empty: give the patient or duplicate group"),
    )
    for name, bad, advice in checks:
        bad = np.asarray(bad.fillna(True), dtype=bool)
        if bad.any():
            row = int(bad.argmax())
            raise StudyError(f"{path}, row {row + 2} (image_id {frame['image_id'].iloc[row]}): {name} '{frame[name].iloc[row]}' {advice}.")


def find_pictures(manifest, folder):
    """Find each row's file below `folder`, by path or by image id in any container.

    Returns
    -------
    DataFrame
        The rows found, with `file` (Path) and `status`: *as listed* or *re-encoded* (another suffix).

    Raises
    ------
    StudyError
        When the folder is missing or holds none of the pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StudyError(f"The data folder {folder} does not exist. Give an existing folder, e.g. DATA=/path/to/kneeKL224.")
    listed = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES}
    by_stem = {_stem_key(name): path for name, path in listed.items()}
    rows = manifest.copy()
    rows["file"] = [_match(path, listed, by_stem) for path in rows["path"]]
    rows = rows[rows["file"].notna()].reset_index(drop=True)
    if rows.empty:
        raise StudyError(f"{folder} holds none of the {len(manifest)} pictures of the manifest (first: {manifest['path'].iloc[0]}). Point to the folder that contains it.")
    same = [Path(path).suffix == file.suffix for path, file in zip(rows["path"], rows["file"], strict=True)]
    rows["status"] = np.where(same, "as listed", "re-encoded")
    return rows


def _stem_key(name):
    # The last three folders identify a picture in every published layout: <split>/<grade>/<name>.
    return "/".join(Path(name).with_suffix("").parts[-3:])


def _match(path, listed, by_stem):
    return listed.get(path) or by_stem.get(_stem_key(path))


def data_hash(manifest):
    """SHA-256 (first 12 hex digits) over ids, grades, splits and pixel hashes: names a data set in keys and reports."""
    text = manifest[["image_id", "split", "kl_grade", "pixel_sha256"]].astype(str).agg("|".join, axis=1)
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]
