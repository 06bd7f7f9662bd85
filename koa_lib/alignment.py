"""How well projection heads align pictures and sentences: the grid of encoders, heads and losses, and what decides the claim about it."""

import math

import numpy as np
import pandas as pd

from koa_lib import stats, texts
from koa_lib.claims import Answer, not_run
from koa_lib.heads import HEADS, LOSSES
from koa_lib.losses import chance_loss
from koa_lib.metrics import best_constant
from koa_lib.predictions import joined_mean
from koa_lib.protocols import START
from koa_lib.published import read as read_published
from koa_lib.scorecard import Ours
from koa_lib.style import INK, PLAIN_COLOURS, canvas, message, styled

SYSTEM = "LumbarCLIP"
SHOWN = ("accuracy", "macro_f1", "qwk")
OTHER_DATA = "knee radiographs, not the paper's axial lumbar MRI with reports: other data, so the two numbers do not compare"
_LOOK = dict(zip(HEADS, (("o", "-", -0.13), ("s", "--", 0.13)), strict=True))  # mark, line and place of a head in the charts


def as_run(study):
    """How each encoder was run.

    Returns
    -------
    DataFrame
        encoder, as_run, status ('run', or 'not run, because ...').
    """
    settings = study.profile.systems.heads
    rows = [(spec.name, _described(study, spec), f"not run, because {spec.reason}" if spec.reason else "run") for spec in settings.encoders]
    return pd.DataFrame([*rows, ("text", texts.described(study, settings.text), "run")], columns=["encoder", "as_run", "status"])


def _described(study, spec):
    model = study.profile.model
    clip = f"{model.name}'s image tower, {spec.image_size} px"
    width = "" if spec.width == 1.0 else f", width x {spec.width:g}"
    network = f"{spec.architecture}, {spec.image_size} px{width}"
    return {"start": f"stand-in for {spec.name}: {clip}, {START[model.start]}", "trained": f"stand-in for {spec.name}: {clip}, trained by our protocol",
            "random": f"stand-in for {spec.name}: {network}, random weights, untrained",
            "timm": f"{network}, {'random' if study.dry else 'published'} weights"}[spec.source]


def grid(study, trained):
    """Each encoder, head and loss on the reported split: mean probabilities of its seeds, 95 % group-bootstrap intervals.

    Returns
    -------
    DataFrame
        encoder, head, loss, seeds, epoch (chosen on the inner part, first seed), inner_qwk (mean over seeds), n, then accuracy, macro_f1, qwk
        (ratios), each with _low and _high.
    """
    rows = []
    for (encoder, head, loss), runs in _cells(trained).items():
        graded = _mean(runs)
        summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
        values = {f"{name}{end}": summary[column][name] for name in SHOWN for end, column in (("", "value"), ("_low", "ci_low"), ("_high", "ci_high"))}
        rows.append({"encoder": encoder, "head": head, "loss": loss, "seeds": len(runs), "epoch": int(runs[0].history["epoch"][runs[0].history["qwk"].idxmax()]),
                     "inner_qwk": np.mean([run.best for run in runs]), "n": len(graded), **values})
    return pd.DataFrame(rows)


def differences(study, trained):
    """Linear minus non-linear head on the same pictures, for each encoder and loss, with paired 95 % group-bootstrap intervals.

    Returns
    -------
    DataFrame
        encoder, loss, n, then accuracy, macro_f1, qwk (differences of ratios), each with _low and _high.
    """
    cells, rows = _cells(trained), []
    for encoder, loss in dict.fromkeys((encoder, loss) for encoder, _, loss in cells):
        both = stats.paired(*(_mean(cells[encoder, head, loss]) for head in HEADS))
        gaps = {name: stats.difference(both, name, study.profile.draws, study.seed) for name in SHOWN}
        values = {f"{name}{end}": gap[column] for name, gap in gaps.items() for end, column in (("", "difference"), ("_low", "ci_low"), ("_high", "ci_high"))}
        rows.append({"encoder": encoder, "loss": loss, "n": len(both), **values})
    return pd.DataFrame(rows)


