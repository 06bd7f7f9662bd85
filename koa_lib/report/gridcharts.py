"""Charts of the grid of encoders, projection heads and losses."""

import numpy as np

from koa_lib.alignment import shown
from koa_lib.heads import HEADS, LOSSES
from koa_lib.losses import chance_loss
from koa_lib.metrics import best_constant
from koa_lib.report.style import INK, PLAIN_COLOURS, narrow, styled

_LOOK = dict(zip(HEADS, (("o", "-", -0.15), ("s", "--", 0.15)), strict=True))  # mark, line and place of a head


@styled
def grid_chart(table, grades):
    """Accuracy of each head and loss, one panel per encoder; the dashed line is one grade for every picture.

    Parameters
    ----------
    table : DataFrame
        From `alignment.grid`.
    grades : int array (n,)
        Reference grades of the reported split.
    """
    figure, axes = _panels(table)
    constant = best_constant(grades)["accuracy"]
    for axis, (_, rows) in zip(axes, table.groupby("encoder", sort=False), strict=True):
        for colour, (head, found) in zip(PLAIN_COLOURS, rows.groupby("head", sort=False), strict=False):
            _intervals(axis, found, "accuracy", colour, _LOOK[head], f"{head} head")
        axis.axvline(constant, color=INK, ls="--", lw=1, label="one grade for every picture")
    axes[-1].set_xlabel("accuracy, with 95 % interval")
    _finish(figure, axes[0])
    return figure


@styled
def difference_chart(table):
    """Linear minus non-linear head: accuracy in points with paired intervals, one panel per encoder; thin lines are the intervals that hold all at once.

    Parameters
    ----------
    table : DataFrame
        From `alignment.differences`.
    """
    figure, axes = _panels(table)
    for axis, (_, rows) in zip(axes, table.groupby("encoder", sort=False), strict=True):
        places = [LOSSES.index(loss) for loss in rows["loss"]]
        axis.hlines(places, 100 * rows["simultaneous_low"], 100 * rows["simultaneous_high"], color=INK, lw=0.9, label="all at once, 95 %")
        _intervals(axis, rows, "gap_accuracy", PLAIN_COLOURS[0], ("o", "-", 0), "each, 95 %", 100)
        axis.axvline(0, color=INK, lw=1, ls="--")
    axes[-1].set_xlabel("linear minus non-linear, points of accuracy")
    _finish(figure, axes[0])
    return figure


@styled
def loss_chart(study, trained):
    """Training loss of each arm (first seed) over the epochs, one panel per loss, with the floor of its batches as a dotted line."""
    figure, axes = narrow(6.6, nrows=len(LOSSES), sharex=True, sharey=True)
    names = list(dict.fromkeys(shown(study, run.encoder) for run in trained))
    for axis, loss in zip(axes, LOSSES, strict=True):
        runs = [run for run in trained if run.loss == loss and run.seed == trained[0].seed]
        mark = "o" if len(runs[0].history) < 3 else None
        for run in runs:
            name = shown(study, run.encoder)
            axis.plot(run.history["epoch"], run.history["loss"], _LOOK[run.head][1], color=PLAIN_COLOURS[names.index(name)], marker=mark, markersize=3, lw=1.3, label=f"{name}, {run.head}")
        for run in runs:
            axis.plot(run.history["epoch"], run.history["floor"], ":", color=INK, lw=1, marker=mark, markersize=2, label="floor of the same batches")
        axis.axhline(chance_loss(trained[0].history["batch"][0]), color=INK, ls="-.", lw=0.8, label="every text equally likely")
        axis.set_title(f"{loss} loss", loc="left")
        axis.set_ylabel("nats")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("epoch")
    _finish(figure, axes[0], 1)
    return figure


def _panels(table):
    names = table["encoder"].unique()
    figure, axes = narrow(1.1 + 1.15 * len(names), nrows=len(names), sharex=True, squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_title(name, loc="left")
        axis.set_yticks(range(len(LOSSES)), LOSSES)
        axis.set_ylim(len(LOSSES) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.25)
    return figure, axes[:, 0]


def _intervals(axis, rows, name, colour, look, label, factor=1):
    mark, _, aside = look
    places = [LOSSES.index(loss) + aside for loss in rows["loss"]]
    middle, low, high = (factor * rows[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    axis.errorbar(middle, places, xerr=np.nan_to_num(np.maximum([middle - low, high - middle], 0)), fmt=mark, color=colour, capsize=3, markersize=5, label=label)


def _finish(figure, axis, columns=2):
    keys = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=columns)
