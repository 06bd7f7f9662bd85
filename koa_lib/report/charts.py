"""Charts of results that the study adds to the paper's figures: models, readings, shift, few shots, search."""

import textwrap

import numpy as np

from koa_lib.errors import StudyError
from koa_lib.report.sheets import show, tallest
from koa_lib.report.style import GRADE_COLOURS, INK, PLAIN_COLOURS, message, narrow, styled


@styled
def baselines(table):
    """Accuracy of each model with its interval, and the published value where there is one.

    Parameters
    ----------
    table : DataFrame
        model, accuracy, ci_low, ci_high, published_accuracy (percent), as from `tables.table_4`.
    """
    if table.empty:
        return message("No model has been compared.")
    figure, axis = narrow(0.42 * len(table) + 1.2)
    for place, row in enumerate(table.itertuples()):
        _whisker(axis, place, row.accuracy, row.ci_low, row.ci_high, "not run", label="this run, 95 % group bootstrap")
    places = np.arange(len(table))
    axis.plot(table["published_accuracy"].to_numpy(float), places, "D", mfc="none", color=PLAIN_COLOURS[1], label="published")
    axis.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(len(table) - 0.4, -0.6))
    axis.set_yticks(places, table["model"])
    axis.grid(axis="x", alpha=0.25)
    _one_key_each(figure, axis)
    return figure


@styled
def readings(table):
    """Forest plot of the readings, grouped by factor: quadratic kappa with its interval.

    Parameters
    ----------
    table : DataFrame
        factor (may be empty), option, qwk, qwk_low, qwk_high (ratios; NaN where not run). The first row whose
        option is "as printed" is the reference line.
    """
    if table.empty:
        return message("No reading has been run.")
    lines = []
    for factor, rows in table.groupby("factor", sort=False):
        lines += [(factor, None)] * bool(factor) + [(row.option, row) for row in rows.itertuples()]
    figure, axis = narrow(0.2 * len(lines) + 1.1)
    printed = table.loc[table["option"] == "as printed", "qwk"].dropna()
    if len(printed):
        axis.axvline(printed.iloc[0], color=INK, ls="--", lw=1, label="as printed")
        figure.legend(loc="outside lower center")
    for place, (_, row) in enumerate(lines):
        if row is not None:
            _whisker(axis, place, row.qwk, row.qwk_low, row.qwk_high, "not run")
            _beside(axis, place, _with_interval(row.qwk, row.qwk_low, row.qwk_high, 2))
    axis.set_yticks(range(len(lines)), [textwrap.shorten(str(text), 24, placeholder=" …") for text, _ in lines])
    for label, (_, row) in zip(axis.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if row is None else "normal")
    axis.set(xlabel="quadratic κ (95 % interval)", ylim=(len(lines) - 0.4, -0.6))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)
    return figure


# The parts of `shift.decomposition` from top to bottom; a change starts at the end of another part.
_PARTS = {"internal accuracy": None, "label shift": "internal accuracy", "expected at the external grade mix": None,
          "rest": "expected at the external grade mix", "external accuracy": None}


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
    ends = [rows.loc[[part, base] if base else [part], "value"].sum(skipna=False) for part, base in _PARTS.items()]
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


@styled
def few_shot(draws, zero_shot):
    """Results with a few labelled external pictures per grade: a dot for each draw of them, their mean, and none at all.

    Parameters
    ----------
    draws : DataFrame
        shots, draw, n (pictures tested), accuracy, qwk (ratios), one row per draw.
    zero_shot : dict
        accuracy, qwk without any external label.
    """
    if draws.empty:
        return message("No external picture was used for few-shot learning.")
    figure, axes = narrow(5.2, nrows=2)
    shots = sorted(draws["shots"].unique())
    for axis, (column, name) in zip(axes, {"qwk": "quadratic κ", "accuracy": "accuracy"}.items(), strict=True):
        for place, number in enumerate(shots):
            values = draws.loc[draws["shots"] == number].sort_values("draw")[column].dropna().to_numpy(float)
            _dots(axis, place, values)
        axis.axhline(zero_shot[column], color=PLAIN_COLOURS[1], ls="--", label="no external label")
        axis.set(ylabel=name, xlim=(-0.5, len(shots) - 0.5))
        axis.set_xticks(range(len(shots)), [f"{number}\n({_span(draws.loc[draws['shots'] == number, 'n'])})" for number in shots])
        axis.grid(axis="y", alpha=0.25)
    axes[-1].set_xlabel("labelled external pictures per grade")
    _one_key_each(figure, axes[0])
    return figure


def _dots(axis, place, values):
    if not len(values):
        _absent(axis, place, "undefined")
        return
    across = place + (np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1))
    axis.plot(across, values, "o", color=PLAIN_COLOURS[0], mec="white", mew=0.5, markersize=6, label="one draw")
    axis.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=INK, lw=2, label="mean of the draws")


def _span(numbers):
    low, high = numbers.min(), numbers.max()
    return f"n {'=' if low == high else '≥'} {low:,.0f}"


@styled
def found(pictures, grades, queries):
    """The pictures nearest to each query, framed in the colour of their true grade; hits have a tick.

    Parameters
    ----------
    pictures : list of 5 lists of arrays (H, W)
        Those found by the query of each grade, nearest first.
    grades : int array (5, m)
        Their true grades.
    queries : sequence of 5 str
    """
    columns = max(map(len, pictures))
    if not columns:
        return message("No picture has been searched.")
    tall = tallest([picture for row in pictures for picture in row], 1.0)
    figure, axes = narrow(0.4 + len(queries) * (0.3 + 0.6 * tall), nrows=len(queries), ncols=max(6, columns), squeeze=False)
    for axis in axes[:, columns:].flat:
        axis.set_axis_off()
    for asked, (line, row, truth, query) in enumerate(zip(axes, pictures, grades, queries, strict=True)):
        line[0].set_ylabel(textwrap.fill(query, 14), rotation=0, ha="right", va="center", labelpad=8)
        for axis, picture, grade in zip(line, row, truth, strict=False):
            show(axis, picture, f"KL {grade} ✓" if grade == asked else f"KL {grade}")
            axis.spines[:].set(visible=True, color=GRADE_COLOURS[grade], linewidth=3)
    figure.supxlabel("frame: true grade · ✓ the grade of the query", fontsize=8.5, color=INK)
    return figure


def _one_key_each(figure, axis):
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)


def _absent(axis, place, text):
    axis.annotate(text, (place, 0.05), xycoords=("data", "axes fraction"), ha="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1})


def _whisker(axis, place, value, low, high, absent, color=PLAIN_COLOURS[0], **look):
    if np.isnan(value):
        axis.annotate(absent, (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        return
    reach = np.nan_to_num(np.maximum([[value - low], [high - value]], 0))
    axis.errorbar([value], [place], xerr=reach, color=color, capsize=3, markersize=5, **{"fmt": "o", **look})


def _with_interval(value, low, high, digits, sign=""):
    if np.isnan(value):
        return "–"
    text = f"{value:{sign}.{digits}f}" + (f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]" if np.isfinite([low, high]).all() else "")
    return text.replace("-", "−")


def _beside(axis, place, text):
    axis.annotate(text, (1, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False)
