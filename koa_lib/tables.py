"""The tables of the study, one function per table of the paper: frames with our values beside the published ones.

Where a graded frame is expected (p0..p4, kl_grade, group_id), a str says instead why there is none; the reason
stands in the table. Accuracies, sensitivities, specificities and F1 are in per cent, AUC and kappa are ratios.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES, TABLE_1

OVERALL = ("accuracy", "macro_precision", "macro_sensitivity", "macro_f1")


def table_1(counts, prompts=TABLE_1, examples=None):
    """Grades with their text, pictures per cohort and an example picture.

    Parameters
    ----------
    counts : DataFrame
        cohort, split, grade, n.
    prompts : sequence of 5 str
        Grade 0 first.
    examples : dict, optional
        Grade -> image id.

    Returns
    -------
    DataFrame
        kl_grade, name, description, "n <cohort>" per cohort, example_image; five rows.
    """
    table = pd.DataFrame({"kl_grade": GRADES, "name": NAMES, "description": list(prompts)})
    for cohort in dict.fromkeys(counts["cohort"]):
        sums = counts[counts["cohort"] == cohort].groupby("grade")["n"].sum()
        table[f"n {cohort}"] = sums.reindex(GRADES, fill_value=0).to_numpy()
    table["example_image"] = [(examples or {}).get(grade, "") for grade in GRADES]
    return table


def findings(found, meaning):
    """Findings of several cohorts side by side: finding, groups and files of each cohort, and what the finding means.

    Parameters
    ----------
    found : DataFrame
        finding, cohort, groups, files, as from `audit.Audit`.
    meaning : callable
        What a finding says in plain words, `audit.meaning`.
    """
    table = pd.DataFrame({"finding": found["finding"].drop_duplicates()})
    for cohort, part in found.groupby("cohort", sort=False):
        counts = part.set_index("finding")[["groups", "files"]].astype("Int64")
        table = table.join(counts.add_prefix(f"{cohort} "), on="finding")
    return table.assign(meaning=table["finding"].map(meaning)).reset_index(drop=True)


def derived_sets(sets, names):
    """Pictures and groups of each derived set.

    Parameters
    ----------
    sets : DataFrame
        cohort, near_group and a column per derived set, as from `audit.Audit`.
    names : sequence of str
        The derived sets.

    Returns
    -------
    DataFrame
        cohort, set, pictures, groups.
    """
    rows = [(cohort, name.replace("_", " "), part[name].sum(), part.loc[part[name], "near_group"].nunique()) for cohort, part in sets.groupby("cohort", sort=False) for name in names]
    return pd.DataFrame(rows, columns=["cohort", "set", "pictures", "groups"])


def table_2(columns, published):
    """Overall performance per part of the data, the published column beside the part it belongs to.

    Parameters
    ----------
    columns : dict
        Name of the part ("training part", "held-out fold", ..., "external ...") -> graded frame or reason.
    published : DataFrame
        `published/jpm2026.csv`.

    Returns
    -------
    DataFrame
        metric, one column per part, "published train", "published test"; rows: the four metrics (per cent), n, note.
    """
    table = pd.DataFrame({"metric": [*OVERALL, "n", "note"]}, dtype=object)
    waiting = {"train": "train", "external": "test"}
    for name, value in columns.items():
        graded, reason = _graded(value)
        overall = [np.nan] * len(OVERALL) if graded is None else list(_overall(graded).values())
        table[name] = pd.Series([*overall, 0 if graded is None else len(graded), reason], dtype=object)
        for word in [word for word in waiting if word in name.lower()]:
            _add_published(table, published, waiting.pop(word))
    for row in waiting.values():
        _add_published(table, published, row)
    return _percent(table)


def table_3(graded, published, groups=None, draws=1000, seed=0):
    """Performance per grade with 95 % group-bootstrap intervals of the sensitivity.

    Parameters
    ----------
    graded : DataFrame or str
    groups : array (n,), optional
        What is resampled; `group_id` unless given.

    Returns
    -------
    DataFrame
        kl_grade, name, n, then sensitivity, ci_low, ci_high, specificity, auc, each also as published_..., reason.
    """
    graded, reason = _graded(graded)
    table = pd.DataFrame({"kl_grade": GRADES, "name": NAMES})
    ours = _per_grade(graded, groups, draws, seed)
    table["n"] = ours["n"]
    for name in ("sensitivity", "ci_low", "ci_high", "specificity", "auc"):
        metric, column = ("sensitivity", name) if name.startswith("ci") else (name, "value")
        table[name] = ours[name]
        table[f"published_{name}"] = [_published(published, "table_3", str(grade), metric, column) for grade in GRADES]
    absent = "no picture of this grade: sensitivity and AUC are undefined"
    return _percent(table.assign(reason=[reason or absent * (n == 0) for n in table["n"]]))


def table_4(models, published, as_run=None, draws=1000, seed=0):
    """Accuracy of every model beside the published one, in the paper's order, then our own models.

    Parameters
    ----------
    models : dict
        Model name as the paper prints it -> graded frame or reason; a published model that is absent is "not run".
    as_run : dict, optional
        Model -> how it was run (resolution, epochs, width).

    Returns
    -------
    DataFrame
        model, as_run, n, accuracy, ci_low, ci_high, macro_f1, qwk, published_accuracy, reason.
    """
    printed = list(published.loc[published["item"] == "table_4", "row"])
    rows = []
    for model in [*printed, *(name for name in models if name not in printed)]:
        graded, reason = _graded(models.get(model))
        rows.append(
            {
                "model": model,
                "as_run": (as_run or {}).get(model, ""),
                **_accuracy(graded, draws, seed),
                "published_accuracy": _published(published, "table_4", model, "accuracy"),
                "reason": reason,
            }
        )
    return _percent(pd.DataFrame(rows))


def zero_shot(results, draws=1000, seed=0):
    """Zero-shot results of each prompt set on each part that is not for training.

    Parameters
    ----------
    results : dict of str to dict of str to DataFrame
        Prompt set to what `Runner.zero_shot` returns.

    Returns
    -------
    DataFrame
        prompts, split, n, accuracy, balanced_accuracy, qwk, qwk_low, qwk_high (ratios; group bootstrap).
    """
    rows = []
    for name, parts in results.items():
        for split in [split for split in ("val", "test", "external") if split in parts]:
            summary = stats.bootstrap_summary(parts[split], draws, seed).set_index("metric")
            values = summary.value[["accuracy", "balanced_accuracy", "qwk"]]
            rows.append({"prompts": name, "split": split, "n": len(parts[split]), **values, "qwk_low": summary.ci_low["qwk"], "qwk_high": summary.ci_high["qwk"]})
    return pd.DataFrame(rows)


def table_5(published, peers, literature, ours, draws=1000, seed=0):
    """Other studies as cited in the paper, clean public peers, and this run; rows compare only within one protocol.

    Parameters
    ----------
    published, peers, literature : DataFrame
        `published/jpm2026.csv`, `published/peers.csv` and `published/literature.csv`.
    ours : dict
        System -> (protocol as in `peers`, cohort, graded frame or reason).

    Returns
    -------
    DataFrame
        system, protocol, n, accuracy (as printed), ci_low, ci_high, corrected (as found in the cited source; NaN where
        nothing was found), in_source (whether it is the printed one: 'same', 'differs' or empty), macro_f1, qwk, test_set,
        source, note. Rows of one protocol stand together, protocols in the order of their first row.

    Raises
    ------
    StudyError
        When `literature` does not hold a row of the paper's table exactly once.
    """
    rows = []
    for system, (protocol, cohort, value) in ours.items():
        graded, reason = _graded(value)
        name = {"source": "this run", "system": system, "protocol": protocol, "test_set": cohort}
        rows.append({**name, **_accuracy(graded, draws, seed), "note": reason})
    others = peers.assign(source="public peer", accuracy=100 * peers["accuracy"], macro_f1=100 * peers["macro_f1"])
    columns = "system protocol n accuracy ci_low ci_high corrected in_source macro_f1 qwk test_set source note".split()
    frames = [_cited(published, literature), others, pd.DataFrame(rows)]
    table = pd.concat([frame.reindex(columns=columns).astype(object) for frame in frames], ignore_index=True)
    table = table.sort_values("protocol", kind="stable", key=lambda names: pd.factorize(names)[0], ignore_index=True)
    numbers = ["accuracy", "corrected", "ci_low", "ci_high", "macro_f1", "qwk"]
    return table.astype({name: float for name in numbers}).astype({"n": "Int64"}).fillna({"note": "", "in_source": ""})


def _percent(table):
    # `exhibits.show_table` says the unit in the heads.
    table.attrs["percent"] = True
    return table


def _cited(published, literature):
    # The paper's own table 5, each row with what its source says.
    cited = published[published["item"] == "table_5"].drop(columns=["ci_low", "ci_high"])
    found = literature[literature["source_table"] == "jpm2026"]
    cited = cited.merge(found, on=["item", "row", "metric"], how="left")
    wrong = cited.loc[cited["protocol"].isna() | cited["row"].duplicated(), "row"]
    if len(wrong):
        raise StudyError(f"literature.csv does not hold one row with a protocol for table_5, {wrong.iloc[0]}. Give the comparable protocol, as in peers.csv.")
    test_set = cited["note"].str.split(";").str[0]
    cited = cited.rename(columns={"row": "system", "value": "accuracy", "found": "corrected"})
    same = (cited["corrected"] - cited["accuracy"]).abs() <= 0.005
    in_source = np.where(cited["corrected"].isna(), "", np.where(same, "same", "differs"))
    return cited.assign(source="table 5 of the paper", test_set=test_set, note=cited["remark"], in_source=in_source)


def _graded(value):
    if value is None:
        return None, "not run: no predictions in this run"
    if isinstance(value, str):
        return None, value
    return (value, "") if len(value) else (None, "not run: no pictures in this part")


def _arrays(graded):
    return metrics.checked(graded["kl_grade"], graded[metrics.PROBABILITIES])


def _overall(graded):
    grades, probabilities = _arrays(graded)
    values = metrics.from_confusion(metrics.confusion(grades, probabilities.argmax(1)))
    return {name: 100 * float(values[name]) for name in OVERALL}


def _accuracy(graded, draws, seed):
    # One row of a model comparison: accuracy and macro-F1 in per cent, the kappa as ratio.
    if graded is None:
        return {"n": 0} | dict.fromkeys(("accuracy", "ci_low", "ci_high", "macro_f1", "qwk"), np.nan)
    grades, probabilities = _arrays(graded)
    predicted = probabilities.argmax(1)
    values = metrics.from_confusion(metrics.confusion(grades, predicted))
    drawn = metrics.from_confusion(stats.group_bootstrap(grades, predicted, graded["group_id"], draws, seed))
    low, high = stats.interval(100 * drawn["accuracy"])
    return {
        "n": len(graded),
        "accuracy": 100 * float(values["accuracy"]),
        "ci_low": low,
        "ci_high": high,
        "macro_f1": 100 * float(values["macro_f1"]),
        "qwk": float(values["qwk"]),
    }


def _per_grade(graded, groups, draws, seed):
    if graded is None:
        return {"n": 0} | dict.fromkeys(("sensitivity", "ci_low", "ci_high", "specificity", "auc"), np.nan)
    grades, probabilities = _arrays(graded)
    table = metrics.per_grade(grades, probabilities)
    groups = graded["group_id"] if groups is None else groups
    drawn = stats.group_bootstrap(grades, probabilities.argmax(1), groups, draws, seed)
    recall = 100 * metrics.rates(drawn)[0]
    low, high = zip(*(stats.interval(recall[:, grade]) for grade in GRADES), strict=True)
    percent = {name: 100 * table[name] for name in ("sensitivity", "specificity")}
    return {"n": table["n"], **percent, "ci_low": list(low), "ci_high": list(high), "auc": table["auc"]}


def _published(published, item, row, metric, column="value"):
    found = published[(published[["item", "row", "metric"]] == [item, row, metric]).all(axis=1)]
    return float(found[column].iloc[0]) if len(found) else float("nan")


def _add_published(table, published, row):
    values = [_published(published, "table_2", row, name) for name in OVERALL]
    table[f"published {row}"] = pd.Series([*values, "", ""], dtype=object)
