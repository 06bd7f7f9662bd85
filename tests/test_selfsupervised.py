"""DINO pre-training: the teacher follows as a running average, the loss is the published one, and only unlabelled training pictures are seen."""

import math
from dataclasses import replace

import conftest
import numpy as np
import pytest
import torch
from conftest import with_systems

from koa_lib import crops, dino, profile, selfsupervised
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment

CHOSEN = replace(profile.load("smoke").systems.labels, published=True, crop=16, local_crop=16, local_crops=1, prototypes=8, batch=16, epochs=2)


class Small(torch.nn.Module):
    """Mean brightness of four parts of a picture, through one layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 6)

    def forward(self, images):
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1))


def small():
    torch.manual_seed(0)
    return Small()


def data(**more):
    return replace(conftest.easy_dataset(48, size=24, role="fit"), **more)


def pair():
    torch.manual_seed(1)
    return dino.Dino(small(), CHOSEN)


def views(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return crops.views(data().images(np.arange(16)), CHOSEN, generator)


def test_the_teacher_is_a_running_average_of_the_student():
    model = pair()
    before = [value.clone() for value in model.teacher.parameters()]
    model.update(views(), torch.optim.SGD(model.student.parameters(), lr=0.5), 0.9)
    for old, student, teacher in zip(before, model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.allclose(teacher, 0.9 * old + 0.1 * student, atol=1e-6)
    assert any((old - teacher).abs().max() > 1e-6 for old, teacher in zip(before, model.teacher.parameters(), strict=True))


def test_student_and_teacher_start_as_equals_and_only_the_student_learns():
    model = pair()
    for student, teacher in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(student, teacher) and student is not teacher and not teacher.requires_grad


def by_hand(asked, answered, centre):
    total, terms = 0.0, 0
    for t, question in enumerate(asked):
        target = np.exp((question - centre) / 0.04 - ((question - centre) / 0.04).max(1, keepdims=True))
        target /= target.sum(1, keepdims=True)
        for s, answer in enumerate(answered):
            if s != t:
                scaled = answer / 0.1
                logs = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
                total, terms = total - (target * logs).sum(1).mean(), terms + 1
    return total / terms


def test_the_loss_is_the_mean_cross_entropy_between_different_views():
    model, seen = pair(), views()
    with torch.no_grad():
        asked = [model.teacher(view).numpy() for view in seen[:2]]
        answered = [model.student(view).numpy() for view in seen]
    loss, entropy = model.update(seen, torch.optim.SGD(model.student.parameters(), lr=0.0), 1.0)
    assert loss == pytest.approx(by_hand(asked, answered, 0.0), rel=1e-4)
    assert 0 <= entropy <= math.log(CHOSEN.prototypes) + 1e-6
    centre = 0.1 * np.concatenate(asked).mean(0)  # momentum 0.9, from zero
    assert np.allclose(model.loss.center.numpy().ravel(), centre, atol=1e-6)
    again, _ = model.update(seen, torch.optim.SGD(model.student.parameters(), lr=0.0), 1.0)
    assert again == pytest.approx(by_hand(asked, answered, centre), rel=1e-4)


def test_the_loss_is_never_below_the_entropy_of_the_teacher():
    model = pair()
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.01)
    for step in range(20):
        loss, entropy = model.update(views(step), optimiser, 0.9)
        assert loss >= entropy * 0.999 - 1e-4


def test_a_student_that_answers_alike_has_the_loss_ln_k():
    model = pair()
    with torch.no_grad():
        model.student[1].last_layer.weight_v.fill_(1.0)  # all prototypes equal
    loss, _ = model.update(views(), torch.optim.SGD(model.student.parameters(), lr=0.0), 1.0)
    assert loss == pytest.approx(math.log(CHOSEN.prototypes), rel=1e-4)


def test_momentum_rises_by_a_cosine_to_one():
    values = [dino.momentum(step, 10, 0.9) for step in range(11)]
    assert values[0] == pytest.approx(0.9) and values[5] == pytest.approx(0.95) and values[10] == 1.0 and values == sorted(values)


def trained(pictures=None, seed=5):
    network, history = dino.train(small(), pictures or data(), CHOSEN, seed)
    return torch.cat([value.flatten() for value in network.parameters()]), history.drop(columns="seconds")


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    (first, history), (second, again), (other, _) = trained(), trained(), trained(seed=6)
    assert torch.equal(first, second) and history.equals(again) and not torch.equal(first, other)


def test_grades_are_not_read():
    blind = data()
    blind = replace(blind, rows=blind.rows.drop(columns=["kl_grade", "kl_grade_reader2"]))
    assert torch.equal(trained()[0], trained(blind)[0])


@pytest.mark.parametrize("role", ["select", "report", "any"])
def test_pictures_that_choose_or_are_reported_are_refused(role):
    with pytest.raises(StudyError, match=f"'{role}'.*'fit'"):
        dino.train(small(), data(role=role), CHOSEN, 1)


@pytest.mark.parametrize("split", ["val", "test", "external"])
def test_pictures_of_another_split_are_refused(split):
    mixed = data()
    mixed.rows.loc[5, "split"] = split
    with pytest.raises(StudyError, match=f"'{split}'"):
        dino.train(small(), mixed, CHOSEN, 1)


def test_a_study_pretrains_on_its_training_split_alone(easy_study):
    few = with_systems(easy_study, labels=replace(easy_study.profile.systems.labels, pictures=10))
    all_of_it = selfsupervised.unlabelled(Experiment(easy_study))
    part = selfsupervised.unlabelled(Experiment(few))
    assert set(all_of_it.rows["split"]) == {"train"} and all_of_it.role == "fit"
    assert len(part) == 10 and set(part.rows["image_id"]) < set(all_of_it.rows["image_id"])


def test_crops_are_two_large_and_the_small_ones_of_each_picture():
    chosen = replace(CHOSEN, crop=20, local_crop=12, local_crops=3)
    found = crops.views(data().images(np.arange(6)), chosen, torch.Generator().manual_seed(3))
    assert [tuple(view.shape) for view in found] == [(6, 3, 20, 20)] * 2 + [(6, 3, 12, 12)] * 3
    assert all(torch.isfinite(view).all() for view in found) and not torch.equal(found[0], found[1])


def test_blur_keeps_the_mean_of_an_even_picture_and_evens_out_noise():
    even, noise = torch.full((2, 1, 16, 16), 0.4), torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.05, 1.5])
    assert torch.allclose(crops._blurred(even, sigmas), even, atol=1e-6)
    blurred = crops._blurred(noise, sigmas)
    assert torch.allclose(blurred[0], noise[0], atol=1e-4) and blurred[1].std() < 0.5 * noise[1].std()


def test_a_clip_tower_takes_smaller_crops_and_learns_through_its_position_embedding():
    from koa_lib.model import load_clip

    visual = load_clip("koa-tiny", seed=0)[0].visual
    tower, whole = dino.AnySize(visual), torch.rand(2, 3, 112, 112)
    assert torch.equal(tower(whole), visual(whole))
    tower(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert visual.positional_embedding.grad.abs().sum() > 0


def test_spread_tells_a_collapsed_tower_from_one_that_answers_everywhere():
    generator = np.random.default_rng(0)
    everywhere, alike = generator.normal(size=(4000, 8)), np.ones((50, 8))
    assert selfsupervised.spread(alike) == {"spread": pytest.approx(0, abs=1e-9), "effective_rank": pytest.approx(1)}
    found = selfsupervised.spread(everywhere)
    assert found["spread"] == pytest.approx(1, abs=0.01) and found["effective_rank"] == pytest.approx(8, abs=0.1)
    line = np.outer(generator.normal(size=400), np.eye(8)[0]) + 1e-9
    assert selfsupervised.spread(line)["effective_rank"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("spread", "rank", "collapsed"),
                         [(0.26, 17.3, False), (0.005, 17.3, True), (0.26, 1.5, True)])
def test_collapse_is_judged_by_spread_and_rank(spread, rank, collapsed):
    assert selfsupervised.collapsed({"spread": spread, "effective_rank": rank}) == collapsed
