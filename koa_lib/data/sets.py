"""Sets derived from a cohort, on which external results are computed, and counts of pictures per grade."""

import pandas as pd

from koa_lib.data.manifest import SPLITS
from koa_lib.grades import GRADES
from koa_lib.images.shape import TWO_KNEES

SUBSETS = ("raw", "deduplicated", "single_knee")


def subset(rows, name):
    """Image ids of a derived set.

    `raw` is every file; `deduplicated` keeps the first of equal pictures and none whose grades conflict;
    `single_knee` is the deduplicated set without pictures of two knees.

    Parameters
    ----------
    rows : DataFrame
        image_id, pixel_sha256, kl_grade, width, height.
    name : {'raw', 'deduplicated', 'single_knee'}
    """
    if name == "raw":
        return set(rows["image_id"])
    kept = rows[~conflicting(rows)].drop_duplicates("pixel_sha256")
    if name == "single_knee":
        kept = kept[~two_knees(kept)]
    return set(kept["image_id"])


def conflicting(rows, group="pixel_sha256", column="kl_grade"):
    """Whether each row's group carries several values of a column, e.g. equal pixels under two grades."""
    return rows.groupby(group)[column].transform("nunique") > 1


def two_knees(rows):
    """Whether each picture is so wide that it shows both knees."""
    return rows["width"] / rows["height"] >= TWO_KNEES


def one_per_grade(rows):
    """The first picture of one knee for each grade, and the first of two knees: rows with titles as index."""
    title = ("KL " + rows["kl_grade"].astype(str)).mask(two_knees(rows), "two knees")
    titled = rows.set_index(title.to_numpy())
    return titled[~titled.index.duplicated()].sort_index()


def counts(rows, cohort):
    """Pictures per split and grade: cohort, split, grade, n (zero where a grade is absent)."""
    order = [split for split in SPLITS if (rows["split"] == split).any()]
    every = pd.MultiIndex.from_product([order, GRADES], names=["split", "grade"])
    n = rows[["split", "kl_grade"]].value_counts().reindex(every, fill_value=0).reset_index(name="n")
    return n.assign(cohort=cohort)[["cohort", "split", "grade", "n"]]
