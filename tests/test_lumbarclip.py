"""LumbarCLIP: heads by hand, losses above their floors, who may be fitted and chosen on, and the rule of the claim."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset, with_systems
from torch import nn

from koa_lib import losses, metrics, model, profile, reach, settings, splits, training
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.paper import answers, claims
from koa_lib.sources import Features
from koa_lib.store import Store
from koa_lib.systems import lumbarclip

ENCODER = settings.Encoder("Stand-in", "random", "resnet18", 32, 0.25, "")
HEADS = settings.Heads(
    (ENCODER, replace(ENCODER, name="Absent", reason="no weights")), "tiny", 3, 16, 0.01, 2
)
RECIPE = replace(TINY, learning_rate=0.01, weight_decay=0.01, epochs=20)


@pytest.fixture(scope="module")
def experiment(easy_study):
    """One cheap encoder and one that is not run."""
    return Experiment(with_systems(easy_study, heads=HEADS))


@pytest.fixture(scope="module")
def found(experiment):
    return lumbarclip.run(experiment)


def toy(n=60, width=6, seed=0):
    """Features that hold the grade, in parts of an easy dataset."""
    data = easy_dataset(n, size=4)
    values = np.random.default_rng(seed).normal(0, 0.2, (n, width)).astype(np.float32)
    values[:, 0] += data.grades
    values[:, 1] += data.grades == 2
    fit, select = splits.inner(data.part(np.arange(n), "fit"), 0)
    return tuple(Features(part, values[None]) for part in (fit, select))


def pair(kind="linear", width=6):
    return model.pair(0, kind, width, torch.randn(5, 7, generator=torch.Generator().manual_seed(1)))


# The heads


def test_a_linear_head_is_affine_and_a_non_linear_one_is_not():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 6)
    bent = {}
    for kind in model.HEADS:
        head = model.head(kind, 6)
        middle = head((a + b) / 2)
        bent[kind] = not torch.allclose(middle, (head(a) + head(b)) / 2, atol=1e-5)
        assert middle.shape == (4, model.DIMENSIONS)
    assert bent == {"linear": False, "non-linear": True}
    with pytest.raises(StudyError, match="linear, non-linear"):
        model.head("deep", 6)


def test_a_linear_pair_is_standardise_project_normalise_compare():
    whole, made = torch.as_tensor(toy()[0].all()), pair()
    made.prepare(whole)
    x = (whole - whole.mean(0)) / whole.std(0) @ made.image_head.weight.T + made.image_head.bias
    t = made.sentences @ made.text_head.weight.T + made.text_head.bias
    expected = (x / x.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T / model.TEMPERATURE
    assert torch.allclose(made.tail(whole), expected, atol=1e-4)


def test_a_feature_that_never_changes_does_no_harm_and_the_scale_has_the_limit_of_clip():
    whole, made = torch.as_tensor(toy()[0].all()), pair()
    whole[:, 3] = 7.0
    made.prepare(whole)
    assert torch.isfinite(made.tail(whole)).all() and made.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        made.log_scale.fill_(10.0)
    assert made.scale.item() == 100


@pytest.mark.parametrize("kind", model.HEADS)
@pytest.mark.parametrize("target", lumbarclip.TARGETS)
def test_training_learns_to_grade_and_never_undercuts_the_floor(kind, target):
    (fit, select), made = toy(120), pair(kind)
    history = training.fit(made, fit, select, RECIPE, 0, "heads", loss=losses.SoftClip(target))
    train, inner = (history[history["part"] == part] for part in ("train", "inner"))
    assert (train["loss"] >= train["floor"] - 1e-5).all() and (train["floor"] > 0).all()
    assert train["loss"].iloc[-1] < train["loss"].iloc[0]
    assert (training.predict(made, fit).argmax(1) == fit.grades).mean() > 0.8
    kept = training.predict(made, select).argmax(1)
    again = metrics.from_confusion(metrics.confusion(select.grades, kept))["qwk"]
    assert again == pytest.approx(inner["qwk"].max())  # of the epoch that the inner part likes best


@pytest.mark.parametrize("wrong", ["fit", "select"])
def test_nothing_is_fitted_or_chosen_on_what_is_reported(wrong):
    parts = dict(zip(("fit", "select"), toy(), strict=True))
    parts[wrong] = Features(replace(parts[wrong].dataset, role="report"), parts[wrong].array)
    with pytest.raises(StudyError, match=f"'report' was given where '{wrong}'"):
        training.fit(pair(), *parts.values(), RECIPE, 0, "heads", loss=losses.SoftClip("ordinal"))


@pytest.mark.parametrize("kind", model.HEADS)
@pytest.mark.parametrize("target", ["label-aware", "ordinal"])
def test_gradients_of_the_heads(kind, target, monkeypatch):
    monkeypatch.setattr(model, "DIMENSIONS", 3)
    features, grades = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 0, 2, 4])
    whole = Loss(pair(kind, 5).double(), target)
    names = [name for name, _ in whole.named_parameters()]

    def value(*parameters):
        return torch.func.functional_call(
            whole, dict(zip(names, parameters, strict=True)), (features, grades)
        )

    assert torch.autograd.gradcheck(value, tuple(whole.parameters()))


class Loss(nn.Module):
    """The loss of a pair of heads as a function of its parameters."""

    def __init__(self, made, target):
        super().__init__()
        self.made, self.loss = made, losses.SoftClip(target)

    def forward(self, features, grades):
        return self.loss(self.made, features, grades)[0]["loss"]


# The grid


def test_the_grid_is_every_head_loss_and_seed_of_the_encoders_that_run(experiment, found):
    results, history = found
    cells = results.frame[[*lumbarclip.CELL, "seed"]].drop_duplicates()
    assert len(cells) == 2 * 3 * HEADS.seeds and set(cells["encoder"]) == {"Stand-in (stand-in, untrained)"}
    assert set(results.frame["split"]) == {"test"} and results.frame["group_id"].nunique() == 10
    train = history[history["part"] == "train"]
    assert len(train) == len(cells) * HEADS.epochs and (train["loss"] >= train["floor"] - 1e-5).all()
    assert (train["uniform"] == np.log(train["batch"])).all()


def test_a_table_that_is_rewritten_trains_nothing_again(experiment, found, tmp_path, monkeypatch):
    package = tmp_path / "koa_lib"
    shutil.copytree(reach.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / "systems" / "lumbarclip.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n\nNEW = 1\n", encoding="utf-8")
    monkeypatch.setattr(reach, "PACKAGE", package)
    monkeypatch.setattr(Store, "_build", None)
    again = lumbarclip.run(Experiment(experiment.study))
    assert again[0].frame.equals(found[0].frame) and again[1].equals(found[1])


def test_the_table_has_each_cell_with_its_interval_and_why_an_encoder_is_not_run(experiment, found):
    results, history = found
    whole = lumbarclip.overview(experiment.study, results, history)
    table = whole[whole["not_run"] == ""]
    assert len(table) == 6 and (table["n"] == 20).all() and (table["seeds"] == 2).all()
    (absent,) = whole[whole["not_run"] != ""].itertuples()
    assert (absent.encoder, absent.not_run) == ("Absent", "no weights") and math.isnan(absent.accuracy)
    assert set(table["as_run"]) == {
        "stand-in for Stand-in: resnet18, 32 px, width x 0.25, random weights, untrained"
    }
    assert ((table["accuracy_low"] > table["best_constant"]) == (table["above_constant"] == "yes")).all()
    first = history[(history["part"] == "inner") & (history["seed"] == 3)].set_index("epoch")
    for row in table.itertuples():
        cell = {name: getattr(row, name) for name in lumbarclip.CELL}
        assert row.qwk == results.measured(["qwk"], **cell)["qwk"]
        assert row.epoch == first.loc[(first[list(cell)] == pd.Series(cell)).all(axis=1), "qwk"].idxmax()


def test_differences_are_linear_minus_non_linear_and_hold_at_once_in_a_wider_interval(experiment, found):
    results, history = found
    wide = lumbarclip.overview(experiment.study, results, history).pivot(
        index="target", columns="head", values="qwk"
    )
    gaps = lumbarclip.differences(results)
    assert len(gaps) == 3
    for row in gaps.itertuples():
        assert row.qwk == pytest.approx(wide.loc[row.target, "linear"] - wide.loc[row.target, "non-linear"])
        assert row.simultaneous_low <= row.accuracy_low and row.accuracy_high <= row.simultaneous_high
        assert (row.better == "linear") == (row.accuracy_low > 0)
        assert (row.better == "non-linear") == (row.accuracy_high < 0)


# The claim


def gaps(*intervals, wider=0.0):
    rows = [
        (
            (low + high) / 2,
            low,
            high,
            low - wider,
            high + wider,
            "linear" if low > 0 else "non-linear" if high < 0 else "neither",
        )
        for low, high in intervals
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "simultaneous_low",
            "simultaneous_high",
            "better",
        ],
    )


@pytest.mark.parametrize(
    "intervals, verdict, ours",
    [
        ([(0.01, 0.05), (0.02, 0.06)], "replicated", 3.0),
        ([(0.01, 0.05), (-0.02, 0.06)], "inconclusive", 2.0),
        ([(0.01, 0.05), (-0.06, -0.02)], "not replicated", -4.0),
        ([(0.0, 0.0)], "inconclusive", 0.0),
    ],
)
def test_the_rule_of_the_claim(intervals, verdict, ours):
    answer = lumbarclip.linear_better(gaps(*intervals))
    assert answer.verdict == verdict and answer.ours == pytest.approx(ours) and answer.unit == "points"


def test_the_answer_says_what_is_left_when_the_number_of_differences_is_corrected_for():
    table = gaps((0.01, 0.05), (0.03, 0.07), (-0.06, -0.01), wider=0.02)
    assert (
        "2 lie clearly above 0 and 1 clearly below; 1 and 0 after correction"
        in lumbarclip.linear_better(table).reason
    )


def test_the_combination_of_the_scorecard_is_chosen_without_the_test_split(experiment, found):
    results, history = found
    inner = history[history["part"] == "inner"].groupby([*lumbarclip.CELL, "seed"], sort=False)["qwk"].max()
    best = dict(
        zip(lumbarclip.CELL, inner.groupby(level=lumbarclip.CELL, sort=False).mean().idxmax(), strict=True)
    )
    kept = lumbarclip.answers(results, history)
    value = kept[lumbarclip.SYSTEM, "abstract", "best", "accuracy"]
    assert value.value == pytest.approx(100 * results.of(**best).averaged(["accuracy"])[1]["accuracy"].mean())
    table = lumbarclip.overview(experiment.study, results, history)
    (picked,) = table[table["chosen"] == "yes"][lumbarclip.CELL].to_dict("records")
    assert picked == best
    answers.keep(experiment.study, lumbarclip.SYSTEM, kept)
    assert answers.read(experiment.study).keys() >= kept.keys()
    for words in (
        lumbarclip.OTHER_DATA,
        "(stand-in, untrained)",
        f"{best['target']} loss, chosen on the inner part",
    ):
        assert words in value.note


def test_a_profile_that_runs_no_encoder_says_why(experiment):
    study = with_systems(experiment.study, heads=replace(HEADS, encoders=HEADS.encoders[1:]))
    kept = lumbarclip.answers(*lumbarclip.run(Experiment(study)))
    claim = next(value for value in kept.values() if isinstance(value, claims.Answer))
    assert claim.verdict == "not run" and len(kept) == 3
    assert all(
        math.isnan(value[0]) and "none of the encoders" in "".join(map(str, value)) for value in kept.values()
    )
    for name in profile.names():
        loaded = profile.load(name)
        none = all(spec.reason for spec in loaded.systems.heads.encoders)
        assert none == ("heads" in loaded.not_run), name


@pytest.mark.parametrize(
    "source, dry, shown",
    [
        ("random", False, "A (stand-in, untrained)"),
        ("start", False, "A (stand-in)"),
        ("trained", False, "A (stand-in)"),
        ("timm", False, "A"),
        ("timm", True, "A (random weights)"),
    ],
)
def test_a_stand_in_is_named_beside_every_number(experiment, source, dry, shown):
    study = replace(experiment.study, inputs=replace(experiment.study.inputs, dry=dry))
    assert lumbarclip.shown(study, replace(ENCODER, name="A", source=source)) == shown
