"""Frozen encoders: one row of embeddings for each picture, the same for every reader, never trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from koa_lib import encoders
from koa_lib.errors import StudyError
from koa_lib.settings import Encoder

START = Encoder("Start", "start", "", 112, 1.0, "")
RANDOM = Encoder("Random", "random", "resnet18", 32, 0.25, "")


@pytest.mark.parametrize("spec", [START, RANDOM], ids=lambda spec: spec.source)
def test_each_picture_has_its_own_embedding(easy_study, spec):
    values = encoders.embed(easy_study, spec, "training")
    data = encoders.pictures_of(easy_study, spec, "training")
    assert len(values) == len(data) and values.dtype == np.float32 and np.isfinite(values).all()
    encoder = encoders.create(easy_study, spec)
    picked = [3, 0, 17]
    from koa_lib.datasets import to_tensor

    with torch.no_grad():
        direct = encoder.trunk(to_tensor(data.images(picked), "clip")).numpy()
    assert np.allclose(values[picked], direct, rtol=2e-2, atol=2e-2 * np.abs(direct).max())


def test_nothing_of_an_encoder_is_trained(easy_study):
    assert not any(value.requires_grad for value in encoders.create(easy_study, RANDOM).parameters())


def test_an_unknown_source_is_named(easy_study):
    with pytest.raises(StudyError, match="'magic'.*start"):
        encoders.create(easy_study, replace(START, source="magic"))


def test_without_external_pictures_there_are_no_embeddings(easy_study):
    alone = replace(easy_study, inputs=replace(easy_study.inputs, external=""))
    assert encoders.embed(alone, START, "external") is None
