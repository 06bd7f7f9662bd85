"""The scorecard: every published row once, judged by its own rule, and nothing but a real run scored as a model."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import metrics, profile, speed, stats, tables
from koa_lib.errors import StudyError
from koa_lib.paper import claims, scorecard, verdicts
from koa_lib.paper.scorecard import COLUMNS, VERDICTS, WITHOUT_MODEL, Ours
from koa_lib.profile import ROOT

FOLDER = ROOT / "data_manifests/published"
TABLES = {name: pd.read_csv(FOLDER / f"{name}.csv") for name in ("jpm2026", "other_systems", "claims", "literature")}
KEY = ["item", "row", "metric"]
FOUND = speed.Speed(np.full(20, 60.0), 50.0, 2.0, 2)
COUNTS = {"oai_chen2018": pd.DataFrame({"split": "train", "group_id": np.arange(8260) // 2}), "gornale2020": pd.DataFrame({"split": ["external"] * 1650})}
FINDINGS = pd.DataFrame({"check": ["sum", "other sum", "floor"], "value": [1.0, 2.0, 3.0], "expected": [1.0, 3.0, np.nan], "tolerance": [0.1, 0.1, np.nan],
                         "verdict": ["agrees", "does not agree", "reference"], "note": ["", "may be a slip", ""]})


def graded(seed=0, n=300, right=0.5, fold=1):
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 5
    probabilities = right * np.eye(5)[truth] + (1 - right) * generator.dirichlet(np.ones(5), n)
    frame = pd.DataFrame(probabilities, columns=metrics.PROBABILITIES)
    frame = frame.assign(image_id=[f"k{i}" for i in range(n)], kl_grade=truth, group_id=[f"g{i // 2}" for i in range(n)])
    frame.attrs["fold"] = fold
    return frame


def runs(first, right):
    return [graded(first + fold, right=right, fold=fold) for fold in range(1, 6)]


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A real run of the paper's profile on all pictures; its timings are given."""
    whole = {role: {"pictures": number, "not_as_listed": 0} for role, number in (("training", 8260), ("external", 1650))}
    monkeypatch.setattr(speed, "measured", lambda study: FOUND)
    return SimpleNamespace(published=FOLDER, synthetic=False, dry=False, seed=0, run_dir=tmp_path, data_note=lambda: whole, profile=replace(profile.load("paper"), draws=100))


RESULTS = {"train": runs(0, 0.6), "external": runs(10, 0.3)}
NAMES = ("ViT", "ResNet50", "MobileNet", "VGG19", "Wide ResNet")
BASELINES = {name: {"external": [graded(30 + number + fold, right=0.25, fold=fold) for fold in (1, 3)]} for number, name in enumerate(NAMES)}
TESTS = pd.DataFrame([{"baseline": "Wide ResNet", "n": 355, "p_exact": 0.001, "clip_only": 40, "baseline_only": 10, "difference": 0.1}])


def card(study, results=RESULTS, others=BASELINES, findings=FINDINGS, tests=TESTS, **options):
    return verdicts.scorecard(study, results, others, COUNTS, findings, tests, **options)


