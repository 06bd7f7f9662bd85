"""The scorecard: every published row once, judged by its own rule; only a real run is scored as a model."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from koa_lib import comparison, metrics, profile, stats
from koa_lib.errors import StudyError
from koa_lib.paper import claims, scorecard, speed, verdicts
from koa_lib.paper.scorecard import COLUMNS, FOUND, VERDICTS, Ours, over_runs
from koa_lib.profile import ROOT

FOLDER = ROOT / "data_manifests/published"
TABLES = {
    name: pd.read_csv(FOLDER / f"{name}.csv")
    for name in ("jpm2026", "other_systems", "claims", "literature", "confusion_matrices")
}
KEY = ["item", "row", "metric"]
PRINTED = TABLES["jpm2026"].assign(source="jpm2026")


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A real run of the paper's profile on all pictures; its timings are given."""
    whole = {
        role: {"pictures": number, "not_as_listed": 0}
        for role, number in (("training", 8260), ("external", 1650))
    }
    monkeypatch.setattr(speed, "measured", lambda study: speed.Speed(np.full(20, 160.0), 50.0, 2.0, 2))
    return SimpleNamespace(
        published=FOLDER,
        synthetic=False,
        dry=False,
        seed=0,
        run_dir=tmp_path,
        data_note=lambda: whole,
        profile=replace(profile.load("paper"), draws=50),
    )


INSIDE, OUTSIDE = knees(200, "a"), knees(300, "b", 1)


def trained(name="clip", right=0.4, parts=("train", "external"), folds=range(1, 6)):
    """Predictions of the folds of an arm."""
    rows = {"train": INSIDE, "external": OUTSIDE}
    return results(
        *(
            predicted(rows[split], right, fold, arm=name, fold=fold, split=split)
            for fold in folds
            for split in parts
        )
    )


RUNS, WITHOUT = trained(), trained(parts=("train",))
NAMES = ("ViT", "ResNet50", "MobileNet", "VGG19", "Wide ResNet")
BASELINES = {name: trained(name, 0.2, ("external",), (1, 3)) for name in NAMES}


def card(study, runs=RUNS, others=BASELINES, systems=None):
    return verdicts.scorecard(study, runs, others, systems or {})


def line(table, item, row, metric):
    found = table[(table[KEY] == [item, row, metric]).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("runs", [RUNS, WITHOUT])
def test_every_published_row_and_claim_stands_once_with_a_verdict_of_its_kind(study, runs):
    table = card(study, runs)
    assert list(table.columns) == COLUMNS
    main = [("jpm2026", *row) for row in TABLES["jpm2026"][KEY].astype(str).itertuples(index=False)]
    systems = [
        tuple(row) for row in TABLES["other_systems"][["system", *KEY]].astype(str).itertuples(index=False)
    ]
    said = [(row.source, row.item, row.claim, "claim") for row in TABLES["claims"].itertuples()]
    rest = table[table["source"] != "arithmetic"]
    assert sorted(rest[["source", *KEY]].itertuples(index=False, name=None)) == sorted(
        [*main, *systems, *said]
    )
    assert table["model"].is_monotonic_decreasing
    assert set(table.loc[table["model"], "verdict"]) <= set(VERDICTS) and set(
        table.loc[~table["model"], "verdict"]
    ) <= set(FOUND)
    assert (
        table["rule"].str.len().gt(0).all()
        and table.loc[table["verdict"].isin(["inconclusive", "not run"]), "reason"].str.len().gt(0).all()
    )
    assert table.loc[table["verdict"] == "not run", "ours"].isna().all()


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"synthetic": True}, "demo", "synthetic"),
        ({"dry": True}, "paper", "dry run"),
        ({}, "oai", "koa-conv is not"),
    ],
)
def test_a_run_that_is_not_the_papers_never_scores_a_model_but_shows_its_numbers(study, changes, name, why):
    table = card(
        SimpleNamespace(**{**study.__dict__, **changes, "profile": replace(profile.load(name), draws=50)})
    )
    assert set(table.loc[table["model"], "verdict"]) == {"not comparable", "not run"}
    shown = table[table["verdict"] == "not comparable"]
    assert len(shown) >= 30 and shown["ours"].notna().all() and shown["reason"].str.contains(why).all()
    real = card(study)
    pd.testing.assert_frame_equal(
        table[~table["model"]], real[~real["model"]]
    )  # what needs no model is judged in every profile


