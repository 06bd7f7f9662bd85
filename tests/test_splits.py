"""Splits: patients stay together where they must, grades are spread evenly, thin data are refused in words."""

import numpy as np
import pandas as pd
import pytest
from conftest import easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import splits
from koa_lib.errors import StudyError


def rows(seed, patients=240):  # enough that no grade is too thin for five folds
    """Two knees per patient whose grades are close."""
    generator = np.random.default_rng(seed)
    base = np.repeat(generator.choice(5, patients, p=(0.35, 0.2, 0.2, 0.15, 0.1)), 2)
    grades = np.clip(base + generator.integers(-1, 2, 2 * patients) * (np.arange(2 * patients) % 2), 0, 4)
    return pd.DataFrame({"image_id": [f"k{i}" for i in range(2 * patients)], "kl_grade": grades, "group_id": [f"p{i // 2}" for i in range(2 * patients)]})


many = settings(max_examples=15, deadline=None)


@many
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 5))
def test_patient_folds_never_part_a_patient(seed, folds):
    frame = rows(seed)
    for fit, out in splits.patient_folds(frame, folds, seed):
        assert not set(frame["group_id"].iloc[fit]) & set(frame["group_id"].iloc[out])


@many
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 5), make=st.sampled_from([splits.image_folds, splits.patient_folds]))
def test_each_picture_is_held_out_once(seed, folds, make):
    frame = rows(seed)
    parts = make(frame, folds, seed)
    assert len(parts) == folds and sorted(np.concatenate([out for _, out in parts])) == list(range(len(frame)))
    assert all(sorted([*fit, *out]) == list(range(len(frame))) for fit, out in parts)


