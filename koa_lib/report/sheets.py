"""Pictures in rows and grids: the worst errors, ways of showing."""

import textwrap

import numpy as np

from koa_lib.predictions import arrays
from koa_lib.report.style import message, narrow, styled
from koa_lib.report.words import people

ACROSS = 3  # pictures of a row


def show(axis, picture, title):
    """Draw a gray picture (H, W) with its title into an axis, at its top."""
    axis.imshow(np.asarray(picture), cmap="gray")
    axis.set_title(title, fontsize=8.5)
    axis.set_anchor("N")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def worst(graded, number=10):
    """The worst errors by a fixed rule: farthest from the true grade, then surest of the wrong one, then id.

    Parameters
    ----------
    graded : DataFrame
        image_id, kl_grade (0-4), p0..p4, as from `predictions.join`.
    number : int
        How many at most.

    Returns
    -------
    DataFrame
        Those rows, worst first, with their index; only wrong ones.
    """
    grades, probabilities = arrays(graded)
    distance = np.abs(probabilities.argmax(1) - grades)
    order = np.lexsort((graded["image_id"].to_numpy(str), -probabilities.max(1), -distance))
    return graded.iloc[order[distance[order] > 0][:number]]


@styled
def worst_errors(graded, pictures):
    """Gallery of wrongly graded pictures in rows of three, in the order given.

    Parameters
    ----------
    graded : DataFrame
        image_id, kl_grade, p0..p4; as from `worst`.
    pictures : list of arrays (H, W)
    """
    if not len(graded):
        return message("No picture is graded wrongly.")
    names, rows = [textwrap.fill(str(name), 18) for name in graded["image_id"]], -(-len(graded) // ACROSS)
    title = 0.51 + 0.14 * max(name.count("\n") + 1 for name in names)
    figure, axes = narrow(rows * (title + 1.5 * tallest(pictures, 1.2)), nrows=rows, ncols=ACROSS,
                          squeeze=False)
    for axis in axes.flat[len(graded):]:
        axis.set_axis_off()
    for axis, picture, grade, chances, name in zip(axes.flat, pictures, *arrays(graded), names, strict=False):
        guess = int(np.argmax(chances))
        show(axis, picture, f"{name}\ntrue {grade} · graded {guess}\nprobability {chances[guess]:.2f}")
    return figure


@styled
def contact_sheet(pictures):
    """Pictures in a grid, for looking: one column per picture, one row per way of showing it.

    Parameters
    ----------
    pictures : dict of str to dict of str to array
        Title of a picture to way of showing it to array in [0, 1]; all pictures have the same ways.
    """
    ways = list(next(iter(pictures.values())))
    figure, axes = narrow(0.3 + 0.66 * len(ways), nrows=len(ways), ncols=len(pictures), squeeze=False)
    for place, (title, shown) in enumerate(pictures.items()):
        for axis, way in zip(axes[:, place], ways, strict=True):
            axis.imshow(shown[way], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0, place].set_title(textwrap.fill(title, 8), fontsize=8)
    for axis, way in zip(axes[:, 0], ways, strict=True):
        axis.set_ylabel(people(way), rotation=0, ha="right", va="center", fontsize=8)
    return figure


def tallest(pictures, limit):
    """Height over width of the tallest picture, at most the limit: a row of wide ones leaves no gap."""
    return min(limit, max(np.shape(picture)[0] / np.shape(picture)[1] for picture in pictures))
