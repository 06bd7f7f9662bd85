"""The arithmetic audit of the paper: whether its printed numbers can stand together.

No model and no picture is needed: the published tables and the counts of the two manifests. A number that
does not agree may still have a plain cause (a mean over runs, a bootstrap mean, another subset, a typing
slip): the notes name it.
"""

import numpy as np
import pandas as pd

from koa_lib import losses, metrics
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.paper import arithmetic, sensitivities
from koa_lib.paper.printed import Paper, attained, compare, slack, unpaired

BATCH = 64  # "a global batch size of 64", section 3.5 of the paper
OUTER = [0, 3, 4]  # the grades whose share the balance of errors bounds
ERRORS, IMPLIED = "sum of false positives", "accuracy implied by the sensitivities"
# Checks that repeat one contradiction, and the check that stands for it; of the others the first that is
# inconsistent.
FOLLOWS = {
    "errors implied by the accuracy": IMPLIED,
    "accuracy implied by the specificities": ERRORS,
    "macro precision implied": ERRORS,
    "macro F1 implied": ERRORS,
    f"largest share of grades {', '.join(map(str, OUTER))} in balance": ERRORS,
}


def manifest_counts(internal, external):
    """What the audit counts in the two manifests: pictures per grade and internal patients.

    The automatically cropped copies ("auto_test") show knees of the test split again and are left out.
    """
    internal = internal[internal["split"] != "auto_test"]
    return {
        "internal": np.bincount(internal["kl_grade"], minlength=len(GRADES)),
        "external": np.bincount(external["kl_grade"], minlength=len(GRADES)),
        "patients": internal["group_id"].nunique(),
    }


def findings(published, counts, matrices):
    """The audit of the paper's numbers, from published tables and the manifests' counts alone.

    Parameters
    ----------
    published : DataFrame
        `published/jpm2026.csv`.
    counts : dict
        "external" and "internal": pictures per grade (5,); "patients": internal patients; see
        `manifest_counts`.
    matrices : DataFrame
        `published/confusion_matrices.csv`: system, true_grade, predicted_0..predicted_4 of internal test
        sets.

    Returns
    -------
    DataFrame
        check, unit, value (what follows), expected (what is printed or must equal it; NaN where nothing is),
        tolerance (largest difference that rounding of the printed numbers explains, for interval widths also
        the chance of the bootstrap), verdict ("consistent" or "inconsistent", of counts "same" or "differs";
        "reference": nothing to compare with), follows_from (the inconsistent check whose contradiction an
        inconsistent one repeats), published_row (whether the printed number is a row of its own among the
        published ones), note.

    Raises
    ------
    StudyError
        When a published row is absent or stands twice, a confusion matrix is not whole, or a grade has no
        picture.
    """
    paper = Paper(published)
    external, internal = (np.asarray(counts[name], dtype=float) for name in ("external", "internal"))
    if not external.all():
        raise StudyError(
            f"The external manifest counts {counts['external']} pictures per grade; all five are needed."
        )
    parts = {
        "overall": [*_overall(paper, external), *_balance(paper, external), *_averages(paper, external)],
        "shares": sensitivities.attainable(paper, external),
        "widths": sensitivities.intervals(paper, external),
        "published": [*_repeated(paper), *_counted(paper, external, internal, int(counts["patients"]))],
        "references": [*_mixes(external, internal), *_reweighted(matrices, external)],
    }
    table = pd.DataFrame([(part, *row) for part, rows in parts.items() for row in rows],
                         columns=["part", "check", "unit", "value", "expected", "tolerance", "note"])
    table["verdict"] = [
        _verdict(*row) for row in table[["unit", "value", "expected", "tolerance"]].itertuples(index=False)
    ]
    table["published_row"] = table["part"] == "published"
    return table.assign(follows_from=_heads(table))[
        "check unit value expected tolerance verdict follows_from published_row note".split()
    ]


def _heads(table):
    # Of each inconsistent check the one whose contradiction it repeats; empty where it stands for itself.
    off = table[table["verdict"] == "inconsistent"]
    first = off.groupby("part")["check"].first()
    heads = pd.Series("", table.index)
    for row in off.itertuples():
        head = FOLLOWS.get(row.check, first[row.part] if row.part in ("shares", "widths") else "")
        heads[row.Index] = head if head != row.check and head in set(off["check"]) else ""
    return heads


