"""How networks and frozen embeddings compare task by task, and what that says about the claims of Chavoshi et
al. 2025.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from koa_lib import stats
from koa_lib.baselines import described
from koa_lib.embeddings import CLASSIFIERS, TASKS, label
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.published import read as read_published
from koa_lib.paper.scorecard import Ours
from koa_lib.protocols import START

SYSTEM, ITEM = "JIIM-2025", "abstract"
MARGIN = (
    0.05  # of quadratic kappa: two encoders are alike when the interval of their difference lies inside it
)
HIGHER, LOWER = "network higher", "embeddings higher"
ALIKE, APART, UNCLEAR = "alike", "apart", "unclear"
_METRICS = {"linear_kappa": "linear_kappa", "qwk": "qwk", "macro_auc": "levels_auc"}  # column by metric
_ENDS = ("", "_low", "_high")


def systems(study):
    """How each system is run.

    Returns
    -------
    DataFrame
        system, kind, how, met (what a stand-in has learnt from before), run ('yes', or why not).
    """
    settings = study.profile.systems.embeddings
    once = (
        ""
        if settings.per_task
        else "; one network, trained on KL grades: findings by logistic regression on its frozen features"
    )
    rows = [
        (label(spec), "frozen encoder", *_encoder_said(study, spec), spec.reason or "yes")
        for spec in settings.encoders
    ]
    rows += [
        (spec.name, "supervised network", described(spec) + once, "", spec.reason or "yes")
        for spec in settings.networks
    ]
    return pd.DataFrame(rows, columns=["system", "kind", "how", "met", "run"])


def _encoder_said(study, spec):
    # How an encoder is run, and what a stand-in has met before: it is no blind foundation model.
    model, labels, size = study.profile.model, study.profile.systems.labels, f"{spec.image_size} px"
    captions = "nothing"
    if model.start == "pretrain":
        captions = f"{study.profile.pretraining.pictures:,} other phantoms with captions of their findings"
    told = {
        "start": (f"image tower of {model.name} ({START[model.start]})", captions),
        "trained": (
            f"image tower of {model.name} as our protocol trained it on KL grades",
            "the KL grades of the same training split: it is a supervised network",
        ),
        "dino": (
            "the self-supervised tower of the study of label efficiency",
            f"at most {labels.pictures:,} pictures of the same training split, without labels",
        ),
        "random": (f"{spec.architecture}, width x {spec.width:g}, random weights", "nothing"),
    }
    if spec.source in told:
        how, met = told[spec.source]
        return f"stand-in for {spec.name}: {how}, {size}", met
    return f"{spec.name}, {'random weights (dry run)' if study.dry else 'published weights'}, {size}", ""


def results(study, comparison):
    """Metrics of every system on every task and part, each with its 95 % group-bootstrap interval.

    Parameters
    ----------
    study : Study
    comparison : embeddings.Comparison
        After its `run`.

    Returns
    -------
    DataFrame
        task, system; encoder ('' for a network) and grader (classifier or network), the two parts of its
        name; part (split), n, accuracy, then linear_kappa, qwk, levels_auc (mean over the levels, each
        against the rest) each with _low and _high; fitted_on, chosen_on, chosen, inner_qwk: what the inner
        part of the training chose. Networks come first in each task.
    """
    rows = []
    for (system, task, part), graded in comparison.frames.items():
        summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
        encoder, _, grader = system.rpartition(" + ")
        row = {
            "task": TASKS[task],
            "system": system,
            "encoder": encoder,
            "grader": grader,
            "part": part,
            "n": len(graded),
            "accuracy": summary.value["accuracy"],
        }
        for metric, name in _METRICS.items():
            values = summary.loc[metric, ["value", "ci_low", "ci_high"]]
            row |= {f"{name}{end}": value for end, value in zip(_ENDS, values, strict=True)}
        rows.append(row)
    table = pd.DataFrame(rows).assign(
        place=lambda table: table["task"].map(list(TASKS.values()).index),
        embedded=lambda table: table["encoder"] != "",
    )
    table = table.sort_values(["place", "embedded"], kind="stable").drop(columns=["place", "embedded"])
    return table.merge(pd.DataFrame(comparison.chosen), on=["task", "system"], how="left")


def differences(study, frames, pairs, split):
    """Kappas of one system minus those of another on the same pictures, each with its paired 95 %
    group-bootstrap interval.

    Parameters
    ----------
    pairs : list of (str, str)
        Systems.

    Returns
    -------
    DataFrame
        task, first, second, n, first_qwk, second_qwk, then qwk_difference and linear_kappa_difference each
        with _low and _high.
    """
    rows = []
    for task, title in TASKS.items():
        for a, b in pairs:
            if (a, task, split) in frames and (b, task, split) in frames:
                both = stats.paired(frames[a, task, split], frames[b, task, split])
                gap, linear = (
                    stats.difference(both, name, study.profile.draws, study.seed)
                    for name in ("qwk", "linear_kappa")
                )
                rows.append(
                    [title, a, b, len(both), gap["a"], gap["b"]]
                    + [one[name] for one in (gap, linear) for name in ("difference", "ci_low", "ci_high")]
                )
    return pd.DataFrame(
        rows,
        columns=[
            "task",
            "first",
            "second",
            "n",
            "first_qwk",
            "second_qwk",
            *(f"{name}_difference{end}" for name in ("qwk", "linear_kappa") for end in _ENDS),
        ],
    )


def compared(study, comparison):
    """Networks against embeddings with XGBoost, and the encoders against each other with both classifiers, on
    the unseen split.

    Returns
    -------
    DataFrame
        Columns of `differences` and outcome: `HIGHER` or `LOWER` where the paired interval of (network minus
        embeddings) excludes 0; `ALIKE` where that of two encoders lies inside +-`MARGIN`, `APART` where it
        lies outside altogether; else `UNCLEAR`.
    """
    settings, frames = study.profile.systems.embeddings, comparison.frames
    names = [label(spec) for spec in settings.encoders]
    unseen = next((split for _, _, split in frames if split != "external"), "test")
    against = [(network.name, f"{name} + XGBoost") for network in settings.networks for name in names]
    gaps = differences(study, frames, against, unseen)
    between = [(f"{a} + {kind}", f"{b} + {kind}") for kind in CLASSIFIERS for a, b in combinations(names, 2)]
    apart = differences(study, frames, between, unseen)
    return pd.concat(
        [
            gaps.assign(outcome=_outcomes(gaps, 0, HIGHER, LOWER, UNCLEAR)),
            apart.assign(outcome=_outcomes(apart, MARGIN, APART, APART, ALIKE)),
        ],
        ignore_index=True,
    )


def _outcomes(table, margin, above, below, inside):
    # By the interval: above the margin, below minus the margin, or between the two; else unclear.
    low, high = table["qwk_difference_low"], table["qwk_difference_high"]
    return np.select(
        [low > margin, high < -margin, (low > -margin) & (high < margin)], [above, below, inside], UNCLEAR
    )


def beaten(table, absent):
    """Whether supervised networks beat embeddings with XGBoost on all tasks, from the rows of `compared`
    (network minus embeddings).

    *Replicated* when every interval lies above 0 and no task or system is missing, *not replicated* when any
    lies below 0, else *inconclusive*. Ours is the smallest difference."""
    if table.empty:
        return _nothing(absent, "no pair of systems has been run")
    above, below = table["outcome"] == HIGHER, table["outcome"] == LOWER
    verdict = (
        "not replicated" if below.any() else "replicated" if above.all() and not absent else "inconclusive"
    )
    least = table.loc[table["qwk_difference"].idxmin()]
    return _answer(
        least,
        verdict,
        f"{above.sum()} of {len(table)} intervals lie above 0, {below.sum()} below; smallest",
        absent,
    )


def alike(table, absent):
    """Whether two encoders perform similarly, from the rows of `compared` between them with XGBoost.

    *Replicated* when every interval lies inside +-`MARGIN` and no task or system is missing, *not replicated*
    when any lies outside altogether, else *inconclusive*. Ours is the largest difference in size."""
    if table.empty:
        return _nothing(absent, "no pair of encoders has been run")
    inside, outside = table["outcome"] == ALIKE, table["outcome"] == APART
    verdict = (
        "not replicated" if outside.any() else "replicated" if inside.all() and not absent else "inconclusive"
    )
    most = table.loc[table["qwk_difference"].abs().idxmax()]
    return _answer(
        most,
        verdict,
        f"{inside.sum()} of {len(table)} intervals lie inside ±{MARGIN:g}, "
        f"{outside.sum()} outside it; largest",
        absent,
    )


def _nothing(absent, otherwise):
    return not_run("; ".join(dict.fromkeys(absent.values())) or otherwise)


def _answer(row, verdict, reason, absent):
    missing = [f"{name} not run: {why}" for name, why in absent.items()]
    reason = "; ".join([f"{reason}: {row['first']} minus {row['second']}, {row.task}", *missing])
    return Answer(
        row.qwk_difference, row.qwk_difference_low, row.qwk_difference_high, "kappa", verdict, reason
    )


def answers(study, comparison, results, table, check):
    """What this run answers to the paper's numbers and claims, for `paper.answers.keep`.

    Parameters
    ----------
    results, table : DataFrame
        From `results` and `compared`.
    check : modality.Check
    """
    how = systems(study).set_index("system")["how"]
    against = table[table["first"].isin([spec.name for spec in study.profile.systems.embeddings.networks])]
    between = table.drop(against.index)
    decided = {
        "difference per task": beaten(against, comparison.absent),
        "difference with interval": alike(
            between[between["second"].str.endswith("XGBoost")], comparison.absent
        ),
        "quality measures of failures against successes": check.claim(),
    }
    claims = read_published(study.published, "claims").query("source == @SYSTEM and test in @decided")
    return {
        (SYSTEM, ITEM, "ConvNeXt-Small KLG", "weighted_kappa"): kappa_row(
            results, "ConvNeXt-Small", comparison.absent, how["ConvNeXt-Small"]
        ),
        (SYSTEM, ITEM, "BiomedCLIP zero-shot", "modality_accuracy"): modality_row(
            check, how[label(check.spec)]
        ),
        **{
            (SYSTEM, ITEM, claim): decided[test]
            for claim, test in zip(claims["claim"], claims["test"], strict=True)
        },
    }


def kappa_row(table, system, absent, how):
    """A system's weighted kappa of KL grades on the unseen split for the scorecard, from `results`: `Ours`,
    or why there is none.

    The paper does not say which weights: the quadratic kappa stands in the row; both, their intervals and how
    the network was run stand in its note."""
    found = table[
        (table["system"] == system) & (table["task"] == TASKS["kl_grade"]) & (table["part"] != "external")
    ]
    if found.empty:
        return absent.get(system, f"this run has no {system}")
    row = found.iloc[0]
    said = f"{how}: quadratic weights; with linear ones {row.linear_kappa:.3f}"
    note = f"{said}; another test set than the paper's, whose weights are not stated"
    return Ours(float(row.qwk), note=note, runs=1, boot_low=float(row.qwk_low), boot_high=float(row.qwk_high))


def modality_row(check, how):
    """The share of knees that are recognised, in per cent, for the scorecard: `Ours`, or why there is
    none.
    """
    if check.absent:
        return check.absent
    row = check.knees()
    low, high = (f"{100 * end:.1f}" for end in (row.ci_low, row.ci_high))
    return Ours(
        100 * row.value, note=f"{how}; wording: {row.wording}; Wilson interval {low} to {high} %, n = {row.n}"
    )
