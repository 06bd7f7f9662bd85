"""The protocols: which pictures fit, choose and report; and arms of the study trained by them.

An arm is a model with a recipe. Each fold becomes a checkpoint, a history and prediction files in the store.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from koa_lib import datasets, manifests, predictions, splits, training
from koa_lib import model as models
from koa_lib.pretraining import start_weights
from koa_lib.profile import Recipe
from koa_lib.store import write_text

PRINTED_FOLD = 3  # "the optimal fold (K = 3)", section 4.1
_CODE = ("training", "model", "losses", "datasets", "splits", "protocols")


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


class Runner:
    """Trains arms on a study's cohorts and keeps everything in its store."""

    def __init__(self, study):
        self.study, self._open = study, {}

    def data(self, role, recipe):
        """A cohort as the recipe sees it, opened once; None when it is not given."""
        size = getattr(recipe, "image_size", self.study.profile.model.image_size)
        view = (role, recipe.geometry, recipe.intensity, size)
        if view not in self._open:
            self._open[view] = datasets.dataset(self.study, *view)
        return self._open[view]

    def run(self, arm):
        """Train every fold of an arm and predict what it reports.

        Returns
        -------
        dict of str to list
            Split name ('train', 'held_out', 'val', 'test', 'external') to its prediction frames, joined with
            the manifest, in fold order; `history/<arm>.csv` is written.
        """
        data, external = self.data("training", arm.recipe), self.data("external", arm.recipe)
        results, histories = {}, []
        for fold in folds(data, arm, self.study.seed):
            if arm.only and fold.number not in arm.only:
                continue
            checkpoint, key = self._checkpoint(arm, data, fold)
            histories.append(pd.read_csv(checkpoint / "history.csv").assign(model=arm.name, fold=fold.number))
            reported = {**fold.reported, **({"external": external} if external else {})}
            for split, part in reported.items():
                role = "external" if split == "external" else "training"
                results.setdefault(split, []).append(self._predict(arm, key, fold, split, role, part, checkpoint))
        history = pd.concat(histories)[["model", "fold", "epoch", "part", "loss", "accuracy"]]
        write_text(self.study.run_dir / "history" / f"{arm.name}.csv", history.to_csv(index=False, lineterminator="\n", float_format="%.5f"))
        return results

    def zero_shot(self, prompt_set, normalisation="clip"):
        """Grade both cohorts without any training: an adapter of ratio 0 is the untouched CLIP.

        Returns
        -------
        dict of str to DataFrame
            Official split or 'external' to joined predictions; written as model `zero_shot-<prompt_set>`.
        """
        recipe = self.study.profile.as_printed or self.study.profile.our_protocol
        recipe = replace(recipe, part="adapter", residual=0.0, prompts=prompt_set, normalisation=normalisation, folds=0)
        arm = clip_arm(self.study, f"zero_shot-{prompt_set}", recipe, patients=True)
        grader, results = arm.build(), {}
        for role in ("training", "external"):
            data = self.data(role, recipe)
            for split in [] if data is None else data.rows["split"].unique():
                results[split] = self._zero_shot_split(arm, grader, role, data, split)
        return results

    def _zero_shot_split(self, arm, grader, role, data, split):
        part = splits.official(data, split, "report")
        spec = getattr(self.study.profile, role)
        name = predictions.Name(arm.name, spec.name, split, arm.recipe.geometry, arm.recipe.intensity, "0", self.study.seed)
        source = self._sources(arm, grader, role, data, part)[0]
        frame = predictions.frame(part.rows["image_id"], training.predict(grader, source))
        predictions.write(frame, self.study.run_dir / "predictions" / name.file)
        return predictions.join(frame, part.rows)

    def _key(self, arm, data):
        return {"recipe": arm.recipe, **arm.key, "patients": arm.patients, "seed": self.study.seed,
                "data": manifests.data_hash(data.rows), "content": self.study.inputs.content}

    def _checkpoint(self, arm, data, fold):
        key = {**self._key(arm, data), "fold": fold.number}

        def build(folder):
            grader = arm.build()
            source, select = self._sources(arm, grader, "training", data, fold.fit, fold.select)
            label = f"{arm.name} fold {fold.number}" if arm.recipe.folds else arm.name
            history = training.fit(grader, source, select, arm.recipe, self.study.seed, label)
            folder.mkdir()
            training.save_state(grader, folder / "state.safetensors")
            history.to_csv(folder / "history.csv", index=False)

        return self.study.store.make(f"checkpoints/{arm.name}__fold{fold.number}", key, build, _CODE), key

    def grader(self, arm, fold_number=1):
        """The trained grader of a fold."""
        data = self.data("training", arm.recipe)
        fold = next(fold for fold in folds(data, arm, self.study.seed) if fold.number == fold_number)
        checkpoint, _ = self._checkpoint(arm, data, fold)
        return training.load_state(arm.build(), checkpoint / "state.safetensors").eval()

    def _predict(self, arm, key, fold, split, role, part, checkpoint):
        spec = getattr(self.study.profile, role)
        name = predictions.Name(arm.name, spec.name, split, arm.recipe.geometry, arm.recipe.intensity, str(fold.number), self.study.seed)

        def build(path):
            grader = training.load_state(arm.build(), checkpoint / "state.safetensors")
            whole = self.data(role, arm.recipe)
            source, _ = self._sources(arm, grader, role, whole, part, None)
            predictions.write(predictions.frame(part.rows["image_id"], training.predict(grader, source)), path)

        rows = {"rows": manifests.data_hash(part.rows)}
        path = self.study.store.make(f"predictions/{name.file}", {**key, **rows}, build, _CODE)
        return predictions.join(predictions.read(path), part.rows)

    def _sources(self, arm, grader, role, whole, *parts):
        if grader.stage == "image":
            return [part and training.Pictures(part, arm.recipe) for part in parts]
        array = self._features(arm, grader, role, whole)
        return [part and training.Features(part, array) for part in parts]

    def _features(self, arm, grader, role, whole):
        # Only what shapes the frozen trunk's output is in the key: recipes that differ elsewhere share the features.
        recipe = arm.recipe if role == "training" else replace(arm.recipe, views=1)
        shaping = {name: getattr(recipe, name) for name in ("normalisation", "geometry", "intensity", "augmentation", "views")}
        key = {**arm.key, **shaping, "stage": grader.stage, "seed": self.study.seed, "size": whole.pixels.shape[1],
               "data": manifests.data_hash(whole.rows), "content": self.study.inputs.content}
        spec = getattr(self.study.profile, role)
        name = f"features/{grader.stage}__{spec.name}__{recipe.geometry}-{recipe.intensity}__{recipe.normalisation}.npy"
        path = self.study.store.make(name, key, lambda path: training.extract(grader, whole, recipe, self.study.seed, path), _CODE)
        return np.load(path, mmap_mode="r")


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
    return Arm(name, recipe, lambda: _seeded(study.seed, ImageGrader, spec), {"model": spec}, patients, () if patients else (PRINTED_FOLD,))


def _seeded(seed, build, *arguments):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments)


def write_primary(study, arm, results):
    """Name the prediction file of the main model for each cohort and split in `primary.json`."""
    names = {}
    for split in results:
        role = "external" if split == "external" else "training"
        spec = getattr(study.profile, role)
        fold = "mean" if len(results[split]) > 1 and split in ("external", "test") else "1"
        names[f"{spec.name}-{split}"] = predictions.Name(arm.name, spec.name, split, arm.recipe.geometry, arm.recipe.intensity, fold, study.seed).file
    write_text(study.run_dir / "primary.json", json.dumps(names, indent=1))
