"""Figures of where models look: regions of the findings, maps over pictures, deletion and insertion, lost weights."""

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Patch

from koa_lib import localisation
from koa_lib.attribution import CENTRE, RANDOM, resized
from koa_lib.phantoms import regions
from koa_lib.report.sheets import show
from koa_lib.report.style import INK, PLAIN_COLOURS, message, narrow, styled

REGION_COLOURS = (PLAIN_COLOURS[1], PLAIN_COLOURS[4], PLAIN_COLOURS[2])  # in the order of `regions.NAMES`
MAP = "inferno"  # dark to bright, also in gray print
OPAQUE = 0.55  # of a map over its picture
LINES = {"Grad-CAM": (PLAIN_COLOURS[0], "-"), "attention rollout": (PLAIN_COLOURS[1], "-"), RANDOM: (INK, ":"), CENTRE: (PLAIN_COLOURS[2], "--")}
ACROSS = 3
MODEL_COLOURS = (*PLAIN_COLOURS, INK)
ASIDE = 0.7  # per cent, between the points of two models: equal ones stay visible


@styled
def known(pictures, masks, titles):
    """Phantoms with the regions where their findings are drawn.

    Parameters
    ----------
    pictures : sequence of uint8 arrays (H, W)
    masks : bool array (n, 3, h, w)
    titles : sequence of str
    """
    if not len(pictures):
        return message("There is no picture to show.")
    rows = -(-len(pictures) // ACROSS)
    figure, axes = narrow(1.8 * rows + 0.3, nrows=rows, ncols=ACROSS, squeeze=False)
    for axis in axes.flat[len(pictures):]:
        axis.set_axis_off()
    for axis, picture, mask, title in zip(axes.flat, pictures, masks, titles, strict=False):
        show(axis, picture, title)
        _outlined(axis, mask, picture.shape, filled=True)
    keys = [Patch(color=colour, alpha=0.6, label=name) for colour, name in zip(REGION_COLOURS, regions.NAMES, strict=True)]
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    return figure


def _outlined(axis, masks, shape, filled=False):
    # Masks may be finer or coarser than the picture.
    height, width = shape
    across, down = ((np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(masks.shape[:0:-1], (width, height), strict=False))
    for mask, colour in zip(masks, REGION_COLOURS, strict=True):
        if mask.any() and filled:
            axis.contourf(across, down, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.6)
        elif mask.any():
            axis.contour(across, down, mask, levels=[0.5], colors=["white"], linewidths=0.6)


@styled
def over_pictures(pictures, columns, masks, titles):
    """Maps over pictures: a row per picture, a column per map, the picture itself first.

    Parameters
    ----------
    pictures : sequence of uint8 arrays (H, W)
    columns : dict of str to sequence of float arrays (H, W) in [0, 1]
        Title of a column to a map of each picture.
    masks : bool array (n, 3, H, W) or None
        Regions to outline where they are known.
    titles : sequence of str
        What stands beside each row.
    """
    if not len(pictures):
        return message("There is no picture to show.")
    figure, axes = narrow(1.16 * len(pictures) + 0.45, nrows=len(pictures), ncols=1 + len(columns), squeeze=False)
    for place, (row, picture, title) in enumerate(zip(axes, pictures, titles, strict=True)):
        show(row[0], picture, "")
        row[0].set_ylabel(title, fontsize=8.5)
        for axis, (name, maps) in zip(row[1:], columns.items(), strict=True):
            show(axis, _blended(picture, maps[place]), "" if place else name)
        for axis in row[: len(row) if masks is not None else 0]:
            _outlined(axis, masks[place], picture.shape)
    return figure


def _blended(picture, values):
    # One picture in colour: quicker to draw than two on each other.
    gray = picture.astype(float) - picture.min()
    gray = (gray / max(1, gray.max()))[..., None]
    return (1 - OPAQUE) * gray + OPAQUE * colormaps[MAP](resized(values[None], len(picture))[0])[..., :3]


@styled
def curves(found):
    """Deletion and insertion curves: a row per model, the mean probability of its grade over the pictures.

    Parameters
    ----------
    found : list of explanations.Explained
        With curves.
    """
    found = [one for one in found if one.curves]
    if not found:
        return message("No picture was changed step by step.")
    figure, axes = narrow(1.05 * len(found) + 1.0, nrows=len(found), ncols=2, sharex=True, sharey=True, squeeze=False)
    for row, one in zip(axes, found, strict=True):
        for axis, kind in zip(row, ("deletion", "insertion"), strict=True):
            for (order, which), values in one.curves.items():
                if which == kind:
                    colour, dashes = LINES[order]
                    axis.plot(np.linspace(0, 100, values.shape[1]), values.mean(0), color=colour, ls=dashes, lw=1.4, label=order)
            axis.grid(alpha=0.25)
        row[0].set_title(one.subject.name, loc="left")
    axes[0, 1].set_title("insertion", loc="right")
    axes[0, 0].set_title("deletion", loc="right")
    axes[0, 0].set(ylim=(0, 1), yticks=[0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xlabel("changed area (%)")
    figure.supylabel("probability of the model's grade", fontsize=9)
    drawn = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=2)
    return figure


@styled
def lost_weights(table):
    """Rank correlation with the trained model's map while layers get random weights: a panel per method, a line per model, moved aside a little.

    Parameters
    ----------
    table : DataFrame
        As from `localisation.sanity`.
    """
    if table.empty:
        return message("No model lost its weights.")
    steps = localisation.steps(table)
    shares = [0, *(float(step[:-2]) for step in steps)]
    panels, models = list(table["method"].unique()), list(table["model"].unique())
    figure, axes = narrow(2.0 * len(panels) + 1.3, nrows=len(panels), sharex=True, sharey=True, squeeze=False)
    for axis, method in zip(axes[:, 0], panels, strict=True):
        for row in table[table["method"] == method].to_dict("records"):
            place = models.index(row["model"])
            values, aside = [1.0, *(row[step] for step in steps)], ASIDE * (place - (len(models) - 1) / 2)
            axis.plot(np.array(shares) + aside, values, marker="osD^vPX*"[place % 8], markersize=4, color=MODEL_COLOURS[place % len(MODEL_COLOURS)],
                      ls="-" if place < len(MODEL_COLOURS) else "--", label=row["model"])
        axis.axhline(0, color=INK, lw=0.8)
        axis.set_title(method, loc="left")
        axis.grid(alpha=0.25)
    axes[-1, 0].set_xticks(shares)
    axes[-1, 0].set_xlabel("layers with random weights, from the output (%)")
    figure.supylabel("rank correlation with the trained map", fontsize=9)
    drawn = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=2)
    return figure
