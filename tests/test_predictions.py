"""Prediction files: the contract between models and everything that measures them."""

import numpy as np
import pandas as pd
import pytest

from koa_lib import predictions
from koa_lib.errors import StudyError
from koa_lib.predictions import COLUMNS, PROBABILITIES


def made(n=8):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5) * 0.3, n)
    return predictions.frame([f"k{i}" for i in range(n)], probabilities)


@pytest.fixture
def manifest():
    number = np.arange(10)
    same = {"kl_grade_reader2": 1, "split": "test", "pixel_sha256": "0", "width": 224, "height": 224}
    rows = pd.DataFrame({"image_id": [f"k{i}" for i in number], "group_id": [f"p{i // 2}" for i in number]})
    return rows.assign(kl_grade=number % 5, **same)


def test_a_file_gives_back_what_was_written_so_that_ranks_stay(tmp_path):
    frame = made(3).assign(image_id=["k", "0012", "9.50"])  # text, though some look like numbers
    frame.loc[0, PROBABILITIES] = [1e-8, 2e-8, 3e-8, 4e-8, 1 - 1e-7]
    predictions.write(frame, tmp_path / "a.csv")
    back = predictions.read(tmp_path / "a.csv")
    assert list(back["image_id"]) == ["k", "0012", "9.50"] and list(back.columns) == COLUMNS
    assert np.allclose(back[PROBABILITIES], frame[PROBABILITIES], rtol=1e-8, atol=0)


@pytest.mark.parametrize(("row", "column", "value", "what"), [
    (3, "image_id", "k0", "twice"), (2, "p1", np.nan, "no number"), (2, "p1", np.inf, "no number"),
    (1, "p4", 1.7, "outside"), (5, "p0", -0.2, "outside"), (4, PROBABILITIES, 0.1, "sum")])
def test_a_wrong_row_is_named_and_not_written(tmp_path, row, column, value, what):
    frame = made()
    frame.loc[row, column] = value
    with pytest.raises(StudyError, match=rf"a.csv, row {row + 2}: .*'{frame['image_id'][row]}'.*{what}"):
        predictions.write(frame, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(("content", "named"), [
    (None, "a.csv"), ("", "a.csv"), (",".join(COLUMNS) + "\nk0,much,0,0,0,1\n", "row 2.*k0"),
    (",".join([*COLUMNS, "kl_grade"]) + "\n", "kl_grade.*needed: image_id, p0")])
def test_what_is_no_prediction_file_is_named(tmp_path, content, named):
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    with pytest.raises(StudyError, match=named):
        predictions.read(tmp_path / "a.csv")


def test_a_file_that_lacks_pictures_is_refused_where_they_are_asked_for(tmp_path):
    frame = made()
    predictions.write(frame.iloc[1:], tmp_path / "a.csv")
    with pytest.raises(StudyError, match="a.csv holds"):
        predictions.read(tmp_path / "a.csv", frame["image_id"])
    assert len(predictions.read(tmp_path / "a.csv", frame["image_id"].iloc[:0:-1])) == len(frame) - 1


def test_grades_are_joined_in_the_order_of_the_predictions(manifest):
    frame = made().iloc[::-1].reset_index(drop=True)
    graded = predictions.join(frame, manifest)
    wanted = manifest.set_index("image_id").loc[frame["image_id"]]
    assert graded["group_id"].tolist() == wanted["group_id"].tolist()
    grades, probabilities = predictions.arrays(graded)
    assert grades.tolist() == wanted["kl_grade"].tolist()
    assert np.array_equal(probabilities, frame[PROBABILITIES])


def test_pictures_of_another_cohort_are_refused(manifest):
    with pytest.raises(StudyError, match="'stranger'"):
        predictions.join(made().replace({"image_id": {"k3": "stranger"}}), manifest)


def test_a_name_follows_the_contract():
    view = ("stretch", "none")
    name = predictions.file_name("clip-as_printed", "gornale2020", "external", view, "mean", 42)
    assert name == "clip-as_printed__gornale2020-external__stretch-none__foldmean__seed42.csv"
    adapted = predictions.file_name("m", "c", "val", ("pad", "none"), 3, 1, "em")
    assert adapted == "m__c-val__pad-none__fold3__seed1__em.csv"
