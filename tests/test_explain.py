"""Where the model looks: maps as published for both kinds of tower, and their scores by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from koa_lib.baselines import ImageGrader
from scipy.stats import spearmanr

from koa_lib import explain
from koa_lib.model import ClipGrader, load_clip
from koa_lib.settings import Baseline


def grader_of(name, part="full_image", seed=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip, _, tokenizer = load_clip(name, seed=seed)
        return ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


def baseline_of(name, size=64, width=0.25, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageGrader(Baseline(name, name, "random", size, width, 1, 1, 0.1, "")).eval()


def noise(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


CLIPS = {"koa-tiny": 112, "koa-conv": 144}
NETWORKS = {
    "resnet50": (64, 0.25),
    "vgg19_bn": (32, 0.125),
    "mobilenetv1_100": (64, 1.0),
    "wide_resnet50_2": (224, 0.125),
    "vit_base_patch16_224": (64, 0.25),
}


def reshaped(values):
    """Tokens as a picture of their patches."""
    side = round((values.shape[1] - 1) ** 0.5)
    return values if values.ndim == 4 else values[:, 1:].transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize("name", [*CLIPS, *NETWORKS])
def test_maps_equal_those_of_the_grad_cam_package(name):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    grader = grader_of(name) if name in CLIPS else baseline_of(name, *NETWORKS[name])
    size = CLIPS.get(name) or NETWORKS[name][0]
    images, grades = noise(3, size, 1), (4, 0, 2)
    found, layer = explain.heatmap(grader, images, grades), explain.mapped_layer(grader, size)
    package = GradCAM(grader, [grader.get_submodule(layer)], reshape_transform=reshaped)
    theirs = package(images, [ClassifierOutputTarget(grade) for grade in grades])
    ours = found - found.min((1, 2), keepdims=True)  # theirs starts at 0
    np.testing.assert_allclose(ours / (ours.max((1, 2), keepdims=True) + 1e-7), theirs, atol=1e-4)


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks", "both_encoders"])
def test_every_reading_has_maps_of_its_own_answer_and_is_left_as_it_is(part):
    grader, images = grader_of("koa-tiny", part), noise(2, 112)
    before = {key: value.clone() for key, value in grader.state_dict().items()}
    with torch.no_grad():
        logits = grader(images)
    maps = explain.heatmap(grader, images)
    assert maps.shape == (2, 112, 112) and maps.min() >= 0
    assert all(value == pytest.approx(1) or value == 0 for value in maps.max((1, 2)))
    np.testing.assert_array_equal(maps, explain.heatmap(grader, images, logits.argmax(1)))
    np.testing.assert_allclose(maps[1], explain.heatmap(grader, images[1:])[0], atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in grader.state_dict().items())
    assert all(p.grad is None for p in grader.parameters())
    torch.testing.assert_close(grader(images).detach(), logits)


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet50", 64, "network.layer2"),
        ("resnet50", 224, "network.layer4"),
        ("vgg19_bn", 32, "network.features.25"),
        ("vit_base_patch16_224", 64, "network.blocks.10"),
    ],
)
def test_a_small_picture_is_mapped_where_the_network_still_has_cells(name, size, layer):
    assert explain.mapped_layer(baseline_of(name, size, 0.125), size) == layer


def test_rollout_by_hand():
    # Two tokens, two blocks, the first with two heads that average to [[.5, .5], [0, 1]].
    first = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]]])
    second = torch.tensor([[[[0.0, 1], [1, 0]]]])
    one, two = torch.tensor([[0.75, 0.25], [0, 1]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(explain.rollout([first]), one[None])
    torch.testing.assert_close(
        explain.rollout([first, second]), (two @ one)[None]
    )  # [[.375, .625], [.375, .625]]


@pytest.mark.parametrize(
    ("build", "side"),
    [(lambda: grader_of("koa-tiny", "adapter"), 112), (lambda: baseline_of("vit_base_patch16_224"), 64)],
    ids=["CLIP", "timm"],
)
def test_attention_is_read_without_changing_the_model(build, side):
    grader, images = build(), noise(2, side, 5)
    with torch.no_grad():
        before = grader(images)
        layers = explain.attentions(grader, images)
        assert torch.equal(grader(images), before)
    tokens = 1 + (side // 16) ** 2
    assert len(layers) in (4, 12) and all(layer.shape[::2] == (2, tokens) for layer in layers)
    assert all(torch.allclose(layer.sum(-1), torch.ones(()), atol=1e-4) for layer in layers)
    maps = explain.attention_map(grader, images)
    assert maps.shape == (2, side, side) and maps.min() >= 0
    cells = explain.rollout(layers)[:, 0, 1:].numpy()
    coarse = explain.resized(maps, side // 16).reshape(2, -1)
    assert all(
        np.corrcoef(*pair)[0, 1] > 0.9 for pair in zip(coarse, cells, strict=True)
    )  # each at its place


def test_attention_of_clip_equals_its_formula():
    grader = grader_of("koa-tiny")
    images, visual = noise(1, 112), grader.clip.visual
    with torch.no_grad():
        block = visual.transformer.resblocks[0]
        tokens = block.ln_1(visual._embeds(images))
        query, key, _ = F.linear(tokens, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        query, key = (
            value.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for value in (query, key)
        )
        expected = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(explain.attentions(grader, images)[0], expected, atol=1e-5, rtol=1e-4)


def test_only_a_vit_has_attention():
    assert (
        set(explain.methods(grader_of("koa-conv")))
        == {"Grad-CAM"}
        == set(explain.methods(baseline_of("resnet50")))
    )
    assert set(explain.methods(grader_of("koa-tiny"))) == {"Grad-CAM", "attention rollout"}


def test_at_last_a_cascade_has_lost_all_that_is_not_text():
    grader, untrained = (baseline_of("resnet50", seed=seed) for seed in (3, 4))
    *_, last = explain.cascade(grader, untrained, 3)
    assert all(torch.equal(value, untrained.state_dict()[key]) for key, value in last.state_dict().items())


@pytest.mark.parametrize("part", ["adapter", "projection"])
def test_weights_are_lost_from_the_output_to_the_input(part):
    grader, untrained, lost = grader_of("koa-tiny", part, 1), grader_of("koa-tiny", part, 2), []
    before, start = (
        {key: value.clone() for key, value in one.state_dict().items()} for one in (grader, untrained)
    )
    for changed in explain.cascade(grader, untrained, 4):
        state = changed.state_dict()
        lost.append({key for key in state if not torch.equal(state[key], before[key])})
        assert all(torch.equal(state[key], start[key]) for key in lost[-1])
    assert len(lost) == 4 and all(a < b for a, b in zip(lost, lost[1:], strict=False))
    first = {"clip.visual.conv1.weight", "clip.visual.positional_embedding"}
    assert ("adapter.up.weight" if part == "adapter" else "clip.visual.proj") in lost[0]
    assert not first & lost[2] and first <= lost[3]
    assert not [key for key in lost[3] if "transformer" in key and "visual" not in key]  # texts stay
    assert all(torch.equal(value, before[key]) for key, value in grader.state_dict().items())


# Scores


def square(number=1):
    mask = np.zeros((number, 8, 8), bool)
    mask[:, 2:6, 2:6] = True
    return mask


def test_share_inside_by_hand():
    maps = np.zeros((3, 8, 8))
    maps[0, 2, 2], maps[0, 0, 0], maps[1] = 3, 1, 1
    assert explain.inside(maps, square(3)) == pytest.approx(
        [0.75, 16 / 64, np.nan], nan_ok=True
    )  # a flat map: the area


def test_maps_of_other_patients_are_laid_over_a_picture():
    maps, masks = np.zeros((4, 8, 8)), np.zeros((4, 8, 8), bool)
    maps[0, 0, 0], maps[1, 1, 1], maps[2, 2, 2] = 1, 1, 5  # the last map is all 0
    masks[:, 2, 2], masks[3, 0, 0] = True, True
    assert explain.of_others(maps, masks, np.array(list("abbc"))) == pytest.approx([1 / 2, 0, 0, 2 / 3])
    assert np.isnan(explain.of_others(maps, masks, np.array(list("aaaa")))).all()


def test_rank_correlation_is_that_of_spearman():
    a, b = np.random.default_rng(4).random((2, 3, 28, 28)).astype(np.float32)
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    assert explain.rank_correlation(a, b) == pytest.approx(expected, abs=1e-6)
    assert explain.rank_correlation(a, a**3) == pytest.approx([1] * 3)
    assert np.isnan(explain.rank_correlation(a, np.zeros_like(a))).all()


def test_cells_are_changed_from_the_highest_on_and_ties_by_chance():
    maps = np.zeros((200, 28, 28), np.float32)
    maps[:, :2, :2] = 1  # one cell
    found = explain.turns(maps, np.random.default_rng(0))
    assert (found[:, 0] == 0).all() and all(sorted(row) == list(range(196)) for row in found.tolist())
    assert abs(np.corrcoef(found[:, 1:].ravel(), np.tile(np.arange(195), 200))[0, 1]) < 0.05


def test_the_blob_grows_from_the_middle():
    found = np.argsort(explain.turns(explain.blob(3), np.random.default_rng(0)), axis=1)
    away = (found // explain.CELLS - 6.5) ** 2 + (found % explain.CELLS - 6.5) ** 2
    assert (np.diff(away, axis=1) >= 0).all()


class Corner(torch.nn.Module):
    """Grade 1 is the more probable the brighter the upper left corner; grade 0 takes the rest."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, images):
        logit = self.scale * images[:, 0, :8, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(logit), logit, *[torch.full_like(logit, -50.0)] * 3], dim=1)


