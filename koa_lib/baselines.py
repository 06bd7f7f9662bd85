"""Image-only graders: networks from timm (the other rows of Table 4), and classifiers on frozen embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import timm
import torch
from timm.models import vgg
from torch import nn

from koa_lib import weights as weight_files
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.metrics import confusion, from_confusion
from koa_lib.training import check_role

# What a classifier on embeddings may choose between, and what is fixed (our reading).
DEPTHS, SHARES_OF_TREES, PENALTIES = (2, 4), (4, 2, 1), (0.01, 0.1, 1.0)
BOOSTING = {"learning_rate": 0.2, "subsample": 0.8, "colsample_bytree": 0.3, "max_bin": 64, "n_jobs": 2}


class ImageGrader(nn.Module):
    """A timm network with five outputs, trained as a whole; the same interface as `ClipGrader`.

    Parameters
    ----------
    spec : settings.Baseline
        `width` scales the channels of the named architecture; 1.0 is the architecture itself.
    weights : path, optional
        timm's weight file to start from (`weights.network`); random without it.
    """

    stage = "image"
    low_precision = True  # bf16 autocast: 3 times faster for convolutions on a CPU; weights stay float32

    def __init__(self, spec, weights=None):
        super().__init__()
        self.network = create(spec.timm, spec.image_size, spec.width, weights)

    def trunk(self, images):
        """Nothing is frozen: the normalised images themselves."""
        return images

    def tail(self, images):
        """Normalised images (n, 3, H, W) to logits (n, 5)."""
        return self.network(images)

    forward = tail

    def train_tail(self):
        """Training mode for the whole network."""
        self.train()

    def trained_state(self):
        """All weights and running statistics."""
        return self.state_dict()


def create(name, image_size, width, weights=None):
    """A timm network with five outputs and scaled channels; its outputs are always new, all else is of the weight file where one is given.

    Raises
    ------
    StudyError
        When the family has no reading of a reduced width here, or a tensor of the network is not in the weight file, or one of the file not in the network.
    """
    if name == "vgg19_bn" and width != 1.0:  # timm's factory takes no width
        channels = [c if c == "M" else round(c * width) for c in vgg.cfgs["vgg19"]]
        return vgg.VGG(channels, num_classes=len(GRADES), mlp_ratio=width, norm_layer=nn.BatchNorm2d)
    options = {**_width_options(name, width), **_size_options(name, image_size)}
    network = timm.create_model(name, num_classes=len(GRADES), **options)
    if weights is not None:
        network.load_state_dict(_published(name, weights, options), strict=False)
    return network


def _published(name, weights, options):
    # With other outputs than the file's, timm takes any file: what does not fit stays random. With the file's own it refuses.
    file = {"file": str(weight_files.file_of(weights))}
    with weight_files.fitting(name, weights), torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, **options)
    head = network.pretrained_cfg["classifier"]
    return {key: value for key, value in network.state_dict().items() if not key.startswith(f"{head}.")}


def _size_options(name, image_size):
    return {"img_size": image_size} if name.startswith(("vit", "swin")) else {}


def _width_options(name, width):
    if width == 1.0:
        return {}
    if "resnet" in name:
        return {"channels": tuple(round(c * width) for c in (64, 128, 256, 512))}
    if name.startswith("vit_base"):
        return {"embed_dim": round(768 * width), "num_heads": max(1, round(12 * width))}
    if name.startswith("swin_tiny"):
        return {"embed_dim": round(96 * width), "num_heads": tuple(max(1, round(heads * width)) for heads in (3, 6, 12, 24))}
    if name.startswith("convnext_small"):
        return {"dims": tuple(round(c * width) for c in (96, 192, 384, 768))}
    if name.startswith("mobilenetv1"):
        return {"channel_multiplier": width}
    raise StudyError(f"Baseline '{name}' can't be built with width {width}: "
                     "use width 1.0, vgg19_bn, a ResNet, convnext_small, vit_base, swin_tiny or mobilenetv1.")


def described(spec):
    """How a row of Table 4 was run, e.g. 'resnet50, 64 px, width x 0.5, 3 epochs, random start'."""
    width = "" if spec.width == 1.0 else f"width x {spec.width:g}, "
    start = "ImageNet weights" if spec.weights == "imagenet" else "random start"
    return f"{spec.timm}, {spec.image_size} px, {width}{spec.epochs} epochs, {start}"


@dataclass(frozen=True)
class Classifier:
    """A classifier on embeddings as it was chosen: its settings and their quadratic kappa on the inner part."""

    settings: dict
    kappa: float
    levels: np.ndarray
    predict: Callable

    def probabilities(self, embeddings):
        """Embeddings (n, d) to probabilities (n, 5); a grade that the fitted part lacks gets 0."""
        out = np.zeros((len(embeddings), len(GRADES)))
        out[:, self.levels] = self.predict(embeddings)
        return out / out.sum(1, keepdims=True)


def classify(kind, fit, select, trees, seed):
    """Fit a classifier on embeddings with each of its settings and keep the one with the best quadratic kappa on the inner part.

    Parameters
    ----------
    kind : {'XGBoost', 'logistic regression'}
    fit, select : sources.Features
        Roles 'fit' and 'select'; unchanged pictures are used.
    trees : int
        Largest number of boosting rounds; a quarter and a half of them are tried as well.

    Returns
    -------
    Classifier

    Raises
    ------
    StudyError
        A part with another role, or one grade alone in the fitted part.
    """
    for part, role in ((fit, "fit"), (select, "select")):
        check_role(part, role)
    levels, numbers = np.unique(fit.grades, return_inverse=True)
    if len(levels) < 2:
        raise StudyError("All fitted pictures have the same grade: there is nothing to tell apart. Add pictures of other grades.")
    embeddings, inner = (np.asarray(part.batch(np.arange(len(part)))) for part in (fit, select))
    candidates = _boosted(embeddings, numbers, trees, seed) if kind == "XGBoost" else _linear(embeddings, numbers)
    best = None
    for settings, predict in candidates:
        kappa = float(from_confusion(confusion(select.grades, levels[predict(inner).argmax(1)]))["qwk"])
        if best is None or kappa > best.kappa:
            best = Classifier(settings, kappa, levels, predict)
    return best


def _boosted(embeddings, numbers, trees, seed):
    from xgboost import XGBClassifier  # takes two seconds to import

    for depth in DEPTHS:
        model = XGBClassifier(n_estimators=trees, max_depth=depth, random_state=seed, **BOOSTING).fit(embeddings, numbers)
        for rounds in sorted({max(1, trees // share) for share in SHARES_OF_TREES}):
            yield {"depth": depth, "trees": rounds}, partial(model.predict_proba, iteration_range=(0, rounds))


def _linear(embeddings, numbers):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for penalty in PENALTIES:
        yield {"C": penalty}, make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(embeddings, numbers).predict_proba
