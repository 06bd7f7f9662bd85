"""The participant flow: its numbers are those of the manifests, and the drawing shows them all."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import FancyBboxPatch

from koa_lib.data import cohorts, sets
from koa_lib.errors import StudyError
from koa_lib.report import flow

pytestmark = pytest.mark.filterwarnings("error")
manifest = cache(cohorts.manifest)
DERIVED = ["listed", "conflicts", "copies", "deduplicated", "two_knees", "single_knee"]
COUNTED = ["pictures", *flow.GRADE_COLUMNS]


def frame(records):
    """Manifest rows from (pixels, grade, split, wide); pictures of equal pixels share a group."""
    rows = pd.DataFrame(records, columns=["pixel_sha256", "kl_grade", "split", "wide"]).astype(
        {"pixel_sha256": str}
    )
    widths = np.where(rows["wide"], 640, 300)
    return rows.assign(
        image_id=[f"i{i}" for i in rows.index], group_id="g" + rows["pixel_sha256"], width=widths, height=161
    )


def boxes(name, rows=None):
    return flow.stages(manifest(name) if rows is None else rows, cohorts.facts(name), 5).set_index("stage")


# Two knees per patient; two further copies, a conflict, two wide pictures.
PARTS = ["train", "train", "val", "test"]
LEFT = frame([(i // 2, i % 5, PARTS[i // 2 % 4], False) for i in range(24)])
RIGHT = frame([(max(i, 3), i % 5 if i > 4 else 2, "external", i > 20) for i in range(1, 23)])


def test_numbers_of_the_published_sets():
    chen, gornale = boxes("oai_chen2018"), boxes("gornale2020")
    assert chen["pictures"].to_dict() == {"listed": 8260, "train": 5778, "val": 826, "test": 1656}
    assert chen["groups"].iloc[1:].sum() == chen["groups"].iloc[0] == 4130
    known = cohorts.facts("oai_chen2018").counts
    assert {split: tuple(chen.loc[split, flow.GRADE_COLUMNS]) for split in known} == known
    numbers = (1650, 6, 68, 1576, 166, 1410)
    assert gornale["pictures"].to_dict() == dict(zip(DERIVED, numbers, strict=True))
    assert gornale.at["conflicts", "groups"] == 3
    assert list(gornale.loc["listed", flow.GRADE_COLUMNS]) == [514, 477, 232, 221, 206]


records = st.tuples(
    st.integers(0, 12), st.integers(0, 4), st.sampled_from([*PARTS, "auto_test"]), st.booleans()
)


@settings(max_examples=25, deadline=None)
@given(st.lists(records, min_size=1, max_size=40))
def test_kept_and_left_out_add_up(drawn):
    rows = frame(drawn)
    derived, split = boxes("gornale2020", rows), boxes("oai_chen2018", rows)
    lost = derived[COUNTED].T
    assert (lost["deduplicated"] == lost["listed"] - lost["conflicts"] - lost["copies"]).all()
    assert (lost["single_knee"] == lost["deduplicated"] - lost["two_knees"]).all()
    for name in ("deduplicated", "single_knee"):
        assert derived.at[name, "pictures"] == len(sets.subset(rows, name))
    assert (split[COUNTED].iloc[1:].sum() == split[COUNTED].iloc[0]).all()
    for table in (derived, split):
        assert (table[flow.GRADE_COLUMNS].sum(axis=1) == table["pictures"]).all()


def test_an_empty_box_stays_and_a_split_without_a_role_is_left_out():
    rows = frame([(0, 0, "train", False), (1, 1, "auto_test", False)])
    table = boxes("phantom_a", rows)
    assert list(table.index) == ["listed", "auto_test", "train", "val", "test"]
    assert table.at["auto_test", "kind"] == "left out" and not table.loc["test", COUNTED].any()
    with pytest.raises(StudyError, match="gornale2020"):
        boxes("gornale2020", rows.head(0))


@pytest.mark.parametrize("cohorts_of_run", [{"phantom_a": LEFT, "phantom_b": RIGHT}, {"phantom_a": LEFT}])
def test_the_figure_shows_every_number_and_no_text_crosses_a_box(cohorts_of_run):
    members = [SimpleNamespace(facts=cohorts.facts(name), rows=rows) for name, rows in cohorts_of_run.items()]
    table = flow.of_run(members, 5)
    figure = flow.participant_flow(table)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    shown = " ".join(text.get_text() for text in axis.texts)
    for row in table.to_dict("records"):
        assert " / ".join(f"{row[name]:,}" for name in flow.GRADE_COLUMNS) in shown
        assert f"{row['pictures']:,} " in shown and (row["title"] in shown or row["stage"] == "listed")
    cards = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    texts = [text.get_window_extent() for text in axis.texts if text.get_text().strip()]
    assert all(inside(text, card) or not card.overlaps(text) for card in cards for text in texts)
    assert all(inside(box, figure.bbox) for box in [*texts, *cards])


def inside(inner, outer):
    return outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1
