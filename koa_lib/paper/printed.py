"""Numbers as the paper prints them, and what rounding can have done to them."""

from dataclasses import dataclass
from decimal import Decimal
from itertools import product

import numpy as np

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.paper import arithmetic

RUNS = range(2, 11)  # numbers of runs whose mean is tried for a percentage that one run cannot give


@dataclass(frozen=True)
class Printed:
    """A number, or an array of them, as printed."""

    value: np.ndarray
    decimals: int

    @property
    def half(self):
        """Half a unit of the last decimal: how far rounding can have moved the number."""
        return 0.5 * 10.0**-self.decimals

    @property
    def pair(self):
        """(value, half), as `slack` takes it."""
        return self.value, self.half

    def __getitem__(self, place):
        return Printed(self.value[place], self.decimals)


class Paper:
    """Look-up in `published/jpm2026.csv`.

    Raises
    ------
    StudyError
        When a row that is asked for is absent or stands twice.
    """

    def __init__(self, table):
        self.table = table

    def rows(self, **wanted):
        """Rows with these values, e.g. item="table_4", kind="model"."""
        chosen = [(self.table[column] == value).to_numpy() for column, value in wanted.items()]
        return self.table[np.logical_and.reduce(chosen)]

    def number(self, item, row, metric, column="value"):
        """One printed number; `column` is value, ci_low or ci_high."""
        found = self.rows(item=item, row=row, metric=metric)
        if len(found) != 1:
            raise StudyError(
                f"jpm2026.csv holds {len(found)} rows for {item}, {row}, {metric}; one is needed. Restore it."
            )
        return Printed(float(found[column].iloc[0]), self._decimals(item, metric, column))

    def grades(self, metric, column="value"):
        """The five numbers of table 3, grade 0 first."""
        numbers = [self.number("table_3", str(grade), metric, column) for grade in GRADES]
        return Printed(np.array([number.value for number in numbers]), numbers[0].decimals)

    def _decimals(self, item, metric, column):
        # 0.90 is read as 0.9: the numbers of one table and metric all have the decimals of the longest.
        alike = self.rows(item=item, metric=metric)
        values = alike.loc[alike["kind"] != "duplicate", column].dropna()
        return max(
            max((-Decimal(str(value)).normalize().as_tuple().exponent for value in values), default=0), 0
        )


def slack(function, *pairs):
    """Largest change of a function when its printed arguments are moved by rounding.

    Each argument moves as a whole, up or down, within 0 to 100: the worst case of functions that are
    monotone, in the same direction, in all numbers of an array.

    Parameters
    ----------
    function : callable
        Of as many numbers or arrays as there are pairs; gives a number or an array.
    pairs : (value, half)
        Half a unit of the last decimal, or arrays of them.
    """
    middle = function(*(value for value, _ in pairs))
    moved = [
        function(
            *(np.clip(value + sign * half, 0, 100) for sign, (value, half) in zip(signs, pairs, strict=True))
        )
        for signs in product((-1, 1), repeat=len(pairs))
    ]
    return np.abs(np.array(moved) - middle).max(axis=0)


def compare(check, unit, function, *printed):
    """Hold what follows from printed numbers against what is printed.

    Parameters
    ----------
    function : callable
        Of the values of `printed`; gives (value, expected).

    Returns
    -------
    (check, unit, value, expected, tolerance)
        Tolerance: the largest change of value - expected that rounding explains.
    """
    value, expected = function(*(number.value for number in printed))
    tolerance = slack(lambda *numbers: np.subtract(*function(*numbers)), *(number.pair for number in printed))
    return check, unit, float(value), float(expected), float(tolerance)


def unpaired(rows):
    """Rows (check, unit, value, note) against which nothing printed stands, in the form of the others."""
    return [(check, unit, value, np.nan, np.nan, note) for check, unit, value, note in rows]


def attained(name, printed, n):
    """Hold a printed percentage against the nearest one that whole pictures of n can give.

    Returns
    -------
    (check, unit, value, expected, tolerance, note)
    """
    note = _attainable(printed.value, n, printed.decimals)
    check = f"{name} nearest to k of {n}"
    return check, "percent", arithmetic.nearest(printed.value, n), printed.value, printed.half, note


def _attainable(percent, n, decimals):
    if arithmetic.grim(percent, n, 1, decimals):
        return "attainable from one run"
    if arithmetic.grim(percent, n, 1, decimals, truncated=True):
        return "attainable from one run when decimals are cut, not by rounding"
    means = [runs for runs in RUNS if arithmetic.grim(percent, n, runs, decimals)]
    means = (
        f"a mean of {', '.join(map(str, means))} runs can"
        if means
        else f"no mean of up to {max(RUNS)} runs can"
    )
    said = f"{means}, as can a bootstrap mean or another subset"
    return f"not attainable from one run, by rounding or truncation; {said}"
