"""Figures: every text readable, inside the figure and clear of its neighbours."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from koa_lib.data import cohorts
from koa_lib.predictions import PROBABILITIES
from koa_lib.prompts import PROMPT_SETS
from koa_lib.report import diagrams, figures, flow, plots, primer, sheets
from koa_lib.report.style import COLUMN, GRADE_COLOURS, WIDTH

pytestmark = pytest.mark.filterwarnings("error")
FACTS = {
    "name": "ViT-B-32",
    "image_tower": "ViT, 12 blocks, width 768, patch 32",
    "image_size": 224,
    "embed_dim": 512,
    "text_tower": "Transformer, 12 blocks, width 512",
    "context_length": 77,
    "parameters": 151277313,
}
PICTURE, WIDE, FLAT = np.arange(60.0).reshape(6, 10) / 60, np.zeros((161, 640)), np.full(5, 0.2)
LONG = "a_long_name_of_a_picture_0123L"


def product(**columns):
    """A frame of all combinations."""
    return pd.MultiIndex.from_product(columns.values(), names=columns).to_frame(index=False)


def graded(n=80, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.dirichlet(np.ones(5), n), columns=PROBABILITIES)
    return frame.assign(kl_grade=generator.integers(0, 5, n), image_id=LONG)


def history():
    rows = product(fold=range(1, 6), epoch=range(1, 31), part=["train", "held_out"])
    return rows.assign(loss=3 + 1 / rows["epoch"], accuracy=0.5, floor=2.79)


def readings():
    options = [f"best on the held-out fold (optimistic) {k}" for k in range(8)]
    table = pd.DataFrame({"factor": ["", *["residual ratio"] * 4, *["prompts"] * 4],
                          "option": ["as printed", *options]})
    table = table.assign(qwk=np.linspace(-0.05, 0.85, 9), qwk_low=-0.1, qwk_high=0.9)
    table.loc[3, ["qwk", "qwk_low", "qwk_high"]] = np.nan
    return table


MODELS = ["before training", "after training"]
SPLITS = ["train", "val", "test", "auto_test"]
COUNTS = product(cohort=cohorts.PUBLISHED, split=SPLITS, grade=range(5)).assign(n=2286)
COSINES = [-0.41, 0.1, 0.2, 0.3, 0.55] * 2
COMPARED = product(model=MODELS, grade=range(5)).assign(cosine=COSINES, probability=0.2)
PARTS = pd.DataFrame({"part": ["image tower", "adapter", "text tower", "scale"], "trained": [0, 1, 0, 0],
                      "parameters": [87849216, 131072, 63428096, 1]}).astype({"trained": bool})
CONFUSION = pd.DataFrame(np.full((5, 5), 8260), columns=[f"graded {grade}" for grade in range(5)])
ANSWERS = {name: np.tile(FLAT, (5, 1)) for name in MODELS}
SIZES = pd.DataFrame({"cohort": cohorts.PUBLISHED, "pictures": [8260, 1650]})
QUERIES = PROMPT_SETS["queries"]
SIMILAR = pd.DataFrame([FLAT, -FLAT], columns=QUERIES).assign(kl_grade=[0, 4])
WAYS = dict.fromkeys(("file", "stretch", "pad", "center crop", "joint crop,\nmatch train"), PICTURE)
PLACE = "oai_chen2018, held-out folds (n = 206,500)"
DRAWINGS = {
    "figure_1": lambda: diagrams.figure_1(FACTS),
    "figure_2": lambda: figures.figure_2(COUNTS),
    "figure_3": lambda: diagrams.figure_3(FACTS, graded().iloc[0], PICTURE),
    "figure_4": lambda: diagrams.figure_4(PARTS),
    "figure_7": lambda: figures.figure_7(graded(2), [PICTURE, WIDE]),
    "figure_8": lambda: figures.figure_8(SIMILAR, [PICTURE] * 2, QUERIES),
    "kl_scale": lambda: primer.scale([PICTURE] * 5),
    "similarity": lambda: primer.similarity(COMPARED, PICTURE, 0),
    "training_change": lambda: primer.change(primer.mean_answers(np.array([0, 1, 2, 2, 4]), ANSWERS)),
    "learning_roles": lambda: primer.roles(SIZES, 5, 3),
    "participant_flow": lambda: flow.participant_flow(flow.of_run([], 5)),
    "geometries": lambda: sheets.contact_sheet({f"KL {grade}": WAYS for grade in range(5)}),
    "worst_errors": lambda: sheets.worst_errors(graded(10), [PICTURE, WIDE] * 5),
    "forest": lambda: plots.forest(readings(), "qwk", "option", "factor", line="as printed"),
    "curves": lambda: plots.curves(history(), "epoch", ["accuracy", "loss"], "fold", "part",
                                   levels={"floor": "floor"}),
    "confusion": lambda: plots.confusion(CONFUSION, PLACE),
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
    assert figure.get_size_inches()[0] in (COLUMN, WIDTH)
    texts, whole = drawn(figure), figure.bbox
    assert texts and min(size for _, size, _ in texts) >= 8
    for number, (text, _, box) in enumerate(texts):
        assert min(box.x0, box.y0, whole.x1 - box.x1, whole.y1 - box.y1) >= -1, f"'{text}' is cut off"
        for other, _, near in texts[:number]:
            width = min(box.x1, near.x1) - max(box.x0, near.x0)
            height = min(box.y1, near.y1) - max(box.y0, near.y0)
            assert width <= 1 or height <= 2, f"'{text}' lies over '{other}'"


def test_figure_2_counts_each_grade_and_its_share():
    texts = [text for text, _, _ in drawn(figures.figure_2(COUNTS))]
    assert texts.count("9,144\n20 %") == 10 and "OAI (Chen 2018) (n = 45,720)" in texts


def test_grade_colours_grow_darker():
    lightness = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in GRADE_COLOURS]
    assert len(GRADE_COLOURS) == 5 and all(np.diff(lightness) < -0.05)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 20), number=st.integers(1, 12))
def test_the_worst_errors_are_the_farthest_then_the_surest(seed, n, number):
    generator, frame = np.random.default_rng(seed), graded(n, seed)
    # Coarse probabilities make ties that only the id can break.
    sure = generator.choice([0.6, 0.9], (n, 1))
    frame[PROBABILITIES] = np.eye(5)[generator.integers(0, 5, n)] * sure + (1 - sure) / 5
    frame["image_id"] = [f"k{place}" for place in generator.permutation(n)]
    rows = []
    for row in frame.itertuples():
        chances = [row.p0, row.p1, row.p2, row.p3, row.p4]
        rows.append((-abs(np.argmax(chances) - row.kl_grade), -max(chances), row.image_id))
    expected = [name for distance, _, name in sorted(rows) if distance][:number]
    assert list(sheets.worst(frame, number)["image_id"]) == expected