def _overall(paper, external):
    n, accuracy = int(external.sum()), paper.number("table_2", "test", "accuracy")
    sensitivity, macro = paper.grades("sensitivity"), paper.number("table_2", "test", "macro_sensitivity")
    cited = {
        name: paper.number("table_4", name, "accuracy")
        for name in paper.rows(item="table_4", kind="model")["row"]
    }
    implied = compare(
        IMPLIED, "percent", lambda s, a: (arithmetic.implied_accuracy(s, external), a), sensitivity, accuracy
    )
    apart, explained = (points * n / 100 for points in (abs(implied[2] - implied[3]), implied[4]))
    return [
        attained("external accuracy", accuracy, n),
        *(
            attained(f"accuracy of {name}", printed, n)
            for name, printed in cited.items()
            if _telling(printed, n)
        ),
        (
            *implied,
            f"{apart:.1f} pictures apart, rounding explains {explained:.1f}; bootstrap means or another "
            "subset would give another value",
        ),
        *_references(paper, accuracy.value, n),
        (
            *compare(
                "macro sensitivity from the grades", "percent", lambda s, m: (s.mean(), m), sensitivity, macro
            ),
            "mean of the five printed sensitivities",
        ),
        (
            *compare(
                "mean AUC of the grades",
                "ratio",
                lambda a, m: (a.mean(), m),
                paper.grades("auc"),
                paper.number("text", "macro", "auc"),
            ),
            "mean of the five printed AUCs, themselves rounded",
        ),
    ]


def _telling(printed, n):
    # Where one printed decimal is wider than the step of one picture, every number is attainable and the
    # check cannot fail.
    return 2 * printed.half < 100 / n


def _references(paper, accuracy, n):
    cited = paper.rows(item="table_5", kind="citation", metric="accuracy").nlargest(1, "value").iloc[0]
    nearby = f"the highest is {cited['row']} with {cited['value']:g}, on another test set; for orientation"
    rows = [
        (
            f"95 % Wilson interval of the accuracy, {side}",
            "percent",
            end,
            "not printed; clustered pictures would widen it",
        )
        for side, end in zip(("low", "high"), arithmetic.wilson(accuracy, n), strict=True)
    ]
    rows.append(
        ("external accuracy minus the highest cited one", "points", accuracy - cited["value"], nearby)
    )
    return unpaired(rows)


def _balance(paper, external):
    n, sensitivity, specificity = external.sum(), paper.grades("sensitivity"), paper.grades("specificity")
    accuracy = paper.number("table_2", "test", "accuracy")

    def errors(sensitivity, specificity):
        balance = arithmetic.fp_fn_balance(sensitivity, specificity, external)
        return balance["false_positives"], balance["false_negatives"]

    def by_accuracy(sensitivity, accuracy):
        return n * (1 - accuracy / 100), errors(sensitivity, sensitivity)[1]

    def of_specificity(specificity, accuracy):
        return 100 * (1 - errors(specificity, specificity)[0] / n), accuracy

    moved = slack(errors, sensitivity.pair, specificity.pair)
    spans = zip(errors(sensitivity.value, specificity.value), moved, strict=True)
    ranges = " against ".join(f"{value - off:.1f} to {value + off:.1f}" for value, off in spans)
    equal, other = "must equal the false negatives", "other pictures than these counts would give other sums"
    total = compare(ERRORS, "pictures", errors, sensitivity, specificity)
    implied = compare("errors implied by the accuracy", "pictures", by_accuracy, sensitivity, accuracy)
    reached = compare(
        "accuracy implied by the specificities", "percent", of_specificity, specificity, accuracy
    )
    return [
        (*total, f"{equal}; rounding leaves {ranges}; {other}"),
        (*implied, f"{equal}; {other}"),
        (*reached, "for these counts; another subset would give another value"),
        _share(sensitivity, specificity, external),
    ]


def _averages(paper, external):
    rates, rows = (paper.grades("sensitivity"), paper.grades("specificity")), []
    for place, (check, metric) in enumerate((("precision", "macro_precision"), ("F1", "macro_f1"))):

        def implied(sensitivity, specificity, printed, place=place):
            return arithmetic.implied_precision(sensitivity, specificity, external)[place].mean(), printed

        values = arithmetic.implied_precision(*(rate.value for rate in rates), external)[place]
        weighted = f"weighted by pictures {np.average(values, weights=external):.1f}"
        row = compare(
            f"macro {check} implied", "percent", implied, *rates, paper.number("table_2", "test", metric)
        )
        rows.append(
            (*row, f"mean of the grades; {weighted}; another average or subset would give another value")
        )
    return rows


