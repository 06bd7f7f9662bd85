"""Exhibits: the figures and tables of the report, saved as files and shown with caption and provenance.

Items of the paper keep their number ("figure_6"); the study's own are called "figure_s1", "table_s1", ...
"""

import base64
import io
import os
import re
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from koa_lib.errors import StudyError
from koa_lib.images import to_uint8
from koa_lib.report import labels
from koa_lib.report.tabular import UNDEFINED, table
from koa_lib.store import write_text

PNG_DPI, SHOWN_DPI = 300, 125
THUMBNAIL = 96  # pixels high
_LINK = re.compile(r"\[([^\]]+)\]\((#[\w-]+)\)")


@dataclass(frozen=True, repr=False)
class Exhibit:
    """A figure or table as a notebook shows it."""

    name: str
    html: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"<{self.name}>"


def show_figure(study, name, figure, caption, alt):
    """Save a figure as PNG and SVG and show it.

    Parameters
    ----------
    study : Study
        `run_dir`, `shown_dir`, `synthetic` and `stamp()` are used.
    name : str
        "figure_6" (item of the paper) or "figure_s1".
    figure : matplotlib Figure
        Closed afterwards.
    caption, alt : str
        What it shows; what a reader without sight must know. Codes of files become words; a caption may link within its
        page: "[Table S7](#table-s7)".

    Raises
    ------
    StudyError
        Another kind of name, or no alternative text.
    """
    if not alt.strip():
        raise StudyError(f"{name} has no alternative text. Say in a sentence what it shows.")
    _anchor(name, "figure")
    inches, png = figure.get_size_inches()[0], _save_figure(study, name, figure)
    return _exhibit(study, name, _picture(name, png, inches, labels.typeset(labels.words(alt))), caption)


def show_table(study, name, frame, caption, floats=None, pictures=None, undefined="", percent=None, hide=()):
    """Save a table as CSV in full precision and show it rounded, with names for people; its first column names the rows.

    Columns and rows without any text stay in the file only.

    Parameters
    ----------
    floats : int or dict, optional
        Decimals shown, for all columns or by column; else 1 for per cent and 3 for other fractions.
    pictures : dict of str to list of arrays (H, W), optional
        Further columns of the page, not of the file: a gray picture in [0, 1] (or uint8), or None, for each row.
    undefined : str
        Why a number may be undefined; stands below the table where one is.
    percent : bool, optional
        Shares are held in per cent; unless given, as `frame.attrs["percent"]` says.
    hide : sequence of str
        Columns of the file that the page leaves out.

    Raises
    ------
    StudyError
        Another kind of name, or a column of pictures that does not fit.
    """
    _anchor(name, "table")
    thumbnails = {column: _thumbnails(name, frame, column, grays) for column, grays in (pictures or {}).items()}
    _save_table(study, name, frame)
    percent = frame.attrs.get("percent", False) if percent is None else percent
    body = table(frame.drop(columns=list(hide)), floats, percent, _title(name), thumbnails)
    if undefined and f">{UNDEFINED}</t" in body:
        body += f'<p class="koa-undefined">{UNDEFINED}: {escape(undefined)}</p>'
    return _exhibit(study, name, body, caption)


def not_available(study, name, caption, reason):
    """Fill the place of an exhibit that this run cannot make, with the reason in the file and on the page."""
    text = f"Not in this run: {reason}"
    if name.startswith("table"):
        _anchor(name, "table")
        _save_table(study, name, pd.DataFrame({"status": ["not in this run"], "reason": [reason]}))
    else:
        from koa_lib.report.style import message

        _anchor(name, "figure")
        _save_figure(study, name, message(text))
    return _exhibit(study, name, f'<p class="koa-missing">{escape(text)}</p>', caption)


def _exhibit(study, name, body, caption):
    anchor = name.replace("_", "-")
    kinds = ("csv",) if name.startswith("table") else ("png", "svg")
    folder = "tables" if name.startswith("table") else "figures"
    # On a page the files lie beside the notebooks' folder; in JupyterLab the link leads from the notebook's folder to them.
    place = ".." if study.shown_dir == study.run_dir else os.path.relpath(study.shown_dir)
    links = " · ".join(f'<a href="{place}/{folder}/{name}.{kind}" download>{kind.upper()}</a>' for kind in kinds)
    stamp = escape(study.stamp()) + (" · synthetic phantoms" if study.synthetic else "")
    html = (
        f'<figure class="koa-exhibit" id="{anchor}" role="group" aria-labelledby="{anchor}-caption">{body}'
        f'<figcaption id="{anchor}-caption"><strong>{_title(name)}.</strong> {_LINK.sub(_linked, escape(labels.typeset(labels.words(caption))))}'
        f'<br><span class="koa-links">{links}</span> <small class="koa-stamp">{stamp}</small></figcaption></figure>'
    )
    return Exhibit(name, html)


def _picture(name, png, inches, alt):
    from koa_lib.report.style import COLUMN

    style, width = "max-width:100%;height:auto", round(SHOWN_DPI * inches)
    image = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}" width="{width}" style="{style}'
    if inches <= COLUMN:
        return f'{image}">'
    # Too wide for a phone: it scrolls by itself rather than become too small to read.
    region = f'class="koa-scroll" role="region" aria-label="{_title(name)}" tabindex="0" style="overflow-x:auto"'
    return f'<div {region}>{image};min-width:34rem"></div>'


def _linked(found):
    return f'<a href="{found[2]}">{found[1]}</a>'


def _anchor(name, kind):
    if not re.fullmatch(rf"{kind}_s?\d+", name):
        raise StudyError(f"'{name}' names no {kind}. Use {kind}_6 for an item of the paper or {kind}_s1 for our own.")


def _title(name):
    return labels.words(name) + ("" if "_s" in name else " of the paper")


def _save_table(study, name, frame):
    path = study.shown_dir / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _save_figure(study, name, figure):
    from matplotlib import pyplot, style

    folder = study.shown_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    # A fixed salt and no date: the same figure gives the same bytes.
    with style.context(["default", {"svg.hashsalt": name}]):
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata, facecolor="white")
            partial = folder / f".{name}.{os.getpid()}.{suffix}"
            partial.write_bytes(buffer.getvalue())
            partial.replace(folder / f"{name}.{suffix}")
    pyplot.close(figure)
    return (folder / f"{name}.png").read_bytes()


def _thumbnails(name, frame, column, grays):
    if len(grays) != len(frame) or column in frame.columns:
        raise StudyError(f"{name}: the pictures '{column}' need a new column name and one picture or None for each of the {len(frame)} rows, not {len(grays)}.")
    rows = frame.iloc[:, 0]
    column, first = labels.column(column)[0], labels.column(rows.name)[0]
    return ["" if gray is None else _thumbnail(gray, f"{column}, {first} {row}") for gray, row in zip(grays, rows, strict=True)]


def _thumbnail(gray, alt):
    from PIL import Image

    gray = np.asarray(gray)
    if gray.dtype != np.uint8 and not (gray.min() >= 0 and gray.max() <= 1):
        raise StudyError(f"The picture '{alt}' holds values from {gray.min():.2f} to {gray.max():.2f}; shown are [0, 1] or uint8. Read it with images.read_gray.")
    values = gray if gray.dtype == np.uint8 else to_uint8(gray)
    width, buffer = max(1, round(THUMBNAIL * gray.shape[1] / gray.shape[0])), io.BytesIO()
    Image.fromarray(values).resize((width, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="koa-thumbnail" src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" height="{THUMBNAIL}">'
