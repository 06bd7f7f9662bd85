"""One readable training loop: epochs over cached features or live pictures, selection, checkpoint, resume."""

import copy
import math
import time

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from koa_lib.datasets import augment, to_tensor
from koa_lib.errors import StudyError
from koa_lib.losses import prototype_cross_entropy, target_matrix
from koa_lib.metrics import confusion, from_confusion

WARM_UP = 0.1  # share of the steps with a rising learning rate when weights start random
SECONDS_BETWEEN_LINES = 5
AVERAGE = 0.995  # decay of the running average of the weights, same case


def fit(grader, data, select, recipe, seed, label, resume=None):
    """Train the grader's tail and keep the best weights.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    data : Pictures or Features
        Role 'fit'.
    select : Pictures or Features or None
        Role 'select': the epoch with its best quadratic kappa is kept. None keeps the last epoch.
    recipe : profile.Recipe
    seed : int
    label : str
        Printed before each epoch line.
    resume : Path, optional
        Where the state is kept after each epoch, so that a stopped training goes on.

    Returns
    -------
    history : DataFrame with epoch, part, loss, accuracy

    Raises
    ------
    StudyError
        When a part has another role, or the loss is no number.
    """
    _check_role(data, "fit")
    if select is not None:
        _check_role(select, "select")
    torch.manual_seed(seed)
    loop = _Loop(grader, data, recipe, torch.Generator().manual_seed(seed))
    loop.restore(resume)
    clock = _Clock(recipe.epochs - len(loop.done), label)
    for epoch in range(len(loop.done) + 1, recipe.epochs + 1):
        loss, accuracy = loop.epoch()
        rows = [{"epoch": epoch, "part": "train", "loss": loss, "accuracy": accuracy}]
        line = f"epoch {epoch}/{recipe.epochs}: loss {loss:.3f}, accuracy {accuracy:.3f}"
        if select is not None:
            row, kappa = _measure(loop.averaged, select, epoch, "inner")
            rows.append(row)
            line += f"; inner part: accuracy {row['accuracy']:.3f}, quadratic kappa {kappa:.3f}"
            loop.keep_if_best(kappa)
        loop.done.append(rows)
        if clock.tell(line, epoch == recipe.epochs):
            loop.save(resume)
    grader.load_state_dict(loop.best[1] or _copy(loop.averaged), strict=False)
    return pd.DataFrame([row for rows in loop.done for row in rows])


class _Clock:
    """Epoch lines with the time left; quick epochs share a line, so that a log stays readable."""

    def __init__(self, epochs, label):
        self.epochs, self.label, self.passed = epochs, label, 0
        self.start = self.told = time.perf_counter()

    def tell(self, line, last):
        """Print the line when it is due; whether it was."""
        self.passed += 1
        now = time.perf_counter()
        if now - self.told < SECONDS_BETWEEN_LINES and not last:
            return False
        self.told = now
        print(f"{self.label} {line}; {(now - self.start) / self.passed * (self.epochs - self.passed):.0f} s left", flush=True)
        return True


def _check_role(part, role):
    if part.dataset.role != role:
        raise StudyError(f"A part with the role '{part.dataset.role}' was given where '{role}' is needed: nothing is fitted or chosen on data that is reported.")


def _copy(grader):
    return {name: value.detach().clone() for name, value in grader.trained_state().items()}


_STATEFUL = ("grader", "averaged", "optimiser", "schedule")


