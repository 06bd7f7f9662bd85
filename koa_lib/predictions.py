"""Prediction files: the contract between models and everything that measures them.

A file holds `image_id, p0..p4`; grades, groups and splits are joined from the manifest, never stored twice.
"""

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.store import write_text

COLUMNS = ["image_id", "p0", "p1", "p2", "p3", "p4"]
PROBABILITIES = COLUMNS[1:]


def file_name(model, cohort, split, view, fold, seed, adaptation=""):
    """``<model>__<cohort>-<split>__<geometry>-<intensity>__fold<k>__seed<s>[__<adaptation>].csv``.

    Parameters
    ----------
    view : (str, str)
        Geometry and intensity.
    fold : int or 'mean'
    """
    parts = [model, f"{cohort}-{split}", "-".join(view), f"fold{fold}", f"seed{seed}", adaptation]
    return "__".join(filter(None, parts)) + ".csv"


def frame(image_ids, probabilities):
    """A predictions frame from ids (n,) and probabilities (n, 5).

    An id that is there twice stands for the two knees of one picture, whose single grade is taken to be that
    of the worse knee (our reading): the row with the higher expected grade is kept.
    """
    frame = pd.DataFrame(np.asarray(probabilities, dtype=float), columns=PROBABILITIES).assign(
        image_id=list(image_ids)
    )[COLUMNS]
    if frame["image_id"].is_unique:
        return frame
    expected = frame[PROBABILITIES].to_numpy() @ np.arange(len(PROBABILITIES))
    worse = (
        frame.assign(expected=expected)
        .sort_values("expected", ascending=False, kind="stable")
        .drop_duplicates("image_id")
    )
    return frame.loc[worse.index.sort_values()].reset_index(drop=True)


def write(predictions, path):
    """Validate and write a predictions frame, with nine digits, so that ranks and AUCs do not change."""
    validate(predictions, path)
    write_text(path, predictions.to_csv(index=False, lineterminator="\n", float_format="%.9g"))


def read(path, image_ids=None):
    """Read and validate a prediction file.

    Parameters
    ----------
    path : Path
    image_ids : sequence of str, optional
        The pictures that it must hold, in any order.

    Raises
    ------
    StudyError
        Missing file, wrong columns, repeated ids, probabilities outside [0, 1] or not summing to 1, other
        pictures than wanted.
    """
    try:
        predictions = pd.read_csv(path, dtype={"image_id": str})
    except FileNotFoundError as error:
        raise StudyError(
            f"The prediction file {path} does not exist. Run the notebook that makes it."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path} is not a CSV table: {error}. Delete it and run the notebook that makes it."
        ) from error
    validate(predictions, path)
    if image_ids is not None and set(image_ids) != set(predictions["image_id"]):
        wanted, found = len(set(image_ids)), len(predictions)
        raise StudyError(f"{path} holds {found:,} pictures, which are not the {wanted:,} of its part. "
                         "Delete it, and run the notebook again.")
    return predictions


def validate(predictions, path="predictions"):
    """Check the contract; the error names the file, row and id."""
    if list(predictions.columns) != COLUMNS:
        raise StudyError(
            f"{path} has the columns {', '.join(map(str, predictions.columns))}; needed: "
            f"{', '.join(COLUMNS)}."
        )
    values = predictions[PROBABILITIES].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    checks = (
        (predictions["image_id"].duplicated().to_numpy(), "is there twice"),
        (~np.isfinite(values).all(axis=1), "has a probability that is no number"),
        (((values < 0) | (values > 1)).any(axis=1), "has a probability outside [0, 1]"),
        (np.abs(values.sum(axis=1) - 1) > 1e-4, "has probabilities that do not sum to 1"),
    )
    for bad, what in checks:
        if bad.any():
            row = int(bad.argmax())
            raise StudyError(
                f"{path}, row {row + 2}: image_id '{predictions['image_id'].iloc[row]}' {what}. Make the "
                "file again."
            )


def join(predictions, manifest):
    """Add grades, group and split from the manifest.

    Raises
    ------
    StudyError
        When a predicted picture is not in the manifest.
    """
    columns = [
        "image_id",
        "kl_grade",
        "kl_grade_reader2",
        "group_id",
        "split",
        "pixel_sha256",
        "width",
        "height",
    ]
    graded = predictions.merge(
        manifest[columns].drop_duplicates("image_id"), on="image_id", how="left", validate="one_to_one"
    )
    unknown = graded["kl_grade"].isna()
    if unknown.any():
        raise StudyError(
            f"Picture '{graded.loc[unknown, 'image_id'].iloc[0]}' is predicted but not in the manifest. Use "
            "the manifest of the same cohort."
        )
    return graded.astype({"kl_grade": int})


def arrays(graded):
    """Reference grades (n,) and probabilities (n, 5) of a joined frame."""
    return graded["kl_grade"].to_numpy(dtype=int), graded[PROBABILITIES].to_numpy(dtype=float)
