"""Self-supervised pre-training of a study's tower on knees without labels, after the recipe of OrthoFoundation."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from koa_lib import baselines, crops, dino, model, weights
from koa_lib.protocols import hashed
from koa_lib.runner import Runner

LEAST_RANK, LEAST_SPREAD = 2, 0.01  # our reading: not above both, and a tower has collapsed


def untrained(study):
    """The tower before it has seen a knee: the study's own CLIP image tower or timm's network, at a random start."""
    return _network(study, published=False)


def tower(study):
    """The pre-trained tower (the teacher), pictures (n, 3, H, W) to embeddings (n, d); trained when it is missing."""
    network = untrained(study)
    network.load_state_dict(load_file(pretrained(study) / "state.safetensors"))
    return network.eval()


def history(study):
    """The pre-training: epoch, loss, teacher_entropy (nats, means over the epoch), seconds."""
    return pd.read_csv(pretrained(study) / "history.csv")


def pretrained(study):
    """The folder of the pre-trained weights (`state.safetensors`) and `history.csv`, made once."""
    chosen, data = study.profile.systems.labels, unlabelled(study)
    key = {"settings": replace(chosen, fractions=(), seeds=1), "model": study.profile.model.name, "seed": study.seed,
           "pictures": data.shown, "weights": hashed(_place(study, chosen.published))}

    def build(folder):
        network, rows = dino.train(_network(study, chosen.published), data, chosen, study.seed)
        folder.mkdir()
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, folder / "state.safetensors")
        rows.to_csv(folder / "history.csv", index=False)

    return study.store.make("checkpoints/self-supervised", key, build)


def opened(study):
    """The `Runner` through which a study's cohorts are opened, once: pictures are asked for again for every encoder and start."""
    return study.__dict__.setdefault("_opened", Runner(study))


def unlabelled(study):
    """Pictures of the training split, at most as many as the profile says, for the role 'fit'."""
    data, positions = _training_split(study)
    order = np.random.default_rng(study.seed).permutation(positions)
    return data.part(np.sort(order[: study.profile.systems.labels.pictures]), "fit")


def _training_split(study):
    # The training cohort, and which of its pictures are in the training split.
    data = opened(study).data("training", _Sized(study.profile.our_protocol, study.profile.systems.labels.image_size))
    return data, np.flatnonzero(data.rows["split"] == "train")


def pictures_in_words(study):
    """How many pictures of the training split the pre-training sees, e.g. '640 of the 840 pictures of the training split (the limit of the profile)'."""
    seen, there = len(unlabelled(study)), len(_training_split(study)[1])
    return f"all {there:,} pictures of the training split" if seen == there else f"{seen:,} of the {there:,} pictures of the training split (the limit of the profile)"


def size_in_words(study):
    """How long the pre-training was and on what, beside what the tower is shown afterwards and beside OrthoFoundation's."""
    chosen = study.profile.systems.labels
    local = f" and {chosen.local_crop}" if chosen.local_crops else ""
    return (f"The self-supervised tower learned in {_steps(chosen, unlabelled(study)):,} steps from crops of {chosen.crop}{local} px and is then shown whole pictures at {chosen.image_size} px; "
            "OrthoFoundation's learned in 100,000 steps from crops of 224 and 98 px. A difference to the random start, or none, is a result about this pre-training, not about DINO")


