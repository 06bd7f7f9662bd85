"""BERT text encoders: published configurations, the same vocabulary every time, and weights that are refused when they are another's."""

import json

import numpy as np
import pytest
import torch

from koa_lib.errors import StudyError
from koa_lib.prompts import PROMPT_SETS, TABLE_1
from koa_lib.systems import texts


def test_the_published_ones_are_bert_base_with_their_own_vocabulary():
    sizes = {name: (bert.config["hidden_size"], bert.config["num_hidden_layers"], bert.config["vocab_size"], bert.cased) for name, bert in texts.BERTS.items() if bert.page}
    assert sizes == {"BioClinicalBERT": (768, 12, 28996, True), "PubMedBERT": (768, 12, 30522, False)}


def test_bert_base_has_its_number_of_weights():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(**texts.BERTS["PubMedBERT"].config), add_pooling_layer=False)
    assert sum(value.numel() for value in model.parameters()) == 109_482_240 - 590_592  # bert-base-uncased without its pooler


def test_the_five_grades_have_five_embeddings_that_another_call_repeats():
    first, again, other = (texts.create("tiny", seed=seed).embed(TABLE_1) for seed in (1, 1, 2))
    assert first.shape == (5, 128) and first.dtype == np.float32 and np.array_equal(first, again) and not np.allclose(first, other)
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
    assert tokenizer.encode("Grade 1").tokens == ["[CLS]", "Grade", "1", "[SEP]"]
    assert texts.vocabulary(TABLE_1, 500, cased=False).encode("Grade 1").tokens[1] == "grade"


def test_a_word_that_the_vocabulary_lacks_is_parted_into_letters():
    assert texts.vocabulary(["abc ab"], 100, cased=True).encode("cab").tokens == ["[CLS]", "c", "##a", "##b", "[SEP]"]


def test_the_vocabulary_is_the_same_in_every_run_and_keeps_its_size():
    made = [texts.vocabulary(sentences, 60, cased=True).get_vocab() for sentences in (TABLE_1, TABLE_1[::-1])]
    assert made[0] == made[1] and len(made[0]) == 60


def test_an_unknown_encoder_is_named():
    with pytest.raises(StudyError, match="'GPT'.*BioClinicalBERT"):
        texts.create("GPT")


@pytest.fixture
def small(monkeypatch):
    """A published BERT in small: its configuration and name, nothing else changed."""
    config = {**texts.BERTS["tiny"].config, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 60}
    bert = texts.Bert("somewhere/Small_BERT", True, config)
    monkeypatch.setitem(texts.BERTS, "Small", bert)
    return bert


def publish(folder, seed, suffix="bin", **changed):
    """Files as a hub page has them: weights with the heads of pre-training, vocabulary and configuration."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(seed)
    config = BertConfig(**{**texts.BERTS["Small"].config, **changed})
    model = BertForPreTraining(config)
    folder.mkdir(parents=True)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    if suffix == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config.to_diff_dict()}, default=str))
    vocabulary = texts.vocabulary(TABLE_1, 60, cased=True).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return model


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_published_weights_are_read_from_a_folder(tmp_path, small, suffix):
    model = publish(tmp_path / "Small", 3, suffix)
    place = texts.place("Small", str(tmp_path))
    encoder = texts.create("Small", place)
    ids = torch.tensor([encoder.tokenizer.encode(TABLE_1[0]).ids])
    with torch.no_grad():
        states = model.bert.eval()(input_ids=ids).last_hidden_state
    assert np.allclose(encoder.embed([TABLE_1[0]])[0], states[0].mean(0).numpy(), atol=1e-5)


def test_weights_of_another_size_are_refused(tmp_path, small):
    publish(tmp_path / "Small", 3, hidden_size=64)
    with pytest.raises(StudyError, match="no weights of Small"):
        texts.create("Small", tmp_path / "Small")


def test_a_vocabulary_of_another_size_is_refused(tmp_path, small):
    publish(tmp_path / "Small", 3)
    (tmp_path / "Small" / "vocab.txt").write_text("\n".join(texts.SPECIAL) + "\n")
    with pytest.raises(StudyError, match="5 pieces, not the 60"):
        texts.create("Small", tmp_path / "Small")


def test_absent_weights_are_one_sentence_that_says_what_to_put_where(tmp_path):
    with pytest.raises(StudyError) as error:
        texts.place("BioClinicalBERT", str(tmp_path))
    assert all(word in str(error.value) for word in ("BioClinicalBERT", "emilyalsentzer/Bio_ClinicalBERT", "vocab.txt", "WEIGHTS=<folder>"))


def test_embeddings_are_kept_and_a_dry_run_asks_no_hub(easy_study, monkeypatch):
    from dataclasses import replace

    def refuse(*arguments):
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(texts, "place", refuse)
    monkeypatch.setitem(texts.BERTS, "Small", texts.Bert("somewhere/Small_BERT", True, {**texts.BERTS["tiny"].config, "hidden_size": 32}))
    dry = replace(easy_study, inputs=replace(easy_study.inputs, dry=True))
    assert texts.embed(dry, "Small", TABLE_1).shape == (5, 32)
    assert "random weights" in texts.described(dry, "Small") and "published" in texts.described(easy_study, "Small")
    assert np.array_equal(texts.embed(easy_study, "tiny", TABLE_1), texts.embed(easy_study, "tiny", TABLE_1))
