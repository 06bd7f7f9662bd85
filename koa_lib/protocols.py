"""The protocols: which pictures fit, choose and report, and the arms of the study.

An arm is a model with a recipe; `runner.Runner` trains it.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from koa_lib import datasets, predictions, splits, weights
from koa_lib import model as models
from koa_lib.device import compute_device
from koa_lib.errors import StudyError
from koa_lib.pretraining import start_weights
from koa_lib.profile import Recipe
from koa_lib.store import write_text

PRINTED_FOLD = 3  # "the optimal fold (K = 3)", section 4.1
START = {"pretrain": "pre-trained on phantoms", "random": "random start", "openai": "OpenAI weights"}


@dataclass(frozen=True)
class BaselineRecipe(Recipe):
    """A recipe whose model has its own input size, in pixels."""

    image_size: int


@dataclass(frozen=True)
class Fold:
    """The parts of one training: what is fitted, what chooses (or None) and what is reported, by split."""

    number: int
    fit: datasets.KneeDataset
    select: datasets.KneeDataset | None
    reported: dict


@dataclass(frozen=True)
class Arm:
    """A model trained by one recipe; `build` makes it untrained, `key` says what it starts from.

    `scheme` is 'images', 'patients' or 'official', see `folds`; `only` names the folds to train (all when empty); `watch` has the
    held-out fold measured after each epoch, for the curves only.
    """

    name: str
    recipe: object
    build: Callable
    seed: int
    scheme: str
    key: dict = field(default_factory=dict)
    only: tuple = ()
    watch: bool = False


def folds(data, arm, seed):
    """The folds of an arm.

    Scheme `images` (as printed): image-level folds over everything; `patients`: the same with both knees of a patient
    in one fold. Neither has an inner part unless the recipe stops early. Scheme `official` (our protocol): folds
    grouped by patient over train + val, or the official split alone when the recipe has no folds; an inner tenth
    of the training part chooses the epoch; the test split is only reported.
    """
    if arm.scheme != "official":
        pairs = {"images": splits.image_folds, "patients": splits.patient_folds}[arm.scheme](data.rows, arm.recipe.folds, seed)
        parts = [(*_inner(data.part(fit, "fit"), arm.recipe, seed), _reported(data, train=fit, held_out=out)) for fit, out in pairs]
        return [Fold(number, *part) for number, part in enumerate(parts, 1)]
    official = {name: np.flatnonzero(data.rows["split"] == name) for name in ("train", "val", "test")}
    if not len(official["train"]):
        raise StudyError("The training cohort has no picture of the split 'train' below the given folder. Point DATA to the folder that holds train/.")
    if not arm.recipe.folds:
        fit, select = splits.inner(data.part(official["train"], "fit"), seed)
        return [Fold(1, fit, select, _reported(data, **official))]
    pool = np.concatenate([official["train"], official["val"]])
    result = []
    for number, (fit, out) in enumerate(splits.patient_folds(data.rows.iloc[pool], arm.recipe.folds, seed), 1):
        inner, select = splits.inner(data.part(pool[fit], "fit"), seed)
        result.append(Fold(number, inner, select, _reported(data, train=pool[fit], held_out=pool[out], test=official["test"])))
    return result


def _inner(fit, recipe, seed):
    return splits.inner(fit, seed) if recipe.patience else (fit, None)


def _reported(data, **positions):
    return {name: data.part(chosen, "report") for name, chosen in positions.items() if len(chosen)}


def clip_arm(study, name, recipe, scheme, only=(), seed=None):
    """An arm of the study's CLIP, starting from its start weights; `seed` is the study's unless given."""
    start, settings, seed = start_weights(study), study.profile.model, study.seed if seed is None else seed

    def build():
        clip, tokenizer = _loaded(settings.name, start and str(start), study.seed)
        return _seeded(seed, models.ClipGrader, copy.deepcopy(clip), tokenizer, recipe.part, recipe.prompts, recipe.residual)

    return Arm(name, recipe, build, seed, scheme, {"model": settings, "weights": hashed(start)}, only)


@lru_cache(maxsize=1)
def _loaded(name, start, seed):
    # Read once: an arm builds its grader for every fold and file of predictions.
    clip, _, tokenizer = models.load_clip(name, start, seed)
    return clip, tokenizer


@lru_cache
def hashed(start):
    """`weights.weights_hash`, read once for each place."""
    # Weights do not change during a run, and hundreds of megabytes are not read again for every arm.
    return weights.weights_hash(start)


def _seeded(seed, build, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments).to(compute_device())


def main_arm(study, seed=None):
    """The arm that the paper's figures and tables show: `as_printed`, or `our_protocol` where it can't run."""
    if study.profile.as_printed is None:
        return our_arm(study, seed)
    return replace(clip_arm(study, "clip-as_printed", study.profile.as_printed, "images", seed=seed), watch=True)


def our_arm(study, seed=None):
    """CLIP by our protocol."""
    return clip_arm(study, "clip-our_protocol", study.profile.our_protocol, "official", seed=seed)


def patients_arm(study):
    """The printed recipe with both knees of a patient in one fold; None where the printed one can't run."""
    recipe = study.profile.as_printed
    return recipe and clip_arm(study, "clip-as_printed-patients", recipe, "patients")


