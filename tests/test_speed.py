"""Timing: what is measured, what is computed from it, and that it is measured once."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from koa_lib import profile
from koa_lib.model import ClipGrader
from koa_lib.paper import speed
from koa_lib.store import Store
from koa_lib.study import MANIFESTS

FOUND = speed.Speed(np.array([10.0, 12, 11, 50, 11]), 100.0, 2.0, 2)


def test_the_true_architecture_is_timed_and_the_random_state_stays(monkeypatch):
    for name, value in {"SECONDS": 0.0, "FEWEST": 2, "EMBEDDED": 2, "STEPS": 2}.items():
        monkeypatch.setattr(speed, name, value)
    graded, forward, before = set(), ClipGrader.forward, torch.random.get_rng_state()

    def noted(grader, images):
        parameters = sum(value.numel() for value in grader.clip.parameters())
        graded.add((parameters, tuple(images.shape), grader.part))
        return forward(grader, images)

    monkeypatch.setattr(ClipGrader, "forward", noted)
    found = speed.measure()
    assert graded == {(151277313, (1, 3, 224, 224), "adapter")}  # ViT-B/32 of OpenAI's CLIP
    assert len(found.picture_ms) == 2 and (found.picture_ms > 0).all()
    assert found.embed_per_second > 0 and found.adapter_step_ms > 0
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_measured_once_and_again_on_another_machine(tmp_path, monkeypatch):
    study, runs = SimpleNamespace(store=Store(tmp_path, "tests")), []
    monkeypatch.setattr(speed, "measure", lambda: runs.append(1) or FOUND)
    for processor, measured in (("one", 1), ("one", 1), ("another", 2)):
        monkeypatch.setattr(speed, "machine", lambda processor=processor: [("Processor", processor)])
        found = speed.measured(study)
        assert len(runs) == measured and found.picture_ms.tolist() == FOUND.picture_ms.tolist()


def test_minutes_are_embedding_once_per_view_and_steps_once_per_epoch():
    found = speed.expected(FOUND, 1000, epochs=30, views=4, batch=64)
    assert found == pytest.approx((4 * 1000 / 100 + 30 * 15 * 0.002) / 60)


def test_the_papers_times_stand_beside_ours():
    recipe = profile.load("paper").as_printed
    table = speed.table(FOUND, pd.read_csv(MANIFESTS / "published/jpm2026.csv")).set_index("metric")
    single, whole = table.loc["inference_ms"], table.loc["training_minutes"]
    assert (single["ours"], single["published"]) == (11, 140)
    middle = np.percentile(FOUND.picture_ms, [2.5, 97.5])
    assert single[["repeats_low", "repeats_high"]].tolist() == pytest.approx(list(middle))
    assert whole["ours"] == speed.expected(FOUND, 8260, recipe.epochs, recipe.views, recipe.batch)
    assert (whole["relation"], whole["published"]) == ("about", 42)
