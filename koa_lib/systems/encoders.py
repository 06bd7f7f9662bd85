"""Frozen image encoders: published ones, and the stand-ins of the profiles that load no weights, as trunks of
arms."""

from dataclasses import replace
from functools import partial

from koa_lib import crops, model, protocols, selfsupervised, weights
from koa_lib.arm import Arm, Trunk
from koa_lib.errors import StudyError
from koa_lib.store import made_from
from koa_lib.systems import foundation

# Of the pictures that an encoder was trained on; CLIP's for the others.
STATISTICS = {"timm": "imagenet", "dino": crops.STATISTICS}


def arm(experiment, spec, name, build, key=None, seed=None, **more):
    """An arm whose grader reads the embeddings of a frozen encoder.

    Parameters
    ----------
    spec : settings.Encoder
    build : callable
        Makes the untrained head, or a `classifiers.Classifier`.
    key : dict, optional
        What an untrained head is made of.
    seed : int, optional
        The study's unless given.
    """
    study = experiment.study
    statistics = STATISTICS.get(spec.source, "clip")
    recipe = replace(study.profile.our_protocol, normalisation=statistics, views=1, folds=0, patience=0)
    seed = study.seed if seed is None else seed
    return Arm(name, recipe, spec.image_size, build, key or {}, seed, trunk=trunk(experiment, spec), **more)


def trunk(experiment, spec):
    """The `Trunk` of an encoder that a profile names; it is built only when embeddings are missing.

    Raises
    ------
    StudyError
        Weights that are neither given nor on the hub.
    """
    if spec.source in ("timm", "random") and spec.architecture:
        place = _place(experiment.study, spec)
        return protocols.network_trunk(
            experiment.study, spec.architecture, spec.image_size, spec.width, place
        )
    # Papers that name it differently share a tower's features.
    key = {"encoder": spec.source, "size": spec.image_size, "seed": experiment.study.seed,
           "weights": _weights(experiment, spec)}
    return Trunk(f"encoder-{spec.source}-{spec.image_size}", _build(experiment, spec), key)


def _build(experiment, spec):
    study, place = experiment.study, _place(experiment.study, spec)
    if spec.source in ("start", "trained"):
        return partial(model.frozen, lambda: _clip(experiment, spec).visual)
    if spec.source == "dino":
        return partial(model.frozen, lambda: selfsupervised.tower(experiment))
    if spec.source in weights.FOUNDATIONS:
        return partial(foundation.frozen, spec.source, place, study.seed, spec.name)
    # the tower of the self-supervised start
    return partial(model.frozen, lambda: selfsupervised.untrained(study))


def _clip(experiment, spec):
    # The CLIP whose image tower an encoder is: as fine-tuning starts, or as our protocol left it.
    if spec.source == "start":
        return protocols.our_arm(experiment.study).build().clip
    return experiment.grader(protocols.official_arm(experiment.study)).clip


def clip_of(experiment, spec, sentences):
    """CLIP and tokenizer of which an encoder is the image tower; `sentences` are the vocabulary where no
    published one is loaded.

    Raises
    ------
    StudyError
        An encoder that knows no texts.
    """
    study = experiment.study
    if spec.source == "biomedclip":
        return foundation.biomed_clip(_place(study, spec), study.seed, sentences)
    if spec.source not in ("start", "trained"):
        raise StudyError(
            f"Encoder '{spec.name}' (source '{spec.source}') knows no texts. Use one of: start, trained, "
            "biomedclip."
        )
    return _clip(experiment, spec), model.tokenizer(study.profile.model.name)


def _weights(experiment, spec):
    # What the weights are, without building the encoder. Random ones follow from seed and code.
    if spec.source == "start":
        return protocols.start(experiment.study)[1]
    if spec.source == "trained":
        return made_from(experiment.job(protocols.official_arm(experiment.study)).checkpoint)
    if spec.source == "dino":
        return made_from(selfsupervised.pretrained(experiment))
    return protocols.hashed(_place(experiment.study, spec))


def _place(study, spec):
    # Where published weights lie; None for an encoder without them, and in a dry run.
    if study.dry or spec.source not in (*weights.FOUNDATIONS, "timm"):
        return None
    if spec.source == "timm":
        return weights.network(spec.architecture, study.inputs.weights)
    return foundation.place_of(weights.FOUNDATIONS[spec.source], study.inputs.weights)
