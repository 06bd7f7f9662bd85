"""What the first notebook shows: the scale on one phantom knee, what training changes,
who learns from what."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from koa_lib.grades import GRADES, NAMES
from koa_lib.phantoms.draw import TRAITS, View, render
from koa_lib.phantoms.findings import MIX_A, draw_findings, kl_grade
from koa_lib.predictions import PROBABILITIES
from koa_lib.prompts import PROMPT_SETS
from koa_lib.report import words
from koa_lib.report.diagrams import IMAGE, SCORE, TEXT, arrow, box
from koa_lib.report.sheets import show
from koa_lib.report.style import GRADE_COLOURS, INK, PLAIN_COLOURS, canvas, styled

VIEW = View(height=200, width=200, unit=84.0, centre=(100.0, 108.0), rotation=0.0, side="L")
MARK = PLAIN_COLOURS[1]
# What to look at: letter, name, its place and that of the letter, in units of half the plateau (outwards,
# down).
MARKS = (
    ("a", "joint space", (-0.62, -0.07), (-0.75, -0.55)),
    ("b", "margin of the bone, where osteophytes grow", (-1.0, 0.06), (-1.08, 0.55)),
    ("c", "bone below the joint, where sclerosis shows", (-0.45, 0.09), (-0.3, 0.6)),
)


def typical_findings():
    """`findings.Findings` of a typical knee of each grade, grade 0 first: narrowed at the inner side,
    no reader noise."""
    from scipy.special import ndtri

    rng, typical = np.random.default_rng(0), {}
    middles = np.cumsum(MIX_A) - np.array(MIX_A) / 2
    while len(typical) < len(GRADES):
        for grade in GRADES:
            drawn = draw_findings(ndtri(middles[grade]), MIX_A, rng)
            if kl_grade(drawn) == grade and drawn.medial_jsn >= drawn.lateral_jsn:
                typical.setdefault(grade, drawn)
    return [typical[grade] for grade in GRADES]


def draw(findings, seed=3):
    """One phantom knee with these findings: float array (200, 200) in [0, 1];
    a seed is a person and a film."""
    return render(
        [(findings, VIEW, 0.4 * np.random.default_rng(seed).normal(size=TRAITS))], np.random.default_rng(seed)
    )


@styled
def scale(pictures):
    """The five grades side by side: picture (as from `draw`), name and the paper's description.

    Letters mark what to look at in the first and the last.
    """
    texts = [text.split(": ", 1)[1] for text in PROMPT_SETS["no_digits"]]
    figure, (upper, lower) = canvas(3.2, nrows=2, ncols=len(GRADES), height_ratios=(1.45, 1.15))
    for grade, axis, below, picture in zip(GRADES, upper, lower, pictures, strict=True):
        show(axis, picture, f"KL {grade}: {NAMES[grade]}")
        axis.spines[:].set(visible=True, color=GRADE_COLOURS[grade], linewidth=3)
        below.text(
            0.5, 1, textwrap.fill(texts[grade], 20), ha="center", va="top", fontsize=8, linespacing=1.3
        )
        below.set_axis_off()
    for axis in (upper[0], upper[-1]):
        for letter, _, *ends in MARKS:
            axis.annotate(
                letter,
                *(VIEW.unit * np.array(end) + VIEW.centre for end in ends),
                color="white",
                fontsize=8,
                weight="bold",
                ha="center",
                va="center",
                bbox={"boxstyle": "circle,pad=0.15", "fc": MARK, "ec": "none"},
                arrowprops={"arrowstyle": "->", "color": MARK, "lw": 1.4, "shrinkA": 0, "shrinkB": 0},
            )
    figure.supxlabel(" · ".join(f"{letter} {name}" for letter, name, *_ in MARKS), fontsize=8.5, color=INK)
    return figure


def compared(graders, picture, normalisation):
    """One picture against the five descriptions, by several graders.

    Parameters
    ----------
    graders : dict of str to ClipGrader
    picture : uint8 array (H, W)
        At the model's input size.
    normalisation : {'imagenet', 'clip'}

    Returns
    -------
    DataFrame
        model, grade, cosine, probability: five rows per grader.
    """
    import torch

    from koa_lib.datasets import to_tensor
    from koa_lib.device import device_of

    rows = []
    for name, grader in graders.items():
        with torch.no_grad():
            image = to_tensor(picture[None], normalisation).to(device_of(grader))
            logits = grader(image)
            cosine = logits / grader.scale
            values = zip(cosine[0].tolist(), logits.softmax(-1)[0].tolist(), strict=True)
        rows += [(name, grade, *pair) for grade, pair in zip(GRADES, values, strict=True)]
    return pd.DataFrame(rows, columns=["model", "grade", "cosine", "probability"])


@styled
def similarity(table, picture, grade):
    """A picture with its cosine to each description and the probabilities that follow, bars for each model.

    Parameters
    ----------
    table : DataFrame
        As from `compared`.
    picture : array (H, W)
    grade : int
        Its true grade.
    """
    models = list(dict.fromkeys(table["model"]))
    figure, axes = canvas(
        0.4 + 1.9 * len(models), nrows=len(models), ncols=3, squeeze=False, width_ratios=(1.1, 1.4, 1.4)
    )
    low, high = min(0, table["cosine"].min()), max(0, table["cosine"].max())
    room = 0.36 * (high - low)
    start, end = low - room * (low < 0), high + room
    for (left, middle, right), model in zip(axes, models, strict=True):
        rows = table[table["model"] == model]
        show(left, picture, f"KL {grade}\n{model}")
        for axis, column, limits in ((middle, "cosine", (start, end)), (right, "probability", (0, 1.25))):
            edges = [2 if place == rows[column].to_numpy().argmax() else 0 for place in range(len(GRADES))]
            bars = axis.barh(GRADES, rows[column], color=GRADE_COLOURS, edgecolor="black", linewidth=edges)
            axis.bar_label(
                bars, [f"{value:.2f}".replace("-", "−") for value in rows[column]], padding=3, fontsize=8
            )
            axis.set(xlim=limits, yticks=GRADES, ylim=(4.6, -0.6))
        # None near the right end: its number would touch the first of the next panel.
        middle.set_xticks(
            [tick for tick in MaxNLocator(4).tick_values(start, end) if start <= tick < end - room / 2]
        )
        middle.set_yticklabels([f"{grade} {NAMES[grade]}" for grade in GRADES])
        right.set_yticklabels([])
        right.set_xticks([0, 0.5, 1])
    axes[-1, 1].set_xlabel("cosine similarity to the description")
    axes[-1, 2].set_xlabel("probability")
    return figure


def mean_answers(grades, answers):
    """Mean probability of each description for the pictures of each true grade.

    Parameters
    ----------
    grades : int array (n,)
    answers : dict of str to float array (n, 5)
        Model to probabilities.

    Returns
    -------
    DataFrame
        model, kl_grade, n, p0 to p4 (NaN without pictures), accuracy (of the model on all pictures).
    """
    rows = []
    for name, probabilities in answers.items():
        means = (
            pd.DataFrame(probabilities, columns=list(PROBABILITIES)).groupby(grades).mean().reindex(GRADES)
        )
        counted = means.assign(
            model=name,
            n=np.bincount(grades, minlength=len(GRADES)),
            accuracy=(probabilities.argmax(1) == grades).mean(),
        )
        rows.append(counted.rename_axis("kl_grade").reset_index())
    return pd.concat(rows, ignore_index=True)[["model", "kl_grade", "n", *PROBABILITIES, "accuracy"]]


@styled
def change(table):
    """Heat maps of `mean_answers`, one panel per model."""
    import seaborn

    models = list(table.groupby("model", sort=False))
    figure, axes = canvas(3.3, ncols=len(models), squeeze=False)
    for axis, (name, rows) in zip(axes[0], models, strict=True):
        means = rows[list(PROBABILITIES)].to_numpy()
        seaborn.heatmap(
            means,
            annot=True,
            fmt=".2f",
            cmap="Blues",
            vmin=0,
            vmax=1,
            square=True,
            cbar=False,
            ax=axis,
            linewidths=1,
            annot_kws={"fontsize": 8.5},
        )
        axis.set(
            title=f"{name}: {100 * rows['accuracy'].iloc[0]:.0f} % right",
            xlabel="description of KL grade",
            ylabel="true KL grade",
        )
        axis.tick_params(labelsize=8.5, rotation=0)
    return figure


@styled
def roles(sizes, folds, held_out):
    """Who learns from what: the folds of the training cohort, one held out, and the external cohort that only
    reports.

    Parameters
    ----------
    sizes : DataFrame
        cohort, pictures: the training cohort, then the external one where there is one.
    folds : int
        How many folds the training cohort is parted into; 0 for the official split.
    held_out : int
        Number of the fold that is held out.
    """
    training, *external = [
        f"{words.people(row.cohort)}: {row.pictures:,} pictures" for row in sizes.itertuples()
    ]
    figure, axis = canvas(2.4)
    axis.set(xlim=(0, 12.2), ylim=(0.8, 5.4))
    axis.set_axis_off()
    axis.text(0.1, 5.0, training, fontsize=9)
    parts = [f"fold {k + 1}" for k in range(folds)] or ["train", "val", "test"]
    width = 7.4 / len(parts)
    for k, part in enumerate(parts):
        unseen = k == held_out - 1 if folds else part != "train"
        text = f"{part}\nheld out" if unseen and folds else part
        box(
            axis,
            0.1 + k * width,
            3.5,
            width - 0.15,
            1.1,
            text,
            SCORE if unseen else IMAGE,
            8.5,
            dashed=unseen,
        )
        arrow(axis, (0.1 + (k + 0.4) * width, 3.4), (8.4, 2.2) if unseen else (3.2 + 0.2 * (k - 2), 2.5))
    box(axis, 0.9, 1.2, 4.6, 1.2, "training: the model sees these pictures and their grades", TEXT)
    box(axis, 8.4, 1.2, 3.6, 1.2, "report: graded once, nothing is chosen by it", SCORE)
    arrow(axis, (5.5, 1.5), (8.4, 1.5))
    axis.text(6.95, 1.05, "trained model", ha="center", fontsize=8)
    for text in external:
        axis.text(8.4, 5.0, text, fontsize=9)
        box(axis, 8.4, 3.5, 3.6, 1.1, "external: another origin, never learned from", SCORE, 8.5, dashed=True)
        arrow(axis, (10.2, 3.4), (10.2, 2.5))
    return figure
