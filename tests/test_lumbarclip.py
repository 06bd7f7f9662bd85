"""LumbarCLIP: heads by hand, losses above their floors, who is chosen on, and the rule of the claim."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset, with_systems

from koa_lib import losses, projection, settings, splits, training
from koa_lib.experiment import Experiment
from koa_lib.paper import answers
from koa_lib.sources import Features
from koa_lib.systems import lumbarclip
from koa_lib.systems.lumbarclip import CELL, SYSTEM

ENCODER = settings.Encoder("Stand-in", "random", "resnet18", 32, 0.25, "")
ABSENT = replace(ENCODER, name="Absent", reason="no weights")
HEADS = settings.Heads((ENCODER, ABSENT), "tiny", 3, 16, 0.01, 2)


@pytest.fixture(scope="module")
def experiment(easy_study):
    """One cheap encoder and one that is not run."""
    return Experiment(with_systems(easy_study, heads=HEADS))


@pytest.fixture(scope="module")
def found(experiment):
    return lumbarclip.run(experiment)


@pytest.fixture(scope="module")
def table(experiment, found):
    return lumbarclip.overview(experiment.study, *found)


def toy():
    """Features that hold the grade, in the two parts of a training."""
    data, values = easy_dataset(120, size=4), np.random.default_rng(0).normal(0, 0.2, (120, 6))
    values[:, 0] += data.grades
    values[:, 1] += data.grades == 2
    parts = splits.inner(data.part(np.arange(120), "fit"), 0)
    return tuple(Features(part, values[None].astype(np.float32)) for part in parts)


def pair(kind="linear"):
    return projection.pair(0, kind, 6, torch.randn(5, 7, generator=torch.Generator().manual_seed(1)))


def test_only_a_linear_head_is_affine():
    (a, b), affine = torch.randn(2, 4, 6), {}
    for kind in projection.HEADS:
        head = projection.head(kind, 6)
        affine[kind] = torch.allclose(head((a + b) / 2), (head(a) + head(b)) / 2, atol=1e-5)
    assert affine == {"linear": True, "non-linear": False}


def test_a_linear_pair_is_standardise_project_normalise_compare():
    whole, made = torch.as_tensor(toy()[0].all()), pair()
    whole[:, 3] = 7.0  # a feature that never changes does no harm
    made.prepare(whole)
    x = made.image_head((whole - whole.mean(0)) / whole.std(0).clamp(min=1e-6))
    t = made.text_head(made.sentences)
    cosines = (x / x.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T
    assert torch.allclose(made.tail(whole), cosines / projection.TEMPERATURE, atol=1e-4)


@pytest.mark.parametrize("kind", projection.HEADS)
@pytest.mark.parametrize("target", lumbarclip.TARGETS)
def test_training_learns_to_grade_and_never_undercuts_the_floor(kind, target):
    (fit, select), made = toy(), pair(kind)
    recipe = replace(TINY, learning_rate=0.01, weight_decay=0.01, epochs=15)
    history = training.fit(made, fit, select, recipe, 0, "heads", loss=losses.SoftClip(target))
    train = history[history["part"] == "train"]
    assert (train["loss"] >= train["floor"] - 1e-5).all() and train["loss"].iloc[-1] < train["loss"].iloc[0]
    assert (training.predict(made, fit).argmax(1) == fit.grades).mean() > 0.8


# The grid


def test_the_grid_is_every_head_loss_and_seed_of_the_encoders_that_run(found, table):
    results, history = found
    cells, train = results.frame[[*CELL, "seed"]].drop_duplicates(), history[history["part"] == "train"]
    assert len(cells) == 2 * 3 * HEADS.seeds and set(cells["encoder"]) == {"Stand-in (stand-in, untrained)"}
    assert set(results.frame["split"]) == {"test"} and len(train) == len(cells) * HEADS.epochs
    assert (train["loss"] >= train["floor"] - 1e-5).all()
    (absent,) = table[table["not_run"] != ""].itertuples()
    assert (absent.encoder, absent.not_run) == ("Absent", "no weights") and math.isnan(absent.accuracy)


def test_each_cell_has_its_interval_and_the_epoch_that_the_inner_part_likes_best(found, table):
    results, history = found
    shown = table[table["not_run"] == ""]
    assert len(shown) == 6 and (shown["n"] == 20).all() and (shown["seeds"] == 2).all()
    assert set(shown["against_constant"]) <= {"better", "worse", "not clear"}
    inner = history[(history["part"] == "inner") & (history["seed"] == 3)].set_index("epoch")
    for row in shown.itertuples():
        cell = {name: getattr(row, name) for name in CELL}
        assert row.qwk == results.measured(["qwk"], **cell)["qwk"]
        assert row.epoch == inner.loc[(inner[CELL] == pd.Series(cell)).all(axis=1), "qwk"].idxmax()


def test_differences_are_linear_minus_non_linear_and_hold_at_once_in_a_wider_interval(found, table):
    wide, gaps = table.pivot(index="target", columns="head", values="qwk"), lumbarclip.differences(found[0])
    assert len(gaps) == 3
    for row in gaps.itertuples():
        assert row.qwk == pytest.approx(wide.loc[row.target, "linear"] - wide.loc[row.target, "non-linear"])
        assert row.simultaneous_low <= row.accuracy_low and row.accuracy_high <= row.simultaneous_high
        better = "linear" if row.accuracy_low > 0 else "non-linear" if row.accuracy_high < 0 else "neither"
        assert row.better == better


# The claim


@pytest.mark.parametrize(("intervals", "verdict", "ours"), [
    ([(0.01, 0.05), (0.02, 0.06)], "replicated", 3.0), ([(0.01, 0.05), (-0.02, 0.06)], "inconclusive", 2.0),
    ([(0.01, 0.05), (-0.06, -0.02)], "not replicated", -4.0), ([(0.0, 0.0)], "inconclusive", 0.0)])
def test_the_claim_follows_the_intervals_of_all_differences(intervals, verdict, ours):
    gaps = pd.DataFrame(intervals, columns=["accuracy_low", "accuracy_high"])
    gaps = gaps.assign(accuracy=gaps.mean(axis=1), simultaneous_low=-1, simultaneous_high=1, better=np.select(
        [gaps["accuracy_low"] > 0, gaps["accuracy_high"] < 0], ["linear", "non-linear"], "neither"))
    answer = lumbarclip.linear_better(gaps)
    assert (answer.verdict, answer.unit) == (verdict, "points") and answer.ours == pytest.approx(ours)


def test_the_combination_of_the_scorecard_is_chosen_without_the_test_split(experiment, found, table):
    results, history = found
    inner = history[history["part"] == "inner"].groupby([*CELL, "seed"], sort=False)["qwk"].max()
    best = inner.groupby(level=CELL, sort=False).mean().idxmax()
    (picked,) = table.loc[table["chosen"] == "yes", CELL].to_numpy()
    kept = lumbarclip.answers(results, history)
    each = results.of(**dict(zip(CELL, best, strict=True))).averaged(["accuracy"])[1]["accuracy"]
    assert tuple(picked) == best
    assert kept[SYSTEM, "abstract", "best", "accuracy"].value == pytest.approx(100 * each.mean())
    answers.keep(experiment.study, SYSTEM, kept)
    assert answers.read(experiment.study).keys() >= kept.keys()


def test_where_no_encoder_runs_there_is_no_number_and_no_verdict(experiment):
    study = with_systems(experiment.study, heads=replace(HEADS, encoders=(ABSENT,)))
    kept = lumbarclip.answers(*lumbarclip.run(Experiment(study)))
    assert len(kept) == 3 and all(math.isnan(value[0]) for value in kept.values())
    assert [*kept.values()][-1].verdict == "not run"


@pytest.mark.parametrize(("source", "dry", "shown"), [
    ("random", False, "A (stand-in, untrained)"), ("start", False, "A (stand-in)"), ("timm", False, "A"),
    ("timm", True, "A (random weights)")])
def test_a_stand_in_is_named_beside_every_number(experiment, source, dry, shown):
    study = replace(experiment.study, inputs=replace(experiment.study.inputs, dry=dry))
    assert lumbarclip.label(study, replace(ENCODER, name="A", source=source)) == shown
