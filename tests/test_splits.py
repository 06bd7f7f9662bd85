"""Splits: patients stay together where they must, grades are spread evenly, thin data are refused."""

import numpy as np
import pandas as pd
import pytest
from conftest import easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import splits
from koa_lib.errors import StudyError

many = settings(max_examples=15, deadline=None)
both_folds = pytest.mark.parametrize("make", [splits.image_folds, splits.patient_folds])


def rows(seed, patients=240):  # enough that no grade is too thin for five folds
    """Two knees per patient whose grades are close."""
    generator = np.random.default_rng(seed)
    base = np.repeat(generator.choice(5, patients, p=(0.35, 0.2, 0.2, 0.15, 0.1)), 2)
    grades = np.clip(base + generator.integers(-1, 2, 2 * patients) * (np.arange(2 * patients) % 2), 0, 4)
    names = np.repeat([f"p{number}" for number in generator.permutation(patients)], 2)
    return pd.DataFrame({"kl_grade": grades, "group_id": names})


@many
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 5))
def test_each_picture_is_held_out_once_and_patients_part_only_as_printed(seed, folds):
    frame = rows(seed)
    for make in (splits.image_folds, splits.patient_folds):
        parts = make(frame, folds, seed)
        assert sorted(np.concatenate([out for _, out in parts])) == list(range(len(frame)))
        assert len(parts) == folds and not any(set(one) & set(out) for one, out in parts)
        parted = [set(frame["group_id"].iloc[one]) & set(frame["group_id"].iloc[out]) for one, out in parts]
        assert all(parted) if make is splits.image_folds else not any(parted)


@both_folds
def test_folds_hold_the_grade_mix(make):
    frame = rows(0, patients=400)
    parts = [np.bincount(frame["kl_grade"].iloc[out], minlength=5) for _, out in make(frame, 5, 0)]
    assert np.ptp(parts, axis=0).max() <= (1 if make is splits.image_folds else 12)


