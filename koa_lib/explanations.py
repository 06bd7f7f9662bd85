"""The models of a study and where they look: unseen pictures, maps, curves and cascades, kept in the store."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from koa_lib import attribution, explain, protocols
from koa_lib.baselines import ImageGrader, described
from koa_lib.datasets import KneeDataset, to_tensor
from koa_lib.device import compute_device
from koa_lib.model import ClipGrader, load_clip
from koa_lib.runner import Runner

SIDE = 112  # pixels of a kept map
CLIPS = {"clip-as_printed": "CLIP as printed", "clip-our_protocol": "CLIP by our protocol"}


@dataclass(frozen=True)
class Subject:
    """A trained model and the pictures that it explains: the same ones for every model of a study."""

    name: str
    arm: protocols.Arm
    as_run: str
    part: KneeDataset
    trained_patients: frozenset  # of its training part
    trained: Callable  # loads the model
    untrained: Callable  # makes the same architecture with random weights

    @property
    def pictures(self):
        """The pictures as the model sees them, uint8 (n, side, side)."""
        return self.part.images(np.arange(len(self.part)))


@dataclass(frozen=True)
class Explained:
    """What is kept of a subject.

    Attributes
    ----------
    subject : Subject
    layer : str
        What Grad-CAM maps.
    grades : int array (n,)
        The model's own grades, which the maps explain.
    maps : dict of str to float array (n, SIDE, SIDE)
        By method.
    curves : dict of (str, str) to float array (n, steps + 1)
        By order (a method or a control) and 'deletion' or 'insertion'; empty on real pictures.
    cascade : dict of (str, str) to float array (n, steps)
        By method and 'rank correlation' or 'SSIM': similarity to the trained map while layers become random.
    """

    subject: Subject
    layer: str
    grades: np.ndarray
    maps: dict
    curves: dict
    cascade: dict


def subjects(study):
    """The CLIP models and the baselines that this profile runs, with a sample of pictures that none of them was fitted on.

    Returns
    -------
    subjects : list of Subject
    absent : dict of str to str
        Models that can't be explained, and why.
    """
    runner, found, absent, common, folds = Runner(study), [], {}, None, {}
    for name, arm, as_run, untrained in _arms(study):
        data = runner.data("training", arm.recipe)
        # Arms of one scheme are parted alike, and parting patients takes a while.
        parted = (arm.scheme, arm.recipe.folds, arm.recipe.patience)
        folds[parted] = folds.get(parted) or _main_fold(study, data, arm)
        part = data.part(np.flatnonzero(data.rows["image_id"].isin(_unseen(folds[parted]))), "report")
        shared = set(part.rows["image_id"]) & (common or set(part.rows["image_id"]))
        if not shared:
            absent[name] = "no picture is unseen by it and by the models before it"
            continue
        common = shared
        patients = frozenset(folds[parted].reported["train"].rows["group_id"])
        found.append(Subject(name, arm, as_run, part, patients, lambda arm=arm: runner.grader(arm, protocols.main_fold(study)), untrained))
    absent |= {spec.name: spec.reason for spec in study.profile.baselines if spec.reason}
    return [_sampled(subject, common, _settings(study).pictures) for subject in found], absent


def _main_fold(study, data, arm):
    return next(fold for fold in protocols.folds(data, arm, study.seed) if fold.number == protocols.main_fold(study))


def _unseen(fold):
    # Everything inside the training cohort that the fold was neither fitted on nor chosen by.
    return {name for split, part in fold.reported.items() if split != "train" for name in part.rows["image_id"]}


def _arms(study):
    for name, arm in {CLIPS[arm.name]: arm for arm in (protocols.main_arm(study), protocols.our_arm(study))}.items():
        yield name, arm, protocols.described(arm, study), lambda recipe=arm.recipe: _random_clip(study, recipe)
    for spec in study.profile.baselines:
        if not spec.reason:
            yield spec.name, protocols.baseline_arm(study, spec), described(spec), lambda spec=spec: _seeded(study, ImageGrader, spec)


def _random_clip(study, recipe):
    clip, _, tokenizer = load_clip(study.profile.model.name, None, study.seed + 1)
    return _seeded(study, ClipGrader, clip, tokenizer, recipe.part, recipe.prompts, recipe.residual)


def _seeded(study, build, *arguments):
    # Another seed than that of the trainings: their start is no random network of its own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed + 1)
        return build(*arguments).to(compute_device())


def _sampled(subject, common, number):
    rows = subject.part.rows
    positions = np.flatnonzero(rows["image_id"].isin(common))
    chosen = rows.iloc[positions]
    # The first picture of each grade, then the second, until there are enough: as many of each as there can be.
    rank = chosen.groupby("kl_grade").cumcount().to_numpy()
    taken = positions[np.lexsort((chosen["kl_grade"].to_numpy(), rank))[:number]]
    taken = sorted(taken, key=lambda position: (rows["kl_grade"].iloc[position], rows["image_id"].iloc[position]))
    return replace(subject, part=subject.part.part(np.array(taken), "report"))


def explained(study, subject):
    """Where a model looks, from the store or made now; curves only on phantoms, as real pictures get overlays without a claim."""
    settings, arm, grader = _settings(study), subject.arm, subject.trained()  # one model in memory at a time
    key = {"model": subject.name, "weights": _digest(grader), "seed": study.seed, "settings": settings, "recipe": arm.recipe,
           "explained": subject.part.fingerprint, "synthetic": study.synthetic}
    path = study.store.make(f"attributions/{arm.name}.npz", key, lambda path: np.savez(path, **_measure(study, subject, grader, settings)))
    with np.load(path) as kept:
        groups = {"map": {}, "curve": {}, "cascade": {}}
        for name in kept.files:
            kind, *rest = name.split("|")
            if kind in groups:
                groups[kind][rest[0] if kind == "map" else tuple(rest)] = kept[name]
        return Explained(subject, str(kept["layer"]), kept["grades"], groups["map"], groups["curve"], groups["cascade"])


def _settings(study):
    # A dry run shows that all steps work, on true architectures: two pictures and steps are enough.
    settings = study.profile.systems.attention
    return replace(settings, pictures=2, steps=2, cascade=1) if study.dry else settings


def _digest(grader):
    digest = hashlib.sha256()
    for name, value in grader.state_dict().items():
        if name == "fixed_prototypes":  # computed from the others, with rounding that depends on the number of threads
            continue
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _measure(study, subject, grader, settings):
    images = to_tensor(subject.pictures, subject.arm.recipe.normalisation)
    grades = attribution.probabilities(grader, images).argmax(1)
    maps = {name: _batched(method, grader, images, grades) for name, method in explain.methods(grader).items()}
    made = {"layer": explain.layer(grader, images.shape[-1]), "grades": grades}
    made |= {f"map|{name}": attribution.resized(value, SIDE).astype(np.float32) for name, value in maps.items()}
    if study.synthetic:
        made |= _curves(subject, grader, maps, grades, settings.steps, study.seed)
    return made | _cascade(grader, subject.untrained(), images, maps, grades, settings.cascade)


def _batched(method, grader, images, grades):
    parts = range(0, len(images), attribution.BATCH)
    return np.concatenate([method(grader, images[k : k + attribution.BATCH], grades[k : k + attribution.BATCH]) for k in parts])


def _curves(subject, grader, maps, grades, steps, seed):
    rng = np.random.default_rng(seed)
    controls = {attribution.RANDOM: np.zeros_like(maps["Grad-CAM"]), attribution.CENTRE: attribution.middle(len(grades), SIDE)}
    orders = {name: attribution.order(value, rng) for name, value in (maps | controls).items()}
    made = attribution.curves(grader, subject.pictures, subject.arm.recipe.normalisation, orders, grades, steps)
    return {f"curve|{name}|{kind}": values.astype(np.float32) for (name, kind), values in made.items()}


def _cascade(grader, untrained, images, maps, grades, steps):
    scores = {}
    for _, changed in explain.cascade(grader, untrained, steps):
        for name, method in explain.methods(changed).items():
            found = _batched(method, changed, images, grades)
            scores.setdefault(f"cascade|{name}|rank correlation", []).append(attribution.rank_correlation(maps[name], found))
            scores.setdefault(f"cascade|{name}|SSIM", []).append(attribution.structural_similarity(maps[name], found))
    return {name: np.stack(values, axis=1) for name, values in scores.items()}
