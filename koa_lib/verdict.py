"""What a published number or claim is held against: our value or our answer, and the rule for what trainings
give."""

import math
from typing import NamedTuple

import numpy as np

from koa_lib import stats

# How far a mean may be off a published value, by unit.
MARGINS = {"percent": 3.0, "points": 3.0, "ratio": 0.03}


class Ours(NamedTuple):
    """A value of ours in the published unit.

    Attributes
    ----------
    value : float
        A mean where there are several trainings; infinite where it was measured but nothing that was tried
        reaches it.
    ci_low, ci_high : float
        95 % t interval of the mean over the trainings; NaN below five.
    note : str
        What to say about it.
    runs : int
        Trainings (folds x seeds).
    boot_low, boot_high : float
        95 % group bootstrap of the training that is shown.
    """

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    note: str = ""
    runs: int = 0
    boot_low: float = math.nan
    boot_high: float = math.nan

    @property
    def half(self):
        """Half the width of the t interval: to within what the mean is known."""
        return (self.ci_high - self.ci_low) / 2

    @property
    def prediction(self):
        """(low, high) of the 95 % interval of one further training; NaN below five."""
        # mean ± t s sqrt(1 + 1/k), from the t interval's half-width t s / sqrt(k)
        reach = self.half * math.sqrt(self.runs + 1)
        return self.value - reach, self.value + reach


class Answer(NamedTuple):
    """Our number for a claim, the verdict where the run is comparable, and why.

    Its 95 % interval is of groups of pictures, not of trainings.
    """

    ours: float
    ci_low: float
    ci_high: float
    unit: str
    verdict: str
    reason: str


def over_runs(values, note="", boot=(math.nan, math.nan)):
    """`Ours` from the values of several trainings; `boot` is the group bootstrap of the one that is shown."""
    values = np.asarray(values, dtype=float)
    return Ours(*stats.run_interval(values), note, int((~np.isnan(values)).sum()), *boot)


def agreement(ours, published, margin):
    """The verdict on a mean over trainings, and why.

    With d the difference to the published value: *not replicated* when |d| exceeds the margin and the
    published value lies outside the 95 % prediction interval of one further training; *replicated* when |d|
    is within the margin and the mean is known to within the margin (half-width of its t interval); else, and
    below five trainings, *inconclusive*.

    Parameters
    ----------
    ours : Ours
    published, margin : float
        In the same unit.

    Returns
    -------
    (verdict, reason) : str
    """
    off = ours.value - published
    said = f"off by {off:+.3g}"
    if ours.runs < stats.FEWEST_RUNS:
        return "inconclusive", f"{said}; fewer than {stats.FEWEST_RUNS} trainings"
    low, high = ours.prediction
    if abs(off) > margin and not low <= published <= high:
        return "not replicated", said
    if abs(off) > margin:
        return "inconclusive", f"{said}; a further training may give the published value"
    if ours.half > margin:
        return "inconclusive", f"{said}; the mean is known to within {ours.half:.2g} only"
    return "replicated", said


def decided(holds, fails):
    """The verdict on a claim of which it is sure that it holds, or that it does not, or neither."""
    return "replicated" if holds else "not replicated" if fails else "inconclusive"


def not_run(reason):
    """The answer where something needed is absent."""
    return Answer(math.nan, math.nan, math.nan, "", "not run", reason)