def test_rows_without_a_model_speak_their_own_words(study):
    table = card(study)
    for key, ours, verdict in (
        (("text", "data", "train_images"), 8260, "same"),
        (("text", "data", "participants"), 4130, "differs"),
        (("table_4", "Fine-tuned CLIP", "accuracy"), 76.94, "consistent"),
        (("text", "conclusion", "macro_sensitivity"), 76.85, "inconsistent"),
        (("table_5", "Tiulpin 2018", "accuracy"), 66.71, "same"),
        (("table_5", "Chen 2019", "accuracy"), 69.7, "differs"),
        (("abstract", "pre-training", "images"), 1251655, "differs"),
        (("text", "runtime", "inference_ms"), 160, "shown"),
    ):
        assert tuple(line(table, *key)[["ours", "verdict"]]) == (ours, verdict), key
    assert "1,251,655 is 1,300,000" in line(table, "abstract", "pre-training", "images")["reason"]
    assert line(table, "table_5", "Antony 2017", "accuracy")["verdict"] == "not run"
    assert (
        line(table, "text", "discussion", "train_test_drop")["relation"]
        == line(table, "text", "runtime", "training_minutes")["relation"]
        == "about"
    )


def test_what_follows_from_one_contradiction_names_it_and_only_what_is_inconsistent_does(study):
    table = card(study)
    followers = table[table["follows_from"] != ""]
    heads = table[table["row"].isin(followers["follows_from"])]
    assert (
        set(followers["verdict"]) == {"inconsistent"} == set(heads["verdict"])
        and (heads["follows_from"] == "").all()
    )
    assert set(followers.loc[followers["follows_from"] == "sum of false positives", "row"]) == {
        "accuracy implied by the specificities",
        "largest share of grades 0, 3, 4 in balance",
        "macro precision implied",
        "macro F1 implied",
    }


@pytest.mark.parametrize(("file", "kinds"), [("jpm2026", ["fact", "duplicate"]), ("other_systems", ["fact"])])
def test_another_printed_number_flips_the_verdict(study, tmp_path, file, kinds):
    for name, table in TABLES.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    study.published = tmp_path
    before, table = card(study), TABLES[file].copy()
    chosen = table["kind"].isin(kinds)
    table.loc[chosen, "value"] += 1.0
    table.to_csv(tmp_path / f"{file}.csv", index=False)
    both = before.merge(card(study), on=["source", *KEY], suffixes=("", "_after"))
    held = {(row.row, row.metric) for row in table[chosen].itertuples()}
    moved = np.array([pair in held for pair in zip(both["row"], both["metric"], strict=True)])
    agreed = both[both["verdict"].isin(["same", "consistent"]) & moved]
    assert len(agreed) and set(agreed["verdict_after"]) <= {"differs", "inconsistent"}


@pytest.mark.parametrize(
    ("right", "verdict"), [(0.9, "replicated"), (0.2, "not replicated"), (-1, "not replicated")]
)
def test_mcnemar_is_one_row_with_a_direction(study, right, verdict):
    runs = trained(right=right)
    table = card(study, runs)
    row = line(table, "text", "mcnemar", "p_value")
    tests = comparison.paired_tests(study, runs, {"Wide ResNet": BASELINES["Wide ResNet"]}, "external")
    assert right == 0.2 or tests["p_exact"][0] < 0.05  # as sure behind as ahead
    assert (row["ours"], row["verdict"], row["unit"], row["relation"], row["rule"]) == (
        tests["p_exact"][0],
        verdict,
        "p",
        "<",
        scorecard.TESTED,
    )
    assert not table["row"].str.contains("Wide ResNet").any()


def test_a_baseline_that_answers_one_grade_says_so_in_its_rows(study):
    flat = results(
        predicted(OUTSIDE, fold=3).assign(**{name: float(name == "p0") for name in metrics.PROBABILITIES})
    )
    table = card(study, others={**BASELINES, "Wide ResNet": flat, "VGG19": flat})
    told = table.loc[table["reason"].str.contains("nearly always grade 0"), "row"]
    assert list(told) == ["VGG19", "mcnemar", TABLES["claims"]["claim"][0]]


