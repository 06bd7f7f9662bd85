"""Losses against plain references and numeric gradients, and the floors that they never undercut."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from koa_lib import losses, model
from koa_lib.prompts import prompts

many = settings(max_examples=20, deadline=None)
seeds, sizes, scales = st.integers(0, 10_000), st.integers(1, 12), st.floats(0.5, 100)
KINDS = ("similarity", "hard", "ordinal")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(seed, n, d=6):
    return F.normalize(drawn(seed, n, d), dim=-1)


def grades_of(seed, n):
    return torch.as_tensor(np.random.default_rng(seed).integers(0, 5, n))


@many
@given(seed=seeds, n=sizes, scale=scales, kind=st.sampled_from(["hard", "ordinal"]))
def test_the_cross_entropy_is_that_of_torch(seed, n, scale, kind):
    logits, grades, targets = scale * drawn(seed, n, 5), grades_of(seed, n), losses.target_matrix(kind)
    expected = F.cross_entropy(logits.float(), targets[grades]).item()
    assert losses.prototype_cross_entropy(logits, grades, targets).item() == pytest.approx(expected, rel=1e-4)


def test_targets_fall_with_distance_and_are_shared_in_a_batch():
    away, grades = (torch.arange(5)[:, None] - torch.arange(5)).abs(), torch.tensor([0, 0, 2])
    for kind, weights in (("hard", (away == 0).float()), ("ordinal", torch.exp(-away / 0.5))):
        batch = weights[grades][:, grades]
        assert torch.allclose(losses.target_matrix(kind), weights / weights.sum(1, keepdim=True))
        assert torch.allclose(losses.batch_targets(grades, kind), batch / batch.sum(1, keepdim=True))


def test_similarity_targets_by_hand_and_without_a_gradient():
    pictures, texts = torch.eye(2, requires_grad=True), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = losses.similarity_targets(pictures, texts, 2.0)
    own = math.exp(2) / (math.exp(2) + math.exp(1))  # scale 2: alike 1 + 1 with itself, 0 + 1 with the other
    assert np.allclose(found, [[own, 1 - own], [1 - own, own]], atol=1e-6) and not found.requires_grad


@many
@given(seed=seeds, n=sizes, scale=scales)
def test_soft_clip_and_infonce_equal_their_definition(seed, n, scale):
    images, texts, grades = unit(seed, n), unit(seed + 1, n), grades_of(seed, n)
    scores = scale * (images @ texts.T).numpy()

    def plain(targets):
        """Each picture asks for its text and each text for its picture: mean of both cross-entropies."""
        return -sum(
            targets[i, j] * (2 * scores[i, j] - logsumexp(scores[i]) - logsumexp(scores[:, j]))
            for i in range(n) for j in range(n)
        ) / (2 * n)

    same = (grades[:, None] == grades).numpy()
    soft = np.random.default_rng(seed).dirichlet(np.ones(n), n)
    for found, targets in (
        (losses.soft_clip(images, texts, scale, torch.as_tensor(soft)), soft),
        (losses.symmetric_infonce(images, texts, scale), np.eye(n)),
        (losses.symmetric_infonce(images, texts, scale, torch.as_tensor(same)), same / same.sum(1)),
        (losses.soft_clip(images, texts, scale, losses.batch_targets(grades, "hard")), same / same.sum(1)),
    ):
        assert found.item() == pytest.approx(plain(targets), rel=1e-5, abs=1e-5)


@many
@given(seed=seeds, n=sizes, scale=scales, kind=st.sampled_from(KINDS))
def test_no_batch_undercuts_the_floor_of_its_targets(seed, n, scale, kind):
    grades = grades_of(seed, n)
    images, texts = unit(seed, n), unit(seed + 1, 5)[grades]
    targets = losses.similarity_targets(images, texts, scale) if kind == "similarity" \
        else losses.batch_targets(grades, kind).double()
    loss, floor = losses.soft_clip(images, texts, scale, targets), losses.soft_clip_floor(targets, grades)
    assert loss.item() >= floor.item() - 1e-5


@pytest.mark.parametrize("kind", ["hard", "ordinal"])
def test_a_perfect_model_attains_the_floor(kind):
    # Texts are corners; each picture lies so that its logits are the logarithms of its targets, up to a
    # constant (the rest of its length in a direction of its own).
    grades, scale = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 1]), 100.0
    targets, texts = losses.batch_targets(grades, kind).double(), torch.eye(6, dtype=torch.float64)[:5]
    first = [(grades == grade).nonzero()[0, 0] for grade in range(5)]
    wanted = targets[:, first].clamp(min=1e-12).log() / scale + 0.1
    images = torch.cat([wanted, (1 - (wanted**2).sum(1, keepdim=True)).sqrt()], dim=1)
    loss = losses.soft_clip(images, texts[grades], scale, targets).item()
    assert loss == pytest.approx(losses.soft_clip_floor(targets, grades).item(), abs=1e-4)


def test_the_floor_of_infonce_is_the_expected_one_of_its_batches():
    priors, generator = np.array([0.4, 0.2, 0.25, 0.11, 0.04]), np.random.default_rng(0)
    batches = (torch.as_tensor(generator.choice(5, 64, p=priors)) for _ in range(400))
    floors = [losses.soft_clip_floor(losses.batch_targets(grades, "hard"), grades) for grades in batches]
    assert np.mean(floors) == pytest.approx(losses.infonce_floor(priors, 64), abs=0.01)


@many
@given(seed=seeds, n=sizes, scale=scales)
def test_losses_of_a_pair_are_as_defined_and_zero_for_equal_answers(seed, n, scale):
    one, other = unit(seed, n), unit(seed + 1, n)
    a, b = (scale * drawn(start, n, 5).log_softmax(-1) for start in (seed, seed + 1))
    divergence = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    divergence += F.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="batchmean")
    expected = [(1 - F.cosine_similarity(one, other)).mean().item(), divergence.item() / 2]
    found = [losses.symmetry_loss(one, other).item(), losses.consistency_loss(a, b).item()]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert losses.symmetry_loss(one.float(), one.float()) == 0 == losses.consistency_loss(a, a)


def test_the_loss_of_mirror_pairs_is_the_weighted_sum_of_its_terms():
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=0)
    grader = model.ClipGrader(clip, tokenizer, "projection", prompts("as_printed"))
    values, grades = drawn(0, 6, 2, 128).float(), torch.arange(6) % 5
    one, other = map(grader.embed_features, values.unbind(1))
    a, b = grader.logits(one), grader.logits(other)
    terms, logits = losses.MirrorPairs(True, 0.5, 2.0)(grader, values, grades)
    parts = (F.cross_entropy(torch.cat([a, b]), grades.repeat(2)), losses.symmetry_loss(one, other),
             losses.consistency_loss(a, b))
    whole = parts[0] + 0.5 * parts[1] + 2 * parts[2]
    assert torch.allclose(torch.stack([*terms.values()]), torch.stack([whole, *parts]), rtol=1e-3)
    assert torch.allclose(logits, a, atol=1e-4)
    alone = losses.MirrorPairs(False, 0.0, 0.0)(grader, values, grades)[0]["loss"]
    assert torch.allclose(alone, F.cross_entropy(a, grades), rtol=1e-4)


def soft(targets):
    return lambda a, b, scale: losses.soft_clip(a, b, scale, targets)


def entropy(kind):
    grades = torch.arange(4)
    return lambda a, *_: losses.prototype_cross_entropy(a, grades, losses.target_matrix(kind)).double()


BATCH = torch.tensor([0, 2, 0, 1])
GRADIENTS = {
    # The cross-entropy is computed in float32, so its numeric gradient takes larger steps.
    **{f"cross-entropy, {kind}": (entropy(kind), {"eps": 1e-2, "atol": 1e-3}) for kind in KINDS[1:]},
    **{f"soft CLIP, {kind}": (soft(losses.batch_targets(BATCH, kind).double()), {}) for kind in KINDS[1:]},
    "soft CLIP, similarity": (soft(losses.similarity_targets(unit(0, 4), unit(1, 4), 5.0)), {}),
    "symmetry": (lambda a, b, _: losses.symmetry_loss(a, b), {}),
    "consistency": (lambda a, b, _: losses.consistency_loss(a, b), {}),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences(name):
    loss, steps = GRADIENTS[name]
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    inputs = (drawn(2, 4, 5).requires_grad_(), drawn(3, 4, 5).requires_grad_(), scale)
    assert torch.autograd.gradcheck(loss, inputs, **steps)
