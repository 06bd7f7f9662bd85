"""Parts of a cohort: official splits, folds, and the inner part that may choose something."""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES


def official(dataset, split, role):
    """The pictures of an official split as a dataset for one role; None when the cohort has none."""
    positions = np.flatnonzero(dataset.rows["split"] == split)
    return dataset.part(positions, role) if len(positions) else None


def image_folds(rows, folds, seed):
    """Stratified folds over pictures, as the paper did: two knees of a patient may part.

    Returns
    -------
    list of (fit positions, held-out positions)
    """
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return _checked(splitter.split(rows, rows["kl_grade"]), rows, folds)


def patient_folds(rows, folds, seed):
    """Stratified folds over groups: both knees of a patient stay together (our protocol)."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return _checked(splitter.split(rows, rows["kl_grade"], rows["group_id"]), rows, folds)


def inner(dataset, seed, share=10):
    """Part a training set by patients into nine tenths to fit on and one tenth to choose with."""
    rows = dataset.rows
    share = min(share, int(rows["kl_grade"].value_counts().max()), rows["group_id"].nunique())
    if share < 2:
        raise StudyError(f"{len(rows)} training picture(s) of {rows['group_id'].nunique()} patient(s) can't be parted into a fitting and a choosing part. Add patients.")
    splitter = StratifiedGroupKFold(share, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a grade with fewer than ten groups is simply absent from some tenths
        warnings.simplefilter("ignore", UserWarning)
        fit, select = next(splitter.split(rows, rows["kl_grade"], rows["group_id"]))
    return dataset.part(fit, "fit"), dataset.part(select, "select")


def sample(rows, plan=(("train", 5), ("val", 1), ("test", 2), ("external", 8))):
    """A few pictures of each grade and split for a dry run: 8 per grade in all, each of another group, in manifest order.

    Where a split is not there or too small, others fill up what is missing.
    """
    first = rows.drop_duplicates(["kl_grade", "group_id"])
    parts = [part.head(number) for split, number in plan for _, part in first[first["split"] == split].groupby("kl_grade")]
    planned = pd.concat(parts)
    filled = pd.concat([planned, first.drop(planned.index)]).groupby("kl_grade").head(8)
    return rows.loc[sorted(filled.index)].reset_index(drop=True)


def _checked(parts, rows, folds):
    counts = rows["kl_grade"].value_counts().reindex(GRADES, fill_value=0)
    if counts.min() < folds:
        grade = int(counts.idxmin())
        raise StudyError(f"Grade {grade} has {counts.min()} picture(s), too few for {folds} folds. Use fewer folds or add pictures of that grade.")
    parts = list(parts)
    for number, (fit, held_out) in enumerate(parts, start=1):
        for name, positions in (("training part", fit), ("held-out part", held_out)):
            absent = sorted(set(GRADES) - set(rows["kl_grade"].iloc[positions]))
            if absent:
                raise StudyError(f"Fold {number}: its {name} has no picture of grade {absent[0]}. Use fewer folds, another seed or more patients.")
    return parts