def test_what_is_absent_says_why(study):
    study.profile = replace(profile.load("oai"), draws=50)
    table = card(study, others={"MobileNet": BASELINES["MobileNet"]})
    assert "hours on two cores" in line(table, "table_4", "VGG19", "accuracy")["reason"]
    alone = card(study, WITHOUT, {})
    external = alone[(alone["source"] == "jpm2026") & alone["model"] & (alone["row"] != "train")]
    assert set(external["verdict"]) == {"not run"} and set(external["reason"]) == {comparison.NO_EXTERNAL}
    assert alone.loc[alone["source"] == "CLIP-KOA", "reason"].str.contains("notebook 08").all()
    assert line(alone, "repository", "KL grade", "accuracy")["reason"].startswith("its split was not found")
    assert "no MRI in the study" in set(alone["reason"])


def test_results_of_other_systems_can_be_given(study):
    key, said = (
        ("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"),
        TABLES["claims"].query("source == 'CLIP-KOA'").iloc[0],
    )
    answer = claims.Answer(1.0, 0.2, 1.8, "points", "replicated", "clear")
    given = {key: over_runs([71, 71.2, 71.4, 70.8, 70.9]), tuple(said[["source", "item", "claim"]]): answer}
    table = card(study, systems=given)
    claim = line(table, said["item"], said["claim"], "claim")
    assert line(table, *key[1:])["verdict"] == "replicated" == claim["verdict"]
    # A claim's interval is of groups of pictures, never of trainings.
    assert (claim["boot_low"], claim["boot_high"]) == (0.2, 1.8) and np.isnan(claim["ci_low"])
    assert (card(study)["verdict"] != table["verdict"]).sum() == 2
    with pytest.raises(StudyError, match="no row"):
        card(study, systems={("CLIP-KOA", "abstract", "x", "y"): Ours(1.0)})


@pytest.mark.parametrize(
    ("values", "published", "verdict"),
    [
        ([75.5, 76, 76.5, 76, 76], 76.94, "replicated"),  # near, and known well
        ([60, 90, 70, 85, 77], 76.94, "inconclusive"),  # near, but known badly
        ([30, 31, 32, 31, 30], 76.94, "not replicated"),  # far, and no further training reaches it
        ([60, 80, 65, 78, 70], 76.94, "inconclusive"),  # off by 6, but a further training may give it
        ([72, 72.1, 72.2, 72, 72.1], 76.94, "not replicated"),
        ([76.9, 76.9, 76.9, 76.9], 76.94, "inconclusive"),  # four trainings
        ([76.94] * 5, 76.94, "replicated"),
    ],
)
def test_the_rule_of_model_rows(values, published, verdict):
    assert scorecard.agreement(over_runs(values), published, 3.0)[0] == verdict


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=5, max_size=15), st.floats(0, 100), st.sampled_from([3.0, 0.03]))
def test_the_rule_by_hand(values, published, margin):
    k, s = len(values), np.std(values, ddof=1)
    quantile, off = student.ppf(0.975, k - 1), np.mean(values) - published
    half, reach = quantile * s / math.sqrt(k), quantile * s * math.sqrt(1 + 1 / k)
    if min(abs(abs(off) - margin), abs(abs(off) - reach), abs(half - margin)) < 1e-6:
        return  # an edge that rounding decides
    far = abs(off) > margin
    expected = (
        "not replicated"
        if far and abs(off) > reach
        else "replicated"
        if not far and half <= margin
        else "inconclusive"
    )
    assert scorecard.agreement(over_runs(values), published, margin)[0] == expected


@given(st.integers(0, 10**7), st.integers(0, 4))
def test_a_rounded_number_agrees_and_one_beyond_its_last_digit_does_not(number, decimals):
    found = number / 10**5
    printed = round(found, decimals)
    assert scorecard.same_as_printed(found, printed, count=False)
    assert not scorecard.same_as_printed(printed + 1.01, printed, count=False)


@pytest.mark.parametrize(
    ("found", "printed", "count", "same"),
    [
        (1251655, 1300000, True, True),
        (1251655, 1200000, True, False),
        (19, 20, True, False),
        (71.4, 70, False, False),
        (2999, 3000, True, True),
    ],
)
def test_a_count_may_be_printed_rounded_but_not_cut(found, printed, count, same):
    assert scorecard.same_as_printed(found, float(printed), count) == same


