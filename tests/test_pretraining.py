"""Contrastive pre-training: it learns, and the same seed gives the same weights."""

from types import SimpleNamespace

import numpy as np
import torch

from koa_lib import model, pretraining

SETTINGS = SimpleNamespace(seed=3, epochs=3, batch=8, learning_rate=1e-3)


def trained():
    """The weights of a CLIP before and after it has seen bright and dark films."""
    bright = np.arange(32) % 2 == 1
    images = np.random.default_rng(0).integers(0, 80, (32, 112, 112)).astype(np.uint8)
    images[bright] += 150
    captions = [f"a {'bright' if one else 'dark'} film, number {number}" for number, one in enumerate(bright)]
    clip, preprocess, tokenizer = model.load_clip("koa-tiny", seed=1)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    pretraining.train(clip, (images, np.arange(32), tokenizer(captions), preprocess.statistics), SETTINGS)
    return before, clip.state_dict()


def test_training_lowers_the_printed_loss_moves_both_towers_and_follows_its_seed(capsys):
    before, after = trained()
    told = capsys.readouterr().out.splitlines()
    losses = [float(line.split("contrastive loss ")[1].split(";")[0]) for line in told]
    assert len(losses) == SETTINGS.epochs and losses[-1] < losses[0]
    for name in ("visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert not torch.equal(before[name], after[name])
    again = trained()[1]
    assert all(torch.equal(after[name], again[name]) for name in after)
