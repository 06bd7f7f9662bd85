"""The paper's claims in words, each decided by the test that `published/claims.csv` names for it."""

import math
from functools import partial
from itertools import combinations, product

import numpy as np

from koa_lib import metrics, stats
from koa_lib.comparison import SIGNIFICANT
from koa_lib.errors import StudyError
from koa_lib.paper.tables import CLIP
from koa_lib.predictions import arrays
from koa_lib.verdict import Answer, decided, not_run, over_runs

ORDER = (CLIP, "ViT", "ResNet50", "MobileNet", "VGG19")
TESTED = "Wide ResNet"
NEARLY = 0.95  # share of one answer from which on a model is said to give nearly one grade
DISTANCE = np.abs(np.subtract.outer(np.arange(metrics.K), np.arange(metrics.K)))


def decide(test, models, draws, seed):
    """The `Answer` to the claim that is decided by this test.

    Parameters
    ----------
    models : dict of str to DataFrame or str
        Graded external pictures of the shown fold by model ("Fine-tuned CLIP" and the baselines), or why
        there are none.
    draws, seed : int
        Of the bootstrap.

    Raises
    ------
    StudyError
        When no function decides the test.
    """
    clip = models[ORDER[0]]
    deciding = {
        "order of the five accuracies, paired group-bootstrap intervals of neighbours":
            partial(order, models, draws, seed),
        "share of errors with distance 1; lead of the two confusions over all others; with intervals":
            partial(adjacent, clip, draws, seed),
        "lead of grades 0 and 4 in sensitivity and AUC, with interval": partial(separated, clip, draws, seed),
    }
    if test not in deciding:
        known = "; ".join(deciding)
        raise StudyError(f"claims.csv names the test '{test}', which nothing decides. Known: {known}.")
    return deciding[test]()


def order(models, draws, seed):
    """Whether external accuracy falls from CLIP over ViT, ResNet50 and MobileNet to VGG19.

    *Replicated* when the paired group-bootstrap intervals of all four neighbour differences lie above 0, *not
    replicated* when any pair, neighbours or not, is clearly the other way round, else *inconclusive*. Ours is
    the smallest neighbour difference, in points.
    """
    missing = dict.fromkeys(models[name] for name in ORDER if isinstance(models[name], str))
    if missing:
        return not_run("; ".join(missing))
    pairs = {(a, b): _difference(models[a], models[b], draws, seed) for a, b in combinations(ORDER, 2)}
    neighbours = [pairs[pair] for pair in zip(ORDER, ORDER[1:], strict=False)]
    turned = ", ".join(f"{b} over {a}" for (a, b), gap in pairs.items() if gap[2] < 0)
    clear = all(gap[1] > 0 for gap in neighbours)
    verdict = decided(clear, turned)
    accuracies = ", ".join(f"{name} {100 * _accuracy(models[name]):.1f}" for name in ORDER)
    said = [
        f"accuracies in per cent: {accuracies}",
        f"clearly the other way round: {turned}" * bool(turned),
        one_grade({name: models[name] for name in ORDER}),
        "ours is the smallest difference of neighbours",
    ]
    return Answer(*min(neighbours), "points", verdict, "; ".join(filter(None, said)))


def one_grade(models):
    """Which models answer (nearly) one grade, so that their accuracy is a constant's; empty when none does.

    Parameters
    ----------
    models : dict of str to DataFrame or str
        Graded frames by model, or why there are none.
    """
    alike = {}
    for name, graded in models.items():
        if isinstance(graded, str) or not len(graded):
            continue
        grades, probabilities = arrays(graded)
        counts = np.bincount(probabilities.argmax(1), minlength=metrics.K)
        most, grade, n = counts.max(), int(counts.argmax()), len(grades)
        if most / n >= NEARLY:
            constant = f"{100 * (grades == grade).mean():.1f} %"
            alike.setdefault((grade, constant), []).append(f"{name} (for {most:,} of {n:,} pictures)")
    return "; ".join(
        f"{', '.join(names)}: nearly always grade {grade}, which for every picture reaches {constant}"
        for (grade, constant), names in alike.items()
    )


