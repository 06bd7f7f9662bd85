"""Tables as HTML: heads for people, numbers in the format that their column declares,
undefined ones as a dash."""

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from html import escape

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.report import words

UNDEFINED = "–"
LONG = 40  # characters of a cell that is a sentence
# Unit -> decimals and what stands behind the head; "unit.2" has two decimals.
UNITS = {"count": (0, ""), "ratio": (3, ""), "number": (3, ""), "percent": (1, "%"), "points": (1, "points"),
         "p": (4, ""), "nats": (3, "nats"), "milliseconds": (1, "ms"), "seconds": (1, "s"),
         "minutes": (1, "min"), "pixels": (0, "px"), "grades": (3, "grades"), "years": (0, "years"),
         "pictures per second": (1, "pictures/s")}
# Whose unit another column names, row by row; published numbers have two decimals.
BY_UNIT, _BY_UNIT_DECIMALS = "by_unit", {"percent": 2, "points": 2}
HIDDEN, TEXT = "hidden", "text"
TERM = "term"  # the code of a column, shown as the head that all exhibits share
PRINTED = "printed"  # a text as the paper prints it, though it may be one of our codes
WORDS = (TEXT, TERM, PRINTED)
_RIGHT = ' style="text-align:right"'  # also in JupyterLab, which has no style sheet of ours


@dataclass(frozen=True)
class Column:
    """How a column is shown: its head, format (a unit, perhaps with decimals; text; hidden; by_unit),
    and a hint on what it is."""

    head: str
    format: str = ""
    hint: str = ""

    @classmethod
    def of(cls, name, settings, known=None):
        """A column from YAML: a format, or a mapping of head, format and hint;
        what is not said is as in `known`."""
        settings = {"format": settings} if isinstance(settings, str) else settings
        if not isinstance(settings, dict) or set(settings) - {"head", "format", "hint"}:
            raise StudyError(f"Column '{name}' is declared as {settings}; "
                             "allowed: a format, or head, format and hint.")
        column = replace(known or cls(words.capital(words.people(name).replace("_", " "))), **settings)
        others = ("", BY_UNIT, HIDDEN, *WORDS)
        if column.format not in others and not re.fullmatch(rf"({'|'.join(UNITS)})(\.\d)?", column.format):
            raise StudyError(f"Column '{name}' declares the format '{column.format}'. "
                             f"Known: {', '.join(UNITS)} (also as percent.2), {', '.join(others[1:])}.")
        return column

    @property
    def title(self):
        """The head with its unit."""
        unit = UNITS.get(self.format.split(".")[0], (0, ""))[1]
        return f"{self.head} ({unit})" if unit else self.head


def declared(frame, shared, own, key):
    """How each column of a frame is shown.

    Parameters
    ----------
    frame : DataFrame
    shared, own : dict of str to Column, dict of str to str or dict
        Declared for all exhibits; by the exhibit `key` itself.

    Raises
    ------
    StudyError
        Numbers without a declared format, or a declared column that the frame lacks.
    """
    absent = [name for name in own if "*" not in name and name not in frame and f"{name}_low" not in frame]
    if absent:
        raise StudyError(f"Exhibit '{key}' declares the column '{absent[0]}', which its table lacks; "
                         f"it has {', '.join(map(str, frame.columns))}.")
    found = {}
    for name in frame.columns:
        bound = _bound(name, frame)
        column = _declared(bound or str(name), shared, own)
        if not column.format and _has_numbers(frame[name]):
            raise StudyError(f"Exhibit '{key}' declares no format for the numbers of its column "
                             f"'{bound or name}'.")
        found[name] = column if column.format else replace(column, format=TEXT)
    return found


def _declared(name, shared, own):
    known = _match(name, shared)
    known = known and replace(known[0], head=known[0].head.replace("{}", known[1]))
    said = _match(name, own)
    if said is None:
        return known or Column.of(name, {})
    column = Column.of(name, said[0], known)
    return replace(column, head=column.head.replace("{}", said[1]))


def _match(name, columns):
    # The column itself, or the first pattern that fits, with what its star stands for.
    if name in columns:
        return columns[name], ""
    for pattern, settings in columns.items():
        if "*" in pattern and fnmatchcase(name, pattern):
            before, after = pattern.split("*", 1)
            return settings, words.people(name[len(before): len(name) - len(after)]).replace("_", " ")
    return None


def _has_numbers(values):
    # Whole numbers among words, such as a grade beside "mean", are names.
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return True
    return any(_is_number(value) and value % 1 != 0 for value in values)


def _is_number(value):
    return (isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
            and value == value)


