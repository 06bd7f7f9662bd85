"""Before hours of work: all published weights that a profile starts from are found, downloaded where needed,
and opened."""

from koa_lib import model, networks, weights
from koa_lib.systems import foundation, texts

STAND_IN = "tiny"  # the one text encoder of `texts.BERTS` without published weights


def needed(settings):
    """Pairs (function, name) of all published weights that a profile starts from, each once."""
    systems = settings.systems
    encoders = [spec for spec in (*systems.heads.encoders, *systems.embeddings.encoders) if not spec.reason]
    pairs = [(weights.clip, settings.model.name)] if settings.model.start == "openai" else []
    pairs += [
        (weights.network, spec.timm)
        for spec in _networks(settings)
        if spec.weights == "imagenet" and not spec.reason
    ]
    pairs += [(weights.network, spec.architecture) for spec in encoders if spec.source == "timm"]
    pairs += [(weights.network, systems.labels.architecture)] if systems.labels.published else []
    pairs += [(texts.place, systems.heads.text)] if systems.heads.text != STAND_IN else []
    pairs += [
        (foundation.place_of, weights.FOUNDATIONS[spec.source])
        for spec in encoders
        if spec.source in weights.FOUNDATIONS
    ]
    return list(dict.fromkeys(pairs))


def _networks(settings):
    return (*settings.baselines, *settings.systems.embeddings.networks)


def check(settings, given=""):
    """Find, download where needed, and open all weights that a profile starts from.

    Raises
    ------
    StudyError
        The first that is missing, damaged or of another architecture.
    """
    for find, name in needed(settings):
        place = find(name, given)
        with weights.fitting(name, place):
            _open(settings, find, name, place)


def _open(settings, find, name, place):
    if find is weights.clip:
        model.load_clip(name, place)
    elif find is texts.place:
        texts.create(name, place)
    elif find is foundation.place_of:
        {"BiomedCLIP": foundation.biomed_clip, "RAD-DINO": foundation.RadDino}[name](place)
    else:
        for size, width in _sizes(settings, name):
            networks.create(name, size, width, place)


def _sizes(settings, name):
    systems = settings.systems
    sizes = {(spec.image_size, spec.width) for spec in _networks(settings) if spec.timm == name}
    sizes |= {
        (spec.image_size, spec.width)
        for spec in (*systems.heads.encoders, *systems.embeddings.encoders)
        if spec.architecture == name
    }
    return sizes | ({(systems.labels.image_size, 1.0)} if systems.labels.architecture == name else set())
