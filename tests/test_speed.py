"""Times: what `make bench` measured stands beside what the paper prints, or is said to be missing."""

import pandas as pd
import pytest

from koa_lib import profile
from koa_lib.paper import speed
from koa_lib.study import MANIFESTS

PUBLISHED = pd.read_csv(MANIFESTS / "published/jpm2026.csv")


def test_the_papers_times_stand_beside_ours(tmp_path):
    rows = [("embed", 20, 100, "pictures per second", 5), ("one_picture", 60, 15, "milliseconds", 4),
            ("finetune_adapter", 20, 10000, "pictures per second", 500)]
    columns = ["work", "plain", "ours", "unit", "ratio"]
    pd.DataFrame(rows, columns=columns).assign(note="").to_csv(tmp_path / "bench.csv", index=False)
    table = speed.table(PUBLISHED, tmp_path / "bench.csv").set_index("metric")
    single, whole = table.loc["inference_ms"], table.loc["training_minutes"]
    assert (single["plain"], single["ours"], single["published"]) == (60, 15, 140)
    recipe = profile.load("paper").as_printed
    steps = recipe.epochs * 8260
    assert whole["ours"] == pytest.approx((recipe.views * 8260 / 100 + steps / 10000) / 60)
    assert whole["plain"] == pytest.approx(steps / 20 / 60)
    assert (whole["relation"], whole["published"]) == ("about", 42)


def test_without_a_bench_it_is_said_what_measures(tmp_path):
    assert "make bench" in speed.table(PUBLISHED, tmp_path / "bench.csv")
