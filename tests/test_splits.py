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
