"""Where the model looks: maps as published for both kinds of tower, and their scores by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from koa_lib import explain
from koa_lib.model import ClipGrader, load_clip
from koa_lib.networks import ImageGrader
from koa_lib.prompts import prompts
from koa_lib.settings import Baseline


def clip_of(name, part="full_image", seed=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip, _, tokenizer = load_clip(name, seed=seed)
        return ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


def network_of(name, size=64, width=0.25, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageGrader(Baseline(name, name, "random", size, width, 1, 1, 0.1, "network", "")).eval()


def noise(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def kept(grader):
    return {key: value.clone() for key, value in grader.state_dict().items()}


def is_kept(grader, before):
    return all(torch.equal(value, before[key]) for key, value in grader.state_dict().items())


GRADERS = {
    "koa-tiny": (112, lambda: clip_of("koa-tiny")),
    "koa-plain": (120, lambda: clip_of("koa-plain")),
    "resnet50": (64, lambda: network_of("resnet50")),
    "vgg19_bn": (32, lambda: network_of("vgg19_bn", 32, 0.125)),
    "vit_base_patch16_224": (64, lambda: network_of("vit_base_patch16_224")),
    "swin_tiny_patch4_window7_224": (64, lambda: network_of("swin_tiny_patch4_window7_224", width=0.5)),
}


def reshaped(values):
    """Tokens as a picture of their patches, and channels first where they are last, as in a Swin."""
    side = round((values.shape[1] - 1) ** 0.5)
    if values.ndim == 4:
        return values.movedim(3, 1) if values.shape[1] == values.shape[2] < values.shape[3] else values
    return values[:, 1:].transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize("name", GRADERS)
def test_maps_equal_those_of_the_grad_cam_package(name):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    (size, build), grades = GRADERS[name], (4, 0, 2)
    grader, images = build(), noise(3, size, 1)
    found, layer = explain.heatmap(grader, images, grades), explain.mapped_layer(grader, size)
    package = GradCAM(grader, [grader.get_submodule(layer)], reshape_transform=reshaped)
    theirs = package(images, [ClassifierOutputTarget(grade) for grade in grades])
    ours = found - found.min((1, 2), keepdims=True)  # theirs starts at 0
    np.testing.assert_allclose(ours / (ours.max((1, 2), keepdims=True) + 1e-7), theirs, atol=1e-4)


def test_a_map_is_of_the_models_own_answer_and_leaves_it_as_it_is():
    grader, images = clip_of("koa-tiny", "adapter"), noise(2, 112)
    before = kept(grader)
    maps, own = explain.heatmap(grader, images), grader(images).argmax(1)
    assert maps.min() >= 0 and all(value == pytest.approx(1) or value == 0 for value in maps.max((1, 2)))
    np.testing.assert_array_equal(maps, explain.heatmap(grader, images, own))
    np.testing.assert_allclose(maps[1], explain.heatmap(grader, images[1:])[0], atol=1e-3)
    assert is_kept(grader, before) and all(value.grad is None for value in grader.parameters())


@pytest.mark.parametrize(("name", "size", "layer"), [
    ("resnet50", 64, "network.layer2"), ("resnet50", 224, "network.layer4"),
    ("vgg19_bn", 32, "network.features.25"), ("vit_base_patch16_224", 64, "network.blocks.10")])
def test_a_small_picture_is_mapped_where_the_network_still_has_cells(name, size, layer):
    assert explain.mapped_layer(network_of(name, size, 0.125), size) == layer


def test_rollout_by_hand():
    # Two tokens, two blocks, the first with two heads that average to [[.5, .5], [0, 1]].
    first = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]]])
    second = torch.tensor([[[[0.0, 1], [1, 0]]]])
    torch.testing.assert_close(explain.rollout([first]), torch.tensor([[[0.75, 0.25], [0, 1]]]))
    torch.testing.assert_close(explain.rollout([first, second]), torch.tensor([[[0.375, 0.625]] * 2]))


@pytest.mark.parametrize("name", ["koa-tiny", "vit_base_patch16_224"])
def test_attention_is_read_without_changing_the_model(name):
    side, build = GRADERS[name]
    grader, images = build(), noise(2, side, 5)
    with torch.no_grad():
        before, layers = grader(images), explain.attentions(grader, images)
        assert torch.equal(grader(images), before)
    cells = explain.rollout(layers)[:, 0, 1:].numpy()
    coarse = explain.resized(explain.attention_map(grader, images), side // 16)  # patches of 16 pixels
    for found, wanted in zip(coarse.reshape(2, -1), cells, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.9
    assert set(explain.methods(grader)) == {"Grad-CAM", "attention rollout"}


OUTPUTS = {"adapter": "adapter.up.weight", "projection": "clip.visual.proj"}


@pytest.mark.parametrize("part", OUTPUTS)
def test_weights_are_lost_from_the_output_to_the_input(part):
    grader, untrained, lost = clip_of("koa-tiny", part, 1), clip_of("koa-tiny", part, 2), []
    before, start = kept(grader), kept(untrained)
    for changed in explain.cascade(grader, untrained, 4):
        state = changed.state_dict()
        lost.append({key for key, value in state.items() if not torch.equal(value, before[key])})
        assert all(torch.equal(state[key], start[key]) for key in lost[-1])
    first = {"clip.visual.conv1.weight", "clip.visual.positional_embedding"}
    assert lost[0] < lost[1] < lost[2] < lost[3]
    assert OUTPUTS[part] in lost[0] and not first & lost[2] and first <= lost[3]
    assert not [key for key in lost[3] if "transformer" in key and "visual" not in key]  # texts stay
    assert is_kept(grader, before)


# Scores


def test_the_share_inside_and_the_area_of_a_curve_by_hand():
    maps, masks = np.zeros((3, 8, 8)), np.zeros((3, 8, 8), bool)
    maps[0, 2, 2], maps[0, 0, 0], maps[1], masks[:, 2:6, 2:6] = 3, 1, 1, True
    expected = [0.75, 16 / 64, np.nan]  # a flat map has the area
    assert explain.inside(maps, masks) == pytest.approx(expected, nan_ok=True)
    assert explain.area(np.array([[1.0, 0.5, 0.0], [1, 1, 1]])) == pytest.approx([0.5, 1])


def test_maps_of_other_patients_are_laid_over_a_picture():
    maps, masks = np.zeros((4, 8, 8)), np.zeros((4, 8, 8), bool)
    maps[0, 0, 0], maps[1, 1, 1], maps[2, 2, 2] = 1, 1, 5  # the last map is all 0
    masks[:, 2, 2], masks[3, 0, 0] = True, True
    assert explain.of_others(maps, masks, np.array(list("abbc"))) == pytest.approx([1 / 2, 0, 0, 2 / 3])
    assert np.isnan(explain.of_others(maps, masks, np.array(list("aaaa")))).all()


def test_the_rank_correlation_is_that_of_spearman():
    a, b = np.random.default_rng(4).random((2, 3, 28, 28)).astype(np.float32)
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    assert explain.rank_correlation(a, b) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(explain.rank_correlation(a, np.zeros_like(a))).all()


def test_cells_are_changed_from_the_highest_on_and_ties_by_chance():
    maps = np.zeros((200, 28, 28), np.float32)
    maps[:, :2, :2] = 1  # one cell
    found = explain.turns(maps, np.random.default_rng(0))
    assert (found[:, 0] == 0).all() and (np.sort(found) == np.arange(196)).all()
    assert abs(np.corrcoef(found[:, 1:].ravel(), np.tile(np.arange(195), 200))[0, 1]) < 0.05


class Corner(torch.nn.Module):
    """Grade 1 is the more probable the brighter the upper left corner; grade 0 takes the rest."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, images):
        logit = self.scale * images[:, 0, :8, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(logit), logit, *[torch.full_like(logit, -50.0)] * 3], dim=1)


def test_deletion_by_the_right_map_falls_first_and_insertion_rises_first():
    pictures, right = np.zeros((3, 56, 56), np.uint8), np.zeros((3, 56, 56), np.float32)
    pictures[:, :8, :8], right[:, :8, :8] = 255, 1
    maps = {"right": right, "wrong": 1 - right}
    sharp = explain.probabilities(Corner(), pictures, "clip")[:, 1]
    found = explain.curves(Corner(), pictures, "clip", maps, np.ones(3, int), 7, 1)
    for kind, best in (("deletion", min), ("insertion", max)):
        areas = {name: explain.area(one).mean() for name, one in found[kind].items()}
        assert set(areas) == {*maps, explain.RANDOM, explain.CENTRE} and best(areas, key=areas.get) == "right"
    for name, deletion in found["deletion"].items():
        insertion = found["insertion"][name]
        assert deletion.shape == (3, 8) and deletion[:, 0] == pytest.approx(sharp) == insertion[:, -1]
        assert deletion[:, -1] == pytest.approx(insertion[:, 0]) and (deletion[:, -1] < sharp - 0.2).all()