def test_measured_speaks_the_published_units_and_shows_one_fold_beside_the_mean():
    external = RUNS.of(split="external")
    overall, grade = (
        scorecard.measured("table_2", "test", external, 3),
        scorecard.measured("table_3", "", external, 3),
    )
    runs = [external.graded(fold=fold) for fold in range(1, 6)]
    accuracy = [metrics.summary(run["kl_grade"], run[metrics.PROBABILITIES])["accuracy"] for run in runs]
    found = overall["jpm2026", "table_2", "test", "accuracy"]
    assert found[:3] == pytest.approx(stats.run_interval(100 * np.array(accuracy))) and found.runs == 5
    assert (
        grade["jpm2026", "table_3", "0", "sensitivity"].value
        > 1
        > grade["jpm2026", "table_3", "0", "auc"].value
    )
    known = set(map(tuple, PRINTED[["source", *KEY]].astype(str).to_numpy()))
    assert {*overall, *grade, *scorecard.measured("table_4", "ViT", external, 3)} <= known
    assert scorecard.measured("table_4", "ViT", external.of(fold=9), 3) == {}
    # The same interval as in Table 4: one quantity has one interval in the report.
    row = comparison.accuracy_row(runs[2], RUNS.draws, RUNS.seed)
    assert (found.boot_low, found.boot_high) == pytest.approx((100 * row["ci_low"], 100 * row["ci_high"]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: pd.concat([table, table.tail(1)]), "twice"),
        (lambda table: table.assign(kind="rumour"), "kind 'rumour'"),
        (lambda table: table[table["item"] != "table_2"], "repeats no row"),
    ],
)
def test_a_broken_table_is_refused(change, match):
    with pytest.raises(StudyError, match=match):
        scorecard.scorecard(change(PRINTED), {}, comparable=True)


def test_reasons_and_known_keys_are_demanded():
    with pytest.raises(StudyError, match="Say why"):
        scorecard.scorecard(PRINTED, {}, comparable=False)
    with pytest.raises(StudyError, match="no row"):
        scorecard.scorecard(PRINTED, {("jpm2026", "table_9", "x", "y"): "no"}, comparable=True)


@pytest.mark.parametrize(
    ("training", "comparable", "why"),
    [
        ({}, True, ""),
        ({"pictures": 78}, False, "78 of 8,260 training pictures"),
        ({"not_as_listed": 3}, False, "3 training pictures that are not as listed"),
    ],
)
def test_a_part_of_the_pictures_or_lossy_copies_are_not_the_papers_data(study, training, comparable, why):
    study.data_note = lambda: {
        "training": {"pictures": 8260, "not_as_listed": 0, **training},
        "external": {"pictures": 1650, "not_as_listed": 0},
    }
    assert verdicts.comparability(study) == (comparable, why)


@pytest.mark.parametrize(("comparable", "verdict"), [(True, "not replicated"), (False, "not comparable")])
def test_what_nothing_reaches_was_measured_all_the_same(comparable, verdict):
    published = (
        TABLES["other_systems"].query("metric == 'label_fraction'").rename(columns={"system": "source"})
    )
    ours = {tuple(published.iloc[0][["source", *KEY]]): Ours(math.inf)}
    (row,) = scorecard.scorecard(published, ours, comparable, "phantoms").itertuples()
    assert row.verdict == verdict and scorecard.NOTHING_REACHES in row.reason and math.isnan(row.ours)


def test_the_headline_picture_holds_published_values_without_and_ours_with_an_interval(study):
    drawn = verdicts.against_published(card(study), synthetic=True)
    assert len(drawn) == 2 * len(verdicts.HEADLINES) and drawn["value"].dropna().between(0, 1).all()
    published, ours = (drawn[drawn["which"] == name] for name in drawn["which"].unique())
    assert (
        published["value_low"].isna().all()
        and "orientation" in published["which"].iloc[0]
        and "phantoms" in ours["which"].iloc[0]
    )
    known = ours.dropna(subset="value_low")
    assert (
        len(known) == 4
        and (known["value_low"] <= known["value"]).all()
        and (known["value"] <= known["value_high"]).all()
    )


def test_each_rule_that_is_younger_than_first_results_is_named_in_its_section():
    text = (ROOT / "reports/deviations.md.jinja").read_text(encoding="utf-8")
    sections = re.split(r"^\((d\d+)\)=$", text, flags=re.MULTILINE)
    younger = r"after\s+the\s+(first\s+results\s+.*had\s+been\s+seen|plain\s+one\s+had\s+failed)"
    told = {
        name.upper()
        for name, text in zip(sections[1::2], sections[2::2], strict=True)
        if re.search(younger, text.split("\n## ")[0])
    }
    assert told == {"D21", "D34", "D37", "D38"}  # every other rule is older
