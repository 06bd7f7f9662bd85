"""BERT text encoders: published sizes, the same vocabulary every time, and other weights are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from koa_lib.errors import StudyError
from koa_lib.prompts import PROMPT_SETS, TABLE_1
from koa_lib.systems import texts


@pytest.mark.parametrize("name, words, cased", [
    ("BioClinicalBERT", 28996, True), ("PubMedBERT", 30522, False),
])  # fmt: skip
def test_the_published_ones_are_bert_base_with_their_own_vocabulary(name, words, cased):
    from transformers import BertConfig, BertModel

    bert = texts.BERTS[name]
    with torch.device("meta"):
        model = BertModel(BertConfig(**bert.config), add_pooling_layer=False)
    # As bert-base-uncased without its pooler, whose vocabulary has 30,522 pieces of 768 numbers.
    expected = 109_482_240 - 590_592 + 768 * (words - 30522)
    assert sum(value.numel() for value in model.parameters()) == expected and bert.cased == cased


def test_the_five_grades_have_five_embeddings_that_another_call_repeats():
    first, again, other = (texts.create("tiny", seed=seed).embed(TABLE_1) for seed in (1, 1, 2))
    assert first.shape == (5, 128) and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.allclose(first, other)
    distances = np.linalg.norm(first[:, None] - first, axis=-1)
    assert (distances[~np.eye(5, dtype=bool)] > 0.1).all()


def test_a_sentence_does_not_hang_on_the_others_of_its_batch():
    encoder = texts.create("tiny")
    together = encoder.embed([TABLE_1[0], TABLE_1[3]])
    assert np.allclose(together[0], encoder.embed([TABLE_1[0]])[0], atol=1e-5)


def test_our_own_texts_need_no_unknown_piece_and_case_is_kept_where_it_should():
    tokenizer = texts.create("tiny").tokenizer
    for prompts in PROMPT_SETS.values():
        assert not any("[UNK]" in found.tokens for found in tokenizer.encode_batch(list(prompts)))
    for cased, word in ((True, "Grade"), (False, "grade")):
        assert texts.vocabulary(TABLE_1, 500, cased).encode("Grade 1").tokens == ["[CLS]", word, "1", "[SEP]"]


def test_the_vocabulary_is_the_same_in_every_run_and_keeps_its_size():
    made = [texts.vocabulary(sentences, 60, cased=True).get_vocab() for sentences in (TABLE_1, TABLE_1[::-1])]
    assert made[0] == made[1] and len(made[0]) == 60


def test_an_unknown_encoder_is_named():
    with pytest.raises(StudyError, match="'GPT'.*BioClinicalBERT"):
        texts.create("GPT")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A published BERT in small: its configuration and name, nothing else changed."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 60}
    bert = texts.Bert("somewhere/Small_BERT", True, {**texts.BERTS["tiny"].config, **sizes})
    monkeypatch.setitem(texts.BERTS, "Small", bert)


def publish(folder, suffix="bin", **changed):
    """Files as a hub page has them: weights with the heads of pre-training, vocabulary and configuration."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(3)
    config = BertConfig(**{**texts.BERTS["Small"].config, **changed})
    model = BertForPreTraining(config)
    folder.mkdir()
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    if suffix == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    told = {"model_type": "bert", **config.to_diff_dict()}
    (folder / "config.json").write_text(json.dumps(told, default=str))
    vocabulary = texts.vocabulary(TABLE_1, 60, cased=True).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return model


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_published_weights_are_read_from_a_folder(tmp_path, suffix):
    model = publish(tmp_path / "Small", suffix)
    encoder = texts.create("Small", texts.place("Small", str(tmp_path)))
    ids = torch.tensor([encoder.tokenizer.encode(TABLE_1[0]).ids])
    with torch.no_grad():
        states = model.bert.eval()(input_ids=ids).last_hidden_state
    assert np.allclose(encoder.embed([TABLE_1[0]])[0], states[0].mean(0).numpy(), atol=1e-5)


def test_weights_or_a_vocabulary_of_another_size_are_refused(tmp_path):
    publish(tmp_path / "Small", hidden_size=64)
    with pytest.raises(StudyError, match="Small"):
        texts.create("Small", tmp_path / "Small")
    publish(tmp_path / "other")
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(texts.SPECIAL) + "\n")
    with pytest.raises(StudyError, match="vocab.txt.* 5 .* 60 "):
        texts.create("Small", tmp_path / "other")


def test_absent_weights_are_told_with_what_to_put_where(tmp_path):
    with pytest.raises(StudyError, match="emilyalsentzer/Bio_ClinicalBERT") as error:
        texts.place("BioClinicalBERT", str(tmp_path))
    assert "vocab.txt" in str(error.value) and "WEIGHTS=" in str(error.value)


def test_a_dry_run_asks_no_hub_and_its_weights_are_told_to_be_random(easy_study, monkeypatch):
    monkeypatch.setattr(texts, "place", None)  # calling it would fail
    dry = replace(easy_study, inputs=replace(easy_study.inputs, dry=True))
    assert texts.embed(dry, "Small", TABLE_1).shape == (5, 32)
    assert "random weights" in texts.described(dry, "Small")
    assert "random weights" not in texts.described(easy_study, "Small")
