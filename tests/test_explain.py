"""Where the model looks: the maps are Grad-CAM as published, for both kinds of tower."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from koa_lib import explain
from koa_lib.model import ClipGrader, load_clip


def grader_of(name, part="full_image"):
    clip, _, tokenizer = load_clip(name, seed=2)
    return ClipGrader(clip, tokenizer, part, "as_printed").eval()


def images_for(grader, count=2):
    size = grader.clip.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def gradient_by_steps(logit, activations, step=1e-2):
    """Mean derivative of a logit by each channel of (channels, places), by central differences."""
    slopes = []
    for channel in range(activations.shape[0]):
        ends = []
        for sign in (1, -1):
            moved = activations.clone()
            moved[channel] += sign * step  # all places at once: the sum of their derivatives
            ends.append(logit(moved).item())
        slopes.append((ends[0] - ends[1]) / (2 * step) / activations[0].numel())
    return torch.tensor(slopes)


@torch.no_grad()
@pytest.mark.parametrize("name", ["koa-tiny", "koa-conv"])
def test_map_is_grad_cam_by_finite_differences(name):
    grader, grade = grader_of(name), 3
    images = images_for(grader, 1)
    visual = grader.clip.visual
    if grader.tower.is_vit:
        tokens = visual._embeds(images)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        side = round((tokens.shape[1] - 1) ** 0.5)
        values = tokens[0, 1:].T.reshape(-1, side, side)

        def logit(moved):
            patches = moved.flatten(1).T[None]
            pooled = visual.ln_post(visual.transformer.resblocks[-1](torch.cat([tokens[:, :1], patches], 1))[:, 0]) @ visual.proj
            return grader.logits(F.normalize(pooled, dim=-1))[0, grade]
    else:
        trunk = visual.trunk
        values = trunk.layer4(grader.tower.until(images, "tokens"))[0]

        def logit(moved):
            return grader.logits(F.normalize(visual.head(trunk.global_pool(moved[None])), dim=-1))[0, grade]

    weights = gradient_by_steps(logit, values)
    expected = F.interpolate(F.relu((weights[:, None, None] * values).sum(0))[None, None], images.shape[-2:], mode="bilinear")[0, 0]
    found = explain.heatmap(grader, images, [grade])[0]
    np.testing.assert_allclose(found, expected / expected.max(), atol=0.03)


@pytest.mark.parametrize("name, part", [("koa-tiny", "adapter"), ("koa-tiny", "projection"), ("koa-tiny", "last_blocks"), ("koa-tiny", "both_encoders"), ("koa-conv", "both_encoders")])
def test_every_reading_has_maps_and_keeps_its_weights(name, part):
    grader = grader_of(name, part)
    images, before = images_for(grader), {key: value.clone() for key, value in grader.state_dict().items()}
    with torch.no_grad():
        logits = grader(images)
    maps = explain.heatmap(grader, images)
    assert maps.shape == (2, *images.shape[-2:]) and maps.min() >= 0 and all(value == pytest.approx(1) or value == 0 for value in maps.max((1, 2)))
    np.testing.assert_array_equal(maps, explain.heatmap(grader, images, logits.argmax(1)))
    assert all(torch.equal(value, before[key]) for key, value in grader.state_dict().items()) and all(p.grad is None for p in grader.parameters())
    with torch.no_grad():
        assert torch.equal(grader(images), logits)


def test_map_of_a_picture_does_not_depend_on_its_neighbours():
    grader = grader_of("koa-conv")
    images = images_for(grader, 3)
    np.testing.assert_allclose(explain.heatmap(grader, images)[1], explain.heatmap(grader, images[1:2])[0], atol=1e-3)


def test_map_points_at_what_the_grade_depends_on():
    # A tower that sees only the upper left quarter: only there can its map be bright.
    grader = grader_of("koa-conv")
    pool = grader.clip.visual.trunk.global_pool

    class Corner(torch.nn.Module):
        def forward(self, values):
            mask = torch.zeros_like(values)
            mask[..., :2, :2] = 1
            return pool(values * mask)

    grader.clip.visual.trunk.global_pool = Corner()
    images = torch.zeros(1, 3, 144, 144)
    images[..., :40, :40] = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(4))
    bright = [explain.heatmap(grader, images, [grade])[0] for grade in range(5)]
    best = max(bright, key=lambda map_: map_[:60, :60].max())
    assert best[:60, :60].mean() > best[84:, 84:].mean()
