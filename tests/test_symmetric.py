"""The tower of two halves: its answer does not depend on left and right, nor on polarity, and maps lie where
it looked."""

import numpy as np
import pytest
import torch

from koa_lib import explain, model
from koa_lib.phantoms.cohorts import captioned
from koa_lib.prompts import prompts
from koa_lib.symmetric import Upright


@pytest.fixture(scope="module")
def grader():
    clip, _, tokenizer = model.load_clip("koa-conv", seed=3)
    return model.ClipGrader(clip, tokenizer, "both_encoders", prompts("as_printed")).eval()


@pytest.fixture(scope="module")
def pictures():
    gray = torch.as_tensor(captioned(12, 5, 128)[0])[:, None].float() / 255
    return gray.expand(-1, 3, -1, -1)


def test_a_mirror_image_has_the_same_embedding_and_a_changed_half_another(grader, pictures):
    with torch.no_grad():
        plain, mirrored = (grader.embed_features(shown) for shown in (pictures, pictures.flip(-1)))
        changed = pictures.clone()
        changed[..., :50] = changed[..., :50].flip(-2)
        other = grader.embed_features(changed)
    assert torch.allclose(plain, mirrored, atol=1e-5)
    assert (plain - other).abs().amax(1).min() > 1e-3


def test_brightness_contrast_and_once_trained_polarity_make_no_difference(pictures):
    upright = Upright()
    for _ in range(30):
        upright(pictures)
    upright.eval()
    plain = upright(pictures)
    assert torch.allclose(plain.mean((1, 2, 3)), torch.zeros(12), atol=1e-5)
    for shown in (0.4 * pictures + 0.3, 1 - pictures):
        assert torch.allclose(upright(shown), plain, atol=1e-4)
    assert not torch.allclose(Upright()(1 - pictures), plain, atol=0.1)  # nothing is known yet


def test_maps_are_mirrored_with_the_picture_and_lie_where_the_halves_were_read(grader, pictures):
    grades = np.arange(12) % 5
    maps = explain.heatmap(grader, pictures, grades)
    assert maps.shape == (12, 128, 128) and maps.max() == pytest.approx(1)
    assert np.allclose(explain.heatmap(grader, pictures.flip(-1), grades), maps[..., ::-1], atol=1e-3)
    assert not maps[:, :12].any() and not maps[:, 116:].any() and maps[:, 20:108].any()
