"""The scorecard's rules: every published number held against ours, with a verdict by a rule that is the same in every run."""

import math
import re
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError

COLUMNS = "source item row metric unit published ours ci_low ci_high rule verdict reason".split()
VERDICTS = ("replicated", "not replicated", "inconclusive", "not comparable", "not run")
TOLERANCE = {"percent": 3.0, "points": 3.0, "ratio": 0.03}
MODEL_RULE = "within {0}, and inside the 95 % interval over at least 5 runs (half-width up to {0})"
COUNTED = "same count as in the manifest"
REPEATED = "same number as in table 2, which it repeats"
CITED = "same number as found in the cited source, rounded to the printed digits"
TIMED = "no longer than the published time; the hardware differs"
DERIVED = "follows from the other printed numbers, within rounding"
WITHOUT_MODEL = (COUNTED, REPEATED, CITED, TIMED, DERIVED)
NONE = "none found"  # measured, but nothing that was tried reaches it
LARGE_COUNT = 1000  # from here on, zeros at the end of a count are taken as rounding
# The readings whose rules were chosen or changed after first results had been seen; every other rule is older.
LATER = ("D21", "D34", "D37")
_BESIDE = re.compile(r"group bootstrap of fold \S+ alone: (\S+) to (\S+?)(?:;|$)")


class Ours(NamedTuple):
    """A value of ours in the published unit, its 95 % interval (NaN without one) and what to say about it."""

    value: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    note: str = ""


def scorecard(published, ours, comparable, reason=""):
    """Hold published numbers against ours: one row for each published row, in their order.

    Model rows are *replicated* when ours is within 3 points (0.03 for ratios) and the published value lies inside
    the interval over folds x seeds, *inconclusive* when that interval's half-width exceeds 3 points or there are
    fewer than five runs, else *not replicated*. Counts, citations, repeated numbers and timings need no trained
    model and are judged in every run. A row without a value of ours is *not run*, with the reason.

    Parameters
    ----------
    published : DataFrame
        `published/jpm2026.csv`, or a table of that form with a `system` column.
    ours : dict
        (item, row, metric), with the system before them where the table has systems, -> `Ours` or a tuple like it;
        or a str that says why there is no value. An infinite value of a model row was measured, but nothing that was tried reaches it.
    comparable : bool
        Whether model rows may be scored (real data, the settings as printed).
    reason : str
        Why not, when they may not.

    Returns
    -------
    DataFrame
        source, item, row, metric, unit, published, ours, ci_low, ci_high, rule, verdict, reason.

    Raises
    ------
    StudyError
        No reason where one is needed, a key that is not published, or a table that is not of the form.
    """
    if not comparable and not reason:
        raise StudyError("Say why this run is not comparable with the paper; the reason stands in the scorecard.")
    known = _by_key(published)
    unknown = [key for key in ours if key not in known]
    if unknown:
        raise StudyError(f"The published numbers have no row {unknown[0]}. Use item, row and metric of the table.")
    rows = []
    for key, row in known.items():
        value = ours.get(key, "this run makes no such value")
        judged = _repeated(row, known) if row.kind == "duplicate" else _judged(row, value, comparable, reason)
        rows.append((getattr(row, "system", "jpm2026"), *key[-3:], row.unit, row.value, *judged))
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(item, row, runs, fold=None, draws=1000, seed=0):
    """Values of the paper's rows from several runs (folds x seeds), with their t interval.

    Parameters
    ----------
    item, row : str
        "table_2" with "train" or "test"; "table_3" (row is not used; gives the macro AUC too); "table_4" with a model.
    runs : list of DataFrame
        Graded frames, one per run; those of the first seed first.
    fold : int, optional
        The fold that the report shows, by `attrs["fold"]`; the first run's where no run has it.
    draws, seed : int
        Of the bootstrap, as everywhere else in the report.

    Returns
    -------
    dict
        (item, row, metric) -> `Ours` in the published unit, for `scorecard`: mean and t interval; the note has the group
        bootstrap of the shown fold, because runs are graded on the same pictures and their interval says nothing of others.
    """
    if not runs:
        return {}
    values = pd.DataFrame([_values(item, row, graded) for graded in runs])
    shown = next((graded for graded in runs if graded.attrs.get("fold") == fold), runs[0])
    beside = _bootstrap(item, row, shown, draws, seed)
    return {key: Ours(*stats.run_interval(values[key]), beside.get(key, "")) for key in values}


