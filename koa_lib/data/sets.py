"""Sets derived from a cohort: what an external result is computed on, and how many pictures there are of each grade."""

import pandas as pd

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
    """Whether each row's group carries more than one value of a column, e.g. equal pixels under two grades."""
    return rows.groupby(group)[column].transform("nunique") > 1


def two_knees(rows):
    """Whether each picture is so wide that it shows both knees."""
    return rows["width"] / rows["height"] >= TWO_KNEES


def one_per_grade(rows):
    """The first picture of one knee for each grade, and the first of two knees: rows with a title as index."""
    double = two_knees(rows)
    single = rows[~double].drop_duplicates("kl_grade").sort_values("kl_grade")
    titled = single.set_index("KL " + single["kl_grade"].astype(str))
    pair = rows[double].head(1)
    return titled if pair.empty else pd.concat([titled, pair.set_axis(["two knees"])])


def counts(rows, cohort):
    """Pictures per split and grade: cohort, split, grade, n (zero where a grade is absent)."""
    table = rows.groupby(["split", "kl_grade"]).size().unstack(fill_value=0).reindex(columns=list(GRADES), fill_value=0)
    order = [split for split in ("train", "val", "test", "auto_test", "external") if split in table.index]
    long = table.loc[order].stack().rename("n").reset_index()
    return long.rename(columns={"kl_grade": "grade"}).assign(cohort=cohort)[["cohort", "split", "grade", "n"]]
