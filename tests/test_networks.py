"""Networks: the architecture that a row names, narrowed only as it says."""

from dataclasses import replace

import pytest
import timm
import torch

from koa_lib import networks, training
from koa_lib.errors import StudyError
from koa_lib.profile import load

SMOKE = load("smoke").baselines


@pytest.mark.parametrize("spec", SMOKE, ids=lambda spec: spec.timm)
def test_a_network_grades_and_learns(spec):
    torch.manual_seed(0)
    grader = networks.ImageGrader(spec)
    grader.train_tail()
    images = torch.randn(4, 3, spec.image_size, spec.image_size)
    logits = grader.tail(grader.trunk(images))
    assert logits.shape == (4, 5)
    logits.logsumexp(1).sum().backward()
    assert all(value.grad is not None for value in grader.parameters())


@pytest.mark.parametrize("spec", SMOKE, ids=lambda spec: spec.timm)
def test_trained_state_restores_the_grades(spec, tmp_path):
    grader, again = networks.ImageGrader(spec), networks.ImageGrader(spec)
    images = torch.randn(4, 3, spec.image_size, spec.image_size)
    grader.train_tail()
    grader(images)  # moves running statistics
    training.save_state(grader, tmp_path / "s.safetensors")
    training.load_state(again, tmp_path / "s.safetensors")
    with torch.no_grad():
        assert torch.equal(grader.eval()(images), again.eval()(images))


@pytest.mark.parametrize(
    "name, width",
    [
        ("resnet50", 0.5),
        ("wide_resnet50_2", 0.25),
        ("vit_base_patch16_224", 0.25),
        ("vgg19_bn", 0.125),
        ("convnext_small", 0.25),
    ],
)
def test_width_narrows_and_keeps_the_depth(name, width):
    with torch.device("meta"):
        whole, narrow = networks.create(name, 64, 1.0), networks.create(name, 64, width)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)  # a narrow stage may need no projection in its shortcut
    layers = [
        sum(isinstance(module, kinds) for key, module in network.named_modules() if "downsample" not in key)
        for network in (whole, narrow)
    ]
    sizes = [sum(p.numel() for p in network.parameters()) for network in (whole, narrow)]
    assert layers[0] == layers[1] and sizes[1] < 1.3 * width * sizes[0]


def test_full_width_is_the_named_architecture():
    with torch.device("meta"):
        ours, theirs = (
            networks.create("wide_resnet50_2", 224, 1.0),
            timm.create_model("wide_resnet50_2", num_classes=5),
        )
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_width_without_a_meaning_is_refused():
    with pytest.raises(StudyError, match="'densenet121' can't be built with width 0.5"):
        networks.create("densenet121", 64, 0.5)


def test_reduction_is_told_in_the_row():
    narrow = SMOKE[1]
    assert networks.described(narrow) == "resnet50, 32 px, width x 0.5, 1 epochs, random start"
    assert "width" not in networks.described(replace(narrow, width=1.0))


@pytest.mark.parametrize(
    "spec", [*SMOKE, *load("smoke").systems.embeddings.networks], ids=lambda spec: spec.timm
)
def test_a_body_gives_what_the_last_layer_reads(spec):
    grader = networks.ImageGrader(spec).eval()
    images = torch.randn(3, 3, spec.image_size, spec.image_size)
    body = networks.body(lambda: grader)
    with torch.no_grad():
        embeddings = body.trunk(images)
        assert torch.allclose(grader.network.get_classifier()(embeddings), grader.tail(images), atol=1e-5)
    assert embeddings.ndim == 2 and not any(value.requires_grad for value in body.parameters())
