"""CLIP-KOA's ablation, as we read it: what mirror images add to standard CLIP, in training, in grading or by
construction."""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from koa_lib import losses, predictions, protocols, stats
from koa_lib.arm import Trunk
from koa_lib.experiment import INNER, prediction_file
from koa_lib.images.shape import VIEWS
from koa_lib.model import SYMMETRIC_MODELS
from koa_lib.store import made_from
from koa_lib.verdict import Answer, over_runs

SYSTEM = "CLIP-KOA"
STANDARD, FLIPPED, AT_TEST = "standard CLIP", "flip augmentation", "flip at test time"
PAIRS, SYMMETRY, CONSISTENCY, BOTH = "pairs", "symmetry loss", "consistency loss", "both losses"
ARMS = (STANDARD, FLIPPED, AT_TEST, PAIRS, SYMMETRY, CONSISTENCY, BOTH)
# Standard CLIP on a tower that cannot tell left from right; where a profile trains both towers.
CONSTRUCTION = "symmetric tower"
SEEN = {STANDARD: "picture", FLIPPED: "either"}  # by the cross-entropy; other trained arms see both
# Arm and less: PAIRS lacks the losses and nothing else.
COMPARED = (*product((*ARMS[1:], CONSTRUCTION), [STANDARD]), *product(ARMS[4:], [PAIRS]))
METRICS = ("accuracy", "macro_f1", "qwk", "flip_disagreement")
CLAIMED = ("accuracy", "flip_disagreement")  # what the paper's claims are about


def arm(experiment, seen, symmetry=0.0, consistency=0.0, seed=None, model=None):
    """CLIP by our protocol on the official split, trained after a frozen trunk without other augmentation.

    Parameters
    ----------
    seen : {'picture', 'either', 'both'}
        What the cross-entropy sees.
    symmetry, consistency : float
        Weights of the two losses.
    seed : int, optional
        The study's unless given.
    model : settings.Model, optional
        Whose trunk our protocol trains before it is frozen: that of the settings unless given.
    """
    study = experiment.study
    settings, ours = study.profile.systems.symmetry, study.profile.our_protocol
    own = {name: getattr(settings, name) for name in ("part", "epochs", "learning_rate")}
    plain = {"folds": 0, "patience": 0, "warm_up": 0.0, "averaging": 0.0, "views": 1, "augmentation": "none"}
    weights = {"symmetry": symmetry, "consistency": consistency}
    name = "-".join([f"koa-{seen}", *(f"{loss}_{weight:g}" for loss, weight in weights.items() if weight)])
    name += f"-{model.name}" if model else ""
    model = model or settings.model
    made = protocols.clip_arm(
        _with_model(study, model), name.replace(".", "_"), replace(ours, **own, **plain), "official",
        seed=seed, seen=seen, trained=model and _trained(experiment, model),
        loss=losses.MirrorPairs(seen == "both", **weights, targets=ours.targets),
    )
    # All arms of a model share these features; those of our protocol may have augmented views besides.
    shared = "-".join(filter(None, ["koa", model and model.name, made.trunk and made.trunk.name]))
    return replace(made, trunk=made.trunk and replace(made.trunk, name=shared))


def _with_model(study, model):
    # A study of another CLIP, which our protocol trains as long as the settings say.
    if model is None:
        return study
    ours = replace(study.profile.our_protocol, folds=0, epochs=study.profile.systems.symmetry.model_epochs)
    return replace(study, profile=replace(study.profile, model=model, our_protocol=ours))


def _trained(experiment, model):
    # A CLIP to start from, which has seen neither the inner part nor the test split.
    trained = protocols.official_arm(_with_model(experiment.study, model))
    job = experiment.job(replace(trained, name=f"koa-trained-{model.name}"))
    return Trunk("trained", lambda: job.grader().clip, {"trunk": made_from(job.checkpoint)})


def described(experiment):
    """How the arms were run, e.g. 'koa-tiny, 112 px, projection, 8 epochs, pre-trained on phantoms'."""
    study, settings = experiment.study, experiment.study.profile.systems.symmetry
    said = protocols.described(arm(experiment, SEEN[STANDARD]), _with_model(study, settings.model))
    return said + f" and {settings.model_epochs} epochs of our protocol before" * bool(settings.model)