def beside(reason):
    """The group-bootstrap interval that `measured` put into a reason, e.g. '12.1 to 19.9'; empty without one."""
    found = _BESIDE.search(reason)
    return f"{found[1]} to {found[2]}" if found else ""


def _bootstrap(item, row, graded, draws, seed):
    predicted = graded[metrics.PROBABILITIES].to_numpy().argmax(1)
    drawn = stats.group_bootstrap(graded["kl_grade"], predicted, graded["group_id"], draws, seed)
    if item == "table_3":
        found = zip(("sensitivity", "specificity"), metrics.rates(drawn), strict=True)
        draws = {(item, str(grade), name): values[:, grade] for name, values in found for grade in range(metrics.K)}
    else:
        draws = {(item, row, name): values for name, values in metrics.from_confusion(drawn).items()}
    intervals = {key: stats.interval(100 * values) for key, values in draws.items()}
    fold = graded.attrs.get("fold", 1)
    return {key: f"group bootstrap of fold {fold} alone: {low:.1f} to {high:.1f}" for key, (low, high) in intervals.items() if math.isfinite(low)}


def agreement(value, published, tolerance):
    """The verdict on a mean over runs, and how far it is off.

    Parameters
    ----------
    value : Ours
        Mean and t interval over runs (NaN bounds below five).
    published, tolerance : float
        In the same unit.

    Returns
    -------
    (verdict, reason) : str
    """
    # The order of the questions is part of the rule.
    off, half = value.value - published, (value.ci_high - value.ci_low) / 2
    if not math.isfinite(half):
        return "inconclusive", f"ours differs by {off:+.3g}; fewer than {stats.FEWEST_RUNS} runs give no interval"
    if abs(off) <= tolerance and value.ci_low <= published <= value.ci_high:
        return "replicated", f"ours differs by {off:+.3g}"
    if half > tolerance:
        return "inconclusive", f"ours differs by {off:+.3g}; half-width {half:.3g}"
    return "not replicated", f"ours differs by {off:+.3g}"


def same_as_printed(found, printed, count):
    """Whether a number found in a source is the printed one, which may be rounded.

    A count from 1,000 on is taken as rounded at its last digit that is not zero (1,251,655 may be printed as 1,300,000, not as
    1,200,000), any other number at its last printed decimal. Cut digits do not agree, as in the arithmetic.
    """
    return bool(abs(found - printed) <= _unit(printed, count) / 2 + 1e-9)


def _unit(printed, count):
    # Of the last digit that counts as printed.
    step = _step(printed)
    return step if count and printed >= LARGE_COUNT else min(step, 1)


def _step(printed):
    # The unit of the last digit that is not zero.
    return 10.0 ** Decimal(str(printed)).normalize().as_tuple().exponent


def needs_model(scorecard):
    """Whether each row needs a trained model; the others compare printed numbers, counts and timings."""
    return ~scorecard["rule"].isin(WITHOUT_MODEL)


def whole_counts(rows):
    """The scorecard with counts as whole numbers and an infinite value as `NONE`, for showing; other numbers stay as they are."""
    def number(value, unit):
        if math.isinf(value):
            return NONE
        return int(value) if unit == "count" and math.isfinite(value) and value == int(value) else value

    shown = {column: pd.Series([number(*pair) for pair in zip(rows[column], rows["unit"], strict=True)], rows.index, object) for column in ("published", "ours")}
    return rows.assign(**shown)


def sentence(scorecard):
    """The tally in words: rows that need a trained model and rows that need none, apart."""
    alone = ~needs_model(scorecard)
    return (f"Of the {(~alone).sum()} rows that need a trained model, {_tally(scorecard[~alone])}. "
            f"Of the {alone.sum()} rows that need none (counts, repeated and cited numbers, timings, arithmetic), {_tally(scorecard[alone])}; "
            "these say nothing about how well the model grades.")


