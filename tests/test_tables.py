"""Tables of models beside the paper's."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results
from sklearn import metrics as sk

from koa_lib import metrics
from koa_lib.paper import tables
from koa_lib.predictions import PROBABILITIES
from koa_lib.profile import ROOT

PUBLISHED = pd.read_csv(ROOT / "data_manifests/published/jpm2026.csv")
INSIDE, OUTSIDE = knees(60, "a"), knees(50, "b", 1)


def arm(name="clip", right=0.4, **parts):
    """Two folds of an arm on some parts."""
    parts = parts or {"train": INSIDE, "held_out": INSIDE, "external": OUTSIDE}
    return results(*(predicted(rows, right, fold, arm=name, fold=fold, split=split)
                     for fold in (1, 2) for split, rows in parts.items()))


def summary(graded):
    return metrics.summary(graded["kl_grade"], graded[PROBABILITIES])


def test_table_2_puts_published_rows_beside_the_parts_that_they_belong_to(easy_study):
    clip, ours = arm(), arm("ours", test=INSIDE, external=OUTSIDE)
    table = tables.table_2(replace(easy_study, seed=0), clip, ours, PUBLISHED)
    once = OUTSIDE["pixel_sha256"].nunique()
    assert once < 50 and list(zip(table["arm"], table["pictures"], table["n"].fillna(0), strict=True)) == [
        ("published", "train", 0), ("clip", "train", 60), ("clip", "held_out", 60), ("ours", "test", 60),
        ("published", "external, all files", 0), ("clip", "external, all files", 50),
        ("ours", "external, deduplicated", once)]
    assert table["accuracy"][4] == 76.94
    # One fold of the main arm as the paper shows it, the mean of ours.
    for row, graded in ((1, clip.graded(split="train", fold=2)), (3, ours.graded(split="test"))):
        assert table["macro_f1"][row] == pytest.approx(100 * summary(graded)["macro_f1"])


def test_table_3_has_intervals_and_survives_absent_grades():
    graded = predicted(OUTSIDE, 0.4)
    table = tables.table_3(graded, PUBLISHED, draws=100)
    answers = graded[PROBABILITIES].to_numpy().argmax(1)
    recall = 100 * sk.recall_score(graded["kl_grade"], answers, average=None)
    assert list(table["sensitivity"]) == pytest.approx(list(recall))
    assert table["sensitivity"].between(table["ci_low"], table["ci_high"]).all()
    assert list(table["published_sensitivity"]) == [81.2, 68.5, 72.1, 79.4, 83.1]
    assert (table["published_ci_low"][0], table["published_ci_high"][0]) == (78.4, 83.9)
    partly = tables.table_3(graded[graded["kl_grade"] < 2], PUBLISHED, draws=20)
    for known in (partly["sensitivity"].notna(), partly["reason"] == ""):
        assert known.tolist() == [True, True, False, False, False]


def test_table_4_keeps_every_published_model_and_says_why_one_is_absent(easy_study):
    absent, *others = easy_study.profile.baselines
    specs = (replace(absent, reason="does not fit in the time"), *others)
    study = replace(easy_study, seed=0, profile=replace(easy_study.profile, baselines=specs))
    models = {tables.CLIP: arm(), "ResNet50": arm("resnet50", held_out=INSIDE), "Zero-shot CLIP": arm("zero")}
    table = tables.table_4(study, models, PUBLISHED).set_index("model")
    assert list(table.index) == ["VGG19", "ResNet50", "MobileNet", "ViT", tables.CLIP, "Zero-shot CLIP"]
    assert "does not fit in the time" in table.loc["VGG19", "reason"]
    assert table["reason"].eq("").tolist() == [False] * 4 + [True] * 2 and table["n"]["ViT"] == 0
    assert table["internal_qwk"].notna().tolist() == [False, True, False, False, True, True]
    clip, shown = table.loc[tables.CLIP], arm().graded(split="external", fold=2)
    assert clip["accuracy"] == pytest.approx(100 * summary(shown)["accuracy"]) and clip["n"] == 50
    assert clip["ci_low"] < clip["accuracy"] < clip["ci_high"] and "koa-tiny, 112 px" in clip["as_run"]
    constant = shown["kl_grade"].value_counts(normalize=True).max()
    assert clip["best_constant"] == pytest.approx(100 * constant) and clip["against_constant"] != ""
    assert clip["internal_qwk"] == pytest.approx(summary(arm().graded(split="held_out", fold=2))["qwk"])


def test_prompt_sets_stand_beside_published_zero_shot_rows():
    peers = pd.read_csv(ROOT / "data_manifests/published/peers.csv")
    found = arm("zero_shot-queries", 0.1, test=INSIDE, external=OUTSIDE).of(fold=1)
    table = tables.zero_shot(found, peers)
    assert list(table["prompts"][:2]) == ["queries"] * 2 and list(table["split"][:2]) == ["test", "external"]
    assert table["qwk"][1] == pytest.approx(summary(found.graded(split="external"))["qwk"])
    assert len(table) > 2 and table["prompts"][2:].str.startswith("published: ").all()


def test_the_confusion_frame_counts_each_picture_once():
    graded = predicted(INSIDE, 0.4)
    table = tables.confusion(graded)
    off = graded[PROBABILITIES].to_numpy().argmax(1) - graded["kl_grade"]
    counts = table[[f"graded_{grade}" for grade in range(5)]].to_numpy()
    assert counts.sum(axis=1).tolist() == table["n"].tolist() and counts.sum() == 60
    assert table["right"].tolist() == np.diag(counts).tolist()
    assert table["adjacent"].sum() == (off.abs() == 1).sum()


@pytest.mark.parametrize("n", [200, 8, 0])
def test_the_bins_of_reliability_make_the_calibration_error(n):
    frame = predicted(knees(max(n, 2)).head(n), 0.4)
    table = tables.reliability(frame)
    assert table["n"].sum() == n and (table["low"] < table["confidence"]).all()
    assert (table["confidence"] <= table["high"]).all()
    if n:
        gap = (table["n"] * (table["confidence"] - table["accuracy"])).abs().sum() / n
        assert gap == pytest.approx(metrics.ece(frame["kl_grade"], frame[PROBABILITIES]))
