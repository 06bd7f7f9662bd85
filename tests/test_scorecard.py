"""The scorecard: every published row once, judged by its own rule; only a real run is scored as a model."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results
from hypothesis import given
from hypothesis import strategies as st

from koa_lib import comparison, profile, stats
from koa_lib.errors import StudyError
from koa_lib.paper import claims, rules, scorecard, speed
from koa_lib.paper.rules import FOUND, VERDICTS, Ours, over_runs
from koa_lib.predictions import PROBABILITIES
from koa_lib.profile import ROOT

FOLDER = ROOT / "data_manifests/published"
TABLES = {path.stem: pd.read_csv(path) for path in FOLDER.glob("*.csv")}
KEY = ["item", "row", "metric"]
PRINTED = TABLES["jpm2026"].assign(source="jpm2026")
WHOLE = {role: {"pictures": n, "not_as_listed": 0} for role, n in (("training", 8260), ("external", 1650))}
PARTS = {"train": knees(60, "a"), "external": knees(100, "b", 1)}


def trained(name="clip", right=0.4, folds=range(1, 6)):
    """Predictions of the folds of an arm."""
    return results(*(predicted(rows, right, fold, arm=name, fold=fold, split=split)
                     for fold in folds for split, rows in PARTS.items()), draws=20)


RUNS = trained()
NAMES = ("ViT", "ResNet50", "MobileNet", "VGG19", "Wide ResNet")
BASELINES = {name: trained(name, 0.1, (1, 3)).of(split="external") for name in NAMES}


@pytest.fixture(scope="module")
def study():
    """A real run of the paper's profile on all pictures; its timings are given."""
    with pytest.MonkeyPatch.context() as patch:
        timed = pd.DataFrame({"metric": ["inference_ms", "training_minutes"], "ours": [160.0, 30.0],
                              "published": [140.0, 42.0], "note": ""})
        patch.setattr(speed, "table", lambda published: timed)
        yield SimpleNamespace(published=FOLDER, synthetic=False, dry=False, seed=0, data_note=lambda: WHOLE,
                              profile=profile.load("paper"))


def changed(study, name="paper", **values):
    return SimpleNamespace(**study.__dict__ | {"profile": profile.load(name)} | values)


@pytest.fixture(scope="module")
def card(study):
    return scorecard.scorecard(study, RUNS, BASELINES, {})


@pytest.fixture(scope="module")
def absent(study):
    """The card of a run without external pictures."""
    return scorecard.scorecard(study, RUNS.of(split="train"), {}, {})


def line(table, *key):
    (found,) = table[(table[KEY] == list(key)).all(axis=1)].itertuples()
    return found


@pytest.mark.parametrize("which", ["card", "absent"])
def test_every_published_row_and_claim_stands_once_with_a_verdict_of_its_kind(request, which):
    table = request.getfixturevalue(which)
    others, said = TABLES["other_systems"].rename(columns={"system": "source"}), TABLES["claims"]
    said = said.rename(columns={"claim": "row"}).assign(metric="claim")
    wanted = pd.concat([PRINTED, others, said])[["source", *KEY]].astype(str)
    rest = table.loc[table["source"] != "arithmetic", ["source", *KEY]]
    assert sorted(map(tuple, rest.to_numpy())) == sorted(map(tuple, wanted.to_numpy()))
    audited = table.loc[table["source"] == "arithmetic", "row"]  # nothing that is a published row already
    assert len(audited) > 15 and not audited.str.contains("repeated|train minus|patients$").any()
    assert table["model"].is_monotonic_decreasing and table["rule"].str.len().gt(0).all()
    for model, known in ((True, VERDICTS), (False, FOUND)):
        assert set(table.loc[table["model"] == model, "verdict"]) <= set(known)
    unclear = table["verdict"].isin(["inconclusive", "not run"])
    assert table.loc[unclear, "reason"].str.len().gt(0).all()
    assert table.loc[table["verdict"] == "not run", "ours"].isna().all()


def test_a_run_that_is_not_the_papers_never_scores_a_model_but_shows_its_numbers(study, card):
    table = scorecard.scorecard(changed(study, "demo", synthetic=True), RUNS, BASELINES, {})
    assert set(table.loc[table["model"], "verdict"]) == {"not comparable", "not run"}
    shown = table[table["verdict"] == "not comparable"]
    assert len(shown) >= 30 and shown["ours"].notna().all()
    # What needs no model is judged in every profile.
    pd.testing.assert_frame_equal(table[~table["model"]], card[~card["model"]])


@pytest.mark.parametrize(("name", "run", "training", "why"), [
    ("paper", {}, {}, ""),
    ("paper", {}, {"pictures": 78}, "78 of 8,260"),
    ("paper", {}, {"not_as_listed": 3}, "3 training pictures"),
    ("paper", {"dry": True}, {}, "dry"),
    ("demo", {"synthetic": True}, {}, "phantoms"),
    ("oai", {}, {}, "koa-conv"),
    ("laptop", {}, {}, ""),
])
def test_only_the_papers_model_on_all_its_pictures_can_be_compared(study, name, run, training, why):
    note = WHOLE | {"training": WHOLE["training"] | training}
    comparable, said = scorecard.comparability(changed(study, name, data_note=lambda: note, **run))
    assert comparable == (not why) and why in said


