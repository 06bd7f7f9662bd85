"""Drawings of how the model works (figures 1, 3 and 4 of the paper), and what they print of the model that
ran."""

import textwrap

import numpy as np

from koa_lib import model
from koa_lib.grades import GRADES, NAMES
from koa_lib.predictions import PROBABILITIES
from koa_lib.prompts import TABLE_1
from koa_lib.report.style import FROZEN, GRADE_COLOURS, INK, TRAINED, narrow, styled, thousands

BOARD = 8.2  # width of a drawing in its own units
IMAGE, TEXT, SCORE = "#d6e6f4", "#dff0d8", "#f7e3c4"


def facts(clip, name):
    """What the diagrams of figures 1, 3 and 4 print, read from the model object."""
    config = model.architecture(name)
    count = sum(value.numel() for value in clip.parameters())
    vision, text = config["vision_cfg"], config["text_cfg"]
    image = (
        vision.get("timm_model_name")
        or f"ViT, {vision['layers']} blocks, width {vision['width']}, patch {vision['patch_size']}"
    )
    return {
        "name": name,
        "image_tower": image,
        "image_size": vision["image_size"],
        "embed_dim": config["embed_dim"],
        "text_tower": f"Transformer, {text['layers']} blocks, width {text['width']}",
        "context_length": text["context_length"],
        "parameters": count,
    }


def parts(grader):
    """Rows of figure 4: part of the model, its parameters, and whether the reading trains it.

    Returns
    -------
    list of (str, int, bool)
    """
    tower, trained = grader.tower, {id(p) for p in grader.parameters() if p.requires_grad}
    last = {id(p) for block in tower.last_blocks() for p in block.parameters()}
    visual = list(grader.clip.visual.parameters())
    head = {id(p) for module in tower.head_modules() for p in module.parameters()} | {id(tower.projection)}
    groups = {
        "earlier image blocks": [p for p in visual if id(p) not in last | head],
        "last image blocks": [p for p in visual if id(p) in last],
        "image projection": [p for p in visual if id(p) in head],
        "text encoder": [p for p in grader.clip.parameters() if id(p) not in {id(v) for v in visual}],
        "adapter": list(grader.adapter.parameters()) if grader.adapter is not None else [],
    }
    return [
        (name, sum(p.numel() for p in group), any(id(p) in trained for p in group))
        for name, group in groups.items()
    ]


@styled
def figure_1(facts):
    """Contrastive pre-training: two encoders and the similarity matrix of a batch.

    Parameters
    ----------
    facts : dict
        As from `facts`.
    """
    figure, axis = _board(5.6, f"{facts['name']}: {thousands(facts['parameters'])} parameters", top=9.6)
    _pile(axis, 0.05, 7.7, "Caption 1", TEXT)
    box(
        axis,
        3.7,
        7.6,
        4.3,
        1.8,
        f"Text encoder G\n{facts['text_tower']}\n{facts['context_length']} tokens",
        TEXT,
    )
    _pile(axis, 0.05, 5.2, "Radiograph 1", IMAGE)
    box(
        axis,
        0.05,
        1.9,
        2.65,
        2.4,
        f"Image encoder F\n{facts['image_tower']}\n{facts['image_size']} px",
        IMAGE,
    )
    cell, left, top, labels = 0.98, 4.2, 5.9, ("1", "2", "3", "N")
    for i, row in enumerate(labels):
        box(axis, left - 1.0, top - (i + 1) * cell, 0.8, cell * 0.9, f"$I_{row}$", IMAGE)
        box(axis, left + i * cell, top + 0.1, cell * 0.9, 0.7, f"$T_{row}$", TEXT)
        for j, column in enumerate(labels):
            colour = SCORE if i == j else "white"
            box(
                axis,
                left + j * cell,
                top - (i + 1) * cell,
                cell * 0.9,
                cell * 0.9,
                f"$I_{row}T_{column}$",
                colour,
                8,
            )
    for tail, head in (
        ((2.75, 8.5), (3.7, 8.5)),
        ((6.1, 7.6), (6.1, 6.75)),
        ((1.38, 5.2), (1.38, 4.3)),
        ((2.7, 3.1), (3.15, 3.1)),
    ):
        arrow(axis, tail, head)
    text = (f"N x N cosines of embeddings with {facts['embed_dim']} numbers; "
            "training raises the diagonal (matching pairs)")
    axis.text(BOARD / 2, 0.8, textwrap.fill(text, 60), ha="center", va="center", linespacing=1.4)
    return figure


@styled
def figure_3(facts, answer, picture):
    """Inference: one picture against the five grade texts, down to its probabilities.

    Parameters
    ----------
    facts : dict
        As for `figure_1`.
    answer : Series
        p0 to p4.
    picture : array (H, W)
    """
    figure, axis = _board(6.7, f"Grading one radiograph with {facts['name']}", top=11.5)
    for grade in GRADES:
        box(
            axis,
            0.05,
            10.7 - 0.62 * grade,
            2.9,
            0.55,
            textwrap.shorten(TABLE_1[grade], 24, placeholder="…"),
            TEXT,
            8,
        )
    box(axis, 3.4, 8.5, 2.4, 2.4, f"Text encoder G\n{facts['text_tower']}", TEXT)
    box(axis, 6.4, 9.0, 1.4, 1.4, f"W\n5 x {facts['embed_dim']}", TEXT)
    inset = axis.inset_axes([0.3, 4.3, 2.4, 2.4], transform=axis.transData)
    inset.imshow(np.asarray(picture), cmap="gray")
    inset.set_axis_off()
    box(axis, 3.4, 4.3, 2.4, 2.4, f"Image encoder F\n{facts['image_tower']}", IMAGE)
    box(axis, 6.4, 4.8, 1.4, 1.4, f"f\n1 x {facts['embed_dim']}", IMAGE)
    box(axis, 6.4, 7.0, 1.4, 1.2, "cosine\nsoftmax", SCORE)
    for y, left in ((9.7, 2.95), (5.5, 2.75)):
        arrow(axis, (left, y), (3.4, y))
        arrow(axis, (5.8, y), (6.4, y))
    for tail, head in (((7.1, 9.0), (7.1, 8.2)), ((7.1, 6.2), (7.1, 7.0))):
        arrow(axis, tail, head)
    _outcome(axis, answer[list(PROBABILITIES)].to_numpy(float))
    return figure


