"""Tables as HTML: names for people in the heads, numbers rounded and to the right, undefined ones as a dash."""

import math
from html import escape

import numpy as np
import pandas as pd

from koa_lib.report import labels

UNDEFINED = "–"
LONG = 40  # characters of a cell that is a sentence
LARGE = 1000  # whole numbers from here on are counts, whatever stands beside them
_MIXED = ("metric", "check")  # columns that name what each row of a table of findings measures
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

    frame = _reasons_last(_without_empty(_joined_intervals(frame, decimals)))
    counts = {column for column in frame.columns if _is_count(column, frame[column])}
    counted, signed = _counted(frame), {column for column in frame.columns if any(isinstance(value, float) and value < 0 for value in frame[column])}
    heads = "".join(_head(column, frame[column] if place else (), percent) for place, column in enumerate(frame.columns)) + "".join(f'<th scope="col">{escape(labels.column(name)[0])}</th>' for name in thumbnails)
    rows = []
    for whole, values, *shown in zip(counted, frame.itertuples(index=False, name=None), *thumbnails.values(), strict=True):
        first, *cells = (_cell(_named(_whole(value, whole or column in counts), column, percent), decimals(column), column in signed) for value, column in zip(values, frame.columns, strict=True))
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


def _is_count(column, values):
    # Counts beside an undefined one are floats in a frame.
    numbers = [value for value in values if isinstance(value, float) and value == value]
    return _bare(column) not in labels.SHARES and any(abs(number) > 1 for number in numbers) and all(number.is_integer() for number in numbers)


def _counted(frame):
    # Rows of a table of findings have units of their own: one whose numbers are all whole holds counts.
    named = next((column for column in frame.columns if column in _MIXED), None)
    if named is None:
        return [False] * len(frame)
    numbers = frame.drop(columns="tolerance", errors="ignore").select_dtypes("number")
    rows = [[value for value in row if value == value] for row in numbers.itertuples(index=False, name=None)]
    whole = [all(float(value).is_integer() for value in row) and any(abs(value) > 1 for value in row) for row in rows]
    return [found and name not in labels.SHARES for found, name in zip(whole, frame[named], strict=True)]


def _whole(value, count):
    fits = isinstance(value, float) and value.is_integer() and (count or abs(value) >= LARGE)
    return int(value) if fits else value


def _reasons_last(frame):
    # A reader of a narrow page meets the numbers first.
    late = [column for column in frame.columns[1:] if column in ("note", "reason")]
    return frame[[column for column in frame.columns if column not in late] + late]


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
    lows = [column for column in frame.columns if str(column).endswith("low") and f"{column[:-3]}high" in frame.columns]
    for low in lows:
        high = f"{low[:-3]}high"
        bounds = list(zip(frame[low].astype(float), frame[high].astype(float), strict=True))
        signed = any(bound < 0 for pair in bounds for bound in pair)
        texts = [np.nan if math.isnan(a + b) else _Bounds(f"{_cell(a, decimals(low), signed)} to {_cell(b, decimals(low), signed)}") for a, b in bounds]
        shown[low] = pd.Series(texts, index=frame.index, dtype=object)
        name = _Interval(low)
        name.head = labels.interval_column(_belongs_to(frame, low) if len(lows) > 1 else low[:-3].rstrip("_ "))
        shown = shown.drop(columns=high).rename(columns={low: name})
    return shown


def _belongs_to(frame, low):
    """Of several intervals each names its column: "ci" that of the last number before it, "published_ci" the last published one."""
    name = low[:-3].rstrip("_ ")
    if _bare(low) != "ci":
        return name
    published = name.startswith("published_")
    before = [column for column in frame.columns[: frame.columns.get_loc(low)]
              if pd.api.types.is_numeric_dtype(frame[column]) and column not in labels.WHOLE and str(column).startswith("published_") == published and not str(column).endswith(("low", "high"))]
    return before[-1] if before else name


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


def _cell(value, decimals, signed=False):
    # "<0.001" beside "0.000" for as little below 0 would puzzle: a column with numbers below 0 has neither.
    if isinstance(value, _Bounds):
        return value  # made of cells that are escaped already
    if value is None or value is pd.NA or value != value:
        return UNDEFINED
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if not signed and 0 < value < 0.5 * 10**-decimals:
            return f"&lt;{10**-decimals:.{decimals}f}"
        return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")  # + 0.0: no minus before a zero
    return escape(labels.typeset(str(value)))