def _share(sensitivity, specificity, external):
    # At most the manifest's own share: that a larger one would balance too says nothing against it.
    actual = 100 * external[OUTER].sum() / external.sum()
    loose = (sensitivity.half + (len(GRADES) - 1) * specificity.half) / 100
    exact, rounded = (
        min(actual, arithmetic.largest_share(sensitivity.value, specificity.value, OUTER, gap))
        for gap in (0.0, loose)
    )
    note = (
        "the largest share of grades 0, 3 and 4 among the pictures with which false positives and false "
        "negatives can sum to the same, "
        "beside their share in the manifest; a subset of nearly only grades 1 and 2 would agree"
    )
    return "largest share of grades 0, 3, 4 in balance", "percent", exact, actual, rounded - exact, note


def _repeated(paper):
    rows = []
    for row in paper.rows(kind="duplicate").itertuples():
        test, train = (paper.number("table_2", part, row.metric).value for part in ("test", "train"))
        note = (
            "equals the train column of table 2"
            if row.value == train
            else "printed for the quantity that table 2 holds"
        )
        if row.value != test:
            note += "; a difference may be a typing slip"
        check = f"{row.metric.replace('_', ' ')} repeated: {row.item.replace('_', ' ')}, {row.row}"
        rows.append((check, "percent", row.value, test, 0.0, note))
    return rows


def _counted(paper, external, internal, patients):
    columns = (paper.number("table_2", part, "accuracy") for part in ("train", "test"))
    drop = compare(
        "train minus external accuracy",
        "points",
        lambda train, test, d: (train - test, d),
        *columns,
        paper.number("text", "discussion", "train_test_drop"),
    )
    counted = "counted in the manifest"
    facts = [
        ("internal pictures", internal.sum(), "train_images", counted),
        (
            "internal patients",
            patients,
            "participants",
            f"{counted}; the printed number may be the enrolment of the whole cohort study",
        ),
        ("external pictures", external.sum(), "external_images", counted),
    ]
    return [
        (*drop, "printed as 'about', in whole points"),
        *(
            (check, "count", value, paper.number("text", "data", metric).value, 0.0, note)
            for check, value, metric, note in facts
        ),
    ]


def _mixes(external, internal):
    from scipy.stats import entropy

    mix, prior = external / external.sum(), internal / internal.sum()
    constant = metrics.best_constant(np.repeat(GRADES, external.astype(int)))
    floor = (
        f"chance is {np.log(BATCH):.2f}; five captions repeat in a batch, so a curve below it shows "
        "another loss"
    )
    return unpaired(
        [
            (
                "accuracy of always the commonest external grade",
                "percent",
                100 * constant["accuracy"],
                f"grade {constant['accuracy_grade']}; needs no picture",
            ),
            (
                "accuracy of guessing in the internal grade mix",
                "percent",
                100 * mix @ prior,
                "needs no picture",
            ),
            (
                "within-one accuracy of the best constant grade",
                "percent",
                100 * constant["within_one"],
                f"grade {constant['within_one_grade']}; stands beside any within-one accuracy",
            ),
            (
                "divergence of the external from the internal grade mix",
                "nats",
                entropy(mix, prior),
                "Kullback-Leibler; 0 for equal mixes",
            ),
            (
                f"lowest diagonal InfoNCE loss at batch {BATCH}",
                "nats",
                losses.infonce_floor(internal, BATCH),
                floor,
            ),
        ]
    )


def _reweighted(matrices, external):
    from koa_lib.shift import reweight

    rows = []
    for system, part in matrices.groupby("system", sort=False):
        if sorted(part["true_grade"]) != list(GRADES):
            raise StudyError(
                f"confusion_matrices.csv: {system} has the true grades {sorted(part['true_grade'])}; "
                "each of 0 to 4 is needed once. Restore it."
            )
        cm = part.sort_values("true_grade")[[f"predicted_{grade}" for grade in GRADES]].to_numpy()
        own = 100 * np.trace(cm) / cm.sum()
        note = f"{own:.1f} on its own test set; only the grade mix is changed; a reference, not a bound"
        rows.append(
            (
                f"re-weighted to the external grade mix: {system}",
                "percent",
                100 * reweight(cm, external),
                note,
            )
        )
    return unpaired(rows)


def _verdict(unit, value, expected, tolerance):
    if np.isnan(expected):
        return "reference"
    words = ("differs", "same") if unit == "count" else ("inconsistent", "consistent")
    return words[abs(value - expected) <= tolerance + 1e-9]
