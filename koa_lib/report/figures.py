"""The figures of the study, one function per figure of the paper; our own are in `charts`, `diagnostics` and `sheets`.

Each takes frames or arrays and returns a matplotlib Figure; `exhibits.show_figure` saves and shows it. Figures 1,
3 and 4 show how the model works and live in `diagrams`.
"""

import textwrap

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from koa_lib.grades import GRADES, NAMES
from koa_lib.report import labels
from koa_lib.report.charts import baselines, few_shot, found, readings, shift
from koa_lib.report.diagnostics import nearest_distances, reliability, retrieval
from koa_lib.report.diagrams import figure_1, figure_3, figure_4
from koa_lib.report.sheets import contact_sheet, gallery, show, worst, worst_errors
from koa_lib.report.style import GRADE_COLOURS, INK, PLAIN_COLOURS, message, narrow, note, styled

__all__ = ["baselines", "figure_1", "figure_2", "figure_3", "figure_4", "figure_5", "figure_6", "figure_7", "figure_8"]
__all__ += ["contact_sheet", "few_shot", "found", "gallery", "nearest_distances", "readings", "reliability", "retrieval"]
__all__ += ["shift", "worst", "worst_errors"]

TICKS = [f"{grade}\n{name}" for grade, name in zip(GRADES, NAMES, strict=True)]
PARTS = {"train": ("-", "training part"), "held_out": ("--", "held-out fold"), "inner": (":", "inner split")}


@styled
def figure_2(counts):
    """Pictures per grade: one panel per cohort, its splits stacked.

    Parameters
    ----------
    counts : DataFrame
        cohort, split, grade, n.
    """
    cohorts = list(dict.fromkeys(counts["cohort"]))
    if not cohorts:
        return message("No cohort has been read.")
    figure, axes = narrow(2.6 * len(cohorts) + 0.1, nrows=len(cohorts), squeeze=False)
    for axis, cohort in zip(axes[:, 0], cohorts, strict=True):
        rows = counts[counts["cohort"] == cohort]
        table = rows.pivot_table(index="split", columns="grade", values="n", aggfunc="sum", fill_value=0, sort=False)
        _stacked(axis, table.reindex(columns=GRADES, fill_value=0), cohort)
        axis.set_ylabel("radiographs")
    return figure


