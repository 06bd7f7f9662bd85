"""Exhibits, figures and tables: accessible, faithful to their data, and whole when the data are not."""

import base64
import importlib.util
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from koa_lib import metrics, tables
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import exhibits, labels, plots

pytestmark = pytest.mark.filterwarnings("error")


def published(name="jpm2026"):
    return pd.read_csv(ROOT / f"data_manifests/published/{name}.csv")


def graded(n=80, seed=0, grades=range(5)):
    generator = np.random.default_rng(seed)
    truth = generator.choice(list(grades), n)
    probabilities = 0.3 * np.eye(5)[truth] + 0.7 * generator.dirichlet(np.ones(5), n)
    frame = pd.DataFrame(probabilities, columns=metrics.PROBABILITIES)
    return frame.assign(kl_grade=truth, group_id=[f"g{i // 2}" for i in range(n)])


@pytest.fixture
def study(tmp_path):
    return SimpleNamespace(run_dir=tmp_path, shown_dir=tmp_path, synthetic=True, stamp=lambda: "commit 1a2b3c4 · data 5d6e7f8 · seed 42")


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.stack, self.text = [], [], ""
        self.feed(html)
        assert not self.stack, f"open tags {self.stack}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_table_is_accessible_and_its_file_keeps_every_digit(study):
    frame = pd.DataFrame({"model": ["A & B", "C"], "accuracy": [1 / 3, np.nan], "n": [1650, 2], "f1": [2 / 3, 0.5]})
    exhibit = exhibits.show_table(study, "table_4", frame, "Models < compared.", floats={"accuracy": 1})
    page = Tags(exhibit._repr_html_())
    assert {cell["scope"] for cell in page.all("th")} == {"col", "row"} and len(page.all("th")) == 4 + 2
    assert page.all("figure")[0]["id"] == "table-4" and page.all("div")[0]["aria-label"] == "Table 4 of the paper"
    assert "Table 4 of the paper. Models < compared." in page.text and "synthetic phantoms" in page.text
    assert [link["href"] for link in page.all("a")] == ["../tables/table_4.csv"]
    for shown in ("A & B", "0.3", "–", "1,650", "0.667"):
        assert shown in page.text
    written = pd.read_csv(study.run_dir / "tables/table_4.csv")
    pd.testing.assert_frame_equal(written, frame, check_exact=True)


def test_a_page_speaks_to_people_and_the_file_keeps_its_codes(study):
    frame = pd.DataFrame({"arm": ["clip-as_printed", "clip-our_protocol"], "split": ["val", "held_out"], "n": [8260, 20], "qwk": [-0.25, 1.0],
                          "ci_low": [-0.5, np.nan], "ci_high": [0.125, np.nan], "above_chance": [True, False], "reason": ["", ""]})
    page = Tags(exhibits.show_table(study, "table_s5", frame, "Of clip-as_printed, see [Table S7](#table-s7) <b>.").html)
    for shown in ("CLIP as printed", "CLIP by our protocol", "validation part", "held-out fold", "8,260", "−0.250", "Quadratic κ", "95 % interval", "−0.500 to 0.125", "yes", "no"):
        assert shown in page.text
    for code in ("qwk", "clip-", "True", "False", "nan", "ci_low", "Reason"):
        assert code not in page.text
    assert "Of CLIP as printed, see Table S7 <b>." in page.text and {"href": "#table-s7"} in page.all("a")
    assert [head.get("style") for head in page.all("th")[:6]] == [None, None, "text-align:right", "text-align:right", "text-align:right", None]
    assert any("kappa" in term["title"] for term in page.all("abbr"))
    pd.testing.assert_frame_equal(pd.read_csv(study.run_dir / "tables/table_s5.csv", keep_default_na=False, na_values={"ci_low": "", "ci_high": ""}), frame)


def test_a_row_without_any_value_stays_in_the_file(study):
    frame = pd.DataFrame({"metric": ["accuracy", "n", "note"], "external": [50.0, 3, ""], "published train": [90.0, "", ""]}, dtype=object)
    html = exhibits.show_table(study, "table_2", frame, "c", floats=2, percent=True).html
    assert html.count("<tr>") == 1 + 2 and "Accuracy (%)" in html and len(pd.read_csv(study.run_dir / "tables/table_2.csv")) == 3


