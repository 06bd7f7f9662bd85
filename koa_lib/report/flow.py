"""The participant flow that CLAIM 2024 and TRIPOD+AI ask for: from files to analysed pictures, by manifests alone."""

import textwrap
from collections import namedtuple
from itertools import groupby

import numpy as np
import pandas as pd

from koa_lib.data.sets import conflicting, subset
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.report.diagrams import arrow, box
from koa_lib.report.style import FROZEN, GRADE_COLOURS, INK, TRAINED, WIDTH, canvas, styled

PARTS = {"train": "training part", "val": "validation part", "test": "internal test"}
USES = {"training": "fitting and choosing", "internal test": "reported once", "external": "external evaluation: no confirmatory choice uses it"}
GRADE_COLUMNS = [f"kl{grade}" for grade in GRADES]
# Lengths in units of a board as wide as those of the other drawings, and the letters that fit into one; the top is y = 0.
BOARD, COLUMN, INSET, INDENT, GAP, LINE, BAR, LETTERS = 12.2, 5.95, 0.16, 0.54, 0.3, 0.285, 0.16, 8.4
# A box; `side`: the flow passes by on its left; `role`: what the ground under it is used for.
_Card = namedtuple("_Card", "lines grades left_out side role height")


def stages(rows, facts):
    """The boxes of a cohort's flow, one per row; what is kept and left out adds up at each step.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows. A box that holds none of them stays: zero is a result.
    facts : CohortFacts
        A training cohort is told by its splits (one without a role is left out), another by what is left out.

    Returns
    -------
    DataFrame
        stage, kind ('kept' or 'left out'), label, pictures, groups (distinct `group_id`), kl0 to kl4.

    Raises
    ------
    StudyError
        The cohort has no rows.
    """
    if rows.empty:
        raise StudyError(f"The cohort {facts.name} has no rows, so it has no flow. Build its manifest again.")
    boxes = _splits(rows, facts.roles) if _trains(facts) else _derived(rows)
    return pd.DataFrame([_count(rows, "listed", "kept", "listed files"), *(_count(rows[chosen], *names) for chosen, *names in boxes)])


def _trains(facts):
    return "training" in facts.roles.values()


def _splits(rows, roles):
    for split in sorted(set(rows["split"]) - set(roles)):
        yield rows["split"] == split, split, "left out", f"{split}, a split without a role"
    for split in roles:
        yield rows["split"] == split, split, "kept", PARTS.get(split, split)


def _derived(rows):
    unique, single = (rows["image_id"].isin(subset(rows, name)) for name in ("deduplicated", "single_knee"))
    yield conflicting(rows), "conflicts", "left out", "equal pixels, different grades"
    yield ~conflicting(rows) & ~unique, "copies", "left out", "further copies of equal pixels"
    yield unique, "deduplicated", "kept", "deduplicated set"
    yield unique & ~single, "two_knees", "left out", "two knees in one picture"
    yield single, "single_knee", "kept", "single-knee set"


def _count(rows, stage, kind, label):
    grades = dict(zip(GRADE_COLUMNS, np.bincount(rows["kl_grade"], minlength=len(GRADES)), strict=True))
    return {"stage": stage, "kind": kind, "label": label, "pictures": len(rows), "groups": rows["group_id"].nunique(), **grades}


@styled
def participant_flow(training, external=None, note=""):
    """Draw the flow of the training cohort beside that of the external one.

    Parameters
    ----------
    training, external : pair of CohortFacts and DataFrame
        A cohort's facts and its `stages`.
    note : str
        Stands under the diagram.

    Raises
    ------
    StudyError
        One cohort is in the place of the other.
    """
    _check_places(training, external)
    figure, axis = canvas(1)
    left = 0 if external else (BOARD - COLUMN) / 2
    depth = _branch(axis, BOARD - COLUMN, *external) if external else 0
    depth = min(depth, _branch(axis, left, *training, depth))
    if not external:
        depth -= GAP + 2 * LINE
        box(axis, left, depth, COLUMN, 2 * LINE, "no external cohort in this run", "white")
    depth = _foot(axis, depth - GAP - LINE, textwrap.wrap(note, int(LETTERS * BOARD)))
    axis.set(xlim=(-0.03, BOARD + 0.03), ylim=(depth, 0.03))  # the outermost lines are drawn in full
    axis.set_axis_off()
    figure.set_size_inches(WIDTH, -depth * WIDTH / BOARD)
    return figure


def _check_places(training, external):
    for place, pair in (("training", training), ("external", external)):
        if pair and _trains(pair[0]) != (place == "training"):
            raise StudyError(f"{pair[0].name} is no {place} cohort by its roles. Give it in the other place of the flow.")


