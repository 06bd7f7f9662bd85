"""The figures of the study that show pictures or the data, one function per figure of the paper.

Each takes frames and pictures and returns a matplotlib Figure; `show` saves and shows it. Figures 1, 3 and 4
show how the model works and live in `diagrams`, Figures 5 and 6 are standard charts of `plots`.
"""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.predictions import arrays
from koa_lib.report import words
from koa_lib.report.sheets import show
from koa_lib.report.style import GRADE_COLOURS, INK, PLAIN_COLOURS, message, narrow, styled


@styled
def figure_2(counts):
    """Pictures per grade: one panel per cohort, its splits stacked.

    Parameters
    ----------
    counts : DataFrame
        cohort, split, grade, n.
    """
    cohorts = list(counts.groupby("cohort", sort=False))
    figure, axes = narrow(2.6 * len(cohorts) + 0.1, nrows=len(cohorts), squeeze=False)
    for axis, (cohort, rows) in zip(axes[:, 0], cohorts, strict=True):
        table = rows.pivot_table(index="split", columns="grade", values="n", aggfunc="sum", fill_value=0,
                                 sort=False)
        _stacked(axis, table.reindex(columns=GRADES, fill_value=0), cohort)
    return figure


def _stacked(axis, table, cohort):
    bottom, total = np.zeros(len(GRADES)), max(1, table.to_numpy().sum())
    for split, hatch in zip(table.index, ("", "///", "xxx", "---", "|||"), strict=False):
        heights = table.loc[split].to_numpy(float)
        axis.bar(GRADES, heights, bottom=bottom, color=GRADE_COLOURS, edgecolor="white", linewidth=0.6,
                 hatch=hatch)
        if len(table) > 1:
            axis.bar([0], [0], color="#999999", edgecolor="white", hatch=hatch, label=words.people(split))
        bottom += heights
    for grade, height in zip(GRADES, bottom, strict=True):
        label = f"{height:,.0f}\n{100 * height / total:.0f} %"
        axis.annotate(label, (grade, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axis.set(title=f"{words.people(cohort)} (n = {table.to_numpy().sum():,.0f})", xlabel="KL grade",
             xticks=GRADES)
    axis.margins(y=0.18)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    if len(table) > 1:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, columnspacing=1.2)


@styled
def figure_7(graded, pictures):
    """Graded examples: each picture with the five probabilities, the true grade marked.

    Parameters
    ----------
    graded : DataFrame
        image_id, kl_grade, p0..p4.
    pictures : list of float or int arrays (H, W)
    """
    if not len(graded):
        return message("No picture has been graded.")
    size = {"nrows": len(graded), "ncols": 2, "squeeze": False, "width_ratios": (1, 1.5)}
    figure, axes = narrow(1.75 * len(graded) + 0.4, **size)
    for (left, right), picture, chances, grade, name in zip(axes, pictures, *_answers(graded), strict=True):
        guess = int(np.argmax(chances))
        verdict = "correct" if guess == grade else "wrong"
        show(left, picture, textwrap.fill(str(name), 22))
        _grade_bars(right, chances, true=grade)
        right.set_title(f"true {grade} · graded {guess}: {verdict}", fontsize=8.5)
        right.set_xlim(0, 1.2)
        right.set_xticks([0, 0.5, 1])
    axes[-1, 1].set_xlabel("probability (true grade outlined)")
    return figure


def _answers(graded):
    grades, probabilities = arrays(graded)
    return probabilities, grades, graded["image_id"]


def _grade_bars(axis, values, true=None, digits=2):
    lines = [2 if grade == true else 0 for grade in GRADES]
    bars = axis.barh(GRADES, values, color=GRADE_COLOURS, edgecolor="black", linewidth=lines)
    texts = [f"{value:.{digits}f}".replace("-", "−") for value in values]
    axis.bar_label(bars, texts, padding=3, fontsize=8)
    axis.set_yticks(GRADES, [f"{grade} {name}" for grade, name in zip(GRADES, NAMES, strict=True)])
    axis.invert_yaxis()


@styled
def figure_8(examples, pictures, queries):
    """Similarity of each example picture to five text queries, the highest outlined.

    Parameters
    ----------
    examples : DataFrame
        kl_grade, and the cosine to each query under its name; as from `retrieval.examples`.
    pictures : list of arrays (H, W)
    queries : sequence of 5 str
    """
    if not len(examples):
        return message("No picture has been compared with the queries.")
    size = {"nrows": len(examples), "ncols": 2, "squeeze": False, "width_ratios": (1, 1.5)}
    figure, axes = narrow(2.0 * len(examples) + 0.4, **size)
    cosines = examples[list(queries)].to_numpy()
    low, high = min(0, cosines.min()), max(0, cosines.max())
    span = max(high - low, 0.1)
    rows = zip(axes, pictures, cosines, examples["kl_grade"], strict=True)
    for (left, right), picture, values, grade in rows:
        show(left, picture, f"KL {grade} ({NAMES[grade]})")
        _grade_bars(right, values, true=int(np.argmax(values)), digits=2)
        right.set_yticks(GRADES, [textwrap.fill(query, 15) for query in queries])
        right.set_xlim(low - 0.35 * span * (low < 0), high + 0.25 * span)
        right.axvline(0, color=INK, lw=0.8)
    axes[-1, 1].set_xlabel("cosine similarity (highest outlined)")
    return figure


@styled
def reliability(table):
    """Reliability diagram of the top label: accuracy against confidence, and the pictures of each bin.

    Parameters
    ----------
    table : DataFrame
        low, high, n, confidence, accuracy: one row per bin, as from `tables.reliability`.
    """
    if table.empty:
        return message("No picture has been graded.")
    figure, (top, below) = narrow(4.6, nrows=2, sharex=True, height_ratios=(3, 1))
    bars = {"x": table["low"], "width": table["high"] - table["low"], "align": "edge", "edgecolor": "white"}
    top.bar(height=table["accuracy"], color="#9ecae1", label="accuracy", **bars)
    top.plot(table["confidence"], table["accuracy"], "o", color=INK, markersize=3.5, clip_on=False,
             label="accuracy at the mean confidence of the bin")
    top.plot([0, 1], [0, 1], "--", color=INK, lw=1, label="calibrated")
    top.set(ylabel="accuracy", ylim=(0, 1.02))
    figure.legend(loc="outside lower center")
    below.bar(height=table["n"], color="#bbbbbb", **bars)
    below.set(xlabel="confidence of the top label", ylabel="pictures", xlim=(0, 1))
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    return figure


# The parts of `shift.decomposition` from top to bottom; a change starts at the end of another part.
_PARTS = {"internal accuracy": None, "label shift": "internal accuracy",
          "expected at the external grade mix": None, "rest": "expected at the external grade mix",
          "external accuracy": None}


@styled
def shift(table):
    """From the internal to the external accuracy: the step that the grade mix explains, and the rest.

    Parameters
    ----------
    table : DataFrame
        part, value, ci_low, ci_high (ratios; NaN where undefined), as from `shift.decomposition`.

    Raises
    ------
    StudyError
        A part is missing.
    """
    rows = table.set_index("part")
    missing = [part for part in _PARTS if part not in rows.index]
    if missing:
        raise StudyError(f"The decomposition has no row '{missing[0]}'. Its parts are: {', '.join(_PARTS)}.")
    figure, axis = narrow(2.7)
    ends = [rows.loc[[part, base] if base else [part], "value"].sum(skipna=False)
            for part, base in _PARTS.items()]
    for place, (part, base) in enumerate(_PARTS.items()):
        start = rows.loc[base, "value"] if base else 0
        value, low, high = rows.loc[part, ["value", "ci_low", "ci_high"]].astype(float)
        look = {"color": PLAIN_COLOURS[1], "hatch": "///"} if base else {"color": PLAIN_COLOURS[4]}
        axis.barh(place, np.nan_to_num(value), left=np.nan_to_num(start), edgecolor="white", **look)
        _whisker(axis, place, start + value, start + low, start + high, "undefined", color=INK, fmt="none")
        _beside(axis, place, _with_interval(value, low, high, 3, sign="+" if base else ""))
    for place, (end, following) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if np.isfinite(following):
            axis.plot([end] * 2, [place - 0.4, place + 1.4], color=INK, lw=0.8, ls=":")
    axis.set(xlabel="accuracy (95 % interval); hatched: change", ylim=(4.6, -0.6))
    axis.set_yticks(range(5), [textwrap.fill(part, 20) for part in _PARTS])
    axis.set_xlim(left=0)
    return figure


def _whisker(axis, place, value, low, high, absent, color=PLAIN_COLOURS[0], **look):
    if np.isnan(value):
        axis.annotate(absent, (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        return
    reach = np.nan_to_num(np.maximum([[value - low], [high - value]], 0))
    axis.errorbar([value], [place], xerr=reach, color=color, capsize=3, markersize=5, **{"fmt": "o", **look})


def _with_interval(value, low, high, digits, sign=""):
    if np.isnan(value):
        return "–"
    text = f"{value:{sign}.{digits}f}" + (
        f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]" if np.isfinite([low, high]).all() else "")
    return text.replace("-", "−")


def _beside(axis, place, text):
    axis.annotate(text, (1, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                  va="center", fontsize=8.5, annotation_clip=False)
