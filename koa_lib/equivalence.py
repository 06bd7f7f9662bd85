"""From which fraction of the labels a frozen tower equals CLIP that was fine-tuned with all of them."""

import numpy as np
import pandas as pd

from koa_lib import metrics, predictions, stats
from koa_lib.efficiency import RANDOM, SELF_SUPERVISED
from koa_lib.paper.claims import Answer
from koa_lib.paper.scorecard import Ours

METRIC, SUPERVISED = "qwk", "supervised"
MARGIN = 0.03  # quadratic kappa: what may be lost by a start that still equals the supervised result; the scorecard's tolerance for ratios
HALF = 0.5
CHANCE = "the supervised result is itself not shown to be above chance, so equality with it means little"


def curve(study, found, reference, labelled):
    """The result for each start and fraction, held against the supervised result and against the random start on the same pictures.

    A value is the mean over the seeds (over the folds, for the supervised result). Its interval resamples the patients of the reported pictures, the same
    for all seeds, folds and starts, and holds neither the draw of the labels, which `sd_over_draws` shows, nor the training of the towers.

    Parameters
    ----------
    found : DataFrame
        As from `efficiency.run`.
    reference, labelled
        As from `efficiency.supervised`.

    Returns
    -------
    DataFrame
        cohort, start, fraction, patients, pictures (means over seeds or folds, rounded), n, qwk, ci_low, ci_high, sd_over_draws, accuracy; against_supervised and
        against_random (differences of qwk, the latter at the same fraction), each with _low and _high. The supervised rows have the start 'supervised' and fraction 1.
    """
    rows = []
    for cohort, frames in reference.items():
        full = _Mean(study, frames)
        rows.append({"cohort": cohort, "start": SUPERVISED, "fraction": 1.0, **_sizes(labelled), **full.row(), "sd_over_draws": np.nan})
        own = found[found["cohort"] == cohort]
        means = {key: _Mean(study, [_in_order(graded, frames[0]) for graded in group["graded"]]) for key, group in own.groupby(["start", "fraction"], sort=False)}
        for (start, fraction), mean in means.items():
            group = own[(own["start"] == start) & (own["fraction"] == fraction)]
            other = None if start == RANDOM else means.get((RANDOM, fraction))
            rows.append({"cohort": cohort, "start": start, "fraction": fraction, **_sizes(group), **mean.row(),
                         **mean.against(full, "against_supervised"), **mean.against(other, "against_random")})
    order = [f"against_{one}{bound}" for one in (SUPERVISED, RANDOM) for bound in ("", "_low", "_high")]
    table = pd.DataFrame(rows)
    return table[[*table.columns.drop(order, errors="ignore"), *order]].astype({"patients": "Int64", "pictures": "Int64"})


def _sizes(rows):
    return {name: round(rows[name].mean()) for name in ("patients", "pictures")}


class _Mean:
    """Mean quadratic kappa of several models on the same pictures, with its draws over patients."""

    def __init__(self, study, frames):
        values, draws = [], []
        for graded in frames:
            grades, probabilities = predictions.arrays(graded)
            predicted = probabilities.argmax(1)
            values.append(metrics.from_confusion(metrics.confusion(grades, predicted)))
            draws.append(metrics.from_confusion(stats.group_bootstrap(grades, predicted, graded["group_id"], study.profile.draws, study.seed))[METRIC])
        self.n, self.each = len(frames[0]), np.array([float(value[METRIC]) for value in values])
        self.value, self.accuracy, self.draws = self.each.mean(), float(np.mean([value["accuracy"] for value in values])), np.mean(draws, axis=0)

    def row(self):
        low, high = stats.interval(self.draws)
        sd = self.each.std(ddof=1) if len(self.each) > 1 else np.nan
        return {"n": self.n, METRIC: self.value, "ci_low": low, "ci_high": high, "sd_over_draws": sd, "accuracy": self.accuracy}

    def against(self, other, name):
        """Value minus another's, paired: the same patients are drawn for both."""
        low, high = (np.nan, np.nan) if other is None else stats.interval(self.draws - other.draws)
        return {name: np.nan if other is None else self.value - other.value, f"{name}_low": low, f"{name}_high": high}