def _cards(facts, table):
    for row in table.itertuples():
        left_out, role = row.kind == "left out", facts.roles.get(row.stage, None if _trains(facts) else "external")
        side, grades = left_out or row.stage in facts.roles, np.array([getattr(row, name) for name in GRADE_COLUMNS])
        letters = int(LETTERS * (COLUMN - 4 * INSET - INDENT * side))
        texts = [*_head(facts, row), ("Listed: " * (row.stage == "listed") + _amount(facts, row), 8.5, "normal")]
        lines = [(line, *look) for text, *look in texts for line in textwrap.wrap(text, letters)]
        lines.append((f"KL {GRADES[0]}–{GRADES[-1]}: " + " / ".join(f"{count:,}" for count in grades), 8, "normal"))
        yield _Card(lines, grades, left_out, side, role, 2 * INSET + LINE * len(lines) + BAR)


def _head(facts, row):
    if row.stage != "listed":
        return [(f"Left out: {row.label}" if row.kind == "left out" else row.label.capitalize(), 8.5, "bold")]
    doi = [(f"doi {facts.doi}", 8, "normal")] if facts.doi else []
    return [("Training cohort" if _trains(facts) else "External cohort", 9, "bold"), (facts.title, 8.5, "normal"), *doi]


def _amount(facts, row):
    people = {"participant": row.groups, "knee": row.pictures} if facts.group == "patient" else {}
    numbers = people or {"picture": row.pictures, "group": row.groups}
    explained = "" if people or row.stage != "listed" else f" of {facts.group} (patients are not known)"
    return ", ".join(f"{number:,} {name}{'s' * (number != 1)}" for name, number in numbers.items()) + explained


def _branch(axis, x, facts, table, depth=0):
    """Draw a cohort's cards on the grounds of their roles, stretched down to a depth; returns the lower end."""
    blocks = [(role, list(cards)) for role, cards in groupby(_cards(facts, table), key=lambda card: card.role)]
    heights = [sum(card.height for card in cards) + 2 * INSET + LINE * bool(role) for role, cards in blocks]
    gap = max(GAP, (-depth - sum(heights)) / (len(table) - 1))
    y = start = 0
    for (role, cards), height in zip(blocks, heights, strict=True):
        height += gap * (len(cards) - 1)
        if role:
            box(axis, x, y - height, COLUMN, height, "", TRAINED if role == "training" else FROZEN)
            place, use = (x + COLUMN / 2, y - height + (INSET + LINE) / 2), USES.get(role, role).capitalize()
            axis.text(*place, use, ha="center", va="center", fontsize=8.5, style="italic")
        top = y - INSET
        for card in cards:
            start = _draw(axis, x + INSET, top, card, start)
            top -= card.height + gap
        y -= height + gap
    return y + gap


def _draw(axis, x, top, card, start):
    """Draw a card and the way to it from where the flow stands; returns where it goes on."""
    trunk, bottom, middle = x + INDENT / 2, top - card.height, top - card.height / 2
    left, width = x + INDENT * card.side, COLUMN - 2 * INSET - INDENT * card.side
    box(axis, left, bottom, width, card.height, "", "white", dashed=card.left_out)
    for place, (text, size, weight) in enumerate(card.lines):
        axis.text(left + INSET, top - INSET - LINE * (place + 0.45), text, va="center", fontsize=size, weight=weight)
    parts = (width - 2 * INSET) * card.grades / max(1, card.grades.sum())
    starts, floor = left + INSET + np.cumsum(parts) - parts, bottom + 0.75 * INSET
    axis.barh(floor, parts, BAR, starts, align="edge", color=GRADE_COLOURS, ec="white", lw=0.5)
    axis.barh(floor, width - 2 * INSET, BAR, left + INSET, align="edge", color="none", ec=INK, lw=0.6)
    if card.side:
        axis.plot([trunk, trunk], [start, middle], color=INK, lw=1.1)
        arrow(axis, (trunk, middle), (left, middle))
    elif start:
        arrow(axis, (trunk, start), (trunk, top))
    return middle if card.side else bottom


def _foot(axis, y, lines):
    """Draw the key of the grades and the lines of the note; returns the lower end."""
    for grade in GRADES:
        x = BOARD / 2 + 1.15 * (grade - len(GRADES) / 2) + BAR
        axis.barh(y, 2 * BAR, BAR, x, align="edge", color=GRADE_COLOURS[grade], ec=INK, lw=0.6)
        axis.text(x + 2.6 * BAR, y + BAR / 2, f"KL {grade}", va="center", fontsize=8)
    for place, line in enumerate(lines, 1):
        axis.text(BOARD / 2, y - 1.4 * LINE * place, line, ha="center", va="center", fontsize=8.5)
    return y - 1.4 * LINE * len(lines) - LINE


def alt_text(training, external=None):
    """The flow in two sentences, for a reader without sight; the parameters are those of `participant_flow`."""
    _check_places(training, external)
    second = f"External cohort {_told(*external)}." if external else "There is no external cohort in this run."
    return f"Participant flow of the training cohort {_told(*training)}. {second}"


def _told(facts, table):
    listed, *others = table.itertuples()
    names = [f"left out ({row.label})" if row.kind == "left out" else row.label for row in others]
    steps = [f"{name}: {_amount(facts, row)}" for name, row in zip(names, others, strict=True)]
    return f"{facts.title}, {_amount(facts, listed)} listed; {'; '.join(steps)}"
