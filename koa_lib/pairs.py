"""Training on pictures together with their mirror images, from cached features: CLIP-KOA's losses and what they are compared with."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import torch

from koa_lib import predictions, stats, training
from koa_lib.device import autocast
from koa_lib.images.shape import VIEWS
from koa_lib.losses import consistency_loss, prototype_cross_entropy, symmetry_loss
from koa_lib.protocols import folds, unseen_split
from koa_lib.runner import MIRRORED, Runner, _Trained
from koa_lib.settings import Recipe
from koa_lib.threads import threads

PARTS = ("cross_entropy", "symmetry", "consistency")
ON_VECTORS = ("projection", "adapter")  # parts whose training sees a picture as one vector
INNER = ("inner.csv", "inner__mirrored.csv")  # predictions of the inner part, beside the trained weights


@dataclass(frozen=True)
class PairRecipe(Recipe):
    """A recipe on pictures and their mirror images, without any other augmentation.

    `seen` is what the cross-entropy sees: 'picture', 'either' (one of the two, drawn at each step) or 'both';
    `symmetry` and `consistency` are the weights of CLIP-KOA's losses.
    """

    seen: str
    symmetry: float
    consistency: float


class PairLoss:
    """``CE + symmetry * L_sym + consistency * L_cons`` of a batch of pairs (our reading).

    `parts` keeps all three of every step, in every arm; a weight of 0 leaves no trace in the gradient.
    """

    def __init__(self, recipe):
        self.both, self.weights, self.parts = recipe.seen == "both", (1.0, recipe.symmetry, recipe.consistency), []

    def __call__(self, grader, features, grades, targets):
        """Loss and logits (n, 5) of the first of each pair; features (n, 2, ...), grades (n,)."""
        with autocast(grader):
            embeddings = grader.embed_features(features.flatten(0, 1))
        logits, embeddings = grader.logits(embeddings).unflatten(0, (-1, 2)), embeddings.unflatten(0, (-1, 2))
        seen = logits if self.both else logits[:, :1]
        cross_entropy = prototype_cross_entropy(seen.flatten(0, 1), grades.repeat_interleave(seen.shape[1]), targets)
        parts = (cross_entropy, symmetry_loss(embeddings[:, 0], embeddings[:, 1]), consistency_loss(logits[:, 0], logits[:, 1]))
        self.parts.append([part.item() for part in parts])
        return sum(weight * part for weight, part in zip(self.weights, parts, strict=True)), logits[:, 0]

    def curves(self, epochs):
        """Means over the steps of each epoch: a frame with epoch and the columns of `PARTS`."""
        means = np.array(self.parts).reshape(epochs, -1, len(PARTS)).mean(axis=1)
        return pd.DataFrame(means, columns=PARTS).assign(epoch=range(1, epochs + 1))


class Pairs:
    """Features of pictures and of their mirror images; with `either`, the first of a pair is drawn at each step.

    Parameters
    ----------
    pictures, mirrored : sources.Features
        Of the same rows.
    either : bool
    """

    def __init__(self, pictures, mirrored, either):
        self.pictures, self.mirrored, self.either = pictures, mirrored, either
        self.dataset, self.grades = pictures.dataset, pictures.grades

    def __len__(self):
        return len(self.pictures)

    def training_batch(self, positions, generator):
        """Features of pairs (n, 2, ...)."""
        pairs = torch.stack([self.pictures.batch(positions), self.mirrored.batch(positions)], dim=1)
        if self.either:
            swap = torch.rand(len(pairs), generator=generator) < 0.5
            pairs[swap] = pairs[swap].flip(1)
        return pairs


class PairRunner(Runner):
    """Trains arms with a `PairRecipe`, all on one official split; every reported part is graded as it is and mirrored."""

    def __init__(self, study):
        super().__init__(study)
        self._fold = None  # parted once for all arms
        self._threads = torch.get_num_threads()

    def inner(self, arm):
        """Predictions of the inner part, on which an arm may be chosen: `stats.paired` frame, the mirror image's in p0_b..p4_b."""
        trained = self._trained_once(arm)
        data = self.data("training", arm.recipe)
        return stats.paired(*(predictions.join(predictions.read(trained.checkpoint / name), data.rows) for name in INNER))

    def both_ways(self, arm):
        """The unseen part of the training cohort, and the external cohort in the confirmatory view (stretched), graded as they are and mirrored.

        Returns
        -------
        dict of str to DataFrame
            Split ('test', or 'val' where there is no test picture; 'external' where it is given) -> `stats.paired` frame, the mirror image's in p0_b..p4_b.
        """
        trained = self._trained_once(arm)
        unseen, outside = unseen_split(trained.fold.reported), self._in_view(arm, VIEWS[0])
        frames, external = {unseen: self._both(trained, arm, unseen, trained.fold.reported[unseen])}, self.data("external", outside.recipe)
        return frames if external is None else {**frames, "external": self._both(trained, outside, "external", external)}

    def _both(self, trained, arm, split, part):
        shown = {"geometry": arm.recipe.geometry, "intensity": arm.recipe.intensity}
        frames = (self._predict(trained.as_seen(arm, way, **shown), split, replace(part, mirrored=bool(way))) for way in ("", MIRRORED))
        return stats.paired(*frames)

    def _features(self, arm, grader, role, whole):
        with threads(self._threads if grader.low_precision else 1):  # in full precision: a narrow ViT
            return super()._features(arm, grader, role, whole)

    def _predict(self, trained, split, part):
        with threads(self._for(trained.arm)):
            return super()._predict(trained, split, part)

    def _for(self, arm):
        return 1 if arm.recipe.part in ON_VECTORS else self._threads

    def _trained_once(self, arm):
        data = self.data("training", arm.recipe)
        if self._fold is None:
            self._fold, = folds(data, arm, self.study.seed)
        return self._train(arm, data, self._fold)

    def _train(self, arm, data, fold):
        key = self._key(arm, fold)

        def build(folder):
            grader, loss = arm.build(), PairLoss(arm.recipe)
            fit, select = self._sources(arm, grader, "training", data, fold.fit, fold.select)
            fit_mirrored, select_mirrored = self._sources(arm, grader, "training", data, *(replace(part, mirrored=True) for part in (fold.fit, fold.select)))
            source = Pairs(fit, fit_mirrored, arm.recipe.seen == "either")
            history = training.fit(grader, source, select, replace(arm.recipe, loss=loss), arm.seed, f"{arm.name} seed {arm.seed}")
            folder.mkdir()
            training.save_state(grader, folder / "state.safetensors")
            history.to_csv(folder / "history.csv", index=False)
            loss.curves(history["epoch"].max()).to_csv(folder / "parts.csv", index=False)
            for name, part in zip(INNER, (select, select_mirrored), strict=True):
                predictions.write(predictions.frame(fold.select.rows["image_id"], training.predict(grader, part)), folder / name)

        with threads(self._for(arm)):
            checkpoint = self.study.store.make(f"checkpoints/{arm.name}__fold{fold.number}__seed{arm.seed}", key, build, [arm.build])
        return _Trained(arm, fold, checkpoint, key, cache(lambda: training.load_state(arm.build(), checkpoint / "state.safetensors").eval()))
