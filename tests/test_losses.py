"""Losses against plain references and numeric gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import losses

many = settings(max_examples=20, deadline=None)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), scale=st.floats(0.1, 30))
def test_hard_targets_give_the_cross_entropy_of_torch(seed, n, scale):
    logits, grades = scale * drawn(seed, n, 5), torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))
    ours = losses.prototype_cross_entropy(logits, grades, losses.target_matrix("hard"))
    assert ours.item() == pytest.approx(F.cross_entropy(logits, grades).item(), rel=1e-4, abs=1e-5)


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20))
def test_soft_targets_give_the_cross_entropy_of_torch(seed, n):
    logits, grades = drawn(seed, n, 5), torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))
    targets = losses.target_matrix("ordinal")
    assert losses.prototype_cross_entropy(logits, grades, targets).item() == pytest.approx(F.cross_entropy(logits.float(), targets[grades]).item(), rel=1e-4)


def test_ordinal_targets_are_distributions_that_fall_with_distance():
    matrix = losses.target_matrix("ordinal").numpy()
    assert np.allclose(matrix.sum(axis=1), 1) and (matrix > 0).all()
    for grade in range(5):
        order = np.argsort(np.abs(np.arange(5) - grade), kind="stable")
        assert (np.diff(matrix[grade][order]) <= 1e-7).all() and matrix[grade].argmax() == grade
    assert matrix[2, 1] / matrix[2, 2] == pytest.approx(math.exp(-1 / 0.5))


def plain_infonce(images, texts, scale, same):
    """The definition, in loops: mean over both directions of the cross-entropy with equal texts sharing the target."""
    n, total = len(images), 0.0
    for rows, columns, share in ((images, texts, same), (texts, images, same.T)):
        for i in range(n):
            scores = [scale * float(rows[i] @ columns[j]) for j in range(n)]
            norm = math.log(sum(math.exp(score - max(scores)) for score in scores)) + max(scores)
            partners = [j for j in range(n) if share[i, j]]
            total -= sum(scores[j] - norm for j in partners) / len(partners) / n
    return total / 2


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), scale=st.floats(1, 100), texts=st.integers(1, 9))
def test_infonce_equals_its_definition(seed, n, scale, texts):
    images, words = F.normalize(drawn(seed, n, 6), dim=-1), F.normalize(drawn(seed + 1, n, 6), dim=-1)
    numbers = np.random.default_rng(seed).integers(0, texts, n)
    same = torch.as_tensor(numbers[:, None] == numbers)
    plain = losses.symmetric_infonce(images, words, scale).item()
    assert plain == pytest.approx(plain_infonce(images.numpy(), words.numpy(), scale, np.eye(n, dtype=bool)), rel=1e-5, abs=1e-6)
    shared = losses.symmetric_infonce(images, words, scale, same).item()
    assert shared == pytest.approx(plain_infonce(images.numpy(), words.numpy(), scale, same.numpy()), rel=1e-5, abs=1e-6)


def test_infonce_is_symmetric_and_least_for_matching_pairs():
    images, texts = F.normalize(drawn(0, 8, 16), dim=-1), F.normalize(drawn(1, 8, 16), dim=-1)
    assert losses.symmetric_infonce(images, texts, 10.0).item() == pytest.approx(losses.symmetric_infonce(texts, images, 10.0).item())
    assert losses.symmetric_infonce(images, images, 50.0) < losses.symmetric_infonce(images, images.roll(1, 0), 50.0)


def test_uniform_guess_costs_the_chance_loss():
    logits, grades = torch.zeros(7, 5), torch.arange(7) % 5
    assert losses.prototype_cross_entropy(logits, grades, losses.target_matrix("hard")).item() == pytest.approx(losses.chance_loss(5), rel=1e-6)


def test_gradient_of_infonce():
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    inputs = (drawn(0, 3, 4).requires_grad_(), drawn(1, 3, 4).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    for partners in (None, same):
        assert torch.autograd.gradcheck(lambda a, b, s, same=partners: losses.symmetric_infonce(F.normalize(a, dim=-1), F.normalize(b, dim=-1), s, same), inputs)


@pytest.mark.parametrize("kind", ["hard", "ordinal"])
def test_gradient_of_cross_entropy(kind):
    # The loss is computed in float32, so the numeric gradient takes larger steps.
    logits, grades = drawn(0, 6, 5).requires_grad_(), torch.arange(6) % 5
    assert torch.autograd.gradcheck(lambda z: losses.prototype_cross_entropy(z, grades, losses.target_matrix(kind)).double(), (logits,), eps=1e-2, atol=1e-3)


# A picture and its mirror image (CLIP-KOA)


def units(seed, n, d=4):
    return F.normalize(drawn(seed, n, d), dim=-1)


def test_symmetry_loss_by_hand():
    right_angle, opposite = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [-0.6, -0.8]])
    assert losses.symmetry_loss(right_angle[:1], opposite[:1]).item() == pytest.approx(1)
    assert losses.symmetry_loss(right_angle[1:], opposite[1:]).item() == pytest.approx(2)
    assert losses.symmetry_loss(right_angle, opposite).item() == pytest.approx(1.5)  # the mean of the two
    assert losses.symmetry_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])).item() == pytest.approx(1 - 0.6)


def test_consistency_loss_by_hand():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    there = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    back = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses.consistency_loss(one, other).item() == pytest.approx((there + back) / 2)
    batch = torch.cat([one, one]), torch.cat([other, one])
    assert losses.consistency_loss(*batch).item() == pytest.approx((there + back) / 4)  # the second pair agrees


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), scale=st.floats(0.1, 100))
def test_losses_of_a_pair_are_as_defined_symmetric_and_bounded(seed, n, scale):
    one, other, order = units(seed, n), units(seed + 1, n), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    symmetry = losses.symmetry_loss(one, other)
    assert symmetry.item() == pytest.approx((1 - F.cosine_similarity(one, other)).mean().item(), abs=1e-12) and 0 <= symmetry <= 2 + 1e-12
    a, b = scale * drawn(seed, n, 5), scale * drawn(seed + 1, n, 5)
    consistency = losses.consistency_loss(a, b)
    both_ways = [F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean").item() for p, q in ((a, b), (b, a))]
    assert consistency.item() == pytest.approx(sum(both_ways) / 2, rel=1e-9, abs=1e-12) and consistency >= 0
    for loss, x, y in ((losses.symmetry_loss, one, other), (losses.consistency_loss, a, b)):
        assert loss(y, x).item() == pytest.approx(loss(x, y).item()) == pytest.approx(loss(x[order], y[order]).item())


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12))
def test_losses_of_a_pair_are_zero_only_for_equal_answers(seed, n):
    one, logits = units(seed, n).float(), drawn(seed, n, 5)
    assert losses.symmetry_loss(one, one.clone()) == 0 and losses.consistency_loss(logits, logits.clone()) == 0
    assert losses.consistency_loss(logits, logits + 3).item() == pytest.approx(0, abs=1e-12)  # the same probabilities
    turned = one.clone()
    turned[0] = -turned[0]
    assert losses.symmetry_loss(one, turned) > 0 and losses.consistency_loss(logits, logits * 1.5) > 0


def test_gradients_of_the_losses_of_a_pair():
    embeddings, logits = (drawn(0, 3, 4).requires_grad_(), drawn(1, 3, 4).requires_grad_()), (drawn(2, 3, 5).requires_grad_(), drawn(3, 3, 5).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: losses.symmetry_loss(F.normalize(a, dim=-1), F.normalize(b, dim=-1)), embeddings)
    assert torch.autograd.gradcheck(losses.consistency_loss, logits)


def test_a_method_may_bring_its_own_loss():
    seen = []
    given_back = losses.training_loss("grader", "features", "grades", "targets", lambda *arguments: seen.append(arguments) or (1.0, None))
    assert seen == [("grader", "features", "grades", "targets")] and given_back == (1.0, None)
