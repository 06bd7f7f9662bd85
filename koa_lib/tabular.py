"""Tables as HTML: names for people in the heads, numbers rounded and to the right, undefined ones as a dash."""

import math
from html import escape

import numpy as np
import pandas as pd

from koa_lib import labels

UNDEFINED = "–"
LONG = 40  # characters of a cell that is a sentence
_RIGHT = ' style="text-align:right"'  # also in JupyterLab, which has no style sheet of ours


class _Interval(str):
    """Name of a column that joins two bounds; it knows its head."""

    head = ""


class _Bounds(str):
    """Two numbers in a cell."""


def table(frame, floats, percent, label, thumbnails):
    """The HTML of a frame, in a region that scrolls by itself.

    Parameters
    ----------
    floats, percent
        As for `exhibits.show_table`.
    label : str
        Name of the region for screen readers.
    thumbnails : dict of str to list of str
        Further columns as HTML.
    """

    def decimals(column):
        # Per cent like the papers print them; bounds of an interval as what they bound.
        usual = 0 if column in labels.WHOLE else 1 if percent and (_bare(column) in labels.SHARES or _bare(column) in ("ci", "wilson")) else 3
        return floats.get(column, usual) if isinstance(floats, dict) else usual if floats is None or not usual else floats

    frame = _without_empty(_joined_intervals(frame, decimals))
    heads = "".join(_head(column, frame[column] if place else (), percent) for place, column in enumerate(frame.columns)) + "".join(f'<th scope="col">{escape(labels.column(name)[0])}</th>' for name in thumbnails)
    rows = []
    for values, *shown in zip(frame.itertuples(index=False, name=None), *thumbnails.values(), strict=True):
        first, *cells = (_cell(_named(value, column, percent), decimals(column)) for value, column in zip(values, frame.columns, strict=True))
        data = "".join(f"<td{_look(cell, value)}>{cell}</td>" for cell, value in zip(cells, values[1:], strict=True)) + "".join(f"<td>{picture}</td>" for picture in shown)
        rows.append(f'<tr><th scope="row">{first}</th>{data}</tr>')
    whole = f'<table class="koa-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    region = f'class="koa-scroll" role="region" aria-label="{label}" tabindex="0" style="overflow-x:auto"'
    return f"<div {region}>{whole}</div>"


def _bare(column):
    # "published_ci_low" is a bound as "ci_low" is.
    return str(column).removeprefix("published_").removesuffix("_low").removesuffix("_high")


def _head(column, values, percent):
    text, hint = (column.head, "") if isinstance(column, _Interval) else labels.column(column, percent)
    text = f'<abbr title="{escape(hint)}">{escape(text)}</abbr>' if hint else escape(text)
    numbers = [value for value in values if not _is_text(value)]
    return f'<th scope="col"{_RIGHT * bool(numbers)}>{text}</th>'


def _without_empty(frame):
    # A reason or a note that no row has; in a table of metrics it is a row.
    texts = frame.iloc[:, 1:].map(lambda value: isinstance(value, str) and not value)
    if not texts.size:
        return frame
    kept = [True, *~texts.all()]
    return frame.loc[~texts.all(axis=1).to_numpy(), kept]


def _joined_intervals(frame, decimals):
    # "ci_low" and "ci_high" become one column "0.12 to 0.20": half as wide, and the pair is read as one thing.
    shown = frame.copy()
    for low in [column for column in frame.columns if str(column).endswith("low")]:
        high = f"{low[:-3]}high"
        if high in frame.columns:
            bounds = zip(frame[low].astype(float), frame[high].astype(float), strict=True)
            texts = [np.nan if math.isnan(a + b) else _Bounds(f"{_cell(a, decimals(low))} to {_cell(b, decimals(low))}") for a, b in bounds]
            shown[low] = pd.Series(texts, index=frame.index, dtype=object)
            name = _Interval(low)
            name.head = labels.interval_column(low[:-3].rstrip("_ "))
            shown = shown.drop(columns=high).rename(columns={low: name})
    return shown


def _is_text(value):
    return isinstance(value, (str, bool, np.bool_)) and not isinstance(value, _Bounds)


def _look(cell, value):
    if not _is_text(value):
        return f' class="num"{_RIGHT}'
    # Sentences get a wide column, so that a row does not become a tower of words.
    return ' class="koa-text" style="text-align:left"' if len(cell) > LONG else ' style="text-align:left"'


def _named(value, column, percent):
    if not isinstance(value, str) or isinstance(value, _Bounds):
        return value
    return labels.column(value, percent)[0] if column == "metric" else labels.words(value)


def _cell(value, decimals):
    if value is None or value is pd.NA or value != value:
        return UNDEFINED
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if 0 < value < 0.5 * 10**-decimals:
            return f"&lt;{10**-decimals:.{decimals}f}"
        return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")  # + 0.0: no minus before a zero
    return escape(str(value))
