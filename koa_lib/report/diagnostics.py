"""Charts that look into a model or a cohort: calibration, near-duplicates, quality of pictures."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from koa_lib.report import labels
from koa_lib.report.style import INK, PLAIN_COLOURS, message, narrow, styled


@styled
def reliability(table):
    """Reliability diagram of the top label: accuracy against confidence, and the pictures of each bin.

    Parameters
    ----------
    table : DataFrame
        low, high, n, confidence, accuracy: one row per bin, as from `tables.reliability`.
    """
    if table.empty:
        return message("No picture has been graded.")
    figure, (top, below) = narrow(4.6, nrows=2, sharex=True, height_ratios=(3, 1))
    bars = {"x": table["low"], "width": table["high"] - table["low"], "align": "edge", "edgecolor": "white"}
    top.bar(height=table["accuracy"], color="#9ecae1", label="accuracy", **bars)
    top.plot(table["confidence"], table["accuracy"], "o", color=INK, markersize=3.5, clip_on=False,
             label="accuracy at the mean confidence of the bin")
    top.plot([0, 1], [0, 1], "--", color=INK, lw=1, label="calibrated")
    top.set(ylabel="accuracy", ylim=(0, 1.02))
    figure.legend(loc="outside lower center")
    below.bar(height=table["n"], color="#bbbbbb", **bars)
    below.set(xlabel="confidence of the top label", ylabel="pictures", xlim=(0, 1))
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
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
    figure, axes = narrow(1.8 * len(distances) + 1, nrows=len(distances), squeeze=False)
    for axis, (name, values) in zip(axes[:, 0], distances.items(), strict=True):
        edges = np.arange(0, max(130, values.max() + 4), 4)
        axis.hist(values[values > threshold], edges, color="#9ecae1", label="other pictures")
        axis.hist(values[values <= threshold], edges, color=PLAIN_COLOURS[1], hatch="///", edgecolor="white", label="equal pixels and near-duplicates")
        axis.axvline(threshold + 0.5, color=INK, ls="--", lw=1, label=f"threshold: {threshold} bits")
        axis.set(title=f"{labels.words(name)} (n = {len(values):,})", ylabel="pictures")
        axis.yaxis.set_major_formatter("{x:,.0f}")
    axes[-1, 0].set_xlabel("bits to the nearest other picture")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def degraded(table):
    """How often spoilt knees are still called knees, and spoilt other anatomies are not, by strength; Wilson intervals.

    Parameters
    ----------
    table : DataFrame
        degradation, strength, sensitivity, ci_low, ci_high, specificity, specificity_low, specificity_high (ratios; NaN where not measured).
    """
    kinds = list(dict.fromkeys(table["degradation"]))
    figure, axes = narrow(1.75 * -(-len(kinds) // 2) + 0.5, nrows=-(-len(kinds) // 2), ncols=2, sharey=True, squeeze=False)
    lines = (("sensitivity", "ci", "o-", "knees called knee"), ("specificity", "specificity", "s--", "others not called knee"))
    for axis, kind in zip(axes.flat, kinds, strict=False):
        rows = table[table["degradation"] == kind]
        for (name, ends, look, label), colour in zip(lines, PLAIN_COLOURS, strict=False):
            if rows[name].notna().any():
                reach = np.abs(rows[[f"{ends}_low", f"{ends}_high"]].to_numpy().T - rows[name].to_numpy())
                axis.errorbar(range(len(rows)), rows[name], yerr=reach, fmt=look, color=colour, capsize=3, markersize=5, label=label)
        axis.set_xticks(range(len(rows)), [f"{strength:g}" for strength in rows["strength"]])
        axis.set(title=kind, ylim=(-0.05, 1.05), xlim=(-0.4, len(rows) - 0.6))
        axis.grid(axis="y", alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("strength")
    figure.supylabel("share answered rightly", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


QUALITY = {"sharpness": "sharpness (variance of the Laplacian)", "exposure": "exposure (mean gray)", "contrast": "contrast (standard deviation of gray)"}


@styled
def failure_quality(found):
    """Quality of pictures that a model recognises and of those that it does not: one box plot for each measure.

    Parameters
    ----------
    found : DataFrame
        failed (bool), sharpness, exposure, contrast.
    """
    figure, axes = narrow(4.2, nrows=3)
    groups = {f"recognised\n(n = {(~found['failed']).sum():,})": found[~found["failed"]], f"not recognised\n(n = {found['failed'].sum():,})": found[found["failed"]]}
    for axis, (name, label) in zip(axes, QUALITY.items(), strict=True):
        filled = {title: rows[name].to_numpy() for title, rows in groups.items() if len(rows)}
        boxes = axis.boxplot(list(filled.values()), orientation="horizontal", widths=0.5, patch_artist=True, medianprops={"color": INK}, flierprops={"markersize": 2.5})
        for box, colour in zip(boxes["boxes"], (PLAIN_COLOURS[4], PLAIN_COLOURS[5]), strict=False):
            box.set_facecolor(colour)
        axis.set_yticks(range(1, len(filled) + 1), list(filled), fontsize=8.5)
        axis.set_xlabel(label)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
    return figure


@styled
def systems(table):
    """Quadratic kappa of every system with its interval, a panel per task.

    Parameters
    ----------
    table : DataFrame
        task, system, qwk, qwk_low, qwk_high (ratios; NaN where undefined), as from `tasks.results`.
    """
    if table.empty:
        return message("No system has been run.")
    names, titles = list(dict.fromkeys(table["system"])), list(dict.fromkeys(table["task"]))
    down, across = -(-len(titles) // 2), min(2, len(titles))
    figure, axes = narrow(down * (0.36 * len(names) + 0.35) + 0.4, nrows=down, ncols=across, sharex=True, sharey=True, squeeze=False)
    for axis, title in zip(axes.flat, titles, strict=False):
        rows = table[table["task"] == title].set_index("system").reindex(names)
        reach = np.nan_to_num(np.maximum([rows["qwk"] - rows["qwk_low"], rows["qwk_high"] - rows["qwk"]], 0))
        axis.errorbar(rows["qwk"], range(len(names)), xerr=reach, fmt="o", color=PLAIN_COLOURS[0], capsize=3, markersize=5)
        axis.axvline(0, color=INK, lw=0.8, ls=":")
        axis.set_title(title, loc="left")
        axis.grid(axis="x", alpha=0.25)
    for axis in axes.flat[len(titles):]:
        axis.set_axis_off()
    axes[0, 0].set_yticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names], fontsize=8.5)
    axes[0, 0].set(ylim=(len(names) - 0.5, -0.5), xlim=(min(-0.1, table["qwk_low"].min() - 0.05), 1))
    figure.supxlabel("quadratic κ (95 % interval)", fontsize=9)
    return figure
