"""Metrics against scikit-learn and slow loops, on random and degenerate predictions."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from koa_lib import metrics
from koa_lib.errors import StudyError

LABELS = list(range(5))
seeds = st.integers(0, 2**32 - 1)


def draw(seed, n=None, ties=False):
    generator = np.random.default_rng(seed)
    n = n or int(generator.integers(1, 120))
    used = generator.choice(5, size=int(generator.integers(1, 6)), replace=False)
    grades = generator.choice(used, n)
    probabilities = generator.dirichlet(np.ones(5) * 0.7, n)
    return grades, np.round(probabilities, 1) if ties else probabilities


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_from_confusion_equals_scikit_learn(seed):
    grades, probabilities = draw(seed)
    predicted, present = probabilities.argmax(1), np.unique(grades)
    ours = metrics.from_confusion(metrics.confusion(grades, predicted))
    kept = {"labels": present, "average": "macro", "zero_division": 0}
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
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_leading_axes_are_vectorised(seed):
    stack = np.random.default_rng(seed).integers(0, 9, (2, 3, 5, 5))
    together = metrics.from_confusion(stack)
    for name, values in together.items():
        assert values.shape == (2, 3)
        alone = [[metrics.from_confusion(cm)[name] for cm in row] for row in stack]
        np.testing.assert_allclose(values, np.array(alone, dtype=float), err_msg=name)


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans())
def test_per_grade_and_auc_equal_scikit_learn(seed, ties):
    grades, probabilities = draw(seed, ties=ties)
    table = metrics.per_grade(grades, probabilities)
    predicted, areas = probabilities.argmax(1), []
    for row in table.itertuples():
        truth, guess = grades == row.grade, predicted == row.grade
        assert row.n == truth.sum()
        assert np.isnan(row.sensitivity) == (not truth.any())
        if truth.any() and not truth.all():
            areas.append(sk.roc_auc_score(truth, probabilities[:, row.grade]))
            assert row.auc == pytest.approx(areas[-1])
            assert row.sensitivity == pytest.approx(sk.recall_score(truth, guess))
            assert row.specificity == pytest.approx(sk.recall_score(~truth, ~guess))
        else:
            assert np.isnan(row.auc)
    expected = np.mean(areas) if areas else np.nan
    assert metrics.macro_auc(grades, probabilities) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 20))
def test_ece_equals_a_loop(seed, bins):
    grades, probabilities = draw(seed)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == grades
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert metrics.ece(grades, probabilities, bins) == pytest.approx(total)


def test_confidence_on_a_bin_edge_falls_in_the_lower_bin():
    probabilities = np.array([[0.6, 0.4, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2], [1.0, 0, 0, 0, 0]])
    place, _ = metrics.calibration_bins(np.zeros(3, int), probabilities, 15)
    assert place.tolist() == [8, 2, 14]


def test_published_matrix_gives_its_known_metrics():
    # VGG19 with ordinal loss of Chen 2019, recomputed in METHODS 5.2.
    cm = [[556, 43, 39, 1, 0], [131, 52, 108, 5, 0], [41, 32, 335, 37, 2], [1, 1, 33, 167, 21], [0, 0, 1, 7, 43]]
    values = {name: round(float(value), 3) for name, value in metrics.from_confusion(cm).items()}
    assert (values["accuracy"], values["macro_f1"], values["qwk"], values["linear_kappa"]) == (0.696, 0.65, 0.841, 0.73)
    assert (values["mae"], values["within_one"], values["balanced_accuracy"]) == (0.36, 0.945, 0.677)


def test_best_constant_of_the_external_grades():
    best = metrics.best_constant(np.repeat(LABELS, [514, 477, 232, 221, 206]))
    assert best["accuracy_grade"] == 0 and best["accuracy"] == pytest.approx(514 / 1650)
    assert best["within_one_grade"] == 1 and round(best["within_one"], 3) == 0.741


def test_without_pictures_everything_is_nan_and_nothing_crashes():
    values = metrics.summary([], np.zeros((0, 5)))
    assert values.pop("n") == 0
    assert all(np.isnan(value) for value in values.values())
    assert metrics.per_grade([], np.zeros((0, 5)))["auc"].isna().all()
    assert metrics.best_constant([])["accuracy_grade"] is None


@pytest.mark.parametrize(
    ("grades", "probabilities"),
    [([0, 5], np.eye(5)[:2]), ([0, 1], np.eye(5)[:1]), ([0], [[np.nan, 0, 0, 0, 1]]), ([0.5], np.eye(5)[:1])],
)
def test_bad_input_is_a_study_error(grades, probabilities):
    with pytest.raises(StudyError):
        metrics.summary(grades, probabilities)


def test_a_summary_is_flat_and_within_range():
    values = metrics.summary(*draw(3, n=56))
    assert all(isinstance(value, (int, float)) for value in values.values())
    assert all(0 <= values[name] <= 1 for name in values.keys() - {"n", "mae", "qwk", "linear_kappa"})


def test_a_second_reader_who_left_gaps_is_refused_and_kept_elsewhere():
    second = pd.Series([0, 4, pd.NA], dtype="Int64")
    with pytest.raises(StudyError, match="without a grade"):
        metrics.confusion(second, [0, 4, 1])
    assert metrics.confusion(second.dropna(), [0, 4]).trace() == 2


def test_confusion_refuses_other_lengths():
    with pytest.raises(StudyError, match="2 grades stand against 1"):
        metrics.confusion([0, 1], [0])