class _Loop:
    """The state of a training: optimiser, schedule and the averaged copy of the weights."""

    def __init__(self, grader, data, recipe, generator):
        if len(data) < recipe.batch:
            raise StudyError(f"{len(data)} training pictures do not fill a batch of {recipe.batch}. Use a smaller batch or more pictures.")
        self.grader, self.data, self.recipe, self.generator = grader, data, recipe, generator
        self.targets, self.done, self.best = target_matrix(recipe.targets), [], (-2.0, None)
        self.from_scratch = recipe.augmentation == "strong"
        self.averaged = copy.deepcopy(grader) if self.from_scratch else grader
        trained = [value for value in grader.parameters() if value.requires_grad]
        decay, plain = [v for v in trained if v.ndim > 1], [v for v in trained if v.ndim <= 1]
        self.optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=recipe.learning_rate)
        self.steps, self.step = recipe.epochs * (len(data) // recipe.batch), 0
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._rate)

    def keep_if_best(self, kappa):
        """Keep a copy of the averaged weights when the inner part likes them best so far."""
        if kappa > self.best[0]:
            self.best = (kappa, _copy(self.averaged))

    def save(self, path):
        """Write all that a continuation needs."""
        if path is not None:
            state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
            torch.save({**state, "done": self.done, "best": self.best, "step": self.step, "draws": self.generator.get_state(), "torch": torch.get_rng_state()}, path)

    def restore(self, path):
        """Go on from a saved state, if there is one."""
        if path is None or not path.exists():
            return
        state = torch.load(path, weights_only=True)
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.done, self.best, self.step = state["done"], tuple(state["best"]), state["step"]
        self.generator.set_state(state["draws"])
        torch.set_rng_state(state["torch"])
        print(f"going on after epoch {len(self.done)}", flush=True)

    def _rate(self, step):
        warm = WARM_UP * self.steps if self.from_scratch else 0
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def epoch(self):
        """One pass over the data; mean loss and accuracy on the (augmented) training batches."""
        self.grader.train_tail()
        order = torch.randperm(len(self.data), generator=self.generator).numpy()
        batches = len(order) // self.recipe.batch
        loss, right = 0.0, 0
        for number in range(batches):
            chosen = np.sort(order[number * self.recipe.batch : (number + 1) * self.recipe.batch])
            value, correct = self._update(chosen)
            loss, right = loss + value, right + correct
        return loss / batches, right / (batches * self.recipe.batch)

    def _update(self, chosen):
        grades = torch.as_tensor(self.data.grades[chosen])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.grader.low_precision):
            logits = self.grader.tail(self.data.training_batch(chosen, self.generator))
        loss = prototype_cross_entropy(logits, grades, self.targets)
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
        with torch.autocast("cpu", torch.bfloat16, enabled=grader.low_precision):
            outputs.append(grader.tail(data.batch(positions)).float().softmax(-1))
    return torch.cat(outputs).numpy()


def _measure(grader, data, epoch, part):
    probabilities = predict(grader, data)
    values = from_confusion(confusion(data.grades, probabilities.argmax(1)))
    likelihood = np.clip(probabilities[np.arange(len(data)), data.grades], 1e-9, 1)
    row = {"epoch": epoch, "part": part, "loss": float(-np.log(likelihood).mean()), "accuracy": float(values["accuracy"])}
    return row, float(values["qwk"])


class Pictures:
    """Live pictures for a model whose whole image tower is trained."""

    def __init__(self, dataset, recipe):
        self.dataset, self.recipe, self.grades = dataset, recipe, dataset.grades

    def __len__(self):
        return len(self.dataset)

    def training_batch(self, positions, generator):
        """Augmented, normalised pictures (n, 3, H, W)."""
        return self._tensor(augment(self.dataset.images(positions), self.recipe.augmentation, generator))

    def batch(self, positions):
        """Unchanged, normalised pictures."""
        return self._tensor(self.dataset.images(positions))

    def _tensor(self, images):
        return to_tensor(images, self.recipe.normalisation).contiguous(memory_format=torch.channels_last)


class Features:
    """Cached trunk features (views, N, ...) of a cohort; view 0 is the unchanged picture, the others augmented."""

    def __init__(self, dataset, array):
        self.dataset, self.array, self.grades = dataset, array, dataset.grades

    def __len__(self):
        return len(self.dataset)

    def training_batch(self, positions, generator):
        """Features of a random view of each picture."""
        view = torch.randint(self.array.shape[0], (len(positions),), generator=generator).numpy()
        return torch.as_tensor(self.array[view, self.dataset.index[positions]].astype(np.float32))

    def batch(self, positions):
        """Features of the unchanged pictures."""
        return torch.as_tensor(self.array[0, self.dataset.index[positions]].astype(np.float32))


@torch.no_grad()
def extract(grader, dataset, recipe, seed, path):
    """Write trunk features (views, n, ...) as float16 .npy, streamed to disk in batches."""
    grader.eval()
    generator = torch.Generator().manual_seed(seed)
    out = None
    for view in range(recipe.views):
        for positions in np.array_split(np.arange(len(dataset)), max(1, len(dataset) // 64)):
            images = dataset.images(positions)
            images = images if view == 0 else augment(images, recipe.augmentation, generator)
            tensor = to_tensor(images, recipe.normalisation).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=grader.low_precision):
                features = grader.trunk(tensor).float().numpy()
            if out is None:
                shape = (recipe.views, len(dataset), *features.shape[1:])
                out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            out[view, positions] = features
    out.flush()


def save_state(grader, path):
    """Write the trained part of a grader as safetensors."""
    save_file({name: value.contiguous() for name, value in grader.trained_state().items()}, path)


def load_state(grader, path):
    """Read a trained part into a grader built in the same way."""
    grader.load_state_dict(load_file(path), strict=False)
    return grader
