"""Charts of self-supervised pre-training and of results against the number of labels."""

import math

import numpy as np

from koa_lib.report.style import INK, PLAIN_COLOURS, message, narrow, styled

MARKS = {"random": "s", "contrastive": "o", "self-supervised": "D"}


def ceiling(prototypes):
    """Loss in nats of a student that gives each of K prototypes the same share: ln K."""
    return math.log(prototypes)


@styled
def pretraining(history, prototypes):
    """The loss over the epochs between what no student can undercut and what a collapsed one has.

    Parameters
    ----------
    history : DataFrame
        epoch, loss, teacher_entropy (nats).
    prototypes : int
        Length K of an answer; a student that answers all alike has the loss ln K.
    """
    figure, axis = narrow(3.2)
    axis.plot(history["epoch"], history["loss"], "o-", color=PLAIN_COLOURS[0], label="loss")
    axis.plot(history["epoch"], history["teacher_entropy"], "s--", color=PLAIN_COLOURS[1], label="entropy of the teacher's answers: the least possible loss")
    axis.axhline(ceiling(prototypes), color=INK, ls=":", label=f"ln {prototypes:,}: the same answer for all prototypes")
    axis.set(xlabel="epoch", ylabel="nats", ylim=(0, 1.08 * max(ceiling(prototypes), history["loss"].max())))
    axis.set_xticks(history["epoch"].unique()[:: max(1, len(history) // 10)])
    axis.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


@styled
def labels(table, each, over="patients"):
    """Quadratic kappa against the fraction of labels for each start: above with intervals, below each draw of the labels.

    Parameters
    ----------
    table : DataFrame
        One cohort of `equivalence.curve`: start, fraction, qwk, ci_low, ci_high, with a row 'supervised'.
    each : DataFrame
        start, fraction, seed, qwk, of the same cohort.
    over : str
        What the intervals resample: "patients", or "groups" of look-alike pictures where patients are not known.
    """
    if table.empty:
        return message("No start has been graded.")
    figure, (above, below) = narrow(5.6, nrows=2, sharex=True, sharey=True)
    full = table[table["start"] == "supervised"].iloc[0]
    for axis in (above, below):
        axis.axhline(full.qwk, color=INK, ls="--", lw=1, label="CLIP fine-tuned, all labels")
    above.axhspan(full.ci_low, full.ci_high, color=INK, alpha=0.08, lw=0)
    for place, (start, mark) in enumerate(MARKS.items()):
        line, dots = table[table["start"] == start], each[each["start"] == start]
        if len(line):
            reach = np.abs(line[["ci_low", "ci_high"]].to_numpy(float).T - line["qwk"].to_numpy(float))
            aside = 1.06 ** (place - 1)  # beside each other on the logarithmic axis
            above.errorbar(line["fraction"] * aside, line["qwk"], yerr=reach, fmt=f"{mark}-", color=PLAIN_COLOURS[place], capsize=3, markersize=5, label=f"{start} start")
            below.plot(dots["fraction"] * aside, dots["qwk"], mark, color=PLAIN_COLOURS[place], alpha=0.7, markersize=5)
    _label_axis(below, sorted(table["fraction"].unique()))
    for axis, title in ((above, f"mean over the draws, 95 % interval over {over}"), (below, "each draw of labels")):
        axis.set(ylabel="quadratic kappa", title=title)
        axis.grid(axis="y", alpha=0.25)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _label_axis(axis, fractions):
    axis.set_xscale("log")
    axis.set_xticks(fractions, [f"{100 * fraction:g}" for fraction in fractions])
    axis.minorticks_off()
    axis.set_xlabel("labelled training patients (%)")
