"""How well projection heads align pictures and sentences: the grid of encoders, heads and losses, and what decides the claim about it."""

import math

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.heads import HEADS
from koa_lib.losses import chance_loss
from koa_lib.metrics import best_constant
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.scorecard import Ours, over_runs
from koa_lib.predictions import joined_mean
from koa_lib.protocols import START

SYSTEM = "LumbarCLIP"
SHOWN = ("accuracy", "macro_f1", "qwk")
OTHER_DATA = "knee radiographs, not the paper's axial lumbar MRI with reports: other data, so the two numbers do not compare"
LEVEL = 0.95
_BOUNDS = (("", 0), ("_low", 1), ("_high", 2))
OVERVIEW = ["encoder", "head", "loss", "as_run", "not_run", "chosen", "seeds", "epoch", "inner_qwk", "n",
            *(f"{name}{end}" for name in SHOWN for end, _ in _BOUNDS), "best_constant", "above_constant"]
STANDS_IN = {"random": " (stand-in, untrained)", "start": " (stand-in)", "trained": " (stand-in)"}


def _described(study, spec):
    model = study.profile.model
    clip = f"{model.name}'s image tower, {spec.image_size} px"
    width = "" if spec.width == 1.0 else f", width x {spec.width:g}"
    network = f"{spec.architecture}, {spec.image_size} px{width}"
    return {"start": f"stand-in for {spec.name}: {clip}, {START[model.start]}", "trained": f"stand-in for {spec.name}: {clip}, trained by our protocol",
            "random": f"stand-in for {spec.name}: {network}, random weights, untrained",
            "timm": f"{network}, {'random' if study.dry else 'published'} weights"}[spec.source]


def shown(study, spec):
    """An encoder's name wherever a number of it stands, e.g. 'Swin (stand-in, untrained)'."""
    return spec.name + STANDS_IN.get(spec.source, " (random weights)" if study.dry else "")


def overview(study, trained):
    """What was run: each encoder, head and loss on the reported split; mean probabilities of its seeds.

    Returns
    -------
    DataFrame
        encoder, head, loss, as_run (how the encoder is run), not_run (why it is not), chosen ('yes' for what
        the inner part prefers), seeds, epoch (chosen on the inner part, first seed), inner_qwk (mean over
        seeds), n, accuracy, macro_f1, qwk (ratios), each with _low and _high from a group bootstrap;
        best_constant (accuracy of one grade for every picture), above_constant (whether the whole interval is
        above it).
    """
    best = chosen(trained)[0] if trained else None
    rows = [{**_row(study, runs), "chosen": "yes" if runs[0] is best else ""}
            for runs in _cells(trained).values()]
    rows += [{"encoder": spec.name, "as_run": _described(study, spec), "not_run": spec.reason}
             for spec in study.profile.systems.heads.encoders if spec.reason]
    return pd.DataFrame(rows, columns=OVERVIEW)


def _row(study, runs):
    first, graded = runs[0], _mean(runs)
    measured, constant = _measured(study, graded), best_constant(graded["kl_grade"])["accuracy"]
    values = {f"{name}{end}": found[place] for name, found in measured.items() for end, place in _BOUNDS}
    return {"encoder": shown(study, first.encoder), "head": first.head, "loss": first.loss,
            "as_run": _described(study, first.encoder), "not_run": "", "seeds": len(runs),
            "epoch": int(first.history["epoch"][first.history["qwk"].idxmax()]),
            "inner_qwk": np.mean([run.best for run in runs]), "n": len(graded), **values,
            "best_constant": constant, "above_constant": "yes" if values["accuracy_low"] > constant else "no"}


def differences(study, trained):
    """Linear minus non-linear head on the same pictures, for each encoder and loss, with paired 95 % group-bootstrap intervals.

    Returns
    -------
    DataFrame
        encoder, loss, n, then gap_accuracy, simultaneous, gap_qwk, gap_macro_f1 (differences of ratios), with
        _low and _high; 'simultaneous' is the interval of the accuracy by which all of them hold at once
        (Bonferroni); better, the head on whose side the accuracy's interval lies.
    """
    cells = _cells(trained)
    pairs = list(dict.fromkeys((encoder, loss) for encoder, _, loss in cells))
    return pd.DataFrame([_difference(study, [cells[encoder, head, loss] for head in HEADS], len(pairs)) for encoder, loss in pairs])


