"""The tables of the study, one function per table of the paper: frames with our values beside the published ones.

Where a graded frame is expected (p0..p4, kl_grade, group_id), a str says instead why there is none; the reason
stands in the table. Accuracies, sensitivities, specificities and F1 are in per cent, AUC and kappa are ratios.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.prompts import TABLE_1

OVERALL = ("accuracy", "macro_precision", "macro_sensitivity", "macro_f1")


def table_1(counts, examples):
    """Grades with their text, pictures per cohort and an example picture.

    Parameters
    ----------
    counts : DataFrame
        cohort, split, grade, n.
    examples : dict
        Grade -> image id.

    Returns
    -------
    DataFrame
        kl_grade, name, description, "n <cohort>" per cohort, example_image; five rows.
    """
    table = pd.DataFrame({"kl_grade": GRADES, "name": NAMES, "description": list(TABLE_1)})
    for cohort in dict.fromkeys(counts["cohort"]):
        sums = counts[counts["cohort"] == cohort].groupby("grade")["n"].sum()
        table[f"n {cohort}"] = sums.reindex(GRADES, fill_value=0).to_numpy()
    table["example_image"] = [examples.get(grade, "") for grade in GRADES]
    return table


def table_2(parts, published):
    """Overall performance on each part of the data, in per cent, the paper's columns as rows beside ours.

    Parameters
    ----------
    parts : dict of (str, str) to DataFrame
        Arm and pictures ("train", "held_out", "external, deduplicated", ...) to the graded frame.
    published : DataFrame
        `published/jpm2026.csv`.

    Returns
    -------
    DataFrame
        arm ("published" where it is the paper's), pictures, n, accuracy, macro_precision, macro_sensitivity,
        macro_f1; all that is inside the training cohort first.
    """
    def cited(row, pictures):
        values = {name: _published(published, "table_2", row, name) for name in OVERALL}
        return {"arm": "published", "pictures": pictures, **values}

    rows = [{"arm": arm, "pictures": part, "n": len(graded), **_overall(graded)}
            for (arm, part), graded in parts.items()]
    outside = [row for row in rows if row["pictures"].startswith("external")]
    inside = [row for row in rows if row not in outside]
    table = pd.DataFrame([cited("train", "train"), *inside, cited("test", "external"), *outside])
    return table[["arm", "pictures", "n", *OVERALL]].astype({"n": "Int64"})


def table_3(graded, published, groups=None, draws=1000, seed=0):
    """Performance per grade with 95 % group-bootstrap intervals of the sensitivity; per cent but for the AUC.

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
    for names in (("sensitivity", "ci_low", "ci_high"), ("specificity",), ("auc",)):
        for name in names:
            table[name] = ours[name]
        for name in names:
            what = ("sensitivity", name) if name.startswith("ci") else (name, "value")
            cited = [_published(published, "table_3", str(grade), *what) for grade in GRADES]
            table[f"published_{name}"] = cited
    absent = "no picture of this grade: sensitivity and AUC are undefined"
    return table.assign(reason=[reason or absent * (n == 0) for n in table["n"]])


def table_4(models, published, as_run=None, draws=1000, seed=0, inside=None):
    """Accuracy of every model beside the published one, in the paper's order, then our own models.

    Parameters
    ----------
    models : dict
        Model name as the paper prints it -> graded frame or reason; a published model that is absent is "not run".
    as_run : dict, optional
        Model -> how it was run (resolution, epochs, width).
    inside : dict, optional
        Model -> graded frame of the part of the training cohort that it has not seen.

    Returns
    -------
    DataFrame
        model, as_run, n, accuracy, ci_low, ci_high, best_constant, against_constant (paired, as
        `stats.against_constant`), macro_f1, qwk, internal_accuracy, internal_qwk, published_accuracy, reason;
        per cent but for the kappas.
    """
    printed = list(published.loc[published["item"] == "table_4", "row"])
    rows = []
    for model in [*printed, *(name for name in models if name not in printed)]:
        graded, reason = _graded(models.get(model))
        row = {"model": model, "as_run": (as_run or {}).get(model, ""), "reason": reason}
        row |= _accuracy(graded, draws, seed) | _constant(graded, draws, seed)
        row |= _internal((inside or {}).get(model))
        rows.append(row | {"published_accuracy": _published(published, "table_4", model, "accuracy")})
    columns = """model as_run n accuracy ci_low ci_high best_constant against_constant macro_f1 qwk
                 internal_accuracy internal_qwk published_accuracy reason""".split()
    return pd.DataFrame(rows)[columns]


def confusion(graded):
    """The confusion matrix as a frame: what Figure 6 is drawn from.

    Returns
    -------
    DataFrame
        kl_grade (the true one), n, right, adjacent (graded one grade off), graded_0 .. graded_4; five rows.
    """
    grades, probabilities = _arrays(graded)
    cm = metrics.confusion(grades, probabilities.argmax(1))
    near = np.abs(np.subtract.outer(GRADES, GRADES)) == 1
    sums = {"n": cm.sum(1), "right": np.diag(cm), "adjacent": (cm * near).sum(1)}
    return pd.DataFrame({"kl_grade": GRADES, **sums, **{f"graded_{grade}": cm[:, grade] for grade in GRADES}})


def reliability(graded, bins=15):
    """How right a model is at each confidence: the bins of `metrics.ece` that hold a picture.

    Returns
    -------
    DataFrame
        n, confidence (mean top probability), accuracy (share of right answers), low, high (edges).
    """
    grades, probabilities = _arrays(graded)
    place, _ = metrics.calibration_bins(grades, probabilities, bins)
    right = probabilities.argmax(1) == grades
    frame = pd.DataFrame({"n": 1, "confidence": probabilities.max(1), "accuracy": right})
    found = frame.groupby(place).agg({"n": "sum", "confidence": "mean", "accuracy": "mean"})
    return found.assign(low=found.index / bins, high=(found.index + 1) / bins).reset_index(drop=True)


def zero_shot(results, peers, draws=1000, seed=0):
    """Zero-shot results of each prompt set on each part that is not for training, then published ones.

    Parameters
    ----------
    results : dict of str to dict of str to DataFrame
        Prompt set to what `Runner.zero_shot` returns.
    peers : DataFrame
        `published/peers.csv`.

    Returns
    -------
    DataFrame
        prompts, split, n, accuracy, balanced_accuracy, qwk, qwk_low, qwk_high (ratios; group bootstrap).
    """
    rows = []
    for name, parts in results.items():
        for split in [split for split in ("val", "test", "external") if split in parts]:
            summary = stats.confusion_summary(parts[split], draws, seed).set_index("metric")
            values = summary.value[["accuracy", "balanced_accuracy", "qwk"]]
            bounds = {f"qwk_{end}": summary.at["qwk", f"ci_{end}"] for end in ("low", "high")}
            rows.append({"prompts": name, "split": split, "n": len(parts[split]), **values, **bounds})
    for peer in peers[peers["system"].str.contains("zero-shot")].to_dict("records"):
        named = {"prompts": f"published: {peer['system']}", "split": peer["test_set"]}
        rows.append(named | {name: peer[name] for name in ("n", "accuracy", "qwk")})
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


def _internal(graded):
    # Accuracy in per cent and kappa of one model on what it has not seen.
    if graded is None:
        return {"internal_accuracy": np.nan, "internal_qwk": np.nan}
    values = metrics.summary(*_arrays(graded))
    return {"internal_accuracy": 100 * values["accuracy"], "internal_qwk": values["qwk"]}


def _constant(graded, draws, seed):
    # What one grade for every picture reaches, in per cent, and whether the model differs from it.
    if graded is None:
        return {"best_constant": np.nan, "against_constant": ""}
    row = stats.against_constant(graded, draws, seed).loc["accuracy"]
    return {"best_constant": 100 * row["constant"], "against_constant": row["against"]}


def _accuracy(graded, draws, seed):
    # One row of a model comparison: accuracy and macro-F1 in per cent, the kappa as ratio.
    if graded is None:
        return {"n": 0} | dict.fromkeys(("accuracy", "ci_low", "ci_high", "macro_f1", "qwk"), np.nan)
    summary = stats.confusion_summary(graded, draws, seed).set_index("metric")
    accuracy = 100 * summary.loc["accuracy"]
    return {
        "n": len(graded),
        "accuracy": accuracy.value,
        "ci_low": accuracy.ci_low,
        "ci_high": accuracy.ci_high,
        "macro_f1": 100 * summary.value["macro_f1"],
        "qwk": summary.value["qwk"],
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
