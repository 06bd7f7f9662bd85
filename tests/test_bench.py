"""`koa bench`: no time is told where the plain way and ours differ."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from koa_lib.bench import costs, works
from koa_lib.errors import StudyError
from koa_lib.paper import speed

SMALL = works.Size("koa-tiny", pictures=8, gradings=200, draws=5, stored=2000, repeats=1)
WORKS = {"embed", "finetune_last_blocks", "finetune_adapter", "folds", "one_picture", "table_3", "query"}


def test_both_ways_give_the_same_in_every_work(tmp_path):
    found = works.run(tmp_path, size=SMALL)  # which compares before it times
    assert set(found["work"]) == WORKS and (found[["plain", "ours", "ratio"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "bench.csv"), found)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.csv"]


def test_costs_have_a_row_for_each_amount_and_are_kept(tmp_path):
    amounts = costs.Amounts((20, 40), (1, 2), (50, 100), 8)
    found = costs.run(tmp_path, amounts)
    assert found["what"].tolist() == ["pictures"] * 2 + ["folds"] * 2 + ["draws"] * 2
    assert found["amount"].tolist() == [20, 40, 1, 2, 50, 100] and found["seconds"].gt(0).all()
    assert found.groupby("what")["share_of_time"].max().eq(1).all()
    pd.testing.assert_frame_equal(speed.costs(tmp_path / "costs.csv"), found)
    assert isinstance(speed.costs(tmp_path / "nothing.csv"), str)


def test_results_that_differ_are_refused():
    values = np.array([0.1, 0.2])
    work = works.Work("made up", lambda: values, lambda: values + 0.01,
                      lambda one, other: np.abs(one - other).max(), 0.02, 0, "")
    assert works.measured(work, 1)["unit"] == "milliseconds"
    with pytest.raises(StudyError, match="made up"):
        works.measured(replace(work, within=0.001), 1)