@many
@given(seed=st.integers(0, 10_000))
def test_image_folds_hold_the_grade_mix(seed):
    frame = rows(seed)
    counts = np.array([np.bincount(frame["kl_grade"].iloc[out], minlength=5) for _, out in splits.image_folds(frame, 5, seed)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_patient_folds_come_close_to_the_grade_mix():
    frame = rows(0, patients=400)
    whole = frame["kl_grade"].value_counts(normalize=True)
    for _, out in splits.patient_folds(frame, 5, 0):
        assert (frame["kl_grade"].iloc[out].value_counts(normalize=True) - whole).abs().max() < 0.04


def test_image_folds_do_part_patients():
    # What the paper did: the test must show the difference between the two protocols.
    frame = rows(0)
    fit, out = splits.image_folds(frame, 5, 0)[0]
    assert set(frame["group_id"].iloc[fit]) & set(frame["group_id"].iloc[out])


@pytest.mark.parametrize("make", [splits.image_folds, splits.patient_folds])
def test_same_seed_same_folds(make):
    frame = rows(0)
    first, again, other = make(frame, 5, 1), make(frame, 5, 1), make(frame, 5, 2)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("make", [splits.image_folds, splits.patient_folds])
@pytest.mark.parametrize("left", [0, 3])
def test_thin_grade_is_named_with_advice(make, left):
    frame = rows(0)
    frame = frame.drop(frame.index[frame["kl_grade"] == 4][left:]).reset_index(drop=True)
    with pytest.raises(StudyError, match=f"Grade 4 has {left} picture.*5 folds.*Use fewer folds"):
        make(frame, 5, 0)


def test_grade_of_a_single_patient_is_named():
    frame = rows(0)
    frame["kl_grade"] = frame["kl_grade"].clip(upper=3)
    frame.loc[frame["group_id"].isin(["p0"]), "kl_grade"] = 4
    with pytest.raises(StudyError, match="no picture of grade 4"):
        splits.patient_folds(frame, 2, 0)


def test_official_split_is_taken_as_it_is():
    data = easy_dataset(20, size=4)
    data.rows.loc[15:, "split"] = "val"
    part = splits.official(data, "val", "report")
    assert part.role == "report" and list(part.rows["image_id"]) == [f"k{i}" for i in range(15, 20)]
    assert splits.official(data, "test", "report") is None


@many
@given(seed=st.integers(0, 10_000))
def test_inner_part_chooses_with_other_patients(seed):
    data = easy_dataset(120, size=4)
    fit, select = splits.inner(data, seed)
    assert (fit.role, select.role) == ("fit", "select") and len(fit) + len(select) == 120
    assert not set(fit.rows["group_id"]) & set(select.rows["group_id"])
    assert 0.05 < len(select) / 120 < 0.2 and set(fit.grades) == set(range(5))


# Folds of the protocols


def official_data(patients=120):
    data = easy_dataset(2 * patients, size=4)
    cycle = np.repeat(np.arange(patients) // 5 % 10, 2)
    data.rows["split"] = np.select([cycle == 0, cycle <= 2], ["val", "test"], "train")
    return data


def ids(part):
    return set(part.rows["image_id"])


def groups(part):
    return set(part.rows["group_id"])


def test_as_printed_folds_are_over_all_pictures():
    data = official_data()
    made = splits.folds(data, "images", 5, 0)
    assert [fold.number for fold in made] == [1, 2, 3, 4, 5]
    assert sorted(name for fold in made for name in ids(fold.reported["held_out"])) == sorted(ids(data))
    for fold in made:
        assert fold.select is None and fold.fit.role == "fit" and set(fold.reported) == {"train", "held_out"}
        assert ids(fold.fit) == ids(fold.reported["train"]) == ids(data) - ids(fold.reported["held_out"])
        assert set(fold.fit.rows["split"]) == {"train", "val", "test"}
    assert any(groups(fold.fit) & groups(fold.reported["held_out"]) for fold in made)


@pytest.mark.parametrize("folds", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_our_protocol_keeps_patients_together_and_never_fits_on_test(folds, seed):
    data = official_data()
    made = splits.folds(data, "official", folds, seed)
    assert len(made) == max(1, folds)
    for fold in made:
        assert (fold.fit.role, fold.select.role) == ("fit", "select")
        learned = groups(fold.fit) | groups(fold.select)
        assert not groups(fold.fit) & groups(fold.select)
        assert "test" not in set(fold.fit.rows["split"]) | set(fold.select.rows["split"])
        for name, part in fold.reported.items():
            assert part.role == "report"
            assert name == "train" or not groups(part) & learned, name
        assert set(fold.reported["test"].rows["split"]) == {"test"} and len(fold.reported["test"]) == (data.rows["split"] == "test").sum()


def test_folds_over_patients_part_no_patient_and_cover_everything():
    data = official_data()
    made = splits.folds(data, "patients", 5, 0)
    assert sorted(name for fold in made for name in ids(fold.reported["held_out"])) == sorted(ids(data))
    for fold in made:
        assert fold.select is None and not groups(fold.fit) & groups(fold.reported["held_out"])


@pytest.mark.parametrize("scheme", ["images", "patients"])
def test_early_stopping_is_decided_inside_the_training_part(scheme):
    data = official_data()
    for fold in splits.folds(data, scheme, 5, 0, stops_early=True):
        assert ids(fold.fit) | ids(fold.select) == ids(fold.reported["train"]) and not groups(fold.fit) & groups(fold.select)
        assert not ids(fold.select) & ids(fold.reported["held_out"]) and fold.select.role == "select"


def test_our_folds_hold_out_train_and_val_once():
    data = official_data()
    held_out = [name for fold in splits.folds(data, "official", 5, 0) for name in ids(fold.reported["held_out"])]
    assert sorted(held_out) == sorted(data.rows.loc[data.rows["split"] != "test", "image_id"])


def test_official_split_reports_val_and_nothing_absent():
    data = official_data()
    data = data.part(np.flatnonzero(data.rows["split"] != "test"), "any")
    (fold,) = splits.folds(data, "official", 0, 0)
    assert set(fold.reported) == {"train", "val"} and fold.unseen == "val"
    assert set(fold.select.rows["split"]) == {"train"}


def test_cohort_without_training_pictures_is_refused_in_words():
    # E.g. DATA points at the val folder alone.
    data = official_data()
    data = data.part(np.flatnonzero(data.rows["split"] == "val"), "any")
    with pytest.raises(StudyError, match="train"):
        splits.folds(data, "official", 0, 0)


@pytest.mark.parametrize("names, unseen", [(("train", "held_out", "test"), "test"), (("train", "held_out", "external"), "held_out"), (("train", "val"), "val")])
def test_unseen_split_is_never_the_training_part_or_the_external_set(names, unseen):
    assert splits.unseen(names) == unseen


# Fractions of the labels

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)


def cohort(patients, seed):
    generator = np.random.default_rng(seed)
    grades = np.minimum(4, np.repeat(generator.integers(0, 5, patients), 2) + generator.integers(0, 2, 2 * patients))
    return pd.DataFrame({"group_id": np.repeat([f"p{number}" for number in generator.permutation(patients)], 2), "kl_grade": grades})


@given(patients=st.integers(1, 120), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_fractions_are_nested_and_never_part_a_patient(patients, seed):
    rows, smaller = cohort(patients, seed), set()
    for fraction in FRACTIONS:
        drawn = splits.draw(rows, fraction, seed)
        inside = rows["group_id"].iloc[drawn]
        assert smaller <= set(drawn)
        assert (inside.value_counts() == 2).all()
        smaller = set(drawn)
    assert len(smaller) == len(rows)


@given(patients=st.integers(60, 200), fraction=st.sampled_from(FRACTIONS), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_each_grade_gives_its_share_of_patients(patients, fraction, seed):
    rows = cohort(patients, seed)
    worst = rows.groupby("group_id")["kl_grade"].max()
    drawn = worst[rows["group_id"].iloc[splits.draw(rows, fraction, seed)].unique()].value_counts()
    for grade, number in worst.value_counts().items():
        assert abs(drawn[grade] - fraction * number) <= max(0.5, 1 - fraction * number)


def test_seeds_draw_other_patients_and_equal_seeds_the_same():
    rows = cohort(80, 1)
    assert list(splits.draw(rows, 0.25, 3)) == list(splits.draw(rows, 0.25, 3)) != list(splits.draw(rows, 0.25, 4))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(fraction):
    with pytest.raises(StudyError, match="label fraction"):
        splits.draw(cohort(10, 0), fraction, 0)
