"""The scorecard's rules, the same in every run, by which published numbers are held against ours."""

import math
from decimal import Decimal

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.predictions import arrays
from koa_lib.verdict import MARGINS, Ours, agreement, over_runs

COLUMNS = (
    "source item row metric unit relation published ours runs ci_low ci_high prediction_low prediction_high "
    "boot_low boot_high model rule verdict follows_from reason"
).split()
MAIN = "jpm2026"  # the paper
KEY = ["source", "item", "row", "metric"]
# Of rows with a model, and of rows without one.
VERDICTS = ("replicated", "not replicated", "inconclusive", "not comparable", "not run")
FOUND = ("same", "differs", "consistent", "inconsistent", "shown", "not run")
MODEL_RULE = (
    "off by at most {0} and the mean known to within {0}: replicated; "
    "off by more and outside the 95 % prediction interval: not; "
    f"at least {stats.FEWEST_RUNS} trainings"
)
COUNTED = "same count as in the manifest"
REPEATED = "consistent with table 2, which it repeats"
CITED = "same number as in the cited source, rounded to the printed digits"
TIMED = "shown beside the published time of other hardware"
DERIVED = "follows from the other printed numbers, within rounding"
TESTED = "CLIP ahead with exact p < 0.05"
NOTHING_REACHES = "nothing that was tried reaches it"
TEXTS = ("relation", "rule", "verdict", "follows_from", "reason")
ABSENT = {"runs": 0, "model": True, **dict.fromkeys(TEXTS, "")}
OVERALL = ["accuracy", "macro_precision", "macro_sensitivity", "macro_f1"]
LARGE_COUNT = 1000  # from here on, zeros at the end of a count are taken as rounding


def judge(published, ours, comparable, reason="", alone=None):
    """Hold published numbers against ours: one row for each published row, in their order.

    Rows that need a model are judged by `agreement` or by the test of their claim, and are *not comparable*
    where the run is not. Counts and cited numbers are the *same* or *differ*, repeated numbers are
    *consistent* or *inconsistent*, times are *shown*, all in every run. A row without a value of ours is *not
    run*, with the reason.

    Parameters
    ----------
    published : DataFrame
        Tables like `published/jpm2026.csv` with a column `source`, which names the paper.
    ours : dict
        (source, item, row, metric) -> `Ours`, or `Answer` where the row is a test; or a str that says
        why there is no value.
    comparable : bool
        Whether model rows may be scored (the paper's data and model).
    reason : str
        Why not, when they may not.
    alone : callable, optional
        Of (source, item, row), says why this row alone may not be scored; '' where it may.

    Returns
    -------
    DataFrame
        `COLUMNS`; follows_from is empty.

    Raises
    ------
    StudyError
        No reason where one is needed, a key that is not published, or a table that is not of the form.
    """
    if not comparable and not reason:
        raise StudyError("Say why this run is not comparable: the reason stands in the scorecard.")
    known = _by_key(published)
    unknown = [key for key in ours if key not in known]
    if unknown:
        raise StudyError(f"The published numbers have no row {unknown[0]}. "
                         "Use source, item, row and metric of a table.")
    rows = []
    for key, row in known.items():
        found = ours.get(key, "this run makes no such value")
        if row.kind == "duplicate":
            found = _repeated(row, known)
        why = (alone(*key[:3]) if alone else "") if comparable else reason
        judged = _judged(row, found, why)
        rows.append(dict(zip(KEY, key, strict=True)) | judged | {
            "unit": row.unit, "relation": row.relation.strip("="), "published": row.value})
    return table(rows)


def table(rows):
    """Rows (dicts of some of `COLUMNS`) as a typed frame; what is not given is undefined or empty."""
    return pd.DataFrame([ABSENT | row for row in rows], columns=COLUMNS).astype({"runs": int, "model": bool})


def answered(answer, rule, reason=""):
    """Columns of a row that a claim's own test decides; its interval is no interval over trainings.

    Parameters
    ----------
    answer : verdict.Answer
    reason : str
        Why the run is not comparable, when it is not.
    """
    verdict, why = answer.verdict, answer.reason
    if verdict != "not run" and reason:
        verdict, why = "not comparable", joined(reason, why)
    return {"ours": _finite(answer.ours), "boot_low": answer.ci_low, "boot_high": answer.ci_high,
            "rule": rule, "verdict": verdict, "reason": why}


def trained(item, row, results, fold):
    """Values of the paper's rows from several trainings (folds x seeds).

    Parameters
    ----------
    item, row : str
        "table_2" with "train" or "test"; "table_3" (row is not used; gives the macro AUC too); "table_4" with
        a model.
    results : Results
        Of one arm and split; empty gives nothing.
    fold : int
        The fold that the report shows, with the study's own seed; the first training's where none is that.

    Returns
    -------
    dict
        Key of the paper's row -> `Ours` in the published unit, for `judge`. Trainings are graded on the
        same pictures, so their interval says nothing of others: the group bootstrap of the shown one stands
        beside it.
    """
    runs = {tuple(where.values()): _drawn(item, row, run.graded(), results.draws, results.seed)
            for where, run in results.each("seed", "fold")}
    shown = runs.get((results.seed, fold), next(iter(runs.values()), {}))
    return {key: over_runs([run[key][0] for run in runs.values()], boot=stats.interval(values[1:]))
            for key, values in shown.items()}


