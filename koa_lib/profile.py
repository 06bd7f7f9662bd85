"""Profiles: every setting of a run, read from YAML into frozen dataclasses.

A profile states all of its keys; nothing has a hidden default.
"""

import types
import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import yaml

from koa_lib.errors import StudyError
from koa_lib.prompts import PROMPT_SETS
from koa_lib.settings import Cohort, Profile, Recipe  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "profiles"

PARTS = ("adapter", "projection", "last_blocks", "full_image", "both_encoders")
ALLOWED = {
    "source": ("phantoms", "folder"),
    "start": ("pretrain", "random", "openai"),
    "part": PARTS,
    "prompts": tuple(PROMPT_SETS),
    "normalisation": ("imagenet", "clip"),
    "geometry": ("stretch", "pad", "center_crop"),  # of training; `images.shape` has more for reporting
    "intensity": ("none", "clahe"),
    "augmentation": ("as_printed", "strong"),
    "targets": ("hard", "ordinal"),
    "loss": ("prototypes", "infonce"),
    "weights": ("random", "imagenet"),
    "trained": ("network", "last_layer"),
}
# What may have a reason, in words.
REASONS = {"not_run": ("as_printed", "readings", "heads", "towers", "self_supervised"),
           "not_comparable": ("networks", "systems")}
SOURCES = ("start", "trained", "random", "timm", "biomedclip", "rad-dino", "dino")  # of a frozen encoder

# Smallest and largest allowed value of a number, wherever its key stands.
RANGES = {"seeds": (1, 100), "epochs": (0, 10_000), "tower_epochs": (0, 10_000),
          "model_epochs": (0, 10_000), "patience": (0, 10_000),
          "batch": (1, 100_000), "views": (1, 1_000), "residual": (0, 1), "baseline_folds": (1, 100),
          "learning_rate": (1e-12, 10), "weight_decay": (0, 10), "warm_up": (0, 1), "averaging": (0, 0.99999),
          "draws": (1, 10**7), "image_size": (16, 4096), "width": (0.01, 10), "pictures": (1, 10**7),
          "seed": (0, 2**31), "threads": (1, 64)}


class Once(yaml.SafeLoader):
    """YAML whose keys stand once in their mapping."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"the key '{twice[0]}' stands twice in line {node.start_mark.line + 1} "
                                 "and below")
        return super().construct_mapping(node, deep)


def names():
    """The names of all profiles, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name, folder=FOLDER):
    """Read a profile.

    Raises
    ------
    StudyError
        Unknown profile, unknown or missing key, wrong type or value: names the key and lists what is allowed.
    """
    path = Path(folder) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in Path(folder).glob("*.yaml")))
        raise StudyError(f"Profile '{name}' is unknown. Choose one of: {known}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Once)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from error
    profile = build(Profile, content, path.name)
    if profile.name != name:
        raise StudyError(f"{path.name}: key 'name' is '{profile.name}' but the file is called '{name}.yaml'. "
                         "Make them equal.")
    return profile


def dry(settings, real):
    """The same profile for a dry run: random weights of the true architectures, two folds, one seed, one
    epoch, few and smaller pictures for frozen encoders.

    Parameters
    ----------
    settings : Profile
    real : bool
        Whether real pictures were given; phantoms take their place otherwise.
    """
    def short(recipe):
        return recipe and replace(recipe, folds=min(2, recipe.folds), epochs=1)

    def untrained(specs):
        return tuple(replace(spec, epochs=1, weights="random") for spec in specs)

    cohorts = {} if real else {"training": Cohort("phantom_a", "phantoms", 400),
                               "external": Cohort("phantom_b", "phantoms", 420)}
    own, labels, symmetry = settings.systems.embeddings, settings.systems.labels, settings.systems.symmetry
    # Pictures of 518 pixels take minutes on a CPU.
    encoders = tuple(replace(spec, image_size=min(spec.image_size, 224)) for spec in own.encoders)
    own = replace(own, encoders=encoders, networks=untrained(own.networks), trees=8, others=21)
    labels = replace(labels, published=False, pictures=2, batch=2, epochs=1, fractions=(0.5, 1.0), seeds=1)
    symmetry = replace(symmetry, epochs=1, weights=symmetry.weights[:1], seeds=1,
                       model_epochs=min(1, symmetry.model_epochs))
    return replace(settings, model=replace(settings.model, start="random"),
                   as_printed=short(settings.as_printed), our_protocol=short(settings.our_protocol),
                   seeds=1, tower_epochs=1, baseline_folds=min(2, settings.baseline_folds),
                   baselines=untrained(settings.baselines),
                   systems=replace(settings.systems, symmetry=symmetry, embeddings=own, labels=labels),
                   **cohorts)


def build(cls, content, file, prefix=""):
    """A dataclass from the content of a YAML file; every key must be known, there and of the right type.

    Parameters
    ----------
    cls : type
    content : dict
    file : str
        Its name, for errors.
    prefix : str
        The keys that lead to `content`, with a dot at the end, for errors.
    """
    if not isinstance(content, dict):
        raise StudyError(f"{file}: '{prefix.rstrip('.') or 'the file'}' must be a mapping with the keys "
                         f"{_keys(cls)}.")
    known = [field.name for field in fields(cls)]
    for key in content:
        if key not in known:
            raise StudyError(f"{file}: key '{prefix}{key}' is unknown. Allowed here: {', '.join(known)}.")
    for key in known:
        if key not in content:
            raise StudyError(f"{file}: key '{prefix}{key}' is missing. Needed here: {', '.join(known)}.")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], content[key], file, prefix + key) for key in known})


def _value(hint, value, file, key):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(args[0], value, file, key)
    if is_dataclass(hint):
        return build(hint, value, file, key + ".")
    if origin is tuple and isinstance(value, list):
        return tuple(_value(args[0], item, file, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        unknown = [name for name in value if name not in REASONS[key]]
        if unknown:
            raise StudyError(f"{file}: key '{key}.{unknown[0]}' is unknown. Allowed here: "
                             f"{', '.join(REASONS[key])}.")
        return {str(k): _value(args[1], v, file, f"{key}.{k}") for k, v in value.items()}
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        wanted = {tuple: "a list", dict: "a mapping"}.get(
            origin, f"a value of type {getattr(hint, '__name__', hint)}")
        raise StudyError(f"{file}: key '{key}' is {value!r} ({type(value).__name__}); allowed: {wanted}.")
    _check_choice(value, file, key)
    return value


def _check_choice(value, file, key):
    name = key.split(".")[-1].split("[")[0]
    low, high = RANGES.get(name, (None, None))
    if low is not None and type(value) in (int, float) and not low <= value <= high:
        raise StudyError(f"{file}: key '{key}' is {value}; allowed: {low:g} to {high:g}.")
    if name == "folds" and (value < 0 or value == 1):
        raise StudyError(f"{file}: key '{key}' is {value}; "
                         "allowed: 0 (the official split alone) or 2 and more.")
    choices = SOURCES if name == "source" and "encoders" in key else ALLOWED.get(name)
    told = key.startswith(("not_run", "not_comparable"))  # reasons, in words
    if choices and not told and type(value) is str and value not in choices:
        raise StudyError(f"{file}: key '{key}' is '{value}'; allowed: {', '.join(choices)}.")


def _keys(cls):
    return ", ".join(field.name for field in fields(cls))
