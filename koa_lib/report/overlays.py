"""Figures of where models look: maps over pictures, deletion and insertion."""

import numpy as np
from matplotlib import colormaps

from koa_lib.explain import CENTRE, RANDOM, resized
from koa_lib.report.sheets import show
from koa_lib.report.style import INK, PLAIN_COLOURS, narrow, styled

MAP = "inferno"  # dark to bright, also in gray print
OPAQUE = 0.55  # of a map over its picture
CURVES = ("deletion", "insertion")
LINES = {
    "Grad-CAM": (PLAIN_COLOURS[0], "-"),
    "attention rollout": (PLAIN_COLOURS[1], "-"),
    RANDOM: (INK, ":"),
    CENTRE: (PLAIN_COLOURS[2], "--"),
}


@styled
def maps(found, masks):
    """The first picture of each grade with all maps of the first model, and Grad-CAM of the best of the
    networks without text.

    Parameters
    ----------
    found : list of localisation.Explained
        CLIP first; the best is the one with the highest quadratic kappa.
    masks : bool array (n, regions, SIDE, SIDE)
        Regions to outline, from `localisation.known`.
    """
    main, rows = found[0], found[0].rows
    first = rows.drop_duplicates("kl_grade").index.to_numpy()
    columns = {f"CLIP\n{method}": values for method, values in main.maps.items()}
    others = [one for one in found if not one.name.startswith("CLIP")]
    if others:
        best = max(others, key=lambda one: one.kappa[0])
        columns[f"{best.name}\nGrad-CAM"] = best.maps["Grad-CAM"]
    figure, axes = narrow(1.16 * len(first) + 0.45, nrows=len(first), ncols=1 + len(columns), squeeze=False)
    for line, place in zip(axes, first, strict=True):
        picture = main.pictures[place]
        show(line[0], picture, "")
        line[0].set_ylabel(f"grade {rows['kl_grade'][place]}\nCLIP says {main.grades[place]}", fontsize=8.5)
        for axis, (name, values) in zip(line[1:], columns.items(), strict=True):
            show(axis, _blended(picture, values[place]), name if place == first[0] else "")
        for axis in line:
            _outlined(axis, masks[place], picture.shape)
    return figure


def _outlined(axis, masks, shape):
    # Masks may be finer or coarser than the picture.
    across, down = (
        (np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(masks.shape[:0:-1], shape[::-1], strict=True)
    )
    for mask in masks:
        if mask.any():
            axis.contour(across, down, mask, levels=[0.5], colors=["white"], linewidths=0.6)


def _blended(picture, values):
    # One picture in colour: quicker to draw than two on each other.
    gray = picture.astype(float) - picture.min()
    gray = (gray / max(1, gray.max()))[..., None]
    return (1 - OPAQUE) * gray + OPAQUE * colormaps[MAP](resized(values[None], len(picture))[0])[..., :3]


@styled
def curves(table):
    """Deletion and insertion curves: a row per model, a line per order.

    Parameters
    ----------
    table : DataFrame
        From `localisation.faithfulness`.
    """
    steps = [column for column in table if column.startswith("at ")]
    models = list(table["model"].unique())
    figure, axes = narrow(
        1.05 * len(models) + 1.0, nrows=len(models), ncols=2, sharex=True, sharey=True, squeeze=False
    )
    for (model, curve), lines in table.groupby(["model", "curve"], sort=False):
        axis = axes[models.index(model), CURVES.index(curve)]
        for order, values in zip(lines["method"], lines[steps].to_numpy(), strict=True):
            colour, dashes = LINES[order]
            axis.plot(np.linspace(0, 100, len(steps)), values, color=colour, ls=dashes, lw=1.4, label=order)
        axis.grid(alpha=0.25)
    for line, model in zip(axes, models, strict=True):
        line[0].set_title(model, loc="left")
    for axis, curve in zip(axes[0], CURVES, strict=True):
        axis.set_title(curve, loc="right")
    axes[0, 0].set(ylim=(0, 1), yticks=[0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xlabel("changed area (%)")
    figure.supylabel("probability of the model's grade", fontsize=9)
    drawn = {
        label: line
        for axis in axes.flat
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=2)
    return figure