def _difference(study, runs, number):
    both = stats.paired(*map(_mean, runs))
    asked = {"gap_accuracy": ("accuracy", LEVEL), "simultaneous": ("accuracy", 1 - (1 - LEVEL) / number), "gap_qwk": ("qwk", LEVEL), "gap_macro_f1": ("macro_f1", LEVEL)}
    row = {"encoder": shown(study, runs[0][0].encoder), "loss": runs[0][0].loss, "n": len(both)}
    for name, (metric, level) in asked.items():
        gap = stats.difference(both, metric, study.profile.draws, study.seed, level)
        row |= {name: gap["difference"]} if name != "simultaneous" else {}
        row |= {f"{name}_low": gap["ci_low"], f"{name}_high": gap["ci_high"]}
    linear, other = row["gap_accuracy_low"] > 0, row["gap_accuracy_high"] < 0
    return row | {"better": HEADS[0] if linear else HEADS[1] if other else "neither"}


def linear_better(table):
    """The answer to "linear projection heads align better than non-linear ones", by accuracy as the paper measures it.

    *Replicated* when the 95 % intervals of all differences lie above 0, *not replicated* when any lies below, else *inconclusive*. Ours is the smallest
    difference, in points. The intervals of the rule are not corrected for their number; the reason says what is left of them when they are.

    Parameters
    ----------
    table : DataFrame
        From `differences`.
    """
    if table.empty:
        return not_run("this profile runs none of the encoders")
    points = 100 * table[["gap_accuracy", "gap_accuracy_low", "gap_accuracy_high"]].to_numpy(float)
    (above, below), (sure_above, sure_below) = (clear(table, name) for name in ("gap_accuracy", "simultaneous"))
    verdict = "not replicated" if below else "replicated" if above == len(points) else "inconclusive"
    reason = (f"of {len(points)} paired differences (encoder x loss) {above} lie clearly above 0 and {below} clearly below; "
              f"{sure_above} and {sure_below} after correction for their number; ours is the smallest")
    return Answer(*(float(value) for value in points[points[:, 0].argmin()]), "points", verdict, reason)


def clear(table, name):
    """How many intervals of a column of `differences` lie above 0, and how many below."""
    return int((table[f"{name}_low"] > 0).sum()), int((table[f"{name}_high"] < 0).sum())


def chosen(trained):
    """The trainings, one per seed, of the encoder, head and loss with the highest mean quadratic kappa on the inner part; no test picture is asked."""
    return max(_cells(trained).values(), key=lambda runs: np.mean([run.best for run in runs]))


def answers(study, trained):
    """What the scorecard takes: accuracy and macro-F1 of the `chosen` combination in per cent, and the claim about the heads."""
    keys = {(SYSTEM, "abstract", "best", "accuracy"): "accuracy", (SYSTEM, "abstract", "best", "f1"): "macro_f1"}
    claim = (SYSTEM, "abstract", "linear projection heads align better than non-linear ones")
    if not trained:
        missing = linear_better(pd.DataFrame())
        return {key: Ours(math.nan, note=missing.reason) for key in keys} | {claim: missing}
    runs = chosen(trained)
    measured = [_measured(study, run.graded) for run in runs]
    said = f"{shown(study, runs[0].encoder)}, {runs[0].head} head, {runs[0].loss} loss, chosen on the inner part"
    found = {}
    for key, name in keys.items():
        values = [100 * each[name][0] for each in measured]
        boot = tuple(100 * bound for bound in measured[0][name][1:])
        found[key] = over_runs(values, f"{OTHER_DATA}; {said}", boot)
    return found | {claim: linear_better(differences(study, trained))}


def losses(study, trained):
    """The training loss over the epochs, its floor on the same batches, and what equal scores cost.

    Returns
    -------
    DataFrame
        target (what kind of loss), encoder, head, epoch, batch (pictures), loss, floor, inner_qwk, uniform
        (every text equally likely); losses in nats, the first seed of each training.
    """
    frames = [run.history.rename(columns={"qwk": "inner_qwk"}).assign(
        target=f"{run.loss} loss", encoder=shown(study, run.encoder), head=run.head)
        for run in trained if run.seed == study.seed]
    columns = ["target", "encoder", "head", "epoch", "batch", "loss", "floor", "inner_qwk"]
    found = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return found.assign(uniform=found["batch"].map(chance_loss))


def _measured(study, graded):
    # (value, low, high) of each metric of SHOWN.
    summary = stats.confusion_summary(graded, study.profile.draws, study.seed).set_index("metric")
    return {name: tuple(summary.loc[name]) for name in SHOWN}


def _cells(trained):
    cells = {}
    for run in trained:
        cells.setdefault((run.encoder.name, run.head, run.loss), []).append(run)
    return cells


def _mean(runs):
    return joined_mean([run.graded for run in runs])