def linear_better(table):
    """The answer to "linear projection heads align better than non-linear ones", by accuracy as the paper measures it.

    *Replicated* when the intervals of all differences lie above 0, *not replicated* when any lies below, else *inconclusive*. Ours is the smallest
    difference, in points. Intervals are not corrected for their number.

    Parameters
    ----------
    table : DataFrame
        From `differences`.
    """
    if table.empty:
        return not_run("this profile runs none of the encoders")
    points = 100 * table[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy(float)
    above, below = (points[:, 1] > 0).sum(), (points[:, 2] < 0).sum()
    verdict = "not replicated" if below else "replicated" if above == len(points) else "inconclusive"
    reason = f"of {len(points)} paired differences (encoder x loss) {above} lie clearly above 0 and {below} clearly below; ours is the smallest"
    return Answer(*(float(value) for value in points[points[:, 0].argmin()]), "points", verdict, reason)


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
    tables = [stats.bootstrap_summary(run.graded, study.profile.draws, study.seed).set_index("metric") for run in runs]
    said = f"{runs[0].encoder.name}, {runs[0].head} head, {runs[0].loss} loss, chosen on the inner part"
    found = {}
    for key, name in keys.items():
        low, high = (100 * tables[0][column][name] for column in ("ci_low", "ci_high"))
        note = f"{OTHER_DATA}; {said}; group bootstrap of the first run: {low:.1f} to {high:.1f}"
        found[key] = Ours(*stats.run_interval([100 * table["value"][name] for table in tables]), note)
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
    rows = [(row.metric, row.value, *found[row.system, row.item, row.row, row.metric]) for row in table[table["system"] == SYSTEM].itertuples()]
    return pd.DataFrame(rows, columns=["metric", "published", "ours", "ci_low", "ci_high", "note"])


def curves(trained):
    """Each loss over the grid: where the training ends, what it cannot undercut there, and what equal scores cost.

    Returns
    -------
    DataFrame
        loss, trainings, batch, lowest (smallest mean loss of a last epoch), floor (of that epoch's batches), uniform (every text equally likely), nats.
    """
    rows = []
    for loss in LOSSES:
        lasts = [run.history.iloc[-1] for run in trained if run.loss == loss]
        if lasts:
            last = min(lasts, key=lambda row: row["loss"])
            rows.append((loss, len(lasts), int(last["batch"]), last["loss"], last["floor"], chance_loss(last["batch"])))
    return pd.DataFrame(rows, columns=["loss", "trainings", "batch", "lowest", "floor", "uniform"])


def _cells(trained):
    cells = {}
    for run in trained:
        cells.setdefault((run.encoder.name, run.head, run.loss), []).append(run)
    return cells


def _mean(runs):
    return joined_mean([run.graded for run in runs])


@styled
def grid_chart(table, grades):
    """Accuracy of each head and loss, one panel per encoder; the dashed line is one grade for every picture.

    Parameters
    ----------
    table : DataFrame
        From `grid`.
    grades : int array (n,)
        Reference grades of the reported split.
    """
    if table.empty:
        return message("This profile runs none of the encoders.")
    figure, axes = canvas(2.9, ncols=table["encoder"].nunique(), sharex=True, sharey=True, squeeze=False)
    constant = best_constant(grades)["accuracy"]
    for axis, (encoder, rows) in zip(axes[0], table.groupby("encoder", sort=False), strict=True):
        for colour, (head, found) in zip(PLAIN_COLOURS, rows.groupby("head", sort=False), strict=False):
            _intervals(axis, found, "accuracy", colour, _LOOK[head], f"{head} head")
        axis.axvline(constant, color=INK, ls="--", lw=1, label="one grade for every picture")
        axis.set(title=encoder, xlabel="accuracy (95 % interval)")
    _finish(figure, axes[0, 0])
    return figure


@styled
def difference_chart(table):
    """Linear minus non-linear head: accuracy in points with paired intervals, one panel per encoder.

    Parameters
    ----------
    table : DataFrame
        From `differences`.
    """
    if table.empty:
        return message("This profile runs none of the encoders.")
    figure, axes = canvas(2.6, ncols=table["encoder"].nunique(), sharex=True, sharey=True, squeeze=False)
    for axis, (encoder, rows) in zip(axes[0], table.groupby("encoder", sort=False), strict=True):
        _intervals(axis, rows, "accuracy", PLAIN_COLOURS[0], ("o", "-", 0), "linear minus non-linear", 100)
        axis.axvline(0, color=INK, lw=1)
        axis.set(title=encoder, xlabel="points of accuracy")
    _finish(figure, axes[0, 0])
    return figure


@styled
def loss_chart(trained):
    """Training loss of each arm (first seed) over the epochs, one panel per loss, with the floor of its batches as a dotted line.

    Parameters
    ----------
    trained : list of Trained
    """
    if not trained:
        return message("This profile runs none of the encoders.")
    figure, axes = canvas(3.3, ncols=len(LOSSES), sharey=True)
    names = list(dict.fromkeys(run.encoder.name for run in trained))
    for axis, loss in zip(axes, LOSSES, strict=True):
        runs = [run for run in trained if run.loss == loss and run.seed == trained[0].seed]
        mark = "o" if len(runs[0].history) < 3 else None
        for run in runs:
            colour = PLAIN_COLOURS[names.index(run.encoder.name)]
            axis.plot(run.history["epoch"], run.history["loss"], _LOOK[run.head][1], color=colour, marker=mark, markersize=3, lw=1.3, label=f"{run.encoder.name}, {run.head}")
        for run in runs:
            axis.plot(run.history["epoch"], run.history["floor"], ":", color=INK, lw=1, marker=mark, markersize=2, label="floor: lowest possible")
        axis.axhline(chance_loss(trained[0].history["batch"][0]), color=INK, ls="-.", lw=0.8, label="every text equally likely")
        axis.set(title=loss, xlabel="epoch")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("loss (nats)")
    _finish(figure, axes[0])
    return figure


def _intervals(axis, rows, metric, colour, look, label, factor=1):
    mark, _, aside = look
    places = [LOSSES.index(loss) + aside for loss in rows["loss"]]
    middle, low, high = (factor * rows[f"{metric}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    axis.errorbar(middle, places, xerr=np.nan_to_num(np.maximum([middle - low, high - middle], 0)), fmt=mark, color=colour, capsize=3, markersize=5, label=label)
    axis.set_yticks(range(len(LOSSES)), LOSSES)
    axis.set_ylim(len(LOSSES) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.25)


def _finish(figure, axis):
    keys = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=3)

