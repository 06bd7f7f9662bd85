"""Figures that the study adds to the paper's: calibration, model comparison, retrieval."""

import numpy as np

from koa_lib import metrics
from koa_lib.style import GRADE_COLOURS, INK, PLAIN_COLOURS, canvas, message, styled


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
    figure, (top, low) = canvas(4.6, nrows=2, sharex=True, height_ratios=(3, 1))
    top.bar(edges[filled], accuracy, width=1 / bins, align="edge", color="#9ecae1", edgecolor="white", label="accuracy")
    top.plot(confidence, accuracy, "o", color=INK, markersize=3, label="mean confidence of the bin")
    top.plot([0, 1], [0, 1], "--", color=INK, lw=1, label="calibrated")
    top.set(ylabel="accuracy", ylim=(0, 1.02), title=f"ECE {metrics.ece(grades, probabilities, bins):.3f}, {bins} bins")
    top.legend(loc="upper left")
    low.bar(edges, counts, width=1 / bins, align="edge", color="#bbbbbb", edgecolor="white")
    low.set(xlabel="confidence of the top label", ylabel="pictures", xlim=(0, 1))
    return figure


@styled
def baselines(table):
    """Accuracy of each model with its interval, and the published value where there is one.

    Parameters
    ----------
    table : DataFrame
        model, accuracy, ci_low, ci_high, published_accuracy (percent), as from `tables.table_4`.
    """
    if table.empty:
        return message("No model has been compared.")
    figure, axis = canvas(0.42 * len(table) + 1.2)
    places, values = np.arange(len(table)), table["accuracy"].to_numpy(float)
    reach = [values - table["ci_low"].to_numpy(float), table["ci_high"].to_numpy(float) - values]
    reach = np.nan_to_num(np.maximum(reach, 0))
    ours = {"fmt": "o", "color": PLAIN_COLOURS[0], "capsize": 3, "label": "this run, 95 % group bootstrap"}
    axis.errorbar(values, places, xerr=reach, **ours)
    published = table["published_accuracy"].to_numpy(float)
    axis.plot(published, places, "D", mfc="none", color=PLAIN_COLOURS[1], label="published")
    for place in places[np.isnan(values)]:
        axis.annotate("not run", (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axis.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(len(table) - 0.4, -0.6))
    axis.set_yticks(places, table["model"])
    axis.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2)
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
    figure, axis = canvas(2.8)
    places = np.arange(len(precision))
    bars = axis.barh(places, precision["precision"], color=GRADE_COLOURS[: len(places)])
    axis.bar_label(bars, [f"{value:.2f}" for value in precision["precision"]], padding=7, fontsize=8)
    axis.plot(precision["share"], places, "D", mfc="white", mec="black", label="chance (share of the grade)")
    axis.set(xlim=(0, 1.12), xlabel="precision")
    axis.set_yticks(places, precision["query"])
    axis.invert_yaxis()
    figure.legend(loc="outside lower center")
    return figure


@styled
def nearest_distances(distances, threshold):
    """How far each picture's nearest other one is, per cohort, and where near-duplicates begin.

    Parameters
    ----------
    distances : dict of str to int array
        Cohort to the smallest Hamming distances of its perceptual hashes, in bits.
    threshold : int
        Largest distance of near-duplicates.
    """
    figure, axes = canvas(2.5, ncols=len(distances), squeeze=False)
    for axis, (name, values) in zip(axes[0], distances.items(), strict=True):
        edges = np.arange(0, max(130, values.max() + 4), 4)
        axis.hist(values[values > threshold], edges, color="#9ecae1", label="other pictures")
        axis.hist(values[values <= threshold], edges, color=PLAIN_COLOURS[1], hatch="///", edgecolor="white", label="equal pixels and near-duplicates")
        axis.axvline(threshold + 0.5, color=INK, ls="--", lw=1, label=f"threshold: {threshold} bits")
        axis.set(title=f"{name} (n = {len(values):,})", xlabel="bits to the nearest other picture")
        axis.yaxis.set_major_formatter("{x:,.0f}")
    axes[0, 0].set_ylabel("pictures")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@styled
def contact_sheet(rows):
    """Pictures in a grid, for looking: one row per picture, one column per way of showing it.

    Parameters
    ----------
    rows : dict of str to dict of str to array
        Row title to column title to picture in [0, 1]; all rows have the same columns.
    """
    columns = list(next(iter(rows.values())))
    figure, axes = canvas(0.4 + 0.78 * len(rows), nrows=len(rows), ncols=len(columns), squeeze=False,
                          width_ratios=[1.5, *[1] * (len(columns) - 1)])
    for row, (title, pictures) in enumerate(rows.items()):
        for axis, column in zip(axes[row], columns, strict=True):
            axis.imshow(pictures[column], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(column, fontsize=8)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure
