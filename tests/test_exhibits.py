"""Exhibits, figures and tables: accessible, faithful to their data, and whole when the data are not."""

import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from koa_lib import exhibits, figures, metrics, stats, tables
from koa_lib.errors import StudyError
from koa_lib.grades import PROMPT_SETS
from koa_lib.profile import ROOT

pytestmark = pytest.mark.filterwarnings("error")
FACTS = {"name": "ViT-B-32", "image_tower": "ViT", "image_size": 224, "embed_dim": 512, "parameters": 151277313}


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
    return SimpleNamespace(run_dir=tmp_path, synthetic=True, stamp=lambda: "commit 1a2b3c4 · data 5d6e7f8 · seed 42")


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
    for shown in ("A & B", "0.3", "–", "1650", "0.667"):
        assert shown in page.text
    written = pd.read_csv(study.run_dir / "tables/table_4.csv")
    pd.testing.assert_frame_equal(written, frame, check_exact=True)


def test_a_figure_has_text_for_readers_without_sight_and_the_same_bytes_twice(study):
    drawing = figures.figure_6(np.eye(5, dtype=int))
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
    exhibits.show_figure(study, "figure_6", figures.figure_6(np.eye(5, dtype=int)), "Confusion.", "All right.")
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


def history(folds=(0, 1, 2), epochs=4):
    parts = ("train", "held_out", "inner")
    rows = [("m", f, e, p, 1 / e, 0.5) for f in folds for e in range(1, epochs + 1) for p in parts]
    return pd.DataFrame(rows, columns=["model", "fold", "epoch", "part", "loss", "accuracy"])


PARTS = pd.DataFrame(
    [("image tower", 87849216, False), ("adapter", 131072, True), ("text tower", 63428096, False), ("scale", 1, False)],
    columns=["part", "parameters", "trained"],
)
PICTURE, FLAT = np.arange(60.0).reshape(6, 10), np.full(5, 0.2)
QUERIES = PROMPT_SETS["queries"]
PRECISION = pd.DataFrame({"query": QUERIES, "precision": [0.5, 0.4, np.nan, 0.2, 1], "share": FLAT})
MODELS = pd.DataFrame(
    [("A", 50.0, 40.0, 60.0, np.nan), ("B", np.nan, np.nan, np.nan, 63.0)],
    columns=["model", "accuracy", "ci_low", "ci_high", "published_accuracy"],
)
DRAWINGS = {
    "figure_1": lambda: figures.figure_1(FACTS),
    "figure_1 without facts": lambda: figures.figure_1({}),
    "figure_2": lambda: figures.figure_2(counts()),
    "figure_2 of one empty grade": lambda: figures.figure_2(counts(["A"]).query("grade != 4").assign(n=0)),
    "figure_2 empty": lambda: figures.figure_2(counts([])),
    "figure_3": lambda: figures.figure_3(FACTS, FLAT, logits=FLAT, picture=PICTURE),
    "figure_3 undefined": lambda: figures.figure_3({}, np.full(5, np.nan)),
    "figure_4": lambda: figures.figure_4(PARTS),
    "figure_4 of one part": lambda: figures.figure_4(PARTS.head(1)),
    "figure_5": lambda: figures.figure_5(history(), floor=2.79),
    "figure_5 of one epoch": lambda: figures.figure_5(history([2], 1).assign(loss=np.nan)),
    "figure_5 empty": lambda: figures.figure_5(history([])),
    "figure_6": lambda: figures.figure_6(np.arange(25).reshape(5, 5)),
    "figure_6 empty": lambda: figures.figure_6(np.zeros((5, 5), int), "no picture"),
    "figure_7": lambda: figures.figure_7([PICTURE] * 5, np.tile(FLAT, (5, 1)), range(5), list("abcde")),
    "figure_7 of two": lambda: figures.figure_7([PICTURE] * 2, np.tile(FLAT, (2, 1)), [0, 4], ["a", "b"]),
    "figure_7 empty": lambda: figures.figure_7([], np.zeros((0, 5)), [], []),
    "figure_8": lambda: figures.figure_8([PICTURE] * 2, np.array([FLAT, -FLAT]), QUERIES, [0, 4]),
    "figure_8 of equal zeros": lambda: figures.figure_8([PICTURE], np.zeros((1, 5)), QUERIES, [0]),
    "figure_8 empty": lambda: figures.figure_8([], np.zeros((0, 5)), QUERIES, []),
    "gallery": lambda: figures.gallery([PICTURE] * 5, list("abcde")),
    "gallery empty": lambda: figures.gallery([], []),
    "reliability": lambda: figures.reliability(graded()["kl_grade"], graded()[metrics.PROBABILITIES]),
    "reliability empty": lambda: figures.reliability([], np.zeros((0, 5))),
    "baselines": lambda: figures.baselines(MODELS),
    "baselines empty": lambda: figures.baselines(MODELS.head(0)),
    "retrieval": lambda: figures.retrieval(PRECISION),
    "retrieval empty": lambda: figures.retrieval(PRECISION.head(0)),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_is_drawn_without_a_warning_and_with_readable_type(name):
    figure = DRAWINGS[name]()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text().strip()]
    assert texts and min(text.get_fontsize() for text in texts) >= 8


