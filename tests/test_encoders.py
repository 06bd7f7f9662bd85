"""Frozen encoders: one row of embeddings for each picture, the same for every reader, never trained."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from koa_lib.datasets import KneeDataset, to_tensor
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.settings import Encoder
from koa_lib.store import digest
from koa_lib.systems import encoders, foundation, texts

START = Encoder("Start", "start", "", 112, 1.0, "")
RANDOM = Encoder("Random", "random", "resnet18", 32, 0.25, "")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("spec", [START, RANDOM], ids=lambda spec: spec.source)
def test_each_picture_has_its_own_embedding_by_an_encoder_of_which_nothing_is_trained(easy_study, spec):
    experiment, picked = Experiment(easy_study), [3, 0, 17]
    arm = encoders.arm(experiment, spec, "some", None)
    data, encoder = experiment.data("training", arm), encoders.trunk(experiment, spec).build()
    rows, images = data.rows.iloc[picked], data.images(picked)
    other = KneeDataset(rows, images, np.arange(3), origin=digest(images.tobytes()), name="of no cohort")
    with torch.no_grad():
        direct = encoder.trunk(to_tensor(images, "clip")).numpy()
    for part in (data.part(picked, "report"), other):
        values = experiment.source(arm, part).all()
        assert np.allclose(values, direct, rtol=2e-2, atol=2e-2 * np.abs(direct).max())
    assert len(experiment.source(arm, data).all()) == len(data)
    assert not any(value.requires_grad for value in encoder.parameters())


def test_published_encoders_are_the_true_architectures():
    with torch.device("meta"):
        models = foundation.biomed_clip(sentences=["a knee"])[0], foundation.RadDino()
    counts = [sum(value.numel() for value in model.parameters()) for model in models]
    assert counts == [195_902_721, 86_580_480]  # BiomedCLIP; dinov2-base at 518 px


@pytest.fixture
def small(monkeypatch):
    """The published encoders with fewer and narrower blocks."""
    bert = replace(texts.BERTS["PubMedBERT"], config={**texts.BERTS["tiny"].config, "vocab_size": 40})
    narrow = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    monkeypatch.setitem(texts.BERTS, "PubMedBERT", bert)
    monkeypatch.setitem(foundation.VISION, "timm_model_name", "vit_tiny_patch16_224")
    monkeypatch.setattr(foundation, "DINO", {**foundation.DINO, **narrow})


def biomed_folder(folder, state, *words):
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]))


def test_biomedclip_reads_the_files_of_its_page(small, tmp_path):
    ours, _ = foundation.biomed_clip(seed=1, sentences=["knee"])
    older = {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}  # as older files have it
    biomed_folder(tmp_path, ours.state_dict() | older, "knee", "chest")
    theirs, tokenizer = foundation.biomed_clip(tmp_path, seed=2)
    assert tokenizer(["Knee", "chest knee"]).tolist() == [[2, 5, 3, 0], [2, 6, 5, 3]]
    images, tokens = torch.randn(2, 3, 224, 224), tokenizer(["knee", "chest"])
    with torch.no_grad():
        assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
        assert torch.equal(ours.encode_text(tokens), theirs.encode_text(tokens))


def test_rad_dino_normalises_pictures_as_its_page_says(small, tmp_path):
    ours, gray = foundation.RadDino(seed=1), torch.rand(2, 56, 56)
    save_file(ours.network.state_dict(), tmp_path / "model.safetensors")
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    theirs = foundation.RadDino(tmp_path, seed=2)
    with torch.no_grad():
        normalised = ((gray - 0.5) / 0.25)[:, None].expand(-1, 3, -1, -1)
        wanted = ours.network(pixel_values=normalised).last_hidden_state[:, 0]
        assert torch.allclose(theirs(to_tensor(gray.numpy(), "clip")), wanted, atol=1e-4)


def test_other_weights_are_refused_with_their_page(small, tmp_path):
    biomed_folder(tmp_path, {"nothing": torch.zeros(1)})
    with pytest.raises(StudyError, match="BiomedCLIP.*huggingface.co/microsoft/BiomedCLIP"):
        foundation.biomed_clip(tmp_path)


@pytest.mark.parametrize("name", ["BiomedCLIP", "RAD-DINO"])
def test_missing_weights_are_named_with_their_files(name, tmp_path):
    files, folder = foundation.PAGES[name].files, tmp_path / name
    with pytest.raises(StudyError, match=f"{name}.*{files[0]}"):
        foundation.place_of(name, tmp_path)
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    assert foundation.place_of(name, tmp_path) == folder
