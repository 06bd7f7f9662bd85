"""Pictures and their mirror images, drawn and in words: what an arm gains and how often it changes its mind, its losses, and the pictures concerned."""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from koa_lib.grades import GRADES
from koa_lib.report.sheets import show
from koa_lib.report.style import INK, PLAIN_COLOURS, message, narrow, styled
from koa_lib.symmetry import ARMS, BOTH, PAIRS, STANDARD

LOOK = {arm: {"color": colour, "marker": mark} for arm, colour, mark in zip(ARMS, (*PLAIN_COLOURS[:3], "#777777", *PLAIN_COLOURS[3:]), "osDX^vP", strict=True)}
PANELS = {"cross_entropy": "cross-entropy (nats)", "symmetry": "symmetry loss", "consistency": "consistency loss (nats)"}


@styled
def trade_off(tables):
    """Quadratic kappa against flip disagreement of each arm, with both 95 % intervals: one panel per part, one below the other; best is top left.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Panel title -> arm, qwk, flip_disagreement and their ..._low, ..._high, as from `symmetry.table`.
    """
    figure, axes = narrow(1.1 + 2.5 * len(tables), nrows=len(tables), squeeze=False)
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        for row in table.itertuples():
            reach = [[[value - low], [high - value]] for value, low, high in
                     ((row.flip_disagreement, row.flip_disagreement_low, row.flip_disagreement_high), (row.qwk, row.qwk_low, row.qwk_high))]
            xerr, yerr = (np.nan_to_num(np.maximum(ends, 0)) for ends in reach)
            axis.errorbar([row.flip_disagreement], [row.qwk], yerr, xerr, ls="", capsize=2, lw=1, markersize=6.5, mec="white", mew=0.6, label=row.arm, **LOOK[row.arm])
        axis.set(title=title, ylabel="quadratic kappa")
        axis.grid(alpha=0.25)
    axes[-1, 0].set_xlabel("flip disagreement (share of pictures)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.3)
    return figure


@styled
def loss_curves(curves):
    """The three parts of the loss over the epochs, one line per trained arm.

    Parameters
    ----------
    curves : DataFrame
        arm, epoch, cross_entropy, symmetry, consistency, as from `symmetry.curves`.
    """
    figure, axes = narrow(6.2, nrows=3, sharex=True)
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        for arm, rows in curves.groupby("arm", sort=False):
            axis.plot(rows["epoch"], rows[column], markersize=3.5, lw=1.2, label=arm, **LOOK[arm])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("epoch")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.3)
    return figure


@styled
def changed(pictures, probabilities, grades, ids):
    """Pictures that change their grade under mirroring, above the probabilities of the picture and of its mirror image, by arm.

    Parameters
    ----------
    pictures : list of arrays (H, W)
    probabilities : dict of str to (array (n, 5), array (n, 5))
        Arm -> those of the pictures and of their mirror images.
    grades : sequence of int (n,)
        True grades.
    ids : sequence of str (n,)
    """
    if not len(pictures):
        return message("No picture changes its grade when it is mirrored.")
    columns = max(3, len(pictures))
    figure, axes = narrow(2.2 + 1.35 * len(probabilities), nrows=1 + len(probabilities), ncols=columns, squeeze=False, height_ratios=[1.2] + [1] * len(probabilities))
    for axis in axes[:, len(pictures):].flat:
        axis.set_axis_off()
    for axis, picture, grade, name in zip(axes[0], pictures, grades, ids, strict=False):
        show(axis, picture, f"{textwrap.fill(str(name), 16)}\ntrue grade {grade}")
    for line, (arm, (plain, mirrored)) in zip(axes[1:], probabilities.items(), strict=True):
        line[0].set_ylabel(f"{arm}\nprobability")
        for axis, one, other in zip(line, plain, mirrored, strict=False):
            _two_bars(axis, one, other)
        for axis in line[1:]:
            axis.set_yticklabels([])
    for axis in axes[-1, : len(pictures)]:
        axis.set_xlabel("KL grade")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _two_bars(axis, plain, mirrored):
    places, look = np.array(GRADES), {"width": 0.4, "edgecolor": INK, "linewidth": 0.5}
    axis.bar(places - 0.2, plain, color=PLAIN_COLOURS[0], label="picture", **look)
    axis.bar(places + 0.2, mirrored, color="white", hatch="////", label="mirror image", **look)
    axis.set_title(f"{np.argmax(plain)} → {np.argmax(mirrored)}", fontsize=8.5)
    axis.set(ylim=(0, 1), xticks=GRADES, yticks=(0, 0.5, 1))


