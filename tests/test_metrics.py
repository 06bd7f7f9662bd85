"""Metrics against scikit-learn and slow loops, on random and degenerate predictions."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier
from statsmodels.stats.inter_rater import cohens_kappa

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
    return grades, generator.multinomial(10, probabilities) / 10 if ties else probabilities


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


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_ece_equals_the_calibration_curve_of_scikit_learn(seed):
    grades, probabilities = draw(seed)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == grades
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    assert metrics.ece(grades, probabilities) == pytest.approx(np.average(np.abs(accuracy - mean), weights=counts[counts > 0]))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_best_constant_is_the_best_of_all_constants(seed):
    grades, _ = draw(seed)
    constants = [DummyClassifier(strategy="constant", constant=grade).fit([[0]] * 6, [*LABELS, grade]).predict([[0]] * len(grades)) for grade in LABELS]
    scores = {"accuracy": [sk.accuracy_score(grades, guess) for guess in constants]}
    scores["within_one"] = [np.mean(np.abs(grades - guess) <= 1) for guess in constants]
    best = metrics.best_constant(grades)
    for name, values in scores.items():
        assert (best[name], best[f"{name}_grade"]) == (pytest.approx(max(values)), int(np.argmax(values)))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_summary_gathers_what_scikit_learn_gives(seed):
    grades, probabilities = draw(seed, n=200)
    grades[:5] = LABELS
    values = metrics.summary(grades, probabilities)
    assert values["n"] == 200
    assert values["macro_auc"] == pytest.approx(sk.roc_auc_score(grades, probabilities, multi_class="ovr", average="macro"))
    assert values["qwk"] == pytest.approx(sk.cohen_kappa_score(grades, probabilities.argmax(1), weights="quadratic"))
    assert values["linear_kappa"] == pytest.approx(cohens_kappa(sk.confusion_matrix(grades, probabilities.argmax(1), labels=LABELS), wt="linear").kappa)
    assert values["best_constant_accuracy"] == pytest.approx(np.bincount(grades).max() / 200)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0, 1))
def test_mean_defined_is_the_mean_of_what_is_there(seed, missing):
    generator = np.random.default_rng(seed)
    values = np.where(generator.random((4, 5)) < missing, np.nan, generator.normal(size=(4, 5)))
    values[0, 0] = 1.5
    expected = np.ma.masked_invalid(values).mean(-1).filled(np.nan)
    np.testing.assert_allclose(metrics.mean_defined(values), expected)
    assert metrics.mean_defined(values[0]) == pytest.approx(expected[0])


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_flip_disagreement_is_what_two_readers_of_scikit_learn_disagree(seed):
    _, plain = draw(seed)
    _, mirrored = draw(seed + 1, n=len(plain))
    assert metrics.flip_disagreement(plain, mirrored) == pytest.approx(sk.zero_one_loss(plain.argmax(1), mirrored.argmax(1)))
    assert metrics.flip_disagreement(plain, 0.9 * plain + 0.02) == 0


def test_flip_disagreement_without_pictures_is_nan_and_refuses_other_shapes():
    assert np.isnan(metrics.flip_disagreement(np.zeros((0, 5)), np.zeros((0, 5))))
    with pytest.raises(StudyError, match="2 pictures stand against 3 mirrored"):
        metrics.flip_disagreement(np.eye(5)[:2], np.eye(5)[:3])
    for other in (np.eye(4), np.eye(5)[0], np.ones((2, 5, 1)) / 5):
        with pytest.raises(StudyError, match="shape"):
            metrics.flip_disagreement(other, other)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([0.5, 0.5, 0.01, 0, 0], "sum to one"),
        ([0.2] * 4 + [0.1], "sum to one"),
        ([0.6, 0.6, -0.2, 0, 0], "outside"),
        ([1.0005, 0, 0, 0, 0], "outside"),
        ([np.nan, 0, 0, 0, 1], "missing"),
    ],
)
def test_what_is_no_distribution_is_refused_by_its_row(row, what):
    probabilities = np.eye(5)
    probabilities[3] = row
    with pytest.raises(StudyError, match=rf"Row 4 of 5 has .*{what}"):
        metrics.checked(LABELS, probabilities)


def test_probabilities_rounded_in_a_file_are_accepted():
    probabilities = np.round(draw(5, n=100)[1], 4)
    assert not np.allclose(probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(metrics.checked(np.zeros(100), probabilities)[1], probabilities)


def test_confidence_on_a_bin_edge_falls_in_the_lower_bin():
    probabilities = np.array([[0.6, 0.4, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2], [1.0, 0, 0, 0, 0]])
    place, _ = metrics.calibration_bins(np.zeros(3, int), probabilities, 15)
    assert place.tolist() == [8, 2, 14]


def test_published_matrix_gives_its_known_metrics():
    # VGG19 with ordinal loss of Chen 2019, recomputed from its confusion matrix.
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