def _in_order(graded, like):
    # The same pictures in the same order, so that the same draws take the same patients.
    stats.paired(like, graded)
    return graded.set_index("image_id").loc[like["image_id"]].reset_index()


def seeds(found):
    """Quadratic kappa of each seed: cohort, start, fraction, seed, qwk."""
    rows = found[["cohort", "start", "fraction", "seed"]]
    values = [metrics.from_confusion(metrics.confusion(grades, given.argmax(1)))[METRIC] for grades, given in map(predictions.arrays, found["graded"])]
    return rows.assign(**{METRIC: np.array(values, dtype=float)})


def starts_in_words(here):
    """Each start with the fewest and with all labels, and whether the self-supervised one is better than the random one.

    Parameters
    ----------
    here : DataFrame
        One cohort of `curve`.
    """
    lines = {start: line.sort_values("fraction") for start, line in here.groupby("start", sort=False)}
    full = lines.pop(SUPERVISED).iloc[0]
    ends = "; ".join(f"{start} {_plain(line[METRIC].iloc[0])} and {_plain(line[METRIC].iloc[-1])}" for start, line in lines.items())
    own = lines[SELF_SUPERVISED]
    return (f"Quadratic kappa with {own['fraction'].iloc[0]:.0%} of the labels and with all, by start: {ends}. CLIP fine-tuned with all labels has {full[METRIC]:.2f}{f' ({CHANCE})' if full.ci_low <= 0 else ''}. "
            f"{_gain_in_words(own)} No interval is corrected for the number of fractions ({len(own)}), and all this is for one pre-training.")


def _plain(value):
    return f"{round(value, 2) + 0.0:.2f}"  # no minus sign before 0.00


def _gain_in_words(own):
    # What the self-supervised start has more than the random one: with all labels, and whether the other fractions agree.
    side = (own["against_random_low"] > 0).astype(int) - (own["against_random_high"] < 0)
    smaller, last = side[own["fraction"] < 1], own.iloc[-1]
    count = f"among the smaller fractions ({len(smaller)}) it lies above 0 in {(smaller > 0).sum()} and below 0 in {(smaller < 0).sum()}"
    agree = "" if side.nunique() == 1 else ": the fractions do not agree"
    return (f"With all labels the self-supervised start differs from the random one by {_gain(last)}. "
            f"The interval {_side(last.against_random_low, last.against_random_high)}; {count}{agree}.")


def _gain(line):
    return f"{line.against_random:+.3f} ({line.against_random_low:+.3f} to {line.against_random_high:+.3f})"


def _side(low, high):
    if low <= 0 <= high:
        return "holds 0: no difference is shown, in either direction"
    only_just = ", but only just" if min(abs(low), abs(high)) < 0.1 * (high - low) else ""
    return f"lies {'above' if low > 0 else 'below'} 0{only_just}: in this pre-training the self-supervised start is the {'higher' if low > 0 else 'lower'} one"


def found_in_words(here, elsewhere):
    """What came out, in three sentences: the starts with the fewest labels, self-supervised against random, and whether any start equals the supervised result.

    Parameters
    ----------
    here, elsewhere : DataFrame
        `curve` on the training cohort's unseen pictures and on the external ones (may be empty).
    """
    full, few = here[here["start"] == SUPERVISED].iloc[0], here[here["fraction"] == here["fraction"].min()]
    best = few.loc[few[METRIC].idxmax()]
    reached = equal(here).set_index("start")["within_margin"].dropna()
    told = "; ".join(f"{start} {_since(fraction)}" for start, fraction in reached.items()) or "no start, not even with all labels"
    gains = [f"{_gain(part[part['start'] == SELF_SUPERVISED].sort_values('fraction').iloc[-1])} on the {where}" for part, where in ((here, "unseen pictures of the training cohort"), (elsewhere, "external ones")) if len(part)]
    return (f"With {best.fraction:.0%} of the labels the {best.start} start has the highest quadratic kappa, {_plain(best[METRIC])}, beside {_plain(full[METRIC])} of CLIP fine-tuned with all. "
            f"With all labels the self-supervised start differs from the random one by {' and by '.join(gains)}. Equal to the supervised result within {MARGIN:g}: {told}.")