def chosen(experiment):
    """Name of each arm with a loss -> its weights (symmetry, consistency).

    They have the highest quadratic kappa on the inner part of the training split, which alone chooses; the
    smallest among equals.
    """
    values = experiment.study.profile.systems.symmetry.weights
    grid = {SYMMETRY: (values, [0.0]), CONSISTENCY: ([0.0], values), BOTH: (values, values)}

    def kappa(pair):
        found = experiment.run(arm(experiment, "both", *pair), splits=(INNER,)).measured(["qwk"])
        return np.nan_to_num(found["qwk"], nan=-1)  # undefined where all have one grade

    return {name: max(sorted(product(*pair), key=sum), key=kappa) for name, pair in grid.items()}


def arms(experiment, weights, seed=None):
    """Name -> Arm of what is trained, with the weights from `chosen`."""
    made = {name: arm(experiment, SEEN.get(name, "both"), *weights.get(name, ()), seed=seed)
            for name in ARMS if name != AT_TEST}
    if has_symmetric(experiment.study):
        made[CONSTRUCTION] = arm(experiment, SEEN[STANDARD], seed=seed, model=experiment.study.profile.model)
    return made


def has_symmetric(study):
    """Whether a profile's own CLIP is held against the arms, because it cannot tell left from right."""
    return study.profile.systems.symmetry.model is not None and study.profile.model.name in SYMMETRIC_MODELS


def run(experiment, weights):
    """Every arm with every seed, graded on pictures and mirror images.

    Returns
    -------
    Results
        Of `ARMS` (and `CONSTRUCTION`), on the unseen part of the training cohort and on the external cohort,
        stretched and without repeats and conflicts.
    """
    study = experiment.study
    seeds = range(study.seed, study.seed + study.profile.systems.symmetry.seeds)
    made = [pair for seed in seeds for pair in arms(experiment, weights, seed).items()]
    trained = [one for _, one in made]
    found = experiment.run(*trained, splits=("unseen", "external"), both_ways=True, view=VIEWS[0])
    found = replace(found, frame=found.frame.replace({"arm": {one.name: name for name, one in made}}))
    averaged = at_test(found.of(arm=STANDARD))
    for name, one in made:
        if name == STANDARD:
            _write(study, replace(one, name="koa-at_test"), averaged.of(seed=one.seed, mirrored=False))
    return (found + averaged).deduplicated()


def at_test(standard):
    """The mean of a picture's and its mirror image's probabilities as the answer to both."""
    each = standard.frame.groupby(["seed", "split", "image_id"])[predictions.PROBABILITIES]
    return replace(standard, frame=standard.frame.assign(arm=AT_TEST, **each.transform("mean")))


def _write(study, arm, averaged):
    for where, part in averaged.each("split", "view"):
        file = prediction_file(study, arm, where["split"], 1, where["view"].split("-"))
        predictions.write(part.graded()[predictions.COLUMNS], study.own_dir / file)


class Mean(NamedTuple):
    """An arm on a part: draws of each metric's mean over the seeds (1 + draws rows), its values by seed, and
    the number of pictures."""

    drawn: pd.DataFrame
    each: pd.DataFrame
    n: int


def means(results):
    """The `Mean` of each (part, arm), from the results of `run`."""
    there = set(results.frame["arm"])
    return {(part, name): _mean(results.of(split=part, arm=name))
            for part, name in product(results.splits, (*ARMS, CONSTRUCTION)) if name in there}


def _mean(found):
    drawn, each = map(pd.DataFrame, found.averaged(METRICS))
    return Mean(drawn, each.set_axis(found.frame["seed"].unique()), found.frame["image_id"].nunique())


