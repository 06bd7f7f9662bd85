"""Resampling, tests and the arithmetic audit, against slow references, scipy, statsmodels and METHODS section 8."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from koa_lib import arithmetic, metrics, stats
from koa_lib.errors import StudyError
from koa_lib.manifests import read_manifest
from koa_lib.profile import ROOT

MANIFESTS, COHORTS = ROOT / "data_manifests", ("oai_chen2018", "gornale2020")
EXTERNAL, INTERNAL = [514, 477, 232, 221, 206], [3253, 1495, 2175, 1086, 251]
VGG19 = [[556, 43, 39, 1, 0], [131, 52, 108, 5, 0], [41, 32, 335, 37, 2], [1, 1, 33, 167, 21], [0, 0, 1, 7, 43]]


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


def test_intervals_of_auc_and_ece_equal_a_loop():
    frame = cohort(groups=25)
    table = stats.bootstrap_summary(frame, draws=40, seed=3).set_index("metric")
    grades, probabilities = frame["kl_grade"].to_numpy(), frame[metrics.PROBABILITIES].to_numpy()
    samples = [metrics.summary(grades[row], probabilities[row]) for row in slow_draws(frame, 40, 3)]
    for name in table.index:
        expected = stats.interval([sample[name] for sample in samples])
        assert tuple(table.loc[name, ["ci_low", "ci_high"]]) == pytest.approx(expected), name


def test_draws_do_not_depend_on_chunks(monkeypatch):
    frame = cohort()
    predicted = frame[metrics.PROBABILITIES].to_numpy().argmax(1)
    whole = stats.group_bootstrap(frame["kl_grade"], predicted, frame["group_id"], draws=30, seed=1)
    monkeypatch.setattr(stats, "CHUNK", 7)
    np.testing.assert_array_equal(whole, stats.group_bootstrap(frame["kl_grade"], predicted, frame["group_id"], 30, 1))


def test_the_interval_covers_clustered_accuracy_and_pictures_alone_would_not():
    hits = {"clustered": 0, "alone": 0}
    for seed in range(80):
        frame = cohort(seed, groups=60)
        shift = (np.random.default_rng(seed + 1000).random(60) < 0.3).repeat(2)
        predicted = np.minimum(4, frame["kl_grade"] + shift)
        truth = 0.7 * 0.8 + 0.2  # grade 4 (one fifth) cannot be shifted
        for name, groups in (("clustered", frame["group_id"]), ("alone", np.arange(len(frame)))):
            drawn = stats.group_bootstrap(frame["kl_grade"], predicted, groups, 300, seed)
            low, high = stats.interval(metrics.from_confusion(drawn)["accuracy"])
            hits[name] += low <= truth <= high
    assert hits["clustered"] >= 70 and hits["clustered"] > hits["alone"] + 3


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_one_group_or_none_gives_nan_intervals(rows):
    table = stats.bootstrap_summary(cohort().head(rows), draws=20)
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
    assert table["value"].isna().all() == (rows == 0)


def test_one_grade_and_56_pictures_are_survived():
    frame = cohort(groups=28)
    table = stats.bootstrap_summary(frame.assign(kl_grade=2), draws=100).set_index("metric")
    assert np.isfinite(table.loc["accuracy", "ci_low"]) and np.isnan(table.loc["macro_auc", "value"])
    assert stats.bootstrap_summary(frame, draws=100)[["value", "ci_low", "ci_high"]].notna().all(axis=None)


def test_missing_groups_and_wrong_lengths_are_study_errors():
    for groups, match in (([None, "a"], "no group"), (["a"], "2 groups, not 1")):
        with pytest.raises(StudyError, match=match):
            stats.group_bootstrap([0, 1], [0, 1], groups, 5)
    with pytest.raises(StudyError, match="at least one draw"):
        stats.group_bootstrap([0, 1], [0, 1], ["a", "b"], 0)
    with pytest.raises(StudyError, match="unknown"):
        stats.paired_difference([0, 1], [0, 1], [0, 1], ["a", "b"], "f1")


def test_paired_difference_is_zero_for_equal_models_and_finds_a_better_one():
    frame = cohort(groups=80)
    grades, predicted = frame["kl_grade"].to_numpy(), frame[metrics.PROBABILITIES].to_numpy().argmax(1)
    same = stats.paired_difference(grades, predicted, predicted, frame["group_id"], "qwk", 100)
    assert (same["difference"], same["ci_low"], same["ci_high"]) == (0, 0, 0)
    better = stats.paired_difference(grades, grades, predicted, frame["group_id"], "accuracy", 200)
    assert better["difference"] == pytest.approx(1 - (grades == predicted).mean())
    assert 0 < better["ci_low"] < better["difference"] < better["ci_high"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_statsmodels(b, c):
    a_right, b_right = np.repeat([True, False, True], [b, c, 5]), np.repeat([False, True, True], [b, c, 5])
    ours = stats.mcnemar(a_right, b_right)
    assert (ours["b"], ours["c"]) == (b, c)
    if b + c:
        exact, point = min(1, reference_mcnemar([[5, b], [c, 0]], exact=True).pvalue), binom.pmf(b, b + c, 0.5)
        assert ours["p_exact"] == pytest.approx(exact)
        assert ours["p_mid"] == pytest.approx(exact - (point / 2 if b == c else point))
    else:
        assert ours["p_exact"] == ours["p_mid"] == 1


def test_mcnemar_without_pairs_is_nan():
    assert np.isnan(stats.mcnemar([], [])["p_exact"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p_values):
    np.testing.assert_allclose(stats.holm(p_values), multipletests(p_values, method="holm")[1])


def test_holm_leaves_nan_out():
    np.testing.assert_allclose(stats.holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def test_reweight_gives_the_known_reference_and_nan_where_undefined():
    assert round(stats.reweight(VGG19, EXTERNAL), 3) == 0.633
    assert stats.reweight(VGG19, np.sum(VGG19, 1)) == pytest.approx(np.trace(VGG19) / np.sum(VGG19))
    assert np.isnan(stats.reweight(np.diag([1, 1, 1, 1, 0]), EXTERNAL))
    assert np.isnan(stats.reweight(VGG19, np.zeros(5)))


def test_run_interval_is_students_t_and_needs_five_runs():
    mean, low, high = stats.run_interval([1, 2, 3, 4, 5])
    assert (mean, round(low, 3), round(high, 3)) == (3, 1.037, 4.963)
    assert np.isnan(stats.run_interval([1, 2, 3, 4])[1]) and np.isnan(stats.run_interval([])[0])


def test_weighted_auc_counts_ties_as_half():
    score, positive = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
    weights = np.array([[1, 2, 1, 3.0]])
    expected = roc_auc_score(np.repeat(positive, [1, 2, 1, 3]), np.repeat(score, [1, 2, 1, 3]))
    assert stats._weighted_auc(weights, positive, *stats._ties(score))[0] == pytest.approx(expected)


@pytest.fixture(scope="module")
def findings():
    published = pd.read_csv(MANIFESTS / "published/jpm2026.csv")
    counts = arithmetic.manifest_counts(*(read_manifest(MANIFESTS / f"{name}.csv") for name in COHORTS))
    assert [list(counts["internal"]), list(counts["external"]), counts["patients"]] == [INTERNAL, EXTERNAL, 4130]
    return arithmetic.findings(published, counts).set_index("check")


def test_the_audit_finds_what_the_methods_say(findings):
    value, expected = findings["value"], findings["expected"]
    assert (round(value["sum of false positives"], 1), round(expected["sum of false positives"], 1)) == (532.8, 392.0)
    assert round(value["accuracy implied by the sensitivities"], 3) == 76.245
    ratios = [round(value[f"interval width ratio, grade {grade}"], 2) for grade in range(5)]
    assert ratios == [0.81, 0.80, 0.48, 0.59, 0.50]
    assert round(value["lowest diagonal InfoNCE loss at batch 64, nats"], 2) == 2.79
    assert round(value["largest share of grades 0, 3, 4 in balance"], 1) == 18.9
    assert round(value["macro precision implied"], 1) == 69.3 and round(value["macro F1 implied"], 1) == 72.6
    assert round(value["accuracy implied by the specificities"], 1) == 67.7
    assert round(value["errors implied by the accuracy"], 1) == 380.5
    assert "not attainable" in findings.loc["external accuracy nearest to k of 1650", "note"]
    assert findings["note"].str.len().gt(0).all()


def test_the_audit_needs_the_published_rows():
    empty = pd.DataFrame(columns=["item", "row", "metric", "value"])
    with pytest.raises(StudyError, match="0 rows for table_2"):
        arithmetic.findings(empty, {"external": EXTERNAL, "internal": INTERNAL, "patients": 1})


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_grim_accepts_every_real_percentage(n, data):
    k = data.draw(st.integers(0, n))
    assert arithmetic.grim(round(100 * k / n, 2), n)


def test_grim_of_the_published_accuracy():
    assert [n for n in range(1630, 1670) if arithmetic.grim(76.94, n)] == [1635, 1639, 1648, 1652, 1661, 1665]
    assert sum(arithmetic.grim(76.94, n) for n in range(1200, 1701)) == 68
    assert not arithmetic.grim(76.94, 1650) and not arithmetic.grim(76.94, 1650, truncated=True)
    assert not arithmetic.grim(76.94, 1650, runs=5) and arithmetic.grim(76.94, 1650, runs=10)
    assert arithmetic.grim(12.5, 1000) and arithmetic.grim(76.945, 2000, decimals=2) == arithmetic.grim(76.94, 2000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_real_matrices_balance_and_reproduce_their_metrics(seed):
    cm = np.random.default_rng(seed).integers(1, 60, (5, 5))
    counts, hits = cm.sum(1), np.diag(cm)
    others, guesses = cm.sum() - counts, cm.sum(0)
    sensitivity, specificity = 100 * hits / counts, 100 * (others - (guesses - hits)) / others
    balance = arithmetic.fp_fn_balance(sensitivity, specificity, counts)
    assert balance["false_positives"] == pytest.approx(balance["false_negatives"])
    values = metrics.from_confusion(cm)
    assert balance["accuracy_from_specificity"] == pytest.approx(100 * values["accuracy"])
    assert arithmetic.implied_accuracy(sensitivity, counts) == pytest.approx(100 * values["accuracy"])
    precision, f1 = arithmetic.implied_precision(sensitivity, specificity, counts)
    assert (precision.mean(), f1.mean()) == pytest.approx((100 * values["macro_precision"], 100 * values["macro_f1"]))


def test_infonce_floor_equals_a_simulation_and_its_limits():
    floors = [round(arithmetic.infonce_floor(INTERNAL, batch), 2) for batch in (16, 32, 64, 128)]
    assert floors == [1.51, 2.13, 2.79, 3.47]
    assert arithmetic.infonce_floor([1, 0, 0, 0, 0], 64) == pytest.approx(np.log(64))
    assert arithmetic.infonce_floor([1, 1, 1, 1, 1], 1) == 0
    batches = np.random.default_rng(0).choice(5, (4000, 64), p=np.array(INTERNAL) / 8260)
    same = (batches[:, :, None] == batches[:, None, :]).sum(2)
    assert np.log(same).mean() == pytest.approx(arithmetic.infonce_floor(INTERNAL, 64), abs=0.005)


def test_wilson_equals_statsmodels():
    low, high = proportion_confint(1270, 1650, method="wilson")
    assert arithmetic.wilson(100 * 1270 / 1650, 1650) == pytest.approx((100 * low, 100 * high))
