"""Re-weighting, decomposition and prior correction against simulations and known results."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score

from koa_lib import metrics, shift
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES

EXTERNAL, INTERNAL = np.array([514, 477, 232, 221, 206]), np.array([3253, 1495, 2175, 1086, 251])
VGG19 = [[556, 43, 39, 1, 0], [131, 52, 108, 5, 0], [41, 32, 335, 37, 2], [1, 1, 33, 167, 21],
         [0, 0, 1, 7, 43]]  # Chen 2019, with ordinal loss
MIX = "expected at the external grade mix"
INSIDE, OUTSIDE = "internal accuracy", "external accuracy"
PARTS = [INSIDE, MIX, OUTSIDE, "label shift", "rest"]
seeds = st.integers(0, 2**32 - 1)


def from_matrix(cm, knees=1):
    """A graded frame with the given confusion matrix, every picture `knees` times in its group."""
    grades, predicted = np.divmod(np.repeat(np.arange(25), np.ravel(cm)), 5)
    frame = pd.DataFrame(np.eye(5)[predicted], columns=PROBABILITIES)
    frame = frame.assign(kl_grade=grades, group_id=np.arange(len(grades)))
    return frame.loc[frame.index.repeat(knees)].reset_index(drop=True)


def decomposed(internal, external, draws=50, seed=0):
    return shift.decomposition(internal, external, draws, seed).set_index("part")


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_reweighting_is_the_accuracy_with_sample_weights(seed):
    generator = np.random.default_rng(seed)
    grades, predicted = np.r_[np.arange(5), generator.choice(5, 60)], generator.choice(5, 65)
    target = generator.integers(0, 9, 5) + [1, 0, 0, 0, 0]
    weights, cm = (target / np.bincount(grades))[grades], metrics.confusion(grades, predicted)
    stacked = shift.reweight(np.stack([cm, cm * 0]), np.stack([target, target]))
    np.testing.assert_allclose(stacked, [accuracy_score(grades, predicted, sample_weight=weights), np.nan])


def test_a_published_matrix_is_decomposed_into_parts_that_add_up():
    outside = np.diag([300, 77, 132, 121, 106]) + np.eye(5, k=-1, dtype=int) * 100
    outside[0, 1], outside[1, 2] = 214, 300
    table = decomposed(from_matrix(VGG19), from_matrix(outside), 200, 1)
    values, mix = table["value"], outside.sum(1)
    assert list(values.index) == PARTS and round(values[[INSIDE, MIX]], 3).tolist() == [0.696, 0.633]
    assert values[MIX] == shift.reweight(VGG19, mix) and (mix == EXTERNAL).all()
    assert values[OUTSIDE] == pytest.approx(np.trace(outside) / 1650)
    assert values[INSIDE] + values["label shift"] + values["rest"] == pytest.approx(values[OUTSIDE])
    assert ((table["ci_low"] < table["value"]) & (table["value"] < table["ci_high"])).all()


def test_the_same_behaviour_under_another_mix_leaves_no_rest():
    inside = np.full((5, 5), 8) + np.diag([0, 8, 16, 24, 32])
    values = decomposed(from_matrix(inside), from_matrix(inside * [[0], [1], [2], [3], [7]]))["value"]
    assert values["rest"] == pytest.approx(0, abs=1e-12) and values["label shift"] > 0.05


def test_both_cohorts_are_resampled_apart_by_groups_and_reproducibly():
    once, twice = (decomposed(*[from_matrix(VGG19, knees)] * 2, 300, 3) for knees in (1, 2))
    pd.testing.assert_frame_equal(once, twice)
    # With the same draws for both, the expected accuracy would equal the observed one in each draw.
    assert once["ci_low"]["rest"] < -0.01 and once["ci_high"]["rest"] > 0.01
    width = once["ci_high"] - once["ci_low"]
    assert width["rest"] == pytest.approx(np.hypot(width[MIX], width[OUTSIDE]), rel=0.35)


FULL = from_matrix(VGG19)
LACKING = from_matrix(np.array(VGG19) * [[1], [1], [1], [1], [0]])


@pytest.mark.parametrize(("internal", "external", "known", "bounded"), [
    (LACKING, FULL, [INSIDE, OUTSIDE], [INSIDE, OUTSIDE]), (FULL, FULL.head(0), [INSIDE], [INSIDE]),
    (FULL.assign(group_id="a"), FULL, PARTS, [OUTSIDE])], ids=["grade lacking", "no picture", "one group"])
def test_what_cannot_be_known_is_nan(internal, external, known, bounded):
    table = decomposed(internal, external)
    assert list(table.index[table["value"].notna()]) == known
    assert list(table.index[table["ci_low"].notna()]) == bounded


def simulated(shares, trained_on, n, generator):
    """Grades of a cohort, and exact probabilities of a model trained under other shares (Gaussian grades)."""
    grades = generator.choice(5, n, p=shares)
    joint = norm.pdf(generator.normal(2 * grades)[:, None], 2 * np.arange(5)) * trained_on
    return grades, joint / joint.sum(1, keepdims=True)


def test_calibrated_probabilities_reveal_the_shares_of_the_other_cohort():
    trained_on, shares = INTERNAL / INTERNAL.sum(), EXTERNAL / EXTERNAL.sum()
    grades, probabilities = simulated(shares, trained_on, 20000, np.random.default_rng(0))
    adapted, estimated = shift.prior_correction(probabilities, trained_on)
    assert np.abs(trained_on - shares).max() > 0.08
    np.testing.assert_allclose(estimated, shares, atol=0.02)  # four standard errors of the least certain
    assert (adapted.argmax(1) == grades).mean() > (probabilities.argmax(1) == grades).mean() + 0.01
    assert metrics.ece(grades, adapted) < 0.02


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_prior_correction_ends_where_the_shares_are_the_mean_probabilities(seed):
    generator = np.random.default_rng(seed)
    probabilities, priors = generator.dirichlet(np.ones(5), 50), generator.dirichlet(np.full(5, 5))
    adapted, estimated = shift.prior_correction(probabilities, priors)
    np.testing.assert_allclose(adapted.sum(1), 1)
    np.testing.assert_allclose(adapted.mean(0), estimated, atol=1e-4)
    start, end = (np.log((probabilities / priors) @ shares).sum() for shares in (priors, estimated))
    assert end >= start - 1e-9


@pytest.mark.parametrize(("probabilities", "priors", "named"), [
    *((np.eye(5), priors, "priors") for priors in (
        [0.5, 0.5, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.1], [0.25] * 4, [np.nan, 0.25, 0.25, 0.25, 0.25])),
    ([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [0.2] * 5, "Row 2 of 2")])
def test_what_are_no_shares_or_probabilities_is_refused(probabilities, priors, named):
    with pytest.raises(StudyError, match=named):
        shift.prior_correction(probabilities, priors)


def test_without_pictures_no_share_is_known():
    adapted, estimated = shift.prior_correction(np.zeros((0, 5)), [0.2] * 5)
    assert adapted.shape == (0, 5) and np.isnan(estimated).all()
