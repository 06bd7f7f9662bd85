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
    return results(
        *(
            predicted(rows, right, 10 * seed + fold, arm=name, seed=seed, fold=fold, split=split)
            for seed in seeds
            for fold in folds
            for split, rows in (
                ("train", ROWS.drop(parts[fold].index)),
                ("held_out", parts[fold]),
                ("external", OUTSIDE),
            )
        )
    )


def answers(graded):
    return graded[predictions.PROBABILITIES].to_numpy().argmax(1)


def test_folds_and_seeds_stand_with_their_mean_and_spread_and_the_model_before_training():
    before = results(
        *(
            predicted(part, 0.1, fold, arm="clip-before", fold=fold, split="held_out")
            for fold, part in HELD_OUT.items()
        )
    )
    runs = arm(seeds=(0, 1))
    table = (
        comparison.folds_and_seeds(STUDY, runs + arm("ours", 0.6) + before)
        .set_index(["arm", "part", "row"])
        .sort_index()
    )
    folds = [runs.graded(split="held_out", seed=0, fold=fold) for fold in (1, 2)]
    kappa = [
        sk.cohen_kappa_score(graded["kl_grade"], answers(graded), weights="quadratic", labels=range(5))
        for graded in folds
    ]
    held_out = table.loc["clip", "held_out"]["qwk"]
    assert held_out[["1", "2"]].tolist() == pytest.approx(kappa)
    assert held_out["mean over folds"] == pytest.approx(np.mean(kappa)) and held_out[
        "SD over folds"
    ] == pytest.approx(np.std(kappa, ddof=1))
    seeds = [
        np.mean(
            [
                sk.accuracy_score(graded["kl_grade"], answers(graded))
                for graded in (runs.graded(split="external", seed=seed, fold=fold) for fold in (1, 2))
            ]
        )
        for seed in (0, 1)
    ]
    assert table.loc[("clip", "external", "mean over seeds"), "accuracy"] == pytest.approx(np.mean(seeds))
    shown = before.graded(fold=2)
    assert table.loc[("clip", "held_out", "before training"), "accuracy"] == pytest.approx(
        sk.accuracy_score(shown["kl_grade"], answers(shown))
    )
    assert table.loc[("clip", "held_out", "before training"), "n"] == 60 and pd.isna(
        table.loc[("clip", "held_out", "SD over seeds"), "n"]
    )
    assert "mean over seeds" not in table.loc["ours", "held_out"].index and len(table.loc["ours"]) == 3 * 4


@pytest.mark.parametrize("split", ["external", "held_out"])
def test_paired_tests_count_what_only_one_grades_right(split):
    clip = arm(right=0.3)
    perfect = arm("perfect", 1.0, folds=(2,))
    table = comparison.paired_tests(STUDY, clip, {"perfect": perfect, "same": clip}, split).set_index(
        "baseline"
    )
    # One fold against one, and two against two; a held-out fold stands alone.
    assert list(table["folds"]) == ([1, 2] if split == "external" else [1, 1])
    kept = clip.graded(split=split, fold=2)
    kept = kept[kept["image_id"].isin(sets.subset(kept, "single_knee"))]
    wrong = int((answers(kept) != kept["kl_grade"]).sum())
    row = table.loc["perfect"]
    assert (row["n"], row["clip_only"], row["baseline_only"]) == (len(kept), 0, wrong) and len(kept) < len(
        clip.graded(split=split, fold=2)
    )
    assert row["p_exact"] == pytest.approx(binomtest(wrong, wrong).pvalue)
    assert (
        row["difference"] == pytest.approx(-wrong / len(kept))
        and row["difference_low"] < row["difference"] < row["difference_high"]
    )
    assert table.loc["same", "difference"] == 0 and table.loc["same", "p_exact"] == 1
    assert (table["p_holm"] >= table["p_exact"]).all() and list(table["ahead"]) == ["baseline", "not clear"]
    assert row["one_answer"] == pytest.approx(kept["kl_grade"].value_counts(normalize=True).max())


