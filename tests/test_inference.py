"""A frozen network made quick gives the same features, and so does a ViT of which only the class token is
made in the last block."""

import pytest
import torch
import torch.nn.functional as F

from koa_lib import explain, inference
from koa_lib.device import autocast, bf16
from koa_lib.model import ClipGrader, load_clip
from koa_lib.prompts import prompts

SIDE, MANY = 224, 5000


@pytest.fixture(scope="module")
def loaded():
    clip, _, tokenizer = load_clip("ViT-B-32-quickgelu")
    return clip, tokenizer


def grader_of(loaded, part):
    return ClipGrader(*loaded, part, prompts("as_printed")).eval()


@pytest.fixture(scope="module")
def grader(loaded):
    """A grader on a processor whose bf16 units pay; others are slower and compute the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
        yield grader_of(loaded, "adapter")


@pytest.mark.parametrize("units, pays", [
    ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
    ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
    ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True), ({"avx2": True}, False)])
def test_bf16_is_taken_where_it_pays(loaded, monkeypatch, units, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert bf16(grader_of(loaded, "adapter")) == pays


@pytest.fixture(scope="module")
def pictures():
    smooth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(smooth, (SIDE, SIDE), mode="bicubic")


@torch.no_grad()
def embedded(grader, pictures):
    with autocast(grader):
        return grader.trunk(pictures).float()


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks"])
@torch.no_grad()
def test_the_class_token_alone_makes_the_towers_embedding(loaded, pictures, part):
    made = grader_of(loaded, part)
    found = made.tower.after(made.trunk(pictures), made.stage)
    assert torch.allclose(found, loaded[0].encode_image(pictures), atol=1e-4)


def test_attention_of_the_last_block_is_that_of_every_token(loaded, pictures):
    made = grader_of(loaded, "last_blocks")
    with torch.no_grad():
        layers = explain.attentions(made, pictures[:1])
    assert [tuple(layer.shape) for layer in layers] == 12 * [(1, 12, 50, 50)]


@pytest.mark.parametrize("engine", ["torch, bf16", "OpenVINO, bf16"])
@torch.no_grad()
def test_a_quick_trunk_gives_the_same_embeddings_of_any_number_of_pictures(
        grader, pictures, monkeypatch, engine):
    if engine == "torch, bf16":
        monkeypatch.setattr(inference, "find_spec", lambda name: None)
    else:
        pytest.importorskip("openvino")
    quick, exact = inference.quick(grader, "trunk", SIDE, MANY), grader.trunk(pictures)
    assert inference.engine(grader, SIDE, MANY) == engine and quick is not grader
    assert inference.engine(grader, SIDE, 10) == "torch, bf16"  # compiling would take longer
    found = embedded(quick, pictures)
    assert F.cosine_similarity(found, exact).min() > 0.999
    # Random weights embed all pictures nearly alike, so that rounding tells in what sets them apart.
    assert F.cosine_similarity(found - found.mean(0), exact - exact.mean(0)).min() > 0.9
    assert torch.allclose(embedded(quick, pictures[:1]), found[:1], atol=0.05)
    assert {value.dtype for value in grader.parameters()} == {torch.float32}  # it was not changed


def test_small_networks_stay_as_they_are():
    clip, _, tokenizer = load_clip("koa-tiny")
    made = ClipGrader(clip, tokenizer, "adapter", prompts("as_printed")).eval()
    assert inference.quick(made, "trunk", 112, MANY) is made
