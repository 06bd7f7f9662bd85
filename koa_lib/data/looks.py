"""Looking into the files of a cohort once: what the audit asks about each, and which pictures look alike."""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import radius_neighbors_graph
from sklearn.preprocessing import OneHotEncoder, normalize
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from koa_lib.data.check import nearest_grades, second_reader
from koa_lib.data.manifest import natural
from koa_lib.data.sets import two_knees
from koa_lib.errors import StudyError
from koa_lib.images.read import describe, mislabelled, read_gray, to_uint8

FILE_COLUMNS = ["sha256", "pixel_sha256", "width", "height", "bit_depth", "channels", "mode"]
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
INTENSITY = ["mean", "sd", *(f"q{round(100 * share):02d}" for share in QUANTILES)]
TEXT = ["image_id", "sha256", "pixel_sha256", "mode", "problem", "perceptual_hash"]
FOUND = [*FILE_COLUMNS, "problem", "readable", "perceptual_hash", *INTENSITY, "as_in_manifest", "polarity"]
HASH_SIZE = 16  # a perceptual hash of 16 x 16 bits
# Of 256 bits. Copies of OAI pictures that were compressed, brightened, shifted by a pixel or cropped by 1 %
# differ in at most 26 bits, different OAI knees in at least 36 (6,604 pictures); no label and no external
# picture was used.
THRESHOLD = 28
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
        The rows with `FILE_COLUMNS` as the files have them, and: as_in_manifest (same pixels), problem (why
        the file cannot be read or is wrongly named, else missing), readable, perceptual_hash (hex), mean, sd
        and quantiles of the gray values in [0, 1], polarity (-1 to 1, see `_polarity`; NaN with few
        pictures).

    Raises
    ------
    StudyError
        When no file can be read.
    """
    # The bar is named because the default one leaves a widget in a notebook that loads scripts.
    bar = {"tqdm_class": tqdm, "desc": "reading files", "unit": "file", "disable": None}
    found = pd.DataFrame(thread_map(_look, rows["file"], max_workers=2, **bar), index=rows.index)
    if not found["readable"].any():
        raise StudyError(f"None of the {len(rows)} files can be read. The first: {found['problem'].iloc[0]}")
    looked = rows.drop(columns=FILE_COLUMNS).join(found)
    looked["as_in_manifest"] = looked["pixel_sha256"] == rows["pixel_sha256"]
    readable = looked[looked["readable"]]
    for _, kind in readable.groupby(two_knees(readable)):
        looked.loc[kind.index, "polarity"] = _polarity(np.stack(kind["small"]))
    return looked.drop(columns="small")


def with_second_reader(inspected, root):
    """Inspected rows with the second reader's grades, matched by pixels, where that reader has a folder."""
    second = second_reader(root)
    return inspected.assign(kl_grade_reader2=nearest_grades(inspected, second)) if second else inspected


def write_inspected(rows, path):
    """Keep what `inspect` finds, as CSV."""
    inspect(rows)[["image_id", *FOUND]].to_csv(path, index=False, lineterminator="\n")


def read(path, rows):
    """The inspected rows again, from the file of `write_inspected` and the manifest rows."""
    found = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str))
    return rows.drop(columns=FILE_COLUMNS).merge(found, on="image_id", validate="one_to_one")


def near_groups(rows, together="pixel_sha256"):
    """Name of each picture's group of near-duplicates: the id of the group's first picture in path order.

    Neighbours in a group differ in at most `THRESHOLD` bits (single linkage).

    Parameters
    ----------
    rows : DataFrame
        image_id, path, perceptual_hash.
    together : str
        A column whose equal values belong to one group, too; equal pixels do in any case.

    Returns
    -------
    list of str
    """
    bits, known = _bits(rows["perceptual_hash"]), OneHotEncoder().fit_transform(rows[[together]])
    alike = radius_neighbors_graph(bits, (THRESHOLD + 0.5) ** 0.5)
    _, label = connected_components(alike + known @ known.T, directed=False)
    order = sorted(range(len(rows)), key=lambda k: natural(rows["path"].iloc[k]))
    first = rows["image_id"].iloc[order].groupby(label[order]).first()
    return first[label].tolist()


def _bits(hashes):
    # Of zeros and ones, the squared Euclidean distance is the number of bits that differ.
    return np.stack([imagehash.hex_to_hash(text).hash.ravel() for text in hashes]).astype(np.float32)


def _look(file):
    """The columns of one file and its thumbnail `small`; of an unreadable one `readable` and `problem`."""
    try:
        gray = read_gray(file)
        columns = {"readable": True, "problem": mislabelled(file) or None, **describe(file)}
    except StudyError as error:
        return {"readable": False, "problem": str(error)}
    values = gray.mean(), gray.std(), *np.quantile(gray, QUANTILES)
    picture = Image.fromarray(to_uint8(gray))
    small = Image.fromarray(gray).resize((SMALL, SMALL), Image.Resampling.BOX)
    return {
        **columns,
        **dict(zip(INTENSITY, map(float, values), strict=True)),
        "perceptual_hash": str(imagehash.phash(picture, HASH_SIZE)),
        "small": np.ravel(small),
    }


def _polarity(small):
    """Correlation of each thumbnail with the median of its kind: inverted ones are near -1."""
    if len(small) < FEWEST:
        return np.nan
    flat = normalize(small - small.mean(axis=1, keepdims=True))
    return flat @ normalize([np.median(flat, axis=0)])[0]
