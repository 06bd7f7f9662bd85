"""The printed report: everything in it, in order, and nothing that names the machine that printed it."""

import shutil
import sys
import unicodedata

import pytest

from koa_lib.errors import StudyError
from reports import pdf

PAGE = """<html><head><title>Summary — koa-clip, run smoke</title></head><body>
<div class="bd-header-announcement__content">Synthetic "phantoms".</div>
<nav class="bd-docs-nav"><a class="internal" href="#">Summary</a><a class="internal" href="nb/b.html">B</a>
<a class="internal" href="a.html">A</a></nav>
<article class="bd-article"><section id="top"><h1>{title}<a class="headerlink" href="#top">#</a></h1>{body}
</section></article></body></html>"""
PAGES = {
    "index.html": ("Summary", '<a href="nb/b.html#recap">B</a> <a href="../t.csv">CSV</a>'),
    "a.html": ("A", '<a href="https://doi.org/10.1">paper</a>'),
    "nb/b.html": ("B", '<details class="hide"><summary>Show source</summary><pre>code()</pre></details>'
                       '<details><summary>More</summary>inside</details><h2 id="recap">Recap</h2>'
                       '<figure aria-labelledby="recap"></figure><a href="#recap">up</a>'
                       '<a href="../a.html">A</a>'),
}


@pytest.fixture
def run(tmp_path):
    """A run whose report has three pages."""
    for name, (title, body) in PAGES.items():
        path = tmp_path / "run" / "html" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(title=title, body=body), encoding="utf-8")
    return tmp_path / "run"


def test_pages_are_joined_in_the_order_of_the_navigation_with_bookmarks_and_the_banner(run):
    text, headings = pdf.join(run / "html")
    told = [(level, title) for level, _, title in headings]
    assert told == [(1, "Summary"), (1, "B"), (2, "Recap"), (1, "A")]
    places = [text.index(f'id="{mark}"') for _, mark, _ in headings]
    assert places == sorted(set(places)) and "<title>koa-clip, run smoke</title>" in text
    assert "Synthetic 'phantoms'." in text and '<strong>Synthetic "phantoms".</strong>' in text


def test_links_between_pages_stay_inside_and_links_to_files_go(run):
    text, _ = pdf.join(run / "html")
    for link in ('href="#nb-b--recap">B<', 'href="#nb-b--recap">up<', 'href="#a">A<'):
        assert link in text
    for kept in ('id="nb-b--recap"', 'aria-labelledby="nb-b--recap"', 'id="a"', "https://doi.org", "CSV"):
        assert kept in text
    assert "t.csv" not in text


def test_code_is_left_out_and_other_folds_are_open(run):
    text, _ = pdf.join(run / "html")
    assert "code()" not in text and '<details open="">' in text and "headerlink" not in text


@pytest.mark.parametrize("program", [None, sys.executable])
def test_without_a_working_chromium_one_sentence_says_so_and_the_last_pdf_stays(run, monkeypatch, program):
    (run / "koa-clip-run.pdf").write_bytes(b"the last one")
    before = sorted(run.rglob("*"))
    monkeypatch.setattr(shutil, "which", lambda name: program)
    with pytest.raises(StudyError, match="Chromium"):
        pdf.print_report(run)
    assert sorted(run.rglob("*")) == before and (run / "koa-clip-run.pdf").read_bytes() == b"the last one"
    with pytest.raises(StudyError, match="absent"):
        pdf.print_report(run / "absent")


@pytest.fixture(scope="module", params=["smoke_run", pytest.param("demo_run", marks=pytest.mark.slow)])
def printed(request):
    """A run's folder, its PDF, and the text of each sheet."""
    from pypdf import PdfReader

    if not any(map(shutil.which, pdf.PROGRAMS)):
        pytest.skip("chromium is not installed (Debian package chromium)")
    run = request.getfixturevalue(request.param)
    reader = PdfReader(pdf.print_report(run))
    return run, reader, [squeezed(page.extract_text()) for page in reader.pages]


def squeezed(text):
    return "".join(unicodedata.normalize("NFKC", text).split())  # without ligatures


def test_every_page_of_the_report_is_printed_in_order_and_bookmarked(printed):
    from bs4 import BeautifulSoup

    run, reader, texts = printed

    def soup(name):
        return BeautifulSoup((run / "html" / name).read_text(encoding="utf-8"), "html.parser")

    def flat(items, depth=0):
        for item in items:
            if isinstance(item, list):
                yield from flat(item, depth + 1)
            else:
                yield depth, item.title, reader.get_destination_page_number(item)

    marks = list(flat(reader.outline))
    links = soup("index.html").select(".bd-docs-nav a.internal")
    names = [link["href"].replace("#", "index.html") for link in links]
    titles = [soup(name).select_one("article h1").find(string=True).strip() for name in names]
    assert [title for depth, title, _ in marks if depth == 0] == titles and len(titles) > 10
    assert [page for *_, page in marks] == sorted(page for *_, page in marks)
    for _, title, number in marks:  # each leads to the sheet on which it can be read
        assert squeezed(title) in texts[number], title


def test_no_link_leads_to_a_file_and_every_inner_link_has_a_target(printed):
    _, reader, _ = printed
    notes = [note.get_object() for page in reader.pages for note in page.get("/Annots") or []]
    targets = [note["/Dest"].lstrip("/") for note in notes if isinstance(note.get("/Dest"), str)]
    assert set(targets) <= {name.lstrip("/") for name in reader.named_destinations}
    assert sum("/Dest" in note for note in notes) > 50
    addresses = [str(note.get("/A", {}).get("/URI", "http")) for note in notes]
    assert all(address.startswith(("http", "mailto")) for address in addresses)


def test_banner_and_number_of_each_sheet_can_be_read_and_nothing_names_the_machine(printed):
    run, reader, texts = printed
    assert any("Table3ofthepaper" in text and "sensitivity" in text for text in texts)
    for number, text in enumerate(texts, 1):
        assert "Syntheticphantoms" in text and f"{number}/{len(texts)}" in text
        assert str(run.parent) not in text
    assert reader.metadata.title == f"koa-clip, run {run.name}"
    assert reader.root_object["/Lang"] == "en" and reader.root_object["/MarkInfo"]["/Marked"]