def test_figure_4_needs_parts_and_figure_1_facts():
    with pytest.raises(StudyError):
        figures.figure_4(PARTS.head(0))
    with pytest.raises(StudyError):
        figures.figure_1(None)


def test_grade_colours_grow_darker():
    from matplotlib.colors import to_rgb

    from koa_lib.style import GRADE_COLOURS

    lightness = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in GRADE_COLOURS]
    assert len(GRADE_COLOURS) == 5 and all(np.diff(lightness) < -0.05)


def test_table_1_counts_every_grade():
    table = tables.table_1(counts(), examples={0: "9003175L"})
    assert list(table["n A"]) == [6, 26, 46, 66, 86] and table["example_image"][0] == "9003175L"
    assert table["description"][4].startswith("Grade 5 (severe)")


def test_table_2_puts_published_beside_ours_and_keeps_the_reason():
    parts = {"training part": graded(), "held-out fold": None, "internal test": "absent here", "external": graded(40)}
    table = tables.table_2(parts, published()).set_index("metric")
    ours = ["held-out fold", "internal test"]
    assert list(table.columns) == ["training part", "published train", *ours, "external", "published test"]
    assert table.loc["accuracy", "published test"] == 76.94 and table.loc["n", "external"] == 40
    assert table.loc["note", "internal test"] == "absent here" and "not run" in table.loc["note", "held-out fold"]
    expected = metrics.summary(graded()["kl_grade"], graded()[metrics.PROBABILITIES])
    assert table.loc["macro_f1", "training part"] == pytest.approx(100 * expected["macro_f1"])


def test_table_3_has_intervals_and_survives_absent_grades():
    table = tables.table_3(graded(200), published(), draws=100)
    assert (table["ci_low"] <= table["sensitivity"]).all() and (table["sensitivity"] <= table["ci_high"]).all()
    assert list(table["published_sensitivity"]) == [81.2, 68.5, 72.1, 79.4, 83.1]
    assert table["published_ci_low"][0] == 78.4
    partly = tables.table_3(graded(56, grades=(0, 1)), published(), draws=50)
    assert partly["sensitivity"].isna().tolist() == [False, False, True, True, True]
    missing = tables.table_3("no external pictures", published())
    assert len(missing) == 5 and set(missing["reason"]) == {"no external pictures"} and missing["auc"].isna().all()


def test_table_4_keeps_every_published_model():
    models = {"Fine-tuned CLIP": graded(), "VGG19": "does not fit in the time", "Zero-shot CLIP": graded(60, 1)}
    table = tables.table_4(models, published(), {"Fine-tuned CLIP": "64 px, 2 epochs"}, draws=50).set_index("model")
    assert list(table.index) == ["VGG19", "ResNet50", "MobileNet", "ViT", "Fine-tuned CLIP", "Zero-shot CLIP"]
    assert table.loc["VGG19", "reason"].startswith("does not fit") and table.loc["ViT", "reason"].startswith("not run")
    clip = table.loc["Fine-tuned CLIP"]
    assert clip["as_run"] == "64 px, 2 epochs" and clip["ci_low"] < clip["accuracy"] < clip["ci_high"]


