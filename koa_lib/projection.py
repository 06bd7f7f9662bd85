"""Projection heads over frozen features of pictures and texts, into a common space (LumbarCLIP)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from koa_lib.device import seeded
from koa_lib.errors import StudyError
from koa_lib.model import LARGEST_SCALE

HEADS = ("linear", "non-linear")
DIMENSIONS = 256  # of the common space; the paper prints none, public code of this loss has 256
TEMPERATURE = 0.07  # at the start, as in CLIP


def head(kind, width):
    """A projection of features of some width into the common space: one linear layer, or two with a GELU
    between (our reading of 'non-linear').

    Raises
    ------
    StudyError
        A kind that is none of `HEADS`.
    """
    if kind == "linear":
        return nn.Linear(width, DIMENSIONS)
    if kind == "non-linear":
        return nn.Sequential(nn.Linear(width, DIMENSIONS), nn.GELU(), nn.Linear(DIMENSIONS, DIMENSIONS))
    raise StudyError(f"The head '{kind}' is unknown. Use one of: {', '.join(HEADS)}.")


class ProjectionPair(nn.Module):
    """Frozen features of pictures and of the five prompts, each with a trained head into a common space, and
    a learned temperature.

    Parameters
    ----------
    kind : str
        Of `HEADS`, for both sides.
    width : int
        Of the pictures' features.
    sentences : float array (5, t)
        Features of the prompts, grade 0 first.
    """

    low_precision = False

    def __init__(self, kind, width, sentences):
        super().__init__()
        sentences = torch.as_tensor(sentences)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("sentences", (sentences - sentences.mean(0)) / _spread(sentences))
        self.image_head, self.text_head = head(kind, width), head(kind, sentences.shape[1])
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def prepare(self, features):
        """Standardise all features by the mean and spread of those of the fitting part, array (n, d)."""
        features = torch.as_tensor(features, device=self.centre.device)
        self.centre, self.spread = features.mean(0), _spread(features)

    @property
    def scale(self):
        """The inverse temperature, at most CLIP's."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def embed_features(self, features):
        """Features (n, d) to unit vectors (n, 256)."""
        return F.normalize(self.image_head((features - self.centre) / self.spread), dim=-1)

    def prototypes(self):
        """Unit vectors (5, 256) of the prompts."""
        return F.normalize(self.text_head(self.sentences), dim=-1)

    def tail(self, features):
        """Features (n, d) to logits (n, 5): similarity to the prototypes, times the scale."""
        return self.scale * self.embed_features(features) @ self.prototypes().T

    def train_tail(self):
        """Training mode."""
        self.train()

    def trained_state(self):
        """All weights, and what the features are standardised with."""
        return self.state_dict()


def pair(seed, kind, width, sentences):
    """A `ProjectionPair` before its training, on the device that is computed on."""
    return seeded(seed, ProjectionPair, kind, width, sentences)


def _spread(values):
    return values.std(0).clamp(min=1e-6)  # a feature that never changes stays 0
