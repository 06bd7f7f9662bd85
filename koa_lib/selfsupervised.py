"""Self-supervised pre-training of a study's tower on knees without labels, after the recipe of
OrthoFoundation."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from koa_lib import dino, model, networks, weights
from koa_lib.protocols import hashed

LEAST_RANK, LEAST_SPREAD = 2, 0.01  # our reading: a tower that is not above both has collapsed


def untrained(study):
    """The tower before it has seen a knee: the study's own CLIP image tower or timm's network, at a random
    start."""
    return _network(study, published=False)


def tower(experiment):
    """The pre-trained tower (the teacher), pictures (n, 3, H, W) to embeddings (n, d); trained when it is
    missing."""
    network = untrained(experiment.study)
    network.load_state_dict(load_file(pretrained(experiment) / dino.STATE))
    return network.eval()


def history(experiment):
    """The pre-training: epoch, loss, teacher_entropy (nats, means over the epoch), seconds."""
    return pd.read_csv(pretrained(experiment) / dino.HISTORY)


def pretrained(experiment):
    """The folder of the pre-trained weights (`state.safetensors`) and `history.csv`, made once."""
    study, chosen, data = experiment.study, experiment.study.profile.systems.labels, unlabelled(experiment)
    key = {
        "settings": replace(chosen, fractions=(), seeds=1),
        "model": study.profile.model.name,
        "seed": study.seed,
        "pictures": data.appearance,
        "weights": hashed(_place(study, chosen.published)),
    }

    def network():
        return _network(study, chosen.published)

    build = partial(dino.pretrain, network=network, data=data, chosen=chosen, seed=study.seed)
    code = [networks.create if chosen.architecture else model.load_clip]
    return study.store.make("checkpoints/self-supervised", key, build, code)


def unlabelled(experiment):
    """Pictures of the training split, at most as many as the profile says, for the role 'fit'."""
    study = experiment.study
    chosen, ours = study.profile.systems.labels, study.profile.our_protocol
    data = experiment.pictures("training", ours.view, chosen.image_size)
    order = np.random.default_rng(study.seed).permutation(np.flatnonzero(data.rows["split"] == "train"))
    return data.part(np.sort(order[: chosen.pictures]), "fit")


def training(experiment):
    """How long the pre-training is: unlabelled (pictures that it sees), steps, batch."""
    chosen, seen = experiment.study.profile.systems.labels, len(unlabelled(experiment))
    steps = chosen.epochs * max(1, seen // chosen.batch)
    return {"unlabelled": seen, "steps": steps, "batch": min(chosen.batch, seen)}


def _place(study, published):
    architecture = published and study.profile.systems.labels.architecture
    return weights.network(architecture, study.inputs.weights) if architecture else None


def _network(study, published):
    chosen = study.profile.systems.labels
    if not chosen.architecture:
        return model.load_clip(study.profile.model.name, seed=study.seed)[0].visual
    place = _place(study, published)
    return networks.headless(study.seed, chosen.architecture, chosen.image_size, 1.0, place)


def spread(embeddings):
    """Whether a tower tells pictures apart: a collapsed one answers alike to all.

    Parameters
    ----------
    embeddings : array (n, d)

    Returns
    -------
    dict
        `spread`, the standard deviation of the unit-length embeddings times sqrt(d): 0 when all are equal, 1
        when they point everywhere alike (Chen & He 2021); `effective_rank`, the exponential of the entropy of
        the singular values about the mean, 1 to d (Roy & Vetterli 2007).
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    values = values / values.sum() if values.sum() > 1e-6 * len(unit) else np.ones(1)
    entropy = -(values[values > 0] * np.log(values[values > 0])).sum()
    return {
        "spread": float(unit.std(0).mean() * math.sqrt(unit.shape[1])),
        "effective_rank": float(np.exp(entropy)),
    }


def collapsed(found):
    """Whether a tower with this `spread` answers nearly alike to all pictures: a complete collapse."""
    return found["effective_rank"] <= LEAST_RANK or found["spread"] <= LEAST_SPREAD