def test_without_baselines_there_is_no_test():
    assert comparison.paired_tests(STUDY, arm(), {}, "external").empty


def test_leak_is_the_difference_of_all_held_out_folds():
    by_image, by_patient = arm(seeds=(0, 1)), arm(right=0.4, parts={1: ROWS.iloc[:60], 2: ROWS.iloc[60:]})
    table = comparison.leak(by_image, by_patient).set_index("metric")
    for column, found in (("by_image", by_image), ("by_patient", by_patient)):
        pooled = found.of(split="held_out", seed=0).frame
        assert len(pooled) == 120 and table.loc["accuracy", column] == pytest.approx(
            sk.accuracy_score(pooled["kl_grade"], answers(pooled))
        )
    assert (
        np.allclose(table["difference"], table["by_image"] - table["by_patient"])
        and (table["difference_low"] < table["difference_high"]).all()
    )
    assert (
        (table["parted_by_image"] == 1).all()
        and (table["parted_by_patient"] == 0).all()
        and (table["n"] == 120).all()
    )


# Readings of the printed training


def test_readings_change_one_factor(easy_study):
    study = replace(
        easy_study, profile=replace(easy_study.profile, as_printed=replace(load("paper").as_printed, folds=2))
    )
    main, made = protocols.main_arm(study), readings.arms(study)
    assert len({item.name for _, item in made}) == len(made) == len(readings.READINGS)
    for reading, item in made:
        changed = {
            name for name, value in item.recipe.__dict__.items() if value != getattr(main.recipe, name)
        }
        assert set(reading.change) == changed - {"epochs"} and len(reading.change) == 1, reading
        assert item.only == (2,) and item.scheme == main.scheme and item.seed == main.seed


def test_readings_that_train_blocks_get_the_profiles_epochs(easy_study):
    epochs = {item.recipe.part: item.recipe.epochs for _, item in readings.arms(easy_study)}
    assert (
        epochs["full_image"]
        == epochs["both_encoders"]
        == epochs["last_blocks"]
        == easy_study.profile.tower_epochs
        == 1
    )
    assert epochs["adapter"] == epochs["projection"] == easy_study.profile.as_printed.epochs


def read(study, table, external=True):
    """A table of readings whose arms have made-up predictions and histories."""
    seed = study.seed
    names = [protocols.main_arm(study).name, *(made.name for _, made in readings.arms(study))]
    parts = {
        "train": ROWS.iloc[:60],
        "held_out": ROWS.iloc[60:],
        **({"external": OUTSIDE} if external else {}),
    }
    found = results(
        *(
            predicted(rows, 0.3, place, arm=name, fold=2, seed=seed, split=split)
            for place, name in enumerate(names)
            for split, rows in parts.items()
        )
    )
    history = pd.DataFrame({"epoch": [1, 2], "part": "train", "loss": [2.0, 1.0]})
    return found, table(SimpleNamespace(study=study, history=lambda arm: history), found)


@pytest.mark.parametrize("external", [True, False])
def test_reading_table_has_a_row_per_option_and_the_paired_difference(easy_study, external):
    _, table = read(easy_study, readings.table, external)
    assert (
        list(table["option"]) == ["as printed", *(reading.option for reading in readings.READINGS)]
        and (table["epochs"] == 2).all()
    )
    assert (
        np.allclose(table["difference"], table["qwk"] - table["qwk"][0])
        and (table["qwk_low"] <= table["qwk_high"]).all()
    )
    assert (table.loc[1:, "difference_low"] <= table.loc[1:, "difference_high"]).all() and (
        table["n"] == 60
    ).all()
    assert ("external_qwk" in table) == external


def test_the_floor_of_infonce_lies_below_its_guess(easy_study):
    _, history = read(easy_study, readings.contrastive_history)
    assert (
        list(history["epoch"]) == [1, 2]
        and (0 < history["floor"]).all()
        and (history["floor"] < history["guess"]).all()
    )
