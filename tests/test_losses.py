"""Losses against plain references and numeric gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import losses, model
from koa_lib.prompts import prompts

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


def unit(seed, n, d=6):
    return F.normalize(drawn(seed, n, d), dim=-1)


def batch_of(seed, n, d=6):
    """Pictures, their grades' texts (equal grades share one) and the grades of a random batch."""
    grades = torch.as_tensor(np.random.default_rng(seed).integers(0, 5, n))
    return unit(seed, n, d), unit(seed + 1, 5, d)[grades], grades


def targets_of(kind, images, texts, grades, scale):
    return losses.similarity_targets(images, texts, scale) if kind == "similarity" else losses.batch_targets(grades, kind).double()


KINDS = ("similarity", "hard", "ordinal")


def test_soft_clip_of_two_pairs_by_hand():
    # Logits ((2, 0), (0, 2)); targets ((0.75, 0.25), (0.5, 0.5)): -log softmax is a = ln(1 + e^-2) on the diagonal, a + 2 beside it.
    corners, a = torch.eye(2, dtype=torch.float64), math.log1p(math.exp(-2))
    targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    forward = ((0.75 * a + 0.25 * (a + 2)) + (0.5 * (a + 2) + 0.5 * a)) / 2
    backward = ((0.75 * a + 0.5 * (a + 2)) + (0.25 * (a + 2) + 0.5 * a)) / 2
    assert losses.soft_clip(corners, corners, 2.0, targets).item() == pytest.approx((forward + backward) / 2)


def test_targets_of_a_batch_by_hand():
    grades, e = torch.tensor([0, 0, 2]), math.exp(-4)
    assert np.allclose(losses.batch_targets(grades, "hard"), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    near, far = 1 / (2 + e), 1 / (1 + 2 * e)  # two grades apart weigh exp(-2 / 0.5)
    assert np.allclose(losses.batch_targets(grades, "ordinal"), [[near, near, e * near], [near, near, e * near], [e * far, e * far, far]], atol=1e-6)
    pictures, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    own = math.exp(2) / (math.exp(2) + math.exp(1))  # scale 2: alike 1 + 1 with itself, 0 + 1 with the other, halved
    assert np.allclose(losses.similarity_targets(pictures, texts, 2.0), [[own, 1 - own], [1 - own, own]], atol=1e-6)


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), scale=st.floats(1, 50))
def test_soft_clip_with_one_hot_targets_is_infonce_and_with_equal_shares_label_aware(seed, n, scale):
    images, texts, grades = batch_of(seed, n)
    one_hot = losses.soft_clip(images, texts, scale, torch.eye(n, dtype=torch.float64)).item()
    assert one_hot == pytest.approx(plain_infonce(images.numpy(), texts.numpy(), scale, np.eye(n, dtype=bool)), rel=1e-6, abs=1e-6)
    same = grades[:, None] == grades
    shared = losses.soft_clip(images, texts, scale, losses.batch_targets(grades, "hard").double()).item()
    assert shared == pytest.approx(plain_infonce(images.numpy(), texts.numpy(), scale, same.numpy()), rel=1e-5, abs=1e-6)
    assert shared == pytest.approx(losses.symmetric_infonce(images, texts, scale, same).item(), rel=1e-5, abs=1e-6)


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), scale=st.floats(1, 50))
def test_with_one_text_per_grade_label_aware_is_diagonal_infonce(seed, n, scale):
    images, texts, grades = batch_of(seed, n)
    aware = losses.soft_clip(images, texts, scale, losses.batch_targets(grades, "hard").double()).item()
    assert aware == pytest.approx(losses.symmetric_infonce(images, texts, scale).item(), rel=1e-5, abs=1e-6)