def corners(count):
    pictures = np.zeros((count, 56, 56), np.uint8)
    pictures[:, :8, :8] = 255
    return pictures


def test_deletion_by_the_right_map_falls_first_and_insertion_rises_first():
    pictures, right = corners(3), np.zeros((3, 56, 56), np.float32)
    right[:, :8, :8] = 1
    found = explain.curves(
        Corner(), pictures, "clip", {"right": right, "wrong": 1 - right}, np.ones(3, int), 7, 1
    )
    areas = {
        kind: {name: explain.area(values).mean() for name, values in made.items()}
        for kind, made in found.items()
    }
    deletion, insertion = pd.Series(areas["deletion"]), pd.Series(areas["insertion"])
    assert set(deletion.index) == set(insertion.index) == {"right", "wrong", explain.RANDOM, explain.CENTRE}
    assert deletion.idxmin() == insertion.idxmax() == "right"
    sharp = explain.probabilities(Corner(), pictures, "clip")[:, 1]
    for deletion, insertion in zip(found["deletion"].values(), found["insertion"].values(), strict=True):
        assert deletion.shape == (3, 8) and deletion[:, 0] == pytest.approx(sharp) == insertion[:, -1]
        assert deletion[:, -1] == pytest.approx(insertion[:, 0]) and (deletion[:, -1] < sharp - 0.2).all()


def test_a_map_of_zeros_is_like_random_order():
    zeros = {"zeros": np.zeros((300, 56, 56), np.float32)}
    found = explain.curves(Corner(), corners(300), "clip", zeros, np.ones(300, int), 6, 2)
    for made in found.values():
        own, random = explain.area(made["zeros"]), explain.area(made[explain.RANDOM])
        assert own.mean() == pytest.approx(
            random.mean(), abs=float(4 * np.sqrt((own.var() + random.var()) / 300))
        )


def test_area_is_the_trapezoid():
    assert explain.area(np.array([[1.0, 0.5, 0.0], [1, 1, 1]])) == pytest.approx([0.5, 1])
