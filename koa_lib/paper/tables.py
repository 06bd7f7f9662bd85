"""The tables of the paper: our values beside the published ones.

Accuracies, sensitivities, specificities and F1 are in per cent, AUC and kappa are ratios.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, networks, stats
from koa_lib.comparison import NO_EXTERNAL, accuracy_row, place, shown, shown_fold
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.paper.rules import OVERALL
from koa_lib.predictions import arrays
from koa_lib.prompts import TABLE_1
from koa_lib.protocols import described, main_arm
from koa_lib.splits import unseen

CLIP = "Fine-tuned CLIP"  # as Table 4 calls the main arm
PERCENT = ("accuracy", "ci_low", "ci_high", "best_constant", "macro_f1")


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


def table_2(study, results, our_results, published):
    """Overall performance on each part of the data, in per cent, the paper's columns as rows beside ours.

    Parameters
    ----------
    results, our_results : Results
        Of the main arm, whose shown fold is taken, and of our protocol, whose folds are averaged.
    published : DataFrame
        `published/jpm2026.csv`.

    Returns
    -------
    DataFrame
        arm ("published" where it is the paper's), pictures (external ones "all files", repeats included, or
        "deduplicated"), n, accuracy, macro_precision, macro_sensitivity, macro_f1; all that is inside the
        training cohort first.
    """
    outside = our_results.of(split="external").deduplicated()
    ours = pd.concat([
        shown(study, results).table(OVERALL),
        our_results.of(split="test").table(OVERALL),
        outside.table(OVERALL).replace("external", "external, deduplicated"),
    ]).drop_duplicates(["arm", "split"]).rename(columns={"split": "pictures"})
    ours[OVERALL] *= 100
    outside = ours["pictures"].str.startswith("external")
    cited = published[published["item"] == "table_2"].pivot(index="row", columns="metric", values="value")
    cited = cited.reset_index().assign(arm="published", pictures=cited.index.str.replace("test", "external"))
    train, test = (cited[cited["row"] == row] for row in ("train", "test"))
    table = pd.concat([train, ours[~outside], test, ours[outside]], ignore_index=True)
    table = table.replace({"pictures": {"external": "external, all files"}})
    return table[["arm", "pictures", "n", *OVERALL]].astype({"n": "Int64"})


def table_3(graded, published, draws=1000, seed=0):
    """Performance per grade with 95 % group-bootstrap intervals of the sensitivity; per cent but for the AUC.

    Returns
    -------
    DataFrame
        kl_grade, name, n, then sensitivity, ci_low, ci_high, specificity, auc, each also as published_...,
        reason.
    """
    cited = published[published["item"] == "table_3"].pivot(
        index="row", columns="metric", values=["value", "ci_low", "ci_high"]).reset_index(drop=True)
    each = metrics.per_grade(*arrays(graded))
    recall = metrics.rates(stats.resampled(graded, draws, seed)[1:])[0]
    low, high = zip(*(stats.interval(100 * recall[:, grade]) for grade in GRADES), strict=True)
    absent = "no picture of this grade: sensitivity and AUC are undefined"
    return pd.DataFrame({
        "kl_grade": GRADES,
        "name": NAMES,
        "n": each["n"],
        "sensitivity": 100 * each["sensitivity"],
        "ci_low": low,
        "ci_high": high,
        "published_sensitivity": cited["value", "sensitivity"],
        "published_ci_low": cited["ci_low", "sensitivity"],
        "published_ci_high": cited["ci_high", "sensitivity"],
        "specificity": 100 * each["specificity"],
        "published_specificity": cited["value", "specificity"],
        "auc": each["auc"],
        "published_auc": cited["value", "auc"],
        "reason": np.where(each["n"] == 0, absent, ""),
    })


def table_4(study, results, published):
    """Accuracy of every model beside the published one, in the paper's order, then our own models.

    Parameters
    ----------
    results : dict of str to Results
        Model name as the paper prints it; `CLIP` is the main arm. A published model that is absent is "not
        run".

    Returns
    -------
    DataFrame
        model, as_run (network, resolution, epochs), then as `comparison.accuracy_row`, internal_accuracy and
        internal_qwk (on the unseen part of the training cohort), published_accuracy, reason; per cent but for
        the kappas.
    """
    printed = published[published["item"] == "table_4"].set_index("row")["value"]
    as_run = {spec.name: networks.described(spec) for spec in study.profile.baselines}
    as_run[CLIP] = described(main_arm(study), study)
    reasons = {spec.name: f"not run: {spec.reason}" for spec in study.profile.baselines if spec.reason}
    rows = []
    for model in dict.fromkeys([*printed.index, *results]):
        row = {"model": model, "published_accuracy": printed.get(model),
               "reason": reasons.get(model, "not run: no predictions in this run")}
        if model in results:
            row |= {"as_run": as_run.get(model), **_inside_and_outside(study, results[model])}
        rows.append(row)
    columns = """model as_run n accuracy ci_low ci_high best_constant against_constant macro_f1 qwk
                 internal_accuracy internal_qwk published_accuracy reason""".split()
    table = pd.DataFrame(rows, columns=columns).fillna({"as_run": "", "n": 0, "against_constant": ""})
    return table.astype({"n": int, "published_accuracy": float})


def _inside_and_outside(study, found):
    inside = metrics.summary(*arrays(shown_fold(study, found, unseen(found.splits))))
    row = {"reason": NO_EXTERNAL,
           "internal_accuracy": 100 * inside["accuracy"], "internal_qwk": inside["qwk"]}
    if "external" in found:
        row |= {"reason": "", **_percent(shown_fold(study, found, "external"), found)}
    return row


def _percent(graded, results):
    row = accuracy_row(graded, results.draws, results.seed)
    return {name: 100 * value if name in PERCENT else value for name, value in row.items()}


def confusion(graded):
    """The confusion matrix as a frame: what Figure 6 is drawn from.

    Returns
    -------
    DataFrame
        kl_grade (the true one), n, right, adjacent (graded one grade off), graded_0 .. graded_4; five rows.
    """
    grades, probabilities = arrays(graded)
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
    grades, probabilities = arrays(graded)
    place, _ = metrics.calibration_bins(grades, probabilities, bins)
    right = probabilities.argmax(1) == grades
    frame = pd.DataFrame({"n": 1, "confidence": probabilities.max(1), "accuracy": right})
    found = frame.groupby(place).agg({"n": "sum", "confidence": "mean", "accuracy": "mean"})
    return found.assign(low=found.index / bins, high=(found.index + 1) / bins).reset_index(drop=True)


def zero_shot(results, peers):
    """Zero-shot results of each prompt set on each part, then published ones.

    Parameters
    ----------
    results : Results
        Of the arms 'zero_shot-<prompt set>'.
    peers : DataFrame
        `published/peers.csv`.

    Returns
    -------
    DataFrame
        prompts, split, n, accuracy, balanced_accuracy, qwk, qwk_low, qwk_high (ratios; group bootstrap).
    """
    table = results.table(["accuracy", "balanced_accuracy", "qwk"])
    table["prompts"] = table["arm"].str.removeprefix("zero_shot-")
    cited = peers[peers["system"].str.contains("zero-shot")].rename(columns={"test_set": "split"})
    table = pd.concat([table, cited.assign(prompts="published: " + cited["system"])], ignore_index=True)
    return table[["prompts", "split", "n", "accuracy", "balanced_accuracy", "qwk", "qwk_low", "qwk_high"]]


def this_run(study, results, our_results):
    """This run's rows of Table 5: the shown fold of the main arm, and the fold means by our protocol.

    Returns
    -------
    DataFrame
        system, protocol (as in `published/peers.csv`), test_set, source, n, accuracy, ci_low, ci_high,
        macro_f1, qwk; per cent but for the kappa.
    """
    inside = [split for split in results.splits if split != "train"]
    found = [shown(study, results).of(split=inside), our_results.of(split=["test", "external"])]
    table = pd.concat([each.table(("accuracy", "macro_f1", "qwk")) for each in found])
    table = table.drop_duplicates(["arm", "split"], keep="last")
    table = table.rename(columns={"accuracy_low": "ci_low", "accuracy_high": "ci_high"})
    table[["accuracy", "ci_low", "ci_high", "macro_f1"]] *= 100
    splits = table["split"]
    return table.assign(system=table["arm"], source="this run",
                        protocol=[_protocol(study, split) for split in splits],
                        test_set=[place(study, split) for split in splits])


def _protocol(study, split):
    if study.synthetic:
        return "phantoms"
    return "OAI to Gornale" if split == "external" else "OAI internal"


def table_5(published, peers, literature, ours):
    """Other studies as cited, clean public peers, and this run; rows compare only within one protocol.

    Parameters
    ----------
    published, peers, literature : DataFrame
        `published/jpm2026.csv`, `published/peers.csv` and `published/literature.csv`.
    ours : DataFrame
        As from `this_run`.

    Returns
    -------
    DataFrame
        system, protocol, n, accuracy (as printed), ci_low, ci_high, corrected (as found in the cited source;
        NaN where nothing was found), in_source (whether it is the printed one: 'same', 'differs' or empty),
        macro_f1, qwk, test_set, source, note. Rows of one protocol stand together, protocols in the order of
        their first row.

    Raises
    ------
    StudyError
        When `literature` does not hold a row of the paper's table exactly once.
    """
    others = peers.assign(source="public peer", **100 * peers[["accuracy", "macro_f1"]])
    columns = """system protocol n accuracy ci_low ci_high corrected in_source macro_f1 qwk test_set source
                 note""".split()
    frames = [_cited(published, literature), others, ours]
    table = pd.concat([frame.reindex(columns=columns).astype(object) for frame in frames], ignore_index=True)
    order = pd.factorize(table["protocol"])[0].argsort(kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    numbers = ["accuracy", "corrected", "ci_low", "ci_high", "macro_f1", "qwk"]
    table = table.astype(dict.fromkeys(numbers, float)).astype({"n": "Int64"})
    return table.fillna({"note": "", "in_source": ""})


def _cited(published, literature):
    # The paper's own table 5, each row with what its source says.
    cited = published[published["item"] == "table_5"].drop(columns=["ci_low", "ci_high"])
    found = literature[literature["source_table"] == "jpm2026"]
    cited = cited.merge(found, on=["item", "row", "metric"], how="left")
    wrong = cited.loc[cited["protocol"].isna() | cited["row"].duplicated(), "row"]
    if len(wrong):
        raise StudyError("literature.csv does not hold one row with a protocol for table_5, "
                         f"{wrong.iloc[0]}. Give the comparable protocol, as in peers.csv.")
    test_set = cited["note"].str.split(";").str[0]
    cited = cited.rename(columns={"row": "system", "value": "accuracy", "found": "corrected"})
    same = (cited["corrected"] - cited["accuracy"]).abs() <= 0.005
    in_source = np.where(cited["corrected"].isna(), "", np.where(same, "same", "differs"))
    source = "table 5 of the paper"
    return cited.assign(source=source, test_set=test_set, note=cited["remark"], in_source=in_source)
