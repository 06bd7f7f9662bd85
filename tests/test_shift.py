"""Re-weighting, decomposition and prior correction against simulations, loops and known results."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score

from koa_lib import metrics, shift, stats
from koa_lib.errors import StudyError

EXTERNAL, INTERNAL = [514, 477, 232, 221, 206], [3253, 1495, 2175, 1086, 251]
VGG19 = [[556, 43, 39, 1, 0], [131, 52, 108, 5, 0], [41, 32, 335, 37, 2], [1, 1, 33, 167, 21], [0, 0, 1, 7, 43]]
seeds = st.integers(0, 2**32 - 1)


def from_matrix(cm, knees=1):
    """A graded frame with the given confusion matrix, every picture `knees` times in its group."""
    grades, predicted = np.divmod(np.repeat(np.arange(25), np.ravel(cm)), 5)
    frame = pd.DataFrame(np.eye(5)[predicted], columns=metrics.PROBABILITIES).assign(kl_grade=grades, group_id=np.arange(len(grades)))
    return frame.loc[frame.index.repeat(knees)].reset_index(drop=True)


def parts(table, column="value"):
    return table.set_index("part")[column]


def test_reweight_gives_the_known_reference_and_nan_where_undefined():
    assert round(shift.reweight(VGG19, EXTERNAL), 3) == 0.633
    assert shift.reweight(VGG19, np.sum(VGG19, 1)) == pytest.approx(np.trace(VGG19) / np.sum(VGG19))
    assert np.isnan(shift.reweight(np.diag([1, 1, 1, 1, 0]), EXTERNAL))
    assert shift.reweight(np.diag([1, 1, 1, 1, 0]), [1, 1, 1, 1, 0]) == 1
    assert np.isnan(shift.reweight(VGG19, np.zeros(5)))
    with pytest.raises(StudyError, match="5 counts"):
        shift.reweight(VGG19, EXTERNAL[:4])


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_reweighting_is_the_accuracy_with_sample_weights(seed):
    generator = np.random.default_rng(seed)
    grades, target = np.r_[np.arange(5), generator.choice(5, 60)], generator.integers(0, 9, 5) + [1, 0, 0, 0, 0]
    predicted = generator.choice(5, 65)
    weights = (target / np.bincount(grades))[grades]
    expected = accuracy_score(grades, predicted, sample_weight=weights)
    cm = metrics.confusion(grades, predicted)
    assert shift.reweight(cm, target) == pytest.approx(expected)
    stacked = shift.reweight(np.stack([cm, cm * 0, cm]), np.stack([target, target, np.bincount(grades)]))
    np.testing.assert_allclose(stacked, [expected, np.nan, accuracy_score(grades, predicted)])


def test_decomposition_of_a_published_matrix():
    outside = np.diag([300, 77, 132, 121, 106]) + np.eye(5, k=-1, dtype=int) * 100
    outside[0, 1] = 214
    outside[1, 2] = 300
    table = shift.decomposition(from_matrix(VGG19), from_matrix(outside), 200, 1)
    values = parts(table)
    assert list(values.index) == ["internal accuracy", "expected at the external grade mix", "external accuracy", "label shift", "rest"]
    assert round(values["internal accuracy"], 3) == 0.696 and round(values["expected at the external grade mix"], 3) == 0.633
    assert values["external accuracy"] == pytest.approx(np.trace(outside) / 1650)
    assert values["internal accuracy"] + values["label shift"] + values["rest"] == pytest.approx(values["external accuracy"])
    assert ((table["ci_low"] < table["value"]) & (table["value"] < table["ci_high"])).all()


def test_the_same_behaviour_under_another_mix_leaves_no_rest():
    inside = np.full((5, 5), 8) + np.diag([0, 8, 16, 24, 32])
    values = parts(shift.decomposition(from_matrix(inside), from_matrix(inside * [[0], [1], [2], [3], [7]]), 50))
    assert values["rest"] == pytest.approx(0, abs=1e-12) and values["label shift"] > 0.05


def test_both_cohorts_are_resampled_apart_and_reproducibly():
    frame = from_matrix(VGG19)
    table = shift.decomposition(frame, frame, 300, 3)
    low, high = (parts(table, name) for name in ("ci_low", "ci_high"))
    # With the same draws for both, the expected accuracy would equal the observed one in each draw.
    assert low["rest"] < -0.01 and high["rest"] > 0.01
    width = high - low
    assert width["rest"] == pytest.approx(np.hypot(width["expected at the external grade mix"], width["external accuracy"]), rel=0.35)
    pd.testing.assert_frame_equal(table, shift.decomposition(frame, frame, 300, 3))


def test_the_intervals_follow_groups_and_not_pictures():
    once, twice = (shift.decomposition(from_matrix(VGG19, knees), from_matrix(VGG19, knees), 100, 5) for knees in (1, 2))
    pd.testing.assert_frame_equal(once, twice)
    found = stats.measured(from_matrix(VGG19, 2), ["accuracy"], 4000)
    many = shift.decomposition(from_matrix(VGG19, 2), from_matrix(VGG19, 2), 4000).set_index("part")
    for part in ("internal accuracy", "external accuracy"):
        assert tuple(many.loc[part, ["ci_low", "ci_high"]]) == pytest.approx((found["accuracy_low"], found["accuracy_high"]), abs=0.003)


def test_what_cannot_be_decomposed_is_nan():
    lacking = from_matrix(np.array(VGG19)[[0, 1, 2, 3, 3]] * [[1], [1], [1], [1], [0]])
    table = shift.decomposition(lacking, from_matrix(VGG19), 50).set_index("part")
    mixed = ["expected at the external grade mix", "label shift", "rest"]
    assert table.loc[mixed].isna().all(axis=None) and table.drop(mixed).notna().all(axis=None)


def test_empty_cohorts_and_single_groups_have_no_interval():
    frame, one = from_matrix(VGG19), from_matrix(VGG19).assign(group_id="a")
    none = shift.decomposition(frame, frame.head(0), 20).set_index("part")
    assert none["value"].isna().tolist() == [False, True, True, True, True]
    single = shift.decomposition(one, frame, 20).set_index("part")
    assert single["value"].notna().all() and single["ci_low"].isna().tolist() == [True, True, False, True, True]


def simulated(shares, trained_on, n, generator, distance=2):
    """Grades of a cohort and the exact probabilities of a model trained under other shares (one Gaussian per grade)."""
    grades = generator.choice(5, n, p=shares)
    likelihood = norm.pdf(generator.normal(distance * grades)[:, None], distance * np.arange(5))
    joint = likelihood * trained_on
    return grades, joint / joint.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_probabilities_reveal_the_shares_of_the_other_cohort(seed):
    trained_on, shares = np.array(INTERNAL) / sum(INTERNAL), np.array(EXTERNAL) / sum(EXTERNAL)
    grades, probabilities = simulated(shares, trained_on, 20000, np.random.default_rng(seed))
    adapted, estimated = shift.prior_correction(probabilities, trained_on)
    assert np.abs(trained_on - shares).max() > 0.08
    np.testing.assert_allclose(estimated, shares, atol=0.02)  # four standard errors of the least certain share
    assert (adapted.argmax(1) == grades).mean() > (probabilities.argmax(1) == grades).mean() + 0.01
    assert metrics.ece(grades, adapted) < 0.02


def test_the_first_steps_of_prior_correction_by_hand():
    probabilities, priors = [[0.5, 0.5, 0, 0, 0], [0, 0.2, 0.8, 0, 0]], [0.2] * 5
    adapted, estimated = shift.prior_correction(probabilities, priors, iterations=1)
    # The first step keeps the probabilities, as the shares start at the priors; the estimate is their mean.
    np.testing.assert_allclose(estimated, [0.25, 0.35, 0.4, 0, 0])
    np.testing.assert_allclose(adapted, [[0.25 / 0.6, 0.35 / 0.6, 0, 0, 0], [0, 0.07 / 0.39, 0.32 / 0.39, 0, 0]])
    _, second = shift.prior_correction(probabilities, priors, iterations=2)
    np.testing.assert_allclose(second, adapted.mean(0))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_prior_correction_ends_where_the_shares_are_the_mean_probabilities(seed):
    generator = np.random.default_rng(seed)
    probabilities, priors = generator.dirichlet(np.ones(5), 50), generator.dirichlet(np.full(5, 5))
    adapted, estimated = shift.prior_correction(probabilities, priors)
    np.testing.assert_allclose(adapted.sum(1), 1)
    np.testing.assert_allclose(adapted.mean(0), estimated, atol=1e-4)
    likelihoods = [np.log((probabilities / priors) @ shares).sum() for shares in (priors, estimated)]
    assert likelihoods[1] >= likelihoods[0] - 1e-9


@pytest.mark.parametrize("priors", [[0.5, 0.5, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.1], [0.25] * 4, [np.nan, 0.25, 0.25, 0.25, 0.25]])
def test_priors_that_are_no_shares_are_refused(priors):
    with pytest.raises(StudyError, match="shares above zero that sum to 1"):
        shift.prior_correction(np.eye(5), priors)


def test_prior_correction_checks_rows_and_survives_no_pictures():
    with pytest.raises(StudyError, match="Row 2 of 2"):
        shift.prior_correction([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [0.2] * 5)
    adapted, estimated = shift.prior_correction(np.zeros((0, 5)), [0.2] * 5)
    assert adapted.shape == (0, 5) and np.isnan(estimated).all()
