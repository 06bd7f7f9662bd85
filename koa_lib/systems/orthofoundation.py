"""OrthoFoundation (Yu et al. 2026): how many graded patients a frozen tower needs, for towers that were
started in different ways.

A logistic regression on frozen embeddings learns from growing, nested fractions of the training patients and
is held against CLIP that was fine-tuned with all grades. Towers: random, contrastive (the study's start
weights) and self-supervised (DINO).
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from koa_lib import protocols, selfsupervised, stats
from koa_lib.classifiers import LOGISTIC, Classifier
from koa_lib.losses import chance_loss
from koa_lib.settings import Encoder
from koa_lib.systems import encoders
from koa_lib.verdict import MARGINS, Answer, Ours, decided, not_run

SYSTEM = ("OrthoFoundation", "abstract")
RANDOM, CONTRASTIVE, SELF_SUPERVISED, SUPERVISED = "random", "contrastive", "self-supervised", "supervised"
PRETRAINED = ("unlabelled", "steps", "batch", "loss", "loss_floor", "uniform_loss")
COUNTED = ("pictures", "dimensions", "unlabelled", "steps", "batch")
METRICS = ("qwk", "accuracy")
MEANINGS = ("within_margin", "not_below", "as_high")  # of being as good as the supervised result
MARGIN = MARGINS["ratio"]  # of quadratic kappa, that a start which equals the supervised result may lose
HALF = 0.5
CHANCE = "the supervised result itself is not shown to be above chance, so being equal to it means little"


def starts(study):
    """The towers to compare, as `settings.Encoder`s; a reason where the profile has no such weights."""
    chosen, model = study.profile.systems.labels, study.profile.model
    none = (
        "this profile's CLIP starts from random weights: no contrastive weights are there before it is "
        "fine-tuned"
    )
    none *= model.start == "random" and not study.dry
    own = (chosen.architecture, chosen.image_size, 1.0)
    return (
        Encoder(RANDOM, "random", *own, ""),
        Encoder(CONTRASTIVE, "start", "", model.image_size, 1.0, none),
        Encoder(SELF_SUPERVISED, "dino", *own, study.profile.not_run.get("self_supervised", "")),
    )


def arms(experiment, spec):
    """The arms of a start by (fraction, seed): each seed draws its own nested fractions of the patients."""
    study, chosen = experiment.study, experiment.study.profile.systems.labels
    arm, seeds = _arm(experiment, spec), range(study.seed, study.seed + chosen.seeds)
    return {
        (fraction, seed): replace(
            arm, name=f"{arm.name}-{100 * fraction:g}", seed=seed, fraction=fraction, split_seed=seed
        )
        for fraction, seed in product(chosen.fractions, seeds)
    }


def _arm(experiment, spec):
    return encoders.arm(experiment, spec, f"labels-{spec.name}", Classifier(LOGISTIC))


def supervised_arm(experiment):
    """Our protocol's CLIP with all grades; on the official split alone where there is no test split, which
    folds would have seen."""
    study = experiment.study
    tested = "test" in set(experiment.data("training", protocols.our_arm(study)).rows["split"])
    return protocols.our_arm(study) if tested else protocols.official_arm(study)


def towers(experiment):
    """What the starts are, and how far they tell the training pictures apart.

    Returns
    -------
    DataFrame
        start, tower, learned_from, not_run (why it is not), pictures (of the training split), dimensions,
        spread, effective_rank (`selfsupervised.spread`), collapsed; of our own pre-training also unlabelled
        (pictures seen), steps, batch, and from its last epoch loss, loss_floor (entropy of the teacher's
        answers) and uniform_loss (the same answer for all prototypes), in nats.
    """
    study = experiment.study
    rows = [
        {"start": spec.name, "tower": _tower(study, spec), "learned_from": learned_from(study, spec.name),
         "not_run": spec.reason, **({} if spec.reason else _seen(experiment, spec))}
        for spec in starts(study)
    ]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=table.columns.union(PRETRAINED, sort=False))
    return table.astype(dict.fromkeys(COUNTED, "Int64"))


def _tower(study, spec):
    chosen, clip = study.profile.systems.labels, f"image tower of {study.profile.model.name}"
    return f"{clip if spec.source == 'start' else chosen.architecture or clip}, {spec.image_size} px"


def _seen(experiment, spec):
    arm = _arm(experiment, spec)
    values = experiment.source(arm, experiment.folds(arm)[0].reported["train"]).all()
    found = selfsupervised.spread(values)
    row = {"pictures": len(values), "dimensions": values.shape[1], **found}
    row["collapsed"] = selfsupervised.collapsed(found)
    if spec.source != "dino":
        return row
    last = selfsupervised.history(experiment).iloc[-1]
    uniform = chance_loss(experiment.study.profile.systems.labels.prototypes)
    losses = {"loss": last["loss"], "loss_floor": last["teacher_entropy"], "uniform_loss": uniform}
    return {**row, **selfsupervised.training(experiment), **losses}


def learned_from(study, start):
    """What a start has learnt from. On phantoms the sentences name findings, from which a grade follows: such
    a start knows more than pictures alone."""
    clip, published = study.profile.model.start, study.profile.systems.labels.published
    dino = "the training split's pictures, without grades (DINO)"
    contrastive = {
        "pretrain": "other phantoms with sentences about their findings (stand-in for OpenAI's weights)",
        "openai": "OpenAI's pairs of pictures and texts",
    }.get(clip, protocols.START[clip])
    return {
        RANDOM: "nothing: random weights",
        CONTRASTIVE: contrastive,
        SELF_SUPERVISED: f"timm's published weights, then {dino}" if published else dino,
    }[start]


def curve(experiment):
    """The result for each start and fraction, held against the supervised result and against the random start
    on the same pictures.

    A value is the mean over the seeds (over the folds, for the supervised result). Its interval resamples the
    patients of the reported pictures, the same for all seeds, folds and starts, and holds neither the draw of
    the labels, which `sd_over_draws` shows, nor the training of the towers.

    Returns
    -------
    DataFrame
        cohort, start, fraction, patients, pictures (learned from; means over seeds or folds, rounded), n,
        qwk, qwk_low, qwk_high, accuracy, sd_over_draws; qwk_seed_<seed> (each draw of labels);
        against_supervised and against_random (differences of qwk, the latter at the same fraction), each with
        _low and _high. The supervised rows have the start 'supervised' and fraction 1.
    """
    lines = {(SUPERVISED, 1.0): [supervised_arm(experiment)]}
    for spec in starts(experiment.study):
        if not spec.reason:
            for (fraction, _), arm in arms(experiment, spec).items():
                lines.setdefault((spec.name, fraction), []).append(arm)
    found = {}
    for line, own in lines.items():
        learned = _learned(experiment, own)
        for where, part in experiment.confirmatory(*own).each("split"):
            found.setdefault(where["split"], {})[line] = (part, learned)
    table = pd.concat([rows(cohort, lines) for cohort, lines in found.items()], ignore_index=True)
    return table.astype({"patients": "Int64", "pictures": "Int64"})


def _learned(experiment, arms):
    # What is fitted and chosen on: means over the folds of some arms.
    folds = [fold for arm in arms for fold in experiment.folds(arm)]
    parts = [[part for part in (fold.fit, fold.select) if part] for fold in folds]
    patients = [sum(part.rows["group_id"].nunique() for part in both) for both in parts]
    pictures = [sum(map(len, both)) for both in parts]
    return {"patients": round(np.mean(patients)), "pictures": round(np.mean(pictures))}


def rows(cohort, lines):
    """The rows of `curve` of one cohort.

    Parameters
    ----------
    lines : dict of (str, float) to (Results, dict)
        By start and fraction: the trainings' results, and patients and pictures learned from; `SUPERVISED` at
        fraction 1.
    """
    first = lines[SUPERVISED, 1.0][0].graded()
    over = {key: "fold" if key[0] == SUPERVISED else "seed" for key in lines}
    made = {key: part.averaged(METRICS, over[key], first) for key, (part, _) in lines.items()}
    table = []
    for (start, fraction), (drawn, each) in made.items():
        part, learned = lines[start, fraction]
        row = {"cohort": cohort, "start": start, "fraction": fraction, **learned, "n": len(first)}
        row |= stats.with_interval("qwk", drawn["qwk"]) | {"accuracy": drawn["accuracy"][0]}
        if start != SUPERVISED:
            row["sd_over_draws"] = pd.Series(each["qwk"]).std()  # NaN for a single one
            seeds = part.frame["seed"].unique()
            row |= {f"qwk_seed_{seed}": value for seed, value in zip(seeds, each["qwk"], strict=True)}
        for other in [(SUPERVISED, 1.0), (RANDOM, fraction)]:
            if start not in (SUPERVISED, other[0]) and other in made:
                gap = drawn["qwk"] - made[other][0]["qwk"]
                row |= stats.with_interval(f"against_{other[0]}", gap)
        table.append(row)
    last = [f"against_{one}{bound}" for one in (SUPERVISED, RANDOM) for bound in ("", "_low", "_high")]
    table = pd.DataFrame(table)
    return table.reindex(columns=[*table.columns.difference(last, sort=False), *last])


def since(table):
    """From which fraction on each start equals the supervised result: there and with every larger fraction.

    Returns
    -------
    DataFrame
        cohort, start, and fractions: within_margin (the interval of the difference stays above minus
        `MARGIN`: a larger loss can be excluded), not_below (that interval reaches 0: a loss can't be shown),
        as_high (the value itself is as high); NaN where not even all labels suffice.
    """
    rows = []
    for (cohort, start), line in table[table["start"] != SUPERVISED].groupby(["cohort", "start"], sort=False):
        value, low, high = (line[f"against_supervised{bound}"] for bound in ("", "_low", "_high"))
        holds = dict(zip(MEANINGS, (low > -MARGIN, high >= 0, value >= 0), strict=True))
        found = {name: _from(line, one) for name, one in holds.items()}
        rows.append({"cohort": cohort, "start": start, **found})
    return pd.DataFrame(rows)


def _from(line, holds):
    # One lucky fraction is not enough: what holds must hold with all larger ones too.
    falling = holds[line["fraction"].sort_values(ascending=False).index]
    return float(line.loc[falling.index[falling.cummin()], "fraction"].min())


def fractions(table):
    """The table of `curve` with what holds from a fraction on.

    Returns
    -------
    DataFrame
        As from `curve`, fraction as label_percent; within_margin, not_below, as_high ('yes' where it holds
        there and with all larger fractions, 'no', or empty for the supervised rows), and supervised (the
        quadratic kappa of the cohort's supervised row).
    """
    first = table[["cohort", "start"]].merge(since(table), how="left")
    full = table[table["start"] == SUPERVISED].set_index("cohort")["qwk"]
    held = {name: np.where(table["fraction"] >= first[name].to_numpy(), "yes", "no") for name in MEANINGS}
    held = {name: np.where(table["start"] == SUPERVISED, "", values) for name, values in held.items()}
    percent = table.assign(fraction=100 * table["fraction"]).rename(columns={"fraction": "label_percent"})
    return percent.assign(**held, supervised=table["cohort"].map(full))


def answers(study, table):
    """The study's answers to the paper's rows, from the unseen pictures of the training cohort.

    The claim is decided by one comparison, with the largest fraction that is at most half: *replicated* when
    the interval of the difference stays above minus `MARGIN`, *not replicated* when it lies below 0, else, or
    where the supervised result is not above chance, *inconclusive*. The number is the fraction from which on
    that interval stays above minus `MARGIN`, infinite where no fraction does; it stands beside the claim too.
    """
    number = (*SYSTEM, "label efficiency", "label_fraction")
    claim = (*SYSTEM, "half of the labels match the supervised full-label result")
    absent = study.profile.not_run.get("self_supervised")
    if absent:
        return {number: absent, claim: not_run(absent)}
    here = table[table["cohort"] != "external"]
    inside, full = here[here["start"] == SELF_SUPERVISED], here[here["start"] == SUPERVISED]
    half = inside[inside["fraction"] <= HALF].sort_values("fraction").iloc[-1]
    reached = since(inside).iloc[0].within_margin
    low, high = half.against_supervised_low, half.against_supervised_high
    verdict = decided(low > -MARGIN, high < 0)
    said = (
        f"with {half.fraction:.0%} of the labels quadratic kappa differs from that of CLIP fine-tuned "
        f"with all by {half.against_supervised:+.3f} ({low:+.3f} to {high:+.3f})"
    )
    note = (
        "smallest share of the labels from which on the self-supervised start is shown to lose at most "
        f"{MARGIN:g} of quadratic kappa to CLIP fine-tuned with all labels: "
        f"{'none' if np.isnan(reached) else f'{reached:.0%}'}"
    )
    if (full["qwk_low"] <= 0).any():
        verdict, said, note = "inconclusive", f"{said}; {CHANCE}", f"{note}; {CHANCE}"
    fraction = np.inf if np.isnan(reached) else reached
    return {
        number: Ours(fraction, note=note),
        claim: Answer(fraction, np.nan, np.nan, "ratio", verdict, said),
    }
