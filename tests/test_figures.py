"""Figures: drawn whatever the data, every text readable, inside the figure and clear of its neighbours."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from koa_lib import metrics
from koa_lib.errors import StudyError
from koa_lib.grades import PROMPT_SETS
from koa_lib.report import figures
from koa_lib.report.style import COLUMN, GRADE_COLOURS

pytestmark = pytest.mark.filterwarnings("error")
FACTS = {"name": "ViT-B-32", "image_tower": "ViT", "image_size": 224, "embed_dim": 512, "parameters": 151277313}
PICTURE, WIDE, FLAT = np.arange(60.0).reshape(6, 10) / 60, np.zeros((161, 640)), np.full(5, 0.2)
QUERIES = PROMPT_SETS["queries"]


def graded(n=80, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.dirichlet(np.ones(5), n), columns=metrics.PROBABILITIES)
    return frame.assign(kl_grade=generator.integers(0, 5, n), image_id=[f"DoubtfulG1({i + 100})" for i in range(n)])


def counts(cohorts=("oai_chen2018", "gornale2020"), n=2286):
    rows = [(cohort, split, grade, n) for cohort in cohorts for split in ("train", "val", "test", "auto_test") for grade in range(5)]
    return pd.DataFrame(rows, columns=["cohort", "split", "grade", "n"])


def history(folds=range(1, 6), epochs=30, parts=("train", "held_out")):
    rows = [("m", f, e, p, 3 + 1 / e, 0.5) for f in folds for e in range(1, epochs + 1) for p in parts]
    return pd.DataFrame(rows, columns=["model", "fold", "epoch", "part", "loss", "accuracy"])


def readings(options=4):
    factors = ["", *(f for f in ("trained part", "residual ratio", "loss", "prompts", "early stopping") for _ in range(options))]
    table = pd.DataFrame({"factor": factors, "option": ["as printed", *(f"best on the held-out fold (optimistic) {k}" for k in range(len(factors) - 1))]})
    return table.assign(epochs=30.0, accuracy=0.634, qwk=np.linspace(-0.05, 0.85, len(table)), qwk_low=-0.1, qwk_high=0.9)


def unrun(table, rows):
    table.loc[rows, ["epochs", "accuracy", "qwk", "qwk_low", "qwk_high"]] = np.nan
    return table


def parts(internal=0.7, expected=0.63, external=0.51):
    values = {"internal accuracy": internal, "expected at the external grade mix": expected, "external accuracy": external,
              "label shift": expected - internal, "rest": external - expected}
    table = pd.DataFrame({"part": values.keys(), "value": values.values()})
    return table.assign(ci_low=table["value"] - 0.021, ci_high=table["value"] + 0.021)


def draws(number=20, shots=(5, 10, 20)):
    rows = [(k, d, 1650 - 5 * k - d, 0.4 + 0.01 * k + 0.002 * d, 0.7 + 0.001 * d) for k in shots for d in range(number)]
    return pd.DataFrame(rows, columns=["shots", "draw", "n", "accuracy", "qwk"])


PARTS = pd.DataFrame(
    [("image tower", 87849216, False), ("adapter", 131072, True), ("text tower", 63428096, False), ("scale", 1, False)],
    columns=["part", "parameters", "trained"],
)
PRECISION = pd.DataFrame({"query": QUERIES, "precision": [0.5, 0.4, np.nan, 0.2, 1], "share": FLAT})
MODELS = pd.DataFrame(
    [("Fine-tuned CLIP", 50.0, 40.0, 60.0, np.nan), ("Wide ResNet", np.nan, np.nan, np.nan, 63.0)],
    columns=["model", "accuracy", "ci_low", "ci_high", "published_accuracy"],
)
ZERO = {"accuracy": 0.42, "qwk": 0.7}
DRAWINGS = {
    "figure_1": lambda: figures.figure_1(FACTS),
    "figure_1 without facts": lambda: figures.figure_1({}),
    "figure_2": lambda: figures.figure_2(counts()),
    "figure_2 of 20 rows": lambda: figures.figure_2(counts(["A"], 1).query("grade != 4")),
    "figure_2 of no picture": lambda: figures.figure_2(counts(["A"], 0)),
    "figure_2 empty": lambda: figures.figure_2(counts([])),
    "figure_3": lambda: figures.figure_3(FACTS, FLAT, logits=FLAT, picture=PICTURE),
    "figure_3 undefined": lambda: figures.figure_3({}, np.full(5, np.nan)),
    "figure_4": lambda: figures.figure_4(PARTS),
    "figure_4 of one part": lambda: figures.figure_4(PARTS.head(1)),
    "figure_5": lambda: figures.figure_5(history()),
    "figure_5 with its floor": lambda: figures.figure_5(history(parts=("train", "held_out", "inner")), floor=2.79, chance=4.16),
    "figure_5 of one epoch": lambda: figures.figure_5(history([2], 1).assign(loss=np.nan)),
    "figure_5 without accuracy": lambda: figures.figure_5(history().assign(accuracy=np.nan)),
    "figure_5 empty": lambda: figures.figure_5(history([])),
    "figure_6": lambda: figures.figure_6(np.full((5, 5), 8260), "oai_chen2018, held-out folds (n = 206,500)"),
    "figure_6 empty": lambda: figures.figure_6(np.zeros((5, 5), int), "no picture"),
    "figure_7": lambda: figures.figure_7([PICTURE] * 5, np.tile(FLAT, (5, 1)), range(5), graded(5)["image_id"]),
    "figure_7 of wide pictures": lambda: figures.figure_7([WIDE] * 5, np.tile(FLAT, (5, 1)), range(5), ["a_long_name_of_a_picture_0123L"] * 5),
    "figure_7 of two": lambda: figures.figure_7([PICTURE] * 2, np.tile(FLAT, (2, 1)), [0, 4], ["a", "b"]),
    "figure_7 empty": lambda: figures.figure_7([], np.zeros((0, 5)), [], []),
    "figure_8": lambda: figures.figure_8([PICTURE] * 2, np.array([FLAT, -FLAT]), QUERIES, [0, 4]),
    "figure_8 of equal zeros": lambda: figures.figure_8([PICTURE], np.zeros((1, 5)), QUERIES, [0]),
    "figure_8 empty": lambda: figures.figure_8([], np.zeros((0, 5)), QUERIES, []),
    "gallery": lambda: figures.gallery([PICTURE] * 5, [f"KL {grade}" for grade in range(5)]),
    "gallery empty": lambda: figures.gallery([], []),
    "worst errors": lambda: figures.worst_errors([PICTURE, WIDE] * 5, np.tile(FLAT, (10, 1)), [4] * 10, graded(10)["image_id"]),
    "worst errors of long names": lambda: figures.worst_errors([PICTURE] * 6, np.eye(5)[[0] * 6], [4] * 6, ["a_long_name_of_a_picture_0123L"] * 6),
    "worst errors empty": lambda: figures.worst_errors([], np.zeros((0, 5)), [], []),
    "found": lambda: figures.found([[PICTURE] * 6] * 5, np.tile(range(5), (6, 1)).T, QUERIES),
    "found of two wide": lambda: figures.found([[WIDE] * 2] * 5, np.zeros((5, 2), int), PROMPT_SETS["template"]),
    "found empty": lambda: figures.found([[]] * 5, np.zeros((5, 0), int), QUERIES),
    "contact sheet": lambda: figures.contact_sheet({f"KL {g}": {name: PICTURE for name in ("original", "stretch", "pad", "center crop")} for g in range(5)}),
    "reliability": lambda: figures.reliability(graded(800)["kl_grade"], graded(800)[metrics.PROBABILITIES]),
    "reliability of 8": lambda: figures.reliability(graded(8)["kl_grade"], graded(8)[metrics.PROBABILITIES]),
    "reliability empty": lambda: figures.reliability([], np.zeros((0, 5))),
    "baselines": lambda: figures.baselines(MODELS),
    "baselines empty": lambda: figures.baselines(MODELS.head(0)),
    "readings": lambda: figures.readings(unrun(readings(), [3, 9, 14])),
    "readings of one": lambda: figures.readings(readings().head(1)),
    "readings not run": lambda: figures.readings(unrun(readings(1), slice(None))),
    "readings empty": lambda: figures.readings(readings().head(0)),
    "shift": lambda: figures.shift(parts()),
    "shift upwards": lambda: figures.shift(parts(0.1, 0.3, 0.95)),
    "shift undefined": lambda: figures.shift(parts(expected=np.nan)),
    "few shot": lambda: figures.few_shot(draws(), ZERO),
    "few shot of one draw": lambda: figures.few_shot(draws(1, [5]), ZERO),
    "few shot undefined": lambda: figures.few_shot(draws(2).assign(qwk=np.nan), {"accuracy": 0.4, "qwk": np.nan}),
    "few shot empty": lambda: figures.few_shot(draws(0), ZERO),
    "nearest distances": lambda: figures.nearest_distances({"oai_chen2018": np.arange(90), "gornale2020": np.array([0, 3])}, 10),
    "retrieval": lambda: figures.retrieval(PRECISION),
    "retrieval empty": lambda: figures.retrieval(PRECISION.head(0)),
}


def drawn(figure):
    """Text, size in points and box in pixels of everything that is written into a figure."""
    found, draw = [], Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            # An annotation's own box includes its arrow; that of its text is wanted.
            found.append((text.get_text(), text.get_fontsize(), Text.get_window_extent(text, renderer)))
        draw(text, renderer)

    canvas = FigureCanvasAgg(figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        canvas.draw()
    return found


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_is_readable_whole_and_clear_of_the_others(name):
    figure = DRAWINGS[name]()
    assert isinstance(figure, Figure) and figure.get_size_inches()[0] == COLUMN
    texts = drawn(figure)
    assert texts and min(size for _, size, _ in texts) >= 8
    for number, (text, _, box) in enumerate(texts):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, f"'{text}' is cut off"
        for other, _, neighbour in texts[:number]:
            width, height = min(box.x1, neighbour.x1) - max(box.x0, neighbour.x0), min(box.y1, neighbour.y1) - max(box.y0, neighbour.y0)
            assert width <= 1 or height <= 2, f"'{text}' lies over '{other}'"


def written(figure):
    return [text for text, _, _ in drawn(figure)]


def test_captions_of_the_pre_training_name_no_grade():
    assert not any("grade" in text.lower() for text in written(figures.figure_1(FACTS)))


def test_figure_4_needs_parts_and_figure_1_facts():
    with pytest.raises(StudyError):
        figures.figure_4(PARTS.head(0))
    with pytest.raises(StudyError):
        figures.figure_1(None)


def test_grade_colours_grow_darker():
    lightness = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in GRADE_COLOURS]
    assert len(GRADE_COLOURS) == 5 and all(np.diff(lightness) < -0.05)


def test_the_lowest_loss_is_named_and_drawn():
    figure = figures.figure_5(history(), floor=2.79, chance=4.16)
    assert {"lowest possible 2.79 nats", "chance 4.16 nats"} <= set(written(figure))
    assert {2.79, 4.16} <= {line.get_ydata()[0] for line in figure.axes[1].lines if len(set(line.get_ydata())) == 1}


def test_a_reading_that_was_not_run_says_so_and_the_printed_one_is_a_line():
    figure = figures.readings(unrun(readings(), [3, 9]))
    assert written(figure).count("not run") == 2 and written(figure).count("loss") == 1
    line = next(line for line in figure.axes[0].lines if line.get_label() == "as printed")
    assert line.get_xdata()[0] == readings()["qwk"][0]


def test_hits_differ_by_more_than_colour():
    titles = [axis.get_title() for axis in figures.found([[PICTURE] * 3] * 5, np.array([[g, (g + 1) % 5, g] for g in range(5)]), QUERIES).axes]
    assert ["✓" in title for title in titles if title] == [True, False, True] * 5
    assert get_font(findfont(FontProperties(family="DejaVu Sans"))).get_char_index(ord("✓"))


@settings(max_examples=30, deadline=None)
@given(values=st.tuples(*[st.floats(0.05, 0.95)] * 3))
def test_the_steps_lead_from_the_internal_to_the_external_accuracy(values):
    figure = figures.shift(parts(*values))
    bars = [bar for bar in figure.axes[0].patches if bar.get_height() > 0.5]
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    internal, expected, external = values
    assert ends == pytest.approx([internal, expected, expected, external, external]) and bars[1].get_x() == internal


def test_a_decomposition_without_a_part_is_refused():
    with pytest.raises(StudyError, match="'rest'"):
        figures.shift(parts().query("part != 'rest'"))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 40), number=st.integers(1, 12))
def test_the_worst_errors_follow_their_rule(seed, n, number):
    frame = graded(n, seed)
    # Coarse probabilities and shuffled rows make ties that only the id can break.
    frame[metrics.PROBABILITIES] = np.eye(5)[np.random.default_rng(seed).integers(0, 5, n)] * 0.6 + 0.08
    frame = frame.sample(frac=1, random_state=seed)
    rows = []
    for row in frame.itertuples():
        chances = [row.p0, row.p1, row.p2, row.p3, row.p4]
        guess = chances.index(max(chances))
        rows.append((-abs(guess - row.kl_grade), -max(chances), row.image_id))
    expected = [row[2] for row in sorted(rows) if row[0] < 0][:number]
    shown = figures.worst(frame, number)
    assert list(shown["image_id"]) == expected
    pd.testing.assert_frame_equal(shown, frame.loc[shown.index])


def test_between_errors_of_one_distance_the_surer_is_worse():
    frame = pd.DataFrame([[0.4, 0.6, 0, 0, 0], [0.1, 0.9, 0, 0, 0], [0, 0, 1, 0, 0]], columns=metrics.PROBABILITIES)
    frame = frame.assign(kl_grade=[0, 0, 2], image_id=["a", "b", "c"])
    assert list(figures.worst(frame)["image_id"]) == ["b", "a"]
    assert "b\ntrue 0 · graded 1\nprobability 0.90" in written(figures.worst_errors([PICTURE], [[0.1, 0.9, 0, 0, 0]], [0], ["b"]))


def test_each_draw_is_a_dot_and_the_line_is_the_result_without_labels():
    figure = figures.few_shot(draws(3), ZERO)
    for axis, name in zip(figure.axes, ("qwk", "accuracy"), strict=True):
        dots = np.concatenate([line.get_ydata() for line in axis.lines if line.get_label() == "one draw"])
        assert sorted(dots) == sorted(draws(3)[name])
        assert next(line.get_ydata()[0] for line in axis.lines if line.get_label() == "no external label") == ZERO[name]
    assert written(figures.few_shot(draws(2).assign(qwk=np.nan), ZERO)).count("undefined") == 3
