"""LumbarCLIP on knees: frozen encoders, projection heads and soft losses; is a linear head better?"""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from koa_lib import losses, projection, stats
from koa_lib.projection import HEADS
from koa_lib.prompts import prompts
from koa_lib.protocols import START
from koa_lib.store import digest
from koa_lib.systems import encoders, texts
from koa_lib.verdict import Answer, Ours, decided, not_run, over_runs

SYSTEM = "LumbarCLIP"
TARGETS = ("similarity", "label-aware", "ordinal")  # of the losses, see `losses.SoftClip`
CELL = ["encoder", "head", "target"]  # what a combination is
METRICS = ("accuracy", "qwk", "macro_f1")
OTHER_DATA = "knee radiographs, not the paper's axial lumbar MRI with reports: the two numbers do not compare"
STANDS_IN = {"random": " (stand-in, untrained)", "start": " (stand-in)", "trained": " (stand-in)"}


def label(study, spec):
    """An encoder's name wherever a number of it stands, e.g. 'Swin (stand-in, untrained)'."""
    return spec.name + STANDS_IN.get(spec.source, " (random weights)" if study.dry else "")


def described(study, spec):
    """How an encoder is run, e.g. 'stand-in for ResNet-50: resnet50, 64 px, random weights, untrained'."""
    clip = f"{study.profile.model.name}'s image tower, {spec.image_size} px"
    network = f"{spec.architecture}, {spec.image_size} px" + f", width x {spec.width:g}" * (spec.width != 1)
    run = {"start": f"{clip}, {START[study.profile.model.start]}",
           "trained": f"{clip}, trained by our protocol",
           "random": f"{network}, random weights, untrained",
           "timm": f"{network}, {'random' if study.dry else 'published'} weights"}[spec.source]
    return run if spec.source == "timm" else f"stand-in for {spec.name}: {run}"


def arm(experiment, spec, head, target, seed):
    """Two heads of a kind on frozen encoders of pictures and texts, trained with a soft loss."""
    study = experiment.study
    settings = study.profile.systems.heads
    sentences = texts.embed(study, settings.text, prompts(study.profile.our_protocol.prompts))
    made = encoders.arm(
        experiment, spec, f"heads-{spec.name}-{head}-{target}".lower(), build=None, seed=seed,
        key={"head": head, "sentences": digest(sentences.tobytes())}, loss=losses.SoftClip(target),
    )
    own = {name: getattr(settings, name) for name in ("epochs", "batch", "learning_rate")}
    width = experiment.features(made, experiment.data("training", made)).shape[-1]
    build = partial(projection.pair, seed, head, width, sentences)
    return replace(made, build=build, recipe=replace(made.recipe, **own, warm_up=0.0, averaging=0.0))


def run(experiment):
    """Every head with every loss and seed on every encoder that the profile runs, graded on the unseen split.

    Returns
    -------
    results : Results
        With encoder (as from `label`), head and target.
    history : DataFrame
        As `Experiment.history`, with encoder, head, target, batch (pictures) and uniform (nats; every text
        equally likely). The part 'train' has the loss and its floor on the same batches.
    """
    study = experiment.study
    settings = study.profile.systems.heads
    specs = [spec for spec in settings.encoders if not spec.reason]
    seeds = range(study.seed, study.seed + settings.seeds)
    made = [((label(study, spec), head, target), arm(experiment, spec, head, target, seed))
            for spec, head, target, seed in product(specs, HEADS, TARGETS, seeds)]
    cells = pd.DataFrame([(*cell, one.name) for cell, one in made], columns=[*CELL, "arm"]).drop_duplicates()
    results = experiment.run(*(one for _, one in made), splits=("unseen",))
    results = replace(results, frame=results.frame.merge(cells, on="arm"))
    none = pd.DataFrame(columns="model seed epoch part qwk loss floor batch uniform".split())
    history = pd.concat([_history(experiment, one) for _, one in made] or [none], ignore_index=True)
    return results, history.merge(cells.rename(columns={"arm": "model"}), on="model")


def _history(experiment, made):
    batch = min(made.recipe.batch, len(experiment.folds(made)[0].fit))
    return experiment.history(made).assign(batch=batch, uniform=losses.chance_loss(batch))


