"""DINO pre-training: the teacher is a running average, the loss as published, the pictures unlabelled."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import easy_dataset, with_systems

from koa_lib import crops, dino, profile, selfsupervised
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.model import load_clip

CHOSEN = replace(profile.load("smoke").systems.labels, published=True, crop=16, local_crop=16, local_crops=1,
                 prototypes=8, batch=16, epochs=2)


class Small(torch.nn.Module):
    """Mean brightness of four parts of a picture, through one layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 6)

    def forward(self, images):
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1))


def data(**more):
    return replace(easy_dataset(48, size=24, role="fit"), **more)


def views(seed=0, count=16, chosen=CHOSEN):
    return crops.views(data().images(np.arange(count)), chosen, torch.Generator().manual_seed(seed))


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return dino.Dino(Small(), CHOSEN)


def sgd(pair, rate):
    return torch.optim.SGD(pair.student.parameters(), lr=rate)


def weights(network):
    return [value.detach().clone() for value in network.parameters()]


def test_the_teacher_starts_as_the_student_and_is_its_running_average(pair):
    start, taught = weights(pair.student), weights(pair.teacher)
    assert all(map(torch.equal, start, taught))
    pair.update(views(), sgd(pair, 0.5), 0.9)
    learned, followed = weights(pair.student), weights(pair.teacher)
    for old, student, teacher in zip(taught, learned, followed, strict=True):
        assert torch.allclose(teacher, 0.9 * old + 0.1 * student, atol=1e-6)
    assert not all(map(torch.equal, start, learned))
    assert not any(value.requires_grad for value in pair.teacher.parameters())


def by_hand(asked, answered, centre):
    """Mean cross-entropy of the student's answers to every other view than that which the teacher saw."""
    targets = [torch.softmax((question - centre) / 0.04, -1) for question in asked]
    logs = [torch.log_softmax(answer / 0.1, -1) for answer in answered]
    terms = [-(target * log).sum(1).mean() for t, target in enumerate(targets)
             for s, log in enumerate(logs) if s != t]
    return float(sum(terms) / len(terms))


def test_the_loss_is_the_mean_cross_entropy_between_different_views_about_a_moving_centre(pair):
    seen = views()
    with torch.no_grad():
        asked, answered = [pair.teacher(view) for view in seen[:2]], [pair.student(view) for view in seen]
    centre = 0.1 * torch.cat(asked).mean(0)  # after the first step: momentum 0.9, from zero
    for about in (0.0, centre):
        loss, entropy = pair.update(seen, sgd(pair, 0.0), 1.0)
        assert loss == pytest.approx(by_hand(asked, answered, about), rel=1e-4)
        assert 0 <= entropy <= math.log(CHOSEN.prototypes) + 1e-6


def test_momentum_rises_by_a_cosine_to_one():
    values = [dino.momentum(step, 10, 0.9) for step in (0, 5, 10)]
    assert values == pytest.approx([0.9, 0.95, 1.0])


def trained(pictures=None, seed=5):
    network, history = dino.train(Small(), pictures or data(), CHOSEN, seed)
    return torch.cat([value.flatten() for value in network.parameters()]), history.drop(columns="seconds")


def test_the_seed_decides_and_grades_are_not_read():
    blind = replace(data(), rows=data().rows.drop(columns=["kl_grade", "kl_grade_reader2"]))
    (first, history), (second, again), (other, _) = trained(), trained(blind), trained(seed=6)
    assert torch.equal(first, second) and history.equals(again) and not torch.equal(first, other)


@pytest.mark.parametrize(("role", "split", "named"), [
    *((role, "train", f"'{role}'.*'fit'") for role in ("select", "report", "any")),
    *(("fit", split, f"'{split}'") for split in ("val", "test", "external"))])
def test_pictures_that_choose_or_are_reported_are_refused(role, split, named):
    mixed = data(role=role)
    mixed.rows.loc[5, "split"] = split
    with pytest.raises(StudyError, match=named):
        dino.train(Small(), mixed, CHOSEN, 1)


def test_a_study_pretrains_on_its_training_split_alone(easy_study):
    few = with_systems(easy_study, labels=replace(easy_study.profile.systems.labels, pictures=10))
    whole, part = (selfsupervised.unlabelled(Experiment(study)) for study in (easy_study, few))
    assert set(whole.rows["split"]) == {"train"} and whole.role == "fit"
    assert len(part) == 10 and set(part.rows["image_id"]) < set(whole.rows["image_id"])


def test_a_clip_tower_takes_smaller_crops_and_learns_through_its_position_embedding():
    visual = load_clip("koa-tiny", seed=0)[0].visual
    tower, whole = dino.AnySize(visual), torch.rand(2, 3, 112, 112)
    assert torch.equal(tower(whole), visual(whole))
    tower(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert visual.positional_embedding.grad.abs().sum() > 0


NORMAL = np.random.default_rng(0).normal


@pytest.mark.parametrize(("embeddings", "spread", "rank"), [
    (np.ones((50, 8)), 0, 1), (NORMAL(size=(4000, 8)), 1, 8),
    (np.outer(NORMAL(size=400), np.eye(8)[0]) + 1e-9, None, 1)], ids=["alike", "everywhere", "on a line"])
def test_spread_and_rank_tell_a_collapsed_tower(embeddings, spread, rank):
    found = selfsupervised.spread(embeddings)
    assert found["effective_rank"] == pytest.approx(rank, abs=0.1)
    assert spread is None or found["spread"] == pytest.approx(spread, abs=0.01)
    assert selfsupervised.collapsed(found) == (rank == 1)
