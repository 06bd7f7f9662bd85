"""Networks: the architecture that a row names, narrowed only as it says."""

from dataclasses import replace

import pytest
import timm
import torch

from koa_lib import networks, training
from koa_lib.errors import StudyError
from koa_lib.profile import load

SMOKE = load("smoke").baselines
NAMED = pytest.mark.parametrize("spec", SMOKE, ids=lambda spec: spec.timm)


@NAMED
def test_a_network_learns_as_a_whole_and_its_state_restores_the_grades(spec, tmp_path):
    grader, again = networks.ImageGrader(spec), networks.ImageGrader(spec)
    images = torch.randn(4, 3, spec.image_size, spec.image_size)
    grader.train_tail()
    logits = grader.tail(grader.trunk(images))  # moves running statistics
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (4, 5) and all(value.grad is not None for value in grader.parameters())
    training.save_state(grader, tmp_path / "s.safetensors")
    training.load_state(again, tmp_path / "s.safetensors")
    with torch.no_grad():
        assert torch.equal(grader.eval()(images), again.eval()(images))


@NAMED
def test_only_the_last_layer_learns_where_the_row_says_so(spec, tmp_path):
    frozen = replace(spec, trained="last_layer")
    grader, images = networks.untrained(3, frozen), torch.randn(4, 3, spec.image_size, spec.image_size)
    trunk = networks.frozen(3, spec.timm, spec.image_size, spec.width)
    with torch.no_grad():
        features = grader.eval().trunk(images)
        assert torch.allclose(features, trunk.trunk(images), atol=1e-5)  # what an arm keeps of a trunk
        assert torch.allclose(grader.tail(features), networks.untrained(3, spec).eval()(images), atol=1e-5)
    grader.train_tail()
    grader.tail(features).logsumexp(1).sum().backward()
    learns = {name for name, value in grader.named_parameters() if value.grad is not None}
    assert learns == set(grader.trained_state()) and 0 < len(learns) <= 2
    assert "frozen" in networks.described(frozen) and "frozen" not in networks.described(spec)


@NAMED
def test_a_body_gives_what_the_last_layer_reads(spec):
    grader = networks.ImageGrader(spec).eval()
    images, body = torch.randn(3, 3, spec.image_size, spec.image_size), networks.body(lambda: grader)
    with torch.no_grad():
        embeddings = body.trunk(images)
        assert torch.allclose(grader.network.get_classifier()(embeddings), grader.tail(images), atol=1e-5)
    assert embeddings.ndim == 2 and not any(value.requires_grad for value in body.parameters())


@pytest.mark.parametrize(("name", "width"), [
    ("resnet50", 0.5), ("wide_resnet50_2", 0.25), ("vit_base_patch16_224", 0.25), ("vgg19_bn", 0.125),
    ("convnext_small", 0.25)])
def test_a_width_narrows_and_keeps_the_depth(name, width):
    with torch.device("meta"):
        both = networks.create(name, 64, 1.0), networks.create(name, 64, width)
    # A narrow stage may need no projection in its shortcut.
    layers = [[key for key, module in network.named_modules() if "downsample" not in key
               and isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))] for network in both]
    whole, narrow = (sum(value.numel() for value in network.parameters()) for network in both)
    assert layers[0] == layers[1] and narrow < 1.3 * width * whole


def test_full_width_is_the_named_architecture():
    with torch.device("meta"):
        ours = networks.create("wide_resnet50_2", 224, 1.0)
        theirs = timm.create_model("wide_resnet50_2", num_classes=5)
    assert [value.shape for value in ours.parameters()] == [value.shape for value in theirs.parameters()]


def test_a_width_without_a_meaning_is_refused():
    with pytest.raises(StudyError, match="'densenet121'.*0.5"):
        networks.create("densenet121", 64, 0.5)


def test_a_reduction_is_told_in_the_row():
    narrow = replace(SMOKE[1], width=0.5)
    assert networks.described(narrow) == "resnet50, 32 px, width x 0.5, 1 epoch, random start"
    assert "width" not in networks.described(replace(narrow, width=1.0))
