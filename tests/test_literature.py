"""What was found in the cited sources, and table 5 that sets it beside comparable rows only."""

from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import knees, predicted, results

from koa_lib import metrics
from koa_lib.errors import StudyError
from koa_lib.paper import tables
from koa_lib.predictions import PROBABILITIES
from koa_lib.profile import ROOT

LISTS = ROOT / "data_manifests"
JPM, OTHERS, PEERS, LITERATURE, MATRICES = (
    pd.read_csv(LISTS / f"published/{name}.csv")
    for name in ("jpm2026", "other_systems", "peers", "literature", "confusion_matrices"))
KEY = ["item", "row", "metric"]
PARTS = {"train": knees(40, "a"), "test": knees(40, "a"), "external": knees(40, "b", 1)}


@pytest.fixture(scope="module")
def arm():
    return results(*(predicted(rows, 0.4, fold, fold=fold, split=split)
                     for fold in (1, 2) for split, rows in PARTS.items()), draws=20)


@pytest.fixture(scope="module")
def table_5(arm):
    """Table 5 from our rows of literature."""
    inside, outside = SimpleNamespace(name="Chen"), SimpleNamespace(name="Gornale")
    profile = SimpleNamespace(training=inside, external=outside, as_printed=SimpleNamespace(folds=2))
    ours = results(arm.frame.assign(arm="ours"), draws=20)

    def of(literature=LITERATURE, synthetic=False):
        study = SimpleNamespace(seed=0, synthetic=synthetic, profile=profile)
        return tables.table_5(JPM, PEERS, literature, tables.this_run(study, arm, ours))

    return of


@pytest.mark.parametrize("system", MATRICES["system"].unique())
def test_the_matrices_hold_the_test_pictures_and_give_the_published_metrics(system):
    matrix = MATRICES[MATRICES["system"] == system].filter(like="predicted_").to_numpy()
    listed = pd.read_csv(LISTS / "oai_chen2018.csv").query("split == 'test'")["kl_grade"]
    values, peer = metrics.from_confusion(matrix), PEERS.set_index("system").loc[system]
    assert matrix.sum(1).tolist() == listed.value_counts().sort_index().tolist()
    for name, half in (("accuracy", 0.00006), ("macro_f1", 0.0006), ("qwk", 0.0006)):
        assert float(values[name]) == pytest.approx(peer[name], abs=half)


def test_every_cited_number_and_outside_fact_has_one_row_that_says_what_was_found_and_where():
    cited = JPM[JPM["kind"] == "citation"].assign(source_table="jpm2026")
    facts = OTHERS[OTHERS["kind"] == "fact"].rename(columns={"system": "source_table"})
    rows = LITERATURE[["source_table", *KEY]]
    joined = pd.concat([cited, facts])[rows.columns].merge(rows, how="outer", indicator=True, validate="1:1")
    # The paper's own row of its table 5 needs a protocol too, to stand beside comparable ones.
    assert joined.loc[joined["_merge"] != "both", "row"].tolist() == ["Bashir 2026"]
    protocols = LITERATURE.loc[LITERATURE["item"] == "table_5", "protocol"]
    assert set(protocols) <= {*PEERS["protocol"], "MOST to OAI"}
    places = r"arXiv \d{4}\.\d{5}|10\.\d{4,}/\S+|PMC\d+|Sci Rep \d+:\d+"
    assert LITERATURE["where"].str.fullmatch(rf"({places})(; ({places}))*").all()
    assert LITERATURE["remark"].str.len().gt(9).all()


def test_table_5_keeps_only_comparable_rows_together(table_5):
    table = table_5()
    blocks = (table["protocol"] != table["protocol"].shift()).sum()
    assert blocks == table["protocol"].nunique() and len(table) == 6 + len(PEERS) + 4
    order = ["table 5 of the paper", "public peer", "this run"]
    for _, block in table.groupby("protocol"):
        assert block["source"].map(order.index).is_monotonic_increasing
    cited = table[table["source"] == order[0]].groupby("protocol")["system"].agg(set).to_dict()
    assert cited == {
        "OAI internal": {"Antony 2017", "Helwan 2022", "Pi 2023", "Chen 2019"},
        "MOST to OAI": {"Tiulpin 2018"},
        "OAI to Gornale": {"Bashir 2026"},
    }
    phantoms = table_5(synthetic=True).query("source == 'this run'")
    assert set(phantoms["protocol"]) == {"phantoms"}
    assert list(phantoms["test_set"]) == ["Chen, test split", "Gornale"] * 2


def test_table_5_prints_and_corrects(table_5, arm):
    table = table_5().set_index("system")
    assert table.loc["Chen 2019", ["accuracy", "corrected", "in_source"]].tolist() == [70.4, 69.7, "differs"]
    assert table.loc["Pi 2023", ["accuracy", "corrected", "in_source"]].tolist() == [76.93, 76.93, "same"]
    assert table["corrected"].isna()[["Antony 2017", "Bashir 2026", "clip"]].all()
    assert table.loc["CLIP-OA ViT-L/14-336 fine-tuned", "accuracy"] == pytest.approx(70.29)
    # The main arm's shown fold, and the mean of our protocol's.
    inside = table[table["test_set"] == "Chen, test split"]
    for system, fold in (("clip", {"fold": 2}), ("ours", {})):
        graded, mine = arm.graded(split="test", **fold), inside.loc[system]
        accuracy = 100 * metrics.summary(graded["kl_grade"], graded[PROBABILITIES])["accuracy"]
        assert mine["accuracy"] == pytest.approx(accuracy) and mine["n"] == 40
        assert mine["ci_low"] < mine["accuracy"] < mine["ci_high"]


@pytest.mark.parametrize("literature", [
    LITERATURE[LITERATURE["row"] != "Chen 2019"],
    pd.concat([LITERATURE, LITERATURE[LITERATURE["row"] == "Chen 2019"]])])
def test_table_5_needs_the_protocol_of_every_cited_row_once(table_5, literature):
    with pytest.raises(StudyError, match="Chen 2019"):
        table_5(literature)
