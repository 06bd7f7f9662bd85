"""LumbarCLIP on knees: which frozen encoder, head and soft loss align pictures and sentences best, and is a linear head better?"""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from koa_lib import encoders, losses, model, stats, texts
from koa_lib.grades import prompts
from koa_lib.metrics import best_constant
from koa_lib.model import HEADS
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.scorecard import Ours, over_runs
from koa_lib.protocols import START
from koa_lib.results import Results
from koa_lib.store import digest

SYSTEM = "LumbarCLIP"
TARGETS = ("similarity", "label-aware", "ordinal")  # of the losses, see `losses.SoftClip`
CELL = ["encoder", "head", "loss"]  # what a combination is
METRICS = ("accuracy", "qwk", "macro_f1")
OTHER_DATA = ("knee radiographs, not the paper's axial lumbar MRI with reports: other data, so the two numbers do not "
              "compare")
LEVEL = 0.95
STANDS_IN = {"random": " (stand-in, untrained)", "start": " (stand-in)", "trained": " (stand-in)"}


def shown(study, spec):
    """An encoder's name wherever a number of it stands, e.g. 'Swin (stand-in, untrained)'."""
    return spec.name + STANDS_IN.get(spec.source, " (random weights)" if study.dry else "")


def described(study, spec):
    """How an encoder is run, e.g. 'stand-in for Swin: swin_tiny_patch4_window7_224, 64 px, random weights, untrained'."""
    clip = f"{study.profile.model.name}'s image tower, {spec.image_size} px"
    network = f"{spec.architecture}, {spec.image_size} px" + f", width x {spec.width:g}" * (spec.width != 1)
    run = {"start": f"{clip}, {START[study.profile.model.start]}", "trained": f"{clip}, trained by our protocol",
           "random": f"{network}, random weights, untrained",
           "timm": f"{network}, {'random' if study.dry else 'published'} weights"}[spec.source]
    return run if spec.source == "timm" else f"stand-in for {spec.name}: {run}"


def arm(experiment, spec, head, target, seed):
    """Two heads of a kind on a frozen image and a frozen text encoder, trained with a soft loss by our protocol."""
    study = experiment.study
    settings = study.profile.systems.heads
    sentences = texts.embed(study, settings.text, prompts(study.profile.our_protocol.prompts))
    made = encoders.arm(experiment, spec, f"heads-{spec.name}-{head}-{target}".lower(), None, seed=seed,
                        key={"head": head, "sentences": digest(sentences.tobytes())}, loss=losses.SoftClip(target))
    own = {name: getattr(settings, name) for name in ("epochs", "batch", "learning_rate")}
    width = experiment.features(made, experiment.data("training", made)).shape[-1]
    build = partial(model.seeded, seed, model.ProjectionPair, head, width, sentences)
    return replace(made, build=build, recipe=replace(made.recipe, **own, warm_up=0.0, averaging=0.0))


def run(experiment):
    """Every head with every loss and seed on every encoder that the profile runs, graded on the unseen split.

    Returns
    -------
    results : Results
        With encoder (as from `shown`), head and loss.
    history : DataFrame
        Of each epoch: encoder, head, loss, seed, epoch, batch (pictures), training and floor (nats), inner_qwk.
    """
    study = experiment.study
    settings, graded, histories = study.profile.systems.heads, [], []
    seeds, specs = range(study.seed, study.seed + settings.seeds), [one for one in settings.encoders if not one.reason]
    for spec, head, target, seed in product(specs, HEADS, TARGETS, seeds):
        made, cell = arm(experiment, spec, head, target, seed), (shown(study, spec), head, target)
        cell = dict(zip(CELL, cell, strict=True))
        graded.append(experiment.run(made, splits=("unseen",)).frame.assign(**cell))
        batch = min(settings.batch, len(experiment.folds(made)[0].fit))
        histories.append(_curve(experiment.history(made)).assign(**cell, batch=batch))
    nothing = pd.DataFrame(columns=[*CELL, "seed", "epoch", "batch", "training", "floor", "inner_qwk"])
    frame, history = (pd.concat(found, ignore_index=True) if found else nothing for found in (graded, histories))
    return Results(frame, study.profile.draws, study.seed), history


def _curve(history):
    train, inner = (history[history["part"] == part].reset_index() for part in ("train", "inner"))
    return train[["seed", "epoch", "floor"]].assign(training=train["loss"], inner_qwk=inner["qwk"])