@many
@given(seed=st.integers(0, 10_000), n=st.integers(2, 12), kind=st.sampled_from(KINDS))
def test_the_order_of_a_batch_does_not_matter(seed, n, kind):
    images, texts, grades = batch_of(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    values = []
    for chosen in (torch.arange(n), order):
        picked = (images[chosen], texts[chosen], grades[chosen])
        targets = targets_of(kind, *picked, 8.0)
        values.append((losses.soft_clip(*picked[:2], 8.0, targets).item(), losses.soft_clip_floor(targets, picked[2]).item()))
    assert values[0] == pytest.approx(values[1])


@many
@given(seed=st.integers(0, 10_000), n=st.integers(1, 16), scale=st.floats(0.5, 100), kind=st.sampled_from(KINDS))
def test_no_batch_undercuts_the_floor_of_its_targets(seed, n, scale, kind):
    images, texts, grades = batch_of(seed, n)
    targets = targets_of(kind, images, texts, grades, scale)
    assert losses.soft_clip(images, texts, scale, targets).item() >= losses.soft_clip_floor(targets, grades).item() - 1e-5


def test_the_floor_by_hand():
    grades = torch.tensor([0, 0, 4])
    assert losses.soft_clip_floor(losses.batch_targets(grades, "hard"), grades).item() == pytest.approx(2 / 3 * math.log(2))  # two of three have a twin
    apart = torch.arange(5)
    assert losses.soft_clip_floor(losses.batch_targets(apart, "hard"), apart).item() == pytest.approx(0, abs=1e-6)
    halves = torch.full((2, 2), 0.5)
    assert losses.soft_clip_floor(halves, torch.tensor([0, 1])).item() == pytest.approx(math.log(2))  # no caption repeats: the entropy of the targets


@pytest.mark.parametrize("kind, scale", [("hard", 100.0), ("ordinal", 100.0)])
def test_a_perfect_model_attains_the_floor(kind, scale):
    # Texts are corners; each picture lies so that its logits are the logarithms of its targets, up to a constant (the rest of its length in a direction of its own).
    grades = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 1])
    targets, texts = losses.batch_targets(grades, kind).double(), torch.eye(6, dtype=torch.float64)[:5]
    wanted = torch.stack([targets[:, (grades == grade).nonzero()[0, 0]] for grade in range(5)], dim=1).clamp(min=1e-12).log() / scale + 0.1
    images = torch.cat([wanted, (1 - (wanted**2).sum(1, keepdim=True)).sqrt()], dim=1)
    assert torch.allclose(images.norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert losses.soft_clip(images, texts[grades], scale, targets).item() == pytest.approx(losses.soft_clip_floor(targets, grades).item(), abs=1e-4)


def test_the_label_aware_floor_is_the_expected_one_of_infonce():
    from koa_lib.losses import infonce_floor

    priors, generator = np.array([0.4, 0.2, 0.25, 0.11, 0.04]), np.random.default_rng(0)
    drawn_grades = (torch.as_tensor(generator.choice(5, 64, p=priors)) for _ in range(400))
    mean = np.mean([losses.soft_clip_floor(losses.batch_targets(grades, "hard"), grades).item() for grades in drawn_grades])
    assert mean == pytest.approx(infonce_floor(priors, 64), abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_soft_clip(kind):
    grades = torch.tensor([0, 2, 0, 1])
    targets = targets_of(kind, unit(0, 4), unit(1, 4), grades, 5.0)
    inputs = (drawn(2, 4, 6).requires_grad_(), drawn(3, 4, 6).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda a, b, s: losses.soft_clip(F.normalize(a, dim=-1), F.normalize(b, dim=-1), s, targets), inputs)


def test_no_gradient_flows_through_similarity_targets():
    images, scale = unit(0, 4).requires_grad_(), torch.tensor(5.0, requires_grad=True)
    assert not losses.similarity_targets(images, images, scale).requires_grad


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


def test_the_loss_of_mirror_pairs_is_the_weighted_sum_of_its_terms():
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=0)
    grader = model.ClipGrader(clip, tokenizer, "projection", prompts("as_printed"))
    values, grades = torch.randn(6, 2, 128, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    (a, one), (b, other) = ((grader.logits(found), found) for found in map(grader.embed_features, values.unbind(1)))
    p, q = a.softmax(-1), b.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    expected = {"cross_entropy": F.cross_entropy(torch.cat([a, b]), grades.repeat(2)),
                "symmetry": (1 - (one * other).sum(-1)).mean(), "consistency": divergence.mean() / 2}
    terms, logits = losses.MirrorPairs(True, 0.5, 2.0)(grader, values, grades)
    assert torch.allclose(logits, a, atol=1e-4)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-3)
    weighted = expected["cross_entropy"] + 0.5 * expected["symmetry"] + 2 * expected["consistency"]
    assert terms["loss"].item() == pytest.approx(weighted.item(), rel=1e-3)
    alone = losses.MirrorPairs(False, 0.0, 0.0)(grader, values, grades)[0]
    assert alone["loss"].item() == pytest.approx(F.cross_entropy(a, grades).item(), rel=1e-4)
