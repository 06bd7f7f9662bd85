"""Frozen encoders: one row of embeddings for each picture, the same for every reader, never trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from koa_lib.datasets import KneeDataset, to_tensor
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.settings import Encoder
from koa_lib.store import digest
from koa_lib.systems import encoders

START = Encoder("Start", "start", "", 112, 1.0, "")
RANDOM = Encoder("Random", "random", "resnet18", 32, 0.25, "")


def embedded(experiment, spec, part):
    arm = encoders.arm(experiment, spec, "some", None)
    return experiment.source(arm, part).all()


@pytest.mark.parametrize("spec", [START, RANDOM], ids=lambda spec: spec.source)
def test_each_picture_has_its_own_embedding(easy_study, spec):
    experiment = Experiment(easy_study)
    data = experiment.data("training", encoders.arm(experiment, spec, "some", None))
    values, picked = embedded(experiment, spec, data), [3, 0, 17]
    assert len(values) == len(data) and np.isfinite(values).all()
    encoder = encoders.trunk(experiment, spec).build()
    with torch.no_grad():
        direct = encoder.trunk(to_tensor(data.images(picked), "clip")).numpy()
    assert np.allclose(values[picked], direct, rtol=2e-2, atol=2e-2 * np.abs(direct).max())
    assert np.array_equal(embedded(experiment, spec, data.part(picked, "report")), values[picked])


def test_pictures_of_no_cohort_are_embedded_too(easy_study):
    experiment = Experiment(easy_study)
    data = experiment.data("training", encoders.arm(experiment, RANDOM, "some", None))
    rows, images = data.rows.iloc[:5], data.images(np.arange(5))
    drawn = KneeDataset(rows, images, np.arange(5), origin=digest(images.tobytes()), name="others")
    values = embedded(experiment, RANDOM, drawn)
    assert np.allclose(values, embedded(experiment, RANDOM, data)[:5], atol=0.05 * np.abs(values).max())


def test_nothing_of_an_encoder_is_trained(easy_study):
    assert not any(
        value.requires_grad for value in encoders.trunk(Experiment(easy_study), RANDOM).build().parameters()
    )


def test_published_encoders_are_the_true_architectures():
    from koa_lib.systems import foundation

    with torch.device("meta"):
        counts = [
            sum(value.numel() for value in model.parameters())
            for model in (foundation.biomed_clip(sentences=["a knee"])[0], foundation.RadDino())
        ]
    assert counts == [195_902_721, 86_580_480]  # BiomedCLIP; dinov2-base at 518 px


@pytest.fixture
def small(monkeypatch):
    """The published encoders with fewer and narrower blocks."""
    from koa_lib.systems import foundation, texts

    bert = replace(texts.BERTS["PubMedBERT"], config={**texts.BERTS["tiny"].config, "vocab_size": 40})
    monkeypatch.setitem(texts.BERTS, "PubMedBERT", bert)
    monkeypatch.setattr(
        foundation, "VISION", {**foundation.VISION, "timm_model_name": "vit_tiny_patch16_224"}
    )
    monkeypatch.setattr(
        foundation,
        "DINO",
        {
            **foundation.DINO,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
        },
    )
    return foundation


def test_biomedclip_reads_the_files_of_its_page(small, tmp_path):
    ours, _ = small.biomed_clip(seed=1, sentences=["knee"])
    state = ours.state_dict() | {
        "text.transformer.embeddings.position_ids": torch.arange(512)[None]
    }  # as older files have it
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "knee", "chest"])
    )
    theirs, tokenizer = small.biomed_clip(tmp_path, seed=2)
    assert tokenizer(["Knee", "chest knee"]).tolist() == [[2, 5, 3, 0], [2, 6, 5, 3]]
    images, tokens = torch.randn(2, 3, 224, 224), tokenizer(["knee", "chest"])
    with torch.no_grad():
        assert torch.equal(ours.encode_image(images), theirs.encode_image(images)) and torch.equal(
            ours.encode_text(tokens), theirs.encode_text(tokens)
        )
        assert theirs.encode_text(tokens).shape == (2, 512)


def test_rad_dino_normalises_pictures_as_its_page_says(small, tmp_path):
    import json

    from safetensors.torch import save_file

    ours = small.RadDino(seed=1)
    save_file(ours.network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    theirs = small.RadDino(tmp_path, seed=2)
    gray = torch.rand(2, 56, 56)
    with torch.no_grad():
        wanted = ours.network(
            pixel_values=((gray - 0.5) / 0.25)[:, None].expand(-1, 3, -1, -1)
        ).last_hidden_state[:, 0]
        assert torch.allclose(
            theirs(to_tensor(gray.numpy(), "clip")), wanted, atol=1e-4
        ) and wanted.shape == (2, 64)


def test_other_weights_are_refused_with_advice(small, tmp_path):
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]")
    with pytest.raises(
        StudyError, match="holds no weights of BiomedCLIP.*huggingface.co/microsoft/BiomedCLIP"
    ):
        small.biomed_clip(tmp_path)


@pytest.mark.parametrize("name", ["BiomedCLIP", "RAD-DINO"])
def test_missing_weights_are_named_with_their_files(name, tmp_path):
    from koa_lib.systems import foundation

    with pytest.raises(StudyError, match=f"holds no weights of {name}.*{foundation.PAGES[name].files[0]}"):
        foundation.place_of(name, tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    for file in foundation.PAGES[name].files:
        (folder / file).touch()
    assert foundation.place_of(name, tmp_path) == folder


def test_an_encoder_without_texts_is_not_asked(easy_study):
    with pytest.raises(StudyError, match="'Random'.*knows no texts"):
        encoders.clip_of(Experiment(easy_study), RANDOM, [])
