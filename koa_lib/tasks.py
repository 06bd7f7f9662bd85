"""What is graded on a radiograph beside the KL grade, and how systems compare task by task."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.scorecard import Ours

TASKS = {"kl_grade": "KL grade", "osteophytes": "osteophytes", "jsn": "joint-space narrowing", "sclerosis": "sclerosis"}
MARGIN = 0.05  # of quadratic kappa: two encoders are alike when the interval of their difference lies inside it
_METRICS = {"linear_kappa": "linear_kappa", "qwk": "qwk", "macro_auc": "levels_auc"}  # of `stats`: column here; a finding has other levels than five grades


def for_task(part, task):
    """The pictures of a `KneeDataset` that are graded for a task, with its grades in place of the KL grades; None when there is none."""
    grades = part.rows.get(task, pd.Series(pd.NA, index=part.rows.index))
    positions = np.flatnonzero(grades.notna())
    if not len(positions):
        return None
    chosen = part.part(positions, part.role)
    return replace(chosen, rows=chosen.rows.assign(kl_grade=grades.iloc[positions].astype(int).to_numpy()))


def results(study, frames, split):
    """Metrics of every system and task on one split, each with its 95 % group-bootstrap interval.

    Returns
    -------
    DataFrame
        task, system, n, accuracy, then linear_kappa, qwk, levels_auc (mean over the levels, each against the rest) each with _low and _high; ratios.
    """
    rows = []
    for (system, task, part), graded in frames.items():
        if part == split:
            summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
            row = {"task": TASKS[task], "system": system, "n": len(graded), "accuracy": summary.value["accuracy"]}
            for metric, name in _METRICS.items():
                row |= {name: summary.value[metric], f"{name}_low": summary.ci_low[metric], f"{name}_high": summary.ci_high[metric]}
            rows.append(row)
    table = pd.DataFrame(rows, columns=["task", "system", "n", "accuracy", *(name + end for name in _METRICS.values() for end in ("", "_low", "_high"))])
    return table.sort_values("task", key=lambda column: column.map(list(TASKS.values()).index), kind="stable").reset_index(drop=True)


def differences(study, frames, pairs, split):
    """Kappas of one system minus those of another on the same pictures, each with its paired 95 % group-bootstrap interval.

    Parameters
    ----------
    pairs : list of (str, str)
        Systems.

    Returns
    -------
    DataFrame
        task, first, second, n, then qwk_difference and linear_kappa_difference each with _low and _high.
    """
    rows = []
    for task, title in TASKS.items():
        for a, b in pairs:
            if (a, task, split) in frames and (b, task, split) in frames:
                both = stats.paired(frames[a, task, split], frames[b, task, split])
                row = {"task": title, "first": a, "second": b, "n": len(both)}
                for name in ("qwk", "linear_kappa"):
                    gap = stats.difference(both, name, study.profile.draws, study.seed)
                    row |= {f"{name}_difference": gap["difference"], f"{name}_difference_low": gap["ci_low"], f"{name}_difference_high": gap["ci_high"]}
                rows.append(row)
    return pd.DataFrame(rows, columns=["task", "first", "second", "n", *(name + end for name in ("qwk_difference", "linear_kappa_difference") for end in ("", "_low", "_high"))])


def beaten(table, absent):
    """Whether supervised networks beat embeddings with XGBoost on all tasks, from `differences` (network minus embeddings).

    *Replicated* when every paired interval of the quadratic kappa lies above 0 and no task or system is missing, *not replicated* when any lies
    below 0, else *inconclusive*. Ours is the smallest difference.
    """
    if table.empty:
        return not_run("; ".join(dict.fromkeys(absent.values())) or "no pair of systems has been run")
    above, below = table["qwk_difference_low"] > 0, table["qwk_difference_high"] < 0
    verdict = "replicated" if above.all() and not absent else "not replicated" if below.any() else "inconclusive"
    least = table.loc[table["qwk_difference"].idxmin()]
    reason = f"{above.sum()} of {len(table)} intervals lie above 0, {below.sum()} below; smallest: {_pair(least)}"
    return _answer(least, verdict, reason, absent)


def alike(table, absent):
    """Whether two encoders perform similarly, from `differences` between them with XGBoost.

    *Replicated* when every interval of the quadratic kappa lies inside +-0.05 and no task or system is missing, *not replicated* when any lies
    outside altogether, else *inconclusive*. Ours is the largest difference in size.
    """
    if table.empty:
        return not_run("; ".join(dict.fromkeys(absent.values())) or "no pair of encoders has been run")
    low, high = table["qwk_difference_low"], table["qwk_difference_high"]
    inside, outside = (low > -MARGIN) & (high < MARGIN), (low > MARGIN) | (high < -MARGIN)
    verdict = "not replicated" if outside.any() else "replicated" if inside.all() and not absent else "inconclusive"
    most = table.loc[table["qwk_difference"].abs().idxmax()]
    reason = f"{inside.sum()} of {len(table)} intervals lie inside ±{MARGIN:g}, {outside.sum()} outside it; largest: {_pair(most)}"
    return _answer(most, verdict, reason, absent)


def _pair(row):
    return f"{row['first']} minus {row['second']}, {row.task}"


def _answer(row, verdict, reason, absent):
    missing = [f"{name} not run: {why}" for name, why in absent.items()]
    return Answer(row.qwk_difference, row.qwk_difference_low, row.qwk_difference_high, "kappa", verdict, "; ".join([reason, *missing]))


def kappa_row(table, system, absent, how):
    """A system's weighted kappa of KL grades for the scorecard, from `results`: `scorecard.Ours`, or why there is none.

    The paper does not say which weights: the quadratic kappa stands in the row; both, their intervals and how the
    network was run stand in its note.
    """
    found = table[(table["system"] == system) & (table["task"] == TASKS["kl_grade"])]
    if found.empty:
        return absent.get(system, f"this run has no {system}")
    row = found.iloc[0]
    said = ", ".join(f"{name} {row[key]:.3f} (group bootstrap {row[key + '_low']:.3f} to {row[key + '_high']:.3f})" for name, key in (("quadratic", "qwk"), ("linear", "linear_kappa")))
    return Ours(float(row.qwk), math.nan, math.nan, f"{how}: {said}; another test set than the paper's, whose weights are not stated")
