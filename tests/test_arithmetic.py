"""The arithmetic audit: each function against a reference, the findings against numbers computed by hand."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from koa_lib import metrics
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper import arithmetic, consistency, sensitivities
from koa_lib.profile import ROOT

LISTS = ROOT / "data_manifests"
EXTERNAL, INTERNAL = [514, 477, 232, 221, 206], [3253, 1495, 2175, 1086, 251]
COUNTS = {"external": EXTERNAL, "internal": INTERNAL, "patients": 4130}
PUBLISHED = pd.read_csv(LISTS / "published/jpm2026.csv").astype({"value": float})
MATRICES = pd.read_csv(LISTS / "published/confusion_matrices.csv")
SEEDS = st.integers(0, 2**32 - 1)


def audit(published=PUBLISHED, counts=COUNTS, matrices=MATRICES):
    return consistency.findings(published, counts, matrices).set_index("check")


@pytest.fixture(scope="module")
def findings():
    return audit()


def test_the_manifests_count_the_pictures_and_patients_of_the_audit():
    manifests = (read_manifest(LISTS / f"{name}.csv") for name in ("oai_chen2018", "gornale2020"))
    counts = consistency.manifest_counts(*manifests)
    assert {name: np.asarray(count).tolist() for name, count in counts.items()} == COUNTS


# Functions


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2), st.integers(-1, 1), st.booleans(), st.data())
def test_grim_equals_trying_every_count(n, runs, decimals, step, cut, data):
    real = [Fraction(100 * 10**decimals * k, n * runs) for k in range(n * runs + 1)]
    printed = max(0, int(data.draw(st.sampled_from(real))) + step)
    possible = any(0 <= x - printed < 1 if cut else abs(x - printed) <= Fraction(1, 2) for x in real)
    assert arithmetic.grim(printed / 10**decimals, n, runs, decimals, cut) == possible


def test_the_published_accuracy_is_no_share_of_1650_pictures_but_of_ten_runs():
    assert not arithmetic.grim(76.94, 1650) and not arithmetic.grim(76.94, 1650, truncated=True)
    assert arithmetic.grim(76.94, 1650, runs=10)
    for n, runs in ((0, 1), (5, 0)):
        with pytest.raises(StudyError):
            arithmetic.grim(50, n, runs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(0, 100))
def test_nearest_is_the_nearest_of_all(n, percent):
    gap = np.abs(100 * np.arange(n + 1) / n - percent).min()
    assert abs(arithmetic.nearest(percent, n) - percent) == pytest.approx(gap)


def rates(cm):
    """Pictures, sensitivity and specificity (percent) of each grade."""
    counts, hits = cm.sum(1), np.diag(cm)
    others = cm.sum() - counts
    return counts, 100 * hits / counts, 100 * (others - (cm.sum(0) - hits)) / others


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_real_matrices_balance_and_reproduce_their_metrics(seed):
    cm = np.random.default_rng(seed).integers(1, 60, (5, 5))
    counts, sensitivity, specificity = rates(cm)
    values = {name: 100 * value for name, value in metrics.from_confusion(cm).items()}
    balance = arithmetic.fp_fn_balance(sensitivity, specificity, counts)
    errors = counts.sum() - np.trace(cm)
    assert (balance["false_positives"], balance["false_negatives"]) == pytest.approx((errors, errors))
    assert balance["accuracy_from_specificity"] == pytest.approx(values["accuracy"])
    assert arithmetic.implied_accuracy(sensitivity, counts) == pytest.approx(values["accuracy"])
    means = [each.mean() for each in arithmetic.implied_precision(sensitivity, specificity, counts)]
    assert means == pytest.approx([values["macro_precision"], values["macro_f1"]])
    share = 100 * counts[[0, 3, 4]].sum() / counts.sum()
    assert arithmetic.largest_share(sensitivity, specificity, slack=1e-6) >= share - 1e-6


def test_largest_share_by_hand():
    # Terms .2 for the three grades and .6 for the others; needed is .4: half of each.
    sensitivity, specificity = [88, 48, 48, 88, 88], np.full(5, 92.0)
    assert arithmetic.largest_share(sensitivity, specificity) == pytest.approx(50)
    # A slack of .1 asks for .3 only: a quarter on .6, three quarters on .2.
    assert arithmetic.largest_share(sensitivity, specificity, slack=0.1) == pytest.approx(75)
    assert np.isnan(arithmetic.largest_share(np.full(5, 88), specificity))  # .2 everywhere, no mix reaches .4


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 2000), st.floats(0.01, 0.99), st.floats(0.2, 4))
def test_intervals_equal_statsmodels_and_return_their_pictures(n, share, factor):
    wilson = 100 * np.array(proportion_confint(share * n, n, method="wilson"))
    assert arithmetic.wilson(100 * share, n) == pytest.approx(wilson, abs=1e-6)
    low, high = 100 * np.array(proportion_confint(share * n, n, method="normal"))
    assume(0 < low and high < 100)
    assert arithmetic.ci_width(100 * share, n) == pytest.approx(high - low)
    ends = [100 * share + factor * (end - 100 * share) for end in (low, high)]
    assert arithmetic.ci_width_ratio(100 * share, *ends, n) == pytest.approx(factor)
    assert arithmetic.pictures_of_width(100 * share, *ends) == pytest.approx(n / factor**2)


def test_without_width_or_pictures_nothing_is_known():
    assert np.isnan(arithmetic.ci_width_ratio([0, 100], [0, 100], [1, 100], [10, 10])).all()
    assert np.isnan([arithmetic.pictures_of_width(50, 40, 40), *arithmetic.wilson(50, 0)]).all()
    precision, f1 = arithmetic.implied_precision([80, 0, 0, 0, 0], [50, 80, 100, 100, 100], [10, 10, 0, 0, 0])
    assert np.isnan([precision, f1])[:, 2:].all()


# Findings


def test_the_audit_finds_what_was_computed_by_hand(findings):
    found = {
        "accuracy implied by the sensitivities": 76.245,
        "errors implied by the accuracy": 380.5,
        "accuracy implied by the specificities": 67.7,
        "largest share of grades 0, 3, 4 in balance": 18.9,
        "macro precision implied": 69.3,
        "macro F1 implied": 72.6,
        "sum of false positives": 532.8,
        "pictures that the interval widths imply, summed": 3999,
        "intervals off-centre in the same direction": 5,
        "95 % Wilson interval of the accuracy, low": 74.8,
        "external accuracy minus the highest cited one": 0.01,
        "accuracy of always the commonest external grade": 31.15,
        "accuracy of guessing in the internal grade mix": 23.3,
        "within-one accuracy of the best constant grade": 74.1,
        "divergence of the external from the internal grade mix": 0.153,
        "lowest diagonal InfoNCE loss at batch 64": 2.79,
        "re-weighted to the external grade mix: Chen VGG19 ordinal": 63.3,
        "re-weighted to the external grade mix: CLIP-OA ViT-L/14-336 fine-tuned": 63.4,
    }
    for check, known in found.items():
        assert round(findings["value"][check], len(str(known).partition(".")[2])) == known, check
    assert findings["expected"]["sum of false positives"] == pytest.approx(392, abs=0.1)
    attained = findings[findings.index.str.startswith("sensitivity of grade")]
    gaps = (attained["value"] - attained["expected"]).abs()
    assert gaps.round(3).tolist() == [0.072, 0.053, 0.117, 0.214, 0.09]


def test_tolerances_are_what_rounding_moves(findings):
    """By hand: half a unit of each printed number, in pictures or points."""
    tolerance = findings["tolerance"]
    for check, half in {
        "sum of false positives": 0.0005 * 4 * 1650 + 0.0005 * 1650,
        "accuracy implied by the sensitivities": 0.05 + 0.005,
        "accuracy implied by the specificities": 0.2 + 0.005,
        "mean AUC of the grades": 0.01,
        "train minus external accuracy": 0.5 + 0.005 + 0.005,
        "external accuracy nearest to k of 1650": 0.005,
    }.items():
        assert tolerance[check] == pytest.approx(half), check


def test_what_rounding_explains_agrees_and_a_check_that_cannot_fail_is_left_out(findings):
    assert set(findings.index[findings["verdict"].isin(["consistent", "same"])]) == {
        "macro sensitivity from the grades",
        "mean AUC of the grades",
        "accuracy repeated: table 4, Fine-tuned CLIP",
        "accuracy repeated: table 5, Bashir 2026",
        "train minus external accuracy",
        "internal pictures",
        "external pictures",
    }
    assert (findings["verdict"] == "reference").equals(findings["expected"].isna())
    assert findings.index.is_unique and findings["note"].str.len().gt(0).all()
    # A printed decimal of 0.1 points is wider than one of 1,650 pictures, but not than one of 800.
    assert not findings.index.str.contains("VGG19 nearest").any()
    assert audit(counts=COUNTS | {"external": [160] * 5}).index.str.contains("VGG19 nearest").any()


def test_every_number_that_bears_on_another_moves_a_finding(findings):
    cited = PUBLISHED["kind"].eq("citation")
    unused = (
        PUBLISHED["kind"].eq("speed") | PUBLISHED["unit"].eq("years") | PUBLISHED["metric"].eq("p_value")
        | PUBLISHED["item"].eq("table_4") & PUBLISHED["kind"].eq("model")  # too coarse for 1,650 pictures
        | cited & (PUBLISHED["value"] < PUBLISHED.loc[cited & PUBLISHED["item"].eq("table_5"), "value"].max())
        | PUBLISHED["row"].eq("train") & PUBLISHED["metric"].isin(["macro_precision", "macro_f1"])
    )
    each = PUBLISHED[~unused].drop_duplicates(["item", "metric"])
    cells = each[["value", "ci_low", "ci_high"]].stack().dropna().index
    assert len(cells) > 15
    for index, column in cells:
        changed = PUBLISHED.copy()
        changed.loc[index, column] += 0.065 if changed.loc[index, "unit"] == "ratio" else 1.3
        assert not audit(changed).equals(findings), changed.loc[index].to_dict()


def test_counts_and_matrices_move_the_findings(findings):
    for counts in ({"external": EXTERNAL[::-1]}, {"internal": INTERNAL[::-1]}, {"patients": 4000}):
        assert not audit(counts=COUNTS | counts).equals(findings), counts
    swapped = MATRICES.rename(columns={"predicted_0": "predicted_1", "predicted_1": "predicted_0"})
    assert audit(matrices=swapped)["value"]["re-weighted to the external grade mix: Chen VGG19 ordinal"] < 50


def consistent(seed, bootstrap=False):
    """The published external results as they would be if they were printed from one confusion matrix."""
    generator = np.random.default_rng(seed)
    external = generator.integers(150, 600, 5)
    recall, wrong = generator.uniform(0.5, 0.9, 5), generator.random((5, 5)) * (1 - np.eye(5))
    shares = np.diag(recall) + (1 - recall)[:, None] * wrong / wrong.sum(1, keepdims=True)
    cm = np.array([generator.multinomial(n, share) for n, share in zip(external, shares, strict=True)])
    test, auc = metrics.from_confusion(cm), generator.uniform(0.7, 0.99, 5)
    counts, sensitivity, specificity = rates(cm)
    ends = sensitivity + np.outer([-0.5, 0.5], arithmetic.ci_width(sensitivity, counts))
    if bootstrap:
        drawn = generator.binomial(counts, sensitivity / 100, (1000, 5)) / counts
        ends = 100 * np.quantile(drawn, [0.025, 0.975], axis=0)
    numbers = {("text", "macro", "auc"): round(auc.mean(), 2)}
    for name in ("accuracy", "macro_precision", "macro_sensitivity", "macro_f1"):
        numbers["table_2", "test", name] = round(100 * float(test[name]), 2)
    grades = {"sensitivity": sensitivity.round(1), "specificity": specificity.round(1), "auc": auc.round(2)}
    for name, values in grades.items():
        numbers |= {("table_3", str(grade), name): values[grade] for grade in range(5)}
    published = PUBLISHED.set_index(["item", "row", "metric"]).sort_index()
    for key, value in numbers.items():
        published.loc[key, "value"] = value
    for grade in range(5):
        published.loc[("table_3", str(grade), "sensitivity"), ["ci_low", "ci_high"]] = ends[:, grade].round(1)
    return published.reset_index(), COUNTS | {"external": counts}


@settings(max_examples=8, deadline=None)
@given(SEEDS)
def test_numbers_printed_from_one_matrix_agree_everywhere(seed):
    published, counts = consistent(seed)
    table, grades = audit(published, counts), sensitivities.per_grade(published, counts)
    others = "accuracy of|repeated|train minus|pictures$|patients$"  # that this matrix says nothing of
    table = table[~table.index.str.contains(others)]
    assert set(table["verdict"]) == {"consistent", "reference"} and table["expected"].notna().sum() >= 15
    assert set(grades["attainable"]) == {"yes"}
    np.testing.assert_allclose(grades["n_of_width"], grades["n"], rtol=0.06)
    assert grades["sensitivity"].between(grades["wilson_low"], grades["wilson_high"]).all()


def test_honest_bootstrap_intervals_agree():
    tables = [audit(*consistent(seed, bootstrap=True)) for seed in range(6)]
    widths = pd.concat([table[table.index.str.contains("width")] for table in tables])
    assert len(widths) == 6 * 6 and (widths["verdict"] == "consistent").mean() > 0.95


@pytest.mark.parametrize(("change", "told"), [
    ({"published": PUBLISHED.head(0)}, "0 rows for table_2"),
    ({"published": pd.concat([PUBLISHED, PUBLISHED])}, "2 rows for table_2"),
    ({"counts": COUNTS | {"external": [10, 10, 10, 10, 0]}}, "0] pictures"),
    ({"matrices": MATRICES.drop(index=2)}, "Chen VGG19 ordinal"),
])
def test_what_is_not_whole_is_refused_by_name(change, told):
    with pytest.raises(StudyError) as error:
        audit(**change)
    assert told in str(error.value)


def test_an_interval_without_meaning_is_a_reference():
    changed = PUBLISHED.copy()
    place = (changed["metric"] == "sensitivity") & (changed["row"] == "4")
    changed.loc[place, ["value", "ci_low", "ci_high"]] = 100
    table = audit(changed)
    for check in ("interval width ratio, grade 4", "pictures that the interval widths imply, summed"):
        assert table.loc[check, "verdict"] == "reference" and np.isnan(table.loc[check, "value"])
    assert table.loc["interval width ratio, grade 3", "verdict"] == "inconsistent"


def test_per_grade_gives_the_table_by_hand():
    table = sensitivities.per_grade(PUBLISHED, COUNTS)
    table = table.round({"implied_precision": 1, "width_ratio": 2, "n_of_width": 0})
    for column, values in {
        "implied_precision": [82.9, 68.3, 52.7, 64.0, 78.7],
        "width_ratio": [0.81, 0.80, 0.48, 0.59, 0.50],
        "n_of_width": [775, 739, 1022, 633, 830],
        "attainable": ["no", "only if cut", "no", "no", "no"],
    }.items():
        assert table[column].tolist() == values, column