def test_table_5_names_the_cohort_of_each_row():
    ours = {"koa-tiny": ("cohort B (phantoms)", graded()), "other": ("Gornale", None)}
    table = tables.table_5(published(), published("peers"), ours, draws=50)
    assert list(dict.fromkeys(table["source"])) == ["table 5 of the paper", "public peer", "this run"]
    assert table["test_set"].str.len().gt(0).all() and table["accuracy"].max() > 60
    assert table["note"].iloc[-1].startswith("not run")


def test_the_scorecard_never_scores_phantoms():
    runs = [graded(seed=seed) for seed in range(5)]
    card = tables.scorecard(published(), tables.measured("table_2", "test", runs), comparable=False, reason="synthetic")
    model = card[~card["rule"].str.startswith("same")]
    assert set(model["verdict"]) == {"not comparable"} and set(model["reason"]) == {"synthetic"}
    assert list(card.columns) == "source item row metric unit published ours ci_low ci_high rule verdict reason".split()
    with pytest.raises(StudyError, match="Say why"):
        tables.scorecard(published(), {}, comparable=False)


def test_the_scorecard_follows_its_rule():
    ours = {
        ("table_2", "test", "accuracy"): (75.0, 73.0, 77.5),  # near and inside
        ("table_2", "test", "macro_f1"): (70.0, 60.0, 80.0),  # wide
        ("table_2", "test", "macro_precision"): (79.0, np.nan, np.nan),  # too few runs
        ("table_2", "test", "macro_sensitivity"): (76.0, 75.8, 76.2),  # near but outside
        ("table_3", "0", "auc"): (0.80, 0.79, 0.81),
        ("table_4", "VGG19", "accuracy"): "does not fit",
        ("text", "mcnemar", "p_value"): (0.01, np.nan, np.nan),
        ("text", "data", "train_images"): (8260, np.nan, np.nan),
        ("text", "data", "participants"): (4130, np.nan, np.nan),
    }
    card = tables.scorecard(published(), ours, comparable=True).set_index(["item", "row", "metric"])
    verdicts = {key: card.loc[key, "verdict"] for key in ours}
    expected = ["replicated", "inconclusive", "inconclusive", "not replicated", "not replicated", "not run"]
    assert list(verdicts.values()) == [*expected, "replicated", "replicated", "not replicated"]
    assert card.loc[("table_4", "VGG19", "accuracy"), "reason"] == "does not fit"
    assert card.loc[("table_4", "Fine-tuned CLIP", "accuracy"), "verdict"] == "replicated"
    assert card.loc[("text", "conclusion", "macro_sensitivity"), "verdict"] == "not replicated"
    assert list(card.loc["table_5"].index.get_level_values("row")) == ["Bashir 2026"]  # citations are left out
    assert ("text", "runtime", "inference_ms") not in card.index
    with pytest.raises(StudyError, match="no row"):
        tables.scorecard(published(), {("table_9", "x", "y"): "no"}, comparable=True)


def test_measured_speaks_the_published_units():
    runs = [graded(120, seed) for seed in range(6)]
    overall, grade = tables.measured("table_2", "test", runs), tables.measured("table_3", "", runs)
    accuracy = [metrics.summary(run["kl_grade"], run[metrics.PROBABILITIES])["accuracy"] for run in runs]
    assert overall["table_2", "test", "accuracy"] == pytest.approx(stats.run_interval(100 * np.array(accuracy)))
    assert grade["table_3", "0", "sensitivity"][0] > 1 > grade["table_3", "0", "auc"][0]
    known = set(map(tuple, published()[["item", "row", "metric"]].astype(str).to_numpy()))
    assert {*overall, *grade, *tables.measured("table_4", "ViT", runs)} <= known
    assert tables.measured("table_4", "ViT", []) == {}


def test_the_other_systems_can_be_scored_too():
    other = published("other_systems")
    card = tables.scorecard(other, {}, comparable=True)
    assert set(card["source"]) == set(other.loc[other["kind"] == "model", "system"])
    assert set(card["verdict"]) == {"not run"}


def test_no_module_of_ours_pulls_in_heavy_libraries():
    code = "import sys, koa_lib.tables, koa_lib.figures, koa_lib.arithmetic, koa_lib.exhibits; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "sklearn", "statsmodels", "seaborn", "scipy.stats", "matplotlib.pyplot"}
    assert not heavy & set(done.stdout.split())
