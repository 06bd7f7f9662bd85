"""CLIP and the grader built on it: an image tower split into trunk and tail, scored against text
prototypes."""

import copy
import json
import logging
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from koa_lib import weights as weight_files
from koa_lib.device import compute_device, random_state, seeded
from koa_lib.errors import StudyError
from koa_lib.tower import Frozen, Tower, low_precision

CONFIGS = Path(__file__).parent / "model_configs"
LARGEST_SCALE = 100  # as in CLIP
OURS = tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))
SYMMETRIC_MODELS = ("koa-conv",)  # whose tower is `symmetric.SymmetricResNet`


@cache
def _open_clip():
    # Slow to import, and what only reads results needs no model.
    import open_clip

    from koa_lib import symmetric  # noqa: F401 - timm knows it by name then

    open_clip.add_model_config(CONFIGS)
    logging.getLogger().addFilter(lambda record: "No pretrained weights loaded" not in record.getMessage())
    return open_clip


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of a picture: side in pixels and the statistics its weights were made with."""

    image_size: int
    statistics: str


def load_clip(name, weights=None, seed=0):
    """Load a CLIP model together with its preprocessing and tokenizer.

    Parameters
    ----------
    name : str
        An open_clip architecture, or one of `OURS` (configurations in this package).
    weights : path, optional
        A folder: ours (`save_clip`) or open_clip's (`open_clip_config.json` + weights), of which
        `weights.file_of` is loaded; or the bare weight file of open_clip's hub. Without it the weights are
        random, drawn with `seed`.

    Returns
    -------
    model : open_clip.CLIP
    preprocess : Preprocess
    tokenizer : callable, texts -> int tensor (n, context)

    Raises
    ------
    StudyError
        Unknown name, unreadable folder, weights made for another activation (QuickGELU against GELU), or
        weights of which one tensor is not in the model, one of the model's is not in the file, or one is not
        finite.

    Examples
    --------
    >>> clip, preprocess, tokenizer = load_clip("koa-tiny", seed=1)
    >>> clip.encode_text(tokenizer(["a knee", "another knee"])).shape[0]
    2
    """
    known = _open_clip().list_models()
    if name not in known:
        raise StudyError(
            f"CLIP model '{name}' is unknown. Use {', '.join(OURS)} or one of open_clip's "
            f"{len(known) - len(OURS)}, e.g. ViT-B-32-quickgelu."
        )
    with random_state(seed):
        model = _open_clip().create_model(name)
    if weights is not None:
        with weight_files.fitting(name, weights):
            _check_folder(name, Path(weights))
            _open_clip().load_checkpoint(model, str(weight_files.file_of(weights)))
        if not all(torch.isfinite(value).all() for value in model.parameters()):
            raise StudyError(f"{weights} holds weights that are no numbers. Get them again.")
    size = model.visual.image_size
    size = size[0] if isinstance(size, (tuple, list)) else size
    return model.eval(), Preprocess(size, "clip"), tokenizer(name)


def tokenizer(name):
    """The tokenizer of an architecture: texts to an int tensor (n, context)."""
    return _open_clip().get_tokenizer(name)


def architecture(name):
    """The configuration of an architecture, as open_clip has it."""
    return _open_clip().get_model_config(name)


def _check_folder(name, folder):
    card, config = folder / "model.json", folder / "open_clip_config.json"
    if card.is_file():
        _check_card(name, json.loads(card.read_text()), folder)
    elif config.is_file():
        theirs = json.loads(config.read_text())["model_cfg"]
        _check_card(name, {"name": name, "quick_gelu": bool(theirs.get("quick_gelu", False))}, folder)
        _check_architecture(name, theirs, folder)
    elif folder.is_dir():
        raise StudyError(
            f"{folder} holds neither model.json nor open_clip_config.json. "
            "Give the folder that has the weights and their configuration."
        )


def _check_architecture(name, theirs, folder):
    ours = architecture(name)
    for part in ("vision_cfg", "text_cfg"):
        for key, value in ours[part].items():
            given = theirs.get(part, {}).get(key, value)
            if given != value:
                raise StudyError(
                    f"{folder} holds another architecture than '{name}': {part}.{key} is {given}, not "
                    f"{value}. Give the folder of '{name}'."
                )
    if theirs.get("embed_dim", ours["embed_dim"]) != ours["embed_dim"]:
        raise StudyError(
            f"{folder} holds another architecture than '{name}': embed_dim is {theirs['embed_dim']}, not "
            f"{ours['embed_dim']}."
        )


def _check_card(name, card, folder):
    wanted = activation(name)
    if card["name"] != name:
        raise StudyError(
            f"{folder} holds weights of '{card['name']}', not of '{name}'. Change the profile's model.name "
            "or the folder."
        )
    if card["quick_gelu"] != wanted:
        raise StudyError(
            f"{folder} was made with quick_gelu={card['quick_gelu']} but '{name}' builds "
            f"quick_gelu={wanted}: results would change silently. "
            "Use the '-quickgelu' architecture for OpenAI's weights."
        )


def activation(name):
    """Whether an architecture uses QuickGELU."""
    return bool(architecture(name).get("quick_gelu", False))


def save_clip(model, name, folder):
    """Save weights as safetensors with a JSON card (name, activation, preprocessing); never a pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    card = {"name": name, "quick_gelu": activation(name), "statistics": "clip", "grades": [0, 1, 2, 3, 4]}
    (folder / "model.json").write_text(json.dumps(card, indent=1))


