"""The training loop: it learns, resumes to equal weights, keeps the chosen epoch, refuses reported parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, easy_dataset
from torch import nn

from koa_lib import losses, metrics, optimisation, sources, training
from koa_lib import model as models
from koa_lib.device import device_of
from koa_lib.errors import StudyError
from koa_lib.prompts import prompts

LIVE = replace(TINY, part="full_image")


class Small(nn.Module):
    """A quick grader with the interface of `ClipGrader`; dropout and batch norm have states of their own."""

    stage, low_precision = "image", False

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.frozen = nn.Conv2d(3, 8, 3)
            self.trained = nn.Sequential(
                nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * 14 * 14, 5))
        self.frozen.requires_grad_(False)

    def tail(self, images):
        return self.trained(self.frozen(images))

    def train_tail(self):
        self.eval()
        self.trained.train()

    def trained_state(self):
        return {key: value for key, value in self.state_dict().items() if key.startswith("trained")}


class Stopped(Exception):
    pass


class Failing(sources.Pictures):
    """Pictures that stop the training after `left` batches, like a killed run."""

    left = 0

    def training_batch(self, positions, generator):
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return super().training_batch(positions, generator)


def pictures(recipe=LIVE, role="fit", n=64, seed=0, kind=sources.Pictures):
    return kind(easy_dataset(n, size=16, role=role, seed=seed), recipe)


def selecting(upside_down=False):
    """A part to choose by; upside down it likes the first epoch best, as all that is learned is wrong."""
    data = easy_dataset(20, size=16, role="select", seed=1)
    rows = data.rows.assign(kl_grade=4 - data.rows["kl_grade"]) if upside_down else data.rows
    return sources.Pictures(replace(data, rows=rows), LIVE)


def trained(recipe=LIVE, data=None, select=None, seed=0, **more):
    """A trained grader and its history."""
    made = Small()
    data = pictures(recipe) if data is None else data
    return made, training.fit(made, data, select, recipe, seed, "test", **more)


def alike(a, b):
    """Which tensors of two graders are equal."""
    ours, theirs = a.state_dict(), b.state_dict()
    return [torch.equal(ours[key], theirs[key]) for key in ours]


def kappas(history):
    return history.loc[history["part"] == "inner", "qwk"].to_numpy()


def clip_grader(part):
    clip, _, tokenizer = models.load_clip("koa-tiny", seed=3)
    return models.ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


def test_an_easy_set_is_learned():
    recipe = replace(LIVE, epochs=20, learning_rate=0.01)
    (made, history), unseen = trained(recipe), pictures(recipe, "report", seed=9)
    assert history["epoch"].tolist() == list(range(1, 21))
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    assert (training.predict(made, unseen).argmax(1) == unseen.grades).mean() > 0.6


def test_the_seed_decides_and_frozen_weights_do_not_move():
    first, again, other = (trained(seed=seed)[0] for seed in (1, 1, 2))
    assert all(alike(first, again)) and not all(alike(first, other))
    assert torch.equal(first.frozen.weight, Small().frozen.weight)
    assert not torch.equal(first.trained[4].weight, Small().trained[4].weight)


MANY = {"augmentation": "strong", "targets": "ordinal", "warm_up": 0.1, "averaging": 0.995}


@pytest.mark.parametrize("select", [None, selecting(upside_down=True)], ids=["last epoch", "first is best"])
@pytest.mark.parametrize("options", [{}, MANY], ids=["plain", "all options"])
def test_a_resumed_training_equals_an_uninterrupted_one_and_repeats_no_epoch(
        tmp_path, monkeypatch, options, select):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)  # a state is kept after each epoch
    recipe, path = replace(LIVE, epochs=3, learning_rate=0.01, **options), tmp_path / "a.resume"
    whole, expected = trained(recipe, select=select, seed=5)
    stopping, going_on = (pictures(recipe, kind=Failing) for _ in range(2))
    stopping.left, going_on.left = 4 + 2, 2 * 4  # an epoch has four batches: stopped in the second
    with pytest.raises(Stopped):
        trained(recipe, stopping, select, 5, resume=path)
    again, history = trained(recipe, going_on, select, 5, resume=path)
    assert history.equals(expected) and all(alike(again, whole))


@pytest.mark.parametrize(("part", "role", "needed"), [
    *(("data", role, "fit") for role in ("report", "select", "any")),
    *(("select", role, "select") for role in ("report", "fit", "any")), ("watch", "fit", "report")])
def test_nothing_is_fitted_chosen_or_watched_on_a_part_of_another_role(part, role, needed):
    with pytest.raises(StudyError, match=f"'{role}'.*'{needed}'"):
        trained(**{part: pictures(role=role)})


@pytest.mark.parametrize("seed", range(4))
def test_the_first_best_epoch_of_the_choosing_part_is_kept(seed):
    recipe, select = replace(LIVE, epochs=6, learning_rate=0.02), selecting()
    made, history = trained(recipe, select=select, seed=seed)
    until, _ = trained(recipe, seed=seed)  # without a choosing part the last epoch is kept
    predicted = training.predict(made, select).argmax(1)
    found = metrics.from_confusion(metrics.confusion(select.grades, predicted))["qwk"]
    assert found == pytest.approx(kappas(history).max()) and list(history["part"]) == ["train", "inner"] * 6
    assert all(alike(made, until)) == (kappas(history).argmax() == 5)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_patience_epochs_brought_no_gain(patience):
    recipe = replace(LIVE, epochs=10, patience=patience, learning_rate=0.02)
    found = kappas(trained(recipe, select=selecting())[1])
    waited = len(found) - 1 - found.argmax()
    assert waited == patience or len(found) == 10 and waited < patience


def test_fewer_pictures_than_a_batch_are_one_batch_and_none_is_refused():
    assert len(trained(data=pictures(n=10))[1]) == LIVE.epochs
    with pytest.raises(StudyError, match="no training picture"):
        trained(data=sources.Pictures(easy_dataset(10, size=16).part([], "fit"), LIVE))


def test_what_is_watched_changes_nothing():
    watched, history = trained(watch=pictures(role="report", n=20, seed=1))
    assert list(history["part"]) == ["train", "held_out"] * LIVE.epochs
    assert all(alike(watched, trained()[0]))


def test_averaging_and_warm_up_hold_the_weights_back():
    def moved(**options):
        made, _ = trained(replace(LIVE, epochs=1, **options))
        return (made.trained[4].weight - Small().trained[4].weight).detach().abs().sum().item()

    assert moved(averaging=0.9) < moved() and moved(warm_up=1.0) < moved()


def test_a_diverged_training_says_what_to_lower():
    with pytest.raises(StudyError, match="learning_rate"):
        trained(replace(LIVE, learning_rate=1e30))


def test_the_contrastive_loss_is_that_of_pictures_and_their_own_sentences():
    made, data, own = clip_grader("both_encoders"), easy_dataset(12), torch.arange(12)
    features, grades = sources.Pictures(data, TINY).batch(np.arange(12)), torch.as_tensor(data.grades)
    with torch.no_grad():
        terms, logits = losses.InfoNCE()(made, features, grades)
        pairs = made.tail(features)[:, grades]  # column j is the sentence of picture j
    expected = (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2
    assert terms["loss"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert torch.allclose(logits[:, grades], pairs, atol=1e-4)


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks"])
def test_cached_features_equal_live_pictures_and_training_draws_from_all_views(tmp_path, part):
    made, data, recipe = clip_grader(part), easy_dataset(12), replace(TINY, part=part, views=2)
    sources.extract(tmp_path / "f.npy", lambda: made, data, recipe, 0)
    array, every = np.load(tmp_path / "f.npy"), np.arange(12)
    cached = sources.Features(data, array)
    with torch.no_grad():
        live = made(sources.Pictures(data, recipe).batch(every)).softmax(-1).numpy()
    assert np.allclose(training.predict(made, cached), live, atol=5e-3)
    drawn = cached.training_batch(every, torch.Generator().manual_seed(0)).numpy()
    from_view = (drawn == array).reshape(2, 12, -1).all(-1)
    assert (from_view.sum(0) == 1).all() and from_view.any(1).all()


def test_predictions_do_not_depend_on_the_batch():
    source, some = pictures(n=140), np.array([7, 139])
    alone = sources.Pictures(source.dataset.part(some, "report"), LIVE)
    found = training.predict(Small(), source)
    assert np.allclose(found[some], training.predict(Small(), alone), atol=1e-5)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_biases_and_norms_do_not_decay():
    groups = optimisation.adamw(nn.Linear(3, 2), 0.1, 0.5).param_groups
    decay = {tuple(value.shape): group["weight_decay"] for group in groups for value in group["params"]}
    assert decay == {(2, 3): 0.5, (2,): 0.0}


def test_a_step_goes_down_and_is_no_longer_than_allowed():
    layer = nn.Linear(3, 1, bias=False)
    before, loss = layer.weight.detach().clone(), 1000 * layer(torch.ones(4, 3)).square().mean()
    told = optimisation.descend(loss, layer, torch.optim.SGD(layer.parameters(), lr=1.0), largest=0.5)
    assert told == pytest.approx(loss.item())
    assert (layer.weight - before).norm().item() == pytest.approx(0.5, abs=1e-3)


GPU = "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device here")
@pytest.mark.parametrize("part", ["adapter", "last_blocks", "full_image"])
def test_a_step_and_the_grades_after_it_are_those_of_the_cpu_on_a_gpu(part, tmp_path):
    recipe, unseen = replace(TINY, part=part, epochs=1), easy_dataset(10, role="report", seed=9)
    data, untouched, found = easy_dataset(TINY.batch, role="fit"), clip_grader(part), {}
    for device in ("cpu", GPU):
        made, file = clip_grader(part).to(device), tmp_path / f"{device}.npy"
        sources.extract(file, lambda made=made: made, data, recipe, 0)
        source = (sources.Pictures(data, recipe) if made.stage == "image"
                  else sources.Features(data, np.load(file)))
        training.fit(made, source, None, recipe, 0, "test")
        assert device_of(made).type == device
        with torch.no_grad():
            logits = made(sources.Pictures(unseen, recipe).batch(np.arange(10)).to(device))
        found[device] = {name: value.cpu() for name, value in made.trained_state().items()}, logits.cpu()
    (weights, grades), (others, again) = found["cpu"], found[GPU]
    start = untouched.trained_state()
    moved, apart = (torch.cat([(weights[name] - other[name]).abs().flatten() for name in weights])
                    for other in (start, others))
    # AdamW's first step is as long as the learning rate; where the gradient is but noise it may go elsewhere.
    assert apart.mean() < 0.05 * moved.max()
    assert torch.allclose(grades.softmax(-1), again.softmax(-1), atol=0.02)