def test_columns_of_the_file_alone_are_not_shown(study):
    html = exhibits.show_table(study, "table_1", pd.DataFrame({"kl_grade": [0], "example_image": ["9003175L"]}), "c", hide=["example_image"]).html
    assert "9003175L" not in html and "9003175L" in (study.run_dir / "tables/table_1.csv").read_text()


@pytest.mark.parametrize(("column", "percent", "head"), [("macro_f1", True, "Macro-F1 (%)"), ("macro_f1", False, "Macro-F1"), ("published_auc", True, "Published AUC"), ("external_qwk", False, "External quadratic κ"),
                                                         ("auc_kl_3", False, "AUC, KL 3"), ("n gornale2020", False, "Gornale 2020 (n)"), ("phantom_a files", False, "Phantom cohort A: files"), ("precision_at_5", False, "Precision at 5")])
def test_heads_are_the_terms_of_the_field(column, percent, head):
    assert labels.column(column, percent)[0] == head


def test_codes_within_paths_and_names_stay():
    assert labels.words("predictions/clip-as_printed__phantom_a-test.csv") == "predictions/clip-as_printed__phantom_a-test.csv"
    assert labels.words("table_s7: clip-as_printed, phantom_b.") == "Table S7: CLIP as printed, phantom cohort B."


GRAYS = [np.linspace(0, 1, 60 * 90).reshape(60, 90), np.full((161, 640), 128, np.uint8), None]


def test_pictures_stand_in_the_page_and_not_in_the_file(study):
    frame = pd.DataFrame({"kl_grade": [0, 1, 4], "sentence": ["none", "doubtful", "severe"]})
    page = Tags(exhibits.show_table(study, "table_1", frame, "Grades.", pictures={"example_picture": GRAYS}).html)
    images = page.all("img")
    assert [image["alt"] for image in images] == ["Example picture, KL grade 0", "Example picture, KL grade 1"]
    assert "Example picture" in page.text and len(page.all("td")) == 6 and len(page.all("th")) == 3 + 3
    for image, gray in zip(images, GRAYS, strict=False):
        kind, data = image["src"].split(",")
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert kind == "data:image/png;base64" and opened.mode == "L" and opened.height == 96
            assert opened.width == int(image["width"]) == pytest.approx(96 * gray.shape[1] / gray.shape[0], abs=1)
            mean = np.asarray(opened).mean() / 255
        assert mean == pytest.approx(gray.mean() / (255 if gray.dtype == np.uint8 else 1), abs=0.01)
    pd.testing.assert_frame_equal(pd.read_csv(study.run_dir / "tables/table_1.csv"), frame)


@pytest.mark.parametrize(("pictures", "match"), [({"a": [None]}, "new column name"), ({"b": []}, "each of the 1 rows"), ({"b": [np.full((4, 4), 300.0)]}, "300.00")])
def test_pictures_that_do_not_fit_are_refused(study, pictures, match):
    with pytest.raises(StudyError, match=match):
        exhibits.show_table(study, "table_1", pd.DataFrame({"a": [1]}), "c", pictures=pictures)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, True), (None, True), (0.0, False), ("a – b", False)])
def test_the_reason_stands_below_what_is_undefined_and_only_there(study, value, shown):
    frame = pd.DataFrame({"grade": [0, 1], "auc": [value, 0.5]})
    page = Tags(exhibits.show_table(study, "table_3", frame, "c", undefined="No picture <of it>.").html)
    assert ("–: No picture <of it>." in page.text) == shown


