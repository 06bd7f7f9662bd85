"""Heads over frozen features and soft CLIP losses: hand-computed values, known special cases, floors, and who may be fitted on."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import easy_dataset
from torch import nn

from koa_lib import alignment, answers, claims, heads, settings, splits
from koa_lib.errors import StudyError
from koa_lib.sources import Features

ENCODER = settings.Encoder("Stand-in", "random", "resnet18", 32, 0.25, "")
HEADS = settings.Heads((ENCODER, replace(ENCODER, name="Absent", reason="no weights")), "tiny", 3, 16, 0.01, 2)


@pytest.fixture(scope="module")
def headed(easy_study):
    """A study with one cheap encoder and one that is not run."""
    systems = replace(easy_study.profile.systems, heads=HEADS)
    return replace(easy_study, profile=replace(easy_study.profile, systems=systems))


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
    table = alignment.grid(headed, trained)
    assert len(table) == 6 and (table["n"] == 20).all() and (table["seeds"] == 2).all()
    for name in alignment.SHOWN:
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all() and (table[name] <= table[f"{name}_high"] + 1e-9).all()
    gaps, wide = alignment.differences(headed, trained), table.pivot(index=["encoder", "loss"], columns="head", values="qwk")
    for row in gaps.itertuples():
        cell = wide.loc[row.encoder, row.loss]
        assert row.qwk == pytest.approx(cell["linear"] - cell["non-linear"])


def gaps(*intervals):
    return pd.DataFrame([((low + high) / 2, low, high) for low, high in intervals], columns=["accuracy", "accuracy_low", "accuracy_high"])


@pytest.mark.parametrize("intervals, verdict, ours", [
    ([(0.01, 0.05), (0.02, 0.06)], "replicated", 3.0),
    ([(0.01, 0.05), (-0.02, 0.06)], "inconclusive", 2.0),
    ([(0.01, 0.05), (-0.06, -0.02)], "not replicated", -4.0),
    ([(0.0, 0.0)], "inconclusive", 0.0),
])
def test_the_rule_of_the_claim(intervals, verdict, ours):
    answer = alignment.linear_better(gaps(*intervals))
    assert answer.verdict == verdict and answer.ours == pytest.approx(ours) and answer.unit == "points"


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
    table = alignment.beside_published(headed, found)
    assert list(table["metric"]) == ["accuracy", "f1"] and table["ours"].between(0, 100).all() and table["note"].str.contains("knee").all()


def test_a_profile_that_runs_no_encoder_says_why(headed):
    nothing = replace(headed.profile.systems, heads=replace(HEADS, encoders=HEADS.encoders[1:]))
    study = replace(headed, profile=replace(headed.profile, systems=nothing))
    assert heads.run(study) == []
    found = alignment.answers(study, [])
    claim = next(value for value in found.values() if isinstance(value, claims.Answer))
    assert claim.verdict == "not run" and all(math.isnan(value[0]) and "none of the encoders" in value[-1] for value in found.values())
    assert alignment.as_run(study)["status"].tolist() == ["not run, because no weights", "run"]
    for figure in (alignment.grid_chart(pd.DataFrame(), []), alignment.difference_chart(pd.DataFrame()), alignment.loss_chart([])):
        assert figure.axes


def test_stand_ins_are_named_as_such(headed):
    rows = alignment.as_run(headed).set_index("encoder")["as_run"]
    assert rows["Stand-in"] == "stand-in for Stand-in: resnet18, 32 px, width x 0.25, random weights, untrained"
    assert "stand-in for BioClinicalBERT" in rows["text"]


def test_the_charts_show_every_cell(headed, trained):
    table = alignment.grid(headed, trained)
    chart = alignment.grid_chart(table, trained[0].graded["kl_grade"])
    assert [axis.get_title() for axis in chart.axes] == ["Stand-in"] and len(chart.axes[0].containers) == 2
    assert len(alignment.difference_chart(alignment.differences(headed, trained)).axes[0].containers) == 1
    curves = alignment.loss_chart(trained)
    assert [axis.get_title() for axis in curves.axes] == list(heads.LOSSES)
    assert alignment.curves(trained)["floor"].between(0, math.log(16)).all()
