"""Exhibits: what a YAML entry declares is what a page shows; the file keeps every digit; a mistake is a sentence."""

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
from koa_lib.report import entries, plots, tables, words
from koa_lib.report.show import Show

pytestmark = pytest.mark.filterwarnings("error")
COLUMNS = {"accuracy": {"head": "Accuracy", "format": "ratio", "hint": "share of right calls"}, "n": "count", "auc_kl_*": {"head": "AUC, KL {}", "format": "ratio"}}
ENTRIES = {"table_3": {"title": "By grade", "caption": "On {{ place }}, {{ interval }}.", "says": "{{ t | length }} rows of {{ t.n.sum() | plural('picture') }}.", "undefined": "no picture"},
           "gaps": {"title": "Gaps", "needs": ["readings"], "caption": "All {{ t | excluding_zero | length }}.", "columns": {"difference": "points"}},
           "picture": {"title": "A chart", "caption": "See [the table](#table_3).", "alt": "Best {{ (t | best('accuracy')).row }}.",
                       "plot": {"kind": "forest", "value": "accuracy", "label": "row"}}}
FRAME = pd.DataFrame({"row": ["a <b>", "phantom_a"], "accuracy": [0.123456789012, np.nan], "accuracy_low": [0.0001, np.nan], "accuracy_high": [0.5, np.nan], "n": [1, 1234]})


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """A function that declares entries for a notebook 01_x."""
    def write(content=ENTRIES, columns=COLUMNS):
        (tmp_path / "01_x.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (tmp_path / "columns.yaml").write_text(yaml.safe_dump(columns))
        entries.read.cache_clear()
        entries.shared_columns.cache_clear()

    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    write()
    yield write
    monkeypatch.undo()
    entries.read.cache_clear()
    entries.shared_columns.cache_clear()


@pytest.fixture
def study(tmp_path):
    cohort = SimpleNamespace(name="phantom_a")
    profile = SimpleNamespace(training=cohort, external=cohort, model=SimpleNamespace(name="koa-tiny"), draws=1000, not_run={"readings": "no weights"})
    folder = tmp_path / "run"
    return SimpleNamespace(run_dir=folder, shown_dir=folder, profile=profile, synthetic=True, seed=42, commit="1a2b3c4", stamp=lambda: "commit 1a2b3c4",
                           data_note=dict, folder_of=lambda role: None)


@pytest.fixture
def show(declared, study):
    return Show(study, "01_x")


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
    shown = show("table_3", FRAME, place="oai_chen2018")
    page = Page(shown.html)
    assert page.rows == [["Row", "Accuracy", "Accuracy, 95 % interval", "N"], ["a <b>", "0.123", "<0.001 to 0.500", "1"], ["phantom cohort A", "–", "–", "1,234"]]
    assert "Table 3 of the paper. On OAI (Chen 2018), 95\u00a0% interval: group bootstrap, 1,000 draws of whole patients." in page.text
    assert "–: no picture" in page.text and "2 rows of 1,235 pictures." in page.text
    pd.testing.assert_frame_equal(pd.read_csv(study.run_dir / "tables/table_3.csv"), FRAME)


def test_a_figure_is_drawn_from_the_frame_of_its_texts_and_has_the_same_bytes_twice(show, study):
    frame, files = FRAME.iloc[:1], ["tables/picture.csv", "figures/picture.png", "figures/picture.svg"]
    first = show("picture", frame), [(study.run_dir / file).read_bytes() for file in files]
    assert show("picture", frame).html == first[0].html and [(study.run_dir / file).read_bytes() for file in files] == first[1]
    assert 'alt="Best a &lt;b&gt;."' in first[0].html and 'src="../figures/picture.png"' in first[0].html
    listed = json.loads((study.run_dir / "exhibits.json").read_text())["picture"]
    assert listed["name"] == "Figure S1" and set(listed["files"]) == set(files) and listed["notebook"] == "01_x"


def test_captions_link_in_a_session_and_as_real_labels_in_the_report(show):
    shown = show("picture", FRAME.iloc[:1])
    assert '<a href="#table_3">the table</a>' in shown.html and 'id="picture"' in shown.html
    assert shown.myst.startswith("(picture)=\n") and "[the table](#table_3)" in shown.myst


def test_what_a_profile_lacks_is_not_computed_and_says_why_in_its_place(show, study):
    shown = show("gaps", lambda: pytest.fail("computed"))
    assert "Not in this run: no weights" in shown.html and "Not in this run: no weights" in shown.myst
    assert pd.read_csv(study.run_dir / "tables/gaps.csv").loc[0, "reason"] == "no weights"
    study.profile.not_run.clear()
    assert "Not in this run: nobody was asked" in show("gaps", "nobody was asked").html
    gaps = pd.DataFrame({"arm": ["x", "y"], "difference": [-0.04, 2.5], "difference_low": [-1, 1.0], "difference_high": [0.5, 3.0]})
    page = Page(show("gaps", lambda: gaps).html)
    assert page.rows[1:] == [["x", "0.0", "−1.0 to 0.5"], ["y", "2.5", "1.0 to 3.0"]] and "All 1." in page.text


@pytest.mark.parametrize("template", ["caption", "says", "alt"])
def test_an_unknown_name_in_a_template_names_the_exhibit(declared, study, template):
    declared({"picture": ENTRIES["picture"] | {template: "On {{ nowhere }}."}})
    with pytest.raises(StudyError, match=rf"{template} of 'picture'.*nowhere"):
        Show(study, "01_x")("picture", FRAME.iloc[:1])


@pytest.mark.parametrize(("frame", "columns", "words"), [
    (FRAME.assign(loss=1.5), {}, "no format.*'loss'"), (FRAME, {"kappa": "ratio"}, "'kappa', which its table lacks"), (FRAME, {"n": "furlongs"}, "'furlongs'. Known: count")])
def test_numbers_need_a_declared_format(declared, study, frame, columns, words):
    declared({"table_3": ENTRIES["table_3"] | {"columns": columns}})
    with pytest.raises(StudyError, match=words):
        Show(study, "01_x")("table_3", frame, place="x")


@pytest.mark.parametrize(("content", "words"), [({"a": {"title": "A", "caption": "c", "colour": "red"}}, "'a' has an unknown.*colour"), ({"a": {"title": "A", "caption": "c", "needs": "external"}}, "needs"),
                                                ({"a": {"title": "A", "caption": "c", "plot": "forest"}}, "no alternative text"), ({"../a": {}}, "name of small letters"), ([], "must declare"), ({"a": {"title": "A"}}, "caption"),
                                                ({"figure_2": {"title": "A", "caption": "c"}}, "'figure_2' is a table")])
def test_an_entry_that_does_not_fit_is_named(declared, study, content, words):
    declared(content)
    with pytest.raises(StudyError, match=words):
        Show(study, "01_x")


@pytest.mark.parametrize(("text", "words"), [("a: [", "no valid YAML"), ("a: {title: A, caption: c}\na: {title: B, caption: c}\n", "'a' stands twice")])
def test_yaml_that_cannot_be_meant_is_named(declared, study, tmp_path, text, words):
    (tmp_path / "01_x.yaml").write_text(text)
    entries.read.cache_clear()
    with pytest.raises(StudyError, match=words):
        Show(study, "01_x")


@pytest.mark.parametrize("content", ["", "[]", '{"a": {}}'])
def test_a_damaged_list_of_exhibits_says_what_to_delete(declared, study, content):
    study.run_dir.mkdir()
    (study.run_dir / "exhibits.json").write_text(content)
    with pytest.raises(StudyError, match="Delete it and the folder nb"):
        Show(study, "01_x")


def test_a_number_among_words_needs_a_format_and_no_cell_leaves_its_table(declared, study):
    declared({"a": {"title": "A", "caption": "costs $5 to $6"}})
    with pytest.raises(StudyError, match="'share'"):
        Show(study, "01_x")("a", pd.DataFrame({"row": ["a", "b"], "share": [0.4, "not run"]}))
    shown = Show(study, "01_x")("a", pd.DataFrame({"row": ["x\n```\n# y"]}))
    assert shown.myst.count("\n```") == 4 and "\\$5" in shown.myst and "$5" in Page(shown.html).text


def test_a_chart_without_its_column_says_so():
    with pytest.raises(StudyError, match="needs the column 'kappa'"):
        plots.draw({"kind": "forest", "value": "kappa", "label": "row"}, FRAME)


def test_an_unknown_key_lists_the_known(show):
    with pytest.raises(StudyError, match="no exhibit 'table_4'. Known: table_3, gaps, picture"):
        show("table_4", FRAME)


def test_a_session_never_changes_what_the_run_shows(show, study):
    show("table_3", FRAME, place="x")
    before = {path: path.read_bytes() for path in study.run_dir.rglob("*.*")}
    study.shown_dir = study.run_dir / "interactive"
    shown = Show(study, "01_x")("table_3", FRAME.iloc[:1], place="mine")
    assert {path: path.read_bytes() for path in before} == before
    link = re.search(r'href="([^"]+table_3\.csv)"', shown.html)[1]
    assert Path(link).resolve() == study.shown_dir / "tables" / "table_3.csv" and len(pd.read_csv(link)) == 1


def test_a_notebook_that_is_run_again_forgets_what_it_showed_before(show, study):
    show("table_3", FRAME, place="x")
    Show(study, "01_x")
    assert json.loads((study.run_dir / "exhibits.json").read_text()) == {}


def test_pictures_stand_in_the_page_and_not_in_the_file(show, study):
    gray = np.full((8, 4), 0.5)
    html = show("table_3", FRAME, place="x", pictures={"knee": [gray, None]}).html
    assert html.count("koa-thumbnail") == 1 and 'alt="knee, a &lt;b&gt;"' in html and 'height="96"' in html
    assert "knee" not in pd.read_csv(study.run_dir / "tables/table_3.csv")
    for bad, match in (({"n": [None] * 2}, "new column name"), ({"b": []}, "each of the 2 rows"), ({"b": [gray * 600, None]}, "300.00")):
        with pytest.raises(StudyError, match=match):
            show("table_3", FRAME, place="x", pictures=bad)


def test_a_row_may_name_its_own_unit(declared, study):
    declared({"scores": {"title": "Scores", "caption": "c", "columns": {"ours": "by_unit"}}})
    frame = pd.DataFrame({"row": list("abcd"), "unit": ["percent", "ratio", "count", ""], "ours": [63.029, 0.12345, 8260.0, 0.5]})
    assert [row[-1] for row in Page(Show(study, "01_x")("scores", frame).html).rows[1:]] == ["63.03", "0.123", "8,260", "0.500"]


@given(value=st.floats(-1e6, 1e6), unit=st.sampled_from(sorted(tables.UNITS)))
def test_a_number_is_shown_rounded_and_nothing_else(value, unit):
    frame = pd.DataFrame({"row": ["a", "b"], "x": [value, -1.0]})  # a number below 0: no "<0.001"
    shown = Page(tables.table(frame, {"row": tables.Column("Row", "text"), "x": tables.Column("X", unit)}, "x", {})).rows[1][1]
    decimals = tables.UNITS[unit][0]
    assert float(shown.replace(",", "").replace("−", "-")) == pytest.approx(round(value, decimals), abs=1e-9) and not shown.startswith("−0.000 ")


@pytest.mark.parametrize(("text", "typeset"), [("47% of them", "47\u00a0% of them"), ("95 % interval", "95\u00a0% interval"), ("by -33.6 (-0.3 to 1), -.5", "by −33.6 (−0.3 to 1), −.5"), ("-9", "−9"),
                                               ("KL 0-4, 2026-11-22, 1e-5, a -b, data-1", "KL 0-4, 2026-11-22, 1e-5, a -b, data-1"), ("%20 and 5%20", "%20 and 5%20")])
def test_numbers_in_texts_have_one_style(text, typeset):
    assert words.typeset(text) == words.typeset(typeset) == typeset


def test_codes_become_words_but_not_within_paths_and_names():
    assert words.people("clip-as_printed on phantom_b") == "CLIP as printed on phantom cohort B"
    assert words.people("data/phantom_a.csv, phantom_a-1, my_phantom_a") == "data/phantom_a.csv, phantom_a-1, my_phantom_a"


def test_pages_are_typeset_between_their_tags_alone():
    spec = importlib.util.spec_from_file_location("typography", ROOT / "reports/_ext/typography.py")
    typography = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(typography)
    page = '<p title="5%"><em>KL 0</em>-4 <b>-3</b> 7% <code>x -1 <span>5%</span></code> &lt;-2 8%</p><pre>-1 5%</pre><img alt="-1">9%'
    assert typography.typeset_body(page) == '<p title="5%"><em>KL 0</em>-4 <b>−3</b> 7\u00a0% <code>x -1 <span>5%</span></code> &lt;-2 8\u00a0%</p><pre>-1 5%</pre><img alt="-1">9\u00a0%'


NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_its_yaml_declares_in_that_order(path):
    shown = []
    for cell in nbformat.read(path, 4).cells:
        calls = [node for node in ast.walk(ast.parse(cell.source)) if getattr(getattr(node, "func", None), "id", "") == "show"] if cell.cell_type == "code" else []
        shown += [call.args[0].value for call in sorted(calls, key=lambda call: call.lineno)]
    assert shown == list(entries.read(path.stem))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_sentence_is_built_in_a_notebook(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            nodes = list(ast.walk(ast.parse(cell.source)))
            words = [part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values if isinstance(part, ast.Constant) and " " in part.value]
            assert not words and not [node for node in nodes if getattr(node, "attr", getattr(node, "id", "")) in ("format", "Markdown")], cell.source


def test_every_exhibit_has_a_key_of_its_own():
    keys = [key for path in NOTEBOOKS for key in entries.read(path.stem)]
    assert len(keys) == len(set(keys)) and {f"table_{k}" for k in range(1, 6)} | {f"figure_{k}" for k in range(1, 9)} <= set(keys)