def equal_in_words(equal):
    """From which fraction on each start equals the supervised result, one cohort of `equal`."""
    within, shown = ("; ".join(f"{start} {_since(fraction)}" for start, fraction in zip(equal["start"], equal[name], strict=True)) for name in ("within_margin", "not_below"))
    return f"Equal within {MARGIN:g} of the supervised result: {within}. No loss shown: {shown}."


def equal(table):
    """From which fraction on each start equals the supervised result: there and with every larger fraction.

    Returns
    -------
    DataFrame
        cohort, start, and fractions: within_margin (the interval of the difference stays above minus `MARGIN`: a larger loss can be excluded), not_below (that
        interval reaches 0: a loss can't be shown), as_high (the value itself is as high); NaN where not even all labels suffice.
    """
    rows = []
    for (cohort, start), line in table[table["start"] != SUPERVISED].groupby(["cohort", "start"], sort=False):
        value, low, high = (line[f"against_supervised{bound}"] for bound in ("", "_low", "_high"))
        rows.append({"cohort": cohort, "start": start, "within_margin": _from(line, low > -MARGIN), "not_below": _from(line, high >= 0), "as_high": _from(line, value >= 0)})
    return pd.DataFrame(rows)


def _from(line, holds):
    # One lucky fraction is not enough: what holds must hold with all larger ones too.
    falling = holds[line["fraction"].sort_values(ascending=False).index]
    return float(line.loc[falling.index[falling.cummin()], "fraction"].min())


def in_per_cent(table):
    """A table of `curve` or `equal` for reading: its fractions become per cent of the labels."""
    fractions = {"fraction": "label_percent", "within_margin": "within_margin_percent", "not_below": "not_below_percent", "as_high": "as_high_percent"}
    there = {name: said for name, said in fractions.items() if name in table.columns}
    return table.assign(**{name: 100 * table[name] for name in there}).rename(columns=there)


def answers(table):
    """The study's answers to OrthoFoundation's rows, from the unseen pictures of the training cohort.

    The claim is decided by one comparison, with the largest fraction that is at most half: *replicated* when the interval of the difference stays above minus `MARGIN`,
    *not replicated* when it lies below 0, else, or where the supervised result is not above chance, *inconclusive*. The number is the fraction from which on that interval stays above minus `MARGIN`,
    infinite where no fraction does; it stands beside the claim too.
    """
    inside = table[(table["cohort"] != "external") & (table["start"] == SELF_SUPERVISED)]
    half, reached = inside[inside["fraction"] <= HALF].sort_values("fraction").iloc[-1], equal(inside).iloc[0]
    verdict = "replicated" if half.against_supervised_low > -MARGIN else "not replicated" if half.against_supervised_high < 0 else "inconclusive"
    said = (f"with {half.fraction:.0%} of the labels quadratic kappa is {half.against_supervised:+.3f} ({half.against_supervised_low:+.3f} to {half.against_supervised_high:+.3f}) "
            "against CLIP fine-tuned with all")
    since = (f"fraction from which on the self-supervised start equals CLIP fine-tuned with all labels within {MARGIN:g} of quadratic kappa: {_since(reached.within_margin)}; "
             f"no loss shown: {_since(reached.not_below)}; value as high: {_since(reached.as_high)}")
    full = table[(table["cohort"] != "external") & (table["start"] == SUPERVISED)]
    if len(full) and full["ci_low"].iloc[0] <= 0:
        verdict, said, since = "inconclusive", f"{said}; {CHANCE}", f"{since}; {CHANCE}"
    source, fraction = ("OrthoFoundation", "abstract"), np.inf if np.isnan(reached.within_margin) else reached.within_margin
    return {(*source, "label efficiency", "label_fraction"): Ours(fraction, note=since),
            (*source, "half of the labels match the supervised full-label result"): Answer(fraction, np.nan, np.nan, "ratio", verdict, said)}


def _since(fraction):
    return "not even with all labels" if np.isnan(fraction) else f"from {fraction:.0%} of the labels on" if fraction < 1 else "with all labels alone"
