"""How well projection heads align pictures and sentences: the grid of encoders, heads and losses, and what decides the claim about it."""

import math

import numpy as np
import pandas as pd

from koa_lib import stats, texts
from koa_lib.heads import HEADS, LOSSES
from koa_lib.losses import chance_loss
from koa_lib.metrics import confusion, from_confusion
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.published import read as read_published
from koa_lib.paper.scorecard import Ours
from koa_lib.predictions import arrays, joined_mean
from koa_lib.protocols import START
from koa_lib.report import exhibits

SYSTEM = "LumbarCLIP"
SHOWN = ("accuracy", "macro_f1", "qwk")
OTHER_DATA = "knee radiographs, not the paper's axial lumbar MRI with reports: other data, so the two numbers do not compare"
LEVEL = 0.95
_BOUNDS = (("", 0), ("_low", 1), ("_high", 2))
STANDS_IN = {"random": " (stand-in, untrained)", "start": " (stand-in)", "trained": " (stand-in)"}


def as_run(study):
    """How each encoder was run.

    Returns
    -------
    DataFrame
        encoder, as_run, status ('run', or 'not run, because ...').
    """
    settings = study.profile.systems.heads
    rows = [(spec.name, _described(study, spec), f"not run, because {spec.reason}" if spec.reason else "run") for spec in settings.encoders]
    return pd.DataFrame([*rows, ("Text", texts.described(study, settings.text), "run")], columns=["encoder", "as_run", "status"])


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


def show(study, name, made, caption, **look):
    """Show a table or figure; where the profile runs no encoder (None), its place says why."""
    if made is None:
        return exhibits.not_available(study, name, caption, none_run(study))
    return (exhibits.show_table if name.startswith("table") else exhibits.show_figure)(study, name, made, caption, **look)


def none_run(study):
    """Why a profile runs no encoder."""
    reasons = [f"{spec.name} ({spec.reason})" for spec in study.profile.systems.heads.encoders if spec.reason]
    return f"not run, because this profile runs none of the encoders: {', '.join(reasons)}"


def grid(study, trained):
    """Each encoder, head and loss on the reported split: mean probabilities of its seeds, 95 % group-bootstrap intervals.

    Returns
    -------
    DataFrame
        encoder, head, loss, seeds, epoch (chosen on the inner part, first seed), inner_qwk (mean over seeds), n, then accuracy, macro_f1, qwk
        (ratios), each with _low and _high.
    """
    rows = []
    for (_, head, loss), runs in _cells(trained).items():
        graded = _mean(runs)
        values = {f"{name}{end}": found[place] for name, found in _measured(study, graded).items() for end, place in _BOUNDS}
        rows.append({"encoder": shown(study, runs[0].encoder), "head": head, "loss": loss, "seeds": len(runs), "epoch": int(runs[0].history["epoch"][runs[0].history["qwk"].idxmax()]),
                     "inner_qwk": np.mean([run.best for run in runs]), "n": len(graded), **values})
    return pd.DataFrame(rows)


def differences(study, trained):
    """Linear minus non-linear head on the same pictures, for each encoder and loss, with paired 95 % group-bootstrap intervals.

    Returns
    -------
    DataFrame
        encoder, loss, n, then gap_accuracy, simultaneous, gap_qwk, gap_macro_f1 (differences of ratios), with _low and _high; 'simultaneous' is the
        interval of the accuracy by which all of them hold at once (Bonferroni).
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
    return row


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
        low, high = (100 * bound for bound in measured[0][name][1:])
        note = f"{OTHER_DATA}; {said}; group bootstrap of the first run: {low:.1f} to {high:.1f}"
        found[key] = Ours(*stats.run_interval(values), note)
    return found | {claim: linear_better(differences(study, trained))}


def beside_published(study, found):
    """LumbarCLIP's published model rows beside ours.

    Parameters
    ----------
    found : dict
        From `answers`.

    Returns
    -------
    DataFrame
        metric, published, ours, ci_low, ci_high (per cent), note.
    """
    table = read_published(study.published, "other_systems")
    ours = {key: value for key, value in found.items() if isinstance(value, Ours)}
    said = {key: value._replace(note=value.note.removeprefix(f"{OTHER_DATA}; ")) for key, value in ours.items()}
    rows = [(row.metric, row.value, *said[row.system, row.item, row.row, row.metric]) for row in table[table["system"] == SYSTEM].itertuples()]
    return pd.DataFrame(rows, columns=["metric", "published", "ours", "ci_low", "ci_high", "note"])


def curves(study, trained):
    """Each loss over the grid: where the training ends, what it cannot undercut there, and what equal scores cost.

    Returns
    -------
    DataFrame
        loss, trainings, encoder, head (of the training with the lowest loss), batch, lowest_loss (its mean over the last epoch), loss_floor (of that
        epoch's batches), uniform_loss (every text equally likely), nats.
    """
    rows = []
    for loss in LOSSES:
        runs = [run for run in trained if run.loss == loss]
        if runs:
            best = min(runs, key=lambda run: run.history["loss"].iloc[-1])
            last = best.history.iloc[-1]
            rows.append((loss, len(runs), shown(study, best.encoder), best.head, int(last["batch"]), last["loss"], last["floor"], chance_loss(last["batch"])))
    return pd.DataFrame(rows, columns=["loss", "trainings", "encoder", "head", "batch", "lowest_loss", "loss_floor", "uniform_loss"])


def _measured(study, graded):
    # (value, low, high) of each metric of SHOWN; `stats.bootstrap_summary` would draw the slower AUC too.
    grades, probabilities = arrays(graded)
    predicted = probabilities.argmax(1)
    values = from_confusion(confusion(grades, predicted))
    samples = from_confusion(stats.group_bootstrap(grades, predicted, graded["group_id"], study.profile.draws, study.seed))
    return {name: (float(values[name]), *stats.interval(samples[name])) for name in SHOWN}


def _cells(trained):
    cells = {}
    for run in trained:
        cells.setdefault((run.encoder.name, run.head, run.loss), []).append(run)
    return cells


def _mean(runs):
    return joined_mean([run.graded for run in runs])
