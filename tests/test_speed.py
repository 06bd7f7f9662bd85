"""Timing: what is measured, what is computed from it, and that it is measured once."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koa_lib import profile
from koa_lib.paper import speed
from koa_lib.store import Store
from koa_lib.study import MANIFESTS

FOUND = speed.Speed(np.array([10.0, 12, 11, 50, 11]), 100.0, 2.0, 2)


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"MODEL": "koa-tiny", "SECONDS": 0.05, "EMBEDDED": 4, "STEPS": 3}.items():
        monkeypatch.setattr(speed, name, value)


@pytest.fixture
def study(tmp_path):
    (tmp_path / ".locks").mkdir()
    return SimpleNamespace(store=Store(tmp_path, "tests"))


def test_everything_is_timed_and_the_random_state_stays(quick, capsys):
    before = torch.random.get_rng_state()
    found = speed.measure()
    assert len(found.picture_ms) >= speed.FEWEST and (found.picture_ms > 0).all()
    assert (
        found.embed_per_second > 0 and found.adapter_step_ms > 0 and found.threads == torch.get_num_threads()
    )
    assert torch.equal(before, torch.random.get_rng_state()) and not capsys.readouterr().out


def test_the_true_architecture_is_timed(monkeypatch):
    for name, value in {"SECONDS": 0.0, "FEWEST": 2, "EMBEDDED": 2, "STEPS": 2}.items():
        monkeypatch.setattr(speed, name, value)
    graded = []
    from koa_lib.model import ClipGrader

    def noted(grader, images):
        graded.append(
            (sum(value.numel() for value in grader.clip.parameters()), tuple(images.shape), grader.part)
        )
        return forward(grader, images)

    forward = ClipGrader.forward
    monkeypatch.setattr(ClipGrader, "forward", noted)
    assert len(speed.measure().picture_ms) == 2
    assert set(graded) == {(151277313, (1, 3, 224, 224), "adapter")}  # ViT-B/32 of OpenAI's CLIP


def test_measured_once_and_again_when_the_machine_changes(quick, study, monkeypatch):
    first, runs = speed.measured(study), []
    measure = speed.measure
    monkeypatch.setattr(speed, "measure", lambda: runs.append(1) or measure())
    again = speed.measured(study)
    np.testing.assert_array_equal(first.picture_ms, again.picture_ms)
    assert (again.embed_per_second, again.threads, runs) == (first.embed_per_second, first.threads, [])
    assert json.loads((study.store.folder / "speed.json").read_text())["threads"] == first.threads
    monkeypatch.setattr(speed, "machine", lambda: [("Processor", "another")])
    speed.measured(study)
    assert runs == [1]
    paper = profile.load("paper")
    monkeypatch.setattr(
        speed.profile, "load", lambda name: replace(paper, as_printed=replace(paper.as_printed, batch=32))
    )
    speed.measured(study)
    assert runs == [1, 1]


@given(st.integers(64, 20000), st.integers(1, 50), st.integers(1, 8), st.integers(1, 64))
def test_minutes_are_embedding_once_per_view_and_steps_once_per_epoch(pictures, epochs, views, batch):
    embedding, steps = pictures * views * 0.01, epochs * (pictures // batch) * 0.002
    assert speed.expected(FOUND, pictures, epochs, views, batch) == pytest.approx((embedding + steps) / 60)


def test_the_papers_times_stand_beside_ours_and_say_where_ours_were_taken(monkeypatch):
    monkeypatch.setattr(speed, "machine", lambda: [("Processor", "Some CPU 3000")])
    recipe = profile.load("paper").as_printed
    assert (recipe.epochs, recipe.batch) == (30, 64)
    table = speed.table(FOUND, pd.read_csv(MANIFESTS / "published/jpm2026.csv"))
    single, whole = (table.set_index("metric").loc[name] for name in ("inference_ms", "training_minutes"))
    assert (single.ours, single.published) == (11, 140) and (
        single.repeats_low,
        single.repeats_high,
    ) == tuple(np.percentile(FOUND.picture_ms, [2.5, 97.5]))
    assert whole.ours == pytest.approx((8260 * recipe.views / 100 + 30 * 129 * 0.002) / 60) and np.isnan(
        whole.repeats_low
    )
    assert (whole.relation, whole.published) == ("about", 42) and set(table["place"]) == {
        "Some CPU 3000, 2 threads, no GPU"
    }
    assert table["published"].isna().tolist() == [False, False, True, True]
