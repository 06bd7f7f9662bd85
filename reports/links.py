"""Links of the notebooks and pages: written so that they work in JupyterLab, turned into those of the built pages.

Sphinx knows headings, not the anchors of exhibits inside outputs, and pages lie elsewhere than notebooks; so links to exhibits,
notebooks and pages become plain HTML links, which `pages.dead_links` checks.
"""

import re
from html import escape
from pathlib import PurePosixPath

_LINK = re.compile(r"(?<![!\\])\[([^\[\]]+)\]\(([^()\s#]*)(?:#([^()\s]+))?\)")
_EXHIBIT = re.compile(r"(figure|table)-s?\d+")


def for_page(text, stems, in_notebook, shown=None):
    """Markdown whose links lead to built pages.

    Parameters
    ----------
    text : str
        Links as JupyterLab follows them: ``#table-s7``, ``06_statistics.ipynb#table-5``, and from a notebook
        ``../reports/glossary.md#term-fold``, from a page ``../notebooks/06_statistics.ipynb``.
    stems : collection of str
        The notebooks that have a page; links to others are left as words.
    in_notebook : bool
        Whether the text stands in a notebook, whose page lies in ``nb/``, or in a page beside the index.
    shown : collection of str, optional
        The anchors of the exhibits that the run shows; links to other exhibits are left as words. All are shown unless given.
    """

    def follow(match):
        words, path, anchor = match[1], PurePosixPath(match[2]), f"#{match[3]}" if match[3] else ""
        if shown is not None and _EXHIBIT.fullmatch(anchor[1:]) and anchor[1:] not in shown:
            return words
        if not match[2]:
            return _anchored(words, anchor) if _EXHIBIT.fullmatch(anchor[1:]) else match[0]
        if path.suffix == ".ipynb":
            return _anchored(words, f"{'' if in_notebook else 'nb/'}{path.stem}.html{anchor}") if path.stem in stems else words
        if path.parts[:2] == ("..", "reports") and path.suffix == ".md":
            return _anchored(words, f"../{path.stem}.html{anchor}")
        return match[0]

    return _LINK.sub(follow, text)


def in_notebook(notebook, stems, shown):
    """The same notebook with `for_page` done to its Markdown cells and Markdown outputs."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = for_page(cell.source, stems, True, shown)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = for_page(_joined(output.data["text/markdown"]), stems, True, shown)
    return notebook


def in_pages(folder, stems, shown):
    """Do `for_page` to every Markdown page of a folder, in place."""
    for path in folder.glob("*.md"):
        path.write_text(for_page(path.read_text(encoding="utf-8"), stems, False, shown), encoding="utf-8")


def _anchored(words, address):
    return f'<a href="{escape(address)}">{words}</a>'


def _joined(text):
    return text if isinstance(text, str) else "".join(text)
