"""One readable training loop: epochs over cached features or live pictures, selection, checkpoint, resume."""

import copy
import math
import os
import time

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from koa_lib import progress
from koa_lib.device import autocast, device_of
from koa_lib.errors import StudyError
from koa_lib.losses import target_matrix, training_loss
from koa_lib.metrics import confusion, from_confusion

WARM_UP = 0.1  # share of the steps with a rising learning rate when weights start random
SECONDS_BETWEEN_LINES = 5
AVERAGE = 0.995  # decay of the running average of the weights, same case


def fit(grader, data, select, recipe, seed, label, resume=None, watch=None):
    """Train the grader's tail and keep the best weights.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    data : Pictures or Features
        Role 'fit'.
    select : Pictures or Features or None
        Role 'select': the epoch with its best quadratic kappa is kept, and training stops when the recipe has a
        patience and that many epochs brought no better one. None keeps the last epoch.
    recipe : profile.Recipe
    seed : int
    label : str
        Printed before each epoch line.
    resume : Path, optional
        Where the state is kept after each epoch, so that a stopped training goes on.
    watch : Pictures or Features, optional
        Role 'report': measured after each epoch for the curves; nothing depends on it.

    Returns
    -------
    history : DataFrame with epoch, part, loss, accuracy

    Raises
    ------
    StudyError
        When a part has another role, or the loss is no number.
    """
    for part, role in ((data, "fit"), (select, "select"), (watch, "report")):
        check_role(part, role)
    torch.manual_seed(seed)
    loop = _Loop(grader, data, recipe, torch.Generator().manual_seed(seed))
    loop.restore(resume)
    clock = _Clock(recipe.epochs, len(loop.done), label)
    for epoch in range(len(loop.done) + 1, recipe.epochs + 1):
        loss, accuracy = loop.epoch()
        rows = [{"epoch": epoch, "part": "train", "loss": loss, "accuracy": accuracy}]
        metrics = {"loss": loss, "accuracy": accuracy}
        if select is not None:
            row, kappa = _measure(loop.averaged, select, epoch, "inner")
            rows.append(row)
            metrics |= {"inner accuracy": row["accuracy"], "inner kappa": kappa}
            loop.keep_if_best(kappa)
        if watch is not None:
            rows.append(_measure(loop.averaged, watch, epoch, "held_out")[0])
        loop.done.append(rows)
        last = epoch == recipe.epochs or loop.waited(recipe.patience)
        if clock.tell(epoch, metrics, last) and not last:
            loop.save(resume)
        if last:
            break
    grader.load_state_dict(loop.best[1] or _copy(loop.averaged), strict=False)
    return pd.DataFrame([row for rows in loop.done for row in rows])


class _Clock:
    """Tells of epochs with the time left; quick ones share a line at a notebook, and a saved state."""

    def __init__(self, epochs, done, label):
        self.epochs, self.done, self.label = epochs, done, label
        self.start = self.told = time.perf_counter()

    def tell(self, epoch, metrics, last):
        """Tell of an epoch; whether enough time went by since the last line."""
        now = time.perf_counter()
        due = last or now - self.told >= SECONDS_BETWEEN_LINES
        self.told = now if due else self.told
        left = 0 if last else (now - self.start) / (epoch - self.done) * (self.epochs - epoch)
        progress.epoch(self.label, epoch, self.epochs, metrics, left, due)
        return due


def check_role(part, role):
    """StudyError when a part is given for what its role does not allow; None passes."""
    if part is not None and part.dataset.role != role:
        raise StudyError(f"A part with the role '{part.dataset.role}' was given where '{role}' is needed: nothing is fitted or chosen on data that is reported.")


def _copy(grader):
    return {name: value.detach().clone() for name, value in grader.trained_state().items()}


_STATEFUL = ("grader", "averaged", "optimiser", "schedule")


class _Loop:
    """The state of a training: optimiser, schedule and the averaged copy of the weights."""

    def __init__(self, grader, data, recipe, generator):
        if not len(data):
            raise StudyError("There is no training picture. Check the folder and the split of the manifest.")
        self.grader, self.data, self.recipe, self.generator = grader, data, recipe, generator
        self.device = device_of(grader)
        self.targets, self.done, self.best = target_matrix(recipe.targets).to(self.device), [], (-2.0, None, 0)
        self.from_scratch = recipe.augmentation == "strong"
        self.averaged = copy.deepcopy(grader) if self.from_scratch else grader
        trained = [value for value in grader.parameters() if value.requires_grad]
        decay, plain = [v for v in trained if v.ndim > 1], [v for v in trained if v.ndim <= 1]
        self.optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=recipe.learning_rate)
        # What does not fill a batch waits for the next epoch's order; fewer pictures than a batch are one batch.
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
            state |= {"done": self.done, "best": self.best, "step": self.step, "draws": self.generator.get_state(), "torch": torch.get_rng_state()}
            part = path.with_name(f".part-{os.getpid()}-{path.name}")  # killed while it writes, the last whole state stays
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
        warm = WARM_UP * self.steps if self.from_scratch else 0
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def epoch(self):
        """One pass over the data; mean loss and accuracy on the (augmented) training batches."""
        self.grader.train_tail()
        order = torch.randperm(len(self.data), generator=self.generator).numpy()
        loss, right = 0.0, 0
        for number in range(self.batches):
            chosen = np.sort(order[number * self.batch : (number + 1) * self.batch])
            value, correct = self._update(chosen)
            loss, right = loss + value, right + correct
        return loss / self.batches, right / (self.batches * self.batch)

    def _update(self, chosen):
        grades = torch.as_tensor(self.data.grades[chosen], device=self.device)
        features = self.data.training_batch(chosen, self.generator).to(self.device)
        loss, logits = training_loss(self.grader, features, grades, self.targets, self.recipe.loss)
        if not torch.isfinite(loss):
            raise StudyError(f"The loss became {loss.item()} at step {self.step}. Lower the profile's learning_rate.")
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([v for v in self.grader.parameters() if v.requires_grad], 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        if self.from_scratch:
            self._average()
        return loss.item(), int((logits.argmax(1) == grades).sum())

    @torch.no_grad()
    def _average(self):
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        current = self.grader.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - decay)


@torch.no_grad()
def predict(grader, data):
    """Probabilities (n, 5) of the grader on unchanged pictures."""
    grader.eval()
    outputs = []
    for positions in np.array_split(np.arange(len(data)), max(1, len(data) // 128)):
        with autocast(grader):
            outputs.append(grader.tail(data.batch(positions).to(device_of(grader))).float().softmax(-1).cpu())
    return torch.cat(outputs).numpy()


def _measure(grader, data, epoch, part):
    probabilities = predict(grader, data)
    values = from_confusion(confusion(data.grades, probabilities.argmax(1)))
    likelihood = np.clip(probabilities[np.arange(len(data)), data.grades], 1e-9, 1)
    row = {"epoch": epoch, "part": part, "loss": float(-np.log(likelihood).mean()), "accuracy": float(values["accuracy"])}
    return row, float(values["qwk"])


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
    wrong = sorted(name for name in {*state, *expected} if name not in state or name not in expected or state[name].shape != expected[name].shape)
    if wrong:
        raise StudyError(f"{path} does not fit the model: {wrong[0]} is missing, unknown or of another shape. Delete its folder and run the same command again.")
    grader.load_state_dict(state, strict=False)
    return grader
