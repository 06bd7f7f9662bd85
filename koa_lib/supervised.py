"""Supervised networks beside which embeddings are held: trained once, kept in the store, read for features and for where they look."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from koa_lib import encoders, explain, metrics, sources, training, weights
from koa_lib.baselines import ImageGrader
from koa_lib.datasets import to_tensor
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


@dataclass(frozen=True)
class Look:
    """Where a network looks on one picture of each grade.

    Attributes
    ----------
    rows : DataFrame
        Manifest rows of the pictures, in the order of their grades.
    pictures : uint8 array (k, side, side)
    answers : int array (k,)
        The network's own grades.
    maps : dict of str to float array (k, side, side)
        Grad-CAM of the own and of the true grade.
    layer : str
        What is mapped.
    """

    rows: object
    pictures: np.ndarray
    answers: np.ndarray
    maps: dict
    layer: str


def look(network, part):
    """Grad-CAM of a trained network over the first picture of each KL grade of a part.

    Parameters
    ----------
    network : Trained
    part : KneeDataset
    """
    rows = part.rows.drop_duplicates("kl_grade").sort_values("kl_grade")
    pictures = part.images(rows.index.to_numpy())
    images = to_tensor(pictures, network.recipe.normalisation)
    answers = network.probabilities(part.part(rows.index.to_numpy(), "report"), range(5)).argmax(1)
    maps = {f"Grad-CAM of\nthe {name} grade": explain.heatmap(network.grader, images, grades)
            for name, grades in (("own", answers), ("true", rows["kl_grade"].to_numpy().copy()))}
    return Look(rows.reset_index(drop=True), pictures, answers, maps, explain.layer(network.grader, images.shape[-1]))