@both_folds
def test_same_seed_same_folds(make):
    first, again, other = (np.concatenate([out for _, out in make(rows(0), 5, seed)]) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@both_folds
@pytest.mark.parametrize("left", [0, 3])
def test_thin_grade_is_named_with_its_number(make, left):
    frame = rows(0)
    frame = frame.drop(frame.index[frame["kl_grade"] == 4][left:]).reset_index(drop=True)
    with pytest.raises(StudyError, match=f"Grade 4 has {left} .*5 folds"):
        make(frame, 5, 0)


def test_grade_of_a_single_patient_is_named():
    frame = rows(0).assign(kl_grade=lambda frame: frame["kl_grade"].clip(upper=3))
    frame.loc[frame["group_id"] == "p0", "kl_grade"] = 4
    with pytest.raises(StudyError, match="grade 4"):
        splits.patient_folds(frame, 2, 0)


@many
@given(seed=st.integers(0, 10_000))
def test_inner_part_chooses_with_other_patients(seed):
    fit, select = splits.inner(easy_dataset(120, size=4), seed)
    assert (fit.role, select.role) == ("fit", "select") and len(fit) + len(select) == 120
    assert not groups(fit) & groups(select) and 6 < len(select) < 24 and set(fit.grades) == set(range(5))


# Folds of the protocols


@pytest.fixture
def data():
    """120 patients in official splits, 240 pictures."""
    dataset = easy_dataset(240, size=4)
    cycle = np.arange(240) // 10 % 10
    dataset.rows["split"] = np.select([cycle == 0, cycle <= 2], ["val", "test"], "train")
    return dataset


def ids(part):
    return set(part.rows["image_id"])


def groups(part):
    return set(part.rows["group_id"])


def of_split(data, *names):
    return data.part(np.flatnonzero(data.rows["split"].isin(names)), "any")


def test_official_split_is_taken_as_it_is(data):
    part = splits.official(data, "val", "report")
    assert part.role == "report" and ids(part) == ids(of_split(data, "val"))
    assert splits.official(data, "external", "report") is None


@pytest.mark.parametrize("scheme", ["images", "patients"])
@pytest.mark.parametrize("stops_early", [False, True])
def test_folds_over_everything_hold_each_picture_out_once_and_choose_inside_the_rest(
    data, scheme, stops_early
):
    made = splits.folds(data, scheme, 5, 0, stops_early=stops_early)
    assert [fold.number for fold in made] == [1, 2, 3, 4, 5]
    assert sorted(name for fold in made for name in ids(fold.reported["held_out"])) == sorted(ids(data))
    for fold in made:
        held_out, learned = fold.reported["held_out"], fold.reported["train"]
        assert set(fold.reported) == {"train", "held_out"} and ids(learned) == ids(data) - ids(held_out)
        assert bool(groups(learned) & groups(held_out)) == (scheme == "images")
        if stops_early:
            assert ids(fold.fit) | ids(fold.select) == ids(learned)
            assert not groups(fold.fit) & groups(fold.select) and fold.select.role == "select"
        else:
            assert fold.select is None and ids(fold.fit) == ids(learned) and fold.fit.role == "fit"


@pytest.mark.parametrize("folds", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 42])
def test_our_protocol_keeps_patients_together_and_never_fits_on_test(data, folds, seed):
    made = splits.folds(data, "official", folds, seed)
    assert len(made) == max(1, folds)
    for fold in made:
        assert (fold.fit.role, fold.select.role) == ("fit", "select")
        assert not groups(fold.fit) & groups(fold.select)
        learned = groups(fold.fit) | groups(fold.select)
        for name, part in fold.reported.items():
            assert part.role == "report" and (name == "train" or not groups(part) & learned), name
        assert ids(fold.reported["test"]) == ids(of_split(data, "test"))
    held_out = sorted(name for fold in made if folds for name in ids(fold.reported["held_out"]))
    assert held_out == (sorted(ids(of_split(data, "train", "val"))) if folds else [])


def test_official_split_reports_val_and_nothing_absent(data):
    (fold,) = splits.folds(of_split(data, "train", "val"), "official", 0, 0)
    assert set(fold.reported) == {"train", "val"} and fold.unseen == "val"
    assert set(fold.select.rows["split"]) == {"train"}


def test_cohort_without_training_pictures_is_refused(data):
    with pytest.raises(StudyError, match="train"):  # e.g. DATA points at the val folder alone
        splits.folds(of_split(data, "val"), "official", 0, 0)


@pytest.mark.parametrize("names, unseen", [
    ({"train", "held_out", "test"}, "test"), ({"train", "held_out", "external"}, "held_out"),
])  # fmt: skip
def test_unseen_split_is_never_the_training_part_or_the_external_set(names, unseen):
    assert splits.unseen(names) == unseen


# Fractions of the labels

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)


@given(patients=st.integers(1, 120), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_fractions_are_nested_and_each_grade_gives_its_share_of_whole_patients(patients, seed):
    frame, smaller = rows(seed, patients), set()
    worst = frame.groupby("group_id")["kl_grade"].max()
    for fraction in FRACTIONS:
        drawn = splits.draw(frame, fraction, seed)
        inside = frame["group_id"].iloc[drawn]
        assert smaller <= set(drawn) and (inside.value_counts() == 2).all()
        smaller, numbers = set(drawn), worst[inside.unique()].value_counts()
        for grade, number in worst.value_counts().items():
            share = fraction * number
            assert numbers.get(grade, 0) >= 1 and abs(numbers[grade] - share) <= max(0.5, 1 - share)
    assert len(smaller) == len(frame)


def test_seeds_draw_other_patients_and_equal_seeds_the_same():
    first, again, other = (list(splits.draw(rows(1, 80), 0.25, seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(fraction):
    with pytest.raises(StudyError, match="fraction"):
        splits.draw(rows(0, 10), fraction, 0)
