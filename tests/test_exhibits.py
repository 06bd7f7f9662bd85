"""Exhibits: a page shows what a YAML entry declares; the file keeps every digit; a mistake is a sentence."""

import ast
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import entries, tables, words
from koa_lib.report.show import Show

pytestmark = pytest.mark.filterwarnings("error")
COLUMNS = {
    "accuracy": {"head": "Accuracy", "format": "ratio", "hint": "share of right calls"},
    "n": "count",
    "difference": "points",
}
ENTRIES = {
    "table_3": {"title": "By grade", "caption": "On {{ place }}.", "undefined": "no picture",
                "says": "{{ t | length }} rows of {{ t.n.sum() | plural('picture') }}."},
    "gaps": {"title": "Gaps", "needs": ["readings"], "caption": "All {{ t | excluding_zero | length }}."},
    "picture": {"title": "A chart", "caption": "See [the table](#table_3).",
                "alt": "Best {{ (t | best('n')).row }}.",
                "plot": {"kind": "forest", "value": "accuracy", "label": "row"}},
}
FRAME = pd.DataFrame({
    "row": ["a <b>", "phantom_a"], "accuracy": [0.123456789012, np.nan], "accuracy_low": [0.0001, np.nan],
    "accuracy_high": [0.5, np.nan], "n": [1234, 0]})


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """A function that writes the YAML of a notebook 01_x: entries, or a text."""
    def write(content=ENTRIES):
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (tmp_path / "01_x.yaml").write_text(text)
        (tmp_path / "columns.yaml").write_text(yaml.safe_dump(COLUMNS))
        forget()

    def forget():
        entries.read.cache_clear()
        entries.shared_columns.cache_clear()

    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    write()
    yield write
    monkeypatch.undo()
    forget()


@pytest.fixture
def study(tmp_path):
    cohort, folder = SimpleNamespace(name="phantom_a"), tmp_path / "run"
    profile = SimpleNamespace(training=cohort, external=cohort, model=cohort, draws=1000,
                              not_run={"readings": "no weights"})
    return SimpleNamespace(run_dir=folder, own_dir=folder, profile=profile, synthetic=True, seed=42,
                           commit="1a2b3c4", stamp=lambda: "commit 1a2b3c4", data_note=dict,
                           folder_of=lambda role: None)


@pytest.fixture
def show(declared, study):
    """A function that shows an exhibit; other entries can be declared first."""
    def shown(key, frame=FRAME, entry=None, **facts):
        if entry is not None:
            declared({key: {"title": "A", "caption": "c"} | entry})
        return Show(study, "01_x")(key, frame, **facts)

    return shown


def listed(study):
    return json.loads((study.run_dir / "exhibits.json").read_text())