def _steps(chosen, pictures):
    return chosen.epochs * max(1, len(pictures) // chosen.batch)


class _Sized:
    """A recipe's view of the pictures at another size."""

    def __init__(self, recipe, image_size):
        self.geometry, self.intensity, self.image_size = recipe.geometry, recipe.intensity, image_size


def _place(study, published):
    chosen = study.profile.systems.labels
    return weights.network(chosen.architecture, study.inputs.weights) if published and chosen.architecture else None


def _network(study, published):
    chosen = study.profile.systems.labels
    if not chosen.architecture:
        return model.load_clip(study.profile.model.name, seed=study.seed)[0].visual
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        built = baselines.create(chosen.architecture, chosen.image_size, 1.0, _place(study, published))
    built.reset_classifier(0)
    return built


def recipe(study):
    """OrthoFoundation's pre-training (METHODS 4.2: its `exp/pretrain/dinov3/full/config.yaml`) beside this run's: setting, OrthoFoundation, this_run."""
    chosen, pictures = study.profile.systems.labels, unlabelled(study)
    small = "no small crop" if not chosen.local_crops else f"{chosen.local_crops} of {chosen.local_crop} px"
    start = "timm's weights" if chosen.published else "random start"
    rows = [
        ("tower", "DINOv3 ViT-L/16, all blocks trained", f"{chosen.architecture or 'image tower of ' + study.profile.model.name}, {start}, all of it trained"),
        ("pictures", "1,251,655: 357,670 radiographs, 893,985 MRI slices", f"knee radiographs: {pictures_in_words(study)}"),
        ("steps and batch", "100,000 of 24", f"{_steps(chosen, pictures):,} of {min(chosen.batch, len(pictures))} ({chosen.epochs} {'epoch' if chosen.epochs == 1 else 'epochs'})"),
        ("optimiser", "AdamW 1e-5, weight decay 0.01, falling linearly to 0", f"AdamW {chosen.learning_rate:g}, weight decay {dino.WEIGHT_DECAY:g}, falling linearly to 0; gradients cut at norm {dino.CLIP:g} (our reading)"),
        ("loss", "DINO, weight 0.1", "DINO, weight 1: AdamW does not see the scale"),
        ("prototypes", "65,536", f"{chosen.prototypes:,}"),
        ("projection head", "not stated", f"three layers{'' if chosen.published else ', with batch normalisation because of the random start'} (our reading)"),
        ("temperatures, centre", "student 0.1, teacher 0.04; momentum 0.9", f"student {dino.STUDENT:g}, teacher {dino.TEACHER:g}; momentum {dino.CENTRE:g}"),
        ("teacher's momentum", "0.996 to 1 by a cosine", f"{chosen.momentum:g} to 1 by a cosine"),
        ("large crops", "2 of 224 px, 0.4 to 1 of the area", f"2 of {chosen.crop} px, {crops.GLOBAL[0]:g} to {crops.GLOBAL[1]:g} of the area"),
        ("small crops", "8 of 98 px, 0.05 to 0.4 of the area", f"{small}, {crops.LOCAL[0]:g} to {crops.LOCAL[1]:g} of the area"),
        ("changes", "mirror 0.5, colour jitter 0.8, gray 0.2, blur, solarise 0.2", "the same without colour: brightness and contrast by up to 40 %; the blur shrinks with the crop (our reading)"),
        ("statistics", "ImageNet", "ImageNet"),
        ("afterwards", "the whole network is fine-tuned", "the teacher's tower is frozen (our reading)"),
    ]
    return pd.DataFrame(rows, columns=["setting", "OrthoFoundation", "this_run"])


def history_in_words(rows, prototypes):
    """What the loss of a pre-training says, and what it does not.

    Parameters
    ----------
    rows : DataFrame
        As from `history`.
    prototypes : int
    """
    last, ceiling = rows.iloc[-1], math.log(prototypes)
    if ceiling - last.teacher_entropy < 0.02 * ceiling:
        reading = "The teacher gives all prototypes the same share: the answers have collapsed, or have hardly begun to differ."
    elif last.loss > 0.98 * ceiling:
        reading = "The teacher's answers differ, but the student is no better than one that answers all prototypes alike: little has been learned."
    else:
        reading = "The student predicts the teacher better than one that answers all prototypes alike."
    return (f"After {len(rows)} {'epoch' if len(rows) == 1 else 'epochs'} the loss is {last.loss:.2f} nats: {last.loss - last.teacher_entropy:+.2f} against the teacher's entropy, "
            f"{last.loss - ceiling:+.2f} against ln K. {reading} The pre-training took {last.seconds:.0f} s on this machine; OrthoFoundation's is 100,000 steps on four A100.")


def spread(embeddings):
    """Whether a tower tells pictures apart: a collapsed one answers alike to all.

    Parameters
    ----------
    embeddings : array (n, d)

    Returns
    -------
    dict
        `spread`, the standard deviation of the unit-length embeddings times sqrt(d): 0 when all are equal, 1 when they point everywhere
        alike (Chen & He 2021); `effective_rank`, the exponential of the entropy of the singular values about the mean, 1 to d (Roy & Vetterli 2007).
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    values = values / values.sum() if values.sum() > 1e-6 * len(unit) else np.ones(1)
    entropy = -(values[values > 0] * np.log(values[values > 0])).sum()
    return {"spread": float(unit.std(0).mean() * math.sqrt(unit.shape[1])), "effective_rank": float(np.exp(entropy))}


def spread_in_words(own, other):
    """Whether a pre-trained tower has collapsed, by which rule, and what the rule does not count.

    Parameters
    ----------
    own, other : Series
        spread, effective_rank and dimensions of the pre-trained tower and of the random one.
    """
    whole = own.effective_rank > LEAST_RANK and own.spread > LEAST_SPREAD
    rule = f"an effective rank above {LEAST_RANK} and a spread above {LEAST_SPREAD:g} are asked for, which only a complete collapse fails"
    fewer = "The effective rank is lower than the random one's: its embeddings differ in fewer directions, which this rule does not count. " if own.effective_rank < other.effective_rank else ""
    return (f"The self-supervised tower has spread {own.spread:.2f} and effective rank {own.effective_rank:.1f} of {own.dimensions}, the random one {other.spread:.2f} and {other.effective_rank:.1f}. "
            f"It {'has not collapsed' if whole else 'has collapsed and answers nearly alike to all pictures'} by our reading: {rule}. "
            f"{fewer}A random tower tells pictures apart too: being different is needed for grading, not enough.")
