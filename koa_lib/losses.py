"""Losses between pictures and texts."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binom

from koa_lib.device import autocast
from koa_lib.grades import GRADES

ORDINAL_SIGMA = 0.5


def target_matrix(kind):
    """Target distribution per grade, (5, 5) rows true grade.

    `hard` is one-hot; `ordinal` gives neighbours ``exp(-|i - j| / 0.5)`` (LumbarCLIP, Le et al. 2025: the ordinal variant).
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
    same = torch.eye(len(image_embeddings), dtype=torch.bool, device=image_embeddings.device) if same is None else same
    return soft_clip(image_embeddings, text_embeddings, scale, same.float() / same.sum(dim=1, keepdim=True))


def soft_clip(image_embeddings, text_embeddings, scale, targets):
    """Soft CLIP loss (LumbarCLIP, Le et al. 2025), in nats: ``1/2 [CE(Q, L) + CE(Q^T, L^T)]`` with ``L = scale * I T^T``.

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
    """Targets (n, n) of a batch from its grades (n,): equal shares for texts of the same grade ('hard'), or falling with distance ('ordinal')."""
    shares = target_matrix(kind).to(grades.device)[grades][:, grades]
    return shares / shares.sum(dim=1, keepdim=True)


def similarity_targets(image_embeddings, text_embeddings, scale):
    """Targets (n, n) from how alike the pictures, and the texts, of a batch are: ``softmax(scale / 2 * (I I^T + T T^T))``.

    The logits' own temperature is used and no gradient flows through the targets (our reading).
    """
    alike = image_embeddings @ image_embeddings.T + text_embeddings @ text_embeddings.T
    return (scale / 2 * alike).softmax(dim=1).detach()


def soft_clip_floor(targets, captions):
    """What `soft_clip` cannot undercut for these targets, in nats, when pictures with equal captions share one text embedding.

    Logits of equal texts are equal, so the best guess spreads a caption's share of the target evenly over its texts; the other way round the best
    guess for a caption is the mean of its texts' targets.

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
    """How far pictures and their mirror images lie apart: mean of ``1 - cos``, in [0, 2] (CLIP-KOA; our reading).

    Computed as half the squared distance of the unit vectors (n, d), the same number: 0 for equal embeddings whatever the rounding.
    """
    return ((embeddings - mirrored) ** 2).sum(dim=-1).mean() / 2


def consistency_loss(logits, mirrored):
    """How far the gradings of pictures and of their mirror images lie apart, from logits (n, 5), in nats (CLIP-KOA; our reading).

    Mean of the Kullback-Leibler divergences in both directions: at least 0, and 0 only for equal probabilities.
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
