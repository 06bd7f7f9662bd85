"""The settings of a run: frozen dataclasses in the shape of the profiles, which state every key."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cohort:
    """Where a cohort comes from; `size` is patients (training) or pictures (external) of a phantom cohort."""

    name: str
    source: str
    size: int


@dataclass(frozen=True)
class Model:
    """The CLIP under study: open_clip name, start weights, input size in pixels."""

    name: str
    start: str
    image_size: int


@dataclass(frozen=True)
class Pretraining:
    """Contrastive pre-training on captioned phantoms."""

    pictures: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Recipe:
    """One way of fine-tuning CLIP.

    `folds` 0 means the official split only; `views` counts cached augmentations; `patience` is the number of
    epochs without gain on an inner part after which training stops, 0 for never. `warm_up` is the share of
    the steps with a rising learning rate, `averaging` the decay of a running average of the weights, which is
    then what is kept (0: none).
    """

    part: str
    prompts: str
    normalisation: str
    geometry: str
    intensity: str
    augmentation: str
    loss: str
    targets: str
    learning_rate: float
    weight_decay: float
    epochs: int
    patience: int
    batch: int
    warm_up: float
    averaging: float
    residual: float
    folds: int
    views: int

    @property
    def view(self):
        """Geometry and intensity in which pictures are shown."""
        return self.geometry, self.intensity

    @property
    def shaping(self):
        """What of it changes the features of a frozen trunk."""
        return {name: getattr(self, name) for name in ("normalisation", "augmentation", "views")}


@dataclass(frozen=True)
class Baseline:
    """An image-only model of Table 4, from timm's `weights`; `trained` is the whole 'network' or the
    'last_layer' after a frozen trunk; a `reason` means that this profile does not run it."""

    name: str
    timm: str
    weights: str
    image_size: int
    width: float
    epochs: int
    batch: int
    learning_rate: float
    trained: str
    reason: str


@dataclass(frozen=True)
class Symmetry:
    """Notebook 08: CLIP-KOA's losses on a picture and its mirror image.

    `model` is the CLIP of which a trunk stays frozen: the profile's at its start weights (null), or another
    that our protocol first trains from random weights for `model_epochs`. `part` is what is trained after the
    trunk; `weights` are the values that each loss may get, chosen on the inner part.
    """

    model: Model | None
    model_epochs: int
    part: str
    epochs: int
    learning_rate: float
    weights: tuple[float, ...]
    seeds: int


@dataclass(frozen=True)
class Encoder:
    """A frozen image encoder: where its weights come from and what it reads; a `reason` means that this
    profile does not run it.

    `source` is 'start' (the image tower that fine-tuning starts from), 'trained' (the tower of our protocol's
    CLIP), 'random', 'dino' (self-supervised), 'timm' (timm's published weights) or a published model by name;
    `architecture` is timm's name where the source leaves it open, and `width` scales it.
    """

    name: str
    source: str
    architecture: str
    image_size: int
    width: float
    reason: str


@dataclass(frozen=True)
class Heads:
    """Notebook 09: LumbarCLIP's grid of frozen encoders, projection heads and losses;
    `text` is a BERT of `texts.BERTS`."""

    encoders: tuple[Encoder, ...]
    text: str
    epochs: int
    batch: int
    learning_rate: float
    seeds: int


@dataclass(frozen=True)
class Embeddings:
    """Notebook 11: frozen embeddings with boosted trees and logistic regression against supervised networks.

    `per_task` trains a network for each task; otherwise one is trained on KL grades and its frozen features
    serve the findings. `others` is the number of pictures of other anatomies.
    """

    encoders: tuple[Encoder, ...]
    networks: tuple[Baseline, ...]
    per_task: bool
    trees: int
    others: int


@dataclass(frozen=True)
class Labels:
    """Notebook 10: self-supervised pre-training without labels, then growing fractions of labels for each
    start.

    The tower is timm's `architecture`, or the image tower of the profile's CLIP where it is empty;
    `published` says whether it starts from timm's weights. It is shown two crops of `crop` pixels and
    `local_crops` of `local_crop`, cut from pictures of `image_size`, at which embeddings are taken.
    `prototypes` is the length of an answer, `momentum` the share of its weights that the teacher keeps at
    first.
    """

    architecture: str
    published: bool
    image_size: int
    pictures: int
    epochs: int
    batch: int
    learning_rate: float
    crop: int
    local_crop: int
    local_crops: int
    prototypes: int
    momentum: float
    fractions: tuple[float, ...]
    seeds: int


@dataclass(frozen=True)
class Attention:
    """Notebook 12: how many pictures are explained, in how many steps a picture is deleted or inserted, and
    in how many the weights are lost."""

    pictures: int
    steps: int
    cascade: int


@dataclass(frozen=True)
class Systems:
    """Settings of the other papers' systems, notebooks 08 to 12."""

    symmetry: Symmetry
    heads: Heads
    embeddings: Embeddings
    labels: Labels
    attention: Attention


@dataclass(frozen=True)
class Profile:
    """All settings of a run. `as_printed` is null where a profile cannot run it; `not_run` then says why.

    `not_run` has a reason for what else a profile leaves out: 'readings', of them 'towers' (those that train
    blocks of a tower), 'heads' (notebook 9), 'self_supervised' (the pre-training of notebook 10);
    `not_comparable` says why 'networks' (rows of Table 4) or 'systems' (other papers) are not held against
    the published numbers.

    `seeds` trainings of the main arm differ in nothing but the seed; `tower_epochs` is what readings that
    train blocks of a tower get (the cheaper ones get the recipe's epochs); `baseline_folds` is how many folds
    each baseline trains. A notebook computes in so many `threads`, however many run at once.
    """

    name: str
    purpose: str
    seed: int
    threads: int
    training: Cohort
    external: Cohort
    model: Model
    pretraining: Pretraining | None
    as_printed: Recipe | None
    our_protocol: Recipe
    seeds: int
    tower_epochs: int
    baseline_folds: int
    baselines: tuple[Baseline, ...]
    systems: Systems
    draws: int
    not_run: dict[str, str]
    not_comparable: dict[str, str]

    def cohort_of(self, split):
        """The `Cohort` that the pictures of a split are from."""
        return self.external if split == "external" else self.training

    @property
    def synthetic(self):
        """Whether any cohort is made of phantoms."""
        return "phantoms" in (self.training.source, self.external.source)
