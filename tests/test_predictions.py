"""Prediction files: the contract between models and everything that measures them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import predictions
from koa_lib.errors import StudyError
from koa_lib.predictions import COLUMNS, PROBABILITIES


def made(n=8, seed=0):
    return predictions.frame([f"k{i}" for i in range(n)], np.random.default_rng(seed).dirichlet(np.ones(5) * 0.3, n))


@pytest.fixture
def manifest():
    return pd.DataFrame({"image_id": [f"k{i}" for i in range(10)], "kl_grade": np.arange(10) % 5, "kl_grade_reader2": pd.array([1] * 10, "Int64"),
                         "group_id": [f"p{i // 2}" for i in range(10)], "split": "test", "pixel_sha256": "0", "width": 224, "height": 224})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40))
def test_file_gives_back_what_was_written(tmp_path_factory, seed, n):
    path, frame = tmp_path_factory.mktemp("predictions") / "a.csv", made(n, seed)
    predictions.write(frame, path)
    back = predictions.read(path)
    assert list(back["image_id"]) == list(frame["image_id"]) and list(back.columns) == COLUMNS
    assert np.allclose(back[PROBABILITIES], frame[PROBABILITIES], atol=1e-6)


def test_ids_that_look_like_numbers_stay_text(tmp_path):
    predictions.write(made(2).assign(image_id=["0012", "9.50"]), tmp_path / "a.csv")
    assert list(predictions.read(tmp_path / "a.csv")["image_id"]) == ["0012", "9.50"]


@pytest.mark.parametrize("row, column, value, words", [
    (3, "image_id", "k0", "is there twice"), (2, "p1", np.nan, "no number"), (2, "p1", np.inf, "no number"), (1, "p4", 1.7, "outside [0, 1]"),
    (5, "p0", -0.2, "outside [0, 1]")])
def test_wrong_row_is_named_and_not_written(tmp_path, row, column, value, words):
    frame = made()
    frame.loc[row, column] = value
    with pytest.raises(StudyError) as error:
        predictions.write(frame, tmp_path / "a.csv")
    assert "a.csv" in str(error.value) and f"row {row + 2}" in str(error.value) and words in str(error.value)
    assert not (tmp_path / "a.csv").exists()


def test_probabilities_must_sum_to_one():
    frame = made()
    frame.loc[4, PROBABILITIES] = 0.1
    with pytest.raises(StudyError, match="row 6.*do not sum to 1"):
        predictions.validate(frame)


def test_text_in_a_probability_is_named(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\nk0,much,0,0,0,1\n")
    with pytest.raises(StudyError, match="row 2.*k0.*no number"):
        predictions.read(tmp_path / "a.csv")


def test_grades_do_not_belong_into_the_file():
    with pytest.raises(StudyError, match="needed: image_id, p0"):
        predictions.validate(made().assign(kl_grade=0))


@pytest.mark.parametrize("content", [None, ""])
def test_missing_or_empty_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    with pytest.raises(StudyError, match="a.csv"):
        predictions.read(tmp_path / "a.csv")


def test_join_adds_grades_in_the_order_of_the_predictions(manifest):
    graded = predictions.join(made().iloc[::-1].reset_index(drop=True), manifest)
    assert list(graded["image_id"]) == [f"k{i}" for i in range(7, -1, -1)]
    assert list(graded["kl_grade"]) == [int(name[1:]) % 5 for name in graded["image_id"]]
    assert list(graded["group_id"]) == [f"p{int(name[1:]) // 2}" for name in graded["image_id"]]


def test_join_refuses_pictures_of_another_cohort(manifest):
    with pytest.raises(StudyError, match="'stranger' is predicted but not in the manifest"):
        predictions.join(made().replace({"image_id": {"k3": "stranger"}}), manifest)


def test_arrays_line_up(manifest):
    grades, probabilities = predictions.arrays(predictions.join(made(), manifest))
    assert grades.tolist() == [i % 5 for i in range(8)] and np.array_equal(probabilities, made()[PROBABILITIES].to_numpy())


def test_name_follows_the_contract():
    name = predictions.file_name("clip-as_printed", "gornale2020", "external", ("stretch", "none"), "mean", 42)
    assert name == "clip-as_printed__gornale2020-external__stretch-none__foldmean__seed42.csv"
    assert predictions.file_name("m", "c", "val", ("pad", "none"), 3, 1, "em") == "m__c-val__pad-none__fold3__seed1__em.csv"
