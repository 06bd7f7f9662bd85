"""The data audit finds the known defects, on the published manifest and on small made ones."""

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from koa_lib import audit, manifests
from koa_lib.study import MANIFESTS


@pytest.fixture(scope="module")
def gornale():
    return manifests.read_manifest(MANIFESTS / "gornale2020.csv")


@pytest.fixture(scope="module")
def chen():
    return manifests.read_manifest(MANIFESTS / "oai_chen2018.csv")


def finding(rows, name):
    return audit.audit(rows, "c").set_index("finding").loc[name]


def test_repeats_of_the_external_set(gornale):
    equal = finding(gornale, "equal pixels")
    assert equal["groups"] == 63 and "1579 unique pictures of 1650" in equal["detail"]
    assert equal["files"] - equal["groups"] == 1650 - 1579
    assert finding(gornale, "equal pixels under different grades")["groups"] == 3


def test_formats_of_the_external_set(gornale):
    assert finding(gornale, "two knees in one picture")["files"] == 186
    assert finding(gornale, "16-bit pictures")["files"] == 80
    assert "300 x 162" in finding(gornale, "picture sizes")["detail"]


def test_derived_sets_of_the_external_set(gornale):
    raw, unique, single = (audit.subset(gornale, name) for name in audit.SUBSETS)
    assert (len(raw), len(unique)) == (1650, 1576) and single < unique < raw
    kept = gornale[gornale["image_id"].isin(unique)]
    assert kept["pixel_sha256"].is_unique and not (gornale[gornale["image_id"].isin(single)].eval("width / height") >= 3).any()


def test_readers_of_the_external_set(gornale):
    agreement = audit.reader_agreement(gornale)
    first, second = gornale["kl_grade"], gornale["kl_grade_reader2"].astype(int)
    assert agreement["pictures"] == 1650 and agreement["agreement"] == pytest.approx((first == second).mean())
    assert agreement["quadratic_kappa"] == pytest.approx(cohen_kappa_score(first, second, weights="quadratic"))
    assert finding(gornale, "readers disagree")["files"] == (first != second).sum() > 0


def test_official_split_does_not_leak(chen):
    assert finding(chen, "group in more than one split")["files"] == 0 and audit.reader_agreement(chen) is None
    assert chen["group_id"].nunique() == 4130


def test_counts_add_up(chen):
    table = audit.counts(chen, "oai")
    assert table["n"].sum() == 8260 and len(table) == 15
    assert table.groupby("split")["n"].sum().to_dict() == {"train": 5778, "val": 826, "test": 1656}
    assert table[(table["split"] == "test") & (table["grade"] == 4)]["n"].item() == ((chen["split"] == "test") & (chen["kl_grade"] == 4)).sum()


def small(**columns):
    frame = pd.DataFrame({"image_id": list("abcd"), "split": ["train", "train", "test", "test"], "kl_grade": [0, 1, 2, 2], "group_id": list("pqrs"),
                          "pixel_sha256": list("1234"), "width": 224, "height": 224, "bit_depth": 8, "channels": 1})
    frame["kl_grade_reader2"] = pd.array([pd.NA] * 4, "Int64")
    return frame.assign(**columns)


def test_clean_cohort_has_no_findings():
    found = audit.audit(small(), "c").set_index("finding")["files"].drop("picture sizes")
    assert (found == 0).all()


def test_leaking_patient_is_found():
    row = finding(small(group_id=["p", "q", "q", "s"]), "group in more than one split")
    assert (row["groups"], row["files"]) == (1, 2)


def test_repeats_keep_one_and_conflicts_none():
    rows = small(pixel_sha256=list("1122"))
    assert audit.subset(rows, "deduplicated") == {"c"} and audit.subset(rows, "raw") == set("abcd")


def test_absent_grade_is_counted_as_zero():
    table = audit.counts(small(), "c")
    assert table[(table["split"] == "train") & (table["grade"] == 4)]["n"].item() == 0 and len(table) == 10


def test_built_in_defects_of_cohort_b_are_found(cohort_b):
    from koa_lib.phantoms import defects_b

    _, rows = cohort_b
    known = defects_b(len(rows))
    assert finding(rows, "equal pixels")["groups"] == known["copies"] + known["disputed"]
    assert finding(rows, "equal pixels under different grades")["groups"] == known["disputed"]
    assert finding(rows, "two knees in one picture")["files"] == known["two_knees"]
    assert finding(rows, "16-bit pictures")["files"] == known["sixteen_bit"]
    assert finding(rows, "colour pictures")["files"] == known["colour"]
    assert all(count > 0 for count in known.values())
    assert finding(rows, "group in more than one split")["files"] == 0
    copies = rows[rows.duplicated("pixel_sha256", keep=False)]
    assert (copies.groupby("pixel_sha256")["group_id"].nunique() == 1).all()
