"""Losses between pictures and texts.

A loss of an arm is called with a grader, a batch of its trunk's features (n, ...) and grades (n,); it gives
its named terms in nats, 'loss' first, and the logits (n, 5). `of_recipe` has those that a profile can name.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binom

from koa_lib.device import autocast
from koa_lib.grades import GRADES

ORDINAL_SIGMA = 0.5


def target_matrix(kind):
    """Target distribution per grade, (5, 5) rows true grade.

    `hard` is one-hot; `ordinal` gives neighbours ``exp(-|i - j| / 0.5)`` (LumbarCLIP, Le et al. 2025: the
    ordinal variant).
    """
    grades = torch.arange(len(GRADES)).float()
    if kind == "hard":
        return torch.eye(len(GRADES))
    weights = torch.exp(-(grades[:, None] - grades).abs() / ORDINAL_SIGMA)
    return weights / weights.sum(dim=1, keepdim=True)


def prototype_cross_entropy(logits, grades, targets):
    """Cross-entropy of logits (n, 5) against rows of a target matrix (5, 5), in nats; the primary loss."""
    return -(targets[grades] * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def symmetric_infonce(image_embeddings, text_embeddings, scale, same=None):
    """Symmetric InfoNCE (section 3.3 of the paper; Radford et al. 2021), in nats.

    Parameters
    ----------
    image_embeddings, text_embeddings : unit vectors (n, d)
    scale : float
        ``exp(logit_scale)``.
    same : bool tensor (n, n), optional
        Pairs that carry the same text: they share the target instead of being negatives (UniCL form).
    """
    same = (
        torch.eye(len(image_embeddings), dtype=torch.bool, device=image_embeddings.device)
        if same is None
        else same
    )
    return soft_clip(image_embeddings, text_embeddings, scale, same.float() / same.sum(dim=1, keepdim=True))


def soft_clip(image_embeddings, text_embeddings, scale, targets):
    """Soft CLIP loss (LumbarCLIP, Le et al. 2025), in nats: ``1/2 [CE(Q, L) + CE(Q^T, L^T)]`` with ``L =
    scale * I T^T``.

    Parameters
    ----------
    image_embeddings, text_embeddings : unit vectors (n, d)
    scale : float
        Inverse temperature.
    targets : tensor (n, n)
        Q: how much of picture i's target is text j; rows sum to one.
    """
    logits = scale * image_embeddings @ text_embeddings.T
    forward = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    backward = -(targets.T * F.log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (forward + backward) / 2


def batch_targets(grades, kind):
    """Targets (n, n) of a batch from its grades (n,): equal shares for texts of the same grade ('hard'), or
    falling with distance ('ordinal')."""
    shares = target_matrix(kind).to(grades.device)[grades][:, grades]
    return shares / shares.sum(dim=1, keepdim=True)


def similarity_targets(image_embeddings, text_embeddings, scale):
    """Targets (n, n) from how alike the pictures, and the texts, of a batch are: ``softmax(scale / 2 * (I I^T
    + T T^T))``.

    The logits' own temperature is used and no gradient flows through the targets (our reading).
    """
    alike = image_embeddings @ image_embeddings.T + text_embeddings @ text_embeddings.T
    return (scale / 2 * alike).softmax(dim=1).detach()


def soft_clip_floor(targets, captions):
    """What `soft_clip` cannot undercut for these targets, in nats, when pictures with equal captions share
    one text embedding.

    Logits of equal texts are equal, so the best guess spreads a caption's share of the target evenly over its
    texts; the other way round the best guess for a caption is the mean of its texts' targets.

    Parameters
    ----------
    targets : tensor (n, n)
    captions : int tensor (n,)
        Number of each picture's caption.
    """
    member = F.one_hot(captions).to(targets)
    member = member[:, member.sum(dim=0) > 0]
    shares = targets @ member  # of each caption in a picture's target, (n, captions)
    forward = -torch.xlogy(shares, shares / member.sum(dim=0)).sum()
    backward = -torch.xlogy(shares, shares / shares.sum(dim=0)).sum()
    return (forward + backward) / (2 * len(targets))


@dataclass(frozen=True)
class Prototypes:
    """Cross-entropy over the five prototypes or outputs, the primary loss; `targets`: `target_matrix`."""

    targets: str = "hard"

    def __call__(self, grader, features, grades):
        with autocast(grader):
            logits = grader.tail(features)
        return {
            "loss": prototype_cross_entropy(logits, grades, target_matrix(self.targets).to(grades.device))
        }, logits


@dataclass(frozen=True)
class InfoNCE:
    """Symmetric InfoNCE of each picture with its grade's prompt; other pictures of the batch, of the same
    grade too, are negatives."""

    def __call__(self, grader, features, grades):
        with autocast(grader):
            embeddings, prototypes = grader.embed_features(features), grader.prototypes()
        loss = symmetric_infonce(embeddings, prototypes[grades], grader.scale)
        return {"loss": loss}, grader.scale * embeddings @ prototypes.T


@dataclass(frozen=True)
class MirrorPairs:
    """``CE + symmetry * L_sym + consistency * L_cons`` of pictures and their mirror images, features (n, 2,
    ...) (CLIP-KOA; our reading).

    The cross-entropy is that of the first of each pair, or of `both`. All three terms are told; a weight of 0
    leaves no trace in the gradient.
    """

    both: bool
    symmetry: float
    consistency: float
    targets: str = "hard"

    def __call__(self, grader, features, grades):
        with autocast(grader):
            embeddings = grader.embed_features(features.flatten(0, 1))
        logits, embeddings = (
            values.unflatten(0, (-1, 2)) for values in (grader.logits(embeddings), embeddings)
        )
        seen = logits if self.both else logits[:, :1]
        repeated = grades.repeat_interleave(seen.shape[1])
        terms = {
            "cross_entropy": prototype_cross_entropy(
                seen.flatten(0, 1), repeated, target_matrix(self.targets).to(grades.device)
            ),
            "symmetry": symmetry_loss(embeddings[:, 0], embeddings[:, 1]),
            "consistency": consistency_loss(logits[:, 0], logits[:, 1]),
        }
        weights = {"cross_entropy": 1.0, "symmetry": self.symmetry, "consistency": self.consistency}
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}, logits[:, 0]


@dataclass(frozen=True)
class SoftClip:
    """Soft CLIP loss (LumbarCLIP) with targets by `kind`, and what it cannot undercut on the batch ('floor').

    `kind` is 'similarity' (`similarity_targets`), 'label-aware' or 'ordinal' (`batch_targets`).
    """

    kind: str

    def __call__(self, grader, features, grades):
        images, prototypes = grader.embed_features(features), grader.prototypes()
        captions = prototypes[grades]
        if self.kind == "similarity":
            targets = similarity_targets(images, captions, grader.scale)
        else:
            targets = batch_targets(grades, {"label-aware": "hard", "ordinal": "ordinal"}[self.kind])
        terms = {
            "loss": soft_clip(images, captions, grader.scale, targets),
            "floor": soft_clip_floor(targets, grades),
        }
        return terms, grader.scale * images @ prototypes.T


def of_recipe(recipe):
    """The loss that a recipe of the profile names."""
    return {"prototypes": Prototypes(recipe.targets), "infonce": InfoNCE()}[recipe.loss]


def chance_loss(classes):
    """Loss of a uniform guess in nats, ``ln(classes)``."""
    return math.log(classes)


def symmetry_loss(embeddings, mirrored):
    """How far pictures and their mirror images lie apart: mean of ``1 - cos``, in [0, 2] (CLIP-KOA; our
    reading).

    Computed as half the squared distance of the unit vectors (n, d), the same number: 0 for equal embeddings
    whatever the rounding.
    """
    return ((embeddings - mirrored) ** 2).sum(dim=-1).mean() / 2


def consistency_loss(logits, mirrored):
    """How far the gradings of pictures and of their mirror images lie apart, from logits (n, 5), in nats
    (CLIP-KOA; our reading).

    Mean of the Kullback-Leibler divergences in both directions: at least 0, and 0 only for equal
    probabilities.
    """
    one, other = F.log_softmax(logits, dim=-1), F.log_softmax(mirrored, dim=-1)
    return ((one.exp() - other.exp()) * (one - other)).sum(dim=-1).mean() / 2


def infonce_floor(priors, batch):
    """Lowest expected symmetric InfoNCE loss (nats) with diagonal targets when each grade has one caption.

    A picture cannot be told from the m - 1 others of its grade in the batch, so its loss is at least ln m.

    Parameters
    ----------
    priors : array (5,)
        Grade shares or counts.
    batch : int
        Pictures per batch, at least 1.
    """
    priors, others = np.asarray(priors, dtype=float), np.arange(batch)
    chances = [binom.pmf(others, batch - 1, share) for share in priors / priors.sum()]
    least = [(chance * np.log1p(others)).sum() for chance in chances]
    return float(np.average(least, weights=priors))