def test_another_cohort_is_never_held_against_the_papers_numbers(study):
    paper = profile.load("paper")
    swapped = replace(paper, training=paper.external, external=replace(paper.external, name="clinic"))
    run = changed(study, profile=swapped, data_note=lambda: WHOLE)
    comparable, said = scorecard.comparability(run)
    assert not comparable
    assert "training pictures of gornale2020" in said and "external pictures of clinic" in said


def test_where_only_clip_is_as_printed_other_networks_and_papers_are_not_compared(study):
    answered = {("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"): Ours(71.0)}
    card = scorecard.scorecard(changed(study, "laptop"), RUNS, BASELINES, answered)
    models = card[card["model"] & (card["verdict"] != "not run")]
    others = (models["source"] != "jpm2026") | (models["item"] == "table_4") | (
        models["row"].str.contains("mcnemar|Wide ResNet"))
    assert set(models.loc[others, "verdict"]) == {"not comparable"} and 5 < others.sum() < len(models) / 2
    assert "not comparable" not in set(models.loc[~others, "verdict"])
    assert models.loc[others, "reason"].str.contains("frozen|freezes").all()


def test_rows_without_a_model_are_judged_by_the_number_that_was_found(card):
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
        found = line(card, *key)
        assert (found.ours, found.verdict) == (ours, verdict), key
    assert line(card, "table_5", "Antony 2017", "accuracy").verdict == "not run"
    assert line(card, "text", "discussion", "train_test_drop").relation == "about"


def test_only_what_is_inconsistent_follows_from_a_contradiction(card):
    followers = card[card["follows_from"] != ""]
    heads = card[card["row"].isin(followers["follows_from"])]
    assert set(followers["verdict"]) == {"inconsistent"} == set(heads["verdict"])
    assert (heads["follows_from"] == "").all()
    assert set(followers.loc[followers["follows_from"] == "sum of false positives", "row"]) == {
        "accuracy implied by the specificities", "largest share of grades 0, 3, 4 in balance",
        "macro precision implied", "macro F1 implied"}


def test_another_printed_number_flips_the_verdict(study, card, tmp_path):
    moved = set()
    for name, table in TABLES.items():
        if name in ("jpm2026", "other_systems"):
            chosen = table["kind"].isin(["fact", "duplicate"])
            table = table.assign(value=table["value"] + chosen)
            moved |= set(table.loc[chosen, KEY].astype(str).itertuples(index=False, name=None))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    after = scorecard.scorecard(changed(study, published=tmp_path), RUNS, BASELINES, {})
    both = card.merge(after, on=["source", *KEY], suffixes=("", "_after"))
    both = both[[key in moved for key in both[KEY].itertuples(index=False, name=None)]]
    agreed = both[both["verdict"].isin(["same", "consistent"])]
    assert len(agreed) >= 5 and set(agreed["verdict_after"]) <= {"differs", "inconsistent"}


def test_mcnemar_is_one_row_with_a_direction(study, card):
    tests = comparison.paired_tests(study, RUNS, {"Wide ResNet": BASELINES["Wide ResNet"]}, "external")
    found = line(card, "text", "mcnemar", "p_value")
    assert (found.ours, found.verdict, found.relation) == (tests["p_exact"][0], "replicated", "<")
    assert not card["row"].str.contains("Wide ResNet").any()


def test_answers_of_other_systems_and_a_baseline_of_one_grade_show_in_their_rows(study, card):
    said = TABLES["claims"].query("source == 'CLIP-KOA'").iloc[0]
    key, claim = ("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"), tuple(said[["source", "item", "claim"]])
    given = {key: over_runs([71, 71.2, 71.4, 70.8, 70.9]),
             claim: claims.Answer(1.0, 0.2, 1.8, "points", "replicated", "clear")}
    one = {name: float(name == "p0") for name in PROBABILITIES}
    flat = results(predicted(PARTS["external"], fold=3).assign(**one), draws=20)
    table = scorecard.scorecard(study, RUNS, {**BASELINES, "Wide ResNet": flat, "VGG19": flat}, given)
    told = table.loc[table["reason"].str.contains("nearly always grade 0"), "row"]
    assert list(told) == ["VGG19", "mcnemar", TABLES["claims"]["claim"][0]]
    decided = line(table, *claim[1:], "claim")
    assert line(table, *key[1:]).verdict == decided.verdict == "replicated"
    assert {line(card, *key[1:]).verdict, line(card, *claim[1:], "claim").verdict} == {"not run"}
    # A claim's interval is of groups of pictures, never of trainings.
    assert (decided.boot_low, decided.boot_high) == (0.2, 1.8) and np.isnan(decided.ci_low)


