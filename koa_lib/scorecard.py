"""The scorecard: every published number that this run can hold against its own, with a verdict fixed beforehand."""

import math

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError

COLUMNS = "source item row metric unit published ours ci_low ci_high rule verdict reason".split()
TOLERANCE = {"percent": 3.0, "points": 3.0, "ratio": 0.03}
MODEL_RULE = "within {0}, and inside the 95 % interval over at least 5 runs (half-width up to {0})"


def scorecard(published, ours, comparable, reason=""):
    """Hold published numbers against ours.

    Model rows are *replicated* when ours is within 3 points (0.03 for ratios) and the published value lies inside
    the interval over folds x seeds, *inconclusive* when that interval's half-width exceeds 3 points or there are
    fewer than five runs, else *not replicated*. Counts and repeated numbers are judged in every run. Citations,
    timings and counts without a value of ours are left out.

    Parameters
    ----------
    published : DataFrame
        `published/jpm2026.csv`, or a table of that form with a `system` column.
    ours : dict
        (item, row, metric) -> (value, ci_low, ci_high) in the published unit, the interval over runs as from
        `measured`; or a str that says why there is no value.
    comparable : bool
        Whether model rows may be scored (real data, the settings as printed).
    reason : str
        Why not, when they may not.

    Returns
    -------
    DataFrame
        source, item, row, metric, unit, published, ours, ci_low, ci_high, rule, verdict, reason.
    """
    if not comparable and not reason:
        raise StudyError("Say why this run is not comparable with the paper; the reason stands in the scorecard.")
    known = {(row.item, str(row.row), row.metric): row for row in published.itertuples()}
    unknown = [key for key in ours if key not in known]
    if unknown:
        raise StudyError(f"The published numbers have no row {unknown[0]}. Use item, row and metric of the table.")
    rows = []
    for key, row in known.items():
        value = ours.get(key, "not run: this run makes no such value")
        twin = known.get(("table_2", "test", row.metric))
        if row.kind == "model":
            judged = _model(row, value, comparable, reason)
        elif row.kind == "fact" and not isinstance(value, str):
            judged = _same(row, value[0], "same count as in the manifest", "counted in the manifest")
        elif row.kind == "duplicate" and twin is not None:
            judged = _same(row, twin.value, "same number as in table 2", f"table 2 prints {twin.value:.2f}")
        else:
            continue
        rows.append((getattr(row, "system", "jpm2026"), *key, row.unit, row.value, *judged))
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(item, row, runs):
    """Values of the paper's rows from several runs (folds x seeds), with their t interval.

    Parameters
    ----------
    item, row : str
        "table_2" with "train" or "test"; "table_3" (row is not used; gives the macro AUC too); "table_4" with a model.
    runs : list of DataFrame
        Graded frames, one per run.

    Returns
    -------
    dict
        (item, row, metric) -> (mean, ci_low, ci_high) in the published unit, for `scorecard`.
    """
    if not runs:
        return {}
    values = pd.DataFrame([_values(item, row, graded) for graded in runs])
    return {key: stats.run_interval(values[key]) for key in values}


def _values(item, row, graded):
    grades, probabilities = metrics.checked(graded["kl_grade"], graded[metrics.PROBABILITIES])
    if item != "table_3":
        names = ("accuracy",) if item == "table_4" else ("accuracy", "macro_precision", "macro_sensitivity", "macro_f1")
        values = metrics.from_confusion(metrics.confusion(grades, probabilities.argmax(1)))
        return {(item, row, name): 100 * float(values[name]) for name in names}
    values = {("text", "macro", "auc"): metrics.macro_auc(grades, probabilities)}
    for line in metrics.per_grade(grades, probabilities).itertuples():
        values[item, str(line.grade), "sensitivity"] = 100 * line.sensitivity
        values[item, str(line.grade), "specificity"] = 100 * line.specificity
        values[item, str(line.grade), "auc"] = line.auc
    return values


def _model(row, value, comparable, reason):
    tolerance = TOLERANCE.get(row.unit, 0.0)
    rule = f"below {row.value:g}" if row.relation == "<" else MODEL_RULE.format(f"{tolerance:g}")
    missing = value if isinstance(value, str) else "" if math.isfinite(value[0]) else "not run: undefined in this run"
    mean, low, high = (np.nan,) * 3 if missing else value
    if not comparable:
        verdict, why = "not comparable", reason
    elif missing:
        verdict, why = "not run", missing.removeprefix("not run: ")
    elif row.relation == "<":
        verdict, why = ("replicated" if mean < row.value else "not replicated"), ""
    else:
        verdict, why = _verdict(mean - row.value, low - row.value, high - row.value, tolerance)
    return mean, low, high, rule, verdict, why


def _verdict(off, low, high, tolerance):
    # All three relative to the published value. The order of the questions is part of the rule.
    if not math.isfinite(low + high):
        return "inconclusive", f"ours differs by {off:+.3g}; fewer than 5 runs give no interval"
    if abs(off) <= tolerance and low <= 0 <= high:
        return "replicated", f"ours differs by {off:+.3g}"
    if (high - low) / 2 > tolerance:
        return "inconclusive", f"ours differs by {off:+.3g}; half-width {(high - low) / 2:.3g}"
    return "not replicated", f"ours differs by {off:+.3g}"


def _same(row, value, rule, why):
    verdict = "replicated" if math.isclose(value, row.value, abs_tol=1e-9) else "not replicated"
    return value, np.nan, np.nan, rule, verdict, why
