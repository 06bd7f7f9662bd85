"""The experiment: arms are trained, what they report is graded once and written, and everything is read back
as `Results`.

An arm is one way of making a grader; its jobs (arm, fold, seed) are independent of each other. What trains
them (`training.train`, `classifiers.Classifier.fit`, `sources.extract`) imports neither this module nor
results, so that a change of tables trains nothing again.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import classifiers, cohort, engine, predictions, sources, splits, training
from koa_lib.arm import Arm
from koa_lib.images.shape import VIEWS
from koa_lib.reach import reached
from koa_lib.results import Results
from koa_lib.store import digest, write_text

MIRRORED, INNER = "mirrored", "inner"
SAID = ["arm", "seed", "fold", "split", "view", "mirrored"]  # of each prediction, see `Results`


@dataclass(frozen=True)
class Job:
    """A trained fold of an arm; `grader` is loaded or fitted when first asked for and shared by its
    prediction files."""

    arm: Arm
    fold: splits.Fold
    checkpoint: Path
    key: dict
    grader: Callable


class _Once:
    """A call whose result is kept; another process that is sent it makes its own."""

    def __init__(self, make):
        self.make, self.made = make, []

    def __call__(self):
        if not self.made:
            self.made.append(self.make())
        return self.made[0]

    def __reduce__(self):
        return _Once, (self.make,)


def prediction_file(study, arm, split, fold, view=None, adaptation=""):
    """Path of a prediction file of an arm below the run folder, see `predictions.file_name`; `view` is the
    arm's own unless given."""
    cohort, view = study.profile.cohort_of(split), view or arm.recipe.view
    name = predictions.file_name(arm.name, cohort.name, split, view, fold, arm.seed, adaptation)
    return f"predictions/{name}"


