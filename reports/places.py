"""Where things stand in the report: the items of the paper, the exhibits of the notebooks, and links to them."""

import re
from html import unescape

from koa_lib.report import labels
from reports.provenance import html_outputs

__all__ = ["PAGES", "PAPER_ITEMS", "Places", "exhibits", "items", "others", "title"]

# Item of the paper: what it shows, and the notebook that makes it.
PAPER_ITEMS = {
    "table_1": ("The grades and their textual descriptions", "01_data_audit"),
    "table_2": ("Overall performance, training and external", "05_external_evaluation"),
    "table_3": ("Performance per grade", "05_external_evaluation"),
    "table_4": ("Comparison with image-only models", "04_baselines"),
    "table_5": ("Comparison with other studies", "06_statistics"),
    "figure_1": ("CLIP for grading, principle", "02_zero_shot_baseline"),
    "figure_2": ("Radiographs per grade and data set", "01_data_audit"),
    "figure_3": ("Inference with CLIP", "02_zero_shot_baseline"),
    "figure_4": ("The fine-tuned model", "03_fine_tune"),
    "figure_5": ("Accuracy and loss over epochs", "03_fine_tune"),
    "figure_6": ("Confusion matrix, external data", "05_external_evaluation"),
    "figure_7": ("Graded examples with probabilities", "05_external_evaluation"),
    "figure_8": ("Image-to-query similarity", "07_similarity_retrieval"),
}
# The other pages of the report; a page whose source is absent is left out.
PAGES = {
    "index": "Summary",
    "deviations": "Methods and deviations",
    "glossary": "Glossary",
    "tripod_ai": "TRIPOD+AI checklist",
    "claim_2024": "CLAIM 2024 checklist",
    "model_card": "Model card",
    "data_cards": "Data cards",
    "environment": "Environment and provenance",
    "references": "References",
}
_EXHIBIT = re.compile(r'<figure\b[^>]*\bid="((?:figure|table)-s?\d+)"[^>]*>(.*?)</figure>', re.DOTALL)
_TITLE = re.compile(r"<figcaption[^>]*>(.*?)(?:<br>|</figcaption>)", re.DOTALL)
_MISSING = re.compile(r'class="koa-missing">(?:Not in this run:)?(.*?)</p>', re.DOTALL)
_NAME = re.compile(r"(figure|table)_s?\d+")


class Places:
    """Turns the names of exhibits, notebooks and pages into links that work in one report.

    Parameters
    ----------
    notebooks : dict of str to notebook
        The executed ones.
    found : dict
        As from `exhibits`.
    """

    def __init__(self, notebooks, found):
        self.notebooks, self.exhibits = notebooks, found

    def link(self, target):
        """Where a target stands: label, and href, which is None when this run does not have it.

        A target is an exhibit ('table_s2'), a notebook ('05_external_evaluation') or a page with an anchor
        ('deviations#d4').
        """
        if _NAME.fullmatch(target):
            return {"label": labels.words(target), "href": self.exhibits.get(target, {}).get("page")}
        page, _, anchor = target.partition("#")
        if page in PAGES:
            told = f"Deviation {anchor.upper()}" if re.fullmatch(r"d\d+", anchor) else PAGES[page] + f": {anchor.replace('-', ' ')}" * bool(anchor)
            return {"label": told, "href": f"{page}.html" + f"#{anchor}" * bool(anchor)}
        return {"label": f"Notebook {int(page[:2])}", "href": f"nb/{page}.html" if page in self.notebooks else None}


def title(notebook, stem):
    """The first heading of a notebook without its number, e.g. 'Does it hold elsewhere?'."""
    heading = re.search(r"^# (?:\d+ · )?(.+)$", notebook.cells[0].source, re.MULTILINE) if notebook.cells else None
    return heading[1].strip() if heading else stem


def exhibits(notebooks):
    """Where each table and figure stands: name -> name, title, notebook, page with anchor, reason when empty."""
    found = {}
    for stem, notebook in notebooks.items():
        for anchor, body in _EXHIBIT.findall("\n".join(html_outputs(notebook))):
            name = anchor.replace("-", "_")
            # An item shown twice is linked where it belongs.
            if name not in found or PAPER_ITEMS.get(name, ("", ""))[1] == stem:
                found[name] = _exhibit(stem, anchor, body)
    return found


def items(run_dir, notebooks, found):
    """A row for each item of the paper: name, title, page, reason, and where made: notebook, heading, download, files."""
    rows = []
    for name, (shows, maker) in PAPER_ITEMS.items():
        row = {"name": labels.words(name), "title": shows, "page": None, "reason": ""}
        if name in found:
            place = found[name]
            stem = place["notebook"]
            row |= {"page": place["page"], "notebook": stem, "heading": title(notebooks[stem], stem), "reason": place["reason"],
                    "download": f"_sources/nb/{stem}.ipynb", "files": _files(run_dir, name)}
        else:
            row["reason"] = f"{maker} {'does not show it' if maker in notebooks else 'has not been run'}"
        rows.append(row)
    return rows


def others(notebooks, found):
    """The study's own exhibits, by notebook: (heading, page, list of exhibits)."""
    own = [place for name, place in found.items() if name not in PAPER_ITEMS]
    grouped = ((stem, [place for place in own if place["notebook"] == stem]) for stem in notebooks)
    return [(title(notebooks[stem], stem), f"nb/{stem}.html", places) for stem, places in grouped if places]


def _exhibit(stem, anchor, body):
    caption, missing = _TITLE.search(body), _MISSING.search(body)
    return {
        "name": labels.words(anchor.replace("-", "_")),
        "notebook": stem,
        "page": f"nb/{stem}.html#{anchor}",
        "title": _first_sentence(caption[1]) if caption else "",
        "reason": _plain(missing[1]) if missing else "",
    }


def _plain(markup):
    return unescape(" ".join(re.sub(r"<[^>]+>", "", markup).split()))


def _first_sentence(caption):
    text = _plain(caption)
    text = re.sub(r"^(Figure|Table) S?\d+( of the paper)?[.:]?\s*", "", text)
    return text.split(". ")[0].rstrip(".")


def _files(run_dir, name):
    folder, kinds = ("tables", ("csv",)) if name.startswith("table") else ("figures", ("png", "svg"))
    paths = {kind.upper(): f"{folder}/{name}.{kind}" for kind in kinds}
    return [(kind, path) for kind, path in paths.items() if (run_dir / path).is_file()]