def test_a_figure_has_text_for_readers_without_sight_and_the_same_bytes_twice(study):
    drawing = plots.confusion(tables.confusion(graded()))
    exhibit = exhibits.show_figure(study, "figure_6", drawing, "Confusion.", 'All "right".')
    page = Tags(exhibit.html)
    picture = page.all("img")[0]
    assert picture["alt"] == 'All "right".' and picture["src"].startswith("data:image/png;base64,")
    assert page.all("figure")[0]["role"] == "group" and "Figure 6 of the paper. Confusion." in page.text
    assert page.all("figure")[0]["aria-labelledby"] == page.all("figcaption")[0]["id"]
    files = [study.run_dir / f"figures/figure_6.{kind}" for kind in ("png", "svg")]
    first = [path.read_bytes() for path in files]
    with Image.open(files[0]) as opened:
        assert opened.width == 1440 and repr(exhibit) == "<figure_6>"
    exhibits.show_figure(study, "figure_6", plots.confusion(tables.confusion(graded())), "Confusion.", "All right.")
    assert first == [path.read_bytes() for path in files]
    assert sorted(path.name for path in (study.run_dir / "figures").iterdir()) == ["figure_6.png", "figure_6.svg"]


def test_our_own_items_are_numbered_apart(study):
    study.synthetic = False
    page = Tags(exhibits.show_table(study, "table_s1", pd.DataFrame({"a": [1]}), "Ours.").html)
    assert "Table S1. Ours." in page.text and "paper" not in page.text and "synthetic" not in page.text


@pytest.mark.parametrize(("name", "file"), [("figure_7", "figures/figure_7.png"), ("table_2", "tables/table_2.csv")])
def test_what_is_not_available_says_why_in_its_place(study, name, file):
    exhibit = exhibits.not_available(study, name, "Graded examples.", "no external pictures were given <EXTERNAL>")
    assert "koa-missing" in exhibit.html and "&lt;EXTERNAL&gt;" in exhibit.html and Tags(exhibit.html)
    assert (study.run_dir / file).stat().st_size > 20
    if name == "table_2":
        assert pd.read_csv(study.run_dir / file)["reason"][0].startswith("no external")


def test_wrong_names_and_missing_alternative_text_are_refused(study):
    with pytest.raises(StudyError, match="names no table"):
        exhibits.show_table(study, "table_x", pd.DataFrame({"a": [1]}), "c")
    with pytest.raises(StudyError, match="alternative text"):
        exhibits.show_figure(study, "figure_1", Figure(), "c", " ")


def counts(cohorts=("A", "B")):
    rows = [(c, s, g, 10 * g + 3) for c in cohorts for s in ("train", "val") for g in range(5)]
    return pd.DataFrame(rows, columns=["cohort", "split", "grade", "n"])


def test_table_1_counts_every_grade():
    table = tables.table_1(counts(), examples={0: "9003175L"})
    assert list(table["n A"]) == [6, 26, 46, 66, 86] and table["example_image"][0] == "9003175L"
    assert table["description"][4].startswith("Grade 5 (severe)")


def test_no_module_of_ours_pulls_in_heavy_libraries():
    code = "import sys, koa_lib.tables, koa_lib.figures, koa_lib.arithmetic, koa_lib.exhibits; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "sklearn", "statsmodels", "seaborn", "scipy.stats", "matplotlib.pyplot"}
    assert not heavy & set(done.stdout.split())


def shown_rows(html):
    """The cells of a table's body, row by row, without markup."""
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]


def test_counts_have_no_decimals_and_fractions_beside_them_keep_theirs(study):
    frame = pd.DataFrame({"check": ["pictures", "interval shifts", "accuracy", "ratio"], "value": [8260.0, 5.0, 63.03, 1.0], "expected": [4796.0, np.nan, 63.0, 0.5], "found": [1.2e6, 2, 0.5, 0.5]})
    rows = shown_rows(exhibits.show_table(study, "table_s1", frame, "c", floats=2).html)
    assert [row[1:] for row in rows] == [["8,260", "4,796", "1,200,000"], ["5", "–", "2"], ["63.03", "63.00", "0.50"], ["1.00", "0.50", "0.50"]]
    frame = pd.DataFrame({"arm": ["a", "b"], "steps": [31.0, np.nan], "accuracy": [1.0, 1.0], "qwk": [1.0, 0.25]})
    assert shown_rows(exhibits.show_table(study, "table_s1", frame, "c").html) == [["a", "31", "1.000", "1.000"], ["b", "–", "1.000", "0.250"]]


