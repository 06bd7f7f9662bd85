"""How another cohort differs from the one trained on, and what adaptation with knowledge of it gains.

Whatever uses the other cohort's pictures or grades to adapt is a secondary result, never the external result itself.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "qwk")
PRIOR_TOLERANCE = 1e-3


def reweight(cm, target_counts):
    """Accuracy that a confusion matrix gives under another grade mix, its rows kept as they are.

    Parameters
    ----------
    cm : array (..., 5, 5)
        Rows true, columns predicted.
    target_counts : array (..., 5)
        Pictures (or shares) per true grade of the other cohort.

    Returns
    -------
    float or float array (...)
        Ratio; NaN when the target holds a grade that the matrix lacks, or no picture.
    """
    cm, target = np.asarray(cm, dtype=float), np.asarray(target_counts, dtype=float)
    if cm.shape[-2:] != (metrics.K, metrics.K) or target.shape[-1:] != (metrics.K,):
        raise StudyError(
            f"Re-weighting needs (5, 5) matrices and 5 counts each, not {cm.shape} and {target.shape}."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.diagonal(cm, axis1=-2, axis2=-1) / cm.sum(-1)
        accuracy = np.where(target > 0, recall * target, 0).sum(-1) / target.sum(-1)
    return float(accuracy) if accuracy.ndim == 0 else accuracy


def decomposition(internal, external, draws=1000, seed=0):
    """How much of an accuracy lost in another cohort its mix of grades explains.

    The label shift is what the external mix of grades alone would change, each grade being recognised as often as
    inside; the rest is other pictures, other readers and chance. Groups of both cohorts are resampled independently.

    Parameters
    ----------
    internal, external : DataFrame
        p0..p4, kl_grade, group_id; pictures that the model was not trained on, and those of the other cohort.

    Returns
    -------
    DataFrame
        part, value, ci_low, ci_high (ratios, 95 % percentile intervals), note (why a number is NaN or rests on fewer
        draws, else empty).
    """
    seeds = np.random.SeedSequence(seed).spawn(2)
    inner, outer = (
        _matrices(graded, draws, own) for graded, own in zip((internal, external), seeds, strict=True)
    )
    notes = _undefined(inner, outer)
    rows = []
    for part, values in _parts(inner, outer).items():
        low, high = (np.nan, np.nan) if np.isnan(values[0]) else stats.interval(values[1:])
        rows.append((part, float(values[0]), low, high, notes.get(part, notes["mixed"])))
    return pd.DataFrame(rows, columns=["part", "value", "ci_low", "ci_high", "note"])


def prior_correction(probabilities, priors, iterations=1000, tolerance=1e-6):
    """Probabilities adapted to a cohort whose mix of grades is unknown and estimated from them; no grade is used.

    Expectation maximisation of Saerens, Latinne and Decaestecker 2002. It presumes calibrated
    probabilities and that pictures of one grade look alike in both cohorts.

    Parameters
    ----------
    probabilities : array (n, 5)
        Of the pictures of the other cohort.
    priors : array (5,)
        Share of each grade among the pictures trained on; all above zero.
    iterations, tolerance
        It ends after so many steps, or when no share changes by more than the tolerance.

    Returns
    -------
    (adapted, estimated) : arrays (n, 5) and (5,)
        Probabilities under the estimated shares, and these; without pictures the shares are NaN.

    Raises
    ------
    StudyError
        When the priors are not five shares above zero that sum to 1, or a row is no probability distribution.
    """
    probabilities, priors = metrics.checked_probabilities(probabilities), np.asarray(priors, dtype=float)
    if priors.shape != (metrics.K,) or not (priors > 0).all() or abs(priors.sum() - 1) > PRIOR_TOLERANCE:
        raise StudyError(
            f"The priors must be {metrics.K} shares above zero that sum to 1, not {priors.tolist()}. "
            "Take them from the pictures trained on."
        )
    if not len(probabilities):
        return probabilities, np.full(metrics.K, np.nan)
    estimated = priors
    for _ in range(iterations):
        before, estimated = estimated, _posterior(probabilities, estimated / priors).mean(0)
        if np.abs(estimated - before).max() <= tolerance:
            break
    return _posterior(probabilities, estimated / priors), estimated


def few_shot(embeddings, graded, shots, draws=20, seed=0):
    """Grading of a cohort by a logistic regression that saw a few of its own pictures per grade.

    Each draw takes pictures at random, at most one of a group; all pictures of the drawn groups leave the test. The
    classifier is fixed beforehand (standardised embeddings, L2 penalty with C = 1): nothing is selected.

    Parameters
    ----------
    embeddings : array (n, d)
        One row for each row of `graded`.
    graded : DataFrame
        kl_grade, group_id.
    shots : int
        Pictures drawn per grade.

    Returns
    -------
    DataFrame
        shots, draw, n (test pictures), accuracy, balanced_accuracy, macro_f1, qwk (ratios over the grades that the
        test holds), best_constant (accuracy of the best single grade on the same pictures); one row per draw.

    Raises
    ------
    StudyError
        When a grade has not more than `shots` groups, or the embeddings do not fit the pictures.
    """
    grades, embeddings = metrics.checked_grades(graded["kl_grade"]), np.asarray(embeddings, dtype=float)
    codes, _ = stats.group_codes(graded["group_id"], len(grades))
    _check_few_shot(embeddings, grades, codes, shots, draws)
    rows = []
    for draw in range(draws):
        # The number of shots is no part of the seed, so that draws of more shots hold nearly all pictures of fewer.
        train, test = few_shot_split(grades, codes, shots, np.random.default_rng([seed, draw]))
        predicted = _few_shot_classifier().fit(embeddings[train], grades[train]).predict(embeddings[test])
        values = metrics.from_confusion(metrics.confusion(grades[test], predicted))
        row = {"shots": shots, "draw": draw, "n": len(test)} | {name: float(values[name]) for name in METRICS}
        rows.append(row | {"best_constant": metrics.best_constant(grades[test])["accuracy"]})
    return pd.DataFrame(rows)


def few_shot_summary(draws_table):
    """Means over the draws of `few_shot`; their spread is that of which pictures were labelled.

    Returns
    -------
    DataFrame
        shots, draws, then n, the metrics and best_constant as means; accuracy_low, accuracy_high (2.5th and 97.5th
        percentile), gain_low, gain_high (the same of the accuracy minus that of the best constant answer).
    """
    rows = []
    for shots, table in draws_table.groupby("shots"):
        row = {"shots": shots, "draws": len(table), **table[["n", *METRICS, "best_constant"]].mean()}
        row["accuracy_low"], row["accuracy_high"] = stats.interval(table["accuracy"])
        row["gain_low"], row["gain_high"] = stats.interval(table["accuracy"] - table["best_constant"])
        rows.append(row)
    return pd.DataFrame(rows)


def _matrices(graded, draws, seed):
    # The observed confusion matrix, then those of the bootstrap samples.
    grades, probabilities = metrics.checked(graded["kl_grade"], graded[metrics.PROBABILITIES])
    predicted = probabilities.argmax(1)
    drawn = stats.group_bootstrap(grades, predicted, graded["group_id"], draws, seed)
    return np.concatenate([metrics.confusion(grades, predicted)[None], drawn])


def _parts(inner, outer):
    inside, outside = (metrics.from_confusion(matrices)["accuracy"] for matrices in (inner, outer))
    expected = reweight(inner, outer.sum(-1))
    return {
        "internal accuracy": inside,
        "expected at the external grade mix": expected,
        "external accuracy": outside,
        "label shift": expected - inside,
        "rest": outside - expected,
    }


def _undefined(inner, outer):
    # Why a part is NaN, has no interval or rests on fewer draws: by part, and "mixed" for those that need both cohorts.
    inside, outside = (
        _too_few(matrices, name) for matrices, name in ((inner, "internal"), (outer, "external"))
    )
    lacking = (inner.sum(-1) == 0) & (outer.sum(-1) > 0)
    if lacking[0].any() and inner[0].any():
        grades = ", ".join(map(str, np.flatnonzero(lacking[0])))
        mixed = f"the internal predictions hold no picture of grade {grades}, which the external cohort has"
    elif inside or outside:
        mixed = inside or outside
    else:
        few = int(lacking.any(1).sum())
        mixed = (
            f"in {few} of {len(inner) - 1} draws the internal sample lacks a grade; "
            "the interval rests on the others"
            if few
            else ""
        )
    return {"internal accuracy": inside, "external accuracy": outside, "mixed": mixed}


def _too_few(matrices, name):
    if not matrices[0].any():
        return f"the {name} cohort has no pictures"
    return "" if matrices[1:].any() else f"the {name} cohort has one group, which cannot be resampled"


def _posterior(probabilities, ratio):
    weighted = probabilities * ratio
    return weighted / weighted.sum(1, keepdims=True)


def _check_few_shot(embeddings, grades, codes, shots, draws):
    if embeddings.ndim != 2 or len(embeddings) != len(grades):
        raise StudyError(
            f"{len(grades)} pictures need embeddings ({len(grades)}, d), not {embeddings.shape}. "
            "Embed the same pictures in the same order."
        )
    if not np.isfinite(embeddings).all():
        row = int((~np.isfinite(embeddings)).any(1).argmax())
        raise StudyError(
            f"Row {row + 1} of the embeddings holds a value that is no number. Embed the cohort again."
        )
    if shots < 1 or draws < 1:
        raise StudyError(
            f"Adaptation needs at least one picture per grade and one draw, not {shots} and {draws}."
        )
    for grade in GRADES:
        groups = len(np.unique(codes[grades == grade]))
        if groups <= shots:
            raise StudyError(
                f"Grade {grade} has {groups} group(s), too few to draw {shots} and test on another: "
                "take fewer shots."
            )


def few_shot_split(grades, codes, shots, generator):
    """Row numbers to train on, `shots` per grade and one per group, and those of all other groups."""
    order, used, drawn = generator.permutation(len(grades)), np.zeros(codes.max() + 1, dtype=bool), []
    # The grade with the fewest groups draws first, lest other grades use them up.
    for grade in sorted(GRADES, key=lambda grade: len(np.unique(codes[grades == grade]))):
        rows = order[(grades[order] == grade) & ~used[codes[order]]]
        rows = rows[np.sort(np.unique(codes[rows], return_index=True)[1])[:shots]]
        if len(rows) < shots:
            raise StudyError(
                f"Grade {grade} has too few groups left beside those drawn for other grades to draw {shots}: "
                "take fewer shots."
            )
        used[codes[rows]] = True
        drawn.append(rows)
    test = np.flatnonzero(~used[codes])
    if not len(test):
        raise StudyError(
            f"With {shots} shots per grade every group is drawn and none is left to test on: "
            "take fewer shots."
        )
    return np.concatenate(drawn), test


def _few_shot_classifier():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
