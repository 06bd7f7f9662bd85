"""`koa bench`: no time is told where the plain way and ours differ."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from koa_lib.bench import works
from koa_lib.errors import StudyError

SMALL = works.Size("koa-tiny", pictures=8, gradings=200, draws=5, stored=2000, repeats=1)
WORKS = {"embed", "finetune_last_blocks", "finetune_adapter", "folds", "one_picture", "table_3", "query"}


def test_both_ways_give_the_same_in_every_work(tmp_path):
    found = works.run(tmp_path, size=SMALL)  # which compares before it times
    assert set(found["work"]) == WORKS and (found[["plain", "ours", "ratio"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "bench.csv"), found)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.csv"]


def test_results_that_differ_are_refused():
    values = np.array([0.1, 0.2])
    work = works.Work("made up", lambda: values, lambda: values + 0.01,
                      lambda one, other: np.abs(one - other).max(), 0.02, 0, "")
    assert works.measured(work, 1)["unit"] == "milliseconds"
    with pytest.raises(StudyError, match="made up"):
        works.measured(replace(work, within=0.001), 1)
