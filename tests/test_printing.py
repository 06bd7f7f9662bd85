"""The printed report: everything in it, in order, and nothing that leads back to the machine that printed it."""

import shutil
import sys
import unicodedata

import pytest

from koa_lib.errors import StudyError
from reports import pdf

PAGE = """<html><head><title>Summary — koa-clip, run smoke</title></head><body>
<div class="bd-header-announcement__content">Synthetic "phantoms".</div>
<nav class="bd-docs-nav"><a class="internal" href="#">Summary</a><a class="internal" href="nb/b.html">B</a><a class="internal" href="a.html">A</a></nav>
<article class="bd-article"><section id="top"><h1>{title}<a class="headerlink" href="#top">#</a></h1>{body}</section></article></body></html>"""


@pytest.fixture
def html(tmp_path):
    """Three pages and a table."""
    (tmp_path / "nb").mkdir()
    (tmp_path / "t.csv").write_text("a\n")
    (tmp_path / "index.html").write_text(PAGE.format(title="Summary", body='<a href="nb/b.html#recap">B</a> <a href="t.csv">CSV</a>'), encoding="utf-8")
    (tmp_path / "a.html").write_text(PAGE.format(title="A", body='<a href="https://doi.org/10.1">paper</a>'), encoding="utf-8")
    body = ('<details class="admonition hide"><summary>Show source</summary><pre>code()</pre></details><details><summary>More</summary>inside</details>'
            '<h2 id="recap">Recap</h2><figure aria-labelledby="recap"></figure><a href="#recap">up</a> <a href="../a.html">A</a>')
    (tmp_path / "nb" / "b.html").write_text(PAGE.format(title="B", body=body), encoding="utf-8")
    return tmp_path


def test_pages_are_joined_in_the_order_of_the_navigation(html):
    text, _ = pdf.join(html)
    assert text.index(">Summary<") < text.index(">B<") < text.index(">A<")
    assert text.count("<h1>") == 3 and "<title>koa-clip, run smoke</title>" in text


def test_links_between_pages_stay_inside_and_links_to_files_go(html):
    text, _ = pdf.join(html)
    assert 'href="#nb-b--recap">B<' in text and 'href="#nb-b--recap">up<' in text and 'href="#a">A<' in text
    assert 'id="nb-b--recap"' in text and 'aria-labelledby="nb-b--recap"' in text and '<article class="bd-article koa-page" id="a">' in text
    assert "t.csv" not in text and "CSV" in text and "https://doi.org/10.1" in text


def test_code_is_left_out_other_folds_are_open_and_the_banner_is_on_each_sheet(html):
    text, _ = pdf.join(html)
    assert "code()" not in text and '<details open="">' in text and "headerlink" not in text
    assert """@top-center { content: "Synthetic 'phantoms'.";""" in text and '<strong>Synthetic "phantoms".</strong>' in text


def test_without_chromium_or_pages_one_sentence_says_so(html, tmp_path, monkeypatch):
    with pytest.raises(StudyError, match="holds no report"):
        pdf.print_report(tmp_path / "absent")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(html / "nb", run / "html" / "nb")
    shutil.copy(html / "index.html", run / "html")
    with pytest.raises(StudyError, match="apt-get install chromium"):
        pdf.print_report(run)
    assert not list(run.glob("*.pdf")) and len(list((run / "html").iterdir())) == 2


def test_a_browser_that_fails_leaves_the_last_pdf_and_no_other_file(html, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(html, run / "html", ignore=shutil.ignore_patterns("run"))
    (run / "koa-clip-run.pdf").write_bytes(b"the last one")
    monkeypatch.setattr(pdf, "chromium", lambda: sys.executable)
    with pytest.raises(StudyError, match="could not print the report"):
        pdf.print_report(run)
    assert (run / "koa-clip-run.pdf").read_bytes() == b"the last one" and not list(run.rglob(".*"))


@pytest.fixture(scope="module", params=["smoke", pytest.param("demo", marks=pytest.mark.slow)])
def printed(request):
    """A run's folder and its PDF, read."""
    from pypdf import PdfReader

    if not any(map(shutil.which, pdf.PROGRAMS)):
        pytest.skip("chromium is not installed (Debian package chromium)")
    run = request.getfixturevalue(f"{request.param}_run")
    return run, PdfReader(pdf.print_report(run))


def bookmarks(reader):
    """(depth, title, page) of all bookmarks, in their order."""

    def flat(items, depth=0):
        for item in items:
            if isinstance(item, list):
                yield from flat(item, depth + 1)
            else:
                yield depth, item.title, reader.get_destination_page_number(item)

    return list(flat(reader.outline))


def test_every_heading_is_a_bookmark_with_the_words_of_its_page(html):
    _, headings = pdf.join(html)
    assert [(level, title) for level, _, title in headings] == [(1, "Summary"), (1, "B"), (2, "Recap"), (1, "A")]
    assert len({mark for _, mark, _ in headings}) == 4


def test_every_page_of_the_report_is_printed_in_order(printed):
    from bs4 import BeautifulSoup

    run, reader = printed
    navigation = BeautifulSoup((run / "html" / "index.html").read_text(encoding="utf-8"), "html.parser").select(".bd-docs-nav a.internal")
    files = [run / "html" / link["href"].replace("#", "index.html") for link in navigation]
    pages = [BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in files]
    titles = [page.select_one("article h1").find(string=True).strip() for page in pages]
    marks = bookmarks(reader)
    assert [title for depth, title, _ in marks if depth == 0] == titles and len(titles) > 10
    assert [page for *_, page in marks] == sorted(page for *_, page in marks)
    for _, title, number in marks:  # each leads to the page on which it can be read, however a browser breaks lines
        assert squeezed(title) in squeezed(reader.pages[number].extract_text()), title
    assert sum(depth == 1 for depth, *_ in marks) > 20


def squeezed(text):
    return "".join(unicodedata.normalize("NFKC", text).split())  # without ligatures


def test_no_link_leads_to_a_file_and_every_inner_link_has_a_target(printed):
    _, reader = printed
    addresses, inner = [], 0
    for page in reader.pages:
        for note in page.get("/Annots") or []:
            action = note.get_object().get("/A", {})
            addresses.append(str(action.get("/URI", "")))
            target = note.get_object().get("/Dest")
            inner += target is not None
            assert not isinstance(target, str) or target.lstrip("/") in {name.lstrip("/") for name in reader.named_destinations}, target
    assert inner > 50 and not [address for address in addresses if address and not address.startswith(("http", "mailto"))]


def test_table_3_the_banner_and_page_numbers_can_be_read(printed):
    _, reader = printed
    texts = [" ".join(page.extract_text().split()) for page in reader.pages]
    assert any("Table 3 of the paper" in text and "sensitivity" in text for text in texts)
    assert all("Synthetic phantoms" in text for text in texts)
    assert all(f"{number} / {len(texts)}" in text for number, text in enumerate(texts, 1))


def test_the_pdf_tells_title_language_and_structure(printed):
    run, reader = printed
    root = reader.root_object
    assert reader.metadata.title == f"koa-clip, run {run.name}" and root["/Lang"] == "en" and root["/MarkInfo"]["/Marked"]
    assert root["/PageMode"] == "/UseOutlines"
    assert str(run.parent) not in "".join(page.extract_text() for page in reader.pages)
