"""The look of every figure: one palette for the grades, one width, one type size."""

import textwrap

from matplotlib import style
from matplotlib.figure import Figure

# From viridis, light (KL 0) to dark (KL 4): ordered in lightness, so it survives colour blindness and gray
# print.
GRADE_COLOURS = ("#b5de2b", "#4ac16d", "#1f9e89", "#31688e", "#440154")
# Okabe and Ito's palette, for what has no order (folds, parts of a model).
PLAIN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
FROZEN, TRAINED, INK = "#dbe4ee", "#f9d9b0", "#333333"
# Inches: the whole page, and one column, whose text of at least 8 points can be read where a phone shows it
# 340 pixels wide.
WIDTH, COLUMN = 7.2, 4.8
PNG_DPI = 200

OURS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# On matplotlib's defaults, whatever the user's own matplotlibrc says; exhibits are saved on them, too, as
# ticks are made late.
styled = style.context(["default", OURS])


def narrow(height, **grid):
    """A figure one column wide and its axes, for everything that fits."""
    return canvas(height, COLUMN, **grid)


def canvas(height, width=WIDTH, **grid):
    """A figure and its axes, drawn outside pyplot so that nothing stays open."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(**grid)
    for axis in figure.axes:
        # Ticks are made late, when this style is over: their size must be fixed now.
        axis.tick_params(labelsize=8.5)
    return figure, axes


def note(axis, text, width=60):
    """Write a sentence in the middle of an otherwise empty axis."""
    axis.set_axis_off()
    wrapped = textwrap.fill(text, width)
    axis.text(0.5, 0.5, wrapped, ha="center", va="center", transform=axis.transAxes, fontsize=9.5, color=INK)


@styled
def message(text):
    """A figure that only says why it is empty."""
    figure, axis = narrow(1.4)
    note(axis, text, width=50)
    return figure


def thousands(number):
    """A parameter count for reading: 87.8 M, 12.3 k, 512."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f}"
