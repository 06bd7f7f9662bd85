"""The arithmetic audit: each function by hand or against a reference, the findings against numbers computed by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from koa_lib import losses, metrics
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.paper import arithmetic, consistency
from koa_lib.profile import ROOT

MANIFESTS, COHORTS = ROOT / "data_manifests", ("oai_chen2018", "gornale2020")
EXTERNAL, INTERNAL = [514, 477, 232, 221, 206], [3253, 1495, 2175, 1086, 251]
COUNTS = {"external": EXTERNAL, "internal": INTERNAL, "patients": 4130}
PUBLISHED, MATRICES = (pd.read_csv(MANIFESTS / f"published/{name}.csv") for name in ("jpm2026", "confusion_matrices"))
SEEDS = st.integers(0, 2**32 - 1)


def audit(published=PUBLISHED, counts=COUNTS):
    return consistency.findings(published, counts, MATRICES).set_index("check")


@pytest.fixture(scope="module")
def findings():
    counts = consistency.manifest_counts(*(read_manifest(MANIFESTS / f"{name}.csv") for name in COHORTS))
    assert [list(counts["internal"]), list(counts["external"]), counts["patients"]] == [INTERNAL, EXTERNAL, 4130]
    return audit(counts=counts)


# --- the pure functions ---


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 10), st.integers(0, 3), st.data())
def test_grim_accepts_every_real_percentage(n, runs, decimals, data):
    k = data.draw(st.integers(0, n * runs))
    assert arithmetic.grim(round(100 * k / (n * runs), decimals), n, runs, decimals)
    cut = 100 * k * 10**decimals // (n * runs) / 10**decimals
    assert arithmetic.grim(cut, n, runs, decimals, truncated=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_grim_equals_trying_every_count(n, runs, tenths, truncated):
    # In thousandths of a point x total, all whole numbers: printed is 100 x tenths, 100 k / total is 100000 k.
    total, printed = n * runs, 100 * tenths
    low, high = (printed, printed + 100) if truncated else (printed - 50, printed + 50)
    possible = [k for k in range(total + 1) if low * total <= 100000 * k < high * total or not truncated and 100000 * k == high * total]
    assert arithmetic.grim(tenths / 10, n, runs, 1, truncated) == bool(possible)


def test_grim_of_the_published_accuracy():
    assert [n for n in range(1630, 1670) if arithmetic.grim(76.94, n)] == [1635, 1639, 1648, 1652, 1661, 1665]
    assert sum(arithmetic.grim(76.94, n) for n in range(1200, 1701)) == 68
    assert not arithmetic.grim(76.94, 1650) and not arithmetic.grim(76.94, 1650, truncated=True)
    assert not arithmetic.grim(76.94, 1650, 5, 2) and arithmetic.grim(76.94, 1650, 10, 2)


def test_grim_at_the_edges_of_rounding_and_cutting():
    # 1/8 = 12.5 %: half way, so 12 and 13 are both possible by rounding; by cutting only 12.
    assert [arithmetic.grim(p, 8, 1, 0) for p in (12, 13)] == [True, True]
    assert [arithmetic.grim(p, 8, 1, 0, truncated=True) for p in (12, 13)] == [True, False]
    # 1/3 = 33.33..., 2/3 = 66.66...
    assert arithmetic.grim(66.67, 3) and not arithmetic.grim(66.66, 3)
    assert arithmetic.grim(66.66, 3, truncated=True) and not arithmetic.grim(66.67, 3, truncated=True)
    assert arithmetic.grim(0, 5) and arithmetic.grim(100, 5) and not arithmetic.grim(100.1, 5, 1, 1)
    # Two runs of 3 share sixths: 16.67 is no third, but their mean.
    assert not arithmetic.grim(16.67, 3) and arithmetic.grim(16.67, 3, 2)
    for n, runs in ((0, 1), (5, 0)):
        with pytest.raises(StudyError, match="at least one"):
            arithmetic.grim(50, n, runs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(0, 100))
def test_nearest_is_the_nearest_of_all(n, percent):
    every = 100 * np.arange(n + 1) / n
    assert abs(arithmetic.nearest(percent, n) - percent) == pytest.approx(np.abs(every - percent).min())


# Two grades matter: 10 pictures of grade 0 (8 right, 2 called 1) and 10 of grade 1 (5 right, 5 called 0).
SENSITIVITY, SPECIFICITY, TWO = [80, 50, 0, 0, 0], [50, 80, 100, 100, 100], [10, 10, 0, 0, 0]


def test_functions_of_a_matrix_by_hand():
    assert arithmetic.fp_fn_balance(SENSITIVITY, SPECIFICITY, TWO) == pytest.approx({"false_positives": 7, "false_negatives": 7, "accuracy_from_specificity": 65})
    assert arithmetic.implied_accuracy(SENSITIVITY, TWO) == pytest.approx(65)
    precision, f1 = arithmetic.implied_precision(SENSITIVITY, SPECIFICITY, TWO)
    assert precision[:2] == pytest.approx([100 * 8 / 13, 100 * 5 / 7]) and f1[:2] == pytest.approx([1600 / 23, 1000 / 17])
    assert np.isnan(precision[2:]).all() and np.isnan(f1[2:]).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_real_matrices_balance_and_reproduce_their_metrics(seed):
    cm = np.random.default_rng(seed).integers(1, 60, (5, 5))
    counts, sensitivity, specificity = rates(cm)
    balance = arithmetic.fp_fn_balance(sensitivity, specificity, counts)
    assert balance["false_positives"] == pytest.approx(balance["false_negatives"])
    values = metrics.from_confusion(cm)
    assert balance["accuracy_from_specificity"] == pytest.approx(100 * values["accuracy"])
    assert arithmetic.implied_accuracy(sensitivity, counts) == pytest.approx(100 * values["accuracy"])
    precision, f1 = arithmetic.implied_precision(sensitivity, specificity, counts)
    assert (precision.mean(), f1.mean()) == pytest.approx((100 * values["macro_precision"], 100 * values["macro_f1"]))
    share = 100 * counts[[0, 3, 4]].sum() / counts.sum()
    assert arithmetic.largest_share(sensitivity, specificity, slack=1e-6) >= share - 1e-6


def rates(cm):
    """Pictures, sensitivity and specificity (percent) of each grade."""
    counts, hits, others = cm.sum(1), np.diag(cm), cm.sum() - cm.sum(1)
    return counts, 100 * hits / counts, 100 * (others - (cm.sum(0) - hits)) / others


def test_largest_share_by_hand():
    # Terms .2 for the three grades and .6 for the others; needed is .4: half of each.
    specificity = np.full(5, 92.0)
    assert arithmetic.largest_share([88, 48, 48, 88, 88], specificity) == pytest.approx(50)
    # A slack of .1 asks for .3 only: a quarter on .6, three quarters on .2.
    assert arithmetic.largest_share([88, 48, 48, 88, 88], specificity, slack=0.1) == pytest.approx(75)
    assert arithmetic.largest_share([88, 48, 48, 60, 88], specificity) == pytest.approx(100)  # .48 and .2 balance alone
    assert np.isnan(arithmetic.largest_share(np.full(5, 88), specificity))  # .2 everywhere, no mix reaches .4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_wilson_equals_statsmodels(n, data):
    k = data.draw(st.integers(0, n))
    low, high = proportion_confint(k, n, method="wilson")
    assert arithmetic.wilson(100 * k / n, n) == pytest.approx((100 * low, 100 * high), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 2000), st.floats(20, 80), st.floats(0.2, 4))
def test_interval_widths_equal_statsmodels_and_return_their_pictures(n, percent, factor):
    low, high = (100 * end for end in proportion_confint(n * percent / 100, n, method="normal"))
    assume(0 < low and high < 100)
    assert arithmetic.ci_width(percent, n) == pytest.approx(high - low)
    ends = percent + factor * (low - percent), percent + factor * (high - percent)
    assert arithmetic.ci_width_ratio(percent, *ends, n) == pytest.approx(factor)
    assert arithmetic.pictures_of_width(percent, *ends) == pytest.approx(n / factor**2)


def test_intervals_without_width_are_undefined():
    assert np.isnan(arithmetic.ci_width_ratio([0, 100], [0, 100], [1, 100], [10, 10])).all()
    assert np.isnan(arithmetic.pictures_of_width(50, 40, 40))


def test_bootstrap_width_error_covers_simulated_bootstraps():
    generator, n, p, draws = np.random.default_rng(0), 221, 0.8, 1000
    means = generator.binomial(n, p, (3000, draws)) / n
    widths = 100 * np.diff(np.quantile(means, [0.025, 0.975], axis=1), axis=0)[0]
    off = np.abs(widths - arithmetic.ci_width(100 * p, n))
    allowed = arithmetic.bootstrap_width_error(100 * p, n, draws)
    assert (off <= allowed).mean() > 0.995 and allowed < 4 * off.std() + 200 / n
    assert arithmetic.bootstrap_width_error(80, n, 10**9) == pytest.approx(100 / n, rel=0.01)


def test_infonce_floor_equals_a_simulation_and_its_limits():
    floors = [round(losses.infonce_floor(INTERNAL, batch), 2) for batch in (16, 32, 64, 128)]
    assert floors == [1.51, 2.13, 2.79, 3.47]
    assert losses.infonce_floor([1, 0, 0, 0, 0], 64) == pytest.approx(np.log(64))
    assert losses.infonce_floor([1, 1, 1, 1, 1], 1) == 0
    batches = np.random.default_rng(0).choice(5, (4000, 64), p=np.array(INTERNAL) / 8260)
    same = (batches[:, :, None] == batches[:, None, :]).sum(2)
    assert np.log(same).mean() == pytest.approx(losses.infonce_floor(INTERNAL, 64), abs=0.005)


# --- the findings ---


def test_the_audit_finds_what_was_computed_by_hand(findings):
    value, expected = findings["value"], findings["expected"]
    found = {
        "accuracy implied by the sensitivities": 76.245,
        "errors implied by the accuracy": 380.5,
        "accuracy implied by the specificities": 67.7,
        "largest share of grades 0, 3, 4 in balance": 18.9,
        "macro precision implied": 69.3,
        "macro F1 implied": 72.6,
        "macro sensitivity from the grades": 76.86,
        "mean AUC of the grades": 0.888,
        "sum of false positives": 532.8,
        "pictures that the interval widths imply, summed": 3999,
        "intervals off-centre in the same direction": 5,
        "train minus external accuracy": 19.97,
        "95 % Wilson interval of the accuracy, low": 74.8,
        "95 % Wilson interval of the accuracy, high": 78.9,
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
        decimals = len(str(known).partition(".")[2])
        assert round(value[check], decimals) == known, check
    assert [round(value[f"interval width ratio, grade {grade}"], 2) for grade in range(5)] == [0.81, 0.80, 0.48, 0.59, 0.50]
    assert round(expected["sum of false positives"], 1) == 392.0 and round(expected["largest share of grades 0, 3, 4 in balance"], 1) == 57.0
    gaps = [abs(value[check] - expected[check]) for check in (f"sensitivity of grade {g} nearest to k of {EXTERNAL[g]}" for g in range(5))]
    assert np.round(gaps, 3).tolist() == [0.072, 0.053, 0.117, 0.214, 0.09]
    assert "529.5 to 536.1" in findings.loc["sum of false positives", "note"]
    assert "not attainable" in findings.loc["external accuracy nearest to k of 1650", "note"]
    assert "11.5 pictures" in findings.loc["accuracy implied by the sensitivities", "note"]


def test_a_check_that_cannot_fail_is_left_out(findings):
    """A printed decimal of 0.1 points is wider than one of 1,650 pictures, but not than one of 800."""
    assert not findings.index.str.contains("VGG19 nearest").any()
    assert audit(counts=COUNTS | {"external": [160] * 5}).index.str.contains("VGG19 nearest").any()


def test_what_rounding_explains_agrees_and_what_it_does_not_is_said(findings):
    agreeing = set(findings.index[findings["verdict"].isin(["consistent", "same"])])
    assert agreeing == {
        "macro sensitivity from the grades",
        "mean AUC of the grades",
        "accuracy repeated: table 4, Fine-tuned CLIP",
        "accuracy repeated: table 5, Bashir 2026",
        "train minus external accuracy",
        "internal pictures",
        "external pictures",
    }
    assert (findings["verdict"] == "reference").equals(findings["expected"].isna())
    gap, tolerance = (findings["value"] - findings["expected"]).abs(), findings["tolerance"]
    compared = findings["verdict"] != "reference"
    assert (findings["verdict"].isin(["consistent", "same"])[compared] == (gap <= tolerance + 1e-9)[compared]).all()
    counts = findings["unit"].eq("count") & compared
    assert set(findings["verdict"][counts]) == {"same", "differs"} and counts.sum() == 3
    assert (tolerance[compared] >= 0).all() and findings.index.is_unique and findings["note"].str.len().gt(0).all()


def test_tolerances_are_what_rounding_moves(findings):
    """By hand: half a unit of each printed number, in pictures or points."""
    tolerance = findings["tolerance"]
    assert tolerance["sum of false positives"] == pytest.approx(0.0005 * 4 * 1650 + 0.0005 * 1650)
    assert tolerance["accuracy implied by the sensitivities"] == pytest.approx(0.05 + 0.005)
    assert tolerance["accuracy implied by the specificities"] == pytest.approx(0.2 + 0.005)
    assert tolerance["errors implied by the accuracy"] == pytest.approx(0.00005 * 1650 + 0.0005 * 1650)
    assert tolerance["mean AUC of the grades"] == pytest.approx(0.01)
    assert tolerance["train minus external accuracy"] == pytest.approx(0.5 + 0.005 + 0.005)
    assert tolerance["external accuracy nearest to k of 1650"] == pytest.approx(0.005)


def unused(row):
    """Rows that enter no finding: no other printed number bears on them, or the cited source alone can."""
    best = PUBLISHED.loc[PUBLISHED["item"].eq("table_5") & PUBLISHED["kind"].eq("citation"), "value"].max()
    return (
        row.kind == "speed" or row.unit == "years"
        or row.metric == "p_value"
        or (row.item, row.kind) == ("table_4", "model")  # one printed decimal is wider than one of 1,650 pictures
        or row.kind == "citation" and row.value < best
        or (row.item, row.row) == ("table_2", "train") and row.metric in ("macro_precision", "macro_f1")
    )


CELLS = [(row.Index, column) for row in PUBLISHED.itertuples() if not unused(row) for column in ("value", "ci_low", "ci_high") if pd.notna(getattr(row, column))]


@pytest.fixture(scope="module")
def printed_findings():
    return audit().reset_index()


@pytest.mark.parametrize(("index", "column"), CELLS, ids=[f"{'-'.join(PUBLISHED.loc[index, ['item', 'row', 'metric']])}-{column}" for index, column in CELLS])
@pytest.mark.parametrize("change", [-0.97, 1.3])
def test_every_used_number_moves_a_finding(printed_findings, index, column, change):
    changed = PUBLISHED.astype({"value": float})
    changed.loc[index, column] += change * (0.05 if changed.loc[index, "unit"] == "ratio" else 1)
    assert not audit(changed).reset_index().equals(printed_findings)


@pytest.mark.parametrize("name", ["external", "internal", "patients"])
def test_the_counts_move_the_findings(printed_findings, name):
    counts = COUNTS | {name: 4000 if name == "patients" else [300, 400, 300, 200, 100]}
    assert not audit(counts=counts).reset_index().equals(printed_findings)


def test_the_matrices_move_the_findings():
    swapped = MATRICES.assign(predicted_0=MATRICES["predicted_1"], predicted_1=MATRICES["predicted_0"])
    table = consistency.findings(PUBLISHED, COUNTS, swapped).set_index("check")["value"]
    assert table["re-weighted to the external grade mix: Chen VGG19 ordinal"] < 50
    with pytest.raises(StudyError, match="Chen VGG19 ordinal has the true grades"):
        consistency.findings(PUBLISHED, COUNTS, MATRICES.drop(index=2))


def test_a_corrected_number_agrees():
    """The findings follow the numbers: with the implied accuracy and the true patients printed, these checks agree."""
    changed = PUBLISHED.copy()
    changed.loc[(changed["metric"] == "accuracy") & (changed["value"] == 76.94), "value"] = 76.24
    changed.loc[changed["metric"] == "participants", "value"] = 4130
    verdicts = audit(changed)["verdict"]
    for check in ("external accuracy nearest to k of 1650", "accuracy implied by the sensitivities", "errors implied by the accuracy", "internal patients"):
        assert verdicts[check] in ("consistent", "same"), check


def consistent(seed, bootstrap=False):
    """The published table as it would be if it were printed from one confusion matrix, and the counts."""
    generator = np.random.default_rng(seed)
    external, internal = generator.integers(150, 600, 5), generator.integers(100, 3000, 5)
    recall = generator.uniform(0.5, 0.9, 5)
    wrong = generator.random((5, 5)) * (1 - np.eye(5))
    shares = np.diag(recall) + (1 - recall)[:, None] * wrong / wrong.sum(1, keepdims=True)
    cm = np.array([generator.multinomial(n, share) for n, share in zip(external, shares, strict=True)])
    n, values = cm.sum(), metrics.from_confusion(cm)
    counts, sensitivity, specificity = rates(cm)
    half = arithmetic.ci_width(sensitivity, counts) / 2
    low, high = sensitivity - half, sensitivity + half
    if bootstrap:
        low, high = 100 * np.quantile(generator.binomial(counts, sensitivity / 100, (1000, 5)) / counts, [0.025, 0.975], axis=0)
    auc, train = generator.uniform(0.7, 0.99, 5), generator.uniform(80, 99, 4)
    names = ("accuracy", "macro_precision", "macro_sensitivity", "macro_f1")
    numbers = {("table_2", "train", name): round(value, 2) for name, value in zip(names, train, strict=True)}
    numbers |= {("table_2", "test", name): round(100 * float(values[name]), 2) for name in names}
    for grade in range(5):
        numbers[("table_3", str(grade), "sensitivity")] = round(sensitivity[grade], 1)
        numbers[("table_3", str(grade), "specificity")] = round(specificity[grade], 1)
        numbers[("table_3", str(grade), "auc")] = round(auc[grade], 2)
    numbers |= {("table_4", name, "accuracy"): round(100 * generator.integers(n) / n, 1) for name in ("VGG19", "ResNet50", "MobileNet", "ViT")}
    numbers |= {("text", "macro", "auc"): round(auc.mean(), 2), ("text", "data", "train_images"): internal.sum(), ("text", "data", "participants"): 77}
    numbers |= {("text", "data", "external_images"): n, ("text", "discussion", "train_test_drop"): round(train[0] - 100 * float(values["accuracy"]))}
    published = PUBLISHED.astype({"value": float}).set_index(["item", "row", "metric"]).sort_index()
    for key, value in numbers.items():
        published.loc[key, "value"] = value
    for grade in range(5):
        published.loc[("table_3", str(grade), "sensitivity"), ["ci_low", "ci_high"]] = np.round([low[grade], high[grade]], 1)
    for key in published.index[published["kind"] == "duplicate"]:
        published.loc[key, "value"] = numbers["table_2", "test", key[2]]
    return published.reset_index(), {"external": counts, "internal": internal, "patients": 77}


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_numbers_printed_from_one_matrix_agree_everywhere(seed):
    table = audit(*consistent(seed))
    assert set(table["verdict"]) == {"consistent", "same", "reference"} and (table["follows_from"] == "").all()
    baselines = table.index.str.contains("^accuracy of (?:VGG19|ResNet50|MobileNet|ViT) ")
    assert table["verdict"][~baselines].isin(["consistent", "same"]).sum() == audit()["expected"].notna().sum()


def test_honest_bootstrap_intervals_agree():
    tables = [audit(*consistent(seed, bootstrap=True)) for seed in range(30)]
    widths = pd.concat([table[table.index.str.contains("width")] for table in tables])
    assert len(widths) == 30 * 6 and (widths["verdict"] == "consistent").mean() > 0.98


def test_the_audit_needs_the_published_rows_and_every_grade():
    empty = PUBLISHED.head(0)
    with pytest.raises(StudyError, match="0 rows for table_2"):
        audit(empty)
    with pytest.raises(StudyError, match="2 rows for table_3, 4, auc"):
        audit(pd.concat([PUBLISHED, PUBLISHED[(PUBLISHED["row"] == "4") & (PUBLISHED["metric"] == "auc")]]))
    with pytest.raises(StudyError, match="all five are needed"):
        audit(counts=COUNTS | {"external": [10, 10, 10, 10, 0]})


def test_an_interval_without_meaning_is_a_reference():
    changed = PUBLISHED.astype({"value": float})
    changed.loc[(changed["metric"] == "sensitivity") & (changed["row"] == "4"), ["value", "ci_low", "ci_high"]] = [100, 100, 100]
    table = audit(changed)
    for check in ("interval width ratio, grade 4", "pictures that the interval widths imply, summed"):
        assert table.loc[check, "verdict"] == "reference" and np.isnan(table.loc[check, "value"])
    assert table.loc["interval width ratio, grade 3", "verdict"] == "inconsistent"


def test_per_grade_gives_the_table_by_hand():
    table = consistency.per_grade(PUBLISHED, COUNTS)
    assert table["kl_grade"].tolist() == [0, 1, 2, 3, 4] and table["n"].tolist() == EXTERNAL
    assert table["sensitivity"].tolist() == [81.2, 68.5, 72.1, 79.4, 83.1] and table["printed_high"].tolist() == [83.9, 71.8, 74.8, 82.5, 85.6]
    known = {
        "implied_precision": ([82.9, 68.3, 52.7, 64.0, 78.7], 1),
        "implied_f1": ([82.0, 68.4, 60.9, 70.9, 80.9], 1),
        "wilson_low": ([77.6, 64.2, 66.0, 73.6, 77.4], 1),
        "wilson_high": ([84.3, 72.5, 77.5, 84.2, 87.6], 1),
        "width_ratio": ([0.81, 0.80, 0.48, 0.59, 0.50], 2),
        "n_of_width": ([775, 739, 1022, 633, 830], 0),
    }
    for column, (values, decimals) in known.items():
        assert table[column].round(decimals).tolist() == values, column
    assert table["attainable"].tolist() == ["no", "only if cut", "no", "no", "no"]


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_per_grade_of_consistent_numbers_is_attainable(seed):
    published, counts = consistent(seed)
    table = consistency.per_grade(published, counts)
    assert set(table["attainable"]) == {"yes"}
    np.testing.assert_allclose(table["n_of_width"], table["n"], rtol=0.06)
    assert (table["wilson_low"] < table["sensitivity"]).all() and (table["sensitivity"] < table["wilson_high"]).all()


def test_wilson_interval_of_no_pictures_is_unknown():
    assert np.isnan(arithmetic.wilson(50, 0)).all()
