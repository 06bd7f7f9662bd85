"""Supervised networks beside which embeddings are held: trained once, kept in the store, read for features."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from koa_lib import encoders, metrics, sources, training, weights
from koa_lib.baselines import ImageGrader
from koa_lib.device import compute_device
from koa_lib.protocols import BaselineRecipe, hashed
from koa_lib.store import write_text


@dataclass(frozen=True)
class Trained:
    """A trained network with the quadratic kappa of its best epoch on the inner part."""

    grader: ImageGrader
    recipe: BaselineRecipe
    kappa: float

    def probabilities(self, part, levels):
        """Probabilities (n, 5) of a `KneeDataset`; five outputs serve every task, and what is none of its levels gets 0."""
        found = training.predict(self.grader, sources.Pictures(part, self.recipe))
        known = np.isin(np.arange(found.shape[1]), levels)
        return np.where(known, found, 0) / found[:, known].sum(1, keepdims=True)

    def features(self, data):
        """What the last layer reads of each picture of a `KneeDataset`, array (n, d) float32."""
        network = self.grader.network
        encoder = encoders.Encoder(torch.nn.Identity(), {}, low_precision=self.grader.low_precision)
        encoder.network = network.eval()
        encoder.trunk = lambda images: network.forward_head(network.forward_features(images), pre_logits=True)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "features.npy"
            sources.extract(encoder, data, self.recipe, 0, path)
            return np.load(path)[0].astype(np.float32)


def recipe_of(study, spec):
    """How a network is trained: our protocol with the network's own picture size, epochs, batch and learning rate."""
    own = {name: getattr(spec, name) for name in ("learning_rate", "epochs", "batch", "image_size")}
    ours = {**study.profile.our_protocol.__dict__, "part": "full_image", "folds": 0, "views": 1}
    return BaselineRecipe(**{**ours, **({"normalisation": "imagenet"} if spec.weights == "imagenet" else {}), **own})


def trained(study, spec, fold, task):
    """A network trained on a fold's grades of a task, from the store or trained now.

    Parameters
    ----------
    spec : settings.Baseline
    fold : protocols.Fold
        With an inner part.
    task : str
        For the name of the checkpoint.
    """
    recipe, folder = recipe_of(study, spec), checkpoint(study, spec, fold, task)
    grader = training.load_state(ImageGrader(spec), folder / "state.safetensors").to(compute_device()).eval()
    return Trained(grader, recipe, json.loads((folder / "inner.json").read_text(encoding="utf-8"))["qwk"])


def checkpoint(study, spec, fold, task):
    """The folder of a network's weights, trained now where it is missing; arguments as of `trained`."""
    recipe, parts = recipe_of(study, spec), (fold.fit, fold.select)
    start = weights.network(spec.timm, study.inputs.weights) if spec.weights == "imagenet" else None
    key = {"network": spec, "recipe": recipe, "seed": study.seed, "weights": hashed(start), "fit": fold.fit.fingerprint, "select": fold.select.fingerprint}
    name = f"checkpoints/network-{spec.name}-{task}__seed{study.seed}".lower()
    return study.store.make(name, key, lambda folder: _train(study, spec, start, recipe, parts, folder))


def _train(study, spec, start, recipe, parts, folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        grader = ImageGrader(spec, start).to(compute_device())
    fit, select = (sources.Pictures(part, recipe) for part in parts)
    history = training.fit(grader, fit, select, recipe, study.seed, spec.name)
    inner = metrics.confusion(parts[1].grades, training.predict(grader, select).argmax(1))
    folder.mkdir()
    training.save_state(grader, folder / "state.safetensors")
    history.to_csv(folder / "history.csv", index=False)
    write_text(folder / "inner.json", json.dumps({"qwk": float(metrics.from_confusion(inner)["qwk"])}))
