"""`show("key", frame)`: a table or figure is saved as files and shown with what its YAML entry makes of the
frame."""

import base64
import io
import json
import os
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from filelock import FileLock
from markdown_it import MarkdownIt

from koa_lib.data import cohorts
from koa_lib.errors import StudyError
from koa_lib.images import to_uint8
from koa_lib.report import entries, plots, tables, words
from koa_lib.report.style import COLUMN, PNG_DPI, message
from koa_lib.store import write_table, write_text

_MARKDOWN = MarkdownIt()
SHOWN_DPI, THUMBNAIL = 125, 96  # pixels per inch on a page; height of a picture in a table
NOTHING = "this run has no data for it"
NO_REGIONS = "the pictures are real: nobody knows where a model should look, and their maps are only shown"


@dataclass(frozen=True, repr=False)
class Exhibit:
    """A table or figure: HTML for JupyterLab, MyST with a real label for the report."""

    name: str
    html: str
    myst: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": self.html, "text/markdown": self.myst, "text/plain": f"<{self.name}>"}


class Show:
    """Shows the exhibits of one notebook.

    Parameters
    ----------
    study : Study
        `run_dir`, `own_dir`, `profile`, `synthetic` and `stamp()` are used.
    notebook : str
        Whose exhibits these are: the name of a file of `reports/exhibits`.
    """

    def __init__(self, study, notebook):
        self.study, self.notebook, self.entries = study, notebook, entries.read(notebook)
        self._note(lambda listed: {key: entry for key, entry in listed.items()
                                   if entry["notebook"] != notebook})

    def __call__(self, key, data=None, draw=None, pictures=None, **facts):
        """Save and show an exhibit.

        Parameters
        ----------
        key : str
            Of the notebook's YAML.
        data : DataFrame, callable or any
            The table, or what the figure is drawn from; a function is called only when the run has what the
            entry needs. A frame is kept as CSV in full precision, also that of a figure; a str says why there
            is none.
        draw : callable, optional
            From data to a matplotlib figure, for figures that are no chart of `plots`.
        pictures : dict of str to list of arrays (H, W), optional
            Further columns of the page: a gray picture in [0, 1] (or uint8), or None, for each row.
        **facts
            Further names for the templates.

        Returns
        -------
        Exhibit

        Raises
        ------
        StudyError
            An unknown key, an unknown name in a template, numbers without a format.
        """
        if key not in self.entries:
            raise StudyError(f"{self.notebook}.yaml declares no exhibit '{key}'. "
                             f"Known: {', '.join(self.entries)}.")
        entry = self.entries[key]
        reason = next(filter(None, (self._absent(need) for need in entry.needs)), "")
        if reason:
            return self._placeholder(entry, reason)
        data = data() if callable(data) else data
        if isinstance(data, str):
            return self._placeholder(entry, data)
        if isinstance(data, pd.DataFrame) and data.empty:
            return self._placeholder(entry, NOTHING)
        facts = self._facts() | facts | {"t": data}
        # Nothing is written before all of it could be made.
        texts = [entry.fill(template, facts) for template in ("caption", "says", "alt")]
        if entry.kind == "figure":
            body, files = self._figure(entry, draw(data) if draw else plots.draw(entry.plot, data), texts[-1])
        else:
            body, files = self._table(entry, data, pictures or {}), []
        files += self._save_frame(entry, data) if isinstance(data, pd.DataFrame) else []
        return self._exhibit(entry, body, texts, files)

    def _absent(self, need):
        # Why the run lacks something; empty when it has it.
        if need == "external":
            if self.study.synthetic or self.study.folder_of("external"):
                return ""
            from koa_lib.comparison import NO_EXTERNAL  # slow to import

            return NO_EXTERNAL
        if need == "regions":
            return "" if self.study.synthetic else NO_REGIONS
        return self.study.profile.not_run.get(need, "")

    def _facts(self):
        study = self.study
        training, external = study.profile.training.name, study.profile.external.name
        return {"training": training, "external": external, "model": study.profile.model.name,
                "draws": f"{study.profile.draws:,}", "seed": study.seed, "synthetic": study.synthetic,
                "interval": interval(study, training), "interval_external": interval(study, external),
                "interval_both": interval(study, training, external)}

    def _placeholder(self, entry, reason):
        if entry.kind == "table":
            files = self._save_frame(entry, pd.DataFrame({"status": ["not in this run"], "reason": [reason]}))
        else:
            _, files = self._figure(entry, message(f"Not in this run: {reason}"), reason)
        body = f'<p class="koa-missing">Not in this run: {escape(reason)}</p>'
        return self._exhibit(entry, body, (f"{entry.title}.", "", reason), files, reason)

    def _save_frame(self, entry, frame):
        path = self.study.own_dir / "tables" / f"{entry.key}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, frame)
        return [f"tables/{entry.key}.csv"]

    def _table(self, entry, frame, pictures):
        frame = frame[entry.lead + [name for name in frame.columns if name not in entry.lead]]
        columns = tables.declared(frame, entries.shared_columns(), entry.columns, entry.key)
        frame = tables.terms(frame, columns, entries.shared_columns())
        thumbnails = {name: _thumbnails(entry.key, frame, name, grays) for name, grays in pictures.items()}
        body = tables.table(frame, columns, entry.name, thumbnails)
        if entry.undefined and f">{tables.UNDEFINED}</t" in body:
            body += f'<p class="koa-undefined">{tables.UNDEFINED}: {escape(entry.undefined)}</p>'
        return body

    def _figure(self, entry, figure, alt):
        folder, files = self.study.own_dir / "figures", []
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            partial = folder / f".{entry.key}.{os.getpid()}.{suffix}"
            partial.write_bytes(_image(figure, entry.key, suffix))
            partial.replace(folder / f"{entry.key}.{suffix}")
            files.append(f"figures/{entry.key}.{suffix}")
        return self._picture(entry, folder, figure.get_size_inches()[0], alt), files

    def _picture(self, entry, folder, inches, alt):
        # A page lies beside the files; a session in JupyterLab keeps the picture in its notebook.
        source = f"../figures/{entry.key}.png"
        if self._interactive:
            source = ("data:image/png;base64,"
                      f"{base64.b64encode((folder / f'{entry.key}.png').read_bytes()).decode()}")
        style, width = "max-width:100%;height:auto", round(SHOWN_DPI * inches)
        image = f'<img src="{source}" alt="{escape(alt)}" width="{width}" style="{style}'
        if inches <= COLUMN:
            return f'{image}">'
        # Too wide for a phone: it scrolls by itself rather than become too small to read.
        return (f'<div class="koa-scroll" role="region" aria-label="{entry.name}" tabindex="0" '
                f'style="overflow-x:auto">{image};min-width:34rem"></div>')

    @property
    def _interactive(self):
        return self.study.own_dir != self.study.run_dir

    def _exhibit(self, entry, body, texts, files, reason=""):
        caption, says, alt = texts
        place = os.path.relpath(self.study.own_dir) if self._interactive else ".."
        links = " · ".join(
            f'<a href="{place}/{file}" download>{file.rpartition(".")[2].upper()}</a>'
            for file in sorted(files))
        stamp = escape(self.study.stamp()) + (" · synthetic phantoms" if self.study.synthetic else "")
        title = f"{entry.name}{' of the paper' * entries.is_paper_item(entry.key)}."
        self._note(lambda listed: listed | {entry.key: {
            "name": entry.name, "kind": entry.kind, "number": entry.number, "title": entry.title,
            "notebook": self.notebook, "caption": caption, "alt": alt, "files": files, "reason": reason,
            "commit": self.study.commit, "data": self.study.data_note().get("hash", "unknown")}})
        start = (f'role="group" aria-labelledby="{entry.key}-caption">{body}'
                 f'<figcaption id="{entry.key}-caption">')
        end = (f'<span class="koa-links">{links}</span> <small class="koa-stamp">{stamp}</small>'
               '</figcaption></figure>')
        # Sphinx writes the label so, and gives it to nothing that is raw.
        text, label = f"**{title}** {caption}", entries.label(entry.key)
        html = (f'<figure class="koa-exhibit" id="{entry.key}" {start}'
                f'{_MARKDOWN.render(text)}{end}{_MARKDOWN.render(says)}')
        myst = "\n\n".join([f"({entry.key})=", _raw(f'<figure class="koa-exhibit" id="{label}" {start}'),
                            text, _raw(end), says])
        return Exhibit(entry.name, html, myst)

    def _note(self, change):
        folder = self.study.own_dir
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder / f".{entries.LISTED}.lock")):
            listed = change(entries.noted(folder))
            write_text(folder / entries.LISTED, json.dumps(listed, indent=1, ensure_ascii=False))