def _stacked(axis, table, cohort):
    bottom, total = np.zeros(len(GRADES)), max(1, table.to_numpy().sum())
    for split, hatch in zip(table.index, ("", "///", "xxx", "---", "|||"), strict=False):
        heights = table.loc[split].to_numpy(float)
        axis.bar(GRADES, heights, bottom=bottom, color=GRADE_COLOURS, edgecolor="white", linewidth=0.6, hatch=hatch)
        if len(table) > 1:
            axis.bar([0], [0], color="#999999", edgecolor="white", hatch=hatch, label=labels.words(split))
        bottom += heights
    for grade, height in zip(GRADES, bottom, strict=True):
        label = f"{height:,.0f}\n{100 * height / total:.0f} %"
        axis.annotate(label, (grade, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axis.set(title=f"{labels.words(cohort)} (n = {table.to_numpy().sum():,.0f})", xlabel="KL grade", xticks=GRADES)
    axis.margins(y=0.18)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    if len(table) > 1:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, columnspacing=1.2)


@styled
def figure_5(history, floor=None, chance=None):
    """Accuracy and loss over epochs for each fold, training and held-out part.

    Parameters
    ----------
    history : DataFrame
        fold, epoch, part (train, held_out, inner), loss (nats), accuracy (ratio).
    floor, chance : float, optional
        Losses (nats) that cannot be undercut, and that guessing gives, drawn as lines.
    """
    if history.empty:
        return message("No training history has been recorded.")
    figure, axes = narrow(5.0, nrows=2, sharex=True)
    folds = sorted(history["fold"].unique(), key=str)
    for axis, column in zip(axes, ("accuracy", "loss"), strict=True):
        for (fold, part), rows in history.groupby(["fold", "part"], sort=True):
            rows = rows.sort_values("epoch")
            colour = PLAIN_COLOURS[folds.index(fold) % len(PLAIN_COLOURS)]
            marker = "o" if len(rows) < 4 else None
            axis.plot(rows["epoch"], rows[column], PARTS[part][0], color=colour, marker=marker, markersize=3, lw=1.3)
        axis.set(ylabel=column if column == "accuracy" else "loss (nats)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.grid(alpha=0.25)
        if history[column].isna().all():
            note(axis, f"No {column} has been recorded.")
    axes[1].set_xlabel("epoch")
    parts = [part for part in PARTS if (history["part"] == part).any()]
    keys = [Line2D([], [], color=INK, ls=PARTS[part][0], label=PARTS[part][1]) for part in parts]
    # Beyond the lines, where no curve should be.
    for level, text, up in ((floor, "lowest possible", -1), (chance, "chance", 1)):
        if level is not None:
            axes[1].axhline(level, color=INK, lw=1, ls="-.")
            axes[1].annotate(f"{text} {level:.2f} nats", (0.99, level), (0, 3 * up), xycoords=("axes fraction", "data"), textcoords="offset points",
                             ha="right", va="bottom" if up > 0 else "top", fontsize=8.5)
            axes[1].margins(y=0.12)
    _keys(figure, folds, keys)
    return figure


def _keys(figure, folds, lines):
    from itertools import chain, zip_longest

    # A legend fills columns first: the line styles stand in the last column.
    colours = [Line2D([], [], color=PLAIN_COLOURS[i % 6], label=f"fold {fold}") for i, fold in enumerate(folds)]
    rows = max(len(lines), -(-len(colours) // 2))
    blank = Line2D([], [], ls="", label=" ")
    columns = [colours[:rows], colours[rows:], lines] if len(colours) > rows else [colours, lines]
    padded = zip(*zip_longest(*columns, fillvalue=blank), strict=True)
    figure.legend(handles=list(chain(*(column + (blank,) * (rows - len(column)) for column in padded))), loc="outside lower center", ncols=len(columns))


@styled
def figure_6(cm, title="Confusion matrix"):
    """Confusion matrix: counts, and the share of each true grade (row) as colour and per cent.

    Parameters
    ----------
    cm : int array (5, 5)
        Rows true, columns predicted.
    """
    import seaborn

    cm = np.asarray(cm)
    rows = cm.sum(1, keepdims=True)
    share = np.divide(100 * cm, rows, out=np.zeros(cm.shape), where=rows > 0)
    cells = [[f"{n:,}\n{p:.0f} %" for n, p in zip(*line, strict=True)] for line in zip(cm, share, strict=True)]
    figure, axis = narrow(4.3)
    seaborn.heatmap(share, annot=np.array(cells), fmt="", cmap="Blues", vmin=0, vmax=100, cbar=False, ax=axis,
                    linewidths=1, annot_kws={"fontsize": 9})
    axis.set(title=labels.words(title), xlabel="predicted KL grade (per cent: share of the true grade)", ylabel="true KL grade")
    axis.set_xticks(np.arange(5) + 0.5, TICKS, rotation=0)
    sides = [f"{grade} {NAMES[grade]}\nn = {n:,}" for grade, n in zip(GRADES, rows[:, 0], strict=True)]
    axis.set_yticks(np.arange(5) + 0.5, sides, rotation=0)
    return figure


@styled
def figure_7(pictures, probabilities, grades, ids):
    """Graded examples: each picture with the five probabilities, the true grade marked.

    Parameters
    ----------
    pictures : list of float or int arrays (H, W)
    probabilities : float array (n, 5)
    grades, ids : sequences (n,)
    """
    if not len(pictures):
        return message("No picture has been graded.")
    figure, axes = narrow(1.75 * len(pictures) + 0.4, nrows=len(pictures), ncols=2, squeeze=False, width_ratios=(1, 1.5))
    for (left, right), picture, chances, grade, name in zip(axes, pictures, probabilities, grades, ids, strict=True):
        guess = int(np.argmax(chances))
        verdict = "correct" if guess == grade else "wrong"
        show(left, picture, textwrap.fill(str(name), 22))
        _grade_bars(right, chances, true=grade)
        right.set_title(f"true {grade} · graded {guess}: {verdict}", fontsize=8.5)
        right.set_xlim(0, 1.2)
        right.set_xticks([0, 0.5, 1])
    axes[-1, 1].set_xlabel("probability (true grade outlined)")
    return figure


def _grade_bars(axis, values, true=None, digits=2):
    lines = [2 if grade == true else 0 for grade in GRADES]
    bars = axis.barh(GRADES, values, color=GRADE_COLOURS, edgecolor="black", linewidth=lines)
    axis.bar_label(bars, [f"{value:.{digits}f}" for value in values], padding=3, fontsize=8)
    axis.set_yticks(GRADES, [f"{grade} {name}" for grade, name in zip(GRADES, NAMES, strict=True)])
    axis.invert_yaxis()


@styled
def figure_8(pictures, similarities, queries, grades):
    """Similarity of each example picture to five text queries, the highest outlined.

    Parameters
    ----------
    pictures : list of arrays (H, W)
    similarities : float array (n, 5)
        Cosines.
    queries : sequence of 5 str
    grades : sequence (n,)
    """
    if not len(pictures):
        return message("No picture has been compared with the queries.")
    figure, axes = narrow(2.0 * len(pictures) + 0.4, nrows=len(pictures), ncols=2, squeeze=False, width_ratios=(1, 1.5))
    low, high = min(0, np.min(similarities)), max(0, np.max(similarities))
    span = max(high - low, 0.1)
    for (left, right), picture, values, grade in zip(axes, pictures, similarities, grades, strict=True):
        show(left, picture, f"KL {grade} ({NAMES[grade]})")
        _grade_bars(right, values, true=int(np.argmax(values)), digits=2)
        right.set_yticks(GRADES, [textwrap.fill(query, 15) for query in queries])
        right.set_xlim(low - 0.25 * span * (low < 0), high + 0.25 * span)
        right.axvline(0, color=INK, lw=0.8)
    axes[-1, 1].set_xlabel("cosine similarity (highest outlined)")
    return figure
