"""Tables of models beside the paper's."""

import numpy as np
import pandas as pd
import pytest

from koa_lib import metrics, tables
from koa_lib.profile import ROOT, load

PUBLISHED = pd.read_csv(ROOT / "data_manifests/published/jpm2026.csv")


def graded(n=80, seed=0, grades=range(5)):
    generator = np.random.default_rng(seed)
    truth = generator.choice(list(grades), n)
    probabilities = 0.3 * np.eye(5)[truth] + 0.7 * generator.dirichlet(np.ones(5), n)
    frame = pd.DataFrame(probabilities, columns=metrics.PROBABILITIES)
    return frame.assign(kl_grade=truth, group_id=[f"g{i // 2}" for i in range(n)])


def test_table_4_is_complete_in_every_profile():
    for name in ("smoke", "demo", "oai", "paper"):
        assert [spec.name for spec in load(name).baselines] == ["VGG19", "ResNet50", "MobileNet", "ViT", "Wide ResNet"]


def test_table_2_puts_published_rows_beside_the_parts_that_they_belong_to():
    parts = {("clip", "external"): graded(40), ("clip", "train"): graded(), ("clip", "test"): graded(60, 1),
             ("ours", "external, deduplicated"): graded(30)}
    table = tables.table_2(parts, PUBLISHED)
    assert list(table["pictures"]) == ["train", "train", "test", "external", "external", "external, deduplicated"]
    assert list(table["arm"]) == ["published", "clip", "clip", "published", "clip", "ours"]
    assert table["accuracy"][3] == 76.94 and table["n"].tolist() == [pd.NA, 80, 60, pd.NA, 40, 30]
    expected = metrics.summary(graded()["kl_grade"], graded()[metrics.PROBABILITIES])
    assert table["macro_f1"][1] == pytest.approx(100 * expected["macro_f1"])


def test_table_3_has_intervals_and_survives_absent_grades():
    table = tables.table_3(graded(200), PUBLISHED, draws=100)
    assert (table["ci_low"] <= table["sensitivity"]).all() and (table["sensitivity"] <= table["ci_high"]).all()
    assert list(table["published_sensitivity"]) == [81.2, 68.5, 72.1, 79.4, 83.1]
    assert table["published_ci_low"][0] == 78.4
    partly = tables.table_3(graded(56, grades=(0, 1)), PUBLISHED, draws=50)
    assert partly["sensitivity"].isna().tolist() == [False, False, True, True, True]
    assert partly["reason"].str.contains("no picture of this grade").tolist() == [False, False, True, True, True]


def test_table_4_keeps_every_published_model():
    models = {"Fine-tuned CLIP": graded(), "VGG19": "does not fit in the time", "Zero-shot CLIP": graded(60, 1)}
    inside = {"Fine-tuned CLIP": graded(90, 2)}
    table = tables.table_4(models, PUBLISHED, {"Fine-tuned CLIP": "64 px, 2 epochs"}, 50, inside=inside).set_index("model")
    assert list(table.index) == ["VGG19", "ResNet50", "MobileNet", "ViT", "Fine-tuned CLIP", "Zero-shot CLIP"]
    assert table.loc["VGG19", "reason"].startswith("does not fit") and table.loc["ViT", "reason"].startswith("not run")
    clip = table.loc["Fine-tuned CLIP"]
    assert clip["as_run"] == "64 px, 2 epochs" and clip["ci_low"] < clip["accuracy"] < clip["ci_high"]
    assert clip["against_constant"] == "better" and table["against_constant"]["ViT"] == ""
    assert clip["best_constant"] == pytest.approx(100 * graded()["kl_grade"].value_counts(normalize=True).max())
    assert clip["internal_accuracy"] > 0 and table.drop("Fine-tuned CLIP")["internal_qwk"].isna().all()


def test_the_confusion_frame_counts_each_picture_once():
    table = tables.confusion(graded())
    counts = table[[f"graded_{grade}" for grade in range(5)]]
    assert (counts.sum(axis=1) == table["n"]).all() and table["n"].sum() == 80
    assert table["right"].sum() == np.trace(counts) and (table["right"] + table["adjacent"] <= table["n"]).all()


@pytest.mark.parametrize("n", [800, 8, 0])
def test_the_bins_of_reliability_make_the_calibration_error(n):
    table, frame = tables.reliability(graded(n)), graded(n)
    assert table["n"].sum() == n and ((table["low"] < table["confidence"]) & (table["confidence"] <= table["high"])).all()
    if n:
        gap = (table["n"] * (table["confidence"] - table["accuracy"])).abs().sum() / n
        assert gap == pytest.approx(metrics.ece(frame["kl_grade"], frame[metrics.PROBABILITIES]))