def _tally(rows):
    counts = rows["verdict"].value_counts()
    said = [f"{counts[verdict]} {'are' if counts[verdict] > 1 else 'is'} {verdict}" for verdict in VERDICTS if verdict in counts]
    return ", ".join(said) or "none is judged"


def _by_key(published):
    columns = [*(["system"] if "system" in published else []), "item", "row", "metric"]
    keys = list(published[columns].astype(str).itertuples(index=False, name=None))
    twice = [key for number, key in enumerate(keys) if key in keys[:number]]
    if twice:
        raise StudyError(f"The published numbers hold {twice[0]} twice. Keep one row.")
    return dict(zip(keys, published.itertuples(), strict=True))


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


def _judged(row, value, comparable, reason):
    rule = _rule(row)
    if row.kind == "model" and not isinstance(value, str) and math.isinf(value[0]):
        return np.inf, np.nan, np.nan, rule, *(("not replicated", Ours(*value).note) if comparable else ("not comparable", _joined(reason, Ours(*value).note)))
    if isinstance(value, str) or not math.isfinite(value[0]):
        missing = value if isinstance(value, str) else Ours(*value).note or "undefined in this run"
        return np.nan, np.nan, np.nan, rule, "not run", missing.removeprefix("not run: ")
    value = Ours(*value)
    if row.kind == "model" and not comparable:
        verdict, why = "not comparable", reason
    elif row.kind == "model" and row.relation != "<":
        verdict, why = agreement(value, row.value, TOLERANCE.get(row.unit, 0.0))
    else:
        verdict, why = ("replicated" if _holds(row, value.value) else "not replicated"), _caution(row, value.value)
    return *value[:3], rule, verdict, _joined(why, value.note, f"the paper's: {_note(row)}" if row.kind == "speed" else "")


def _caution(row, found):
    # What the verdict alone would hide: the hardware, or the plain cause of a number that does not agree.
    if row.kind == "speed":
        return "the rule's verdict for this machine; other hardware, so it says nothing about the printed time"
    unit = _unit(row.value, row.unit == "count")
    if _rule(row) == CITED and not _holds(row, found) and 0 < found - row.value < unit:
        return f"holds when digits are cut, not by rounding: rounded, {found:,.{_places(unit)}f} is {row.value + unit:,.{_places(unit)}f}"
    return ""


def _places(unit):
    return max(0, -Decimal(str(unit)).normalize().as_tuple().exponent)


def _rule(row):
    if row.kind == "model":
        return f"below {row.value:g}" if row.relation == "<" else MODEL_RULE.format(f"{TOLERANCE.get(row.unit, 0.0):g}")
    rules = {"fact": CITED if hasattr(row, "system") else COUNTED, "citation": CITED, "speed": TIMED}
    if row.kind not in rules:
        raise StudyError(f"The published row {row.item}, {row.row}, {row.metric} has the kind '{row.kind}'; known: model, duplicate, {', '.join(rules)}.")
    return rules[row.kind]


def _holds(row, value):
    rule = _rule(row)
    if rule == CITED:
        return same_as_printed(value, row.value, row.unit == "count")
    if rule == COUNTED:
        return value == row.value
    return value <= row.value if rule == TIMED else value < row.value


def _repeated(row, known):
    twin = known.get(("table_2", "test", row.metric))
    if twin is None:
        raise StudyError(f"The published row {row.item}, {row.row}, {row.metric} repeats no row of table 2. Correct its kind.")
    verdict = "replicated" if math.isclose(twin.value, row.value, abs_tol=1e-9) else "not replicated"
    return twin.value, np.nan, np.nan, REPEATED, verdict, _joined(f"table 2 prints {twin.value:.2f}", _note(row))


def _note(row):
    return row.note if isinstance(row.note, str) else ""


def _joined(*parts):
    return "; ".join(dict.fromkeys(part for part in parts if part))
