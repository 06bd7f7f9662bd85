"""What was found in the cited sources, and table 5 that sets it beside comparable rows only."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results

from koa_lib import metrics
from koa_lib.errors import StudyError
from koa_lib.paper import tables
from koa_lib.profile import ROOT

PUBLISHED = ROOT / "data_manifests/published"
JPM, OTHERS, PEERS, LITERATURE, MATRICES = (
    pd.read_csv(PUBLISHED / f"{name}.csv")
    for name in ("jpm2026", "other_systems", "peers", "literature", "confusion_matrices")
)
KEY = ["item", "row", "metric"]
COUNTS = (
    pd.read_csv(ROOT / "data_manifests/oai_chen2018.csv")
    .query("split == 'test'")["kl_grade"]
    .value_counts()
    .sort_index()
)


INSIDE, OUTSIDE = knees(120, "a"), knees(80, "b", 1)
ARM = results(
    *(
        predicted(rows, 0.4, fold, fold=fold, split=split)
        for fold in (1, 2)
        for split, rows in (("train", INSIDE), ("test", INSIDE), ("external", OUTSIDE))
    )
)
COHORTS = {
    "training": SimpleNamespace(name="Chen"),
    "external": SimpleNamespace(name="Gornale"),
    "as_printed": SimpleNamespace(folds=2),
}


def table_5(literature=LITERATURE, synthetic=False):
    study = SimpleNamespace(seed=0, synthetic=synthetic, profile=SimpleNamespace(**COHORTS))
    return tables.table_5(
        JPM, PEERS, literature, tables.this_run(study, ARM, results(ARM.frame.assign(arm="ours")))
    )


def found(row, column="found"):
    return LITERATURE.set_index("row").loc[row, column]


def matrix(system):
    return MATRICES[MATRICES["system"] == system].set_index("true_grade").filter(like="predicted_").to_numpy()


@pytest.mark.parametrize("system", MATRICES["system"].unique())
def test_the_matrices_hold_the_test_pictures_and_give_the_published_metrics(system):
    values, peer = metrics.from_confusion(matrix(system)), PEERS.set_index("system").loc[system]
    assert matrix(system).sum(1).tolist() == COUNTS.tolist() and matrix(system).sum() == peer["n"]
    assert float(values["accuracy"]) == pytest.approx(peer["accuracy"], abs=0.00006)
    assert float(values["macro_f1"]) == pytest.approx(peer["macro_f1"], abs=0.0006)
    assert float(values["qwk"]) == pytest.approx(peer["qwk"], abs=0.0006)


def test_recalls_of_grade_1_are_known_ones():
    recall = {
        system: matrix(system)[1, 1] / matrix(system)[1].sum() for system in MATRICES["system"].unique()
    }
    assert [round(value, 3) for value in recall.values()] == [0.176, 0.152]


def test_every_cited_number_and_outside_fact_has_one_row():
    cited = JPM[JPM["kind"] == "citation"].assign(source_table="jpm2026")
    facts = OTHERS[OTHERS["kind"] == "fact"].rename(columns={"system": "source_table"})
    wanted = pd.concat([cited, facts])[["source_table", *KEY]]
    have = LITERATURE[["source_table", *KEY]]
    assert not have.duplicated().any()
    joined = wanted.merge(have, how="outer", indicator=True)
    alone = joined[joined["_merge"] != "both"]
    # The paper's own row of its table 5 needs a protocol too, to stand beside comparable ones.
    assert alone[["_merge", "row"]].astype(str).to_numpy().tolist() == [["right_only", "Bashir 2026"]]


def test_every_row_says_what_was_found_and_where():
    assert LITERATURE["remark"].str.len().gt(9).all() and LITERATURE["where"].str.len().gt(5).all()
    cited = LITERATURE[LITERATURE["item"] == "table_5"]
    assert cited["protocol"].notna().all() and set(cited["protocol"]) - {"MOST to OAI"} <= set(
        PEERS["protocol"]
    )
    places = r"arXiv \d{4}\.\d{5}|10\.\d{4,}/\S+|PMC\d+|Sci Rep \d+:\d+"
    assert (
        LITERATURE["where"]
        .map(lambda text: all(re.fullmatch(places, place) for place in text.split("; ")))
        .all()
    )


def test_the_corrections_are_known_ones():
    assert found("Chen 2019") == 69.7 and "69.63" in found("Chen 2019", "remark")
    assert 100 * np.trace(matrix("Chen VGG19 ordinal")) / 1656 == pytest.approx(69.63, abs=0.005)
    assert found("Tiulpin 2018", "protocol") == "MOST to OAI" and "cross-cohort" in found(
        "Tiulpin 2018", "remark"
    )
    assert np.isnan(found("Antony 2017")) and found("discussion").isna().all()
    assert found("pre-training") == 168576 + 325409 + 400000 + 52052 + 305618
    assert found("downstream tasks") == 14 and "17" in found("downstream tasks", "remark")


def test_table_5_keeps_only_comparable_rows_together():
    table = table_5()
    blocks = (table["protocol"] != table["protocol"].shift()).sum()
    assert blocks == table["protocol"].nunique() and table["protocol"].iloc[0] == "OAI internal"
    for _, block in table.groupby("protocol"):
        assert (
            block["source"]
            .map(["table 5 of the paper", "public peer", "this run"].index)
            .is_monotonic_increasing
        )
    cited = (
        table.loc[table["source"] == "table 5 of the paper"]
        .groupby("protocol", sort=False)["system"]
        .agg(list)
        .to_dict()
    )
    assert cited == {
        "OAI internal": ["Antony 2017", "Helwan 2022", "Pi 2023", "Chen 2019"],
        "MOST to OAI": ["Tiulpin 2018"],
        "OAI to Gornale": ["Bashir 2026"],
    }
    assert len(table) == 6 + len(PEERS) + 4 and table["test_set"].str.len().gt(0).all()
    phantoms = table_5(synthetic=True).query("source == 'this run'")
    assert (
        set(phantoms["protocol"]) == {"phantoms"}
        and list(phantoms["test_set"]) == ["Chen, test", "Gornale"] * 2
    )


def test_table_5_prints_and_corrects():
    table = table_5().set_index("system")
    assert table.loc["Chen 2019", ["accuracy", "corrected"]].tolist() == [70.4, 69.7]
    assert table.loc["Pi 2023", ["accuracy", "corrected"]].tolist() == [76.93, 76.93]
    assert (
        np.isnan(table.loc["Antony 2017", "corrected"])
        and "chosen on the test set" in table.loc["Pi 2023", "note"]
    )
    assert table.loc[table["source"] != "table 5 of the paper", "corrected"].isna().all() and np.isnan(
        table.loc["Bashir 2026", "corrected"]
    )
    assert table.loc["CLIP-OA ViT-L/14-336 fine-tuned", "accuracy"] == pytest.approx(70.29)
    # The main arm's shown fold, and the mean of our protocol's.
    for system, graded in (
        ("clip, test", ARM.graded(split="test", fold=2)),
        ("ours, test", ARM.graded(split="test")),
    ):
        mine, expected = table.loc[system], metrics.summary(graded["kl_grade"], graded[metrics.PROBABILITIES])
        assert (
            mine["accuracy"] == pytest.approx(100 * expected["accuracy"])
            and mine["n"] == 120
            and mine["note"] == ""
        )
        assert mine["ci_low"] < mine["accuracy"] < mine["ci_high"]
    assert table["in_source"].value_counts()[["same", "differs"]].tolist() == [3, 1]


def test_table_5_needs_the_protocol_of_every_cited_row():
    with pytest.raises(StudyError, match="table_5, Chen 2019"):
        table_5(literature=LITERATURE[LITERATURE["row"] != "Chen 2019"])
    with pytest.raises(StudyError, match="table_5, Antony 2017"):
        table_5(literature=pd.concat([LITERATURE, LITERATURE.head(1)]))
