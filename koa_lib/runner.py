"""Running arms: every fold becomes a checkpoint, a history and prediction files in the study's store."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import datasets, predictions, sources, splits, training
from koa_lib.data.manifest import data_hash
from koa_lib.images.shape import VIEWS
from koa_lib.protocols import Arm, Fold, clip_arm, fold_mean, folds, main_arm, main_fold, prediction_name, unseen_split
from koa_lib.store import code_hash, plain, write_text

_CODE = ("training", "sources", "device", "model", "tower", "losses", "datasets", "images/shape", "images/joint", "images/read", "images/raster", "images/dicom", "splits", "protocols", "runner")
MIRRORED = "mirrored"


@dataclass(frozen=True)
class _Trained:
    """A trained fold of an arm; `grader` is loaded when first asked for and shared by its prediction files."""

    arm: Arm
    fold: Fold
    checkpoint: Path
    key: dict
    grader: Callable
    adaptation: str = ""

    def as_seen(self, arm, adaptation="", **what):
        return replace(self, arm=arm, adaptation=adaptation, key={**self.key, **what})


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
            the manifest, in fold order; `attrs` name fold and seed. `history/<arm>[__seed<s>].csv` is written.
        """
        external = self.data("external", arm.recipe)
        results, histories = {}, []
        for trained in self._trained(arm):
            histories.append(pd.read_csv(trained.checkpoint / "history.csv").assign(model=arm.name, fold=trained.fold.number))
            reported = {**trained.fold.reported, **({"external": external} if external else {})}
            for split, part in reported.items():
                results.setdefault(split, []).append(self._predict(trained, split, part))
        history = pd.concat(histories)[["model", "fold", "epoch", "part", "loss", "accuracy"]]
        other = "" if arm.seed == self.study.seed else f"__seed{arm.seed}"
        write_text(self.study.run_dir / "history" / f"{arm.name}{other}.csv", history.to_csv(index=False, lineterminator="\n", float_format="%.5f"))
        return results

    def run_seeds(self):
        """The main arm trained with each seed of the study.

        Returns
        -------
        dict of int to dict
            Seed to what `run` returns, the study's own seed first.
        """
        return {seed: self.run(main_arm(self.study, seed)) for seed in self.study.seeds}

    def external_views(self, arm):
        """Grade the external cohort in every named geometry and intensity, with the arm as it was trained.

        Returns
        -------
        dict of (geometry, intensity) to DataFrame
            Mean probabilities of the folds, joined with the manifest; empty without an external cohort.
        """
        frames = {}
        if self.data("external", arm.recipe) is None:
            return frames
        for trained in self._trained(arm):
            for view in VIEWS:
                # The view that the arm was trained in is what `run` predicts already: the same file, under the same key.
                seen = trained if view == (arm.recipe.geometry, arm.recipe.intensity) else trained.as_seen(self._in_view(arm, view), view=view)
                frames.setdefault(view, []).append(self._predict(seen, "external", self.data("external", seen.arm.recipe)))
        return {view: fold_mean(self.study, self._in_view(arm, view), {"external": found}, "external") for view, found in frames.items()}

    def mirrored(self, arm):
        """Prediction frames of an arm's folds on left-right mirrored external pictures, in fold order; files end in `__mirrored`."""
        part = replace(self.data("external", arm.recipe), mirrored=True)
        return [self._predict(trained.as_seen(arm, adaptation=MIRRORED), "external", part) for trained in self._trained(arm)]

    def _trained(self, arm):
        data = self.data("training", arm.recipe)
        for fold in folds(data, arm, self.study.seed):
            if not arm.only or fold.number in arm.only:
                yield self._train(arm, data, fold)

    @staticmethod
    def _in_view(arm, view):
        geometry, intensity = view
        return replace(arm, recipe=replace(arm.recipe, geometry=geometry, intensity=intensity))

    def zero_shot(self, prompt_set, normalisation="clip"):
        """Grade both cohorts without any training: an adapter of ratio 0 is the untouched CLIP.

        Returns
        -------
        dict of str to DataFrame
            Official split or 'external' to joined predictions; written as model `zero_shot-<prompt_set>`.
        """
        recipe = self.study.profile.as_printed or self.study.profile.our_protocol
        recipe = replace(recipe, part="adapter", residual=0.0, prompts=prompt_set, normalisation=normalisation, folds=0)
        arm = clip_arm(self.study, f"zero_shot-{prompt_set}", recipe, "official")
        grader, results = arm.build(), {}
        for role in ("training", "external"):
            data = self.data(role, recipe)
            for split in [] if data is None else data.rows["split"].unique():
                results[split] = self._zero_shot_split(arm, grader, role, data, split)
        return results

    def _zero_shot_split(self, arm, grader, role, data, split):
        part = splits.official(data, split, "report")
        name = prediction_name(self.study, arm, split, 0)
        source = self._sources(arm, grader, role, data, part)[0]
        frame = predictions.frame(part.rows["image_id"], training.predict(grader, source))
        predictions.write(frame, self.study.run_dir / "predictions" / name.file)
        return predictions.join(frame, part.rows)

    def _train(self, arm, data, fold):
        key = {"recipe": arm.recipe, **arm.key, "scheme": arm.scheme, "seed": arm.seed, "folds_seed": self.study.seed, "fold": fold.number,
               "data": data_hash(data.rows), "content": self.study.inputs.content}

        def build(folder):
            grader = arm.build()
            watched = fold.reported.get("held_out") if arm.watch else None
            source, select, watch = self._sources(arm, grader, "training", data, fold.fit, fold.select, watched)
            seed = "" if arm.seed == self.study.seed else f" seed {arm.seed}"
            label = (f"{arm.name} fold {fold.number}" if arm.recipe.folds else arm.name) + seed
            resume = self._resume(arm, fold, key)
            history = training.fit(grader, source, select, arm.recipe, arm.seed, label, resume, watch)
            resume.unlink(missing_ok=True)
            folder.mkdir()
            training.save_state(grader, folder / "state.safetensors")
            history.to_csv(folder / "history.csv", index=False)

        checkpoint = self.study.store.make(f"checkpoints/{arm.name}__fold{fold.number}__seed{arm.seed}", key, build, _CODE)
        return _Trained(arm, fold, checkpoint, key, cache(lambda: training.load_state(arm.build(), checkpoint / "state.safetensors").eval()))

    def _resume(self, arm, fold, key):
        # Named by its key: a state of other settings or code is never continued.
        digest = hashlib.sha256(json.dumps(plain({**key, "code": code_hash(_CODE)}), sort_keys=True).encode()).hexdigest()[:12]
        return self.study.run_dir / "checkpoints" / f".{arm.name}__fold{fold.number}__seed{arm.seed}.{digest}.resume"

    def grader(self, arm, fold_number=1):
        """The trained grader of a fold."""
        return next(trained.grader() for trained in self._trained(replace(arm, only=(fold_number,))))

    def unseen(self, arm, grader):
        """The unseen part of the main fold inside the training cohort, and its source for a trained grader.

        Returns
        -------
        part : KneeDataset
        source : sources.Pictures or sources.Features
        """
        data = self.data("training", arm.recipe)
        reported = next(fold for fold in folds(data, arm, self.study.seed) if fold.number == main_fold(self.study)).reported
        part = reported[unseen_split(reported)]
        return part, self._sources(arm, grader, "training", data, part)[0]

    def external(self, arm, grader):
        """The whole external cohort and its source for a trained grader; None twice without the cohort."""
        data = self.data("external", arm.recipe)
        return data, data and self._sources(arm, grader, "external", data, data)[0]

    def _predict(self, trained, split, part):
        arm, role = trained.arm, "external" if split == "external" else "training"
        name = replace(prediction_name(self.study, arm, split, trained.fold.number), adaptation=trained.adaptation)

        def build(path):
            source, = self._sources(arm, trained.grader(), role, self.data(role, arm.recipe), part)
            predictions.write(predictions.frame(part.rows["image_id"], training.predict(trained.grader(), source)), path)

        key = {**trained.key, "rows": data_hash(part.rows), "adaptation": trained.adaptation}
        path = self.study.store.make(f"predictions/{name.file}", key, build, _CODE)
        graded = predictions.join(predictions.read(path), part.rows)
        graded.attrs |= {"fold": trained.fold.number, "seed": arm.seed}
        return graded

    def _sources(self, arm, grader, role, whole, *parts):
        if grader.stage == "image":
            return [part and sources.Pictures(part, arm.recipe) for part in parts]
        arrays = {mirrored: self._features(arm, grader, role, replace(whole, mirrored=mirrored)) for mirrored in {part.mirrored for part in parts if part}}
        return [part and sources.Features(part, arrays[part.mirrored]) for part in parts]

    def _features(self, arm, grader, role, whole):
        # Only what shapes the frozen trunk's output is in the key: recipes that differ elsewhere share the features.
        recipe = arm.recipe if role == "training" and not whole.mirrored else replace(arm.recipe, views=1)
        shaping = {name: getattr(recipe, name) for name in ("normalisation", "geometry", "intensity", "augmentation", "views")}
        key = {**arm.key, **shaping, "stage": grader.stage, "seed": self.study.seed, "size": whole.pixels.shape[1],
               "data": data_hash(whole.rows), "content": self.study.inputs.content}
        if recipe.intensity == "match_train":
            key["reference"] = data_hash(self.data("training", self.study.profile.our_protocol).rows)
        spec = getattr(self.study.profile, role)
        mirrored = f"__{MIRRORED}" * whole.mirrored
        name = f"features/{grader.stage}__{spec.name}__{recipe.geometry}-{recipe.intensity}__{recipe.normalisation}{mirrored}.npy"
        path = self.study.store.make(name, key, lambda path: sources.extract(grader, whole, recipe, self.study.seed, path), _CODE)
        return np.load(path, mmap_mode="r")
