"""The standard charts, drawn from the frame of their exhibit: forest, curves, confusion.
An entry's `plot` names one with its options."""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.report import words
from koa_lib.report.style import INK, PLAIN_COLOURS, message, narrow, styled

MARKS, DASHES, ACROSS = "osDX^vP", ("-", "--", ":", "-."), (":", "-.")
TICKS = [f"{grade}\n{name}" for grade, name in zip(GRADES, NAMES, strict=True)]


def draw(plot, frame):
    """The chart that an entry's `plot` asks for: a name,
    or a mapping of `kind` and the options of that function."""
    options = {"kind": plot} if isinstance(plot, str) else dict(plot)
    kind = options.pop("kind", "")
    if kind not in KINDS:
        raise StudyError(f"There is no chart '{kind}'. Known: {', '.join(KINDS)}; "
                         "or give a function that draws.")
    return KINDS[kind](frame, **options)


@styled
def forest(frame, value, label, group="", series="", panel="", line=None, axis_label="", factor=1, digits=2):
    """Values with their intervals, one line per row, top to bottom in the frame's order.

    Parameters
    ----------
    frame : DataFrame
        `value`, `<value>_low`, `<value>_high` (NaN where not run), and the columns named by the others.
    value, label : str
        Columns of the numbers and of the lines' names.
    group : str
        Column whose values become headings.
    series : str
        Column whose values get marks and colours of their own, on one line per label.
    panel : str
        Column whose values get panels of their own, one below the other.
    line : float or str, optional
        A reference line: a number, or the label of the row whose value it is.
    factor : float
        What values are multiplied by, as 100 from shares to points.
    """
    _check(frame, value, label, group, series, panel)
    if frame.empty:
        return message("Nothing has been run.")
    panels = list(frame.groupby(panel, sort=False)) if panel else [("", frame)]
    lines = [_lines(rows, label, group) for _, rows in panels]
    names = list(dict.fromkeys(frame[series])) if series else [""]
    figure, axes = narrow(1.0 + sum(0.3 + 0.22 * len(found) for found in lines) + 0.2 * bool(series),
                          nrows=len(panels), sharex=True, squeeze=False,
                          height_ratios=[len(found) + 1 for found in lines])
    for axis, (title, rows), places in zip(axes[:, 0], panels, lines, strict=True):
        _reference(axis, rows, label, value, line, factor)
        for number, name in enumerate(names):
            chosen = rows[rows[series] == name] if series else rows
            _whiskers(axis, chosen, places, (label, group, value), factor, (number, len(names), name))
        if not series:
            _numbers(axis, rows, places, (label, group, value), factor, digits)
        axis.set_title(words.people(str(title)), loc="left")
        _name_lines(axis, places)
    axes[-1, 0].set_xlabel(axis_label or f"{words.people(value)} (95 % interval)")
    if series or isinstance(line, str):
        _legend(figure, axes.flat)
    return figure


def _check(frame, *columns):
    absent = [column for column in columns if column and column not in frame]
    if absent:
        raise StudyError(f"The chart needs the column '{absent[0]}'; "
                         f"the frame has {', '.join(map(str, frame.columns))}.")


def _lines(rows, label, group):
    # (group, label) of each line; a heading has no label.
    found = []
    for row in rows.to_dict("records"):
        heading = (row[group], None) if group and row[group] else None
        found += [heading] if heading and heading not in found else []
        line = (row[group] if group else "", row[label])
        found += [line] if line not in found else []
    return found


def _place(row, places, label, group):
    return places.index((row[group] if group else "", row[label]))


def _whiskers(axis, rows, places, columns, factor, series):
    label, group, value = columns
    number, count, name = series
    aside = 0.5 * ((number + 0.5) / count - 0.5)
    for row in rows.to_dict("records"):
        middle, low, high = (factor * row.get(column, np.nan)
                             for column in (value, f"{value}_low", f"{value}_high"))
        place = _place(row, places, label, group) + aside
        if np.isnan(middle):
            axis.annotate("not run", (0.01, place), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8)
            continue
        reach = np.nan_to_num(np.maximum([[middle - low], [high - middle]], 0))
        axis.errorbar([middle], [place], xerr=reach, color=PLAIN_COLOURS[number % 6], fmt=MARKS[number % 7],
                      capsize=3, markersize=5, label=words.people(str(name)))


def _numbers(axis, rows, places, columns, factor, digits):
    # The numbers themselves beside their lines.
    label, group, value = columns
    for row in rows.to_dict("records"):
        numbers = [factor * row.get(column, np.nan) for column in (value, f"{value}_low", f"{value}_high")]
        if np.isfinite(numbers).all():
            text = "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*numbers, digits).replace("-", "−")
            axis.annotate(text, (1, _place(row, places, label, group)), (6, 0),
                          xycoords=("axes fraction", "data"), textcoords="offset points",
                          va="center", fontsize=8.5, annotation_clip=False)


def _reference(axis, rows, label, value, line, factor):
    if isinstance(line, str):
        found = factor * rows.loc[rows[label] == line, value].dropna()
        line, name = (found.iloc[0] if len(found) else None), line
    else:
        name = None
    if line is not None:
        axis.axvline(line, color=INK, ls="--", lw=1, label=name)


def _name_lines(axis, places):
    texts = [textwrap.shorten(words.people(str(group if name is None else name)), 26, placeholder=" …")
             for group, name in places]
    axis.set_yticks(range(len(places)), texts)
    for tick, (_, name) in zip(axis.get_yticklabels(), places, strict=True):
        tick.set_fontweight("bold" if name is None else "normal")
    axis.set_ylim(len(places) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25)


