"""Drawings of how the model works (figures 1, 3 and 4 of the paper), made from the facts of the model that ran."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES, TABLE_1
from koa_lib.style import FROZEN, GRADE_COLOURS, INK, TRAINED, WIDTH, canvas, styled, thousands

IMAGE, TEXT, SCORE = "#d6e6f4", "#dff0d8", "#f7e3c4"


@styled
def figure_1(model_facts):
    """Contrastive pre-training: two encoders and the similarity matrix of a batch.

    Parameters
    ----------
    model_facts : dict
        name, image_tower, image_size, embed_dim, text_tower, context_length, parameters; what is missing is
        printed as "not stated".
    """
    facts = _facts(model_facts)
    figure, axis = _board(3.9, f"{facts['name']}: {facts['parameters']} parameters", bottom=1.4)
    _pile(axis, 0.05, 6.6, "Radiograph 1", IMAGE)
    _pile(axis, 0.05, 2.0, textwrap.shorten(TABLE_1[0], 20, placeholder="…"), TEXT)
    box(axis, 3.3, 6.2, 2.9, 1.8, f"Image encoder F\n{facts['image_tower']}\n{facts['image_size']} px", IMAGE)
    box(axis, 3.3, 1.6, 2.9, 1.8, f"Text encoder G\n{facts['text_tower']}\n{facts['context_length']} tokens", TEXT)
    cell, left, top, labels = 0.88, 8.15, 7.4, ("1", "2", "3", "N")
    for i, row in enumerate(labels):
        box(axis, left - 1.1, top - (i + 1) * cell, cell * 0.9, cell * 0.9, f"$I_{row}$", IMAGE)
        box(axis, left + i * cell, top + 0.25, cell * 0.9, 0.7, f"$T_{row}$", TEXT)
        for j, column in enumerate(labels):
            colour = SCORE if i == j else "white"
            place = (left + j * cell, top - (i + 1) * cell, cell * 0.9, cell * 0.9)
            box(axis, *place, f"$I_{row}T_{column}$", colour, 8)
    for tail, head in (((2.7, 7.1), (3.3, 7.1)), ((2.7, 2.5), (3.3, 2.5)), ((6.2, 7.0), (7.05, 7.0))):
        arrow(axis, tail, head)
    axis.plot([6.2, 12.0, 12.0], [2.5, 2.5, top + 0.6], color=INK, lw=1.1)
    arrow(axis, (12.0, top + 0.6), (left + 4 * cell - 0.08, top + 0.6))
    text = f"N x N cosines, embeddings of {facts['embed_dim']} numbers;\ntraining raises the diagonal (matching pairs)"
    axis.text(9.1, 3.15, text, ha="center", va="center", linespacing=1.4)
    return figure


@styled
def figure_3(model_facts, probabilities, logits=None, picture=None):
    """Inference: one picture against the five grade texts, down to its probabilities.

    Parameters
    ----------
    model_facts : dict
        As for `figure_1`.
    probabilities : float array (5,)
    logits : float array (5,), optional
        Scaled cosines before the softmax.
    picture : array (H, W), optional
    """
    facts, probabilities = _facts(model_facts), np.asarray(probabilities, dtype=float)
    figure, axis = _board(4.1, f"Grading one radiograph with {facts['name']}", bottom=0.7)
    for grade in GRADES:
        text = textwrap.shorten(TABLE_1[grade], 26, placeholder="…")
        box(axis, 0.05, 7.35 - 0.62 * grade, 3.2, 0.55, text, TEXT, 8)
    box(axis, 3.8, 5.3, 2.3, 1.9, f"Text encoder G\n{facts['text_tower']}", TEXT)
    box(axis, 6.75, 5.55, 1.8, 1.4, f"W\n5 x {facts['embed_dim']}", TEXT)
    if picture is not None:
        inset = axis.inset_axes([0.75, 0.9, 1.9, 2.6], transform=axis.transData)
        inset.imshow(np.asarray(picture), cmap="gray")
        inset.set_axis_off()
    else:
        box(axis, 0.6, 1.4, 2.2, 1.5, "Radiograph I", IMAGE)
    box(axis, 3.8, 1.3, 2.3, 1.9, f"Image encoder F\n{facts['image_tower']}", IMAGE)
    box(axis, 6.75, 1.55, 1.8, 1.4, f"f\n1 x {facts['embed_dim']}", IMAGE)
    box(axis, 6.75, 3.65, 1.8, 1.2, "cosine\nsoftmax", SCORE)
    for y, left in ((6.25, 3.25), (2.25, 2.8)):
        arrow(axis, (left, y), (3.8, y))
        arrow(axis, (6.1, y), (6.75, y))
    for tail, head in (((7.65, 5.55), (7.65, 4.85)), ((7.65, 2.95), (7.65, 3.65)), ((8.55, 4.25), (9.1, 4.25))):
        arrow(axis, tail, head)
    _outcome(axis, probabilities, logits)
    return figure


def _outcome(axis, probabilities, logits):
    chances = np.nan_to_num(probabilities)
    for grade, chance in zip(GRADES, chances, strict=True):
        y = 6.5 - 1.2 * grade
        axis.bar(9.2, 0.42, 0.01 + 2.4 * chance, bottom=y, align="edge", color=GRADE_COLOURS[grade])
        score = "" if logits is None else f"logit {logits[grade]:.1f}, "
        weight = "bold" if grade == chances.argmax() else "normal"
        axis.text(9.2, y + 0.56, f"{grade} {NAMES[grade]}: {score}p {chance:.2f}", fontsize=8.5, weight=weight)


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
    if parts.empty:
        raise StudyError("No part of the model is listed. Give part, parameters and trained for each.")
    names = parts["part"].str.lower()
    text, score = names.str.contains("text|prompt"), names.str.contains("scale|temperature")
    total, trained = parts["parameters"].sum(), parts.loc[parts["trained"], "parameters"].sum()
    figure = Figure(figsize=(WIDTH, 3.6 + 0.3 * len(parts)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.7, 0.9 + 0.3 * len(parts)))
    axis = upper.subplots()
    axis.set(xlim=(0, 12.2), ylim=(0.4, 5))
    share = 100 * trained / max(1, total)
    axis.set_title(f"{thousands(trained)} of {thousands(total)} parameters are trained ({share:.{0 if share >= 1 else 2}f} %)")
    axis.set_axis_off()
    _chain(axis, 3.4, "Radiograph X", parts[~text & ~score], "L(f)" if names.str.contains("adapter").any() else "f")
    _chain(axis, 0.6, "Grade texts", parts[text & ~score], "W")
    scale = "".join(f"\n{row.part}, {'trained' if row.trained else 'frozen'}" for row in parts[score].itertuples())
    box(axis, 9.9, 1.8, 2.2, 1.8, f"cosine\nsoftmax{scale}", SCORE, 8)
    arrow(axis, (9.5, 4.1), (10.8, 3.6))
    arrow(axis, (9.5, 1.3), (10.8, 1.8))
    _parameter_bars(lower.subplots(), parts)
    return figure


def _chain(axis, y, source, parts, result):
    box(axis, 0.1, y, 1.6, 1.4, source.replace(" ", "\n"), "white")
    width = 7.1 / max(1, len(parts))
    for place, row in enumerate(parts.itertuples()):
        left, state = 2.1 + place * width, "trained" if row.trained else "frozen"
        colour = TRAINED if row.trained else FROZEN
        box(axis, left, y, width - 0.4, 1.4, f"{row.part}\n{state}", colour, 8, dashed=not row.trained)
        arrow(axis, (left - 0.4, y + 0.7), (left, y + 0.7))
    axis.text(9.15, y + 0.7, result, ha="center", va="center", fontsize=9, style="italic")


def _parameter_bars(axis, parts):
    places, sizes = np.arange(len(parts)), parts["parameters"].to_numpy(float)
    colours = [TRAINED if trained else FROZEN for trained in parts["trained"]]
    bars = axis.barh(places, np.maximum(sizes, 1), color=colours, edgecolor=INK, linewidth=0.8)
    states = ["trained" if trained else "frozen" for trained in parts["trained"]]
    labels = [f"{thousands(size)}, {state}" for size, state in zip(sizes, states, strict=True)]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set(xscale="log", xlim=(1, max(10, sizes.max()) * 30), xlabel="parameters (log scale)")
    axis.set_yticks(places, parts["part"])
    axis.tick_params(labelsize=8.5)
    axis.invert_yaxis()


def _facts(given):
    if not isinstance(given, dict):
        raise StudyError("The drawing needs the model's facts as a dict (name, image_tower, ...). Load it first.")
    keys = ("name", "image_tower", "image_size", "embed_dim", "text_tower", "context_length", "parameters")
    facts = {key: given.get(key, "not stated") for key in keys}
    if isinstance(facts["parameters"], (int, float, np.number)):
        facts["parameters"] = thousands(facts["parameters"])
    return facts


def _board(height, title, bottom):
    figure, axis = canvas(height)
    axis.set(xlim=(0, 12.2), ylim=(bottom, 8.5))
    axis.set_title(title)
    axis.set_axis_off()
    return figure, axis


def box(axis, x, y, width, height, text, colour, size=8.5, dashed=False):
    """Draw a rounded box with centred text; place and extent in board units, lower left corner first, size in points."""
    from matplotlib.patches import FancyBboxPatch

    round_, line = "round,pad=0,rounding_size=0.08", "--" if dashed else "-"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=round_, fc=colour, ec=INK, lw=0.9, ls=line))
    # About 8.4 letters fit into one unit of the board; symbols between dollars stay whole.
    lines = [text] if "$" in text else [textwrap.fill(line, max(8, int(8.4 * width))) for line in text.split("\n")]
    place = {"ha": "center", "va": "center", "linespacing": 1.35}
    axis.text(x + width / 2, y + height / 2, "\n".join(lines), fontsize=size, **place)


def _pile(axis, x, y, label, colour):
    for depth in range(3):
        box(axis, x + 0.1 * depth, y + 0.45 * (2 - depth), 2.45, 0.85, label if depth == 2 else "", colour, 8)


def arrow(axis, tail, head):
    """Draw an arrow from one point (x, y) to another, in board units."""
    axis.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0})
