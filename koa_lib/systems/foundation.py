"""Published foundation models: BiomedCLIP and RAD-DINO.

Zhang et al. 2023, arXiv:2303.00915; Pérez-García et al. 2025, doi:10.1038/s42256-024-00965-w. Their
configurations are literals, so that a dry run builds the true architectures, with random weights, and asks
no hub.
"""

import json
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
from torch import nn

from koa_lib import weights
from koa_lib.datasets import STATISTICS
from koa_lib.device import compute_device, random_state
from koa_lib.systems.texts import BERTS, vocabulary
from koa_lib.tower import Frozen


@dataclass(frozen=True)
class Page:
    """A model's page on the hub and the files needed from it, the weights first."""

    page: str
    files: tuple


PAGES = {
    "BiomedCLIP": Page(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        ("open_clip_pytorch_model.bin", "vocab.txt"),
    ),
    "RAD-DINO": Page("microsoft/rad-dino", ("model.safetensors", "preprocessor_config.json")),
}
# As open_clip_config.json and config.json of these pages have them.
EMBEDDING, CONTEXT, BERT = 512, 256, "PubMedBERT"
VISION = {
    "timm_model_name": "vit_base_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
    "image_size": 224,
}
TEXT = {
    "hf_model_pretrained": False,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": CONTEXT,
}
DINO = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
}


def place_of(name, given=""):
    """The folder with the files of one of `PAGES`, from the folder WEIGHTS or the hub, see
    `weights.folder`."""
    return weights.folder(name, PAGES[name].page, PAGES[name].files, given)


def biomed_clip(place=None, seed=0, sentences=()):
    """BiomedCLIP and its tokenizer.

    Parameters
    ----------
    place : Path, optional
        Folder with the files of its page; without it the weights are random, drawn with `seed`, and the
        vocabulary is made of `sentences`.

    Returns
    -------
    clip : open_clip.CustomTextCLIP
    tokenizer : callable, texts -> int tensor (n, tokens)

    Raises
    ------
    StudyError
        A folder with weights of another architecture.
    """
    import open_clip
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig

    with TemporaryDirectory() as folder, random_state(seed):
        # open_clip reads the text tower's configuration from a folder
        BertConfig(**BERTS[BERT].config).save_pretrained(folder)
        clip = open_clip.CustomTextCLIP(EMBEDDING, VISION, {**TEXT, "hf_model_name": folder})
    if place is None:
        words = vocabulary(list(sentences), BERTS[BERT].config["vocab_size"], BERTS[BERT].cased)
    else:
        with _fitting("BiomedCLIP", place):
            open_clip.load_checkpoint(clip, str(weights.file_of(place)))
        words = BertWordPieceTokenizer(str(place / "vocab.txt"), lowercase=not BERTS[BERT].cased)
    words.enable_padding()
    words.enable_truncation(CONTEXT)
    return clip.eval(), lambda texts: torch.tensor([found.ids for found in words.encode_batch(list(texts))])


class RadDino(nn.Module):
    """RAD-DINO's class token, (n, 768), of pictures normalised with CLIP's statistics.

    Parameters
    ----------
    place : Path, optional
        Folder with the files of its page: pictures are normalised anew as its `preprocessor_config.json`
        says. Without it the weights are random, drawn with `seed`.
    """

    def __init__(self, place=None, seed=0):
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        with random_state(seed):
            self.network = Dinov2Model(Dinov2Config(**DINO))
        mean, std = own = STATISTICS["clip"]
        if place is not None:
            with _fitting("RAD-DINO", place):
                self.network.load_state_dict(weights.tensors(place))
            said = json.loads((place / PAGES["RAD-DINO"].files[1]).read_text(encoding="utf-8"))
            own = (said["image_mean"], said["image_std"])
        for name, value in zip(("mean", "std", "own_mean", "own_std"), (mean, std, *own), strict=True):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        gray = images * self.std + self.mean
        return self.network(pixel_values=(gray - self.own_mean) / self.own_std).last_hidden_state[:, 0]


def frozen(source, place, seed, name):
    """The image tower of BiomedCLIP or RAD-DINO, not trained, on the device that is computed on; `source` as
    in a profile."""
    made = RadDino(place, seed) if source == "rad-dino" else biomed_clip(place, seed, [name])[0].visual
    return Frozen(made).to(compute_device())


def _fitting(name, place):
    return weights.fitting(name, place, f"huggingface.co/{PAGES[name].page}")