def stage(part):
    """Where the trunk of a `ClipGrader` ends: 'embedding', 'pooled', 'tokens' or 'image' (nothing to
    cache)."""
    return {"adapter": "embedding", "projection": "pooled", "last_blocks": "tokens"}.get(part, "image")


@lru_cache(maxsize=1)
def _loaded(name, start, seed):
    # Read once: a grader is built for every fold and file of predictions.
    clip, _, tokenizer = load_clip(name, start, seed)
    return clip, tokenizer


def untrained(name, start, start_seed, recipe, sentences, seed, fitted=None):
    """A `ClipGrader` before its training, on the device that is computed on.

    Parameters
    ----------
    name, start, start_seed
        As for `load_clip`.
    recipe : settings.Recipe
        With part and residual.
    sentences : sequence of str
        The five prompts.
    seed : int
        Of what starts random in every model, the adapter.
    fitted : callable, optional
        Gives the CLIP to start from instead.
    """
    clip, tokenizer = _loaded(name, start, start_seed)
    clip = fitted() if fitted else clip
    return seeded(seed, ClipGrader, copy.deepcopy(clip), tokenizer, recipe.part, sentences, recipe.residual)


def frozen(make):
    """The image tower that `make` gives, as a `Frozen` on the device that is computed on."""
    made = make()
    return Frozen(made, low_precision(made)).to(compute_device())


