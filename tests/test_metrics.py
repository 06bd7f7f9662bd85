"""Metrics against scikit-learn, on random and degenerate predictions."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from koa_lib import metrics
from koa_lib.errors import StudyError

LABELS = list(range(5))
many = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, ties=False):
    """Grades of which some may be absent, and probabilities."""
    generator = np.random.default_rng(seed)
    used = generator.choice(5, size=int(generator.integers(1, 6)), replace=False)
    grades = generator.choice(used, int(generator.integers(1, 120)))
    probabilities = generator.dirichlet(np.ones(5) * 0.7, len(grades))
    return grades, generator.multinomial(10, probabilities) / 10 if ties else probabilities


@many
@given(seeds)
def test_what_a_confusion_matrix_says_equals_scikit_learn(seed):
    grades, probabilities = draw(seed)
    predicted = probabilities.argmax(1)
    kept = {"labels": np.unique(grades), "average": "macro", "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "accuracy": sk.accuracy_score(grades, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(grades, predicted),
            "macro_precision": sk.precision_score(grades, predicted, **kept),
            "macro_sensitivity": sk.recall_score(grades, predicted, **kept),
            "macro_f1": sk.f1_score(grades, predicted, **kept),
            "kappa": sk.cohen_kappa_score(grades, predicted, labels=LABELS),
            "qwk": sk.cohen_kappa_score(grades, predicted, labels=LABELS, weights="quadratic"),
            "linear_kappa": sk.cohen_kappa_score(grades, predicted, labels=LABELS, weights="linear"),
            "mae": sk.mean_absolute_error(grades, predicted),
            "within_one": np.mean(np.abs(grades - predicted) <= 1),
        }
    ours = metrics.from_confusion(metrics.confusion(grades, predicted))
    assert ours == {name: pytest.approx(value, abs=1e-12, nan_ok=True) for name, value in theirs.items()}


@many
@given(seeds, st.booleans())
def test_each_grade_and_its_auc_equal_scikit_learn(seed, ties):
    grades, probabilities = draw(seed, ties)
    predicted, areas = probabilities.argmax(1), []
    for row in metrics.per_grade(grades, probabilities).itertuples():
        truth, guess = grades == row.grade, predicted == row.grade
        assert row.n == truth.sum() and np.isnan(row.sensitivity) == (not truth.any())
        if truth.any() and not truth.all():
            areas.append(sk.roc_auc_score(truth, probabilities[:, row.grade]))
            expected = (areas[-1], sk.recall_score(truth, guess), sk.recall_score(~truth, ~guess))
            assert (row.auc, row.sensitivity, row.specificity) == pytest.approx(expected)
        else:
            assert np.isnan(row.auc)
    expected = np.mean(areas) if areas else np.nan
    assert metrics.macro_auc(grades, probabilities) == pytest.approx(expected, nan_ok=True)


@many
@given(seeds, st.integers(1, 20))
def test_ece_equals_the_calibration_curve_of_scikit_learn(seed, bins):
    grades, probabilities = draw(seed)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == grades
    accuracy, mean = calibration_curve(right, confidence, n_bins=bins)
    counts = np.histogram(confidence, np.linspace(0, 1, bins + 1))[0]
    expected = np.average(np.abs(accuracy - mean), weights=counts[counts > 0])
    assert metrics.ece(grades, probabilities, bins) == pytest.approx(expected)


def test_a_confidence_on_the_edge_of_a_bin_falls_in_the_lower_one():
    probabilities = np.array([[0.6, 0.4, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2], [1.0, 0, 0, 0, 0]])
    assert metrics.calibration_bins(np.zeros(3, int), probabilities, 15)[0].tolist() == [8, 2, 14]


@many
@given(seeds)
def test_the_best_constant_is_the_best_of_all_constants(seed):
    away, best = np.abs(draw(seed)[0][:, None] - LABELS), metrics.best_constant(draw(seed)[0])
    for name, hits in (("accuracy", away == 0), ("within_one", away <= 1)):
        rates = hits.mean(0)
        assert (best[name], best[f"{name}_grade"]) == (pytest.approx(rates.max()), rates.argmax())


def test_without_pictures_everything_is_nan():
    values = metrics.summary([], np.zeros((0, 5)))
    assert values.pop("n") == 0 and np.isnan(list(values.values())).all()
    assert metrics.per_grade([], np.zeros((0, 5)))["auc"].isna().all()
    assert metrics.best_constant([])["accuracy_grade"] is None


def test_probabilities_rounded_in_a_file_are_accepted():
    rounded = np.round(np.random.default_rng(5).dirichlet(np.ones(5), 100), 4)
    assert not np.allclose(rounded.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(metrics.checked(np.zeros(100), rounded)[1], rounded)


@pytest.mark.parametrize(("row", "what"), [
    ([0.5, 0.5, 0.01, 0, 0], "sum"), ([0.2] * 4 + [0.1], "sum"), ([0.6, 0.6, -0.2, 0, 0], "outside"),
    ([1.0005, 0, 0, 0, 0], "outside"), ([np.nan, 0, 0, 0, 1], "missing")])
def test_what_is_no_distribution_is_refused_by_its_row(row, what):
    probabilities = np.eye(5)
    probabilities[3] = row
    with pytest.raises(StudyError, match=rf"Row 4 of 5.*{what}"):
        metrics.checked(LABELS, probabilities)


@pytest.mark.parametrize(("measure", "given", "named"), [
    (metrics.summary, ([0, 5], np.eye(5)[:2]), "0-4"), (metrics.summary, ([0.5], np.eye(5)[:1]), "0-4"),
    (metrics.confusion, (pd.Series([0, pd.NA], dtype="Int64"), [0, 4]), "0-4"),
    (metrics.summary, ([0, 1], np.eye(5)[:1]), "2 grades"), (metrics.confusion, ([0, 1], [0]), "2 .* 1"),
    (metrics.summary, ([0] * 4, np.eye(4)), "shape"),
])
def test_what_does_not_fit_is_refused(measure, given, named):
    with pytest.raises(StudyError, match=named):
        measure(*given)
