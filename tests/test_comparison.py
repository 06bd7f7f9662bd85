"""Arms side by side: folds and seeds, paired tests, the leak of folds over pictures, and the readings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results
from scipy.stats import binomtest
from sklearn import metrics as sk

from koa_lib import comparison, predictions, protocols
from koa_lib.data import sets
from koa_lib.paper import readings
from koa_lib.profile import load

ROWS, OUTSIDE = knees(120, "a"), knees(80, "b", 1)
HELD_OUT = {1: ROWS.iloc[::2], 2: ROWS.iloc[1::2]}  # folds over pictures part the knees of every patient
STUDY = SimpleNamespace(seed=0, profile=SimpleNamespace(as_printed=SimpleNamespace(folds=2, epochs=3)))


def arm(name="clip", right=0.5, seeds=(0,), parts=HELD_OUT, folds=(1, 2)):
    """Predictions of an arm: what each fold was trained on, what it held out, and the external pictures."""
    return results(*(
        predicted(rows, right, 10 * seed + fold, arm=name, seed=seed, fold=fold, split=split)
        for seed in seeds for fold in folds for split, rows in (
            ("train", ROWS.drop(parts[fold].index)), ("held_out", parts[fold]), ("external", OUTSIDE))))


def answers(graded):
    return graded[predictions.PROBABILITIES].to_numpy().argmax(1)


def accuracy(graded):
    return sk.accuracy_score(graded["kl_grade"], answers(graded))


def test_folds_and_seeds_stand_with_their_mean_and_spread_and_the_model_before_training():
    runs, before = arm(seeds=(0, 1)), arm("clip-before", 0.1)
    table = comparison.folds_and_seeds(STUDY, runs + arm("ours", 0.6) + before)
    found = table.set_index(["arm", "part", "row"])["accuracy"].sort_index()
    folds = [accuracy(runs.graded(split="held_out", seed=0, fold=fold)) for fold in (1, 2)]
    start = accuracy(before.graded(fold=2, split="held_out"))
    expected = {"1": folds[0], "2": folds[1], "mean over folds": np.mean(folds),
                "SD over folds": np.std(folds, ddof=1), "before training": start}
    shown = found["clip", "held_out"]
    assert shown[list(expected)].to_dict() == pytest.approx(expected)
    seeds = [np.mean([accuracy(runs.graded(split="external", seed=seed, fold=fold)) for fold in (1, 2)])
             for seed in (0, 1)]
    assert found["clip", "external", "mean over seeds"] == pytest.approx(np.mean(seeds))
    assert set(found["ours", "held_out"].index) == {"1", "2", "mean over folds", "SD over folds"}


@pytest.mark.parametrize("split", ["external", "held_out"])
def test_paired_tests_count_what_only_one_grades_right_among_single_knees(split):
    clip, perfect = arm(right=0.3), arm("perfect", 1.0, folds=(2,))
    table = comparison.paired_tests(STUDY, clip, {"perfect": perfect, "same": clip}, split)
    table = table.set_index("baseline")
    # One fold against one, and two against two; a held-out fold stands alone.
    assert list(table["folds"]) == ([1, 2] if split == "external" else [1, 1])
    whole, row = clip.graded(split=split, fold=2), table.loc["perfect"]
    kept = whole[whole["image_id"].isin(sets.subset(whole, "single_knee"))]
    wrong = int((answers(kept) != kept["kl_grade"]).sum())
    assert row[["n", "clip_only", "baseline_only"]].tolist() == [len(kept), 0, wrong]
    assert row[["p_exact", "difference"]].tolist() == pytest.approx(
        [binomtest(wrong, wrong).pvalue, -wrong / len(kept)])
    assert row["difference_low"] < row["difference"] < row["difference_high"] and len(kept) < len(whole)
    assert row["one_answer"] == pytest.approx(kept["kl_grade"].value_counts(normalize=True).max())
    assert (table["p_holm"] >= table["p_exact"]).all() and list(table["ahead"]) == ["baseline", "not clear"]


def test_nobody_is_ahead_without_an_interval_of_other_patients():
    clip, perfect = (replace(found, frame=found.frame.assign(group_id="one"))
                     for found in (arm(right=0.3), arm("perfect", 1.0)))
    (row,) = comparison.paired_tests(STUDY, clip, {"perfect": perfect}, "external").itertuples()
    assert row.p_holm < 0.01 and row.ahead == "not clear"


def test_the_leak_is_the_difference_of_all_held_out_folds():
    by_image, by_patient = arm(seeds=(0, 1)), arm(right=0.4, parts={1: ROWS.iloc[:60], 2: ROWS.iloc[60:]})
    table = comparison.leak(by_image, by_patient).set_index("metric")
    pooled = [accuracy(found.of(split="held_out", seed=0).frame) for found in (by_image, by_patient)]
    assert table.loc["accuracy", ["by_image", "by_patient"]].tolist() == pytest.approx(pooled)
    assert np.allclose(table["difference"], table["by_image"] - table["by_patient"])
    assert (table["difference_low"] < table["difference_high"]).all()
    for column, value in (("parted_by_image", 1), ("parted_by_patient", 0), ("n", 120)):
        assert (table[column] == value).all(), column


# Readings of the printed training


def test_a_reading_changes_one_factor_and_trains_blocks_for_the_profiles_epochs(easy_study):
    printed = replace(load("paper").as_printed, folds=2)
    study = replace(easy_study, profile=replace(easy_study.profile, as_printed=printed))
    main, made = protocols.main_arm(study), readings.arms(study)
    assert len({item.name for _, item in made}) == len(made) == len(readings.READINGS)
    for reading, item in made:
        changed = {name for name, value in vars(item.recipe).items() if value != getattr(main.recipe, name)}
        blocks = item.recipe.part in ("last_blocks", "full_image", "both_encoders")
        assert item.recipe.epochs == (study.profile.tower_epochs if blocks else printed.epochs)
        assert set(reading.change) == changed - {"epochs"} and len(reading.change) == 1, reading
        assert item.only == (2,) and item.scheme == main.scheme and item.seed == main.seed


@pytest.mark.parametrize("outside", [{"external": OUTSIDE}, {}], ids=["external cohort", "none"])
def test_the_readings_have_a_row_per_option_and_the_paired_difference(easy_study, outside):
    arms = [protocols.main_arm(easy_study), *(made for _, made in readings.arms(easy_study))]
    parts = {"held_out": ROWS.iloc[60:], "train": ROWS.iloc[:60], **outside}
    found = results(*(
        predicted(rows, 0.3, place, arm=made.name, fold=2, seed=easy_study.seed, split=split)
        for place, made in enumerate(arms) for split, rows in parts.items()))
    history = pd.DataFrame({"epoch": [1, 2], "part": "train", "loss": [2.0, 1.0]})
    experiment = SimpleNamespace(study=easy_study, history=lambda arm: history)
    table = readings.table(experiment, found)
    assert list(table["option"]) == ["as printed", *(reading.option for reading in readings.READINGS)]
    assert (table["epochs"] == 2).all() and (table["n"] == 60).all()
    assert np.allclose(table["difference"], table["qwk"] - table["qwk"][0])
    inside = table["difference"].between(table["difference_low"], table["difference_high"])
    assert inside[1:].all() and ("external_qwk" in table) == bool(outside)
    profile = replace(easy_study.profile, not_run={"towers": "no GPU"})
    experiment.study = replace(easy_study, profile=profile)
    kept, left = readings.arms(experiment.study), readings.table(experiment, found)
    assert list(left["option"]) == list(table["option"]) and len(kept) == len(readings.READINGS) - 3
    assert set(left.loc[left["qwk"].isna(), "not_run"]) == {"no GPU"} and left["qwk"].isna().sum() == 3
    contrastive = readings.contrastive_history(experiment, found)
    assert (0 < contrastive["floor"]).all() and (contrastive["floor"] < contrastive["guess"]).all()
