"""Image-only graders: networks from timm, the other rows of Table 4."""

import copy

import torch
from torch import nn

from koa_lib import weights as weight_files
from koa_lib.device import seeded
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.tower import Frozen

SMALLEST = 128  # pixels a side of what is computed in bf16


def low_precision(size):
    """Whether bf16 autocast pays for pictures of a size: 3 times faster for convolutions on a CPU. Small ones
    win nothing by it, and have the same numbers on every processor without."""
    return size >= SMALLEST


class ImageGrader(nn.Module):
    """A timm network with five outputs, of which all or the last layer is trained; the same interface as
    `ClipGrader`.

    Parameters
    ----------
    spec : settings.Baseline
        `width` scales the channels of the named architecture; 1.0 is the architecture itself.
    weights : path, optional
        timm's weight file to start from (`weights.network`); random without it.
    """

    def __init__(self, spec, weights=None):
        super().__init__()
        self.network = create(spec.timm, spec.image_size, spec.width, weights)
        self.size, self.stage = spec.image_size, "pooled" if spec.trained == "last_layer" else "image"
        if self.stage == "pooled":
            self.requires_grad_(False)
            self.network.get_classifier().requires_grad_(True)

    @property
    def low_precision(self):
        """Whether bf16 autocast is used, see `low_precision`; weights stay float32."""
        return self.stage == "image" and low_precision(self.size)

    def trunk(self, images):
        """Frozen part: normalised images (n, 3, H, W) to features; the images themselves when all is
        trained."""
        if self.stage == "image":
            return images
        return self.network.forward_head(self.network.forward_features(images), pre_logits=True)

    def tail(self, features):
        """Trained part: trunk features to logits (n, 5)."""
        return self.network(features) if self.stage == "image" else self.network.get_classifier()(features)

    def forward(self, images):
        """Normalised images (n, 3, H, W) to logits (n, 5)."""
        return self.network(images)

    def train_tail(self):
        """Training mode for what is trained: frozen batch norms keep their statistics."""
        self.train(self.stage == "image")

    def trained_state(self):
        """All weights and running statistics, or those of the last layer."""
        state = self.state_dict()
        if self.stage == "image":
            return state
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        return {name: value for name, value in state.items() if name in trained}


def create(name, image_size, width, weights=None):
    """A timm network with five outputs and scaled channels; its outputs are always new, all else is of the
    weight file where one is given.

    Raises
    ------
    StudyError
        When the family has no reading of a reduced width here, or a tensor of the network is not in the
        weight file, or one of the file not in the network.
    """
    import timm  # slow, as open_clip
    from timm.models import vgg

    if name == "vgg19_bn" and width != 1.0:  # timm's factory takes no width
        channels = [c if c == "M" else round(c * width) for c in vgg.cfgs["vgg19"]]
        return vgg.VGG(channels, num_classes=len(GRADES), mlp_ratio=width, norm_layer=nn.BatchNorm2d)
    options = {**_width_options(name, width), **_size_options(name, image_size)}
    network = timm.create_model(name, num_classes=len(GRADES), **options)
    if weights is not None:
        network.load_state_dict(_published(name, weights, options), strict=False)
    return network


def _published(name, weights, options):
    # With other outputs than the file's, timm takes any file: what does not fit stays random. With the file's
    # own it refuses.
    import timm

    file = {"file": str(weight_files.file_of(weights))}
    with weight_files.fitting(name, weights), torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, **options)
    head = network.pretrained_cfg["classifier"]
    return {key: value for key, value in network.state_dict().items() if not key.startswith(f"{head}.")}


def _size_options(name, image_size):
    return {"img_size": image_size} if name.startswith(("vit", "deit", "swin")) else {}


def _width_options(name, width):
    if width == 1.0:
        return {}
    if "resnet" in name:
        return {"channels": tuple(round(c * width) for c in (64, 128, 256, 512))}
    if name.startswith("vit_base"):
        return {"embed_dim": round(768 * width), "num_heads": max(1, round(12 * width))}
    if name.startswith("swin_tiny"):
        return {
            "embed_dim": round(96 * width),
            "num_heads": tuple(max(1, round(heads * width)) for heads in (3, 6, 12, 24)),
        }
    if name.startswith("convnext_small"):
        return {"dims": tuple(round(c * width) for c in (96, 192, 384, 768))}
    raise StudyError(
        f"Baseline '{name}' can't be built with width {width}: "
        "use width 1.0, vgg19_bn, a ResNet, convnext_small, vit_base or swin_tiny."
    )


def untrained(seed, spec, weights=None):
    """An `ImageGrader` before its training, on the device that is computed on."""
    return seeded(seed, ImageGrader, spec, weights)


def headless(seed, *arguments):
    """A timm network without its classifier, made by `create` with a seed: pictures to embeddings."""
    network = seeded(seed, create, *arguments)
    network.reset_classifier(0)
    return network


def frozen(seed, name, image_size, *others):
    """A `headless` network that is not trained."""
    return Frozen(headless(seed, name, image_size, *others), low_precision(image_size))


def body(grader):
    """A trained `ImageGrader` (which `grader` gives) without its classifier, not trained any more."""
    graded = grader()
    network = copy.deepcopy(graded.network)
    network.reset_classifier(0)
    return Frozen(network, low_precision(graded.size))


def described(spec):
    """How a row of Table 4 was run, e.g. 'resnet50, 64 px, width x 0.5, 3 epochs, random start'."""
    width = "" if spec.width == 1.0 else f"width x {spec.width:g}, "
    start = "ImageNet weights" if spec.weights == "imagenet" else "random start"
    frozen = ", frozen but for its last layer" * (spec.trained == "last_layer")
    epochs = f"{spec.epochs} epoch{'s' * (spec.epochs != 1)}"
    return f"{spec.timm}, {spec.image_size} px, {width}{epochs}, {start}{frozen}"
