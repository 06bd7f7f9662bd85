"""Looking into the files of a cohort once: everything that the audit asks about them, nothing from the manifest."""

from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from koa_lib.data.check import nearest_grades, second_reader
from koa_lib.data.files import attempt_all
from koa_lib.data.sets import two_knees
from koa_lib.errors import StudyError
from koa_lib.images.read import describe, mislabelled, read_gray

FILE_COLUMNS = ["sha256", "pixel_sha256", "width", "height", "bit_depth", "channels", "mode"]
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
INTENSITY = ["mean", "sd", *(f"q{round(100 * share):02d}" for share in QUANTILES)]
FOUND = [*FILE_COLUMNS, "problem", "readable", "as_in_manifest", "container", "perceptual_hash", *INTENSITY, "polarity"]
TEXT = ["image_id", "sha256", "pixel_sha256", "mode", "problem", "container", "perceptual_hash"]
HASH_SIZE = 16  # a perceptual hash of 16 x 16 bits
FEWEST = 5  # pictures of a kind, below which their median says nothing
SMALL = 32  # side of the thumbnail that tells the polarity


def inspect(rows):
    """Read every file of a cohort.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows with `file`.

    Returns
    -------
    DataFrame
        The rows with `FILE_COLUMNS` as the files have them, and: as_in_manifest (same pixels), problem (empty, or
        why the file cannot be read or is wrongly named), readable, container (suffix), perceptual_hash (hex),
        mean, sd and quantiles of the gray values in [0, 1], polarity (-1 to 1, see `_polarity`; NaN with too few pictures).
    """
    found = attempt_all(_look, rows["file"], "reading files")
    readable = np.array([not isinstance(result, StudyError) for result in found])
    columns = pd.DataFrame([result[0] if good else {"problem": str(result)} for result, good in zip(found, readable, strict=True)], index=rows.index)
    looked = rows.drop(columns=[name for name in columns if name in rows]).join(columns).assign(readable=readable)
    looked["as_in_manifest"] = looked["pixel_sha256"] == rows["pixel_sha256"]
    looked["polarity"] = np.nan
    small = np.stack([result[1] for result, good in zip(found, readable, strict=True) if good]) if readable.any() else np.zeros((0, SMALL, SMALL))
    looked.loc[readable, "polarity"] = _polarity(small, two_knees(looked[readable]).to_numpy())
    return looked


def with_second_reader(inspected, root):
    """Inspected rows with the second reader's grades matched by pixels, where a folder of that reader is there."""
    second = second_reader(root)
    return inspected.assign(kl_grade_reader2=nearest_grades(inspected, second)) if second else inspected


def write(inspected, path):
    """Keep what `inspect` found, as CSV."""
    inspected[["image_id", *FOUND]].to_csv(path, index=False, lineterminator="\n")


def read(path, rows):
    """The inspected rows again, from the file of `write` and the manifest rows."""
    found = pd.read_csv(path, dtype={name: str for name in TEXT}).fillna({name: "" for name in TEXT})
    return rows.drop(columns=FILE_COLUMNS).merge(found, on="image_id", validate="one_to_one")


def _look(file):
    """The columns of one file, and its thumbnail."""
    gray = read_gray(file)
    picture = Image.fromarray(np.round(gray * 255).astype(np.uint8))
    values = dict(zip(INTENSITY, (gray.mean(), gray.std(), *np.quantile(gray, QUANTILES)), strict=True))
    columns = {**describe(file), "problem": mislabelled(file), "container": Path(file).suffix.lower(),
               "perceptual_hash": str(imagehash.phash(picture, HASH_SIZE)), **{name: float(value) for name, value in values.items()}}
    return columns, np.asarray(Image.fromarray(gray).resize((SMALL, SMALL), Image.Resampling.BOX))


def _polarity(small, double):
    """Correlation of each thumbnail with the median of its kind (one knee, two knees): inverted ones are near -1."""
    result = np.zeros(len(small))
    for kind in (False, True):
        chosen = np.flatnonzero(double == kind)
        if len(chosen) < FEWEST:
            result[chosen] = np.nan
            continue
        flat = small[chosen].reshape(len(chosen), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
        usual = np.median(flat, axis=0)
        result[chosen] = flat @ (usual / max(np.linalg.norm(usual), 1e-9))
    return result
