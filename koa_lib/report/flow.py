"""The participant flow that CLAIM 2024 and TRIPOD+AI ask for, from files to analysed pictures."""

import textwrap
from collections import namedtuple
from itertools import groupby

import numpy as np
import pandas as pd

from koa_lib.data import cohorts
from koa_lib.data.sets import conflicting, subset
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.report import words
from koa_lib.report.diagrams import arrow, box
from koa_lib.report.entries import plural
from koa_lib.report.style import FROZEN, INK, TRAINED, WIDTH, canvas, styled

GRADE_COLUMNS = [f"kl{grade}" for grade in GRADES]
# Lengths in units of a board as wide as other drawings, and the letters that fit into one; the top is y = 0.
BOARD, COLUMN, INSET, INDENT, GAP, LINE, LETTERS = 12.2, 5.95, 0.16, 0.54, 0.3, 0.285, 8.4
# A box; `side`: the flow passes by on its left; `use`: what the ground under it is used for.
_Card = namedtuple("_Card", "lines left_out side use height")


def of_run(members, folds):
    """The flow of a run's cohorts and, by their manifests, of the published sets.

    Parameters
    ----------
    members : list of datasets.Cohort
    folds : int
        Of our protocol: 0 is the official split alone.

    Returns
    -------
    DataFrame
        source ('this run' or 'published'), then the columns of `stages`.
    """
    ours = [stages(cohort.rows, cohort.facts, folds).assign(source="this run") for cohort in members]
    facts = [cohorts.facts(name) for name in cohorts.PUBLISHED]
    published = [stages(cohorts.manifest(known.name), known, folds).assign(source="published")
                 for known in facts]
    table = pd.concat([*ours, *published], ignore_index=True)
    return table[["source", *table.columns.drop("source")]]


def stages(rows, facts, folds):
    """The boxes of a cohort's flow, one per row; what is kept and left out adds up at each step.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows. A box that holds none of them stays: zero is a result.
    folds : int
        As for `of_run`.
    facts : CohortFacts
        A training cohort is told by its splits (one without a role is left out), another by what is left out.

    Returns
    -------
    DataFrame
        cohort, branch ('training' or 'external'), title, doi, unit (what a group is), stage, kind ('kept' or
        'left out'), label, use (of the pictures), pictures, groups (distinct `group_id`), kl0 to kl4.

    Raises
    ------
    StudyError
        The cohort has no rows.
    """
    if rows.empty:
        raise StudyError(f"The cohort {facts.name} has no rows, so it has no flow. Build its manifest again.")
    trains = "training" in facts.roles.values()
    boxes = [(rows["image_id"].notna(), "listed", "kept", "listed files")]
    boxes += _splits(rows, facts.roles) if trains else _derived(rows)
    named = {
        "cohort": facts.name,
        "branch": "training" if trains else "external",
        "title": facts.title,
        "doi": facts.doi or "",
        "unit": facts.group,
    }
    uses = facts.uses(folds) if trains else {box[1]: "external" for box in boxes}
    return pd.DataFrame([named | _count(rows[chosen], uses, *box) for chosen, *box in boxes])


def _splits(rows, roles):
    for split in sorted(set(rows["split"]) - set(roles)):
        yield rows["split"] == split, split, "left out", f"left out: {split}, a split without a role"
    for split in roles:
        yield rows["split"] == split, split, "kept", words.people(split)


def _derived(rows):
    unique, single = (rows["image_id"].isin(subset(rows, name)) for name in ("deduplicated", "single_knee"))
    yield conflicting(rows), "conflicts", "left out", "left out: equal pixels, different grades"
    yield ~conflicting(rows) & ~unique, "copies", "left out", "left out: further copies of equal pixels"
    yield unique, "deduplicated", "kept", "deduplicated set"
    yield unique & ~single, "two_knees", "left out", "left out: two knees in one picture"
    yield single, "single_knee", "kept", "single-knee set"


