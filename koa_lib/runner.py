"""Running arms: every fold becomes a checkpoint, a history and prediction files in the study's store."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd

from koa_lib import datasets, manifests, predictions, splits, training
from koa_lib.harmonisation import VIEWS
from koa_lib.protocols import clip_arm, fold_mean, folds, main_fold, prediction_name, unseen_split
from koa_lib.store import code_hash, plain, write_text

_CODE = ("training", "model", "tower", "losses", "datasets", "harmonisation", "joint", "pictures", "splits", "protocols", "runner")


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

    def external_views(self, arm):
        """Grade the external cohort in every named geometry and intensity, with the arm as it was trained.

        Returns
        -------
        dict of (geometry, intensity) to DataFrame
            Mean probabilities of the folds, joined with the manifest; empty without an external cohort.
        """
        data, frames = self.data("training", arm.recipe), {}
        if self.data("external", arm.recipe) is None:
            return frames
        for fold in folds(data, arm, self.study.seed):
            checkpoint, key = self._checkpoint(arm, data, fold)
            for view in VIEWS:
                seen = self._in_view(arm, view)
                whole = self.data("external", seen.recipe)
                frames.setdefault(view, []).append(self._predict(seen, {**key, "view": view}, fold, "external", "external", whole, checkpoint))
        return {view: fold_mean(self.study, self._in_view(arm, view), {"external": found}, "external") for view, found in frames.items()}

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
        arm = clip_arm(self.study, f"zero_shot-{prompt_set}", recipe, patients=True)
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

    def _key(self, arm, data):
        return {"recipe": arm.recipe, **arm.key, "patients": arm.patients, "seed": self.study.seed,
                "data": manifests.data_hash(data.rows), "content": self.study.inputs.content}

    def _checkpoint(self, arm, data, fold):
        key = {**self._key(arm, data), "fold": fold.number}

        def build(folder):
            grader = arm.build()
            source, select = self._sources(arm, grader, "training", data, fold.fit, fold.select)
            label = f"{arm.name} fold {fold.number}" if arm.recipe.folds else arm.name
            resume = self._resume(arm, fold, key)
            history = training.fit(grader, source, select, arm.recipe, self.study.seed, label, resume)
            resume.unlink(missing_ok=True)
            folder.mkdir()
            training.save_state(grader, folder / "state.safetensors")
            history.to_csv(folder / "history.csv", index=False)

        return self.study.store.make(f"checkpoints/{arm.name}__fold{fold.number}", key, build, _CODE), key

    def _resume(self, arm, fold, key):
        # Named by its key: a state of other settings or code is never continued.
        digest = hashlib.sha256(json.dumps(plain({**key, "code": code_hash(_CODE)}), sort_keys=True).encode()).hexdigest()[:12]
        return self.study.run_dir / "checkpoints" / f".{arm.name}__fold{fold.number}.{digest}.resume"

    def grader(self, arm, fold_number=1):
        """The trained grader of a fold."""
        data = self.data("training", arm.recipe)
        fold = next(fold for fold in folds(data, arm, self.study.seed) if fold.number == fold_number)
        checkpoint, _ = self._checkpoint(arm, data, fold)
        return training.load_state(arm.build(), checkpoint / "state.safetensors").eval()

    def unseen(self, arm, grader):
        """The unseen part of the main fold inside the training cohort, and its source for a trained grader.

        Returns
        -------
        part : KneeDataset
        source : training.Pictures or training.Features
        """
        data = self.data("training", arm.recipe)
        reported = next(fold for fold in folds(data, arm, self.study.seed) if fold.number == main_fold(self.study)).reported
        part = reported[unseen_split(reported)]
        return part, self._sources(arm, grader, "training", data, part)[0]

    def _predict(self, arm, key, fold, split, role, part, checkpoint):
        name = prediction_name(self.study, arm, split, fold.number)

        def build(path):
            grader = training.load_state(arm.build(), checkpoint / "state.safetensors")
            whole = self.data(role, arm.recipe)
            source, _ = self._sources(arm, grader, role, whole, part, None)
            predictions.write(predictions.frame(part.rows["image_id"], training.predict(grader, source)), path)

        rows = {"rows": manifests.data_hash(part.rows)}
        path = self.study.store.make(f"predictions/{name.file}", {**key, **rows}, build, _CODE)
        graded = predictions.join(predictions.read(path), part.rows)
        graded.attrs["fold"] = fold.number
        return graded

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
        if recipe.intensity == "match_train":
            key["reference"] = manifests.data_hash(self.data("training", self.study.profile.our_protocol).rows)
        spec = getattr(self.study.profile, role)
        name = f"features/{grader.stage}__{spec.name}__{recipe.geometry}-{recipe.intensity}__{recipe.normalisation}.npy"
        path = self.study.store.make(name, key, lambda path: training.extract(grader, whole, recipe, self.study.seed, path), _CODE)
        return np.load(path, mmap_mode="r")