def _bound(name, frame):
    # "qwk" for "qwk_low" beside "qwk_high"; None for any other column.
    for end, other in (("_low", "_high"), ("_high", "_low")):
        base = str(name).removesuffix(end)
        if base != name and f"{base}{other}" in frame:
            return base
    return None


def terms(frame, columns, shared):
    """The frame, the codes in its columns of the format "term" replaced by the heads of shared columns."""
    return frame.assign(**{name: [_declared(code, shared, {}).head for code in frame[name]]
                           for name, column in columns.items() if column.format == TERM})


def table(frame, columns, label, pictures):
    """The HTML of a frame, in a region that scrolls by itself; its first column names the rows.

    Columns without any text are left out; the bounds of an interval become one column.

    Parameters
    ----------
    columns : dict of str to Column
        As from `declared`.
    label : str
        Name of the region for screen readers.
    pictures : dict of str to list of str
        Further columns as HTML.
    """
    shown = list(_cells(frame, columns))
    # The first column names the rows, also where its names are numbers.
    heads = "".join(f'<th scope="col"{_RIGHT * (numeric and bool(place))}>{_head(*head)}</th>'
                    for place, (head, numeric, _) in enumerate(shown))
    heads += "".join(f'<th scope="col">{escape(words.capital(name))}</th>' for name in pictures)
    (_, _, first), *others = shown
    rows = []
    for place in range(len(frame)):
        cells = ([_data(cells[place], numeric) for _, numeric, cells in others]
                 + [f"<td>{column[place]}</td>" for column in pictures.values()])
        rows.append(f'<tr><th scope="row">{escape(first[place])}</th>{"".join(cells)}</tr>')
    whole = f'<table class="koa-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    region = (f'class="koa-scroll" role="region" aria-label="{escape(label)}" tabindex="0" '
              'style="overflow-x:auto"')
    return f"<div {region}>{whole}</div>"


def _cells(frame, columns):
    # (head and hint, whether numbers, texts) of each column that is shown.
    units = frame.get("unit")
    for name, column in columns.items():
        base = _bound(name, frame)
        if column.format == HIDDEN or (base and str(name).endswith("_high")):
            continue
        numeric = column.format not in WORDS
        signs = _signs(column, frame[name], units)
        texts = [_text(value, _format(column, units, place), signs[place])
                 for place, value in enumerate(frame[name])]
        if base:
            highs = [_text(value, _format(column, units, place), signs[place])
                     for place, value in enumerate(frame[f"{base}_high"])]
            texts = [low if low == UNDEFINED else f"{low} to {high}"
                     for low, high in zip(texts, highs, strict=True)]
            head = "95 % interval" if base == "ci" else f"{column.title}, 95 % interval"
            yield (head, ""), True, texts
        elif numeric or any(texts):
            yield (column.title, column.hint), numeric, texts


def _format(column, units, place):
    if column.format != BY_UNIT:
        return column.format
    unit = units.iloc[place] if units is not None else ""
    return (f"{unit}.{_BY_UNIT_DECIMALS[unit]}" if unit in _BY_UNIT_DECIMALS
            else unit if unit in UNITS else "number")


def _signs(column, values, units):
    # Whether a cell stands among numbers below 0, for a column of mixed units among those of its own.
    if column.format != BY_UNIT or units is None:
        return [column.format not in WORDS and _signed(values)] * len(values)
    signed = {unit: _signed(values[units == unit]) for unit in set(units)}
    return [signed[unit] for unit in units]


def _signed(values):
    return any(isinstance(value, (float, np.floating)) and value < 0 for value in values)


def _text(value, unit, signed=False):
    if unit == TEXT and _is_number(value):
        return f"{value:.6g}"  # a number that is a name
    if value is None or value is pd.NA or value != value:
        return UNDEFINED if unit != TEXT else ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, str):
        return words.typeset(value if unit == PRINTED else words.people(value))
    name, _, decimals = unit.partition(".")
    decimals = int(decimals) if decimals else UNITS[name][0] if name in UNITS else 0
    # "<0.001" beside "0.000" for as little below 0 would puzzle: a column with numbers below 0 has neither.
    if not signed and 0 < value < 0.5 * 10**-decimals:
        return f"<{10**-decimals:.{decimals}f}"
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")  # + 0.0: no minus before a zero


def _head(text, hint):
    return f'<abbr title="{escape(hint)}">{escape(text)}</abbr>' if hint else escape(text)


def _data(text, numeric):
    # Sentences get a wide column, so that a row does not become a tower of words.
    look = (f' class="num"{_RIGHT}' if numeric
            else ' class="koa-text" style="text-align:left"' if len(text) > LONG
            else ' style="text-align:left"')
    return f"<td{look}>{escape(text)}</td>"
