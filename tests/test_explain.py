"""Where the model looks: the maps are Grad-CAM as published, for both kinds of tower."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from koa_lib.baselines import ImageGrader

from koa_lib import explain
from koa_lib.model import ClipGrader, load_clip
from koa_lib.prompts import prompts
from koa_lib.settings import Baseline


def grader_of(name, part="full_image"):
    clip, _, tokenizer = load_clip(name, seed=2)
    return ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


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


def baseline_of(name, size=64, width=0.25, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageGrader(Baseline(name, name, "random", size, width, 1, 1, 0.1, "")).eval()


@pytest.mark.parametrize("name, size, width", [("resnet50", 64, 0.25), ("vgg19_bn", 32, 0.125), ("mobilenetv1_100", 64, 1.0), ("wide_resnet50_2", 224, 0.125)])
def test_maps_of_the_baselines_equal_those_of_the_grad_cam_package(name, size, width):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    grader = baseline_of(name, size, width)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    found, (layer, _) = explain.heatmap(grader, images, [4, 0, 2]), explain._mapped(grader, size)
    theirs = GradCAM(model=grader, target_layers=[layer])(input_tensor=images, targets=[ClassifierOutputTarget(grade) for grade in (4, 0, 2)])
    ours = found - found.min((1, 2), keepdims=True)  # theirs starts at 0
    np.testing.assert_allclose(ours / (ours.max((1, 2), keepdims=True) + 1e-7), theirs, atol=1e-4)


@pytest.mark.parametrize("name, size, cells", [("resnet50", 64, "layer2, 8 x 8"), ("resnet50", 224, "layer4, 7 x 7"), ("vgg19_bn", 32, "features.25, 8 x 8"), ("vit_base_patch16_224", 64, "input of blocks.11, 4 x 4")])
def test_a_small_picture_is_mapped_where_the_network_still_has_cells(name, size, cells):
    assert cells in explain.layer(baseline_of(name, size, 0.125), size)


def test_rollout_by_hand():
    # Two tokens, two blocks, the first with two heads that average to [[.5, .5], [0, 1]].
    first = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]]])
    second = torch.tensor([[[[0.0, 1], [1, 0]]]])
    one, two = torch.tensor([[0.75, 0.25], [0, 1]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(explain.rollout([first]), one[None])
    torch.testing.assert_close(explain.rollout([first, second]), (two @ one)[None])  # [[.375, .625], [.375, .625]]


@pytest.mark.parametrize("grader", [grader_of("koa-tiny", "adapter"), baseline_of("vit_base_patch16_224")], ids=["CLIP", "timm"])
def test_attention_is_read_without_changing_the_model(grader):
    side = 112 if hasattr(grader, "tower") else 64
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        before = grader(images)
        layers = explain.attentions(grader, images)
        assert torch.equal(grader(images), before)
    tokens = 1 + (side // 16) ** 2
    assert len(layers) == len(explain._blocks(grader)) and all(layer.shape[0] == 2 and layer.shape[2:] == (tokens, tokens) for layer in layers)
    assert all(torch.allclose(layer.sum(-1), torch.ones(()), atol=1e-4) for layer in layers)
    maps = explain.attention_map(grader, images)
    assert maps.shape == (2, side, side) and maps.min() >= 0 and maps.max((1, 2)) == pytest.approx([1, 1])


def test_attention_of_clip_equals_its_formula():
    grader = grader_of("koa-tiny")
    images, visual = images_for(grader, 1), grader.clip.visual
    with torch.no_grad():
        block = visual.transformer.resblocks[0]
        tokens = block.ln_1(visual._embeds(images))
        query, key, _ = F.linear(tokens, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        query, key = (value.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for value in (query, key))
        expected = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(explain.attentions(grader, images)[0], expected, atol=1e-5, rtol=1e-4)


def test_only_a_vit_has_attention():
    assert set(explain.methods(grader_of("koa-conv"))) == {"Grad-CAM"} == set(explain.methods(baseline_of("resnet50")))
    assert set(explain.methods(grader_of("koa-tiny"))) == {"Grad-CAM", "attention rollout"}


@pytest.mark.parametrize("build", [lambda seed: grader_of("koa-conv"), lambda seed: baseline_of("resnet50", seed=seed)], ids=["CLIP", "timm"])
def test_the_same_weights_lose_nothing(build):
    grader = build(3)
    last = [changed for _, changed in explain.cascade(grader, build(3), 3)][-1]
    assert all(torch.equal(value, grader.state_dict()[key]) for key, value in last.state_dict().items())


@pytest.mark.parametrize("part", ["adapter", "projection"])
def test_weights_are_lost_from_the_output_to_the_input(part):
    def fresh(seed):
        clip, _, tokenizer = load_clip("koa-tiny", seed=seed)
        torch.manual_seed(seed)
        return ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()

    grader, untrained, lost = fresh(1), fresh(2), []
    before, start = ({key: value.clone() for key, value in one.state_dict().items()} for one in (grader, untrained))
    for share, changed in explain.cascade(grader, untrained, 4):
        state = changed.state_dict()
        lost.append({key for key in state if not torch.equal(state[key], before[key])})
        assert 0 < share <= 1 and all(torch.equal(state[key], start[key]) for key in lost[-1])
    assert all(a < b for a, b in zip(lost, lost[1:], strict=False))
    last = "adapter.up.weight" if part == "adapter" else "clip.visual.proj"
    assert last in lost[0] and "clip.visual.conv1.weight" not in lost[2] and {"clip.visual.conv1.weight", "clip.visual.positional_embedding"} <= lost[3]
    assert not [key for key in lost[3] if "transformer" in key and "visual" not in key]  # texts stay
    assert all(torch.equal(value, before[key]) for key, value in grader.state_dict().items())