class Adapter(nn.Module):
    """Two-layer down-and-up adapter with residual ratio r: ``r * relu(up(relu(down(f)))) + (1 - r) * f``.

    CLIP-Adapter (arXiv:2110.04544) with a bottleneck of a quarter, as Fig. 4 of the paper draws it.
    """

    def __init__(self, width, residual):
        super().__init__()
        self.down, self.up = (
            nn.Linear(width, width // 4, bias=False),
            nn.Linear(width // 4, width, bias=False),
        )
        self.residual = residual

    def forward(self, features):
        changed = F.relu(self.up(F.relu(self.down(features))))
        return self.residual * changed + (1 - self.residual) * features


class ClipGrader(nn.Module):
    """Grades pictures by similarity to five text prototypes.

    The image tower is cut in two: `trunk` is frozen and its output can be cached, `tail` is trained. Where
    the cut lies is the tuning reading (`part`):

    adapter
        both encoders frozen, a down-and-up adapter on the embedding is trained (`as_printed`)
    projection
        all blocks frozen, the final norm and projection are trained
    last_blocks
        the last two transformer blocks (or the last residual stage) and the projection are trained
    full_image
        the whole image tower is trained, prototypes stay fixed
    both_encoders
        image and text tower are trained

    Parameters
    ----------
    clip : open_clip.CLIP
    tokenizer : callable
    part : str
    sentences : sequence of str
        Five prompts, grade 0 first, e.g. of `prompts.prompts`.
    residual : float in [0, 1]
        The adapter's ratio.

    Examples
    --------
    >>> from koa_lib.prompts import prompts
    >>> clip, _, tokenizer = load_clip("koa-tiny")
    >>> grader = ClipGrader(clip, tokenizer, "adapter", prompts("as_printed")).eval()
    >>> grader(torch.zeros(2, 3, 112, 112)).shape  # logits of the five grades
    torch.Size([2, 5])
    """

    def __init__(self, clip, tokenizer, part, sentences, residual=0.2):
        super().__init__()
        self.clip, self.part = clip, part
        self.tower = Tower(clip.visual)
        self.register_buffer("tokens", tokenizer(list(sentences)), persistent=False)
        width = clip.encode_text(self.tokens[:1]).shape[-1]
        self.adapter = Adapter(width, residual) if part == "adapter" else None
        self._freeze()
        with torch.no_grad():
            self.register_buffer("fixed_prototypes", F.normalize(clip.encode_text(self.tokens), dim=-1))

    def _freeze(self):
        self.requires_grad_(False)
        for module in self.trained_modules():
            module.requires_grad_(True)
        if self.part == "both_encoders":
            self.clip.logit_scale.requires_grad_(True)
        if isinstance(self.tower.projection, nn.Parameter):  # a ViT's projection is no module of its own
            self.tower.projection.requires_grad_(self.part != "adapter")

    def trained_modules(self):
        """The modules whose weights the reading trains."""
        return {
            "adapter": lambda: [self.adapter],
            "projection": lambda: self.tower.head_modules(),
            "last_blocks": lambda: [*self.tower.last_blocks(), *self.tower.head_modules()],
            "full_image": lambda: [self.clip.visual],
            "both_encoders": lambda: [self.clip],
        }[self.part]()

    @property
    def stage(self):
        """Where the trunk ends, see `stage`."""
        return stage(self.part)

    @property
    def low_precision(self):
        """Whether bf16 autocast is used, see `tower.low_precision`."""
        return low_precision(self.clip.visual)

    def entering(self, images):
        """What enters the tower's last blocks, see `Tower.entering`."""
        return self.tower.entering(images)

    def trunk(self, images):
        """Frozen part: normalised images (n, 3, H, W) to features; the images themselves when all is
        trained."""
        return self.tower.until(images, self.stage)

    def tail(self, features):
        """Trained part: trunk features to logits (n, 5)."""
        return self.logits(self.embed_features(features))

    def embed_features(self, features):
        """Trunk features to unit embeddings (n, d)."""
        embedding = self.tower.after(features, self.stage)
        embedding = self.adapter(embedding) if self.adapter is not None else embedding
        return F.normalize(embedding.float(), dim=-1)

    def prototypes(self):
        """Unit text embeddings (5, d); recomputed only when the text tower is trained."""
        if self.part == "both_encoders":
            return F.normalize(self.clip.encode_text(self.tokens).float(), dim=-1)
        return self.fixed_prototypes

    @property
    def scale(self):
        """``exp(logit_scale)``, at most 100 as in CLIP."""
        return self.clip.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def logits(self, embedding):
        """``exp(logit_scale) * cos`` between unit embeddings (n, d) and prototypes, (n, 5)."""
        prototypes = self.prototypes()
        # bf16 would round logits near 25 to steps of 0.125
        with torch.autocast(embedding.device.type, enabled=False):
            return self.scale * embedding @ prototypes.T

    def forward(self, images):
        """Normalised images (n, 3, H, W) to logits (n, 5)."""
        return self.tail(self.trunk(images))

    def trained_state(self):
        """The trained parameters, and running statistics where a part with batch norm is trained."""
        names = {name for name, value in self.named_parameters() if value.requires_grad}
        if self.stage in ("tokens", "image"):
            names |= {name for name, _ in self.clip.named_buffers(prefix="clip")}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def train_tail(self):
        """Training mode for the trained modules only: frozen batch norms keep their statistics."""
        self.eval()
        for module in self.trained_modules():
            module.train()
