"""Resampling, pairing and tests against slow references, scipy, scikit-learn and statsmodels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.weightstats import DescrStatsW

from koa_lib import metrics, stats
from koa_lib.errors import StudyError


def cohort(seed=0, groups=40):
    """Grades of patients with two knees each, and predictions whose errors belong to the patient."""
    generator = np.random.default_rng(seed)
    group = np.repeat([f"patient {number}" for number in range(groups)], 2)
    grades = generator.choice(5, groups).repeat(2)
    shift = generator.choice([0, 0, 1], groups).repeat(2)
    predicted = np.minimum(4, grades + shift)
    probabilities = 0.6 * np.eye(5)[predicted] + 0.4 * generator.dirichlet(np.ones(5), 2 * groups)
    frame = pd.DataFrame(probabilities, columns=metrics.PROBABILITIES)
    return frame.assign(kl_grade=grades, group_id=group)


NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "qwk", "mae", "within_one", "macro_auc", "ece")


def slow_draws(frame, draws, seed):
    """Row numbers of each bootstrap sample, by the plain way: draw group numbers, collect their rows."""
    codes, names = pd.factorize(frame["group_id"])
    picks = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    return [np.concatenate([np.flatnonzero(codes == code) for code in row]) for row in picks]


def test_group_bootstrap_equals_a_loop():
    frame = cohort()
    grades, probabilities = frame["kl_grade"].to_numpy(), frame[metrics.PROBABILITIES].to_numpy()
    predicted = probabilities.argmax(1)
    fast = stats.group_bootstrap(grades, predicted, frame["group_id"], draws=50, seed=7)
    rows = slow_draws(frame, 50, 7)
    np.testing.assert_array_equal(fast, [metrics.confusion(grades[row], predicted[row]) for row in rows])
    assert (fast.sum((1, 2)) == len(frame)).all()


def test_intervals_of_every_metric_equal_a_loop():
    frame = cohort(groups=25)
    table = stats.measured(frame, NAMES, draws=40, seed=3)
    grades, probabilities = frame["kl_grade"].to_numpy(), frame[metrics.PROBABILITIES].to_numpy()
    samples = [metrics.summary(grades[row], probabilities[row]) for row in slow_draws(frame, 40, 3)]
    for name in NAMES:
        expected = stats.interval([sample[name] for sample in samples])
        assert (table[f"{name}_low"], table[f"{name}_high"]) == pytest.approx(expected), name


def test_draws_do_not_depend_on_chunks(monkeypatch):
    frame = cohort()
    predicted = frame[metrics.PROBABILITIES].to_numpy().argmax(1)
    whole = stats.group_bootstrap(frame["kl_grade"], predicted, frame["group_id"], draws=30, seed=1)
    monkeypatch.setattr(stats, "CHUNK", 7)
    np.testing.assert_array_equal(whole, stats.group_bootstrap(frame["kl_grade"], predicted, frame["group_id"], 30, 1))


def test_pictures_of_their_own_groups_give_the_interval_of_scipy():
    generator, n = np.random.default_rng(4), 240
    grades = generator.choice(5, n)
    predicted = np.clip(grades + generator.choice([-1, 0, 0, 0, 1, 2], n), 0, 4)
    drawn = metrics.from_confusion(stats.group_bootstrap(grades, predicted, np.arange(n), 8000, 1))
    references = {"accuracy": lambda a, b, axis: (a == b).mean(axis), "mae": lambda a, b, axis: np.abs(a - b).mean(axis)}
    for name, statistic in references.items():
        expected = bootstrap((grades, predicted), statistic, paired=True, vectorized=True, n_resamples=8000, method="percentile", rng=2).confidence_interval
        # One picture is 1/240; the quantiles of 8,000 draws are a third of that uncertain.
        assert stats.interval(drawn[name]) == pytest.approx(tuple(expected), abs=1.5 / n), name


def simulated_knees(simulations, patients, accuracy, generator):
    """Whether each of two knees per patient is graded right; the correlation between the knees is one half."""
    chance = generator.beta(accuracy, 1 - accuracy, (simulations, patients))
    return (generator.random((simulations, patients, 2)) < chance[:, :, None]).reshape(simulations, -1)


def test_the_group_interval_covers_the_accuracy_of_paired_knees_and_one_without_patients_does_not():
    simulations, patients, accuracy = 2000, 120, 0.7
    right = simulated_knees(simulations, patients, accuracy, np.random.default_rng(0)).astype(int)
    grades, hits = np.ones(2 * patients, int), {"patients": 0, "pictures": 0}
    groups = {"patients": np.arange(patients).repeat(2), "pictures": np.arange(2 * patients)}
    for seed, predicted in enumerate(right):
        for name in groups:
            drawn = stats.group_bootstrap(grades, predicted, groups[name], 250, seed)
            low, high = stats.interval(drawn[:, 1, 1] / drawn.sum((1, 2)))
            hits[name] += low <= accuracy <= high
    covered = {name: count / simulations for name, count in hits.items()}
    assert 0.93 <= covered["patients"] <= 0.97 and covered["pictures"] < 0.91, covered


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_one_group_or_none_gives_nan_intervals(rows):
    table = stats.measured(cohort().head(rows), NAMES, draws=20)
    assert all(np.isnan(table[f"{name}_{end}"]) for name in NAMES for end in ("low", "high"))
    assert np.isnan(table["accuracy"]) == (rows == 0)


def test_one_grade_and_56_pictures_are_survived():
    frame = cohort(groups=28)
    table = stats.measured(frame.assign(kl_grade=2), NAMES, draws=100)
    assert np.isfinite(table["accuracy_low"]) and np.isnan(table["macro_auc"])
    assert np.isfinite(list(stats.measured(frame, NAMES, draws=100).values())).all()


def test_missing_groups_and_wrong_lengths_are_study_errors():
    for groups, match in (([None, "a"], "no group"), (["a"], "2 groups, not 1")):
        with pytest.raises(StudyError, match=match):
            stats.group_bootstrap([0, 1], [0, 1], groups, 5)
    with pytest.raises(StudyError, match="at least one draw"):
        stats.group_bootstrap([0, 1], [0, 1], ["a", "b"], 0)
    with pytest.raises(StudyError, match="unknown"):
        stats.samples(cohort(), ["f1"])


def answered(frame, predicted):
    """The frame with other answers."""
    return frame.assign(**dict(zip(metrics.PROBABILITIES, np.eye(5)[predicted].T, strict=True)))


def test_the_gap_is_zero_for_equal_models_and_finds_a_better_one():
    frame = cohort(groups=80).assign(image_id=np.arange(160))
    same = stats.gaps(frame, frame.iloc[::-1], ["qwk"], 100)
    assert (same["qwk"], same["qwk_low"], same["qwk_high"]) == (0, 0, 0) and same["n"] == 160
    better = stats.gaps(answered(frame, frame["kl_grade"]), frame, ["accuracy"], 200)
    wrong = frame["kl_grade"] != frame[metrics.PROBABILITIES].to_numpy().argmax(1)
    assert better["accuracy"] == pytest.approx(wrong.mean())
    assert 0 < better["accuracy_low"] < better["accuracy"] < better["accuracy_high"]


def model(ids, grades, seed=0):
    """A graded frame with random probabilities."""
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(5), len(ids))
    return pd.DataFrame(probabilities, columns=metrics.PROBABILITIES).assign(image_id=list(ids), kl_grade=list(grades), group_id=list(ids))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)))
def test_pairing_finds_each_picture_of_the_other_model(order):
    a, b = model("abcdefgh", [0, 1, 2, 3, 4, 0, 1, 2], 1), model("abcdefgh", [0, 1, 2, 3, 4, 0, 1, 2], 2)
    both = stats.paired(a, b.iloc[order])
    pd.testing.assert_frame_equal(both[a.columns], a)
    assert np.array_equal(both[[f"{name}_b" for name in metrics.PROBABILITIES]], b[metrics.PROBABILITIES])


def test_pairing_refuses_other_pictures_other_grades_and_repeats():
    a = model("abc", [0, 1, 2])
    with pytest.raises(StudyError, match=r"1 only the first, 2 only the second, such as 'c'"):
        stats.paired(a, model("abde", [0, 1, 2, 2]))
    with pytest.raises(StudyError, match=r"0 only the first, 1 only the second, such as 'd'"):
        stats.paired(a, model("abcd", [0, 1, 2, 2]))
    with pytest.raises(StudyError, match=r"differ for 2 of the pictures \(such as 'b', 1 against 4\)"):
        stats.paired(a, model("cba", [3, 4, 0]))
    for pair in ((model("aab", [0, 0, 1]), a), (a, model("abb", [0, 1, 1]))):
        with pytest.raises(StudyError, match="more than once in the (first|second) model's"):
            stats.paired(*pair)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_the_binomial_test(b, c):
    a_right, b_right = np.repeat([True, False, True], [b, c, 5]), np.repeat([False, True, True], [b, c, 5])
    ours = stats.mcnemar(a_right, b_right)
    assert (ours["b"], ours["c"]) == (b, c)
    exact = binomtest(b, b + c).pvalue if b + c else 1
    assert ours["p_exact"] == pytest.approx(exact)
    if b != c:
        # Twice the smaller tail, its last point counted half: the mean of two one-sided tests.
        fewer = [binomtest(k, b + c, alternative="less").pvalue if k >= 0 else 0 for k in (min(b, c), min(b, c) - 1)]
        assert ours["p_mid"] == pytest.approx(sum(fewer))


def test_mid_p_of_known_counts():
    # 1 - C(4, 2) / 2^4 / 2 with equal counts; 2 / 2^6 - 1 / 2^6 when all six disagreements favour one.
    assert stats.mcnemar([1, 1, 0, 0], [0, 0, 1, 1])["p_mid"] == pytest.approx(1 - 6 / 32)
    assert stats.mcnemar(np.ones(6), np.zeros(6))["p_mid"] == pytest.approx(1 / 64)
    assert stats.mcnemar([1, 0], [1, 0])["p_mid"] == 1


def test_mcnemar_without_pairs_is_nan_and_other_lengths_are_refused():
    assert np.isnan(stats.mcnemar([], [])["p_exact"])
    with pytest.raises(StudyError, match="differ in length"):
        stats.mcnemar([True], [True, False])


@settings(max_examples=20, deadline=None)  # statsmodels collects garbage at each call, a tenth of a second
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=9))
def test_holm_equals_its_definition_and_leaves_nan_out(p_values):
    adjusted, known = stats.holm(p_values), [p for p in p_values if not np.isnan(p)]
    for p, ours in zip(p_values, adjusted, strict=True):
        # The largest of every smaller or equal p times the number of hypotheses not yet rejected before it.
        steps = [q * (len(known) - sorted(known).index(q)) for q in known if q <= p]
        assert ours == pytest.approx(min(1, max(steps)) if steps else np.nan, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), max_size=12))
def test_run_interval_is_students_t_and_needs_five_runs(values):
    mean, low, high = stats.run_interval([*values, np.nan])
    assert mean == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
    expected = DescrStatsW(values).tconfint_mean(0.05) if len(values) >= 5 else (np.nan, np.nan)
    assert (low, high) == pytest.approx(expected, nan_ok=True, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.floats(-5, 5), st.just(float("nan"))), max_size=30), st.floats(0.5, 0.99))
def test_the_interval_holds_its_share_of_the_defined_draws(values, level):
    low, high = stats.interval(values, level)
    tails = [50 * (1 - level), 50 * (1 + level)]
    expected = np.nanpercentile(values, tails) if np.isfinite(values).any() else (np.nan, np.nan)
    assert (low, high) == pytest.approx(tuple(expected), nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_gaps_resample_both_models_together(seed):
    generator = np.random.default_rng(seed)
    grades, a, b = generator.choice(5, (3, 60))
    frame = pd.DataFrame({"image_id": np.arange(60), "kl_grade": grades, "group_id": generator.choice(25, 60)})
    found = stats.gaps(answered(frame, a), answered(frame, b), ["qwk"], 20, seed)
    rows = slow_draws(frame, 20, seed)
    kappas = [[cohen_kappa_score(grades[row], guess[row], weights="quadratic", labels=range(5)) for row in rows] for guess in (a, b)]
    assert (found["qwk_low"], found["qwk_high"]) == pytest.approx(stats.interval(np.subtract(*kappas)))
    assert found["qwk"] == pytest.approx(np.subtract(*(cohen_kappa_score(grades, guess, weights="quadratic") for guess in (a, b))))


def test_weighted_auc_counts_ties_as_half():
    score, positive = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
    weights = np.array([[1, 2, 1, 3.0]])
    expected = roc_auc_score(np.repeat(positive, [1, 2, 1, 3]), np.repeat(score, [1, 2, 1, 3]))
    assert stats._weighted_auc(weights, positive, *stats._ties(score))[0] == pytest.approx(expected)


def test_each_metric_stands_beside_the_best_single_grade_of_the_same_draws():
    frame = cohort()
    table = stats.against_constant(frame, draws=60, seed=7)
    frame = frame.assign(image_id=np.arange(80))
    for name, better in (("accuracy", max), ("within_one", max), ("mae", min), ("qwk", max)):
        fixed = {grade: metrics.from_confusion(metrics.confusion(frame["kl_grade"], np.full(80, grade)))[name].item() for grade in range(5)}
        grade = better(fixed, key=fixed.get)
        gap, own = stats.gaps(frame, answered(frame, np.full(80, grade)), [name], 60, 7), stats.measured(frame, [name], 60, 7)
        expected = (own[name], fixed[grade], gap[f"{name}_low"], gap[f"{name}_high"])
        assert tuple(table.loc[name, ["value", "constant", "low", "high"]]) == pytest.approx(expected)
    assert table.loc["mae", "high"] < 0 and table.loc["mae", "against"] == "better"
    assert table.loc["qwk", "constant"] == 0 and table.loc["balanced_accuracy", "constant"] == pytest.approx(0.2)


def test_a_model_that_gives_one_grade_is_not_better_than_one_grade():
    frame = cohort().assign(p0=1.0, p1=0.0, p2=0.0, p3=0.0, p4=0.0)
    table = stats.against_constant(frame.assign(kl_grade=frame["kl_grade"].where(frame.index % 3 == 0, 0)), draws=60)
    assert (table.loc[["accuracy", "qwk", "macro_f1"], "against"] == "not clear").all()
    assert [stats.direction(*ends) for ends in ((0.1, 1), (-1, -0.1), (-1, 0.1), (np.nan, np.nan))] == ["better", "worse", "not clear", "not clear"]


def test_mean_interval_of_single_pictures_is_that_of_scipy():
    values = np.random.default_rng(0).gamma(2, size=80)
    mean, low, high = stats.mean_interval([*values, np.nan], [*range(80), 0], draws=4000)
    expected = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx(values.mean()) and (low, high) == pytest.approx(tuple(expected), abs=0.03)


def test_mean_interval_covers_the_truth_where_pictures_of_a_patient_are_alike():
    rng, covered, groups = np.random.default_rng(3), np.zeros(2), np.repeat(np.arange(40), 3)
    for trial in range(300):
        values = 0.5 + rng.normal(size=40).repeat(3) + 0.3 * rng.normal(size=120)
        for place, units in enumerate((groups, np.arange(120))):
            _, low, high = stats.mean_interval(values, units, 200, trial)
            covered[place] += low <= 0.5 <= high
    assert 0.90 <= covered[0] / 300 <= 0.98 and covered[1] / 300 < 0.85  # pictures are not independent


def test_mean_interval_needs_values_and_two_groups():
    assert np.isnan(stats.mean_interval([np.nan], ["a"], 10)).all() and np.isnan(stats.mean_interval([], [])).all()
    mean, low, high = stats.mean_interval([1.0, 2.0, np.nan], ["a", "a", "b"], 10)
    assert mean == 1.5 and np.isnan([low, high]).all()
    with pytest.raises(StudyError, match="2 pictures need 2 groups"):
        stats.mean_interval([1.0, 2.0], ["a"])
