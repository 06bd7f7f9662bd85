"""Frozen BERT text encoders: sentences to embeddings.

Published ones have their configuration as a literal, so that a dry run builds the true architecture without a
hub; its weights are random then and its vocabulary is made of the study's own texts. `tiny` is such an
encoder of reduced size, the stand-in of profiles that load no weights.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from koa_lib import weights
from koa_lib.device import compute_device, random_state
from koa_lib.errors import StudyError
from koa_lib.prompts import PROMPT_SETS

# BERT-base (Devlin et al. 2019), as the hub pages' config.json have it.
_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
_SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}


@dataclass(frozen=True)
class Bert:
    """A BERT by name: its page on the hub ('' without published weights), whether case is kept, and its
    configuration."""

    page: str
    cased: bool
    config: dict


BERTS = {
    # Trained with case kept; the hub page has no tokenizer_config.json, so that a default tokenizer would
    # lower it.
    "BioClinicalBERT": Bert("emilyalsentzer/Bio_ClinicalBERT", True, {**_BASE, "vocab_size": 28996}),
    # The text tower of BiomedCLIP (PubMedBERT).
    "PubMedBERT": Bert(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", False, {**_BASE, "vocab_size": 30522}
    ),
    "tiny": Bert("", True, {**_BASE, **_SMALL, "vocab_size": 512}),
}
FILES = ("pytorch_model.bin", "vocab.txt")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def place(name, given=""):
    """The folder with the weights and the vocabulary of one of `BERTS`, from the folder WEIGHTS or the hub,
    see `weights.folder`."""
    return weights.folder(name, BERTS[name].page, FILES, given)


class TextEncoder:
    """A frozen BERT with its WordPiece tokenizer."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        tokenizer.enable_padding()
        tokenizer.enable_truncation(model.config.max_position_embeddings)

    @torch.no_grad()
    def embed(self, sentences):
        """Mean of the last layer's states over a sentence's tokens (our reading), float32 array (n, hidden
        size); padding does not count."""
        found = self.tokenizer.encode_batch(list(sentences))
        tokens, mask = (
            torch.tensor([getattr(one, name) for one in found], device=self.model.device)
            for name in ("ids", "attention_mask")
        )
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).float().cpu().numpy()


def create(name, place=None, seed=0):
    """A text encoder by name.

    Parameters
    ----------
    name : str
        Of `BERTS`.
    place : Path, optional
        Folder with its weights and `vocab.txt`, as from `place`; without it the weights are random, drawn
        with `seed`, and the vocabulary is our own.

    Raises
    ------
    StudyError
        Unknown name, or weights of another architecture.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel

    if name not in BERTS:
        raise StudyError(f"The text encoder '{name}' is unknown. Use one of: {', '.join(BERTS)}.")
    bert = BERTS[name]
    config = BertConfig(**bert.config)
    if place is not None:
        tokenizer = BertWordPieceTokenizer(str(place / "vocab.txt"), lowercase=not bert.cased)
        return TextEncoder(_published(name, place, config, tokenizer).to(compute_device()), tokenizer)
    with random_state(seed):
        model = BertModel(config, add_pooling_layer=False)
    return TextEncoder(
        model.to(compute_device()), vocabulary(_own_texts(), bert.config["vocab_size"], bert.cased)
    )


def vocabulary(sentences, size, cased):
    """A WordPiece tokenizer whose vocabulary is the letters and the words of some sentences, the commonest
    words first, at most `size` pieces.

    The library's own trainer breaks ties by chance: two runs would have two vocabularies.
    """
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normal, parted = BertNormalizer(lowercase=not cased), BertPreTokenizer()
    words = Counter(
        word for sentence in sentences for word, _ in parted.pre_tokenize_str(normal.normalize_str(sentence))
    )
    letters = sorted(set("".join(words)))
    pieces = dict.fromkeys(
        [
            *SPECIAL,
            *letters,
            *(f"##{letter}" for letter in letters),
            *sorted(words, key=lambda word: (-words[word], word)),
        ]
    )
    return BertWordPieceTokenizer(
        {piece: number for number, piece in enumerate(list(pieces)[:size])}, lowercase=not cased
    )


def embed(study, name, sentences):
    """Embeddings of sentences (n, d) float32 by a frozen BERT, kept in the store; random weights in a dry
    run."""
    found = place(name, study.inputs.weights) if BERTS[name].page and not study.dry else None
    key = {
        "bert": name,
        "sentences": list(sentences),
        "weights": weights.weights_hash(found),
        "seed": study.seed,
    }

    def build(path):
        with open(path, "wb") as file:  # np.save would add a suffix to the store's temporary name
            np.save(file, create(name, found, study.seed).embed(sentences))

    return np.load(study.store.make(f"features/text-{name.lower()}.npy", key, build))


def described(study, name):
    """How a text encoder was run, e.g. 'BioClinicalBERT, 12 layers, width 768, published weights'."""
    bert = BERTS[name]
    start = (
        "published weights" if bert.page and not study.dry else "random weights, vocabulary of our own texts"
    )
    who = name if bert.page else "stand-in for BioClinicalBERT: tiny BERT"
    return f"{who}, {bert.config['num_hidden_layers']} layers, width {bert.config['hidden_size']}, {start}"


def _own_texts():
    return [text for texts in PROMPT_SETS.values() for text in texts]


def _published(name, place, config, tokenizer):
    from transformers import BertModel, logging

    if tokenizer.get_vocab_size() != config.vocab_size:
        raise StudyError(
            f"{place / 'vocab.txt'} has {tokenizer.get_vocab_size():,} pieces, not the {config.vocab_size:,} "
            f"of {name}. Give the vocabulary of {name}."
        )
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the heads of its pre-training are not used, which is no news
    try:
        with weights.fitting(name, place):
            model, found = BertModel.from_pretrained(
                None,
                config=config,
                state_dict=weights.tensors(place),
                add_pooling_layer=False,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(level)
    if found["missing_keys"]:
        raise StudyError(
            f"{place} holds no weights of {name}: {sorted(found['missing_keys'])[0]} is missing. Give the "
            "files of its hub page."
        )
    return model
