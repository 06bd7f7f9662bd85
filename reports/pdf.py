"""The report as one PDF: all pages joined into one document,
printed by headless Chromium with bookmarks and page numbers."""

import logging
import os
import shutil
import subprocess
import tempfile
import unicodedata
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from koa_lib.errors import StudyError

__all__ = ["chromium", "print_report"]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 8
FOOT = 120  # points from the lower edge of a sheet, where a heading may have been meant for the next
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
# The margins carry the banner and the page number.
_HEAD = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">\
<title>{title}</title>
{styles}<style>
@page {{ @top-center {{ content: {banner}; font: 8pt sans-serif; color: #5c4400; }}\
 @bottom-left {{ content: {title_text}; font: 8pt sans-serif; }}
  @bottom-right {{ content: counter(page) " / " counter(pages); font: 8pt sans-serif; }} }}
.koa-page {{ break-before: page; }} .koa-page:first-of-type {{ break-before: auto; }}
.koa-mark, .koa-mark:hover {{ color: inherit; text-decoration: none; }}
</style></head><body><main class="bd-main"><div class="bd-content"><div class="bd-article-container">"""
_NOTE = ("<p>Printed from the pages of this report. The code of the notebooks is left out; "
         "it stands, folded, in the HTML pages. Tables are also in the folder <code>tables</code> as CSV, "
         "figures in <code>figures</code> as PNG and SVG.</p>")


def print_report(run_dir):
    """Print the HTML report of a run.

    Parameters
    ----------
    run_dir : Path
        A run folder with built pages in `html/`.

    Returns
    -------
    Path
        `run_dir/koa-clip-<run>.pdf`: A4, tagged, one bookmark for each heading, links between pages kept
        inside.

    Raises
    ------
    StudyError
        No pages, no Chromium, or Chromium failed.
    """
    run_dir = Path(run_dir).resolve()
    html, target = run_dir / "html", run_dir / f"koa-clip-{run_dir.name}.pdf"
    if not (html / "index.html").is_file():
        raise StudyError(f"{html} holds no report. Run 'make reproduce' with this profile first.")
    program = chromium()
    # In the folder of the pages, so that style sheets are found; hidden, so that nobody takes it for a page.
    joined = html / f".print-{os.getpid()}.html"
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        text, headings = join(html)
        joined.write_text(text, encoding="utf-8")
        _print(program, joined, partial)
        _finish(partial, target, headings)
    finally:
        joined.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    return target


def chromium():
    """The path of the browser; StudyError when there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not found:
        raise StudyError("The PDF is printed by Chromium, which is not installed. "
                         "On Debian: apt-get install chromium.")
    return found


def join(html):
    """All pages of a folder as one HTML document, in the order of the navigation; the first gets the run's
    banner.

    Ids get the page's name in front, links between pages become links to these ids, links to other files
    become plain text.

    Returns
    -------
    text : str
    headings : list of (level 1-6, id, title)
        In reading order: the bookmarks of the PDF.
    """
    from bs4 import BeautifulSoup

    index = BeautifulSoup((html / "index.html").read_text(encoding="utf-8"), "html.parser")
    banner = index.select_one(".bd-header-announcement__content")
    banner = banner.get_text(" ", strip=True) if banner else ""
    title = index.title.get_text(strip=True).split(" — ")[-1]
    styles = "".join(str(link) for link in index.select('link[rel="stylesheet"]'))
    pages = [html / "index.html", *_in_order(index, html)]
    parts = [_HEAD.format(title=escape(title), title_text=_quoted(title), banner=_quoted(banner),
                          styles=styles)]
    headings = []
    for path in pages:
        article = _article(path, pages, html)
        headings += _mark_headings(article, _name(path, html))
        if banner and path == pages[0]:
            said = f'<p class="koa-printed-banner"><strong>{escape(banner)}</strong></p>{_NOTE}'
            article.h1.insert_after(BeautifulSoup(said, "html.parser"))
        content = article.decode_contents()
        parts.append(f'<article class="bd-article koa-page" id="{_name(path, html)}">{content}</article>')
    return "".join(parts) + "</div></div></main></body></html>", headings


def _in_order(index, html):
    addresses = [link["href"].split("#")[0] for link in index.select(".bd-docs-nav a.internal[href]")]
    return [html / address for address in dict.fromkeys(addresses) if address]


def _quoted(text):
    return '"' + text.replace("\\", "").replace('"', "'") + '"'


def _article(path, pages, html):
    from bs4 import BeautifulSoup

    article = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select_one("article.bd-article")
    for node in article.select("script, details.hide, a.headerlink"):
        node.decompose()
    name = _name(path, html)
    for node in article.select("[id]"):
        node["id"] = f"{name}--{node['id']}"
    for attribute in ("aria-labelledby", "aria-describedby", "for", "headers"):
        for node in article.select(f"[{attribute}]"):
            node[attribute] = " ".join(f"{name}--{word}" for word in node.get_attribute_list(attribute))
    for link in article.select("a[href]"):
        _redirect(link, path, pages, html)
    for node in article.select("details"):
        node["open"] = ""
    return article


def _mark_headings(article, name):
    # A browser notes where in the PDF an id lies only when a link leads there: each heading gets one to
    # itself.
    from bs4 import BeautifulSoup

    marked = []
    for number, heading in enumerate(article.find_all(HEADINGS)):
        mark = f"{name}--heading-{number}"
        link = BeautifulSoup("", "html.parser").new_tag(
            "a", href=f"#{mark}", id=mark, attrs={"class": "koa-mark"})
        link.extend(list(heading.contents))
        heading.append(link)
        marked.append((int(heading.name[1]), mark, " ".join(heading.get_text().split())))
    return marked


def _name(path, html):
    return path.relative_to(html).with_suffix("").as_posix().replace("/", "-")


def _redirect(link, path, pages, html):
    parts = urlsplit(link["href"])
    if parts.scheme or parts.netloc:
        return
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target in pages:
        link["href"] = f"#{_name(target, html)}" + (f"--{unquote(parts.fragment)}" if parts.fragment else "")
    else:
        link.unwrap()


def _print(program, page, target):
    options = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage",
               "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
               "--export-tagged-pdf", "--no-pdf-header-footer", f"--print-to-pdf={target}"]
    with tempfile.TemporaryDirectory() as profile:
        # As root, as in a container, Chromium starts only without its sandbox; the pages are our own.
        command = [program, *options, *["--no-sandbox"] * (os.geteuid() == 0),
                   f"--user-data-dir={profile}", page.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
        except subprocess.TimeoutExpired:
            raise StudyError(f"Chromium did not print the report within {MINUTES} minutes. "
                             "Close other programs and try again.") from None
    if not target.is_file() or not target.stat().st_size:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise StudyError(f"Chromium could not print the report (exit code {done.returncode}): {last}")


def _finish(partial, target, headings):
    """Open with the bookmarks in sight, folded to one per page; name the author,
    not the machine's program."""
    from pypdf import PdfWriter
    from pypdf.generic import NameObject

    # It counts the objects of Chromium's files otherwise, and says so.
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    writer = PdfWriter(clone_from=partial)
    _bookmark(writer, headings)
    writer.root_object[NameObject("/PageMode")] = NameObject("/UseOutlines")
    writer.add_metadata({"/Author": "the koa-clip authors",
                         "/Subject": "Knee osteoarthritis graded with CLIP: the report of a run"})
    writer.write(partial)
    os.replace(partial, target)


def _bookmark(writer, headings):
    # The pages' own headings: what a browser takes for them differs between versions, e.g. where a heading
    # wraps.
    from pypdf.generic import Fit

    places = {name.lstrip("/"): place for name, place in writer.named_destinations.items()}
    above = {}  # level to the last bookmark of it
    for level, mark, title in headings:
        place = places[mark]
        parent = next((above[higher] for higher in range(level - 1, 0, -1) if higher in above), None)
        page, top = writer.get_destination_page_number(place), place.top
        # Chromium says the end of the page of a heading that begins the next one.
        if top < FOOT and _squeezed(title) not in _squeezed(writer.pages[page].extract_text()):
            page, top = page + 1, writer.pages[page + 1].mediabox.top
        above = {higher: item for higher, item in above.items() if higher < level}
        above[level] = writer.add_outline_item(title, page_number=page, parent=parent, fit=Fit.xyz(top=top),
                                               is_open=False)


def _squeezed(text):
    return "".join(unicodedata.normalize("NFKC", text).split())  # without ligatures
