"""Frozen image encoders: a cohort's pictures to embeddings, computed once and kept in the store.

Published encoders and the stand-ins of the profiles that load no weights have one face: `trunk`, pictures to embeddings.
"""

import numpy as np
import pandas as pd
import torch
from torch import nn

from koa_lib import crops, selfsupervised, sources, weights
from koa_lib.datasets import KneeDataset
from koa_lib.device import compute_device
from koa_lib.errors import StudyError
from koa_lib.protocols import BaselineRecipe, hashed, our_arm
from koa_lib.runner import Runner
from koa_lib.store import made_from
from koa_lib.tower import Tower

STATISTICS = {"timm": "imagenet", "dino": crops.STATISTICS}  # of the pictures that an encoder was trained on; CLIP's for the others


class Encoder(nn.Module):
    """A frozen network of pictures.

    Parameters
    ----------
    network : Module
        Normalised images (n, 3, H, W) to embeddings (n, d).
    key : dict
        What identifies its weights, for the store.
    """

    stage = "embedding"

    def __init__(self, network, key, low_precision=False):
        super().__init__()
        self.network, self.key, self.low_precision = network.eval().requires_grad_(False), key, low_precision

    def trunk(self, images):
        """Embeddings (n, d) of normalised images (n, 3, H, W)."""
        return self.network(images)


def create(study, spec):
    """The frozen encoder that a profile names.

    Parameters
    ----------
    spec : settings.Encoder

    Raises
    ------
    StudyError
        A source that has no builder, or weights that are neither given nor on the hub.
    """
    if spec.source not in _BUILDERS:
        raise StudyError(f"Encoder '{spec.name}' has the source '{spec.source}'; known: {', '.join(_BUILDERS)}.")
    return _BUILDERS[spec.source](study, spec).to(compute_device())


def embed(study, spec, role, geometry=None):
    """Embeddings of a cohort's pictures, in the intensity of our protocol, and in its geometry unless another is named.

    Parameters
    ----------
    spec : settings.Encoder
    role : {'training', 'external'}

    Returns
    -------
    array (n, d) float32 in the order of `pictures_of`'s rows; None when the study has no such cohort.
    """
    data = pictures_of(study, spec, role, geometry)
    if data is None:
        return None
    recipe = _recipe(study, spec, geometry)
    key = {"encoder": spec, "seed": study.seed, "normalisation": recipe.normalisation, "pictures": data.shown, "weights": _weights(study, spec)}
    name = f"features/encoder-{spec.name.lower()}__{getattr(study.profile, role).name}{f'__{geometry}' if geometry else ''}.npy"
    path = study.store.make(name, key, lambda path: sources.extract(create(study, spec), data, recipe, study.seed, path))
    return np.load(path)[0].astype(np.float32)


def embed_images(study, spec, draw, name, key):
    """Embeddings of pictures that belong to no cohort.

    Parameters
    ----------
    draw : callable
        Without arguments; gives the pictures (n, H, W), uint8 or float in [0, 1], when they are needed.
    name : str
        What the pictures are, for the file's name.
    key : dict
        Everything that the pictures depend on.

    Returns
    -------
    array (n, d) float32
    """
    recipe = _recipe(study, spec)

    def build(path):
        images = draw()
        sources.extract(create(study, spec), KneeDataset(pd.DataFrame(index=range(len(images))), images, np.arange(len(images))), recipe, study.seed, path)

    key = {"encoder": spec, "seed": study.seed, "normalisation": recipe.normalisation, "weights": _weights(study, spec), **key}
    return np.load(study.store.make(f"features/encoder-{spec.name.lower()}__{name}.npy", key, build, [draw]))[0].astype(np.float32)


def clip_of(study, spec, sentences):
    """CLIP and tokenizer of which an encoder is the image tower; `sentences` are the vocabulary where no published one is loaded.

    Raises
    ------
    StudyError
        An encoder that knows no texts.
    """
    import open_clip

    if spec.source == "biomedclip":
        from koa_lib.foundation import biomed_clip

        return biomed_clip(_place(study, spec), study.seed, sentences)
    if spec.source not in ("start", "trained"):
        raise StudyError(f"Encoder '{spec.name}' (source '{spec.source}') knows no texts. Use one of: start, trained, biomedclip.")
    arm = our_arm(study)
    grader = arm.build() if spec.source == "start" else Runner(study).grader(arm)
    return grader.clip, open_clip.get_tokenizer(study.profile.model.name)


def pictures_of(study, spec, role, geometry=None):
    """The `KneeDataset` of a cohort as an encoder sees it; None when the study has no such cohort."""
    return selfsupervised.opened(study).data(role, _recipe(study, spec, geometry))


def _recipe(study, spec, geometry=None):
    ours = {**study.profile.our_protocol.__dict__, **({"geometry": geometry} if geometry else {})}
    return BaselineRecipe(**{**ours, "normalisation": STATISTICS.get(spec.source, "clip"), "views": 1, "image_size": spec.image_size})


def _weights(study, spec):
    # What the weights are, without building the encoder: it is only built when embeddings are missing. Random ones follow from seed and code.
    if spec.source == "start":
        return our_arm(study).key
    if spec.source == "trained":
        return made_from(selfsupervised.opened(study).checkpoint(our_arm(study)))
    if spec.source == "dino":
        return made_from(selfsupervised.pretrained(study))
    return hashed(_place(study, spec))


def _place(study, spec):
    # Where published weights lie; None for an encoder without them, and in a dry run.
    if study.dry or spec.source not in (*weights.FOUNDATIONS, "timm"):
        return None
    find, name = (weights.network, spec.architecture) if spec.source == "timm" else (weights.foundation, weights.FOUNDATIONS[spec.source])
    return find(name, study.inputs.weights)


def _start_tower(study, spec):
    return _of_tower(our_arm(study).build().clip.visual)


def _trained_tower(study, spec):
    return _of_tower(Runner(study).grader(our_arm(study)).clip.visual)


def _of_tower(tower):
    # A small ViT gains nothing from bf16.
    return Encoder(tower, {}, low_precision=not Tower(tower).is_vit or tower.proj.shape[0] >= 512)


def _dino(study, spec):
    return _of_tower(selfsupervised.tower(study))


def _random(study, spec):
    # Without an architecture it is the tower of the self-supervised start, untrained.
    return _timm(study, spec) if spec.architecture else _of_tower(selfsupervised.untrained(study))


def _timm(study, spec):
    from koa_lib.baselines import create as network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        built = network(spec.architecture, spec.image_size, spec.width, _place(study, spec))
    built.reset_classifier(0)
    return Encoder(built, {}, low_precision=True)


def _biomed_clip(study, spec):
    from koa_lib.foundation import biomed_clip  # slow to import

    return Encoder(biomed_clip(_place(study, spec), study.seed, [spec.name])[0].visual, {}, low_precision=True)


def _rad_dino(study, spec):
    from koa_lib.foundation import RadDino

    return Encoder(RadDino(_place(study, spec), study.seed), {}, low_precision=True)


_BUILDERS = {"start": _start_tower, "trained": _trained_tower, "timm": _timm, "random": _random, "dino": _dino,
              "biomedclip": _biomed_clip, "rad-dino": _rad_dino}
