"""Contrastive pre-training of a small CLIP on captioned phantoms: the stand-in for OpenAI's weights."""

import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from koa_lib import model as models
from koa_lib import progress, weights
from koa_lib.datasets import to_tensor
from koa_lib.losses import symmetric_infonce
from koa_lib.optimisation import adamw, descend

WARM_UP = 0.1
WEIGHT_DECAY = 0.05


def start_weights(study):
    """Folder or file of the weights that fine-tuning starts from; None for a random start."""
    model = study.profile.model
    if model.start == "openai":
        return weights.clip(model.name, study.inputs.weights)
    if model.start == "random":
        return None
    settings = study.profile.pretraining
    key = {"model": model, "settings": settings}
    return study.store.make(
        f"checkpoints/{model.name}-pretrained", key, lambda path: _pretrain(model, settings, path)
    )


def _pretrain(model, settings, folder):
    from koa_lib.phantoms.cohorts import captioned

    images, captions, _ = captioned(settings.pictures, settings.seed, model.image_size)
    clip, preprocess, tokenizer = models.load_clip(model.name, seed=settings.seed)
    with _words_that_occur(clip, tokenizer(captions)) as tokens:
        train(clip, (images, _encode(captions), tokens, preprocess.statistics), settings)
    models.save_clip(clip, model.name, folder)


def _encode(captions):
    # Equal captions get equal numbers: such pairs share the target instead of being false negatives.
    return np.unique(captions, return_inverse=True)[1]


@contextmanager
def _words_that_occur(clip, tokens):
    # Each step would else go through all 49,408 words, of which captions have some hundred. The last token of
    # a text stays the one with the largest number.
    words, tokens = tokens.unique(return_inverse=True)
    every = clip.token_embedding
    clip.token_embedding = nn.Embedding.from_pretrained(every.weight.detach()[words], freeze=False)
    yield tokens
    every.weight.data[words] = clip.token_embedding.weight.detach()
    clip.token_embedding = every


def train(clip, data, settings):
    """Train both towers on (images, caption numbers, tokens, statistics); tells of each epoch."""
    images = data[0]
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    optimiser = adamw(clip, settings.learning_rate, WEIGHT_DECAY)
    steps = settings.epochs * (len(images) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps, pct_start=WARM_UP
    )
    clip.train()
    start = time.perf_counter()
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(images), generator=generator).numpy()
        losses = []
        for chosen in np.array_split(order, len(order) // settings.batch):
            losses.append(_update(clip, data, np.sort(chosen), optimiser))
            if schedule.last_epoch < steps:
                schedule.step()
        left = (time.perf_counter() - start) / epoch * (settings.epochs - epoch)
        progress.epoch(
            "pre-training", epoch, settings.epochs, {"contrastive loss": float(np.mean(losses))}, left
        )
    clip.eval()


def _update(clip, data, chosen, optimiser):
    images, numbers, tokens, statistics = data
    pictures = clip.encode_image(to_tensor(images[chosen], statistics))
    _, first, inverse = np.unique(numbers[chosen], return_index=True, return_inverse=True)
    # equal captions are encoded once
    texts = clip.encode_text(tokens[chosen[first]])[torch.as_tensor(inverse)]
    same = torch.as_tensor(numbers[chosen][:, None] == numbers[chosen])
    scale = clip.logit_scale.exp().clamp(max=models.LARGEST_SCALE)
    loss = symmetric_infonce(
        F.normalize(pictures.float(), dim=-1), F.normalize(texts.float(), dim=-1), scale, same
    )
    return descend(loss, clip, optimiser)
