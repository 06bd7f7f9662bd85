"""OrthoFoundation: growing fractions of the labels for each start, and when a start equals all labels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import knees, predicted, results, with_systems

from koa_lib import profile
from koa_lib.experiment import Experiment
from koa_lib.systems import orthofoundation

ROWS, LEARNED = knees(200), {"patients": 10, "pictures": 20}
FULL = (orthofoundation.SUPERVISED, 1.0)


def test_the_curve_is_the_mean_over_seeds_and_its_differences_are_paired():
    full = [predicted(ROWS, 0.8, fold, fold=fold) for fold in (1, 2)]
    mixed = (one.sample(frac=1, random_state=1) for one in full)
    same = results(*(one.assign(seed=seed, fold=1) for seed, one in enumerate(mixed)))  # seeds, not folds
    lines = {FULL: results(*full), ("random", 1.0): same, ("self-supervised", 1.0): same}
    table = orthofoundation.rows("test", {key: (part, LEARNED) for key, part in lines.items()})
    whole, other, line = (row for _, row in table.iterrows())
    each = line[["qwk_seed_0", "qwk_seed_1"]].astype(float)
    assert line["qwk"] == pytest.approx(each.mean()) == pytest.approx(whole["qwk"])
    assert line["sd_over_draws"] == pytest.approx(each.std()) and each.nunique() == 2
    for name in ("against_supervised", "against_random"):
        assert line[[name, f"{name}_low", f"{name}_high"]].tolist() == pytest.approx([0, 0, 0])
    assert line["qwk_low"] < line["qwk"] < line["qwk_high"]
    assert np.isnan([whole["against_supervised"], whole["sd_over_draws"], other["against_random"]]).all()


def test_a_start_that_a_profile_leaves_out_is_not_run_for_its_reason(easy_study):
    study = replace(easy_study, profile=replace(easy_study.profile, not_run={"self_supervised": "no GPU"}))
    assert [spec.reason for spec in orthofoundation.starts(study)][-1] == "no GPU"
    table = orthofoundation.towers(Experiment(study)).set_index("start")
    assert table.loc["self-supervised", "not_run"] == "no GPU" and table["steps"].isna().all()
    number, claim = orthofoundation.answers(study, pd.DataFrame()).values()
    assert number == "no GPU" and (claim.verdict, claim.reason) == ("not run", "no GPU")


def lines(start, *rows):
    """Rows of a curve: fraction, then the difference to the supervised result with its interval."""
    against = [f"against_supervised{end}" for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["fraction", *against]).assign(cohort="test", start=start)


def test_a_start_equals_the_supervised_result_from_where_that_holds_for_all_larger_fractions():
    table = pd.concat([
        lines("self-supervised", (1.0, 0.02, -0.01, 0.05), (0.5, -0.01, -0.02, 0.03),
              (0.25, -0.05, -0.11, 0.0), (0.1, -0.2, -0.3, -0.1)),
        lines("contrastive", (0.1, 0.01, -0.01, 0.1), (0.5, -0.2, -0.3, -0.1), (1.0, -0.05, -0.1, 0.0)),
        lines("supervised", (1.0, 0.0, 0.0, 0.0)).assign(qwk=0.7)])
    equal = orthofoundation.since(table).set_index("start")[["within_margin", "not_below", "as_high"]]
    assert equal.loc["self-supervised"].tolist() == [0.5, 0.25, 1.0]
    assert equal.loc["contrastive"].fillna(0).tolist() == [0, 1.0, 0]
    shown = orthofoundation.fractions(table.reset_index(drop=True))
    assert list(shown["within_margin"]) == ["yes", "yes", "no", "no", "no", "no", "no", ""]
    assert (shown["supervised"] == 0.7).all() and list(shown["label_percent"][:4]) == [100, 50, 25, 10]


@pytest.mark.parametrize(("half", "verdict"), [
    ((-0.01, -0.02, 0.03), "replicated"), ((-0.05, -0.2, 0.1), "inconclusive"),
    ((-0.2, -0.3, -0.1), "not replicated")])
def test_the_claim_about_half_of_the_labels_has_three_ends(half, verdict):
    lucky = (0.25, 0.0, -0.01, 0.01)  # another fraction decides nothing
    table = lines("self-supervised", lucky, (0.5, *half), (1.0, 0.1, 0.05, 0.2)).assign(qwk_low=0.3)
    study = SimpleNamespace(profile=profile.load("paper"))
    number, claim = orthofoundation.answers(study, table).values()
    assert claim.verdict == verdict
    assert number.value == (0.25 if verdict == "replicated" else 1.0) == claim.ours
    never = orthofoundation.answers(study, table.assign(against_supervised_low=-0.5)).values()
    assert [answer[0] for answer in never] == [np.inf, np.inf]
    chance = pd.concat([table, table.head(1).assign(start="supervised", qwk_low=-0.01)])
    assert [*orthofoundation.answers(study, chance).values()][1].verdict == "inconclusive"


@pytest.fixture(scope="module")
def quick(easy_study):
    own = easy_study.profile.systems.labels
    few = replace(own, pictures=16, batch=16, epochs=1, fractions=(0.5, 1.0), seeds=2)
    return Experiment(with_systems(easy_study, labels=few))


def test_every_start_learns_from_the_same_patients_and_grades_the_same_pictures(quick):
    table = orthofoundation.curve(quick)
    assert set(table["cohort"]) == {"test", "external"}
    assert list(table["start"].unique()) == ["supervised", "random", "self-supervised"]
    drawn = table[table["start"] != "supervised"].groupby("fraction")
    assert (drawn["pictures"].nunique() == 1).all() and (table["pictures"] == 2 * table["patients"]).all()
    assert (table.groupby("cohort")["n"].nunique() == 1).all()


def test_each_start_says_what_it_learned_from_and_whether_it_collapsed(quick):
    table = orthofoundation.towers(quick).set_index("start")
    assert list(table.index[table["not_run"] != ""]) == ["contrastive"]
    own = table.loc["self-supervised"]
    assert (own["unlabelled"], own["steps"], own["batch"]) == (16, 1, 16)
    assert own["collapsed"] in (True, False) and own["loss"] >= own["loss_floor"] * 0.999


def test_without_a_test_split_the_reference_is_trained_on_the_official_one(easy_study, monkeypatch):
    experiment = Experiment(easy_study)
    arm = orthofoundation.supervised_arm(experiment)
    data = experiment.data("training", arm)
    part = data.part(np.flatnonzero(data.rows["split"] != "test"), "any")
    monkeypatch.setattr(experiment, "data", lambda *_: part)
    assert arm.recipe.folds == easy_study.profile.our_protocol.folds
    assert orthofoundation.supervised_arm(experiment).recipe.folds == 0
