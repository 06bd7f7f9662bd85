"""Resampling, pairing and tests against slow references, scipy, scikit-learn and statsmodels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.weightstats import DescrStatsW

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES

NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "qwk", "mae", "within_one", "macro_auc", "ece")
numbers = st.one_of(st.floats(-5, 5), st.just(float("nan")))


def graded(grades, probabilities, groups):
    """A graded frame; pictures are numbered."""
    frame = pd.DataFrame(probabilities, columns=PROBABILITIES)
    return frame.assign(image_id=np.arange(len(frame)), kl_grade=grades, group_id=groups)


def cohort(groups=40):
    """Two knees of each patient, predictions whose errors belong to the patient, probabilities with ties."""
    generator = np.random.default_rng(0)
    grades, shift = (generator.choice(values, groups).repeat(2) for values in (5, [0, 0, 1]))
    noise = generator.multinomial(5, np.ones(5) / 5, 2 * groups) / 5
    patients = np.repeat([f"patient {number}" for number in range(groups)], 2)
    return graded(grades, 0.6 * np.eye(5)[np.minimum(4, grades + shift)] + 0.4 * noise, patients)


def answered(frame, grades):
    """The frame with other answers."""
    return frame.assign(**dict(zip(PROBABILITIES, np.eye(5)[grades].T, strict=True)))


def slow_draws(frame, draws, seed):
    """Row numbers of each bootstrap sample, by the plain way: draw group numbers, collect their rows."""
    codes, names = pd.factorize(frame["group_id"])
    picks = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    return [np.concatenate([np.flatnonzero(codes == code) for code in row]) for row in picks]


def test_intervals_equal_those_of_a_loop_in_whatever_chunks_groups_are_drawn(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 7)
    frame = cohort(25)
    grades, probabilities = frame["kl_grade"].to_numpy(), frame[PROBABILITIES].to_numpy()
    samples = [metrics.summary(grades[rows], probabilities[rows]) for rows in slow_draws(frame, 40, 3)]
    table = stats.measured(frame, NAMES, draws=40, seed=3)
    for name in NAMES:
        expected = stats.interval([sample[name] for sample in samples])
        assert (table[f"{name}_low"], table[f"{name}_high"]) == pytest.approx(expected), name
    right = np.where(grades == probabilities.argmax(1), 1.0, 0)
    found = stats.mean_interval([*right, np.nan], [*frame["group_id"], "unknown"], 40, 3)
    assert found == pytest.approx([table[f"accuracy{end}"] for end in ("", "_low", "_high")])


def test_an_interval_covers_the_truth_where_groups_are_resampled_and_not_where_pictures_are():
    generator, patients, covered = np.random.default_rng(3), np.repeat(np.arange(40), 3), np.zeros(2)
    for trial in range(300):
        values = 0.5 + generator.normal(size=40).repeat(3) + 0.3 * generator.normal(size=120)
        for place, units in enumerate((patients, np.arange(120))):
            _, low, high = stats.mean_interval(values, units, 200, trial)
            covered[place] += low <= 0.5 <= high
    assert 0.90 <= covered[0] / 300 <= 0.98 and covered[1] / 300 < 0.85


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_one_group_or_none_has_no_interval(rows):
    table = stats.measured(cohort().head(rows), NAMES, draws=20)
    assert all(np.isnan(table[f"{name}_{end}"]) for name in NAMES for end in ("low", "high"))
    assert np.isnan(table["accuracy"]) == (rows == 0)
    mean, *ends = stats.mean_interval(np.ones(rows), ["a"] * rows, 20)
    assert np.isnan(ends).all() and np.isnan(mean) == (rows == 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_gap_resamples_both_models_together_in_whatever_order_they_stand(seed):
    generator = np.random.default_rng(seed)
    grades, a, b = generator.choice(5, (3, 60))
    frame = graded(grades, np.eye(5)[a], generator.choice(25, 60))
    found = stats.gaps(frame, answered(frame, b).sample(frac=1, random_state=1), ["qwk"], 20, seed)

    def gap(rows):
        options = {"weights": "quadratic", "labels": range(5)}
        return np.subtract(*(cohen_kappa_score(grades[rows], guess[rows], **options) for guess in (a, b)))

    expected = stats.interval([gap(rows) for rows in slow_draws(frame, 20, seed)])
    assert (found["qwk_low"], found["qwk_high"]) == pytest.approx(expected)
    assert found["qwk"] == pytest.approx(gap(np.arange(60))) and found["n"] == 60


def model(ids, *grades):
    """A graded frame of pictures with one-letter names."""
    return graded(grades, np.full((len(ids), 5), 0.2), list(ids)).assign(image_id=list(ids))


@pytest.mark.parametrize(("act", "given", "named"), [
    (stats.paired, (model("abc", 0, 1, 2), model("abde", 0, 1, 2, 2)), "1 only.* 2 only.*'c'"),
    (stats.paired, (model("abc", 0, 1, 2), model("cba", 3, 4, 0)), "2 .*'b', 1 against 4"),
    (stats.paired, (model("aab", 0, 0, 1), model("ab", 0, 1)), "'a'.* first"),
    (stats.paired, (model("ab", 0, 1), model("abb", 0, 1, 1)), "'b'.* second"),
    (stats.group_bootstrap, ([0, 1], [0, 1], [None, "a"], 5), "no group"),
    (stats.samples, (cohort(), ["f1"]), "'f1'"),
    (stats.mcnemar, ([True], [True, False]), "length"),
])
def test_what_does_not_fit_together_is_named(act, given, named):
    with pytest.raises(StudyError, match=named):
        act(*given)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_the_binomial_test(b, c):
    a_right, b_right = np.repeat([True, False, True], [b, c, 5]), np.repeat([False, True, True], [b, c, 5])
    ours = stats.mcnemar(a_right, b_right)
    assert (ours["b"], ours["c"]) == (b, c)
    assert ours["p_exact"] == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1)
    if b + c:
        # Twice the smaller tail, its last point counted half (Fagerland 2013).
        fewer = min(b, c)
        tail = binom.cdf(fewer - 1, b + c, 0.5) + binom.pmf(fewer, b + c, 0.5) / 2
        shared = binom.pmf(b, b + c, 0.5) / 2 if b == c else 0  # this point is in both tails
        assert ours["p_mid"] == pytest.approx(2 * tail - shared)
    assert np.isnan(stats.mcnemar([], [])["p_exact"])


@settings(max_examples=10, deadline=None)  # statsmodels collects garbage at each call, a tenth of a second
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=9))
def test_holm_equals_its_definition_and_leaves_nan_out(p_values):
    adjusted, known = stats.holm(p_values), [p for p in p_values if not np.isnan(p)]
    for p, ours in zip(p_values, adjusted, strict=True):
        # The largest of every smaller or equal p times the number of hypotheses not yet rejected before it.
        steps = [q * (len(known) - sorted(known).index(q)) for q in known if q <= p]
        assert ours == pytest.approx(min(1, max(steps)) if steps else np.nan, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), max_size=12))
def test_the_interval_of_runs_is_students_t_and_needs_five(values):
    mean, *ends = stats.run_interval([*values, np.nan])
    assert mean == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
    expected = DescrStatsW(values).tconfint_mean(0.05) if len(values) >= 5 else (np.nan, np.nan)
    assert ends == pytest.approx(list(expected), nan_ok=True, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, max_size=30), st.floats(0.5, 0.99))
def test_an_interval_holds_its_share_of_the_defined_draws(values, level):
    tails = [50 * (1 - level), 50 * (1 + level)]
    expected = np.nanpercentile(values, tails) if np.isfinite(values).any() else (np.nan, np.nan)
    assert stats.interval(values, level) == pytest.approx(tuple(expected), nan_ok=True)


def test_each_metric_stands_beside_the_best_single_grade_of_the_same_draws():
    frame = cohort()
    constant = [answered(frame, np.full(80, grade)) for grade in range(5)]
    table = stats.against_constant(frame, 60, 7)
    for name in ("accuracy", "within_one", "mae", "qwk"):
        fixed = [stats.measured(other, [name], 1)[name] for other in constant]
        best = np.argmin(fixed) if name == "mae" else np.argmax(fixed)
        gap = stats.gaps(frame, constant[best], [name], 60, 7)
        expected = [gap[name] + fixed[best], fixed[best], gap[f"{name}_low"], gap[f"{name}_high"]]
        assert table.loc[name, ["value", "constant", "low", "high"]].tolist() == pytest.approx(expected)
    assert (table["against"] == "better").all() and table.loc["mae", "high"] < 0
    worse = stats.against_constant(constant[4].assign(kl_grade=frame.index % 4), 60)
    assert worse.loc[["accuracy", "mae", "qwk"], "against"].tolist() == ["worse", "worse", "not clear"]