class Experiment:
    """Trains arms on a study's cohorts and grades what they report; everything is kept in the study's store.

    Examples
    --------
    >>> from koa_lib import protocols
    >>> experiment = Experiment(study)
    >>> results = experiment.run(protocols.our_arm(study), splits=["unseen", "external"])
    >>> results.table(["accuracy", "qwk"])["split"].tolist()
    ['test', 'external']
    """

    def __init__(self, study):
        self.study, self._store, self._open, self._parted = study, study.store, {}, {}

    def __reduce__(self):
        return Experiment, (self.study,)  # another process opens the cohorts again

    def run(self, *arms, splits=None, both_ways=False, view=None):
        """Train what is missing and grade.

        Parameters
        ----------
        splits : sequence of str, optional
            What is graded: everything that the folds report and 'external' when None; 'unseen' stands for the
            test split, else the held-out fold, else the validation split; 'inner' is the part that chooses.
        both_ways : bool
            Mirror images, too.
        view : (str, str), optional
            Geometry and intensity in which the external cohort is shown; as trained when None.

        Returns
        -------
        Results
            Of the written prediction files, in the order of arms, folds and splits.
        """
        frames = []
        jobs = ((arm, fold.number, splits, both_ways, view) for arm in arms for fold in self._wanted(arm))
        done = engine.each(self._finished, jobs, self.study.profile.threads, self._found)
        for arm in arms:
            checkpoints, graded = {}, []
            for fold, (checkpoint, parts) in zip(self._wanted(arm), done, strict=False):
                checkpoints[fold.number] = checkpoint
                graded += parts
            self._write_means(arm, graded)
            self._write_history(arm, checkpoints)
            frames += graded
        frames = frames or [pd.DataFrame(columns=[*SAID, *predictions.COLUMNS, "kl_grade", "group_id"])]
        return Results(pd.concat(frames, ignore_index=True), self.study.profile.draws, self.study.seed)

    def confirmatory(self, *arms):
        """`run`: unseen pictures of the training cohort, and the external ones in the confirmatory view,
        without repeats and conflicts."""
        return self.run(*arms, splits=("unseen", "external"), view=VIEWS[0]).deduplicated()

    def _finished(self, arm, fold, splits, both_ways, view):
        # A job from its training to its grades: where its checkpoint is, and the graded parts.
        job = self.job(arm, fold)
        return job.checkpoint, [
            self._graded(job, split, part, shown, way)
            for split, part, shown in self._reported(job, splits, view)
            for way in (False, True)[: 1 + both_ways]
        ]

    def _found(self, *job):
        # The same of a job of which nothing has to be made; else None.
        looking = copy.copy(self)  # it shares the open cohorts
        looking._store = engine.Looking(self._store.folder, self._store.step, self._store.out)
        try:
            return looking._finished(*job)
        except engine.Missing:
            return None

    def jobs(self, arm):
        """Each fold of an arm, trained now where it is missing."""
        for fold in self._wanted(arm):
            yield self._classifier(arm, fold) if arm.fits else self._trained(arm, fold)

    def _wanted(self, arm):
        return [fold for fold in self.folds(arm) if not arm.only or fold.number in arm.only]

    def job(self, arm, fold=1):
        """One trained fold."""
        return next(self.jobs(replace(arm, only=(fold,))))

    def grader(self, arm, fold=1):
        """The trained grader of a fold."""
        return self.job(arm, fold).grader()

    def data(self, role, arm, view=None):
        """The cohort 'training' or 'external' as an arm sees it, opened once; None when it is not given."""
        return self.pictures(role, view or arm.recipe.view, arm.size)

    def pictures(self, role, view, size):
        """A cohort in a geometry and intensity, `size` pixels a side, opened once; None when it is not
        given."""
        key = (role, *view, size)
        if key not in self._open:
            self._open[key] = cohort.dataset(self.study, *key)
        return self._open[key]

    def folds(self, arm):
        """The folds of an arm, see `splits.folds`; arms that are parted alike share them, because parting
        patients takes a while."""
        recipe, seed = arm.recipe, self.study.seed if arm.split_seed is None else arm.split_seed
        how = (arm.scheme, recipe.folds, seed, bool(recipe.patience), arm.fraction)
        key = (recipe.view, arm.size, how)
        if key not in self._parted:
            self._parted[key] = splits.folds(self.data("training", arm), *how)
        return [self._of_task(fold, arm.task) for fold in self._parted[key]]

    @staticmethod
    def _of_task(fold, task):
        parts = [fold.fit, fold.select, *fold.reported.values()]
        fit, select, *reported = (part and splits.for_task(part, task) for part in parts)
        named = zip(fold.reported, reported, strict=True)
        return replace(fold, fit=fit, select=select, reported={name: part for name, part in named if part})

    def unseen(self, arm, fold=1):
        """Name and `KneeDataset` of what a fold of an arm has not seen inside the training cohort."""
        found = next(one for one in self.folds(arm) if one.number == fold)
        return found.unseen, found.reported[found.unseen]

    def history(self, arm):
        """The history of an arm's trainings, as `training.fit`, with model, fold and seed."""
        return self._history(arm, {job.fold.number: job.checkpoint for job in self.jobs(arm)})

    def source(self, arm, part):
        """What a trained grader of an arm reads of a `KneeDataset`: live pictures, or features of its
        trunk."""
        if arm.trunk is None:
            return sources.Pictures(part, arm.recipe)
        return sources.Features(part, self.features(arm, part))

    def features(self, arm, part):
        """Features (views, N, ...) of all pictures of a part's cohort by an arm's trunk, memory-mapped; only
        training has augmented views."""
        # Only what shapes them is in the key: arms that differ elsewhere share the file.
        inside = part.name.split("__")[0] == self.study.profile.training.name and not part.mirrored
        recipe = arm.recipe if inside else replace(arm.recipe, views=1)
        seed = arm.seed if recipe.views > 1 else self.study.seed  # augmentations are drawn anew for each seed
        whole = part.whole
        shown = {"trunk": arm.trunk.name, "seed": seed, "pictures": whole.appearance}
        key = arm.trunk.key | recipe.shaping | shown
        ending = f"__{MIRRORED}" * part.mirrored + "__one_view" * (inside and recipe.views == 1)
        ending += f"__seed{seed}" * (seed != self.study.seed)
        file = f"features/{arm.trunk.name}__{part.name}__{recipe.normalisation}{ending}.npy"
        build = partial(sources.extract, build=arm.trunk.build, dataset=whole, recipe=recipe, seed=seed)
        return np.load(self._store.make(file, key, build, [arm.trunk.build]), mmap_mode="r")

    def _parts(self, arm, fold):
        # What a training is fed with; opened only when something is trained.
        fit, select = (part and self.source(arm, part) for part in (fold.fit, fold.select))
        watch = fold.reported.get("held_out") if arm.watch else None
        if arm.seen != "views":
            fit = sources.Pairs(fit, self.source(arm, replace(fold.fit, mirrored=True)), arm.seen == "either")
        return fit, select, watch and self.source(arm, watch)

    def _key(self, arm, fold):
        return {**arm.depends_on(fold), "study_seed": self.study.seed}

    def _trained(self, arm, fold):
        key, name = self._key(arm, fold), arm.named(fold)
        # Named by its key: a state of other settings or code is never continued.
        code = reached(training.train, *arm.code)
        state = self.study.own_dir / "checkpoints" / f".{name}.{digest({**key, **code})}.resume"
        label = f"{arm.name} fold {fold.number}" * bool(arm.recipe.folds) or arm.name
        label += f" seed {arm.seed}" * (arm.seed != self.study.seed)
        build = partial(
            training.train,
            build=arm.build,
            parts=lambda: self._parts(arm, fold),
            recipe=arm.recipe,
            seed=arm.seed,
            label=label,
            loss=arm.loss,
            resume=state,
        )
        folder = self._store.make(f"checkpoints/{name}", key, build, arm.code)
        grader = _Once(lambda: training.load_state(arm.build(), folder / training.STATE).eval())
        return Job(arm, fold, folder, key, grader)

    def _classifier(self, arm, fold):
        key, name = self._key(arm, fold), arm.named(fold)
        fitted = _Once(
            lambda: arm.build.fit(self.source(arm, fold.fit), self.source(arm, fold.select), arm.seed)
        )
        build = partial(classifiers.write, fitted=fitted)
        path = self._store.make(f"checkpoints/{name}.json", key, build, arm.code)
        return Job(arm, fold, path, key, fitted)

    def _reported(self, job, names, view):
        # Triples (split, part, how it is shown) of what is graded.
        arm, reported, own = job.arm, job.fold.reported, job.arm.recipe.view
        if names is None:
            names = [*reported, "external"]
        for name in names:
            split = job.fold.unseen if name == "unseen" else name
            if split == "external":
                part = self.data("external", arm, view)
                part = part and splits.for_task(part, arm.task)
            else:
                part = job.fold.select if split == INNER else reported.get(split)
            if part:
                yield split, part, view if split == "external" and view else own

    def _graded(self, job, split, part, view, mirrored):
        arm, part = job.arm, replace(part, mirrored=True) if mirrored else part
        file = prediction_file(self.study, arm, split, job.fold.number, view, MIRRORED * mirrored)
        levels = np.unique(job.fold.fit.grades).tolist()
        build = partial(training.write_predictions, grader=job.grader,
                        source=lambda: self.source(arm, part), levels=levels)
        key = {**job.key, "graded": part.fingerprint, "levels": levels}
        path = self._store.make(file, key, build, arm.code)
        found = predictions.read(path, part.rows["image_id"])
        graded = predictions.join(found, part.rows).drop(columns="split")
        values = arm.name, arm.seed, job.fold.number, split, "-".join(view), mirrored
        said = dict(zip(SAID, values, strict=True))
        return pd.concat([pd.DataFrame(said, index=graded.index), graded], axis=1)

    def _write_means(self, arm, graded):
        # What every fold has graded also has a file with the mean of all folds.
        whole = Results(pd.concat(graded, ignore_index=True), 0, 0)
        for where, part in whole.each("split", "view", "mirrored"):
            if where["split"] not in ("train", "held_out", INNER) and part.frame["fold"].nunique() > 1:
                adaptation, view = MIRRORED * bool(where["mirrored"]), where["view"].split("-")
                file = prediction_file(self.study, arm, where["split"], "mean", view, adaptation)
                mean = part.graded(mirrored=where["mirrored"])[predictions.COLUMNS]
                predictions.write(mean, self.study.own_dir / file)

    def _history(self, arm, checkpoints):
        if arm.fits:
            return pd.DataFrame()
        first = ["model", "fold", "seed"]
        history = pd.concat([
            pd.read_csv(folder / training.HISTORY).assign(model=arm.name, fold=fold, seed=arm.seed)
            for fold, folder in checkpoints.items()
        ])
        return history[[*first, *history.columns.drop(first)]]

    def _write_history(self, arm, checkpoints):
        history = self._history(arm, checkpoints)
        if len(history):
            other = "" if arm.seed == self.study.seed else f"__seed{arm.seed}"
            text = history.to_csv(index=False, lineterminator="\n", float_format="%.5f")
            write_text(self.study.own_dir / "history" / f"{arm.name}{other}.csv", text)