def test_what_is_absent_says_why(absent):
    external = absent[(absent["source"] == "jpm2026") & absent["model"] & (absent["row"] != "train")]
    assert set(external["verdict"]) == {"not run"} and set(external["reason"]) == {comparison.NO_EXTERNAL}
    assert absent.loc[absent["source"] == "CLIP-KOA", "reason"].str.contains("notebook 08").all()


@pytest.mark.parametrize(("values", "published", "verdict"), [
    ([75.5, 76, 76.5, 76, 76], 76.94, "replicated"),  # near, and known well
    ([76.94] * 5, 76.94, "replicated"),
    ([60, 90, 70, 85, 77], 76.94, "inconclusive"),  # near, but known badly
    ([76.9] * 4, 76.9, "inconclusive"),  # four trainings
    ([30, 31, 32, 31, 30], 76.94, "not replicated"),
    # The mean is known to within 1.96, a further training to within 4.81.
    ([70, 72, 71, 73, 69], 74.1, "inconclusive"),
    ([70, 72, 71, 73, 69], 75.7, "inconclusive"),
    ([70, 72, 71, 73, 69], 75.9, "not replicated"),
    ([70, 72, 71, 73, 69], 73.9, "replicated"),
])
def test_the_rule_of_model_rows(values, published, verdict):
    assert rules.agreement(over_runs(values), published, 3.0)[0] == verdict


@given(st.integers(0, 10**7), st.integers(0, 4))
def test_a_rounded_number_agrees_and_one_beyond_its_last_digit_does_not(number, decimals):
    found = number / 10**5
    printed = round(found, decimals)
    assert rules.same_as_printed(found, printed, count=False)
    assert not rules.same_as_printed(printed + 1.01, printed, count=False)


@pytest.mark.parametrize(("found", "printed", "count", "same"), [
    (1251655, 1300000, True, True),
    (1251655, 1200000, True, False),
    (19, 20, True, False),
    (71.4, 70, False, False),
    (2999, 3000, True, True),
])
def test_a_large_count_may_be_printed_rounded_but_not_cut(found, printed, count, same):
    assert rules.same_as_printed(found, float(printed), count) == same


def test_what_trainings_give_speaks_the_published_units_and_shows_one_fold_beside_the_mean():
    external = RUNS.of(split="external")
    runs = [external.graded(fold=fold) for fold in range(1, 6)]
    rows = [comparison.accuracy_row(run, RUNS.draws, RUNS.seed) for run in runs]
    overall = rules.trained("table_2", "test", external, 3)
    found = overall["jpm2026", "table_2", "test", "accuracy"]
    accuracy = stats.run_interval(np.array([100 * row["accuracy"] for row in rows]))
    assert found[:3] == pytest.approx(accuracy) and found.runs == 5
    # The same interval as in Table 4: one quantity has one interval in the report.
    shown = [100 * rows[2][name] for name in ("ci_low", "ci_high")]
    assert [found.boot_low, found.boot_high] == pytest.approx(shown)
    grade = rules.trained("table_3", "", external, 3)
    assert grade["jpm2026", "table_3", "0", "sensitivity"].value > 1
    assert grade["jpm2026", "table_3", "0", "auc"].value < 1
    assert rules.trained("table_4", "ViT", external.of(fold=9), 3) == {}


@pytest.mark.parametrize(("table", "ours", "comparable", "told"), [
    (pd.concat([PRINTED, PRINTED.tail(1)]), {}, True, "twice"),
    (PRINTED.assign(kind="rumour"), {}, True, "rumour"),
    (PRINTED[PRINTED["item"] != "table_2"], {}, True, "table_4"),
    (PRINTED, {("jpm2026", "table_9", "x", "y"): "no"}, True, "table_9"),
    (PRINTED, {}, False, "comparable"),  # no reason is given
])
def test_what_cannot_be_scored_is_refused(table, ours, comparable, told):
    with pytest.raises(StudyError, match=told):
        rules.judge(table, ours, comparable)


@pytest.mark.parametrize(("comparable", "verdict"), [(True, "not replicated"), (False, "not comparable")])
def test_what_nothing_reaches_was_measured_all_the_same(comparable, verdict):
    published = TABLES["other_systems"].query("metric == 'label_fraction'")
    published = published.rename(columns={"system": "source"})
    ours = {tuple(published.iloc[0][["source", *KEY]]): Ours(math.inf)}
    (row,) = rules.judge(published, ours, comparable, "phantoms").itertuples()
    assert row.verdict == verdict and rules.NOTHING_REACHES in row.reason and math.isnan(row.ours)


def test_the_headline_picture_holds_published_values_without_and_ours_with_an_interval(card):
    drawn = scorecard.against_published(card, synthetic=True)
    assert len(drawn) == 2 * len(scorecard.HEADLINES) and drawn["value"].dropna().between(0, 1).all()
    published, ours = (rows for _, rows in drawn.groupby("which", sort=False))
    known = ours.dropna(subset="value_low")
    assert published["value_low"].isna().all() and len(known) == 4
    assert known["value"].between(known["value_low"], known["value_high"]).all()