def baseline_arm(study, spec):
    """An arm of Table 4, on the protocol of the main arm; as many folds as the profile says, the paper's first."""
    from koa_lib.baselines import ImageGrader

    main = study.profile.as_printed or study.profile.our_protocol
    own = {name: getattr(spec, name) for name in ("learning_rate", "epochs", "batch", "image_size")}
    recipe = BaselineRecipe(**{**main.__dict__, "part": "full_image", **own})
    start = weights.network(spec.timm, study.inputs.weights) if spec.weights == "imagenet" else None
    key, name = {"model": spec, "weights": hashed(start)}, spec.name.lower().replace(" ", "_")
    scheme = "official" if study.profile.as_printed is None else "images"
    return Arm(name, recipe, lambda: _seeded(study.seed, ImageGrader, spec, start), study.seed, scheme, key, _baseline_folds(study, recipe))


def _baseline_folds(study, recipe):
    first = main_fold(study)
    others = [number for number in range(1, recipe.folds + 1) if number != first]
    return tuple(sorted([first, *others[: study.profile.baseline_folds - 1]]))


def main_fold(study):
    """Number of the fold that the paper's tables show: its K = 3, or the only one."""
    recipe = study.profile.as_printed
    return min(PRINTED_FOLD, recipe.folds) if recipe else 1


def fold_mean(study, arm, results, split, adaptation=""):
    """Mean probabilities over the folds for a split that every fold predicts ('test' or 'external').

    Returns
    -------
    DataFrame or None
        Joined frame; None when the split is absent. With several folds the file `foldmean` is written.
    """
    frames = results.get(split)
    if not frames:
        return None
    mean = predictions.joined_mean(frames)
    if len(frames) > 1:
        predictions.write(mean[predictions.COLUMNS], study.shown_dir / "predictions" / replace(prediction_name(study, arm, split, "mean"), adaptation=adaptation).file)
    return mean


def prediction_name(study, arm, split, fold):
    """The name of an arm's prediction file for a split and fold."""
    spec = getattr(study.profile, "external" if split == "external" else "training")
    return predictions.Name(arm.name, spec.name, split, arm.recipe.geometry, arm.recipe.intensity, str(fold), arm.seed)


def write_primary(study, arm, results):
    """Name the prediction file of the main model for each cohort and split in `primary.json`."""
    names = [prediction_name(study, arm, split, main_fold(study)) for split in results]
    content = {f"{name.cohort}-{name.split}": name.file for name in names}
    write_text(study.shown_dir / "primary.json", json.dumps(content, indent=1))


def unseen_split(results):
    """The part inside the training cohort that a model was not fitted on: test, else held-out fold, else val."""
    return next(split for split in ("test", "held_out", "val") if split in results)


def described(arm, study):
    """How the CLIP row of a table was run, e.g. 'koa-tiny, 112 px, adapter, 30 epochs'."""
    model = study.profile.model
    return f"{model.name}, {model.image_size} px, {arm.recipe.part}, {arm.recipe.epochs} epochs, {START[model.start]}"
