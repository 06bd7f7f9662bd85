"""The two protocols of the study, and the arms of the paper: what is trained how, on which parts.

`as_printed` follows the paper where it is definite; `our_protocol` parts by patients and chooses on an inner
part.
"""

import json
from dataclasses import replace
from functools import lru_cache, partial

from koa_lib import model, networks, weights
from koa_lib.arm import Arm, Trunk
from koa_lib.experiment import prediction_file
from koa_lib.pretraining import start_weights
from koa_lib.prompts import prompts
from koa_lib.store import write_text

PRINTED_FOLD = 3  # "the optimal fold (K = 3)", section 4.1
OUR_FOLD = 1  # of our protocol's none is better than another, and nothing is chosen by what is reported
START = {"pretrain": "pre-trained on phantoms", "random": "random start", "openai": "OpenAI weights"}


def clip_arm(study, name, recipe, scheme, only=(), seed=None, trained=None, **more):
    """An arm of the study's CLIP.

    Parameters
    ----------
    seed : int, optional
        The study's unless given.
    trained : Trunk, optional
        Makes the CLIP to start from, instead of the study's start weights.
    """
    (place, key), settings, seed = start(study), study.profile.model, study.seed if seed is None else seed
    key, sentences = {**key, **(trained.key if trained else {})}, prompts(recipe.prompts)
    fitted = trained and trained.build
    build = partial(model.untrained, settings.name, place and str(place), study.seed, fitted=fitted)
    stage = model.stage(recipe.part)
    # The trunk does not hang on the recipe that follows it, nor on its seed.
    trunk = Trunk(stage, partial(build, recipe, sentences, study.seed), key) if stage != "image" else None
    build = partial(build, recipe, sentences, seed)
    key = {**key, "sentences": sentences}
    return Arm(name, recipe, settings.image_size, build, key, seed, scheme, trunk, only=only, **more)


def start(study):
    """Where the weights lie that fine-tuning starts from (None when they are random), and a key of them."""
    place = start_weights(study)
    return place, {"model": study.profile.model, "weights": hashed(place)}


@lru_cache
def hashed(place):
    """`weights.weights_hash`, read once for each place."""
    # Weights do not change during a run, and hundreds of megabytes are not read again for every arm.
    return weights.weights_hash(place)


def main_arm(study, seed=None):
    """The arm that the paper's figures and tables show: `as_printed`, or `our_protocol` where it can't
    run."""
    if study.profile.as_printed is None:
        return our_arm(study, seed)
    return clip_arm(study, "clip-as_printed", study.profile.as_printed, "images", seed=seed, watch=True)


def our_arm(study, seed=None):
    """CLIP by our protocol."""
    return clip_arm(study, "clip-our_protocol", study.profile.our_protocol, "official", seed=seed)


def official_arm(study):
    """CLIP by our protocol on the official split alone: what takes its tower has an inner part and a test
    split that it has not seen."""
    ours = study.profile.our_protocol
    if not ours.folds:
        return our_arm(study)
    return clip_arm(study, "clip-official", replace(ours, folds=0), "official")


def patients_arm(study):
    """The printed recipe with both knees of a patient in one fold; None where the printed one can't run."""
    recipe = study.profile.as_printed
    return recipe and clip_arm(study, "clip-as_printed-patients", recipe, "patients")


def before_arm(study, arm):
    """An arm of CLIP before any graded knee: an adapter is off, everything else has its start weights; on the
    main fold."""
    recipe = replace(arm.recipe, epochs=0, residual=0.0, patience=0)
    return clip_arm(study, f"{arm.name}-before", recipe, arm.scheme, only=(main_fold(study),))


def zero_shot_arm(study, prompt_set):
    """CLIP without any training, with one of the prompt sets, on the official splits and CLIP's own
    statistics."""
    recipe = study.profile.as_printed or study.profile.our_protocol
    untouched = {"part": "adapter", "residual": 0.0, "epochs": 0, "patience": 0, "folds": 0, "views": 1}
    untouched |= {"normalisation": "clip", "prompts": prompt_set}
    return clip_arm(study, f"zero_shot-{prompt_set}", replace(recipe, **untouched), "official")


def baseline_arm(study, spec):
    """An arm of Table 4, on the protocol of the main arm; as many folds as the profile says, the paper's
    first."""
    main = study.profile.as_printed or study.profile.our_protocol
    scheme = "official" if study.profile.as_printed is None else "images"
    name = spec.name.lower().replace(" ", "_")
    return network_arm(study, spec, name, main, scheme, only=_baseline_folds(study, main))


def network_arm(study, spec, name, recipe, scheme, **more):
    """An image-only network, trained by a recipe with its own epochs, batch and learning rate.

    Its pictures are normalised by ImageNet's statistics where it starts from ImageNet's weights, else as the
    recipe says.
    """
    own = {key: getattr(spec, key) for key in ("learning_rate", "epochs", "batch")}
    imagenet = spec.weights == "imagenet"
    statistics = "imagenet" if imagenet else recipe.normalisation
    place = weights.network(spec.timm, study.inputs.weights) if imagenet else None
    build = partial(networks.untrained, study.seed, spec, place)
    key = {"model": spec, "weights": hashed(place)}
    recipe, trunk = replace(recipe, part="full_image", normalisation=statistics, **own), None
    if spec.trained == "last_layer":
        # One view of each picture: a network's features cost up to four times those of CLIP.
        recipe = replace(recipe, part="projection", views=1)
        trunk = network_trunk(study, spec.timm, spec.image_size, spec.width, place)
    return Arm(name, recipe, spec.image_size, build, key, study.seed, scheme, trunk, **more)


def network_trunk(study, timm, size, width, place):
    """The `Trunk` of a timm network without its classifier; random weights where `place` is None."""
    name = "-".join(["network", timm.replace(".", "_"), f"{size}", *["random"] * (place is None)])
    key = {"network": timm, "size": size, "width": width, "seed": study.seed, "weights": hashed(place)}
    return Trunk(name, partial(networks.frozen, study.seed, timm, size, width, place), key)


def _baseline_folds(study, recipe):
    first = main_fold(study)
    others = [number for number in range(1, recipe.folds + 1) if number != first]
    return tuple(sorted([first, *others[: study.profile.baseline_folds - 1]]))


def main_fold(study):
    """Number of the fold that the paper's tables show: its K = 3, or the only one."""
    recipe = study.profile.as_printed
    return min(PRINTED_FOLD, recipe.folds) if recipe else 1


def write_primary(study, results):
    """Name the prediction file of the main model's shown fold for each cohort and split in `primary.json`."""
    arm, content = main_arm(study), {}
    for split in results.splits:
        file = prediction_file(study, arm, split, main_fold(study))
        content[f"{study.profile.cohort_of(split).name}-{split}"] = file.removeprefix("predictions/")
    write_text(study.own_dir / "primary.json", json.dumps(content, indent=1))


def described(arm, study):
    """How the CLIP row of a table was run, e.g. 'koa-tiny, 112 px, adapter, 30 epochs'."""
    clip = study.profile.model
    size, epochs = f"{clip.image_size} px", f"{arm.recipe.epochs} epochs"
    return ", ".join([clip.name, size, arm.recipe.part, epochs, START[clip.start]])