def _drawn(item, row, graded, draws, seed):
    # By key, the value in the published unit and its bootstrap draws; an AUC is not drawn.
    matrices = stats.resampled(graded, draws, seed)
    if item != "table_3":
        values, names = metrics.from_confusion(matrices), OVERALL if item == "table_2" else ["accuracy"]
        return {(MAIN, item, row, name): 100 * values[name] for name in names}
    grades, probabilities = arrays(graded)
    found = {(MAIN, "text", "macro", "auc"): np.array([metrics.macro_auc(grades, probabilities)])}
    for name, values in zip(("sensitivity", "specificity"), metrics.rates(matrices), strict=True):
        found |= {(MAIN, item, str(grade), name): 100 * values[:, grade] for grade in GRADES}
    auc = metrics.per_grade(grades, probabilities)["auc"]
    return found | {(MAIN, item, str(grade), "auc"): auc[[grade]].to_numpy() for grade in GRADES}


def same_as_printed(found, printed, count):
    """Whether a number found in a source is the printed one, which may be rounded.

    A count from 1,000 on is taken as rounded at its last digit that is not zero (1,251,655 may be printed as
    1,300,000, not as 1,200,000), any other number at its last printed decimal. Cut digits do not agree, as in
    the arithmetic.
    """
    return bool(abs(found - printed) <= _unit(printed, count) / 2 + 1e-9)


def joined(*parts):
    """Parts of a reason, each once."""
    return "; ".join(dict.fromkeys(part for part in parts if isinstance(part, str) and part))


def _unit(printed, count):
    # Of the last digit that counts as printed.
    step = 10.0 ** Decimal(str(printed)).normalize().as_tuple().exponent
    return step if count and printed >= LARGE_COUNT else min(step, 1)


def keys(rows):
    """(source, item, row, metric) of each row of a table."""
    return list(rows[KEY].astype(str).itertuples(index=False, name=None))


def _by_key(published):
    known = dict(zip(keys(published), published.itertuples(), strict=True))
    if len(known) < len(published):
        twice = published.loc[published[KEY].astype(str).duplicated(), KEY]
        raise StudyError(f"The published numbers hold {keys(twice)[0]} twice. Keep one row.")
    return known


def _judged(row, found, reason):
    rule, model = _rule(row), row.kind in ("model", "test")
    if isinstance(found, str):
        return {"model": model, "rule": rule, "verdict": "not run", "reason": found.removeprefix("not run: ")}
    if row.kind == "test":
        return answered(found, rule, reason)
    if math.isnan(found.value):
        why = found.note or "undefined in this run"
        return {"model": model, "rule": rule, "verdict": "not run", "reason": why}
    verdict, why = _of_model(row, found, reason) if model else _without_model(row, found.value)
    low, high = found.prediction
    return {**found._asdict(), "ours": _finite(found.value), "prediction_low": low, "prediction_high": high,
            "model": model, "rule": rule, "verdict": verdict, "reason": joined(why, found.note)}


def _finite(value):
    return value if math.isfinite(value) else math.nan


def _rule(row):
    if row.kind == "model":
        return MODEL_RULE.format(f"{MARGINS.get(row.unit, 0.0):g}")
    rules = {"test": TESTED, "fact": COUNTED if row.source == MAIN else CITED, "citation": CITED,
             "speed": TIMED, "duplicate": REPEATED}
    if row.kind not in rules:
        raise StudyError(f"The published row {row.item}, {row.row}, {row.metric} has the kind '{row.kind}'; "
                         f"known: model, {', '.join(rules)}.")
    return rules[row.kind]


def _of_model(row, ours, reason):
    nothing = NOTHING_REACHES * math.isinf(ours.value)
    if reason:
        return "not comparable", joined(reason, nothing)
    return ("not replicated", nothing) if nothing else agreement(ours, row.value, MARGINS.get(row.unit, 0.0))


def _without_model(row, found):
    if row.kind == "speed":
        return "shown", ""
    if row.kind == "duplicate":
        return ("consistent" if math.isclose(found, row.value, abs_tol=1e-9) else "inconsistent"), row.note
    unit, cited = _unit(row.value, row.unit == "count"), _rule(row) == CITED
    same = same_as_printed(found, row.value, row.unit == "count") if cited else found == row.value
    # The plain cause of a number that is not the same.
    cut = cited and not same and 0 < found - row.value < unit
    places = max(0, -Decimal(str(unit)).normalize().as_tuple().exponent)
    nearest = f"rounded, {found:,.{places}f} is {row.value + unit:,.{places}f}"
    rounded = f"holds when digits are cut, not by rounding: {nearest}"
    return "same" if same else "differs", rounded if cut else ""


def _repeated(row, known):
    twin = known.get((MAIN, "table_2", "test", row.metric))
    if twin is None:
        raise StudyError(f"The published row {row.item}, {row.row}, {row.metric} repeats no row of table 2. "
                         "Correct its kind.")
    return Ours(twin.value, note=f"table 2 prints {twin.value:.2f}")