def line(table, item, row, metric):
    found = table[(table[KEY] == [item, row, metric]).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("results", [RESULTS, {"train": RESULTS["train"]}, {}])
def test_every_published_row_and_claim_stands_once_in_the_order_of_the_sources(study, results):
    table = card(study, results)
    assert list(table.columns) == COLUMNS
    main = [("jpm2026", *row) for row in TABLES["jpm2026"][KEY].astype(str).itertuples(index=False)]
    systems = [tuple(row) for row in TABLES["other_systems"][["system", *KEY]].astype(str).itertuples(index=False)]
    said = [(row.source, row.item, row.claim, "claim") for row in TABLES["claims"].itertuples()]
    audit = [("arithmetic", "audit", name, "") for name in ("sum", "other sum")]
    expected = [*main, *(row for row in said if row[0] == "jpm2026"), *audit, *systems, *(row for row in said if row[0] != "jpm2026")]
    assert [tuple(row) for row in table[["source", *KEY]].itertuples(index=False)] == expected
    assert set(table["verdict"]) <= set(VERDICTS)
    undecided = table[table["verdict"].isin(["inconclusive", "not comparable", "not run"])]
    assert undecided["reason"].str.len().gt(0).all() and table["rule"].str.len().gt(0).all()
    numbers = table["ours"].notna()
    assert (numbers | (table["verdict"] == "not run")).all() and table.loc[table["verdict"] == "not run", "ours"].isna().all()


@pytest.mark.parametrize(("changes", "name"), [({"synthetic": True}, "demo"), ({"dry": True}, "paper"), ({}, "oai")])
def test_a_run_that_is_not_the_papers_never_scores_a_model_but_shows_its_numbers(study, changes, name):
    settings = {"synthetic": False, "dry": False, **changes}
    table = card(SimpleNamespace(**{**study.__dict__, **settings, "profile": replace(profile.load(name), draws=100)}))
    model = table[~table["rule"].isin(WITHOUT_MODEL)]
    assert set(model["verdict"]) == {"not comparable", "not run"}
    shown = model[model["verdict"] == "not comparable"]
    assert len(shown) >= 33 and shown["ours"].notna().all()  # 28 rows of the paper and its 5 claims
    assert shown["reason"].str.contains({"demo": "synthetic", "paper": "dry run", "oai": "koa-conv is not"}[name]).all()
    alone = table[table["rule"].isin(WITHOUT_MODEL)]
    real = card(study)
    pd.testing.assert_frame_equal(alone, real[real["rule"].isin(WITHOUT_MODEL)])  # what needs no model is judged in every profile
    assert {"replicated", "not replicated", "not run"} == set(alone["verdict"])


def test_each_verdict_is_reachable_in_a_real_run(study):
    wide = [graded(50 + fold, right=0.15 + 0.1 * fold, fold=fold) for fold in range(1, 6)]
    seen = set(card(study, {"train": RESULTS["train"], "external": wide})["verdict"])
    assert seen == set(VERDICTS) - {"not comparable"}


def test_rows_that_need_no_model(study):
    table = card(study)
    assert line(table, "text", "data", "train_images")["verdict"] == "replicated"
    patients = line(table, "text", "data", "participants")
    assert (patients["ours"], patients["verdict"]) == (4130, "not replicated")
    assert line(table, "table_4", "Fine-tuned CLIP", "accuracy")["verdict"] == "replicated"
    assert line(table, "table_5", "Bashir 2026", "accuracy")["verdict"] == "replicated"
    slip = line(table, "text", "conclusion", "macro_sensitivity")
    assert (slip["ours"], slip["verdict"]) == (76.85, "not replicated") and "train column" in slip["reason"]
    assert line(table, "text", "results and conclusion", "macro_precision")["reason"] == "table 2 prints 79.57"
    chen = line(table, "table_5", "Chen 2019", "accuracy")
    assert (chen["ours"], chen["verdict"]) == (69.7, "not replicated") and "69.63" in chen["reason"]
    absent = line(table, "table_5", "Antony 2017", "accuracy")
    assert absent["verdict"] == "not run" and "not found" in absent["reason"]
    assert line(table, "table_5", "Tiulpin 2018", "accuracy")[["verdict"]].item() == "replicated"
    pretraining = line(table, "abstract", "pre-training", "images")
    assert pretraining["verdict"] == "not replicated" and "digits are cut, not by rounding: rounded, 1,251,655 is 1,300,000" in pretraining["reason"]
    assert "digits are cut" not in line(table, "text", "data", "train_images")["reason"]
    shown = scorecard.whole_counts(table)
    assert str(line(shown, "text", "data", "participants")["published"]) == "4796" and line(shown, "table_5", "Chen 2019", "accuracy")["ours"] == 69.7
    assert list(table.loc[table["source"] == "arithmetic", "verdict"]) == ["replicated", "not replicated"]


def test_speed_is_measured_against_the_printed_time(study, monkeypatch):
    single = line(card(study), "text", "runtime", "inference_ms")
    assert (single["ours"], single["verdict"]) == (60, "replicated") and all(word in single["reason"] for word in ("other hardware", "no GPU", "workstation"))
    monkeypatch.setattr(speed, "measured", lambda study: replace(FOUND, picture_ms=np.full(20, 141.0), embed_per_second=5.0))
    slow = card(study)
    assert line(slow, "text", "runtime", "inference_ms")["verdict"] == "not replicated"
    whole = line(slow, "text", "runtime", "training_minutes")
    assert whole["verdict"] == "not replicated" and whole["ours"] == pytest.approx(speed.expected_as_printed(replace(FOUND, embed_per_second=5.0)))


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
    agreed = both[both["verdict"] == "replicated"]
    flipped = agreed[agreed["verdict_after"] == "not replicated"]
    held = {(row.row, row.metric) for row in table[chosen].itertuples()}
    wanted = agreed[[pair in held for pair in zip(agreed["row"], agreed["metric"], strict=True)]]
    assert set(flipped.index) == set(wanted.index) and len(flipped) >= 1


def test_p_value_and_drop_come_from_the_paired_test_and_the_runs(study):
    table = card(study)
    p = line(table, "text", "mcnemar", "p_value")
    assert (p["ours"], p["verdict"], p["rule"]) == (0.001, "replicated", "below 0.05") and "n = 355 single knees; only CLIP right on 40" in p["reason"]
    assert "always grade" not in p["reason"]
    flat = graded().assign(**{name: float(name == "p0") for name in metrics.PROBABILITIES})
    flat.attrs["fold"] = 3
    constant = card(study, others={**BASELINES, "Wide ResNet": {"external": [flat]}})
    assert "Wide ResNet (for 300 of 300 pictures) answers nearly always or always grade 0, which for every picture reaches 20.0 %" in line(constant, "text", "mcnemar", "p_value")["reason"]
    listed = card(study, others={**BASELINES, "VGG19": {"external": [flat]}})
    assert "reaches 20.0 %" in line(listed, "table_4", "VGG19", "accuracy")["reason"] and "always grade" not in line(listed, "table_4", "ViT", "accuracy")["reason"]
    assert line(card(study, tests=TESTS.assign(p_exact=0.05)), "text", "mcnemar", "p_value")["verdict"] == "not replicated"
    drop = line(table, "text", "discussion", "train_test_drop")
    accuracy = [[metrics.summary(frame["kl_grade"], frame[metrics.PROBABILITIES])["accuracy"] for frame in RESULTS[part]] for part in ("train", "external")]
    assert tuple(drop[["ours", "ci_low", "ci_high"]]) == pytest.approx(stats.run_interval(100 * np.subtract(*accuracy)))
    assert line(card(study, tests=None), "text", "mcnemar", "p_value")["reason"] == "this run has no Wide ResNet"


def test_what_is_absent_says_why(study):
    study.profile = replace(profile.load("oai"), draws=50)
    table = card(study, others={"MobileNet": BASELINES["MobileNet"]}, tests=None)
    assert "hours on two cores" in line(table, "table_4", "VGG19", "accuracy")["reason"]
    order = table[table["row"].str.startswith("fine-tuned CLIP > ViT")].iloc[0]
    assert order["verdict"] == "not run" and "VGG19: from scratch" in order["reason"]
    alone = card(study, {"train": RESULTS["train"]})
    assert list(alone.loc[alone["row"].str.startswith("fine-tuned CLIP > ViT"), "reason"]) == ["no external cohort was given"]
    external = alone[(alone["source"] == "jpm2026") & ~alone["rule"].isin(WITHOUT_MODEL) & (alone["row"] != "train")]
    assert set(external["verdict"]) == {"not run"} and external["reason"].str.contains("no external cohort was given").all()
    assert alone.loc[alone["source"] == "CLIP-KOA", "reason"].str.contains("notebook 08").all()
    assert list(alone["reason"])[-1] == "no such data in the study"


def test_results_of_other_systems_can_be_given(study):
    key, said = ("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"), TABLES["claims"].iloc[5]
    given = {key: Ours(71.0, 70.0, 72.5), tuple(said[["source", "item", "claim"]]): claims.Answer(1.0, 0.2, 1.8, "points", "replicated", "clear")}
    table = card(study, systems=given)
    assert line(table, *key[1:])["verdict"] == "replicated" and line(table, said["item"], said["claim"], "claim")["verdict"] == "replicated"
    assert (card(study)["verdict"] != table["verdict"]).sum() == 2
    with pytest.raises(StudyError, match="no row"):
        card(study, systems={("CLIP-KOA", "abstract", "x", "y"): Ours(1.0)})


def test_the_sentence_counts_rows_with_and_without_a_model_apart(study):
    table = card(study)
    first, second = scorecard.sentence(table).split(". ", 1)
    alone = table["rule"].isin(WITHOUT_MODEL)
    for text, rows in ((first, table[~alone]), (second, table[alone])):
        assert f"the {len(rows)} rows" in text
        for verdict, count in rows["verdict"].value_counts().items():
            assert f"{count} {'are' if count > 1 else 'is'} {verdict}" in text
    phantoms = SimpleNamespace(**{**study.__dict__, "synthetic": True})
    assert "replicated" not in scorecard.sentence(card(phantoms)).split(". ", 1)[0]


def test_a_missing_table_is_named(study, tmp_path):
    study.published = tmp_path
    with pytest.raises(StudyError, match="jpm2026.csv"):
        card(study)


finite = st.floats(0, 100)


@settings(max_examples=200, deadline=None)
@given(finite, finite, st.floats(0, 20), st.sampled_from([3.0, 0.03]))
def test_the_rule_of_model_rows(mean, published, half, tolerance):
    value = Ours(mean, mean - half, mean + half)
    verdict, reason = scorecard.agreement(value, published, tolerance)
    near, inside = abs(mean - published) <= tolerance, mean - half <= published <= mean + half
    width = (value.ci_high - value.ci_low) / 2
    assert verdict == ("replicated" if near and inside else "inconclusive" if width > tolerance else "not replicated")
    assert f"{mean - published:+.3g}" in reason
    assert scorecard.agreement(Ours(mean), published, tolerance)[0] == "inconclusive"  # fewer than five runs


@given(st.integers(0, 10**7), st.integers(0, 4))
def test_a_rounded_number_agrees_and_one_beyond_its_last_digit_does_not(number, decimals):
    found = number / 10**5
    printed = round(found, decimals)
    assert scorecard.same_as_printed(found, printed, count=False)
    assert not scorecard.same_as_printed(printed + 1.01, printed, count=False)


@given(st.integers(1000, 10**8), st.integers(0, 3))
def test_a_count_may_be_printed_rounded_but_not_cut(found, zeros):
    step = 10**zeros
    cut, rounded = found // step * step, (found + step // 2) // step * step
    if rounded >= scorecard.LARGE_COUNT:
        assert scorecard.same_as_printed(found, float(rounded), count=True)
    if cut >= scorecard.LARGE_COUNT and cut % (10 * step) and 2 * (found - cut) > step:
        assert not scorecard.same_as_printed(found, float(cut), count=True)
    assert not scorecard.same_as_printed(found, 1.0 + found, count=True) or (found + 1) % 10 == 0


def test_undefined_values_and_small_counts():
    assert scorecard.same_as_printed(1251655, 1300000.0, count=True) and not scorecard.same_as_printed(1251655, 1200000.0, count=True)
    assert not scorecard.same_as_printed(19, 20.0, count=True) and not scorecard.same_as_printed(71.4, 70.0, count=False)
    table = scorecard.scorecard(TABLES["jpm2026"], {("table_3", "4", "auc"): (math.nan, math.nan, math.nan)}, comparable=True)
    undefined = line(table, "table_3", "4", "auc")
    assert undefined["verdict"] == "not run" and undefined["reason"] == "undefined in this run"


def test_measured_speaks_the_published_units():
    six = [graded(seed, 120, 0.3) for seed in range(6)]
    overall, grade = scorecard.measured("table_2", "test", six), scorecard.measured("table_3", "", six)
    accuracy = [metrics.summary(run["kl_grade"], run[metrics.PROBABILITIES])["accuracy"] for run in six]
    assert overall["table_2", "test", "accuracy"][:3] == pytest.approx(stats.run_interval(100 * np.array(accuracy)))
    assert "group bootstrap of fold 1 alone" in overall["table_2", "test", "accuracy"].note and "group bootstrap" in grade["table_3", "4", "specificity"].note
    assert grade["table_3", "0", "sensitivity"][0] > 1 > grade["table_3", "0", "auc"][0]
    known = set(map(tuple, TABLES["jpm2026"][KEY].astype(str).to_numpy()))
    assert {*overall, *grade, *scorecard.measured("table_4", "ViT", six)} <= known
    assert scorecard.measured("table_4", "ViT", []) == {}


@pytest.mark.parametrize(("change", "match"), [
    (lambda table: pd.concat([table, table.tail(1)]), "twice"),
    (lambda table: table.assign(kind="rumour"), "kind 'rumour'"),
    (lambda table: table[table["item"] != "table_2"], "repeats no row"),
])
def test_a_broken_table_is_refused(change, match):
    with pytest.raises(StudyError, match=match):
        scorecard.scorecard(change(TABLES["jpm2026"]), {}, comparable=True)


def test_reasons_and_known_keys_are_demanded():
    with pytest.raises(StudyError, match="Say why"):
        scorecard.scorecard(TABLES["jpm2026"], {}, comparable=False)
    with pytest.raises(StudyError, match="no row"):
        scorecard.scorecard(TABLES["jpm2026"], {("table_9", "x", "y"): "no"}, comparable=True)


def test_a_part_of_the_pictures_or_lossy_copies_are_not_the_papers_data():
    def judged(**training):
        note = {"training": {"pictures": 8260, "not_as_listed": 0, **training}, "external": {"pictures": 1650, "not_as_listed": 0}}
        return verdicts.comparability(SimpleNamespace(dry=False, synthetic=False, profile=profile.load("paper"), data_note=lambda: note))

    assert judged() == (True, "")
    assert judged(pictures=78) == (False, "78 of 8,260 training pictures")
    assert judged(not_as_listed=3)[1] == "3 training pictures that are not as listed" and not judged(not_as_listed=3)[0]


def test_what_nothing_reaches_was_measured_all_the_same():
    published = pd.DataFrame([{"item": "abstract", "row": "label efficiency", "metric": "label_fraction", "relation": "=", "value": 0.5, "unit": "ratio", "kind": "model", "note": ""}])
    ours = {("abstract", "label efficiency", "label_fraction"): Ours(math.inf, note="none that was tried")}
    (scored,) = scorecard.scorecard(published, ours, True).itertuples()
    (shown,) = scorecard.scorecard(published, ours, False, "synthetic phantoms").itertuples()
    assert (scored.verdict, scored.reason) == ("not replicated", "none that was tried") and math.isinf(scored.ours)
    assert (shown.verdict, shown.reason) == ("not comparable", "synthetic phantoms; none that was tried")
    assert scorecard.whole_counts(scorecard.scorecard(published, ours, True))["ours"].tolist() == [scorecard.NONE]


def test_the_bootstrap_beside_a_mean_is_that_of_the_shown_fold_with_the_studys_draws(study):
    """The same interval as in Table 4: one quantity has one interval in the report."""
    reason = line(card(study), "table_2", "test", "accuracy")["reason"]
    shown = next(frame for frame in RESULTS["external"] if frame.attrs["fold"] == 3)
    row = tables.table_4({"Fine-tuned CLIP": shown}, TABLES["jpm2026"], draws=100, seed=0).set_index("model").loc["Fine-tuned CLIP"]
    assert scorecard.beside(reason) == f"{row.ci_low:.1f} to {row.ci_high:.1f}" and "of fold 3 alone" in reason
    assert scorecard.beside("synthetic phantoms") == ""


def test_each_rule_that_is_younger_than_first_results_is_named_in_its_section():
    sections = re.split(r"^\((d\d+)\)=$", (ROOT / "reports/deviations.md.jinja").read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {name.upper() for name, text in zip(sections[1::2], sections[2::2], strict=True) if re.search(r"after the (first results .*had been seen|plain one had failed)", text.split("\n## ")[0])}
    assert told == set(scorecard.LATER)
