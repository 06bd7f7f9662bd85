"""One readable training loop: epochs over cached features or live pictures, selection, checkpoint, resume."""

import copy
import math
import os
import time
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from koa_lib import losses, predictions, progress
from koa_lib.device import autocast, device_of, threads
from koa_lib.errors import StudyError
from koa_lib.metrics import confusion, from_confusion
from koa_lib.optimisation import adamw, descend

SECONDS_BETWEEN_LINES = 5
STATE, HISTORY = "state.safetensors", "history.csv"  # what a checkpoint's folder holds
BATCH = 128  # pictures that are graded at once


def train(folder, build, parts, recipe, seed, label, loss=None, resume=None):
    """Make a checkpoint: train a grader and write its trained weights and history into a folder.

    Parameters
    ----------
    build : callable
        Makes the untrained grader.
    parts : callable
        Gives what `fit` is fed with: fit, select (or None) and watch (or None); asked for only when something
        is trained.
    """
    grader, (data, select, watch) = build(), parts()
    history = fit(grader, data, select, recipe, seed, label, resume, watch, loss)
    if resume:
        resume.unlink(missing_ok=True)
    folder.mkdir()
    save_state(grader, folder / STATE)
    history.to_csv(folder / HISTORY, index=False)


def fit(grader, data, select, recipe, seed, label, resume=None, watch=None, loss=None):
    """Train the grader's tail and keep the best weights.

    Parameters
    ----------
    grader : ClipGrader, ImageGrader or ProjectionPair
        One with a method `prepare` is first given the features of the fitting part.
    data : Pictures, Features or Pairs
        Role 'fit'.
    select : Pictures or Features or None
        Role 'select': the epoch with its best quadratic kappa is kept, and training stops when the recipe has
        a patience and that many epochs brought no better one. None keeps the last epoch.
    recipe : settings.Recipe
    seed : int
    label : str
        Printed before each epoch line.
    resume : Path, optional
        Where the state is kept after each epoch, so that a stopped training goes on.
    watch : Pictures or Features, optional
        Role 'report': measured after each epoch for the curves; nothing depends on it.
    loss : callable, optional
        As in `losses`; by default the one that the recipe names.

    Returns
    -------
    DataFrame
        epoch, part ('train', 'inner', 'held_out'), loss, accuracy, qwk (of measured parts), further terms of
        the loss.

    Raises
    ------
    StudyError
        When a part has another role, or the loss is no number.
    """
    for part, role in ((data, "fit"), (select, "select"), (watch, "report")):
        check_role(part, role)
    torch.manual_seed(seed)
    with _small(data):
        if hasattr(grader, "prepare"):
            grader.prepare(data.all())
        loop = _Loop(
            grader, data, recipe, loss or losses.of_recipe(recipe), torch.Generator().manual_seed(seed)
        )
        loop.restore(resume)
        _epochs(loop, select, watch, _Clock(recipe.epochs, len(loop.done), label), resume)
    grader.load_state_dict(loop.best[1] or _copy(loop.averaged), strict=False)
    rows = [row for rows in loop.done for row in rows]
    return pd.DataFrame(rows, columns=None if rows else ["epoch", "part", "loss", "accuracy", "qwk"])


def _epochs(loop, select, watch, clock, resume):
    recipe = loop.recipe
    for epoch in range(len(loop.done) + 1, recipe.epochs + 1):
        rows = [{"epoch": epoch, "part": "train", **loop.epoch()}]
        if select is not None:
            rows.append(_measure(loop.averaged, select, epoch, "inner"))
            loop.keep_if_best(rows[-1]["qwk"])
        if watch is not None:
            rows.append(_measure(loop.averaged, watch, epoch, "held_out"))
        loop.done.append(rows)
        last = epoch == recipe.epochs or loop.waited(recipe.patience)
        if clock.tell(epoch, rows, last) and not last:
            loop.save(resume)
        if last:
            break


def _small(data):
    # Products of vectors are small: two threads would wait for each other far longer than they calculate.
    return threads(1) if data.vectors else nullcontext()


class _Clock:
    """Tells of epochs with the time left; quick ones share a line at a notebook, and a saved state."""

    def __init__(self, epochs, done, label):
        self.epochs, self.done, self.label = epochs, done, label
        self.start = self.told = time.perf_counter()

    def tell(self, epoch, rows, last):
        """Tell of an epoch's rows; whether enough time went by since the last line."""
        metrics = {name: rows[0][name] for name in ("loss", "accuracy")}
        if rows[1:] and rows[1]["part"] == "inner":
            metrics |= {"inner accuracy": rows[1]["accuracy"], "inner kappa": rows[1]["qwk"]}
        now = time.perf_counter()
        due = last or now - self.told >= SECONDS_BETWEEN_LINES
        self.told = now if due else self.told
        left = 0 if last else (now - self.start) / (epoch - self.done) * (self.epochs - epoch)
        progress.epoch(self.label, epoch, self.epochs, metrics, left, due)
        return due


def check_role(part, role):
    """StudyError when a part is given for what its role does not allow; None passes."""
    if part is not None and part.dataset.role != role:
        raise StudyError(
            f"A part with the role '{part.dataset.role}' was given where '{role}' is needed: nothing is "
            "fitted or chosen on data that is reported."
        )


def _copy(grader):
    return {name: value.detach().clone() for name, value in grader.trained_state().items()}


_STATEFUL = ("grader", "averaged", "optimiser", "schedule")