def gain_in_words(gaps, gains, part):
    """The gain of both losses over standard CLIP with the study's own seed and its interval, then with every seed, as text.

    Parameters
    ----------
    gaps : DataFrame
        From `symmetry.differences`.
    gains : dict of int to float
        From `symmetry.gains`: points for each seed, the study's own first.
    part : str
        The split.
    """
    row, (seed, value), gained = _row(gaps, part, STANDARD), next(iter(gains.items())), np.array(list(gains.values()))
    said = (f"Our gain in accuracy on the {part} split is {value:+.1f} points with seed {seed} (95 % interval from a paired group bootstrap of that seed: "
            f"{100 * row['accuracy_low']:+.1f} to {100 * row['accuracy_high']:+.1f}).")
    if len(gained) == 1:
        return said
    alike = (gained > 0).all() or (gained < 0).all()
    return said + (f" Over {len(gained)} seeds it is {gained.mean():+.1f} points in the mean ({', '.join(f'seed {name}: {gain:+.1f}' for name, gain in gains.items())}): "
                   + ("the seeds agree in sign." if alike else "the seeds do not agree in sign, so no gain or loss is shown by this run."))


def agreed_in_words(agreed, number):
    """What the pictures that `symmetry.changed` picks show of both losses, as text."""
    if not number:
        return "No picture changes its grade with standard CLIP."
    picked = f"Both losses give {agreed or 'none'} of these {number} pictures the same grade both ways. They were picked because standard CLIP changes its mind most on them"
    return picked + (", so any other model tends to look better here than it is." if agreed else "; here the losses do not help, although any other model tends to look better on such pictures.")


def answer_in_words(gaps, table, part):
    """The answer to the notebook's question from the paired differences of both losses to pairs, which lack nothing but the losses, as text.

    Parameters
    ----------
    gaps, table : DataFrame
        From `symmetry.differences` and `symmetry.table`.
    part : str
        The split.
    """
    row, rates, outside = _row(gaps, part, PAIRS), table.set_index("arm")["flip_disagreement"], gaps["part"].eq("external").any()
    better = {1: "It grades better", 0: "That it grades better or worse is not shown", -1: "It grades worse"}[_side(row, "accuracy")]
    steadier = {-1: "the grade stays more often", 0: "that the grade stays more or less often is not shown either way", 1: "the grade stays less often"}[_side(row, "flip_disagreement")]
    accuracy, flip = (_points(row, name) for name in ("accuracy", "flip_disagreement"))
    elsewhere = f" In the external cohort flip disagreement differs by {_points(_row(gaps, 'external', PAIRS), 'flip_disagreement')}." if outside else ""
    return (f"{better} (accuracy of both losses less that of pairs, {part} split: {accuracy}), and {steadier} (flip disagreement: {flip}). "
            f"With both losses mirroring still changes the grade of {rates[BOTH]:.1%} of the pictures, with pairs of {rates[PAIRS]:.1%}.{elsewhere}")


def _points(row, name):
    return f"{100 * row[name]:+.1f} points, {100 * row[f'{name}_low']:+.1f} to {100 * row[f'{name}_high']:+.1f}"


def _row(gaps, part, less):
    return gaps[(gaps["part"] == part) & (gaps["arm"] == BOTH) & (gaps["less"] == less)].iloc[0]


def _side(row, name):
    # On which side of 0 the whole interval lies; 0 when it holds 0.
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)
