"""Frozen embeddings with simple classifiers against supervised networks, finding by finding (Chavoshi et al. 2025, METHODS 3).

Everything is fitted on the official training split, chosen on its inner patient split, and reported on the test split and the external cohort.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from koa_lib import encoders, manifests, metrics, predictions, sources, training, weights
from koa_lib.baselines import ImageGrader, classify, described
from koa_lib.device import compute_device
from koa_lib.protocols import START, Arm, BaselineRecipe, folds
from koa_lib.runner import Runner
from koa_lib.store import write_text
from koa_lib.tasks import TASKS, for_task

CLASSIFIERS = ("XGBoost", "logistic regression")
CODE = ("embeddings", "tasks", "baselines", "training", "losses", "splits", "protocols", "metrics", *encoders.CODE)


class Comparison:
    """Runs encoders with classifiers, and networks, on every task that the manifest grades.

    `frames` holds, once `run`, graded predictions by (system, task, split); `chosen` what each system chose; `absent` why a system or task is not run.
    """

    def __init__(self, study):
        self.study, self.settings, self.runner = study, study.profile.systems.embeddings, Runner(study)
        self.frames, self.chosen, self.absent = {}, [], {}

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
        view = encoders.pictures_of(self.study, spec, "training"), encoders.pictures_of(self.study, spec, "external")
        for kind in CLASSIFIERS:
            for task in TASKS:
                self._report(f"{label(spec)} + {kind}", task, {"encoder": spec}, view, lambda fold, kind=kind: self._classified(kind, fold, arrays()))

    def _network(self, spec):
        recipe = self._recipe(spec)
        view = self.runner.data("training", recipe), self.runner.data("external", recipe)
        shared = cache(lambda: self._trained(spec, recipe, self._fold(view[0], "kl_grade")))
        features = cache(lambda: {role: data and _penultimate(shared()[0], data, recipe) for role, data in zip(("training", "external"), view, strict=True)})

        def fit(fold, task):
            if self.settings.per_task or task == "kl_grade":
                grader, epoch, kappa = shared() if task == "kl_grade" else self._trained(spec, recipe, fold)
                return {"epochs": epoch}, kappa, lambda part: _within(training.predict(grader, sources.Pictures(part, recipe)), fold.fit.grades)
            return self._classified("logistic regression", fold, features())

        for task in TASKS:
            self._report(spec.name, task, {"network": spec, "recipe": recipe, "per_task": self.settings.per_task}, view, lambda fold, task=task: fit(fold, task))

    def _classified(self, kind, fold, arrays):
        # `reported` parts know by their index where their embeddings lie in the array of their cohort.
        def source(part, role="training"):
            return sources.Features(part, arrays[role][None])

        found = classify(kind, source(fold.fit), source(fold.select), self.settings.trees, self.study.seed)
        return found.settings, found.kappa, lambda part: found.probabilities(np.asarray(source(part, self._role(part)).batch(np.arange(len(part)))))

    @staticmethod
    def _role(part):
        return "external" if part.rows["split"].iloc[0] == "external" else "training"

    def _trained(self, spec, recipe, fold):
        start = weights.network(spec.timm, self.study.inputs.weights) if spec.weights == "imagenet" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            grader = ImageGrader(spec, start).to(compute_device())
        parts = (sources.Pictures(part, recipe) for part in (fold.fit, fold.select))
        history = training.fit(grader, *parts, recipe, self.study.seed, spec.name)
        inner = metrics.confusion(fold.select.grades, training.predict(grader, sources.Pictures(fold.select, recipe)).argmax(1))
        return grader, int(history["epoch"].max()), float(metrics.from_confusion(inner)["qwk"])

    def _recipe(self, spec):
        own = {name: getattr(spec, name) for name in ("learning_rate", "epochs", "batch", "image_size")}
        ours = {**self.study.profile.our_protocol.__dict__, "part": "full_image", "folds": 0, "views": 1}
        return BaselineRecipe(**{**ours, **({"normalisation": "imagenet"} if spec.weights == "imagenet" else {}), **own})

    def _fold(self, data, task):
        # One inner part for all tasks; pictures without a grade of the task leave afterwards.
        arm = Arm("official", replace(self.study.profile.our_protocol, folds=0), None, self.study.seed, "official")
        whole = folds(data, arm, self.study.seed)[0]
        reported = {split: for_task(part, task) for split, part in whole.reported.items() if split != "train"}
        return replace(whole, fit=for_task(whole.fit, task), select=for_task(whole.select, task), reported={split: part for split, part in reported.items() if part})

    def _report(self, system, task, key, view, fit):
        data, external = view
        fold = self._fold(data, task)
        if fold.fit is None or fold.select is None:
            self.absent[TASKS[task]] = "the manifest does not grade it"
            return
        found, name = cache(lambda: fit(fold)), f"{system} {task}".lower().replace(" + ", "-").replace(" ", "_")
        key = {**key, "system": system, "task": task, "seed": self.study.seed, "trees": self.settings.trees, "content": self.study.inputs.content,
               "fitted": manifests.data_hash(data.rows), "grades": fold.fit.grades.tolist()}
        for split, part in self._reported(fold, external, task).items():
            self.frames[system, task, split] = self._predicted(name, split, part, key, lambda part: found()[2](part))
        path = self.study.store.make(f"checkpoints/{name}.json", key, lambda path: write_text(path, json.dumps({"settings": found()[0], "kappa": found()[1]})), CODE)
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
        path = self.study.store.make(f"predictions/{file}", {**key, "split": split, "rows": manifests.data_hash(part.rows)},
                                     lambda path: predictions.write(predictions.frame(part.rows["image_id"], predict(part)), path), CODE)
        return predictions.join(predictions.read(path), part.rows)


def _said(path):
    note = json.loads(path.read_text(encoding="utf-8"))
    return {"chosen": ", ".join(f"{name} {value:g}" for name, value in note["settings"].items()), "inner_qwk": note["kappa"]}


def _penultimate(grader, data, recipe):
    # Features that a trained network's last layer reads.
    network = grader.network
    encoder = encoders.Encoder(torch.nn.Identity(), {}, low_precision=grader.low_precision)
    encoder.network = network.eval()
    encoder.trunk = lambda images: network.forward_head(network.forward_features(images), pre_logits=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        sources.extract(encoder, data, recipe, 0, path)
        return np.load(path)[0].astype(np.float32)


def _within(probabilities, grades):
    # Five outputs serve every task: what a finding has no level for counts nothing.
    known = np.isin(np.arange(probabilities.shape[1]), grades)
    return np.where(known, probabilities, 0) / probabilities[:, known].sum(1, keepdims=True)


def label(spec):
    """An encoder's name in a row: a stand-in is never called by the bare name."""
    return spec.name if spec.source in weights.FOUNDATIONS else f"{spec.name} stand-in"


def systems(study):
    """How each system was run.

    Returns
    -------
    DataFrame
        system, kind, how, not_run (empty where it is run).
    """
    settings = study.profile.systems.embeddings
    rows = [(label(spec), "frozen encoder", _encoder_said(study, spec), spec.reason) for spec in settings.encoders]
    once = "" if settings.per_task else "; one network, trained on KL grades: findings by logistic regression on its frozen features"
    rows += [(spec.name, "supervised network", described(spec) + once, spec.reason) for spec in settings.networks]
    return pd.DataFrame(rows, columns=["system", "kind", "how", "not_run"])


def _encoder_said(study, spec):
    model, size = study.profile.model, f"{spec.image_size} px"
    told = {"start": f"image tower of {model.name} ({START[model.start]})", "trained": f"image tower of {model.name} as our protocol trained it on KL grades",
            "dino": "the self-supervised tower of notebook 11", "random": f"{spec.architecture}, width x {spec.width:g}, random weights"}
    if spec.source in told:
        return f"stand-in for {spec.name}: {told[spec.source]}, {size}"
    return f"{spec.name}, {'random weights (dry run)' if study.dry else 'published weights'}, {size}"