def interval(study, *names):
    """What the bootstrap intervals of a caption are: level, draws, and what is resampled in each cohort."""
    patients = dict.fromkeys(cohorts.facts(name).group == "patient" for name in names)
    units = {True: "whole patients",
             False: "groups of look-alike pictures (patients are not known: it may be too narrow)"}
    return (f"95 % interval: group bootstrap, {study.profile.draws:,} draws of "
            f"{' or '.join(units[known] for known in patients)}")


def _raw(html):
    # On one line: a line of a cell could close the fence.
    return "```{raw} html\n" + " ".join(html.splitlines()) + "\n```"


def _image(figure, key, suffix):
    from matplotlib import style

    # A fixed salt and no date: the same figure gives the same bytes.
    with style.context(["default", {"svg.hashsalt": key}]):
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata, facecolor="white")
    return buffer.getvalue()


def _thumbnails(key, frame, name, grays):
    if len(grays) != len(frame) or name in frame.columns:
        raise StudyError(f"{key}: the pictures '{name}' need a new column name and one picture or None "
                         f"for each of the {len(frame)} rows, not {len(grays)}.")
    return ["" if gray is None else _thumbnail(gray, f"{name}, {row}")
            for gray, row in zip(grays, frame.iloc[:, 0], strict=True)]


def _thumbnail(gray, alt):
    from PIL import Image

    gray = np.asarray(gray)
    if gray.dtype != np.uint8 and not (gray.min() >= 0 and gray.max() <= 1):
        raise StudyError(f"The picture '{alt}' holds values from {gray.min():.2f} to {gray.max():.2f}; "
                         "shown are [0, 1] or uint8. Read it with images.read_gray.")
    values = gray if gray.dtype == np.uint8 else to_uint8(gray)
    width, buffer = max(1, round(THUMBNAIL * gray.shape[1] / gray.shape[0])), io.BytesIO()
    Image.fromarray(values).resize((width, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (f'<img class="koa-thumbnail" src="data:image/png;base64,{data}" '
            f'alt="{escape(words.people(alt))}" width="{width}" height="{THUMBNAIL}">')
