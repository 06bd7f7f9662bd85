"""Charts that look into a model or a cohort: calibration, search by text, quality of pictures."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from koa_lib import metrics
from koa_lib.report.style import GRADE_COLOURS, INK, message, narrow, styled


@styled
def reliability(grades, probabilities, bins=15):
    """Reliability diagram of the top label: accuracy against confidence, and how many pictures each bin holds."""
    grades, probabilities = metrics.checked(grades, probabilities)
    if not len(grades):
        return message("No picture has been graded.")
    place, excess = metrics.calibration_bins(grades, probabilities, bins)
    counts = np.bincount(place, minlength=bins)
    filled, edges = counts > 0, np.arange(bins) / bins
    confidence = np.bincount(place, probabilities.max(1), minlength=bins)[filled] / counts[filled]
    accuracy = confidence - np.bincount(place, excess, minlength=bins)[filled] / counts[filled]
    figure, (top, low) = narrow(4.6, nrows=2, sharex=True, height_ratios=(3, 1))
    top.bar(edges[filled], accuracy, width=1 / bins, align="edge", color="#9ecae1", edgecolor="white", label="accuracy")
    top.plot(confidence, accuracy, "o", color=INK, markersize=3.5, clip_on=False, label="accuracy at the mean confidence of the bin")
    top.plot([0, 1], [0, 1], "--", color=INK, lw=1, label="calibrated")
    top.set(ylabel="accuracy", ylim=(0, 1.02), title=f"ECE {metrics.ece(grades, probabilities, bins):.3f}, {bins} bins")
    figure.legend(loc="outside lower center")
    low.bar(edges, counts, width=1 / bins, align="edge", color="#bbbbbb", edgecolor="white")
    low.set(xlabel="confidence of the top label", ylabel="pictures", xlim=(0, 1))
    low.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    return figure


@styled
def retrieval(precision):
    """Precision of query-to-image search.

    Parameters
    ----------
    precision : DataFrame
        query, precision (ratio), share (ratio of pictures of that grade: what chance gives); grade order.
    """
    if precision.empty:
        return message("No query has been searched.")
    figure, axis = narrow(2.8)
    places = np.arange(len(precision))
    bars = axis.barh(places, precision["precision"], color=GRADE_COLOURS[: len(places)])
    axis.bar_label(bars, [f"{value:.2f}" for value in precision["precision"]], padding=7, fontsize=8)
    axis.plot(precision["share"], places, "D", mfc="white", mec="black", label="chance (share of the grade)")
    axis.set(xlim=(0, 1.12), xlabel="precision")
    axis.set_yticks(places, precision["query"])
    axis.invert_yaxis()
    figure.legend(loc="outside lower center")
    return figure

