"""What is graded on a radiograph beside the KL grade, and how systems compare task by task."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.claims import Answer, not_run
from koa_lib.scorecard import Ours

TASKS = {"kl_grade": "KL grade", "osteophytes": "osteophytes", "jsn": "joint-space narrowing", "sclerosis": "sclerosis"}
MARGIN = 0.05  # of quadratic kappa: two encoders are alike when the interval of their difference lies inside it
_METRICS = ("linear_kappa", "qwk", "macro_auc")


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
        task, system, n, accuracy, then linear_kappa, qwk, macro_auc each with _low and _high; ratios.
    """
    rows = []
    for (system, task, part), graded in frames.items():
        if part == split:
            summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
            row = {"task": TASKS[task], "system": system, "n": len(graded), "accuracy": summary.value["accuracy"]}
            for name in _METRICS:
                row |= {name: summary.value[name], f"{name}_low": summary.ci_low[name], f"{name}_high": summary.ci_high[name]}
            rows.append(row)
    table = pd.DataFrame(rows, columns=["task", "system", "n", "accuracy", *(name + end for name in _METRICS for end in ("", "_low", "_high"))])
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
        task, a, b, n, then qwk and linear_kappa (differences) each with _low and _high.
    """
    rows = []
    for task, title in TASKS.items():
        for a, b in pairs:
            if (a, task, split) in frames and (b, task, split) in frames:
                both = stats.paired(frames[a, task, split], frames[b, task, split])
                row = {"task": title, "a": a, "b": b, "n": len(both)}
                for name in ("qwk", "linear_kappa"):
                    gap = stats.difference(both, name, study.profile.draws, study.seed)
                    row |= {name: gap["difference"], f"{name}_low": gap["ci_low"], f"{name}_high": gap["ci_high"]}
                rows.append(row)
    return pd.DataFrame(rows, columns=["task", "a", "b", "n", *(name + end for name in ("qwk", "linear_kappa") for end in ("", "_low", "_high"))])


def beaten(table, absent):
    """Whether supervised networks beat embeddings with XGBoost on all tasks, from `differences` (network minus embeddings).

    *Replicated* when every paired interval of the quadratic kappa lies above 0 and no task or system is missing, *not replicated* when any lies
    below 0, else *inconclusive*. Ours is the smallest difference.
    """
    if table.empty:
        return not_run("; ".join(dict.fromkeys(absent.values())) or "no pair of systems has been run")
    least = table.loc[table["qwk"].idxmin()]
    holds, fails = (table["qwk_low"] > 0).all() and not absent, (table["qwk_high"] < 0).any()
    verdict = "replicated" if holds else "not replicated" if fails else "inconclusive"
    reason = f"{(table['qwk_low'] > 0).sum()} of {len(table)} intervals lie above 0, {(table['qwk_high'] < 0).sum()} below; smallest: {least.a} minus {least.b}, {least.task}"
    return Answer(least.qwk, least.qwk_low, least.qwk_high, "kappa", verdict, "; ".join([reason, *_missing(absent)]))


def alike(table, absent):
    """Whether two encoders perform similarly, from `differences` between them with XGBoost.

    *Replicated* when every interval of the quadratic kappa lies inside +-0.05 and no task or system is missing, *not replicated* when any lies
    outside altogether, else *inconclusive*. Ours is the largest difference in size.
    """
    if table.empty:
        return not_run("; ".join(dict.fromkeys(absent.values())) or "no pair of encoders has been run")
    inside = (table["qwk_low"] > -MARGIN) & (table["qwk_high"] < MARGIN)
    outside = (table["qwk_low"] > MARGIN) | (table["qwk_high"] < -MARGIN)
    most = table.loc[table["qwk"].abs().idxmax()]
    verdict = "not replicated" if outside.any() else "replicated" if inside.all() and not absent else "inconclusive"
    reason = f"{inside.sum()} of {len(table)} intervals lie inside ±{MARGIN:g}, {outside.sum()} outside it; largest: {most.task}"
    return Answer(most.qwk, most.qwk_low, most.qwk_high, "kappa", verdict, "; ".join([reason, *_missing(absent)]))


def _missing(absent):
    return [f"{name} not run: {reason}" for name, reason in absent.items()]


def kappa_row(table, system, absent):
    """A system's weighted kappa of KL grades for the scorecard, from `results`: `scorecard.Ours`, or why there is none.

    The paper does not say which weights: the quadratic kappa stands in the row, the linear one and both intervals in its note.
    """
    found = table[(table["system"] == system) & (table["task"] == TASKS["kl_grade"])]
    if found.empty:
        return absent.get(system, f"this run has no {system}")
    row = found.iloc[0]
    said = ", ".join(f"{name} {row[key]:.3f} (group bootstrap {row[key + '_low']:.3f} to {row[key + '_high']:.3f})" for name, key in (("quadratic", "qwk"), ("linear", "linear_kappa")))
    return Ours(float(row.qwk), math.nan, math.nan, f"{said}; another test set than the paper's, whose weights are not stated")
