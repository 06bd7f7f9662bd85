"""OrthoFoundation: growing fractions of the labels for each start, held against CLIP with all labels; when a start equals it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import with_systems

from koa_lib import predictions, profile
from koa_lib.experiment import Experiment
from koa_lib.results import Results
from koa_lib.systems import orthofoundation


def graded(right, seed, n=200, fold=1):
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 5
    guess = np.where(np.random.default_rng(seed + 1).random(n) < right, truth, generator.integers(0, 5, n))
    frame = predictions.frame([f"k{number}" for number in range(n)], np.eye(5)[guess])
    said = {"arm": "a", "seed": seed, "fold": fold, "split": "test", "view": "stretch-none", "mirrored": False}
    return frame.assign(kl_grade=truth, group_id=[f"p{number // 2}" for number in range(n)], **said)


def found(*frames):
    return Results(pd.concat(frames, ignore_index=True), 50, 1)


LEARNED = {"patients": 10, "pictures": 20}
FULL = (orthofoundation.SUPERVISED, 1.0)


def test_the_curve_is_the_mean_over_seeds_and_its_differences_are_paired():
    reference = [graded(0.8, 7), graded(0.8, 17, fold=2)]
    same = [frame.sample(frac=1, random_state=1).assign(seed=seed, fold=1) for seed, frame in enumerate(reference)]  # in another order
    lines = {FULL: found(*reference), ("random", 1.0): found(*same), ("self-supervised", 1.0): found(*same)}
    table = orthofoundation.rows("test", {key: (part, LEARNED) for key, part in lines.items()})
    full, other, line = table.itertuples()
    each = np.array([line.qwk_seed_0, line.qwk_seed_1])
    assert line.qwk == pytest.approx(each.mean()) == pytest.approx(full.qwk)
    assert line.sd_over_draws == pytest.approx(each.std(ddof=1)) and each[0] != each[1]
    for name in ("against_supervised", "against_random"):
        assert [getattr(line, f"{name}{end}") for end in ("", "_low", "_high")] == pytest.approx([0, 0, 0])
    assert line.qwk_low < line.qwk < line.qwk_high and (line.patients, line.pictures) == (10, 20)
    assert np.isnan([full.against_supervised, full.against_random, full.sd_over_draws, full.qwk_seed_1, other.against_random]).all()


def test_a_start_that_learned_something_is_above_the_random_one():
    lines = {FULL: found(graded(0.9, 3)), ("random", 0.5): found(graded(0.1, 4)), ("self-supervised", 0.5): found(graded(0.9, 5))}
    table = orthofoundation.rows("test", {key: (part, LEARNED) for key, part in lines.items()})
    assert (table.loc[table["start"] == "self-supervised", "against_random_low"] > 0).all()


COLUMNS = ["cohort", "start", "fraction", "against_supervised", "against_supervised_low", "against_supervised_high"]


def test_a_start_equals_the_supervised_result_from_where_that_holds_for_all_larger_fractions():
    lines = [(0.1, -0.2, -0.3, -0.1), (0.25, -0.05, -0.11, 0.0), (0.5, -0.01, -0.02, 0.03), (1.0, 0.02, -0.01, 0.05)]
    lucky = [(0.1, 0.01, -0.01, 0.1), (0.5, -0.2, -0.3, -0.1), (1.0, -0.05, -0.1, 0.0)]
    table = pd.DataFrame([("test", "self-supervised", *line) for line in lines[::-1]] + [("test", "contrastive", *line) for line in lucky]
                         + [("test", "random", 1.0, -0.2, -0.3, -0.1)], columns=COLUMNS)
    equal = orthofoundation.since(table).set_index("start")[["not_below", "within_margin", "as_high"]]
    assert list(equal.loc["self-supervised"]) == [0.25, 0.5, 1.0]
    assert equal.loc["contrastive", "not_below"] == 1.0 and equal.loc["contrastive", ["within_margin", "as_high"]].isna().all()
    assert equal.loc["random"].isna().all()
    full = pd.DataFrame([("test", "supervised", 1.0, 0.7)], columns=["cohort", "start", "fraction", "qwk"])
    shown = orthofoundation.fractions(pd.concat([full, table], ignore_index=True))
    assert (shown["supervised"] == 0.7).all() and shown["within_margin"].iloc[0] == ""
    held = shown[shown["start"] == "self-supervised"].set_index("label_percent").sort_index()
    assert held["within_margin"].to_dict() == {10.0: "no", 25.0: "no", 50.0: "yes", 100.0: "yes"}
    assert held["not_below"].tolist() == ["no", "yes", "yes", "yes"]
    assert set(shown[shown["start"] == "random"]["not_below"]) == {"no"}


@pytest.mark.parametrize(("half", "verdict"), [((-0.01, -0.02, 0.03), "replicated"), ((-0.05, -0.2, 0.1), "inconclusive"), ((-0.2, -0.3, -0.1), "not replicated")])
def test_the_claim_about_half_of_the_labels_has_three_ends(half, verdict):
    lucky = ("test", "self-supervised", 0.25, 0.0, -0.01, 0.01)  # another fraction decides nothing
    lines = [lucky, ("test", "self-supervised", 0.5, *half), ("test", "self-supervised", 1.0, 0.1, 0.05, 0.2)]
    table = pd.DataFrame(lines, columns=COLUMNS).assign(qwk_low=0.3)
    number, claim = orthofoundation.answers(table).values()
    assert claim.verdict == verdict and "50%" in claim.reason
    assert number.value == (0.25 if verdict == "replicated" else 1.0) == claim.ours
    never = table.assign(against_supervised_low=-0.5)
    assert [answer[0] for answer in orthofoundation.answers(never).values()] == [np.inf, np.inf]
    full = {"cohort": "test", "start": "supervised", "fraction": 1.0, "qwk_low": -0.01}
    chance = pd.concat([table, pd.DataFrame([full])])
    assert list(orthofoundation.answers(chance).values())[1].verdict == "inconclusive"


def test_a_profile_without_contrastive_weights_says_why(easy_study):
    reasons = {spec.name: spec.reason for spec in orthofoundation.starts(easy_study)}
    assert "random weights" in reasons["contrastive"] and not reasons["random"] and not reasons["self-supervised"]


def quick(study):
    own = study.profile.systems.labels
    return with_systems(study, labels=replace(own, pictures=16, batch=16, epochs=1, fractions=(0.5, 1.0), seeds=2))


def test_every_start_learns_from_the_same_patients_and_grades_the_same_pictures(easy_study):
    experiment = Experiment(quick(easy_study))
    table = orthofoundation.curve(experiment)
    assert set(table["cohort"]) == {"test", "external"} and list(table["start"].unique()) == ["supervised", "random", "self-supervised"]
    drawn = table[table["start"] != "supervised"].groupby("fraction")
    assert (drawn["pictures"].nunique() == 1).all() and (table["pictures"] == 2 * table["patients"]).all()
    assert (table.groupby("cohort")["n"].nunique() == 1).all()
    written = list((easy_study.run_dir / "predictions").glob("labels-*.csv"))
    assert len(written) == 2 * 2 * 2 * 2  # start, fraction, seed, cohort


def test_without_a_test_split_the_reference_is_trained_on_the_official_one(easy_study, monkeypatch):
    experiment = Experiment(easy_study)
    data = experiment.data("training", orthofoundation.supervised_arm(experiment))
    assert orthofoundation.supervised_arm(experiment).recipe.folds == easy_study.profile.our_protocol.folds
    part = data.part(np.flatnonzero(data.rows["split"] != "test"), "any")
    monkeypatch.setattr(experiment, "data", lambda *_: part)
    assert orthofoundation.supervised_arm(experiment).recipe.folds == 0


def test_each_start_says_what_it_learned_from_and_whether_it_collapsed(easy_study):
    table = orthofoundation.towers(Experiment(quick(easy_study))).set_index("start")
    assert "random weights" in table["not_run"]["contrastive"] and np.isnan(table["spread"]["contrastive"])
    own = table.loc["self-supervised"]
    assert (own["unlabelled"], own["steps"], own["batch"]) == (16, 1, 16)
    assert own["collapsed"] in (True, False) and own["loss"] >= own["loss_floor"] * 0.999
    assert own["uniform_loss"] == pytest.approx(np.log(easy_study.profile.systems.labels.prototypes))


def test_contrastive_weights_of_phantoms_are_named_a_stand_in(easy_study):
    study = replace(easy_study, profile=replace(easy_study.profile, model=replace(easy_study.profile.model, start="pretrain")))
    assert "stand-in" in orthofoundation.learned_from(study, "contrastive")
    published = with_systems(study, labels=replace(study.profile.systems.labels, published=True))
    assert "timm's published weights" in orthofoundation.learned_from(published, "self-supervised")


def test_every_profile_can_answer_for_half_of_the_labels_or_less():
    for name in profile.names():
        fractions = profile.load(name).systems.labels.fractions
        assert list(fractions) == sorted(fractions) and fractions[0] <= orthofoundation.HALF and fractions[-1] == 1
