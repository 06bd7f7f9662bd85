"""The protocols: which pictures fit, choose and report, and the arms of the study.

An arm is a model with a recipe; `runner.Runner` trains it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from koa_lib import datasets, predictions, splits
from koa_lib import model as models
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
    """A model trained by one recipe; `build` makes it untrained, `key` says what it starts from."""

    name: str
    recipe: object
    build: Callable
    key: dict = field(default_factory=dict)
    patients: bool = False
    only: tuple = ()


def folds(data, arm, seed):
    """The folds of an arm.

    `patients` False (as printed): image-level folds over everything, no inner part. True (our protocol): folds
    grouped by patient over train + val, or the official split alone when the recipe has no folds; an inner tenth
    of the training part chooses the epoch; the test split is only reported.
    """
    if not arm.patients:
        pairs = splits.image_folds(data.rows, arm.recipe.folds, seed)
        return [Fold(k, data.part(fit, "fit"), None, _reported(data, train=fit, held_out=out)) for k, (fit, out) in enumerate(pairs, 1)]
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


def _reported(data, **positions):
    return {name: data.part(chosen, "report") for name, chosen in positions.items() if len(chosen)}


def clip_arm(study, name, recipe, patients, only=()):
    """An arm of the study's CLIP, starting from its start weights."""
    weights = start_weights(study)
    settings = study.profile.model

    def build():
        clip, _, tokenizer = models.load_clip(settings.name, weights, study.seed)
        return models.ClipGrader(clip, tokenizer, recipe.part, recipe.prompts, recipe.residual)

    return Arm(name, recipe, build, {"model": settings, "weights": models.weights_hash(weights)}, patients, only)


def main_arm(study):
    """The arm that the paper's figures and tables show: `as_printed`, or `our_protocol` where it can't run."""
    if study.profile.as_printed is not None:
        return clip_arm(study, "clip-as_printed", study.profile.as_printed, patients=False)
    return clip_arm(study, "clip-our_protocol", study.profile.our_protocol, patients=True)


def our_arm(study):
    """CLIP by our protocol."""
    return clip_arm(study, "clip-our_protocol", study.profile.our_protocol, patients=True)


def baseline_arm(study, spec):
    """An arm of Table 4, on the protocol of the main arm; one fold, because each is trained as a whole."""
    from koa_lib.baselines import ImageGrader

    main = study.profile.as_printed or study.profile.our_protocol
    own = {name: getattr(spec, name) for name in ("learning_rate", "epochs", "batch", "image_size")}
    recipe = BaselineRecipe(**{**main.__dict__, "part": "full_image", **own})
    patients = study.profile.as_printed is None
    name = spec.name.lower().replace(" ", "_")
    return Arm(name, recipe, lambda: _seeded(study.seed, ImageGrader, spec), {"model": spec}, patients, (main_fold(study),))


def _seeded(seed, build, *arguments):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments)


def main_fold(study):
    """Number of the fold that the paper's tables show: its K = 3, or the only one."""
    recipe = study.profile.as_printed
    return min(PRINTED_FOLD, recipe.folds) if recipe else 1


def fold_mean(study, arm, results, split):
    """Mean probabilities over the folds for a split that every fold predicts ('test' or 'external').

    Returns
    -------
    DataFrame or None
        Joined frame; None when the split is absent. With several folds the file `foldmean` is written.
    """
    frames = results.get(split)
    if not frames:
        return None
    if len(frames) == 1:
        return frames[0]
    mean = predictions.ensemble([frame[predictions.COLUMNS] for frame in frames])
    predictions.write(mean, study.run_dir / "predictions" / prediction_name(study, arm, split, "mean").file)
    return mean.merge(frames[0].drop(columns=predictions.PROBABILITIES), on="image_id", validate="one_to_one")


def prediction_name(study, arm, split, fold):
    """The name of an arm's prediction file for a split and fold."""
    spec = getattr(study.profile, "external" if split == "external" else "training")
    return predictions.Name(arm.name, spec.name, split, arm.recipe.geometry, arm.recipe.intensity, str(fold), study.seed)


def write_primary(study, arm, results):
    """Name the prediction file of the main model for each cohort and split in `primary.json`."""
    names = [prediction_name(study, arm, split, main_fold(study)) for split in results]
    content = {f"{name.cohort}-{name.split}": name.file for name in names}
    write_text(study.run_dir / "primary.json", json.dumps(content, indent=1))


def reading_arms(study):
    """The readings of the trained part, one factor at a time around the main arm, on one fold each."""
    main = main_arm(study)
    arms = []
    for part in study.profile.readings.parts:
        recipe = replace(main.recipe, part=part, epochs=study.profile.readings.epochs)
        arms.append(clip_arm(study, f"reading-{part}", recipe, main.patients, (main_fold(study),)))
    return arms


def unseen_split(results):
    """The part inside the training cohort that a model was not fitted on: test, else held-out fold, else val."""
    return next(split for split in ("test", "held_out", "val") if split in results)


def described(arm, study):
    """How the CLIP row of a table was run, e.g. 'koa-tiny, 112 px, adapter, 30 epochs'."""
    model = study.profile.model
    return f"{model.name}, {model.image_size} px, {arm.recipe.part}, {arm.recipe.epochs} epochs, {START[model.start]}"
