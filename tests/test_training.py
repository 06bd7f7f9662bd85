"""The training loop: it learns, resumes to the same weights, keeps the chosen epoch and refuses reported parts."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, easy_dataset
from torch import nn

from koa_lib import datasets, losses, metrics, optimisation, progress, sources, training
from koa_lib import model as models
from koa_lib.errors import StudyError
from koa_lib.prompts import prompts


class Small(nn.Module):
    """A quick grader with the interface of `ClipGrader`; dropout and batch norm have states of their own."""

    stage, low_precision = "image", False

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.frozen = nn.Conv2d(3, 8, 3)
            self.trained = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * 14 * 14, 5))
        self.frozen.requires_grad_(False)

    def trunk(self, images):
        return images

    def tail(self, images):
        return self.trained(self.frozen(images))

    def train_tail(self):
        self.eval()
        self.trained.train()

    def trained_state(self):
        return {key: value for key, value in self.state_dict().items() if key.startswith("trained")}


LIVE = replace(TINY, part="full_image")
grader = Small


def pictures(recipe=LIVE, role="fit", n=64, seed=0):
    return sources.Pictures(easy_dataset(n, size=16, role=role, seed=seed), recipe)


def clip_grader(part):
    clip, _, tokenizer = models.load_clip("koa-tiny", seed=3)
    return models.ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


def test_loss_falls_on_an_easy_set():
    recipe = replace(LIVE, epochs=30, learning_rate=0.01)
    made = grader()
    history = training.fit(made, pictures(recipe), None, recipe, 0, "test")
    assert history["epoch"].tolist() == list(range(1, 31)) and set(history["part"]) == {"train"}
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0] and history["accuracy"].iloc[-1] > 0.6
    unseen = pictures(recipe, "report", seed=9)
    assert (training.predict(made, unseen).argmax(1) == unseen.grades).mean() > 0.6


def test_same_seed_same_weights():
    states = []
    for seed in (1, 1, 2):
        made = grader()
        training.fit(made, pictures(), None, LIVE, seed, "test")
        states.append(made.trained_state())
    same, other = ([torch.equal(states[0][key], states[k][key]) for key in states[0]] for k in (1, 2))
    assert all(same) and not all(other)


class Stopped(Exception):
    pass


class Failing(sources.Pictures):
    """Pictures that stop the training after some batches, like a killed run."""

    def training_batch(self, positions, generator):
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return super().training_batch(positions, generator)


@pytest.mark.parametrize("options", [{}, {"augmentation": "strong", "targets": "ordinal", "warm_up": 0.1, "averaging": 0.995}])
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch, options):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)
    recipe = replace(LIVE, epochs=3, **options)
    whole, parted = grader(), grader()
    expected = training.fit(whole, pictures(recipe), pictures(recipe, "select", 20, 1), recipe, 5, "test", tmp_path / "whole.resume")
    stopping = Failing(easy_dataset(64, size=16, role="fit"), recipe)
    stopping.left = 4 + 2  # an epoch has four batches
    with pytest.raises(Stopped):
        training.fit(parted, stopping, pictures(recipe, "select", 20, 1), recipe, 5, "test", tmp_path / "a.resume")
    again = grader()
    history = training.fit(again, pictures(recipe), pictures(recipe, "select", 20, 1), recipe, 5, "test", tmp_path / "a.resume")
    assert history.equals(expected)
    ours, theirs = again.trained_state(), whole.trained_state()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_resume_really_skips_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)
    stopped, going_on = (Failing(easy_dataset(64, size=16, role="fit"), LIVE) for _ in range(2))
    stopped.left = 4 * LIVE.epochs - 1  # an epoch has four batches: stopped in the last one
    with pytest.raises(Stopped):
        training.fit(grader(), stopped, None, LIVE, 5, "test", tmp_path / "a.resume")
    going_on.left = 4
    assert len(training.fit(grader(), going_on, None, LIVE, 5, "test", tmp_path / "a.resume")) == LIVE.epochs


@pytest.mark.parametrize("role", ["report", "select", "any"])
def test_nothing_is_fitted_on_another_part(role):
    with pytest.raises(StudyError, match=f"'{role}' was given where 'fit' is needed"):
        training.fit(grader(), pictures(role=role), None, LIVE, 0, "test")


@pytest.mark.parametrize("role", ["report", "fit", "any"])
def test_nothing_is_chosen_on_another_part(role):
    with pytest.raises(StudyError, match=f"'{role}' was given where 'select' is needed"):
        training.fit(grader(), pictures(), pictures(role=role), LIVE, 0, "test")


def kappas(history):
    return history.loc[history["part"] == "inner", "qwk"].to_numpy()


@pytest.mark.parametrize("seed", range(4))
def test_the_first_best_epoch_of_the_choosing_part_is_kept(seed):
    recipe, made, select = replace(LIVE, epochs=6, learning_rate=0.02), grader(), pictures(role="select", n=20, seed=1)
    history = training.fit(made, pictures(recipe), select, recipe, seed, "test")
    best = kappas(history).argmax() + 1
    kept = grader()
    training.fit(kept, pictures(recipe), None, replace(recipe, epochs=6), seed, "test")  # the last epoch
    found = metrics.from_confusion(metrics.confusion(select.grades, training.predict(made, select).argmax(1)))["qwk"]
    assert found == pytest.approx(kappas(history).max()) and list(history["part"]) == ["train", "inner"] * 6
    same = all(torch.equal(a, b) for a, b in zip(made.trained_state().values(), kept.trained_state().values(), strict=True))
    assert same == (best == 6)


def test_frozen_weights_do_not_move():
    made = grader()
    frozen, trained = made.frozen.weight.clone(), made.trained[4].weight.clone()
    training.fit(made, pictures(), None, LIVE, 0, "test")
    assert torch.equal(made.frozen.weight, frozen) and not torch.equal(made.trained[4].weight, trained)


def test_fewer_pictures_than_a_batch_are_one_batch_and_none_is_refused():
    assert len(training.fit(grader(), pictures(n=10), None, LIVE, 0, "test")) == LIVE.epochs
    with pytest.raises(StudyError, match="no training picture"):
        training.fit(grader(), sources.Pictures(easy_dataset(10, size=16).part([], "fit"), LIVE), None, LIVE, 0, "test")


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_stops_when_patience_epochs_brought_no_gain(patience):
    recipe = replace(LIVE, epochs=10, patience=patience, learning_rate=0.02)
    found = kappas(training.fit(grader(), pictures(recipe), pictures(recipe, "select", 20, 1), recipe, 0, "test"))
    assert len(found) - 1 - found.argmax() == patience or len(found) == 10 and len(found) - 1 - found.argmax() < patience


def test_a_running_average_is_another_grader_than_the_last_step():
    plain, averaged = grader(), grader()
    training.fit(plain, pictures(), None, LIVE, 0, "test")
    training.fit(averaged, pictures(), None, replace(LIVE, averaging=0.9), 0, "test")
    assert not torch.equal(plain.trained[4].weight, averaged.trained[4].weight)


def test_a_rising_learning_rate_changes_the_first_steps_little():
    def moved(warm_up):
        made, recipe = grader(), replace(LIVE, warm_up=warm_up, epochs=1)
        before = made.trained[4].weight.clone()
        training.fit(made, pictures(recipe), None, recipe, 0, "test")
        return float((made.trained[4].weight.detach() - before).abs().sum())

    assert moved(1.0) < moved(0.0)


def test_what_is_watched_changes_nothing_and_must_be_a_reported_part():
    plain, watched = grader(), grader()
    training.fit(plain, pictures(), None, LIVE, 0, "test")
    history = training.fit(watched, pictures(), None, LIVE, 0, "test", watch=pictures(LIVE, "report", 20, 1))
    assert list(history["part"]) == ["train", "held_out"] * LIVE.epochs
    assert all(torch.equal(a, b) for a, b in zip(plain.trained_state().values(), watched.trained_state().values(), strict=True))
    with pytest.raises(StudyError, match="'report' is needed"):
        training.fit(grader(), pictures(), None, LIVE, 0, "test", watch=pictures(LIVE, "fit", 20, 1))


@pytest.mark.parametrize("part", ["adapter", "both_encoders"])
def test_the_contrastive_loss_is_that_of_pictures_and_their_own_sentences(part):
    made, data = clip_grader(part), easy_dataset(12)
    grades = torch.as_tensor(data.grades)
    with torch.no_grad():
        features = made.trunk(datasets.to_tensor(data.images(np.arange(12)), "clip"))
        terms, logits = losses.InfoNCE()(made, features, grades)
        pairs = made.tail(features)[:, grades].double()  # column j is the sentence of picture j
    own = torch.arange(12)
    expected = (torch.nn.functional.cross_entropy(pairs, own) + torch.nn.functional.cross_entropy(pairs.T, own)) / 2
    assert terms["loss"].item() == pytest.approx(expected.item(), abs=1e-4) and torch.allclose(logits, made.tail(features), atol=1e-4)


def test_diverged_training_stops_in_words():
    with pytest.raises(StudyError, match="Lower the profile's learning_rate"):
        training.fit(grader(), pictures(), None, replace(LIVE, learning_rate=1e30), 0, "test")


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks"])
def test_cached_features_equal_live_pictures(tmp_path, part):
    made, data = clip_grader(part), easy_dataset(12)
    recipe = replace(TINY, part=part, views=2)
    sources.extract(tmp_path / "f.npy", lambda: made, data, recipe, 0)
    array = np.load(tmp_path / "f.npy", mmap_mode="r")
    some = data.part(np.arange(3, 9), "report")
    cached, pictures = sources.Features(some, array), sources.Pictures(some, recipe)
    with torch.no_grad():
        live = made(pictures.batch(np.arange(6))).softmax(-1).numpy()
    assert array.shape[:2] == (2, 12) and np.allclose(training.predict(made, cached), live, atol=5e-3)
    assert not np.allclose(array[0], array[1], atol=1e-3)


def test_clip_learns_from_cached_features(tmp_path):
    recipe = replace(TINY, part="last_blocks", epochs=6)
    made, data = clip_grader("last_blocks"), easy_dataset(48, role="fit")
    sources.extract(tmp_path / "f.npy", lambda: made, data, recipe, 0)
    history = training.fit(made, sources.Features(data, np.load(tmp_path / "f.npy")), None, recipe, 0, "test")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_training_batches_draw_from_all_views():
    array = np.arange(3, dtype=np.float16).reshape(3, 1, 1) * np.ones((3, 20, 4), dtype=np.float16)
    source = sources.Features(easy_dataset(20, size=4), array)
    views = set(source.training_batch(np.arange(20), torch.Generator().manual_seed(0))[:, 0].tolist())
    assert views == {0, 1, 2} and source.batch(np.arange(20)).eq(0).all()


def test_predictions_do_not_depend_on_the_batch():
    made, source = grader(), pictures(n=140)
    whole = training.predict(made, source)
    alone = training.predict(made, sources.Pictures(source.dataset.part(np.array([7, 139]), "report"), LIVE))
    assert np.allclose(whole[[7, 139]], alone, atol=1e-5) and np.allclose(whole.sum(axis=1), 1, atol=1e-5)


def test_saved_state_gives_the_same_grades(tmp_path):
    made = grader()
    training.fit(made, pictures(), None, LIVE, 0, "test")
    training.save_state(made, tmp_path / "state.safetensors")
    again = training.load_state(grader(), tmp_path / "state.safetensors")
    assert np.array_equal(training.predict(made, pictures(n=16)), training.predict(again, pictures(n=16)))


def test_progress_is_told_per_epoch(capsys, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)
    training.fit(grader(), pictures(), None, LIVE, 0, "fold 1")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["fold 1 epoch 1/2", "fold 1 epoch 2/2"]
    assert all(re.fullmatch(r"fold 1 epoch \d/2: loss \d\.\d{3}, accuracy \d\.\d{3}; [\d.]+ s left", line) for line in lines) and lines[-1].endswith("; 0 s left")


def test_who_watches_hears_of_every_epoch_and_a_person_of_the_last(capsys, monkeypatch):
    for watched, heard in ((True, [1, 2]), (False, [2])):
        monkeypatch.setenv(progress.WATCHED, "03" * watched)
        training.fit(grader(), pictures(), None, LIVE, 0, "fold 1")
        lines = capsys.readouterr().out.split("\n")[:-1]
        assert [int(line.split("epoch ")[1].split("/")[0].lstrip('"')) for line in lines] == heard and all(line.startswith(progress.MARK) == watched for line in lines)


def test_biases_and_norms_do_not_decay():
    layer = nn.Linear(3, 2)
    groups = optimisation.adamw(layer, 0.1, 0.5).param_groups
    decay = {tuple(value.shape): group["weight_decay"] for group in groups for value in group["params"]}
    assert decay == {(2, 3): 0.5, (2,): 0.0}


def test_a_step_goes_down_and_is_no_longer_than_allowed():
    layer = nn.Linear(3, 1, bias=False)
    plain = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    loss = 1000 * layer(torch.ones(4, 3)).square().mean()
    told = optimisation.descend(loss, layer, plain, largest=0.5)
    assert told == pytest.approx(loss.item()) and (layer.weight - before).norm().item() == pytest.approx(0.5, abs=1e-3)