def overview(means, weights):
    """What was run: each arm on each part, with the weights of its losses.

    Parameters
    ----------
    means : dict
        From `means`.
    weights : dict
        From `chosen`.

    Returns
    -------
    DataFrame
        arm, part, symmetry_weight, consistency_weight, n, seeds, then each metric (ratios): its mean over the
        seeds, the 95 % interval of that mean (..._low, ..._high; groups resampled) and its standard deviation
        over the seeds (..._sd; NaN with one).
    """
    rows = []
    for (part, name), (drawn, each, n) in means.items():
        symmetry, consistency = weights.get(name, (0.0, 0.0))
        rows.append({"arm": name, "part": part, "symmetry_weight": symmetry,
                     "consistency_weight": consistency, "n": n, "seeds": len(each),
                     **_cells(drawn), **each.std().add_suffix("_sd")})
    return pd.DataFrame(rows)


def _cells(drawn):
    return {key: value for name in METRICS for key, value in stats.with_interval(name, drawn[name]).items()}


def differences(means):
    """Paired differences of `means`: each arm to standard CLIP, those with a loss also to `PAIRS`, which
    lacks only it.

    Returns
    -------
    DataFrame
        comparison, arm, less, part, n, then the difference of each metric (ratios): its mean over the seeds
        with the 95 % interval of that mean (..._low, ..._high; the same groups are drawn for both arms and
        all seeds); the difference with each seed of what the claims are about (<metric>_seed_<seed>), and
        seeds_agree, whether those of accuracy have one sign (None with one seed).
    """
    rows = []
    compared = [(name, less) for name, less in COMPARED if name in {name for _, name in means}]
    for part, (name, less) in product(dict.fromkeys(part for part, _ in means), compared):
        drawn, each, n = _gap(means[part, name], means[part, less])
        signs = set(np.sign(each["accuracy"]))
        rows.append({"comparison": f"{name} − {less}", "arm": name, "less": less, "part": part,
                     "n": n, **_cells(drawn),
                     **{f"{metric}_seed_{seed}": each[metric][seed]
                        for metric in CLAIMED for seed in each.index},
                     "seeds_agree": signs in ({1.0}, {-1.0}) if len(each) > 1 else None})
    return pd.DataFrame(rows)


def _gap(first, second):
    return Mean(first.drawn - second.drawn, first.each - second.each, first.n)


def answers(means):
    """What CLIP-KOA's rows of the scorecard take of `means`, for `answers.keep`.

    Numbers are means over the seeds, their interval Student's t over them. The claims are decided by the
    paired differences of both losses to standard CLIP, means over all seeds: *replicated* when the whole
    interval (groups resampled) lies on the claimed side of 0, *not replicated* when it lies on the other,
    else *inconclusive*.
    """
    part = next(iter(means))[0]
    standard, both = means[part, STANDARD], means[part, BOTH]
    gain, before = _gap(both, standard), standard.drawn
    sample = f"{part} split, n = {gain.n:,}, seeds: {len(gain.each)}"
    relative = gain.drawn["accuracy"][0] / before["accuracy"][0]

    def number(found, note):
        drawn, each = (100 * values["accuracy"].to_numpy() for values in found[:2])
        return over_runs(each, f"{note}; {sample}", stats.interval(drawn[1:]))

    def claim(metric, wanted):
        drawn, each = (100 * values[metric].to_numpy() for values in gain[:2])
        value, low, high = stats.with_interval("", drawn).values()
        side = stats.direction(*sorted((wanted * low, wanted * high)))
        verdict = {"better": "replicated", "worse": "not replicated"}.get(side, "inconclusive")
        reason = (f"{metric.replace('_', ' ')} of standard CLIP {before[metric][0]:.1%}, with both losses "
                  f"{both.drawn[metric][0]:.1%}; {sample}; difference with each: "
                  f"{', '.join(f'{gap:+.2f}' for gap in each)}")
        return Answer(value, low, high, "points", verdict, reason)

    key = (SYSTEM, "abstract")
    return {
        (*key, "CLIP-KOA", "accuracy"): number(both, f"{BOTH}, our reading"),
        (*key, "gain over standard CLIP", "accuracy_gain"):
            number(gain, f"read as percentage points; as a relative gain ours is {relative:+.2%}"),
        (*key, "symmetry and consistency losses raise accuracy over standard CLIP"): claim("accuracy", 1),
        (*key, "predictions agree between original and flipped image"): claim("flip_disagreement", -1),
    }
