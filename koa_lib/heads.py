"""Projection heads over frozen features of pictures and texts, and their soft CLIP losses (LumbarCLIP)."""

import copy
import hashlib
import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from koa_lib import encoders, predictions, splits, texts, training
from koa_lib.device import compute_device, device_of
from koa_lib.errors import StudyError
from koa_lib.grades import prompts
from koa_lib.losses import batch_targets, similarity_targets, soft_clip, soft_clip_floor
from koa_lib.metrics import confusion, from_confusion
from koa_lib.settings import Encoder
from koa_lib.sources import Features
from koa_lib.threads import threads

HEADS = ("linear", "non-linear")
LOSSES = ("similarity", "label-aware", "ordinal")
DIMENSIONS = 256  # of the common space; the paper prints none, public code of this loss has 256
TEMPERATURE = 0.07  # at the start, as in CLIP
LARGEST_SCALE = 100  # as in CLIP


def head(kind, width):
    """A projection of features of some width into the common space: one linear layer, or two with a GELU between (our reading of 'non-linear')."""
    if kind == "linear":
        return nn.Linear(width, DIMENSIONS)
    if kind == "non-linear":
        return nn.Sequential(nn.Linear(width, DIMENSIONS), nn.GELU(), nn.Linear(DIMENSIONS, DIMENSIONS))
    raise StudyError(f"The head '{kind}' is unknown. Use one of: {', '.join(HEADS)}.")