class _Loop:
    """The state of a training: optimiser, schedule and the averaged copy of the weights."""

    def __init__(self, grader, data, recipe, loss, generator):
        if not len(data):
            raise StudyError("There is no training picture. Check the folder and the split of the manifest.")
        self.grader, self.data, self.recipe, self.loss, self.generator = grader, data, recipe, loss, generator
        self.device, self.done, self.best = device_of(grader), [], (-2.0, None, 0)
        self.averaged = copy.deepcopy(grader) if recipe.averaging else grader
        self.optimiser = adamw(grader, recipe.learning_rate, recipe.weight_decay)
        # What does not fill a batch waits for the next epoch's order; fewer pictures than a batch are one
        # batch.
        self.batch, self.batches = min(recipe.batch, len(data)), max(1, len(data) // recipe.batch)
        self.steps, self.step = recipe.epochs * self.batches, 0
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._rate)

    def keep_if_best(self, kappa):
        """Keep a copy of the averaged weights when the inner part likes them best so far."""
        if kappa > self.best[0]:
            self.best = (kappa, _copy(self.averaged), len(self.done))

    def waited(self, patience):
        """Whether the best epoch lies `patience` epochs back; never with a patience of 0."""
        return bool(patience) and len(self.done) - 1 - self.best[2] >= patience

    def save(self, path):
        """Write all that a continuation needs."""
        if path is not None:
            state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
            state |= {
                "done": self.done,
                "best": self.best,
                "step": self.step,
                "draws": self.generator.get_state(),
                "torch": torch.get_rng_state(),
            }
            # killed while it writes, the last whole state stays
            part = path.with_name(f".part-{os.getpid()}-{path.name}")
            torch.save(state, part)
            os.replace(part, path)

    def restore(self, path):
        """Go on from a saved state, if there is one."""
        if path is None or not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.done, self.best, self.step = state["done"], tuple(state["best"]), state["step"]
        self.generator.set_state(state["draws"])
        torch.set_rng_state(state["torch"])
        progress.tell(f"going on after epoch {len(self.done)}")

    def _rate(self, step):
        warm = self.recipe.warm_up * self.steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def epoch(self):
        """One pass over the data; means over its steps of the loss's terms, and accuracy on the (augmented)
        batches."""
        self.grader.train_tail()
        order = torch.randperm(len(self.data), generator=self.generator).numpy()
        steps = [
            self._update(np.sort(order[k * self.batch : (k + 1) * self.batch])) for k in range(self.batches)
        ]
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}

    def _update(self, chosen):
        grades = torch.as_tensor(self.data.grades[chosen], device=self.device)
        features = self.data.training_batch(chosen, self.generator).to(self.device)
        terms, logits = self.loss(self.grader, features, grades)
        descend(terms["loss"], self.grader, self.optimiser)
        self.schedule.step()
        self.step += 1
        if self.recipe.averaging:
            self._average()
        accuracy = (logits.argmax(1) == grades).float().mean()
        return {name: float(value.detach()) for name, value in (terms | {"accuracy": accuracy}).items()}

    @torch.no_grad()
    def _average(self):
        # A running average of the weights; in its first steps it forgets quickly.
        decay = min(self.recipe.averaging, (1 + self.step) / (10 + self.step))
        current = self.grader.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - decay)


@torch.no_grad()
def predict(grader, data):
    """Probabilities (n, 5) of a grader, or of a classifier, on unchanged pictures."""
    if hasattr(grader, "probabilities"):
        return grader.probabilities(data.all())
    grader.eval()
    outputs = []
    with _small(data):
        for positions in np.array_split(np.arange(len(data)), max(1, len(data) // BATCH)):
            with autocast(grader):
                outputs.append(
                    grader.tail(data.batch(positions).to(device_of(grader))).float().softmax(-1).cpu()
                )
    return torch.cat(outputs).numpy()


def write_predictions(path, grader, source, levels):
    """Write a prediction file.

    Parameters
    ----------
    grader, source : callables
        Give what `predict` takes.
    levels : int sequence
        Grades that the task has; five outputs serve every task, and the others get 0.
    """
    data = source()
    found = predict(grader(), data)
    if len(levels) < found.shape[1]:
        found = np.where(np.isin(np.arange(found.shape[1]), levels), found, 0)
        found = found / found.sum(1, keepdims=True)
    predictions.write(predictions.frame(data.dataset.rows["image_id"], found), path)


def _measure(grader, data, epoch, part):
    probabilities = predict(grader, data)
    values = from_confusion(confusion(data.grades, probabilities.argmax(1)))
    likelihood = np.clip(probabilities[np.arange(len(data)), data.grades], 1e-9, 1)
    return {
        "epoch": epoch,
        "part": part,
        "loss": float(-np.log(likelihood).mean()),
        "accuracy": float(values["accuracy"]),
        "qwk": float(values["qwk"]),
    }


def save_state(grader, path):
    """Write the trained part of a grader as safetensors."""
    save_file({name: value.contiguous() for name, value in grader.trained_state().items()}, path)


def load_state(grader, path):
    """Read a trained part into a grader built in the same way.

    Raises
    ------
    StudyError
        When the file does not hold exactly the weights that this grader trains, or of another shape.
    """
    state, expected = load_file(path), grader.trained_state()
    wrong = sorted(
        name
        for name in {*state, *expected}
        if name not in state or name not in expected or state[name].shape != expected[name].shape
    )
    if wrong:
        raise StudyError(
            f"{path} does not fit the model: {wrong[0]} is missing, unknown or of another shape. Delete its "
            "folder and run the same command again."
        )
    grader.load_state_dict(state, strict=False)
    return grader
