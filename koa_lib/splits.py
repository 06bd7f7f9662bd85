"""Parts of a cohort: official splits, folds, and the inner part that may choose something."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from koa_lib.datasets import KneeDataset
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

# what a model inside the training cohort was not fitted on, the first that is there
UNSEEN = ("test", "held_out", "val")


@dataclass(frozen=True)
class Fold:
    """The parts of one training: what is fitted, what chooses (or None) and what is reported, by split."""

    number: int
    fit: KneeDataset
    select: KneeDataset | None
    reported: dict

    @property
    def unseen(self):
        """Name of the reported part that the model was neither fitted on nor chosen by."""
        return unseen(self.reported)


def unseen(names):
    """The first of `UNSEEN` among some splits."""
    return next(name for name in UNSEEN if name in names)


def folds(data, scheme, number, seed, stops_early=False, fraction=1.0):
    """The folds of a training.

    Parameters
    ----------
    data : KneeDataset
        The training cohort.
    scheme : {'images', 'patients', 'official'}
        `images` (as printed): image-level folds over everything; `patients`: the same with both knees of a
        patient in one fold. Neither has an inner part unless training stops early. `official` (our protocol):
        folds grouped by patient over train + val, or the official split alone where there are none; an inner
        tenth of the training part chooses the epoch; the test split is only reported.
    number : int
        Of folds; 0 for the official split alone.
    fraction : float
        Of the training patients whose grades are used (`draw`); of the official split alone.

    Returns
    -------
    list of Fold
    """
    if scheme != "official":
        parts = {"images": image_folds, "patients": patient_folds}[scheme](data.rows, number, seed)
        return [
            _fold(k, data, fit, {"train": fit, "held_out": out}, seed, choose=stops_early)
            for k, (fit, out) in enumerate(parts, 1)
        ]
    official = {name: np.flatnonzero(data.rows["split"] == name) for name in ("train", "val", "test")}
    if not len(official["train"]):
        raise StudyError(
            "The training cohort has no picture of the split 'train' below the given folder. Point DATA to "
            "the folder that holds train/."
        )
    if not number:
        chosen = official["train"][draw(data.rows.iloc[official["train"]], fraction, seed)]
        return [_fold(1, data, chosen, {**official, "train": chosen}, seed)]
    pool = np.concatenate([official["train"], official["val"]])
    parts = patient_folds(data.rows.iloc[pool], number, seed)
    return [
        _fold(k, data, pool[fit], {"train": pool[fit], "held_out": pool[out], "test": official["test"]}, seed)
        for k, (fit, out) in enumerate(parts, 1)
    ]


def _fold(number, data, fit, reported, seed, choose=True):
    fitted = data.part(fit, "fit")
    parts = inner(fitted, seed) if choose else (fitted, None)
    return Fold(
        number,
        *parts,
        {name: data.part(places, "report") for name, places in reported.items() if len(places)},
    )


def for_task(part, task):
    """The pictures of a `KneeDataset` that are graded for a task, with its grades in place of the KL grades;
    None when there is none."""
    if task == "kl_grade":
        return part
    grades = part.rows.get(task, pd.Series(pd.NA, index=part.rows.index))
    positions = np.flatnonzero(grades.notna())
    if not len(positions):
        return None
    chosen = part.part(positions, part.role)
    return replace(chosen, rows=chosen.rows.assign(kl_grade=grades.iloc[positions].astype(int).to_numpy()))


def draw(rows, fraction, seed):
    """Positions of the pictures of a fraction of the patients, stratified by grade.

    A patient's stratum is the higher grade of the two knees (our reading); each stratum gives its rounded
    share, at least one patient. Draws with the same seed are nested: a larger fraction contains a smaller
    one.

    Parameters
    ----------
    rows : DataFrame
        group_id, kl_grade.
    fraction : float
        In (0, 1].

    Raises
    ------
    StudyError
        Another fraction, or no picture.
    """
    if not 0 < fraction <= 1:
        raise StudyError(f"A label fraction is {fraction:g}; give more than 0 and at most 1.")
    if not len(rows):
        raise StudyError(
            "There is no training picture to draw from. Check the folder and the split of the manifest."
        )
    generator, chosen = np.random.default_rng(seed), []
    worst = rows.groupby("group_id")["kl_grade"].max()
    for grade in GRADES:
        patients = generator.permutation(worst.index[worst == grade].to_numpy(copy=True))
        chosen.extend(patients[: max(1, int(fraction * len(patients) + 0.5))])
    return np.flatnonzero(rows["group_id"].isin(chosen))


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
        raise StudyError(
            f"{len(rows)} training picture(s) of {rows['group_id'].nunique()} patient(s) can't be parted "
            "into a fitting and a choosing part. Add patients."
        )
    splitter = StratifiedGroupKFold(share, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a grade with fewer than ten groups is simply absent from some tenths
        warnings.simplefilter("ignore", UserWarning)
        fit, select = next(splitter.split(rows, rows["kl_grade"], rows["group_id"]))
    return dataset.part(fit, "fit"), dataset.part(select, "select")


def sample(rows, plan=(("train", 5), ("val", 1), ("test", 2), ("external", 8))):
    """A few pictures of each grade and split for a dry run: 8 per grade in all, each of another group, in
    manifest order.

    Where a split is not there or too small, others fill up what is missing.
    """
    first = rows.drop_duplicates(["kl_grade", "group_id"])
    parts = [
        part.head(number)
        for split, number in plan
        for _, part in first[first["split"] == split].groupby("kl_grade")
    ]
    planned = pd.concat(parts)
    filled = pd.concat([planned, first.drop(planned.index)]).groupby("kl_grade").head(8)
    return rows.loc[sorted(filled.index)].reset_index(drop=True)


def _checked(parts, rows, folds):
    counts = rows["kl_grade"].value_counts().reindex(GRADES, fill_value=0)
    if counts.min() < folds:
        grade = int(counts.idxmin())
        raise StudyError(
            f"Grade {grade} has {counts.min()} picture(s), too few for {folds} folds. Use fewer folds or add "
            "pictures of that grade."
        )
    parts = list(parts)
    for number, (fit, held_out) in enumerate(parts, start=1):
        for name, positions in (("training part", fit), ("held-out fold", held_out)):
            absent = sorted(set(GRADES) - set(rows["kl_grade"].iloc[positions]))
            if absent:
                raise StudyError(
                    f"Fold {number}: its {name} has no picture of grade {absent[0]}. Use fewer folds, "
                    "another seed or more patients."
                )
    return parts
