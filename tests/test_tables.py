"""Tables of models beside the paper's."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results
from sklearn import metrics as sk

from koa_lib import metrics
from koa_lib.paper import tables
from koa_lib.profile import ROOT, load

PUBLISHED = pd.read_csv(ROOT / "data_manifests/published/jpm2026.csv")


INSIDE, OUTSIDE = knees(120, "a"), knees(90, "b", 1)


def arm(name="clip", right=0.4, **parts):
    """Two folds of an arm on some parts."""
    parts = parts or {"train": INSIDE, "held_out": INSIDE, "external": OUTSIDE}
    return results(
        *(
            predicted(rows, right, fold, arm=name, fold=fold, split=split)
            for fold in (1, 2)
            for split, rows in parts.items()
        )
    )


def summary(graded):
    return metrics.summary(graded["kl_grade"], graded[metrics.PROBABILITIES])


def test_table_4_is_complete_in_every_profile():
    for name in ("smoke", "demo", "oai", "paper"):
        assert [spec.name for spec in load(name).baselines] == [
            "VGG19",
            "ResNet50",
            "MobileNet",
            "ViT",
            "Wide ResNet",
        ]


def test_table_2_puts_published_rows_beside_the_parts_that_they_belong_to(easy_study):
    study, clip, ours = replace(easy_study, seed=0), arm(), arm("ours", test=INSIDE, external=OUTSIDE)
    table = tables.table_2(study, clip, ours, PUBLISHED)
    assert list(table["pictures"]) == [
        "train",
        "train",
        "held_out",
        "test",
        "external",
        "external",
        "external, deduplicated",
    ]
    assert list(table["arm"]) == ["published", "clip", "clip", "ours", "published", "clip", "ours"]
    assert table["accuracy"][4] == 76.94 and table["n"].fillna(0).tolist() == [0, 120, 120, 120, 0, 90, 87]
    # One fold of the main arm as the paper shows it, the mean of ours.
    assert table["macro_f1"][1] == pytest.approx(
        100 * summary(clip.graded(split="train", fold=2))["macro_f1"]
    )
    assert table["macro_f1"][3] == pytest.approx(100 * summary(ours.graded(split="test"))["macro_f1"])


def test_table_3_has_intervals_and_survives_absent_grades():
    graded = predicted(OUTSIDE, 0.4)
    table = tables.table_3(graded, PUBLISHED, draws=100)
    assert (table["ci_low"] <= table["sensitivity"]).all() and (
        table["sensitivity"] <= table["ci_high"]
    ).all()
    recall = sk.recall_score(
        graded["kl_grade"], graded[metrics.PROBABILITIES].to_numpy().argmax(1), average=None
    )
    assert list(table["sensitivity"]) == pytest.approx(100 * recall)
    assert list(table["published_sensitivity"]) == [81.2, 68.5, 72.1, 79.4, 83.1]
    assert table["published_ci_low"][0] == 78.4
    partly = tables.table_3(graded[graded["kl_grade"] < 2], PUBLISHED, draws=50)
    assert partly["sensitivity"].isna().tolist() == [False, False, True, True, True]
    assert partly["reason"].str.contains("no picture of this grade").tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_table_4_keeps_every_published_model(easy_study):
    absent = replace(easy_study.profile.baselines[0], name="VGG19", reason="does not fit in the time")
    study = replace(
        easy_study,
        seed=0,
        profile=replace(easy_study.profile, baselines=(absent, *easy_study.profile.baselines[1:])),
    )
    models = {
        tables.CLIP: arm(),
        "ResNet50": arm("resnet50", held_out=INSIDE),
        "Zero-shot CLIP": arm("zero", 0.1),
    }
    table = tables.table_4(study, models, PUBLISHED).set_index("model")
    assert list(table.index) == ["VGG19", "ResNet50", "MobileNet", "ViT", "Fine-tuned CLIP", "Zero-shot CLIP"]
    assert table.loc["VGG19", "reason"] == "not run: does not fit in the time" and table.loc[
        "ViT", "reason"
    ].startswith("not run: no predictions")
    assert table.loc["ResNet50", "reason"] == "no external cohort was given" and table.loc[
        "ResNet50", "as_run"
    ].startswith("resnet50, 32 px")
    clip, shown = table.loc[tables.CLIP], arm().graded(split="external", fold=2)
    assert (
        clip["accuracy"] == pytest.approx(100 * summary(shown)["accuracy"])
        and clip["n"] == 90
        and clip["reason"] == ""
    )
    assert clip["ci_low"] < clip["accuracy"] < clip["ci_high"] and clip["as_run"].startswith(
        "koa-tiny, 112 px"
    )
    assert (
        clip["against_constant"] == "better"
        and table["against_constant"]["ViT"] == ""
        and table["n"]["ViT"] == 0
    )
    assert clip["best_constant"] == pytest.approx(100 * shown["kl_grade"].value_counts(normalize=True).max())
    assert clip["internal_qwk"] == pytest.approx(summary(arm().graded(split="held_out", fold=2))["qwk"])
    assert table["internal_qwk"].isna().tolist() == [True, False, True, True, False, False]


def test_prompt_sets_stand_beside_published_zero_shot_rows():
    peers = pd.read_csv(ROOT / "data_manifests/published/peers.csv")
    found = arm("zero_shot-queries", 0.1, test=INSIDE, external=OUTSIDE).of(fold=1)
    table = tables.zero_shot(found, peers)
    assert (
        list(table["prompts"][:2]) == ["queries"] * 2
        and list(table["split"][:2]) == ["test", "external"]
        and len(table) > 2
    )
    assert table["qwk"][1] == pytest.approx(summary(found.graded(split="external"))["qwk"]) and table[
        "prompts"
    ][2].startswith("published: ")


def test_the_confusion_frame_counts_each_picture_once():
    table = tables.confusion(predicted(INSIDE, 0.4))
    counts = table[[f"graded_{grade}" for grade in range(5)]]
    assert (counts.sum(axis=1) == table["n"]).all() and table["n"].sum() == 120
    assert (
        table["right"].sum() == np.trace(counts) and (table["right"] + table["adjacent"] <= table["n"]).all()
    )


@pytest.mark.parametrize("n", [800, 8, 0])
def test_the_bins_of_reliability_make_the_calibration_error(n):
    frame = predicted(knees(max(n, 2)).head(n), 0.4)
    table = tables.reliability(frame)
    assert (
        table["n"].sum() == n
        and ((table["low"] < table["confidence"]) & (table["confidence"] <= table["high"])).all()
    )
    if n:
        gap = (table["n"] * (table["confidence"] - table["accuracy"])).abs().sum() / n
        assert gap == pytest.approx(metrics.ece(frame["kl_grade"], frame[metrics.PROBABILITIES]))