def overview(study, results, history):
    """What was run: each encoder, head and loss on the unseen split; mean probabilities of its seeds.

    Returns
    -------
    DataFrame
        encoder, head, loss, n, accuracy, qwk, macro_f1 (ratios), each with _low and _high from a group bootstrap;
        seeds, epoch (chosen on the inner part, first seed), inner_qwk (mean over seeds), as_run (how the encoder is
        run), chosen ('yes' for what the inner part prefers), best_constant (accuracy of one grade for every
        picture), above_constant (whether the whole interval is above it), not_run (why an encoder is not run).
    """
    encoders_of = study.profile.systems.heads.encoders
    table = results.table(METRICS, CELL).merge(_inner(history).reset_index(), on=CELL)
    constant = best_constant(results.frame.drop_duplicates("image_id")["kl_grade"])["accuracy"]
    table = table.assign(
        as_run=table["encoder"].map({shown(study, spec): described(study, spec) for spec in encoders_of}),
        chosen=np.where(table.index == table["inner_qwk"].idxmax(), "yes", ""), best_constant=constant,
        above_constant=np.where(table["accuracy_low"] > constant, "yes", "no"), not_run="")
    absent = [{"encoder": spec.name, "as_run": described(study, spec), "not_run": spec.reason}
              for spec in encoders_of if spec.reason]
    return pd.concat([table, pd.DataFrame(absent)], ignore_index=True)


def _inner(history):
    # Of each combination: seeds, epoch and inner_qwk at the epochs that the inner part likes best.
    ranked = history.fillna({"inner_qwk": -1}).sort_values("inner_qwk", ascending=False, kind="stable")
    best = ranked.drop_duplicates([*CELL, "seed"]).sort_index().groupby(CELL, sort=False)
    return best.agg(seeds=("seed", "size"), epoch=("epoch", "first"), inner_qwk=("inner_qwk", "mean"))


def differences(results):
    """Linear minus non-linear head on the same pictures, for each encoder and loss, with paired 95 % intervals.

    Returns
    -------
    DataFrame
        first and second (the heads), encoder, loss, n, then the difference of accuracy, qwk and macro_f1 (ratios),
        each with _low and _high from a group bootstrap; simultaneous (_low, _high), the interval of the accuracy
        by which all rows hold at once (Bonferroni); better, the head on whose side the accuracy's interval lies.
    """
    heads = replace(results, frame=results.frame.assign(arm=results.frame["head"]))
    gaps = heads.gaps([HEADS], METRICS, ("encoder", "loss"))
    if gaps.empty:
        return gaps
    at_once = heads.gaps([HEADS], METRICS[:1], ("encoder", "loss"), 1 - (1 - LEVEL) / len(gaps))
    sides = {"better": HEADS[0], "worse": HEADS[1], "not clear": "neither"}
    better = [sides[stats.direction(*ends)] for ends in zip(gaps["accuracy_low"], gaps["accuracy_high"], strict=True)]
    return gaps.assign(simultaneous_low=at_once["accuracy_low"], simultaneous_high=at_once["accuracy_high"], better=better)


def linear_better(table):
    """The answer to "linear projection heads align better than non-linear ones", by accuracy as the paper measures it.

    *Replicated* when the 95 % intervals of all differences lie above 0, *not replicated* when any lies below, else
    *inconclusive*. Ours is the smallest difference, in points. The intervals of the rule are not corrected for their
    number; the reason says what is left of them when they are.

    Parameters
    ----------
    table : DataFrame
        From `differences`.
    """
    if table.empty:
        return not_run("this profile runs none of the encoders")
    above, below, sure_above, sure_below = (
        int((side * table[f"{name}_{end}"] > 0).sum())
        for name in ("accuracy", "simultaneous") for side, end in ((1, "low"), (-1, "high")))
    verdict = "not replicated" if below else "replicated" if above == len(table) else "inconclusive"
    reason = (f"of {len(table)} paired differences (encoder x loss) {above} lie clearly above 0 and {below} clearly below; "
              f"{sure_above} and {sure_below} after correction for their number; ours is the smallest")
    least = table.loc[table["accuracy"].idxmin(), ["accuracy", "accuracy_low", "accuracy_high"]]
    return Answer(*(100 * float(value) for value in least), "points", verdict, reason)


def answers(results, history):
    """What the scorecard takes: accuracy and macro-F1, in per cent, of the combination with the highest kappa on the
    inner part (no picture of the unseen split is asked), and the claim about the heads.
    """
    claim, keys = linear_better(differences(results)), {"accuracy": "accuracy", "macro_f1": "f1"}
    found = dict.fromkeys(keys, Ours(math.nan, note=claim.reason))
    if len(history):
        best = dict(zip(CELL, _inner(history)["inner_qwk"].idxmax(), strict=True))
        note = f"{OTHER_DATA}; {best['encoder']}, {best['head']} head, {best['loss']} loss, chosen on the inner part"
        found = {name: over_runs(100 * values[:, 0], note, stats.interval(100 * values.mean(0)[1:]))
                 for name, values in results.runs(keys, **best).items()}
    numbers = {(SYSTEM, "abstract", "best", keys[name]): value for name, value in found.items()}
    return {**numbers, (SYSTEM, "abstract", "linear projection heads align better than non-linear ones"): claim}


def curves(study, history):
    """The training loss over the epochs, its floor on the same batches, and what equal scores cost.

    Returns
    -------
    DataFrame
        As from `run`, of the first seed, with target (what kind of loss) and uniform (every text equally likely; nats).
    """
    first = history[history["seed"] == study.seed]
    return first.assign(target=first["loss"] + " loss", uniform=first["batch"].map(losses.chance_loss))