def ahead(tests, tested=""):
    """Whether CLIP beats the Wide ResNet by McNemar's exact test; ours is p.

    *Replicated* when p < 0.05 and CLIP is ahead, else *not replicated*: the claim is significance on this
    set.

    Parameters
    ----------
    tests : DataFrame or str
        As from `comparison.paired_tests`, or why there are none.
    tested : DataFrame or str
        The baseline's graded frame: the reason says when it answers nearly one grade.
    """
    found = tests if isinstance(tests, str) else tests[tests["baseline"] == TESTED]
    if isinstance(found, str) or not len(found):
        return not_run(found if isinstance(found, str) else f"this run has no {TESTED}")
    row = found.iloc[0]
    if not math.isfinite(row.p_exact):
        return not_run("no picture is paired")
    verdict = "replicated" if row.p_exact < SIGNIFICANT and row.difference > 0 else "not replicated"
    off, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    said = [
        f"CLIP minus {TESTED} {off:+.1f} points ({low:+.1f} to {high:+.1f})",
        f"only CLIP right on {row.clip_only:.0f} of {row.n:,.0f} single knees, "
        f"only {TESTED} on {row.baseline_only:.0f}",
        one_grade({TESTED: tested}),
    ]
    return Answer(float(row.p_exact), math.nan, math.nan, "p", verdict, "; ".join(filter(None, said)))


def adjacent(graded, draws, seed):
    """Whether errors are mostly between adjacent grades, above all 0-1 and 1-2; ours is their share.

    *Replicated* when the interval of the share lies above 0.5 and those two confusions, either way round, are
    clearly commoner than every other; *not replicated* when the interval lies below 0.5 or another confusion
    is clearly commoner than one of them; else *inconclusive*.
    """
    if isinstance(graded, str):
        return not_run(graded)
    matrices = stats.resampled(graded, draws, seed)
    found = stats.with_interval("share", _adjacent_share(matrices))
    cells = _cells(matrices)
    named = cells.pop((0, 1)), cells.pop((1, 2))
    _, commonest = _leads([a - b for a, b in product(named, cells.values())])
    holds = found["share_low"] > 0.5 and commonest == "replicated"
    fails = found["share_high"] < 0.5 or commonest == "not replicated"
    return Answer(*found.values(), "ratio", decided(holds, fails), _confusions(matrices[0]))


def train_test_drop(results):
    """Training accuracy minus external accuracy of the same run, in points, as `Ours` over the runs."""
    return over_runs([
        100 * (_accuracy(run.graded(split="train")) - _accuracy(run.graded(split="external")))
        for _, run in results.each("seed", "fold")
    ])


def separated(graded, draws, seed):
    """Whether grades 0 and 4 have the two highest sensitivities and the two highest AUCs.

    *Replicated* when the intervals of all their leads over grades 1 to 3 lie above 0, *not replicated* when
    any lies below, else *inconclusive*. Ours is the smallest lead.
    """
    if isinstance(graded, str):
        return not_run(graded)
    values = {"sensitivity": metrics.rates(stats.resampled(graded, draws, seed))[0],
              "AUC": stats.resampled_auc(graded, draws, seed)}
    smallest, verdict = _leads([drawn[:, a] - drawn[:, b] for drawn, a, b
                                in product(values.values(), (0, 4), (1, 2, 3))])
    told = "; ".join(f"{name} {', '.join(f'{value:.2f}' for value in drawn[0])}"
                     for name, drawn in values.items())
    reason = f"grades 0 to 4: {told}; ours: the smallest lead of grade 0 or 4 over one of 1 to 3"
    return Answer(*smallest, "ratio", verdict, reason)


def _leads(differences):
    # The smallest of some leads, each a value and its draws, as (value, low, high), an undefined one before
    # all; and the verdict on 'all are above 0'.
    gaps = [tuple(stats.with_interval("lead", difference).values()) for difference in differences]
    clear, turned = all(low > 0 for _, low, _ in gaps), any(high < 0 for _, _, high in gaps)
    return min(gaps, key=lambda gap: np.nan_to_num(gap[0], nan=-np.inf)), decided(clear, turned)


def _difference(a, b, draws, seed):
    gap = stats.gaps(a, b, ["accuracy"], draws, seed)
    return tuple(100 * gap[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))


def _accuracy(graded):
    grades, probabilities = arrays(graded)
    return float((probabilities.argmax(1) == grades).mean())


def _adjacent_share(cm):
    # Share of the errors with distance 1, over leading axes; NaN without errors.
    near, errors = ((cm * chosen).sum((-2, -1)) for chosen in (DISTANCE == 1, DISTANCE > 0))
    return np.divide(near, errors, out=np.full(errors.shape, np.nan), where=errors > 0)


def _cells(cm):
    # Confusions of two grades, either way round, over leading axes.
    return {(i, j): cm[..., i, j] + cm[..., j, i] for i, j in combinations(range(metrics.K), 2)}


def _confusions(cm):
    cells = _cells(cm)
    errors = sum(cells.values())
    if not errors:
        return "no picture is misgraded"
    top = sorted((pair for pair in cells if cells[pair]), key=lambda pair: -cells[pair])[:3]
    told = ", ".join(f"{i}-{j} ({cells[i, j]})" for i, j in top)
    return f"of {errors} errors the most are between grades {told}"
