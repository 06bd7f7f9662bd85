"""What an experiment found: the predictions of arms as one long frame, and every table and interval made of
it."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES, arrays
from koa_lib.verdict import agreement, over_runs

# What may not be mixed in one graded frame; folds and seeds are averaged.
ONE_OF = ("arm", "split", "view", "mirrored")


@dataclass(frozen=True)
class Results:
    """Predictions of arms, read from their files and joined with the manifest.

    Attributes
    ----------
    frame : DataFrame
        arm, seed, fold, split, view ('<geometry>-<intensity>'), mirrored (bool), image_id, p0..p4, then
        kl_grade, kl_grade_reader2, group_id and more of the manifest; one row per prediction.
    draws, seed : int
        Of every bootstrap.

    Examples
    --------
    >>> results.table(["qwk"], by=["split"]).columns.tolist()
    ['split', 'n', 'qwk', 'qwk_low', 'qwk_high']
    >>> len(results.of(split="external").graded()) == len(results.graded(split="external"))
    True
    """

    frame: pd.DataFrame
    draws: int
    seed: int

    def of(self, **where):
        """The predictions with some values, e.g. ``of(split="external", fold=[1, 3])``."""
        kept = np.ones(len(self.frame), bool)
        for name, wanted in where.items():
            column = self.frame[name]
            kept &= column.isin(wanted if isinstance(wanted, (list, tuple, set, range)) else [wanted])
        return replace(self, frame=self.frame[kept])

    def __add__(self, other):
        return replace(self, frame=pd.concat([self.frame, other.frame], ignore_index=True))

    def __contains__(self, split):
        return split in self.splits

    @cached_property
    def splits(self):
        """Names of the splits, in order."""
        return list(self.frame["split"].unique())

    def each(self, *names):
        """Pairs (dict of the values of some columns, `Results` with them), in order of appearance."""
        for values, part in self.frame.groupby(list(names), sort=False):
            yield dict(zip(names, values, strict=True)), replace(self, frame=part)

    def graded(self, **where):
        """One row per picture: p0..p4 (means over folds and seeds where a picture has several), grades and
        groups.

        Folds that hold out other pictures stand one after the other. With predictions of mirror images beside
        those of the pictures, theirs are p0_b..p4_b.

        Raises
        ------
        StudyError
            No such prediction, or more than one arm, split or view.
        """
        found = self.of(**where)
        if not len(found.frame):
            raise StudyError(f"There are no predictions with {where}. Run the arm that makes them.")
        if "mirrored" not in where and found.frame["mirrored"].nunique() == 2:
            return stats.paired(*(found.graded(mirrored=way) for way in (False, True)))
        return _mean(found.frame)

    def table(self, names, by=("arm", "split"), level=0.95):
        """Metrics with group-bootstrap intervals for each value of some columns: those, n, `<name>`,
        `<name>_low`, `<name>_high`."""
        rows = [{**where, **part.measured(names, level)} for where, part in self.each(*by)]
        ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
        return pd.DataFrame(rows, columns=[*by, "n", *ends])

    def measured(self, names, level=0.95, **where):
        """`stats.measured` of `graded`."""
        return stats.measured(self.graded(**where), names, self.draws, self.seed, level)

    def averaged(self, names, over="seed", like=None):
        """Means over trainings of `stats.samples`, the same groups drawn for each.

        Parameters
        ----------
        over : str
            Column that tells the trainings apart.
        like : DataFrame, optional
            A graded frame whose order and groups the draws follow, so that two means can be held against each
            other.

        Returns
        -------
        (dict of str to float array (1 + draws,), dict of str to float array (trainings,))
            The means, and the value of each training.
        """
        frames = [part.graded() for _, part in self.each(over)]
        like = frames[0] if like is None else like
        found = [stats.samples(stats.aligned(frame, like), names, self.draws, self.seed) for frame in frames]
        values = {name: np.array([one[name] for one in found]) for name in names}
        means = {name: drawn.mean(axis=0) for name, drawn in values.items()}
        return means, {name: drawn[:, 0] for name, drawn in values.items()}

    def deduplicated(self):
        """Without external pictures that repeat others or whose grades conflict."""
        outside = self.frame["split"] == "external"
        if not outside.any():
            return self
        pictures = self.frame[outside].drop_duplicates("image_id")
        kept = ~outside | self.frame["image_id"].isin(sets.subset(pictures, "deduplicated"))
        return replace(self, frame=self.frame[kept])

    def gaps(self, pairs, names, by=("split",), level=0.95):
        """Paired differences of arms: first, second, the columns of `by`, then as `stats.gaps`; pairs that
        lack an arm are left out."""
        rows = []
        for where, part in self.each(*by):
            held = set(part.frame["arm"])
            rows += [
                {"first": a, "second": b, **where, **part.gap(a, b, names, level)}
                for a, b in pairs
                if {a, b} <= held
            ]
        return pd.DataFrame(rows)

    def gap(self, first, second, names, level=0.95):
        """`stats.gaps` of two arms."""
        return stats.gaps(
            self.graded(arm=first), self.graded(arm=second), names, self.draws, self.seed, level
        )

    def verdict(self, name, published, margin, **where):
        """Whether trainings (folds x seeds) replicate a published value of a metric, see `verdict.agreement`.

        Parameters
        ----------
        published, margin : float
            In the metric's own unit, e.g. ``verdict("accuracy", 0.7694, 0.03, split="external")``.

        Returns
        -------
        (verdict, reason) : str
        """
        runs = [part.graded() for _, part in self.of(**where).each("seed", "fold")]
        return agreement(over_runs([metrics.summary(*arrays(run))[name] for run in runs]), published, margin)


def _mean(frame):
    mixed = [name for name in ONE_OF if frame[name].nunique() > 1]
    if mixed:
        raise StudyError(
            f"Predictions of several values of '{mixed[0]}' "
            f"({', '.join(map(str, frame[mixed[0]].unique()))}) stand in one table: choose one."
        )
    first = frame.drop_duplicates("image_id").reset_index(drop=True)
    if len(first) == len(frame):
        return first
    times = frame["image_id"].value_counts()
    if times.nunique() > 1:
        raise StudyError(
            f"Trainings to be averaged list different pictures: '{times.idxmax()}' {times.max()} times, "
            f"'{times.idxmin()}' {times.min()}. Choose folds and seeds that grade the same."
        )
    mean = frame.groupby("image_id", sort=False)[PROBABILITIES].mean().loc[first["image_id"]].to_numpy()
    return first.assign(**dict(zip(PROBABILITIES, (mean / mean.sum(1, keepdims=True)).T, strict=True)))