def _count(rows, uses, stage, kind, label):
    grades = dict(zip(GRADE_COLUMNS, np.bincount(rows["kl_grade"], minlength=len(GRADES)), strict=True))
    counted = {"pictures": len(rows), "groups": rows["group_id"].nunique(), **grades}
    return {"stage": stage, "kind": kind, "label": label, "use": uses.get(stage, ""), **counted}


@styled
def participant_flow(table):
    """Draw the flow of the training cohorts beside that of the external ones, this run and published in each
    box.

    Parameters
    ----------
    table : DataFrame
        As from `of_run`.
    """
    figure, axis = canvas(1)
    external = list(_cards(table[table["branch"] == "external"]))
    depth = _branch(axis, BOARD - COLUMN, external)
    depth = min(depth, _branch(axis, 0, list(_cards(table[table["branch"] == "training"])), depth))
    axis.set(xlim=(-0.03, BOARD + 0.03), ylim=(depth - 0.03, 0.03))  # the outermost lines are drawn in full
    axis.set_axis_off()
    figure.set_size_inches(WIDTH, -depth * WIDTH / BOARD)
    return figure


def _cards(table):
    for stage in table["stage"].drop_duplicates():
        rows = table[table["stage"] == stage]
        first = rows.iloc[0]
        left_out, listed = first["kind"] == "left out", stage == "listed"
        side = left_out or first["branch"] == "training" and not listed
        head = f"{first['branch']} cohort" if listed else first["label"]
        texts = [(head.capitalize(), 8.5, "bold")]
        if listed and "this run" not in set(rows["source"]):
            texts.append(("This run: none", 8.5, "normal"))
        texts += [text for row in rows.to_dict("records") for text in _told(row, listed)]
        letters = int(LETTERS * (COLUMN - 3 * INSET - INDENT * side))
        lines = [(line, *look) for text, *look in texts for line in textwrap.wrap(text, letters)]
        yield _Card(lines, left_out, side, first["use"], 2 * INSET + LINE * len(lines))


def _told(row, listed):
    # A source in one box: who and how many, and the grades.
    groups, pictures = ("patient", "knee") if row["unit"] == "patient" else ("group", "picture")
    amount = f"{plural(row['pictures'], pictures)}, {plural(row['groups'], groups)}"
    named = f"{row['source'].capitalize()}: "
    if listed:
        yield named + row["title"], 8.5, "normal"
    yield named * (not listed) + amount + f" of {row['unit']}" * (listed and groups == "group"), 8.5, "normal"
    yield (
        f"KL {GRADES[0]}–{GRADES[-1]}: " + " / ".join(f"{row[name]:,}" for name in GRADE_COLUMNS),
        8,
        "normal",
    )


def _branch(axis, x, cards, depth=0):
    """Draw cards on the grounds of their uses, stretched down to a depth; returns the lower end."""
    blocks = [(use, list(found)) for use, found in groupby(cards, key=lambda card: card.use)]
    heights = [sum(card.height for card in found) + 2 * INSET + LINE * bool(use) for use, found in blocks]
    gap = max(GAP, (-depth - sum(heights)) / max(1, len(cards) - 1))
    y = start = 0
    for (use, found), height in zip(blocks, heights, strict=True):
        height += gap * (len(found) - 1)
        if use:
            box(axis, x, y - height, COLUMN, height, "", TRAINED if use == "training" else FROZEN)
            place, text = (x + COLUMN / 2, y - height + (INSET + LINE) / 2), words.USES.get(use, use)
            axis.text(*place, text.capitalize(), ha="center", va="center", fontsize=8.5, style="italic")
        top = y - INSET
        for card in found:
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
        axis.text(
            left + INSET, top - INSET - LINE * (place + 0.45), text, va="center", fontsize=size, weight=weight
        )
    if card.side:
        axis.plot([trunk, trunk], [start, middle], color=INK, lw=1.1)
        arrow(axis, (trunk, middle), (left, middle))
    elif start:
        arrow(axis, (trunk, start), (trunk, top))
    return middle if card.side else bottom
