"""Frozen embeddings with simple classifiers, and supervised networks, on each finding (Chavoshi et al. 2025, doi:10.1007/s10278-025-01636-x).

Everything is fitted on the official training split, chosen on its inner patient split, and reported on the test split and the
external cohort.
"""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

from koa_lib import encoders, predictions, sources, supervised, weights
from koa_lib.baselines import classify
from koa_lib.protocols import Arm, BaselineRecipe, folds
from koa_lib.runner import Runner
from koa_lib.store import digest, made_from, write_text

CLASSIFIERS = ("XGBoost", "logistic regression")
TASKS = {"kl_grade": "KL grade", "osteophytes": "osteophytes", "jsn": "joint-space narrowing", "sclerosis": "sclerosis"}


def for_task(part, task):
    """The pictures of a `KneeDataset` that are graded for a task, with its grades in place of the KL grades; None when there is none."""
    grades = part.rows.get(task, pd.Series(pd.NA, index=part.rows.index))
    positions = np.flatnonzero(grades.notna())
    if not len(positions):
        return None
    chosen = part.part(positions, part.role)
    return replace(chosen, rows=chosen.rows.assign(kl_grade=grades.iloc[positions].astype(int).to_numpy()))


class Comparison:
    """Runs encoders with classifiers, and networks, on every task that the manifest grades.

    `frames` holds, once `run`, graded predictions by (system, task, split); `chosen` what each system chose; `absent` why a system or task is not run.
    """

    def __init__(self, study):
        self.study, self.settings, self.runner = study, study.profile.systems.embeddings, Runner(study)
        self.frames, self.chosen, self.absent, self._views = {}, [], {}, {}

    def run(self):
        """Fill `frames`, `chosen` and `absent`; expensive parts are kept in the store."""
        for spec in (*self.settings.encoders, *self.settings.networks):
            if spec.reason:
                self.absent[spec.name] = spec.reason
        for spec in self.settings.encoders:
            if not spec.reason:
                self._encoder(spec)
        for spec in self.settings.networks:
            if not spec.reason:
                self._network(spec)
        return self

    def _encoder(self, spec):
        arrays = cache(lambda: {role: encoders.embed(self.study, spec, role) for role in ("training", "external")})
        for kind in CLASSIFIERS:
            for task in TASKS:
                made = {role: values is not None and digest(values.tobytes()) for role, values in arrays().items()}
                self._report(f"{label(spec)} + {kind}", task, {"embeddings": made}, spec.image_size, lambda fold, kind=kind: self._classified(kind, fold, arrays()))

    def _network(self, spec):
        whole, external = self._view(spec.image_size)
        trained = cache(lambda: supervised.trained(self.study, spec, self._fold(spec.image_size, "kl_grade"), "kl_grade"))
        features = cache(lambda: {"training": trained().features(whole[0]), "external": external and trained().features(external)})

        def fit(fold, task):
            if not self.settings.per_task and task != "kl_grade":
                return self._classified("logistic regression", fold, features())
            network = trained() if task == "kl_grade" else supervised.trained(self.study, spec, fold, task)
            return {"best epoch of": spec.epochs}, network.kappa, lambda part: network.probabilities(part, fold.fit.grades)

        for task in TASKS:
            own = task if self.settings.per_task else "kl_grade"
            fold = self._fold(spec.image_size, own)
            made = fold.fit is not None and fold.select is not None and made_from(supervised.checkpoint(self.study, spec, fold, own))
            self._report(spec.name, task, {"network": made}, spec.image_size, lambda fold, task=task: fit(fold, task))

    def _classified(self, kind, fold, arrays):
        # `reported` parts know by their index where their embeddings lie in the array of their cohort.
        def source(part, role="training"):
            return sources.Features(part, arrays[role][None])

        found = classify(kind, source(fold.fit), source(fold.select), self.settings.trees, self.study.seed)
        return found.settings, found.kappa, lambda part: found.probabilities(np.asarray(source(part, self._role(part)).batch(np.arange(len(part)))))

    @staticmethod
    def _role(part):
        return "external" if part.rows["split"].iloc[0] == "external" else "training"

    def _view(self, size):
        # The training cohort with its fold, and the external one, at a size; parting patients takes a while, so once.
        if size not in self._views:
            recipe = BaselineRecipe(**{**self.study.profile.our_protocol.__dict__, "folds": 0, "views": 1, "image_size": size})
            data, external = (self.runner.data(role, recipe) for role in ("training", "external"))
            self._views[size] = (data, folds(data, Arm("official", recipe, None, self.study.seed, "official"), self.study.seed)[0]), external
        return self._views[size]

    def _fold(self, size, task):
        # One inner part for all tasks; pictures without a grade of the task leave afterwards.
        whole = self._view(size)[0][1]
        reported = {split: for_task(part, task) for split, part in whole.reported.items() if split != "train"}
        return replace(whole, fit=for_task(whole.fit, task), select=for_task(whole.select, task), reported={split: part for split, part in reported.items() if part})

    def _report(self, system, task, key, size, fit):
        (data, _), external = self._view(size)
        fold = self._fold(size, task)
        if fold.fit is None or fold.select is None:
            self.absent[TASKS[task]] = "the manifest does not grade it"
            return
        found, name = cache(lambda: fit(fold)), f"{system} {task}".lower().replace(" + ", "-").replace(" ", "_")
        key = {**key, "system": system, "task": task, "seed": self.study.seed, "trees": self.settings.trees,
               "fit": fold.fit.fingerprint, "select": fold.select.fingerprint}
        for split, part in self._reported(fold, external, task).items():
            self.frames[system, task, split] = self._predicted(name, split, part, key, lambda part: found()[2](part))
        path = self.study.store.make(f"checkpoints/{name}.json", key, lambda path: write_text(path, json.dumps({"settings": found()[0], "kappa": found()[1]})))
        self.chosen.append({"task": TASKS[task], "system": system, "fitted_on": len(fold.fit), "chosen_on": len(fold.select), **_said(path)})

    @staticmethod
    def _reported(fold, external, task):
        # The test split, or the validation split where there is none, and the external cohort.
        inside = "test" if "test" in fold.reported else "val"
        parts = {inside: fold.reported.get(inside), "external": external and for_task(external, task)}
        return {split: part for split, part in parts.items() if part}

    def _predicted(self, name, split, part, key, predict):
        ours = self.study.profile.our_protocol
        cohort = self.study.profile.external if split == "external" else self.study.profile.training
        file = predictions.Name(name, cohort.name, split, ours.geometry, ours.intensity, "1", self.study.seed).file
        path = self.study.store.make(f"predictions/{file}", {**key, "split": split, "graded": part.fingerprint},
                                     lambda path: predictions.write(predictions.frame(part.rows["image_id"], predict(part)), path))
        return predictions.join(predictions.read(path), part.rows)


def _said(path):
    note = json.loads(path.read_text(encoding="utf-8"))
    return {"chosen": ", ".join(f"{name} {value:g}" for name, value in note["settings"].items()), "inner_qwk": note["kappa"]}


def label(spec):
    """An encoder's name in a row: a stand-in is never called by the bare name."""
    return spec.name if spec.source in weights.FOUNDATIONS else f"{spec.name} stand-in"
