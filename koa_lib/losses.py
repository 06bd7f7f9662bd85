"""Losses between pictures and texts."""

import math

import torch
import torch.nn.functional as F

from koa_lib.device import autocast
from koa_lib.grades import GRADES

ORDINAL_SIGMA = 0.5


def target_matrix(kind):
    """Target distribution per grade, (5, 5) rows true grade.

    `hard` is one-hot; `ordinal` gives neighbours ``exp(-|i - j| / 0.5)`` (METHODS 2.1, ordinal variant).
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
    logits = scale * image_embeddings @ text_embeddings.T
    same = torch.eye(len(logits), dtype=torch.bool) if same is None else same
    targets = same.float() / same.sum(dim=1, keepdim=True)
    forward = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    backward = -(targets.T * F.log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (forward + backward) / 2


def training_loss(grader, features, grades, targets, kind):
    """The loss of a batch and its logits.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    features : tensor (n, ...)
        Output of the grader's trunk.
    grades : int tensor (n,)
    targets : tensor (5, 5)
        From `target_matrix`; used by 'prototypes'.
    kind : {'prototypes', 'infonce'} or callable
        Cross-entropy over the five prototypes, or symmetric InfoNCE of each picture with its grade's prompt, where the
        other pictures of the batch, of the same grade too, are negatives (CLIP graders only); or a method's own loss,
        ``kind(grader, features, grades, targets)``, such as `pairs.PairLoss`.

    Returns
    -------
    (loss, logits) : scalar tensor in nats, tensor (n, 5)
    """
    if callable(kind):
        return kind(grader, features, grades, targets)
    if kind == "prototypes":
        with autocast(grader):
            logits = grader.tail(features)
        return prototype_cross_entropy(logits, grades, targets), logits
    with autocast(grader):
        embeddings, prototypes = grader.embed_features(features), grader.prototypes()
    return symmetric_infonce(embeddings, prototypes[grades], grader.scale), grader.scale * embeddings @ prototypes.T


def chance_loss(classes):
    """Loss of a uniform guess in nats, ``ln(classes)``."""
    return math.log(classes)


def symmetry_loss(embeddings, mirrored):
    """How far pictures and their mirror images lie apart: mean of ``1 - cos``, in [0, 2] (CLIP-KOA; our reading, METHODS 1.1).

    Computed as half the squared distance of the unit vectors (n, d), the same number: 0 for equal embeddings whatever the rounding.
    """
    return ((embeddings - mirrored) ** 2).sum(dim=-1).mean() / 2


def consistency_loss(logits, mirrored):
    """How far the gradings of pictures and of their mirror images lie apart, from logits (n, 5), in nats (CLIP-KOA; our reading, METHODS 1.1).

    Mean of the Kullback-Leibler divergences in both directions: at least 0, and 0 only for equal probabilities.
    """
    one, other = F.log_softmax(logits, dim=-1), F.log_softmax(mirrored, dim=-1)
    return ((one.exp() - other.exp()) * (one - other)).sum(dim=-1).mean() / 2