class Page(HTMLParser):
    """The cells of a table row by row, and the text; tags must close."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.rows, self.text = [], [], ""
        self.feed(html)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attributes):
        self.stack += [tag] if tag not in ("img", "br") else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"th", "td"} & set(self.stack):
            self.rows[-1][-1] += data


def test_a_table_speaks_to_people_and_its_file_keeps_every_digit(show, study):
    page = Page(show("table_3", place="oai_chen2018").html)
    assert page.rows == [["Row", "Accuracy", "Accuracy, 95 % interval", "N"],
                         ["a <b>", "0.123", "<0.001 to 0.500", "1,234"], ["phantom cohort A", "–", "–", "0"]]
    for text in ("Table 3 of the paper. On OAI (Chen 2018).", "–: no picture", "2 rows of 1,234 pictures."):
        assert text in page.text
    pd.testing.assert_frame_equal(pd.read_csv(study.run_dir / "tables/table_3.csv"), FRAME)


def test_a_figure_is_drawn_from_the_frame_of_its_texts_and_has_the_same_bytes_twice(show, study):
    files = ["tables/picture.csv", "figures/picture.png", "figures/picture.svg"]
    first, second = ((show("picture", FRAME[:1]), [(study.run_dir / file).read_bytes() for file in files])
                     for _ in range(2))
    assert first[1] == second[1] and first[0].html == second[0].html
    assert 'alt="Best a &lt;b&gt;."' in first[0].html and 'src="../figures/picture.png"' in first[0].html
    noted = listed(study)["picture"]
    assert noted["name"] == "Figure S1" and set(noted["files"]) == set(files) and noted["notebook"] == "01_x"
    # A caption's link leads somewhere in a session, and to a real label in the report.
    assert '<a href="#table_3">the table</a>' in first[0].html and 'id="picture"' in first[0].html
    assert first[0].myst.startswith("(picture)=\n") and "[the table](#table_3)" in first[0].myst


def test_what_a_profile_lacks_is_not_computed_and_says_why_in_its_place(show, study):
    shown = show("gaps", lambda: pytest.fail("computed"))
    assert "no weights" in shown.html and "no weights" in shown.myst
    assert pd.read_csv(study.run_dir / "tables/gaps.csv").loc[0, "reason"] == "no weights"
    study.profile.not_run.clear()
    assert "nobody was asked" in show("gaps", "nobody was asked").html
    gaps = pd.DataFrame({"arm": ["x", "y", "z"], "difference": [-0.04, 2.5, -2],
                         "difference_low": [-1, 1.0, -3], "difference_high": [0.5, 3.0, -1.5]})
    page = Page(show("gaps", lambda: gaps).html)
    assert page.rows[1:3] == [["x", "0.0", "−1.0 to 0.5"], ["y", "2.5", "1.0 to 3.0"]]
    assert "All 2." in page.text


@pytest.mark.parametrize(("entry", "frame", "told"), [
    ({"caption": "On {{ nowhere }}."}, FRAME, ["caption", "'a'", "nowhere"]),
    ({"says": "On {{ nowhere }}."}, FRAME, ["says", "nowhere"]),
    ({}, FRAME.assign(loss=1.5), ["'loss'"]),
    ({}, FRAME.assign(share=[0.4, "not run"]), ["'share'"]),
    ({"columns": {"kappa": "ratio"}}, FRAME, ["'kappa'"]),
    ({"columns": {"n": "furlongs"}}, FRAME, ["'furlongs'", "count"]),
    ({"alt": "x", "plot": {"kind": "forest", "value": "kappa", "label": "row"}}, FRAME, ["'kappa'"]),
])
def test_an_exhibit_that_cannot_be_shown_is_named_and_nothing_is_written(show, study, entry, frame, told):
    with pytest.raises(StudyError) as error:
        show("a", frame, entry)
    assert all(word in str(error.value) for word in told)
    assert listed(study) == {} and not list(study.run_dir.glob("tables/*"))


@pytest.mark.parametrize(("content", "told"), [
    ({"a": {"title": "A", "caption": "c", "colour": "red"}}, "colour"),
    ({"a": {"title": "A", "caption": "c", "needs": "external"}}, "needs"),
    ({"a": {"title": "A", "caption": "c", "plot": "forest"}}, "alt"),
    ({"a": {"title": "A"}}, "caption"),
    ({"../a": {}}, "../a"),
    ({"figure_2": {"title": "A", "caption": "c"}}, "'figure_2'"),
    ([], "01_x.yaml"),
    ("a: [", "01_x.yaml"),
    ("a: {title: A, caption: c}\na: {title: B, caption: c}\n", "'a'"),
])
def test_a_declaration_that_does_not_fit_is_named(declared, study, content, told):
    declared(content)
    with pytest.raises(StudyError) as error:
        Show(study, "01_x")
    assert told in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", '{"a": {}}'])
def test_a_damaged_list_of_exhibits_says_what_to_delete(declared, study, content):
    study.run_dir.mkdir()
    (study.run_dir / "exhibits.json").write_text(content)
    with pytest.raises(StudyError, match="exhibits.json"):
        Show(study, "01_x")


def test_no_cell_leaves_its_table_and_a_dollar_begins_no_formula(show):
    shown = show("a", pd.DataFrame({"row": ["x\n```\n# y"]}), {"caption": "costs $5 to $6"})
    assert shown.myst.count("\n```") == 4 and "\\$5" in shown.myst and "$5" in Page(shown.html).text


def test_a_session_never_changes_what_the_run_shows(show, study):
    show("table_3", place="x")
    before = {path: path.read_bytes() for path in study.run_dir.rglob("*.*")}
    study.own_dir = study.run_dir / "interactive"
    shown = show("table_3", FRAME[:1], place="mine")
    assert {path: path.read_bytes() for path in before} == before
    link = Path(re.search(r'href="([^"]+table_3\.csv)"', shown.html)[1])
    assert link.resolve() == study.own_dir / "tables" / "table_3.csv" and len(pd.read_csv(link)) == 1


def test_a_notebook_that_is_run_again_forgets_what_it_showed_before(show, study):
    show("table_3", place="x")
    assert list(listed(study)) == ["table_3"]
    Show(study, "01_x")
    assert listed(study) == {}


def test_pictures_stand_in_the_page_and_not_in_the_file(show, study):
    gray = np.full((8, 4), 0.5)
    html = show("table_3", place="x", pictures={"knee": [gray, None]}).html
    assert html.count("koa-thumbnail") == 1 and 'alt="knee, a &lt;b&gt;"' in html
    assert "knee" not in pd.read_csv(study.run_dir / "tables/table_3.csv")
    for bad in ({"n": [None] * 2}, {"b": []}, {"b": [gray * 600, None]}):
        with pytest.raises(StudyError):
            show("table_3", place="x", pictures=bad)


def test_a_row_may_name_its_own_unit(show):
    frame = pd.DataFrame({"row": list("abcd"), "unit": ["percent", "ratio", "count", ""],
                          "ours": [63.029, 0.12345, 8260.0, 0.5]})
    rows = Page(show("a", frame, {"columns": {"ours": "by_unit"}}).html).rows[1:]
    assert [row[-1] for row in rows] == ["63.03", "0.123", "8,260", "0.500"]


@given(value=st.floats(-1e6, 1e6), unit=st.sampled_from(sorted(tables.UNITS)))
def test_a_number_is_shown_rounded_and_nothing_else(value, unit):
    frame = pd.DataFrame({"row": ["a", "b"], "x": [value, -1.0]})  # a number below 0: no "<0.001"
    columns = {"row": tables.Column("Row", "text"), "x": tables.Column("X", unit)}
    shown = Page(tables.table(frame, columns, "x", {})).rows[1][1]
    found, expected = float(shown.replace(",", "").replace("−", "-")), round(value, tables.UNITS[unit][0])
    assert found == pytest.approx(expected, abs=1e-9) and (found or not shown.startswith("−"))


@pytest.mark.parametrize(("text", "typeset"), [
    ("47% of them", "47\u00a0% of them"), ("95 % interval", "95\u00a0% interval"), ("-9", "−9"),
    ("by -33.6 (-0.3 to 1), -.5", "by −33.6 (−0.3 to 1), −.5"),
    ("KL 0-4, 2026-11-22, 1e-5, a -b, data-1", "KL 0-4, 2026-11-22, 1e-5, a -b, data-1"),
    ("%20 and 5%20", "%20 and 5%20")])
def test_numbers_in_texts_have_one_style(text, typeset):
    assert words.typeset(text) == words.typeset(typeset) == typeset


def test_codes_become_words_but_not_within_paths_and_names():
    assert words.people("clip-as_printed on phantom_b") == "CLIP as printed on phantom cohort B"
    for text in ("data/phantom_a.csv, phantom_a-1", "my_phantom_a"):
        assert words.people(text) == text


def test_pages_are_typeset_between_their_tags_alone():
    spec = importlib.util.spec_from_file_location("typography", ROOT / "reports/_ext/typography.py")
    typography = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(typography)
    page = '<p title="5%"><em>KL 0</em>-4 <b>{}</b> <code>x -1 <span>5%</span></code></p><img alt="-1">{}'
    assert typography.typeset_body(page.format("-3", "9%")) == page.format("−3", "9\u00a0%")


NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_its_yaml_declares_in_that_order_and_builds_no_sentence(path):
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    nodes = list(ast.walk(ast.parse(code)))
    calls = [node for node in nodes if getattr(getattr(node, "func", None), "id", "") == "show"]
    shown = [call.args[0].value for call in sorted(calls, key=lambda call: call.lineno)]
    assert shown == list(entries.read(path.stem))
    texts = [part.value for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values
             if isinstance(part, ast.Constant)]
    assert not [text for text in texts if " " in text]


def test_every_exhibit_has_a_key_of_its_own_and_the_papers_are_all_there():
    keys = [key for path in NOTEBOOKS for key in entries.read(path.stem)]
    assert len(keys) == len(set(keys))
    assert {f"table_{k}" for k in range(1, 6)} | {f"figure_{k}" for k in range(1, 9)} <= set(keys)