def test_two_intervals_say_what_they_belong_to_and_one_need_not(study):
    names = ["kl_grade", "n", "sensitivity", "published_sensitivity", "ci_low", "published_ci_low", "ci_high", "published_ci_high", "specificity"]
    frame = pd.DataFrame([[0, 5, 80.0, 81.2, 70.0, 78.4, 90.0, 83.9, 50.0]], columns=names)
    page = Tags(exhibits.show_table(study, "table_3", frame, "c", percent=True).html).text
    assert "Sensitivity, 95 % interval" in page and "Published sensitivity, 95 % interval" in page
    page = Tags(exhibits.show_table(study, "table_3", frame.drop(columns=["published_ci_low", "published_ci_high"]), "c", percent=True).html).text
    assert "95 % interval" in page and "ensitivity, 95" not in page


def test_reasons_stand_last_on_the_page_and_where_they_were_in_the_file(study):
    frame = pd.DataFrame({"row": ["a"], "reason": ["because"], "source": ["x"]})
    assert shown_rows(exhibits.show_table(study, "table_s1", frame, "c").html) == [["a", "x", "because"]]
    assert list(pd.read_csv(study.run_dir / "tables/table_s1.csv")) == ["row", "reason", "source"]


@pytest.mark.parametrize(("text", "typeset"), [("47% of them", "47\u00a0% of them"), ("95 % interval", "95\u00a0% interval"), ("by -33.6 (-0.3 to 1), -.5", "by −33.6 (−0.3 to 1), −.5"), ("-9", "−9"),
                                               ("KL 0-4, 2026-11-22, 1e-5, a -b, data-1", "KL 0-4, 2026-11-22, 1e-5, a -b, data-1"), ("%20 and 5%20", "%20 and 5%20")])
def test_numbers_in_texts_have_one_style(text, typeset):
    assert labels.typeset(text) == labels.typeset(typeset) == typeset


def test_pages_are_typeset_between_their_tags_alone():
    spec = importlib.util.spec_from_file_location("typography", ROOT / "reports/_ext/typography.py")
    typography = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(typography)
    page = '<p title="5%"><em>KL 0</em>-4 <b>-3</b> 7% <code>x -1 <span>5%</span></code> &lt;-2 8%</p><pre>-1 5%</pre><img alt="-1">9%'
    assert typography.typeset_body(page) == '<p title="5%"><em>KL 0</em>-4 <b>−3</b> 7\u00a0% <code>x -1 <span>5%</span></code> &lt;-2 8\u00a0%</p><pre>-1 5%</pre><img alt="-1">9\u00a0%'


def test_trying_things_out_in_a_session_of_its_own_never_changes_the_tables_of_the_run(easy_study):
    exhibits.show_table(easy_study, "table_1", pd.DataFrame({"grade": [0, 1]}), "The study's own.")
    session = replace(easy_study, step="interactive")
    shown = exhibits.show_table(session, "table_1", pd.DataFrame({"grade": [4]}), "Mine.")
    assert len(pd.read_csv(easy_study.run_dir / "tables" / "table_1.csv")) == 2
    link = re.search(r'href="([^"]+table_1\.csv)"', shown.html)[1]
    assert Path(link).resolve() == session.shown_dir / "tables" / "table_1.csv" and len(pd.read_csv(link)) == 1


def test_a_tiny_bound_is_escaped_once(study):
    frame = pd.DataFrame({"row": ["a"], "accuracy": [0.5], "accuracy_low": [0.0001], "accuracy_high": [0.9]})
    html = exhibits.show_table(study, "table_s1", frame, "Accuracy.").html
    assert "&lt;0.001 to 0.900" in html and "&amp;lt;" not in html


def test_a_column_with_numbers_below_0_has_plain_zeros(study):
    frame = pd.DataFrame({"row": ["a", "b"], "gain": [0.0001, -0.0001], "gain_low": [-0.0002, -0.0002], "gain_high": [0.0003, 0.0001]})
    html = exhibits.show_table(study, "table_s1", frame, "Gains.").html
    assert html.count(">0.000 to 0.000<") == 2 and html.count(">0.000<") == 2 and "&lt;" not in html
