"""Data audit: what repeats, contradicts or leaks in a cohort, and the derived sets for external evaluation."""

import pandas as pd

from koa_lib.grades import GRADES

TWO_KNEES = 3.0  # width over height from which a picture shows both knees (Gornale: 640 x 161)
SUBSETS = ("raw", "deduplicated", "single_knee")
COLUMNS = ["finding", "cohort", "groups", "files", "detail"]


def audit(rows, cohort):
    """Findings of one cohort.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows.
    cohort : str
        The cohort's name.

    Returns
    -------
    DataFrame
        finding, cohort, groups, files, detail; zero counts are kept, because a clean result is a result.
    """
    copies = rows[rows.duplicated("pixel_sha256", keep=False)]
    disputed = _spread(copies, "pixel_sha256", "kl_grade")
    leaking = _spread(rows, "group_id", "split")
    double = rows[_ratio(rows) >= TWO_KNEES]
    second = rows[rows["kl_grade_reader2"].notna()]
    apart = second[second["kl_grade"] != second["kl_grade_reader2"]]
    sizes = rows.groupby(["width", "height"]).size().sort_values(ascending=False)
    found = [
        ("equal pixels", copies["pixel_sha256"].nunique(), len(copies), f"{rows['pixel_sha256'].nunique()} unique pictures of {len(rows)}"),
        ("equal pixels under different grades", disputed["pixel_sha256"].nunique(), len(disputed), "left out of the deduplicated set"),
        ("group in more than one split", leaking["group_id"].nunique(), len(leaking), "patients or duplicate groups"),
        ("two knees in one picture", double["group_id"].nunique(), len(double), f"width at least {TWO_KNEES:g} times the height"),
        ("16-bit pictures", rows.loc[rows["bit_depth"] == 16, "group_id"].nunique(), int((rows["bit_depth"] == 16).sum()), "rescaled by 65,535 when read"),
        ("colour pictures", rows.loc[rows["channels"] == 3, "group_id"].nunique(), int((rows["channels"] == 3).sum()), "channels differ; averaged when read"),
        ("readers disagree", apart["group_id"].nunique(), len(apart), f"of {len(second)} pictures with two grades" if len(second) else "one reader only"),
        ("picture sizes", len(sizes), len(rows), "; ".join(f"{w} x {h}: {n}" for (w, h), n in sizes.head(4).items())),
    ]
    return pd.DataFrame([(finding, cohort, groups, files, detail) for finding, groups, files, detail in found], columns=COLUMNS)


def _spread(rows, group, column):
    # Rows of groups that carry more than one value of a column.
    return rows[rows.groupby(group)[column].transform("nunique") > 1] if len(rows) else rows


def _ratio(rows):
    return rows["width"] / rows["height"]


def subset(rows, name):
    """Image ids of a derived set.

    `raw` is every file; `deduplicated` keeps the first of equal pictures and none whose grades conflict;
    `single_knee` is the deduplicated set without pictures of two knees.
    """
    if name == "raw":
        return set(rows["image_id"])
    conflict = rows.groupby("pixel_sha256")["kl_grade"].transform("nunique") > 1
    kept = rows[~conflict].drop_duplicates("pixel_sha256")
    if name == "single_knee":
        kept = kept[_ratio(kept) < TWO_KNEES]
    return set(kept["image_id"])


def counts(rows, cohort):
    """Pictures per split and grade: cohort, split, grade, n (zero where a grade is absent)."""
    table = rows.groupby(["split", "kl_grade"]).size().unstack(fill_value=0).reindex(columns=list(GRADES), fill_value=0)
    order = [split for split in ("train", "val", "test", "auto_test", "external") if split in table.index]
    long = table.loc[order].stack().rename("n").reset_index()
    return long.rename(columns={"kl_grade": "grade"}).assign(cohort=cohort)[["cohort", "split", "grade", "n"]]


def reader_agreement(rows):
    """Agreement of two readers: pictures, accuracy, quadratic and linear kappa; None with one reader."""
    from koa_lib.metrics import confusion, from_confusion

    both = rows[rows["kl_grade_reader2"].notna()]
    if both.empty:
        return None
    cm = confusion(both["kl_grade"].to_numpy(), both["kl_grade_reader2"].to_numpy(dtype=int))
    values = from_confusion(cm)
    return {"pictures": len(both), "agreement": float(values["accuracy"]), "quadratic_kappa": float(values["qwk"]), "linear_kappa": float(values["linear_kappa"]), "confusion": cm}