@styled
def curves(frame, x, y, series="", style="", panel="", levels=None, log=False, axis_label="", labels=None):
    """Lines over an axis, with intervals where the frame has them.

    Parameters
    ----------
    frame : DataFrame
        `x`, each of `y` (with `<y>_low` and `<y>_high` where there are intervals), and the columns named by
        the others.
    y : str or list of str
        What is drawn; each gets a panel of its own.
    series, style : str
        Columns whose values get colours, and kinds of lines.
    panel : str
        Column whose values get panels (with one `y`).
    levels : dict of str to str, optional
        Columns with a level, to what they are called: a line across the panel, or beside each line where it
        moves.
    labels : dict of str to str, optional
        What a `y` is called on its axis.
    """
    if frame.empty:
        return message("Nothing has been recorded.")
    names = [y] if isinstance(y, str) else list(y)
    _check(frame, x, *names, series, style, panel)
    parts = ([(title, rows, names[0]) for title, rows in frame.groupby(panel, sort=False)] if panel
             else [("", frame, name) for name in names])
    figure, axes = narrow(0.9 + 2.1 * len(parts), nrows=len(parts), sharex=True, squeeze=False)
    for axis, (title, rows, name) in zip(axes[:, 0], parts, strict=True):
        _draw_lines(axis, rows, frame, (x, name, series, style))
        for column, said in (levels or {}).items():
            if column in rows and rows[column].notna().any():
                look = {"color": INK, "lw": 1, "ls": ACROSS[list(levels).index(column) % 2], "label": said}
                _draw_level(axis, rows.dropna(subset=[column]), (x, column, series, style), look)
        axis.set_ylabel((labels or {}).get(name, name))
        axis.set_title(words.people(str(title)), loc="left")
        axis.grid(alpha=0.25)
    _across(axes[-1, 0], frame[x], log, axis_label or x)
    _legend(figure, axes.flat)
    return figure


def _draw_lines(axis, rows, whole, columns):
    x, y, series, style = columns
    colours, dashes = (list(dict.fromkeys(whole[column])) if column else [""] for column in (series, style))
    for key, line in (rows.groupby([column for column in (series, style) if column], sort=False)
                      if series or style else [((), rows)]):
        key = dict(zip([column for column in (series, style) if column],
                       key if isinstance(key, tuple) else (key,), strict=True))
        colour, dash = colours.index(key.get(series, "")), dashes.index(key.get(style, ""))
        name = ", ".join(
            words.people(f"{column} {value}" if isinstance(value, (int, np.integer)) else str(value))
            for column, value in key.items())
        look = {"color": PLAIN_COLOURS[colour % 6], "ls": DASHES[dash % 4], "lw": 1.3, "label": name or None}
        line = line.sort_values(x)
        if f"{y}_low" in line and line[f"{y}_low"].notna().any():
            reach = np.abs(line[[f"{y}_low", f"{y}_high"]].to_numpy(float).T - line[y].to_numpy(float))
            axis.errorbar(line[x] * 1.05 ** (colour - (len(colours) - 1) / 2), line[y], yerr=reach,
                          marker=MARKS[colour % 7], capsize=3, markersize=5, **look)
        else:
            axis.plot(line[x], line[y], marker="o" if len(line) < 4 else None, markersize=3, **look)


def _draw_level(axis, rows, columns, look):
    x, level, series, style = columns
    if rows[level].nunique() == 1:
        axis.axhline(rows[level].iloc[0], **look)
        return
    for _, line in rows.groupby([column for column in (series, style) if column], sort=False):
        axis.plot(line[x], line[level], **look)


def _across(axis, values, log, label):
    if log:
        ticks = sorted(set(values.dropna()))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlabel(label)


@styled
def confusion(frame, title=""):
    """Confusion matrix: counts, and the share of each true grade (row) as colour and per cent;
    `frame` is 5 x 5, rows true."""
    import seaborn

    counts = frame[[column for column in frame.columns if str(column).startswith("graded")]].to_numpy(int)
    rows = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    cells = [[f"{n:,}\n{p:.0f} %" for n, p in zip(*line, strict=True)]
             for line in zip(counts, share, strict=True)]
    figure, axis = narrow(4.3)
    seaborn.heatmap(share, annot=np.array(cells), fmt="", cmap="Blues", vmin=0, vmax=100, cbar=False,
                    ax=axis, linewidths=1, annot_kws={"fontsize": 9})
    axis.set(title=words.people(title), xlabel="predicted KL grade (per cent: share of the true grade)",
             ylabel="true KL grade")
    axis.set_xticks(np.arange(5) + 0.5, TICKS, rotation=0)
    axis.set_yticks(np.arange(5) + 0.5, [f"{grade} {NAMES[grade]}\nn = {n:,}"
                                         for grade, n in zip(GRADES, rows[:, 0], strict=True)], rotation=0)
    return figure


def _legend(figure, axes):
    # Each name once, over all panels.
    keys = {name: handle for axis in axes
            for handle, name in zip(*axis.get_legend_handles_labels(), strict=True) if name}
    if keys:
        # Two columns of long names are wider than the figure.
        columns = 1 if max(map(len, keys)) > 30 else 2
        figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=columns)


KINDS = {function.__name__: function for function in (forest, curves, confusion)}