class PairModel(nn.Module):
    """Frozen features of pictures and of the five prompts, each with a trained head into a common space, and a learned temperature.

    Parameters
    ----------
    kind : str
        Of `HEADS`, for both sides.
    images : tensor (n, d)
        Features of the fitting part; their mean and spread standardise all others.
    sentences : tensor (5, t)
        Features of the prompts, grade 0 first.
    """

    def __init__(self, kind, images, sentences):
        super().__init__()
        self.register_buffer("centre", images.mean(0))
        self.register_buffer("spread", _spread(images))
        self.register_buffer("sentences", (sentences - sentences.mean(0)) / _spread(sentences))
        self.image_head, self.text_head = head(kind, images.shape[1]), head(kind, sentences.shape[1])
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    @property
    def scale(self):
        """The inverse temperature, at most 100."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def embed(self, features):
        """Features (n, d) to unit vectors (n, 256)."""
        return F.normalize(self.image_head((features - self.centre) / self.spread), dim=-1)

    def prototypes(self):
        """Unit vectors (5, 256) of the prompts."""
        return F.normalize(self.text_head(self.sentences), dim=-1)

    def forward(self, features):
        """Features (n, d) to logits (n, 5): similarity to the prototypes, times the scale."""
        return self.scale * self.embed(features) @ self.prototypes().T

    def trained_state(self):
        """All that `training.save_state` keeps."""
        return self.state_dict()


def _spread(values):
    return values.std(0).clamp(min=1e-6)  # a feature that never changes stays 0


def loss_and_floor(model, features, grades, kind):
    """A loss of `LOSSES` on a batch of features (n, d) with grades (n,), and what it cannot undercut there, in nats."""
    images, captions = model.embed(features), model.prototypes()[grades]
    if kind == "similarity":
        targets = similarity_targets(images, captions, model.scale)
    else:
        targets = batch_targets(grades, {"label-aware": "hard", "ordinal": "ordinal"}[kind])
    return soft_clip(images, captions, model.scale, targets), soft_clip_floor(targets, grades)


@threads(1)
def train(model, fit, select, settings, kind, weight_decay, seed):
    """Train the heads and keep the epoch that the inner part likes best (quadratic kappa).

    Parameters
    ----------
    fit, select : sources.Features
        Roles 'fit' and 'select': nothing is fitted or chosen on what is reported.
    settings : settings.Heads
    kind : str
        Of `LOSSES`.

    Returns
    -------
    DataFrame
        epoch, batch (pictures), loss, floor (means over the epoch's batches, nats), qwk (inner part).
    """
    training.check_role(fit, "fit")
    training.check_role(select, "select")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=weight_decay, fused=True)
    features, grades = _all(fit, device_of(model))
    batch = min(settings.batch, len(grades))
    steps = settings.epochs * (len(grades) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    rows, best = [], (-2.0, None)
    for epoch in range(1, settings.epochs + 1):
        # What does not fill a batch waits for the next epoch's order: the floor hangs on the size of the batch.
        batches = torch.randperm(len(grades), generator=generator)[: len(grades) // batch * batch].split(batch)
        values = [_update(model, features[chosen], grades[chosen], kind, optimiser, schedule) for chosen in batches]
        kappa = _kappa(model, select)
        rows.append((epoch, batch, *np.mean(values, axis=0), kappa))
        if kappa > best[0]:
            best = (kappa, copy.deepcopy(model.state_dict()))
    model.load_state_dict(best[1] or model.state_dict())
    return pd.DataFrame(rows, columns=["epoch", "batch", "loss", "floor", "qwk"])


def _all(part, device):
    return part.batch(np.arange(len(part))).to(device), torch.tensor(part.grades, device=device)


def _update(model, features, grades, kind, optimiser, schedule):
    loss, floor = loss_and_floor(model, features, grades, kind)
    if not torch.isfinite(loss):
        raise StudyError(f"The {kind} loss became {loss.item()}. Lower the learning_rate of the profile's systems.heads.")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    return loss.item(), floor.item()


@torch.no_grad()
def probabilities(model, part):
    """Probabilities (n, 5) of a part's pictures: softmax over the similarities to the prototypes."""
    return model(_all(part, device_of(model))[0]).float().softmax(-1).cpu().numpy()


def _kappa(model, part):
    return float(from_confusion(confusion(part.grades, probabilities(model, part).argmax(1)))["qwk"])


@dataclass(frozen=True)
class Trained:
    """One training of the grid: its history and the graded frame of the reported split."""

    encoder: Encoder
    head: str
    loss: str
    seed: int
    history: pd.DataFrame
    graded: pd.DataFrame

    @property
    def best(self):
        """Quadratic kappa of the inner part at the chosen epoch."""
        return self.history["qwk"].max()


def run(study):
    """Train every head with every loss on every frozen encoder that the profile runs, and grade the reported split (test, else val) once each.

    Returns
    -------
    list of Trained
    """
    settings = study.profile.systems.heads
    sentences = texts.embed(study, settings.text, prompts(study.profile.our_protocol.prompts))
    return [trained for spec in settings.encoders if not spec.reason for trained in _of_encoder(study, spec, sentences)]


def _of_encoder(study, spec, sentences):
    settings, features = study.profile.systems.heads, encoders.embed(study, spec, "training")
    data = encoders.pictures_of(study, spec, "training")
    parts = [Features(part, features[None]) for part in splits.inner(splits.official(data, "train", "fit"), study.seed)]
    split, reported = next((name, part) for name in ("test", "val") if (part := splits.official(data, name, "report")))
    key = {"features": _digest(features), "sentences": _digest(sentences), "fit": parts[0].dataset.fingerprint, "select": parts[1].dataset.fingerprint, "settings": settings,
           "weight_decay": study.profile.our_protocol.weight_decay, "folds_seed": study.seed}
    for kind, loss, seed in product(HEADS, LOSSES, range(study.seed, study.seed + settings.seeds)):
        name = f"heads-{spec.name}-{kind}-{loss}".lower()
        folder, model = _trained(study, name, {**key, "head": kind, "loss": loss, "seed": seed}, parts, sentences)
        graded = predictions.frame(reported.rows["image_id"], probabilities(model(), Features(reported, features[None])))
        view = study.profile.our_protocol
        file = predictions.Name(name, study.profile.training.name, split, view.geometry, view.intensity, "1", seed).file
        predictions.write(graded, study.shown_dir / "predictions" / file)
        yield Trained(spec, kind, loss, seed, pd.read_csv(folder / "history.csv"), predictions.join(graded, reported.rows))


def _trained(study, name, key, parts, sentences):
    def model():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key["seed"])
            return PairModel(key["head"], _all(parts[0], "cpu")[0], torch.as_tensor(sentences)).to(compute_device())

    def build(folder):
        made = model()
        history = train(made, *parts, key["settings"], key["loss"], key["weight_decay"], key["seed"])
        folder.mkdir()
        training.save_state(made, folder / "state.safetensors")
        history.to_csv(folder / "history.csv", index=False)

    folder = study.store.make(f"checkpoints/{name}__seed{key['seed']}", key, build)
    return folder, lambda: training.load_state(model(), folder / "state.safetensors").eval()


def _digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:12]