def overview(study, results, history):
    """What was run: each encoder, head and loss on the unseen split; mean probabilities of its seeds.

    Returns
    -------
    DataFrame
        encoder, head, target, n, accuracy, qwk, macro_f1 (ratios), each with _low and _high from a group
        bootstrap; seeds, epoch (chosen on the inner part, first seed), inner_qwk (mean over seeds), chosen
        ('yes' for what the inner part prefers), best_constant (accuracy of one grade for every picture),
        against_constant (paired, as `stats.against_constant`), as_run (how the encoder is run), not_run (why
        it is not).
    """
    table = results.table(METRICS, CELL).merge(_inner(history).reset_index(), on=CELL)
    beside = [stats.against_constant(part.graded(), part.draws, part.seed).loc["accuracy"]
              for _, part in results.each(*CELL)]
    specs = study.profile.systems.heads.encoders
    as_run = {label(study, spec): described(study, spec) for spec in specs}
    table = table.assign(
        chosen=np.where(table.index == table["inner_qwk"].idxmax(), "yes", ""),
        best_constant=[one.constant for one in beside], against_constant=[one.against for one in beside],
        as_run=table["encoder"].map(as_run), not_run="",
    )
    absent = [{"encoder": spec.name, "as_run": described(study, spec), "not_run": spec.reason}
              for spec in specs if spec.reason]
    return pd.concat([table, pd.DataFrame(absent)], ignore_index=True)


def _inner(history):
    # Of each combination: seeds, epoch and inner_qwk at the epochs that the inner part likes best.
    inner = history[history["part"] == "inner"].fillna({"qwk": -1})  # undefined where all have one grade
    ranked = inner.sort_values("qwk", ascending=False, kind="stable")
    best = ranked.drop_duplicates([*CELL, "seed"]).sort_index().groupby(CELL, sort=False)
    return best.agg(seeds=("seed", "size"), epoch=("epoch", "first"), inner_qwk=("qwk", "mean"))


def differences(results):
    """Linear minus non-linear head on the same pictures, for each encoder and loss; paired 95 % intervals.

    Returns
    -------
    DataFrame
        first and second (the heads), encoder, target, n, then the difference of accuracy, qwk and macro_f1
        (ratios), each with _low and _high from a group bootstrap; simultaneous (_low, _high), the interval of
        the accuracy by which all rows hold at once (Bonferroni); better, the head on whose side of 0 the
        row's own interval lies.
    """
    heads, by = replace(results, frame=results.frame.assign(arm=results.frame["head"])), ("encoder", "target")
    gaps = heads.gaps([HEADS], METRICS, by)
    if gaps.empty:
        return gaps
    at_once = heads.gaps([HEADS], ["accuracy"], by, level=1 - 0.05 / len(gaps))
    other = np.where(gaps["accuracy_high"] < 0, HEADS[1], "neither")
    return gaps.assign(
        simultaneous_low=at_once["accuracy_low"], simultaneous_high=at_once["accuracy_high"],
        better=np.where(gaps["accuracy_low"] > 0, HEADS[0], other),
    )


def linear_better(table):
    """The answer to "linear projection heads align better than non-linear ones", by the paper's accuracy.

    *Replicated* when the 95 % intervals of all differences lie above 0, *not replicated* when any lies
    below, else *inconclusive*. Ours is the smallest difference, in points. The intervals of the rule are not
    corrected for their number; the reason says what is left of them when they are.

    Parameters
    ----------
    table : DataFrame
        From `differences`.
    """
    if table.empty:
        return not_run("this profile runs none of the encoders")
    above, below = ((table["better"] == head).sum() for head in HEADS)
    sure_above, sure_below = (table["simultaneous_low"] > 0).sum(), (table["simultaneous_high"] < 0).sum()
    verdict = decided(above == len(table), below)
    reason = (f"of {len(table)} paired differences (encoder x loss) {above} lie clearly above 0 and {below} "
              f"clearly below; {sure_above} and {sure_below} after correction for their number; ours is the "
              "smallest")
    least = table.loc[table["accuracy"].idxmin(), ["accuracy", "accuracy_low", "accuracy_high"]]
    return Answer(*(100 * float(value) for value in least), "points", verdict, reason)


def answers(results, history):
    """What LumbarCLIP's rows of the scorecard take: accuracy and macro-F1, and the claim about the heads.

    The numbers, in per cent, are means over the seeds of the combination that the inner part prefers: no
    picture of the unseen split is asked which.
    """
    claim, names = linear_better(differences(results)), {"accuracy": "accuracy", "macro_f1": "f1"}
    numbers = dict.fromkeys(names, Ours(math.nan, note=claim.reason))
    if len(history):
        encoder, head, target = _inner(history)["inner_qwk"].idxmax()
        note = f"{OTHER_DATA}; {encoder}, {head} head, {target} loss, chosen on the inner part"
        drawn, each = results.of(encoder=encoder, head=head, target=target).averaged(names)
        numbers = {name: over_runs(100 * each[name], note, stats.interval(100 * drawn[name][1:]))
                   for name in names}
    found = {(SYSTEM, "abstract", "best", names[name]): value for name, value in numbers.items()}
    return {**found, (SYSTEM, "abstract", "linear projection heads align better than non-linear ones"): claim}
