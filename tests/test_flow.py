"""The participant flow: its numbers are those of the manifests and derived sets, and the drawing shows them all."""

from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import same_color
from matplotlib.patches import FancyBboxPatch

from koa_lib.data import cohorts, sets
from koa_lib.errors import StudyError
from koa_lib.report import flow, style

pytestmark = pytest.mark.filterwarnings("error")
manifest = cache(cohorts.manifest)
DERIVED = ["listed", "conflicts", "copies", "deduplicated", "two_knees", "single_knee"]
NUMBERS = ["pictures", "groups", *flow.GRADE_COLUMNS]


def frame(records):
    """Manifest rows from (pixels, grade, split, wide); pictures of equal pixels share a group."""
    rows = pd.DataFrame(records, columns=["pixel_sha256", "kl_grade", "split", "wide"]).astype({"pixel_sha256": str})
    widths = np.where(rows["wide"], 640, 300)
    return rows.assign(image_id=[f"i{i}" for i in rows.index], group_id="g" + rows["pixel_sha256"], width=widths, height=161)


def made(patients=12):
    """Small cohorts like the phantom ones: two knees per patient; two further copies, a conflict, two wide pictures."""
    parts = ["train", "train", "val", "test"]
    left = frame([(i // 2, i % 5, parts[i // 2 % 4], False) for i in range(2 * patients)])
    right = frame([(max(i, 3), i % 5 if i > 4 else 2, "external", i > 20) for i in range(1, 23)] + [(7, 0, "external", False)])
    return pair("phantom_a", left), pair("phantom_b", right)


def pair(name, rows=None):
    rows = manifest(name) if rows is None else rows
    return cohorts.facts(name), flow.stages(rows, cohorts.facts(name))


@pytest.fixture(scope="module")
def chen():
    return pair("oai_chen2018")


@pytest.fixture(scope="module")
def gornale():
    return pair("gornale2020")


@pytest.fixture(scope="module")
def partial():
    rows = manifest("oai_chen2018")
    return pair("oai_chen2018", rows[rows["split"].isin(["train", "val"])])


def test_numbers_of_the_training_cohort(chen):
    facts, table = chen
    boxes = table.set_index("stage")
    assert list(boxes.index) == ["listed", "train", "val", "test"] and set(table["kind"]) == {"kept"}
    assert list(boxes["pictures"]) == [8260, 5778, 826, 1656] and boxes.loc["listed", "groups"] == 4130
    assert boxes["groups"].iloc[1:].sum() == 4130
    assert {split: list(boxes.loc[split, flow.GRADE_COLUMNS]) for split in facts.counts} == {split: list(n) for split, n in facts.counts.items()}


def test_numbers_of_the_external_cohort(gornale):
    boxes, rows = gornale[1].set_index("stage"), manifest("gornale2020")
    assert list(boxes.index) == DERIVED
    assert list(boxes["pictures"]) == [1650, 6, 68, 1576, 166, len(sets.subset(rows, "single_knee"))]
    assert boxes.loc["conflicts", "groups"] == 3 and list(boxes.loc["listed", flow.GRADE_COLUMNS]) == [514, 477, 232, 221, 206]


def adds_up(table):
    """Each kept box holds what the last one held less what was left out between them."""
    before, left_out = table.iloc[0][["pictures", *flow.GRADE_COLUMNS]], 0
    for _, box in table.iloc[1:].iterrows():
        pictures = box[["pictures", *flow.GRADE_COLUMNS]]
        if box["kind"] == "kept":
            assert (pictures == before - left_out).all()
            before, left_out = pictures, 0
        else:
            left_out = left_out + pictures


records = st.tuples(st.integers(0, 12), st.integers(0, 4), st.sampled_from(["train", "val", "test", "auto_test"]), st.booleans())


@settings(max_examples=25, deadline=None)
@given(st.lists(records, min_size=1, max_size=40))
def test_kept_and_left_out_add_up(drawn):
    rows = frame(drawn)
    table = pair("gornale2020", rows)[1]
    adds_up(table)
    found = table.set_index("stage")["pictures"]
    assert found["deduplicated"] == len(sets.subset(rows, "deduplicated"))
    assert found["single_knee"] == len(sets.subset(rows, "single_knee"))
    split = pair("oai_chen2018", rows)[1]
    assert (split.iloc[1:][["pictures", *flow.GRADE_COLUMNS]].sum() == split.iloc[0][["pictures", *flow.GRADE_COLUMNS]]).all()
    for each in (table, split):
        assert (each[flow.GRADE_COLUMNS].sum(axis=1) == each["pictures"]).all() and (each["groups"] <= each["pictures"]).all()


def test_an_empty_box_stays_and_nothing_may_be_left_out(partial):
    test = partial[1].set_index("stage").loc["test"]
    assert not test[NUMBERS].any() and partial[1]["pictures"][0] == 5778 + 826
    clean = pair("phantom_b", frame([(i, i % 5, "external", False) for i in range(7)]))[1].set_index("stage")
    assert list(clean.index) == DERIVED and list(clean["pictures"]) == [7, 0, 0, 7, 0, 7]


def test_the_steps_of_a_small_cohort():
    boxes = made()[1][1].set_index("stage")
    assert list(boxes["pictures"]) == [23, 2, 2, 19, 2, 17] and list(boxes["groups"]) == [20, 1, 1, 19, 2, 17]


def test_a_split_without_a_role_is_left_out(chen):
    rows = frame([(0, 0, "train", False), (1, 1, "auto_test", False)])
    training = pair("phantom_a", rows)
    assert list(training[1]["stage"]) == ["listed", "auto_test", "train", "val", "test"] and training[1]["kind"][1] == "left out"
    assert "Left out: auto_test" in " ".join(words(flow.participant_flow(training)))


def test_no_rows_and_exchanged_cohorts_are_refused(chen, gornale):
    with pytest.raises(StudyError, match="gornale2020 has no rows"):
        flow.stages(manifest("gornale2020").head(0), gornale[0])
    for draw in (flow.participant_flow, flow.alt_text):
        with pytest.raises(StudyError, match="gornale2020 is no training cohort"):
            draw(gornale)
        with pytest.raises(StudyError, match="oai_chen2018 is no external cohort"):
            draw(chen, chen)


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text().strip()]


def words(figure):
    return [text.get_text() for text in texts(figure)]


@pytest.fixture(params=["published", "made", "no external", "no test"])
def case(request, chen, gornale, partial):
    return {"published": (chen, gornale), "made": made(), "no external": (chen, None), "no test": (partial, gornale)}[request.param]


def told(facts, row):
    """The numbers of a box as they should be printed."""
    counts = "KL 0–4: " + " / ".join(f"{row[name]:,}" for name in flow.GRADE_COLUMNS)
    unit, group = ("knee", "participant") if facts.group == "patient" else ("picture", "group")
    return counts, f"{row['pictures']:,} {unit}", f"{row['groups']:,} {group}"


def test_the_figure_shows_every_number(case):
    shown = " ".join(words(flow.participant_flow(*case, note="A line, for whoever reads it.")))
    for facts, table in filter(None, case):
        assert facts.title in shown and (facts.doi is None or facts.doi in shown)
        for _, row in table.iterrows():
            assert all(number in shown for number in told(facts, row))
            assert row["stage"] == "listed" or row["label"] in shown.lower()
    assert "A line, for whoever reads it." in shown and "Fitting and choosing" in shown and "Reported once" in shown
    assert ("no confirmatory choice uses it" in shown) != ("no external cohort in this run" in shown)


def test_no_text_is_clipped_small_or_over_another(case):
    figure = flow.participant_flow(*case, note="A long line. " * 12)
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == style.WIDTH and figure.get_size_inches()[1] < 7.5
    axis, boxes = figure.axes[0], [text.get_window_extent() for text in texts(figure)]
    cards = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(inside(box, axis.bbox) for box in [*boxes, *cards]) and inside(axis.bbox, figure.bbox)
    assert min(text.get_fontsize() for text in texts(figure)) >= 8
    # A text lies inside a box or outside it, never across its edge.
    assert all(inside(box, card) or not card.overlaps(box) for card in cards for box in boxes)


def inside(inner, outer):
    return outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1


def test_what_is_left_out_is_dashed(chen, gornale):
    cards = [patch for patch in flow.participant_flow(chen, gornale).axes[0].patches if isinstance(patch, FancyBboxPatch)]
    dashed = [card for card in cards if card.get_linestyle() == "--"]
    assert len(dashed) == (gornale[1]["kind"] == "left out").sum() and all(same_color(card.get_facecolor(), "white") for card in dashed)


def test_the_grades_share_the_bar(chen):
    first = flow.participant_flow(chen).axes[0].containers[0]
    widths = np.array([patch.get_width() for patch in first])
    assert widths / widths.sum() == pytest.approx(chen[1].loc[0, flow.GRADE_COLUMNS].to_numpy(float) / 8260)
    assert [same_color(patch.get_facecolor(), colour) for patch, colour in zip(first, style.GRADE_COLOURS, strict=True)] == [True] * 5


def test_the_alternative_text_tells_the_numbers(case):
    text = flow.alt_text(*case)
    for facts, table in filter(None, case):
        assert facts.title in text and all(number in text for _, row in table.iterrows() for number in told(facts, row)[1:])
    assert text.endswith(".") and "\n" not in text and ("no external cohort" in text) == (case[1] is None)
