"""Contrastive pre-training: it learns, and the same seed gives the same weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from koa_lib import model, pretraining

SETTINGS = SimpleNamespace(seed=3, epochs=3, batch=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (32, 112, 112)).astype(np.uint8)
    bright = np.arange(32) % 2 == 1
    images[bright] += 150
    captions = [f"a {'bright' if b else 'dark'} film, number {k}" for k, b in enumerate(bright)]
    return images, captions


def trained(pairs):
    images, captions = pairs
    clip, preprocess, tokenizer = model.load_clip("koa-tiny", seed=1)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    pretraining.train(clip, (images, np.arange(32), tokenizer(captions), preprocess.statistics), SETTINGS)
    return clip, before


def test_training_lowers_the_printed_loss_and_moves_both_towers(pairs, capsys):
    clip, before = trained(pairs)
    losses = [float(line.split("contrastive loss ")[1].split(";")[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == SETTINGS.epochs and losses[-1] < losses[0]
    for name in ("visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert not torch.equal(before[name], clip.state_dict()[name])


def test_same_seed_gives_the_same_weights(pairs):
    first, second = trained(pairs)[0].state_dict(), trained(pairs)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
