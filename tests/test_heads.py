"""Heads over frozen features and soft CLIP losses: hand-computed values, known special cases, floors, and who may be fitted on."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import easy_dataset, with_systems
from torch import nn

from koa_lib import alignment, heads, profile, settings, splits, stats
from koa_lib.errors import StudyError
from koa_lib.paper import answers, claims
from koa_lib.sources import Features

ENCODER = settings.Encoder("Stand-in", "random", "resnet18", 32, 0.25, "")
HEADS = settings.Heads((ENCODER, replace(ENCODER, name="Absent", reason="no weights")), "tiny", 3, 16, 0.01, 2)


@pytest.fixture(scope="module")
def headed(easy_study):
    """A study with one cheap encoder and one that is not run."""
    return with_systems(easy_study, heads=HEADS)


@pytest.fixture(scope="module")
def trained(headed):
    return heads.run(headed)


def toy(n=60, width=6, seed=0):
    """Features that hold the grade, in parts of an easy dataset."""
    data = easy_dataset(n, size=4)
    values = np.random.default_rng(seed).normal(0, 0.2, (n, width)).astype(np.float32)
    values[:, 0] += data.grades
    values[:, 1] += (data.grades == 2)
    fit, select = splits.inner(data.part(np.arange(n), "fit"), 0)
    return tuple(Features(part, values[None]) for part in (fit, select))


def model_of(fit, kind="linear"):
    torch.manual_seed(0)
    return heads.PairModel(kind, fit.batch(np.arange(len(fit))), torch.randn(5, 7, generator=torch.Generator().manual_seed(1)))


def test_a_linear_head_is_affine_and_a_non_linear_one_is_not():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 6)
    bent = {}
    for kind in heads.HEADS:
        head = heads.head(kind, 6)
        middle = head((a + b) / 2)
        bent[kind] = not torch.allclose(middle, (head(a) + head(b)) / 2, atol=1e-5)
        assert middle.shape == (4, heads.DIMENSIONS)
    assert bent == {"linear": False, "non-linear": True}
    with pytest.raises(StudyError, match="linear, non-linear"):
        heads.head("deep", 6)


def test_a_linear_pair_model_is_standardise_project_normalise_compare():
    fit, _ = toy()
    model, features = model_of(fit), fit.batch(np.arange(5))
    assert isinstance(model.image_head, nn.Linear)
    whole = fit.batch(np.arange(len(fit)))
    x = (features - whole.mean(0)) / whole.std(0) @ model.image_head.weight.T + model.image_head.bias
    t = model.sentences @ model.text_head.weight.T + model.text_head.bias
    expected = (x / x.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T / heads.TEMPERATURE
    assert torch.allclose(model(features), expected, atol=1e-4)
    assert torch.allclose(model.embed(features).norm(dim=1), torch.ones(5), atol=1e-6)


def test_a_feature_that_never_changes_does_no_harm():
    fit, _ = toy()
    fit.array[:, :, 3] = 7.0
    assert torch.isfinite(model_of(fit)(fit.batch(np.arange(len(fit))))).all()


def test_the_scale_has_the_limit_of_clip():
    model = model_of(toy()[0])
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.log_scale.fill_(10.0)
    assert model.scale.item() == 100


@pytest.mark.parametrize("kind", heads.HEADS)
@pytest.mark.parametrize("loss", heads.LOSSES)
def test_training_learns_to_grade_and_never_undercuts_the_floor(kind, loss):
    fit, select = toy(120)
    model = model_of(fit, kind)
    history = heads.train(model, fit, select, replace(HEADS, epochs=20), loss, 0.01, 0)
    assert (history["loss"] >= history["floor"] - 1e-5).all() and (history["floor"] > 0).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    graded = heads.probabilities(model, fit).argmax(1)
    assert (graded == fit.grades).mean() > 0.8


def test_the_epoch_that_the_inner_part_likes_best_is_kept():
    fit, select = toy()
    model = model_of(fit)
    history = heads.train(model, fit, select, HEADS, "ordinal", 0.0, 0)
    assert heads._kappa(model, select) == pytest.approx(history["qwk"].max())


def test_a_batch_larger_than_the_part_is_the_part():
    fit, select = toy(20)
    history = heads.train(model_of(fit), fit, select, replace(HEADS, batch=1000), "label-aware", 0.0, 0)
    assert (history["batch"] == len(fit)).all()


@pytest.mark.parametrize("wrong", ["fit", "select"])
def test_nothing_is_fitted_or_chosen_on_what_is_reported(wrong):
    parts = dict(zip(("fit", "select"), toy(), strict=True))
    given = replace(parts[wrong].dataset, role="report")
    parts[wrong] = Features(given, parts[wrong].array)
    with pytest.raises(StudyError, match=f"'report' was given where '{wrong}'"):
        heads.train(model_of(parts["fit"]), *parts.values(), HEADS, "ordinal", 0.0, 0)


def test_a_loss_that_is_no_number_is_said():
    fit, select = toy()
    fit.array[:, fit.dataset.index[0]] = np.nan
    with pytest.raises(StudyError, match="learning_rate"):
        heads.train(model_of(fit), fit, select, HEADS, "ordinal", 0.0, 0)


def test_the_grid_is_every_head_loss_and_seed_of_the_encoders_that_run(headed, trained):
    assert len(trained) == 2 * 3 * HEADS.seeds and {run.encoder.name for run in trained} == {"Stand-in"}
    assert len({(run.head, run.loss, run.seed) for run in trained}) == len(trained)
    for run in trained:
        assert set(run.graded["split"]) == {"test"} and run.graded["group_id"].nunique() == 10
    assert len(list((headed.run_dir / "predictions").glob("heads-stand-in-*test*.csv"))) == len(trained)


def test_a_second_run_trains_nothing_and_says_the_same(headed, trained, monkeypatch):
    monkeypatch.setattr(heads, "train", None)
    again = heads.run(headed)
    assert all(a.graded.equals(b.graded) and a.history.equals(b.history) for a, b in zip(trained, again, strict=True))


def test_the_table_has_each_cell_and_its_interval(headed, trained):
    whole = alignment.overview(headed, trained)
    table = whole[whole["not_run"] == ""]
    assert len(table) == 6 and (table["n"] == 20).all() and (table["seeds"] == 2).all()
    absent, = whole[whole["not_run"] != ""].itertuples()
    assert (absent.encoder, absent.not_run) == ("Absent", "no weights") and math.isnan(absent.accuracy)
    best = alignment.chosen(trained)[0]
    picked, = table[table["chosen"] == "yes"].itertuples()
    assert (picked.head, picked.loss) == (best.head, best.loss)
    assert ((table["accuracy_low"] > table["best_constant"]) == (table["above_constant"] == "yes")).all()
    for name in alignment.SHOWN:
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all() and (table[name] <= table[f"{name}_high"] + 1e-9).all()
    gaps, wide = alignment.differences(headed, trained), table.pivot(index=["encoder", "loss"], columns="head", values="qwk")
    for row in gaps.itertuples():
        cell = wide.loc[row.encoder, row.loss]
        assert row.gap_qwk == pytest.approx(cell["linear"] - cell["non-linear"])
        assert row.simultaneous_low <= row.gap_accuracy_low and row.gap_accuracy_high <= row.simultaneous_high
        assert (row.better == "linear") == (row.gap_accuracy_low > 0)
        assert (row.better == "non-linear") == (row.gap_accuracy_high < 0)


def test_metrics_of_the_table_are_those_of_the_summary(headed, trained):
    summary = stats.bootstrap_summary(trained[0].graded, headed.profile.draws, headed.seed).set_index("metric")
    for name, found in alignment._measured(headed, trained[0].graded).items():
        assert found == pytest.approx(tuple(summary.loc[name, ["value", "ci_low", "ci_high"]]), nan_ok=True)


def gaps(*intervals, wider=0.0):
    rows = [((low + high) / 2, low, high, low - wider, high + wider) for low, high in intervals]
    return pd.DataFrame(rows, columns=["gap_accuracy", "gap_accuracy_low", "gap_accuracy_high", "simultaneous_low", "simultaneous_high"])


@pytest.mark.parametrize("intervals, verdict, ours", [
    ([(0.01, 0.05), (0.02, 0.06)], "replicated", 3.0),
    ([(0.01, 0.05), (-0.02, 0.06)], "inconclusive", 2.0),
    ([(0.01, 0.05), (-0.06, -0.02)], "not replicated", -4.0),
    ([(0.0, 0.0)], "inconclusive", 0.0),
])
def test_the_rule_of_the_claim(intervals, verdict, ours):
    answer = alignment.linear_better(gaps(*intervals))
    assert answer.verdict == verdict and answer.ours == pytest.approx(ours) and answer.unit == "points"


def test_the_answer_says_what_is_left_when_the_number_of_differences_is_corrected_for():
    table = gaps((0.01, 0.05), (0.03, 0.07), (-0.06, -0.01), wider=0.02)
    assert "2 lie clearly above 0 and 1 clearly below; 1 and 0 after correction" in alignment.linear_better(table).reason


def test_the_combination_of_the_scorecard_is_chosen_without_the_test_split(headed, trained):
    runs = alignment.chosen(trained)
    means = {key: np.mean([run.best for run in cell]) for key, cell in alignment._cells(trained).items()}
    assert means[runs[0].encoder.name, runs[0].head, runs[0].loss] == max(means.values()) and len(runs) == 2
    spoilt = [replace(run, graded=run.graded.assign(kl_grade=0)) for run in trained]
    assert [(run.head, run.loss) for run in alignment.chosen(spoilt)] == [(run.head, run.loss) for run in runs]


def test_the_answers_are_rows_of_the_published_tables(headed, trained):
    found = alignment.answers(headed, trained)
    answers.keep(headed, alignment.SYSTEM, found)
    assert answers.read(headed).keys() >= found.keys()
    numbers = [value for value in found.values() if not isinstance(value, claims.Answer)]
    assert len(numbers) == 2 and all(0 <= value[0] <= 100 for value in numbers)
    for words in (alignment.OTHER_DATA, "(stand-in, untrained)", "chosen on the inner part"):
        assert all(words in value.note for value in numbers)


def test_a_profile_that_runs_no_encoder_says_why(headed):
    study = with_systems(headed, heads=replace(HEADS, encoders=HEADS.encoders[1:]))
    assert heads.run(study) == []
    found = alignment.answers(study, [])
    claim = next(value for value in found.values() if isinstance(value, claims.Answer))
    assert claim.verdict == "not run" and all(math.isnan(value[0]) and "none of the encoders" in "".join(map(str, value)) for value in found.values())
    assert alignment.overview(study, [])["not_run"].tolist() == ["no weights"]
    for name in profile.names():
        loaded = profile.load(name)
        none = all(spec.reason for spec in loaded.systems.heads.encoders)
        assert none == ("heads" in loaded.not_run), name


def test_stand_ins_are_named_as_such(headed):
    said = "stand-in for Stand-in: resnet18, 32 px, width x 0.25, random weights, untrained"
    assert alignment._described(headed, ENCODER) == said


@pytest.mark.parametrize("source, dry, shown", [("random", False, "A (stand-in, untrained)"), ("start", False, "A (stand-in)"), ("trained", False, "A (stand-in)"),
                                                ("timm", False, "A"), ("timm", True, "A (random weights)")])
def test_a_stand_in_is_named_beside_every_number(headed, source, dry, shown):
    study = replace(headed, inputs=replace(headed.inputs, dry=dry))
    assert alignment.shown(study, replace(ENCODER, name="A", source=source)) == shown


def test_tables_of_a_stand_in_say_so(headed, trained):
    for made in (alignment.overview, alignment.differences, alignment.losses):
        assert "Stand-in (stand-in, untrained)" in set(made(headed, trained)["encoder"])


def test_training_leaves_the_number_of_threads_as_it_was(monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(heads, "_update", lambda *arguments: seen.append(torch.get_num_threads()) or (1.0, 0.5))
    torch.set_num_threads(2)
    try:
        fit, select = toy()
        heads.train(model_of(fit), fit, select, HEADS, "ordinal", 0.0, 0)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_losses_of_the_first_seed_stand_above_their_floors(headed, trained):
    table = alignment.losses(headed, trained)
    assert len(table) == 2 * 3 * HEADS.epochs
    assert set(table["target"]) == {f"{loss} loss" for loss in heads.LOSSES}
    assert (table["loss"] >= table["floor"] - 1e-5).all() and (table["floor"] > 0).all()
    assert (table["uniform"] == np.log(table["batch"])).all()
    assert alignment.losses(headed, []).empty


@pytest.mark.parametrize("kind", heads.HEADS)
@pytest.mark.parametrize("loss", ["label-aware", "ordinal"])
def test_gradients_of_the_heads(kind, loss, monkeypatch):
    monkeypatch.setattr(heads, "DIMENSIONS", 3)
    torch.manual_seed(0)
    features, grades = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 0, 2, 4])
    model = heads.PairModel(kind, torch.randn(20, 5), torch.randn(5, 4)).double()
    names = [name for name, _ in model.named_parameters()]

    def value(*parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(Loss(model), {f"model.{name}": given for name, given in state.items()}, (features, grades, loss))

    assert torch.autograd.gradcheck(value, tuple(model.parameters()))


class Loss(nn.Module):
    """The loss of a model as a function of its parameters."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, grades, kind):
        return heads.loss_and_floor(self.model, features, grades, kind)[0]