def _outcome(axis, probabilities):
    # From the score past the embeddings down to the five probabilities.
    axis.plot([7.8, 8.1, 8.1, 4.6, 4.6], [7.6, 7.6, 3.85, 3.85, 3.6], color=INK, lw=1.1)
    arrow(axis, (4.6, 3.65), (4.6, 3.37))
    for grade, chance in zip(GRADES, probabilities, strict=True):
        y = 2.9 - 0.65 * grade
        axis.bar(4.6, 0.42, 0.01 + 3.4 * chance, bottom=y, align="edge", color=GRADE_COLOURS[grade])
        weight = "bold" if grade == probabilities.argmax() else "normal"
        axis.text(
            4.4,
            y + 0.21,
            f"{grade} {NAMES[grade]}: probability {chance:.2f}",
            fontsize=8.5,
            weight=weight,
            ha="right",
            va="center",
        )


@styled
def figure_4(parts):
    """What is trained and what stays frozen, with parameter counts.

    Parameters
    ----------
    parts : DataFrame
        part, parameters (int), trained (bool); in the order of the forward pass. Parts named with "text" or
        "prompt" stand on the text side, those with "scale" or "temperature" belong to the score; after an
        "adapter" f is called L(f).
    """
    names = parts["part"].str.lower()
    text, score = names.str.contains("text|prompt"), names.str.contains("scale|temperature")
    total, trained = parts["parameters"].sum(), parts.loc[parts["trained"], "parameters"].sum()
    share = 100 * trained / max(1, total)
    longest = max((~text & ~score).sum(), (text & ~score).sum())
    top = 4.4 + 1.35 * longest
    percent = f"{share:.{0 if share >= 1 else 2}f} %"
    title = f"{thousands(trained)} of {thousands(total)} parameters are trained ({percent})"
    figure, axis = _board(0.55 * top + 0.4, title, top)
    ends = [
        _chain(
            axis,
            0.05,
            top,
            "Radiograph X",
            parts[~text & ~score],
            "L(f)" if names.str.contains("adapter").any() else "f",
        ),
        _chain(axis, 4.25, top, "Grade texts", parts[text & ~score], "W"),
    ]
    scale = "".join(
        f"\n{row.part}, {'trained' if row.trained else 'frozen'}" for row in parts[score].itertuples()
    )
    box(axis, 2.2, 0.1, 3.8, 1.2, f"cosine, softmax{scale}", SCORE)
    for x, end in zip((2.0, 6.2), ends, strict=True):
        axis.plot([x, x], [end, 1.75], color=INK, lw=1.1)
        arrow(axis, (x, 1.75), (3.2 if x < 4 else 5.0, 1.3))
    return figure


def _chain(axis, x, top, source, parts, result):
    """Draw the parts from top to bottom; returns where the way from the result begins."""
    y = top - 0.8
    box(axis, x, y, 3.9, 0.75, source, "white")
    for row in parts.itertuples():
        state = "trained" if row.trained else "frozen"
        arrow(axis, (x + 1.95, y), (x + 1.95, y - 0.4))
        y -= 1.35
        box(
            axis,
            x,
            y,
            3.9,
            0.95,
            f"{row.part}\n{thousands(row.parameters)}, {state}",
            TRAINED if row.trained else FROZEN,
            dashed=not row.trained,
        )
    axis.text(x + 1.95, y - 0.35, result, ha="center", va="center", fontsize=9, style="italic")
    return y - 0.65


def _board(height, title, top):
    figure, axis = narrow(height)
    axis.set(xlim=(0, BOARD), ylim=(0, top))
    axis.set_title(title)
    axis.set_axis_off()
    return figure, axis


def box(axis, x, y, width, height, text, colour, size=8.5, dashed=False):
    """Draw a rounded box with centred text; lower left corner and extent in board units, size in points."""
    from matplotlib.patches import FancyBboxPatch

    round_, line = "round,pad=0,rounding_size=0.08", "--" if dashed else "-"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=round_, fc=colour, ec=INK, lw=0.9, ls=line))
    # About 8.4 letters fit into one unit of the board; symbols between dollars stay whole.
    lines = (
        [text]
        if "$" in text
        else [textwrap.fill(line, max(8, int(8.4 * width))) for line in text.split("\n")]
    )
    place = {"ha": "center", "va": "center", "linespacing": 1.35}
    axis.text(x + width / 2, y + height / 2, "\n".join(lines), fontsize=size, **place)


def _pile(axis, x, y, label, colour):
    for depth in range(3):
        box(axis, x + 0.1 * depth, y + 0.45 * (2 - depth), 2.45, 0.85, label if depth == 2 else "", colour, 8)


def arrow(axis, tail, head):
    """Draw an arrow from one point (x, y) to another, in board units."""
    axis.annotate(
        "", head, tail, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    )
