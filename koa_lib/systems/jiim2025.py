"""Frozen embeddings or a trained network? JIIM 2025 (Chavoshi et al., doi:10.1007/s10278-025-01636-x).

Encoders with simple classifiers, and supervised networks, learn each finding on the official training split,
are chosen on its inner patient split, and report the unseen split and the external cohort.
"""

from dataclasses import replace
from functools import partial
from itertools import combinations, product

import numpy as np
import pandas as pd

from koa_lib import networks, protocols, splits, weights
from koa_lib.arm import Trunk
from koa_lib.classifiers import BOOSTED, KINDS, LOGISTIC, Classifier, chosen
from koa_lib.store import made_from
from koa_lib.systems import encoders, modality
from koa_lib.verdict import Answer, Ours, decided, not_run

SYSTEM = ("JIIM-2025", "abstract")
# The KL grade comes first: by it the external set loses pictures under conflicting grades, for every task.
TASKS = {
    "kl_grade": "KL grade",
    "osteophytes": "osteophytes",
    "jsn": "joint-space narrowing",
    "sclerosis": "sclerosis",
}
METRICS = ("accuracy", "linear_kappa", "qwk", "macro_auc")
# Of quadratic kappa: two encoders are alike when the interval of their difference lies inside it.
MARGIN = 0.05
HIGHER, LOWER = "network higher", "embeddings higher"
ALIKE, APART, UNCLEAR = "alike", "apart", "unclear"


def arms(experiment, task):
    """The arms of a task with the names of their systems: '<network>' or '<encoder> + <classifier>'."""
    settings = experiment.study.profile.systems.embeddings
    for spec in settings.networks:
        if not spec.reason:
            yield spec.name, _network(experiment, spec, task)
    for spec, kind in product(settings.encoders, KINDS):
        if not spec.reason:
            name = f"{label(spec)}-{kind}-{task}".lower().replace(" ", "_")
            build = Classifier(kind, settings.trees)
            yield f"{label(spec)} + {kind}", encoders.arm(experiment, spec, name, build, task=task)


def label(spec):
    """An encoder's name in a row: a stand-in is never called by the bare name."""
    return spec.name if spec.source in weights.FOUNDATIONS else f"{spec.name} stand-in"


def _network(experiment, spec, task):
    study, start = experiment.study, f"network-{spec.name}-".lower()
    recipe = replace(study.profile.our_protocol, folds=0, views=1)
    make = partial(protocols.network_arm, study, spec, recipe=recipe, scheme="official")
    if study.profile.systems.embeddings.per_task or task == "kl_grade":
        return make(start + task, task=task)
    # One network for all: findings are read from its frozen features.
    graded = make(f"{start}kl_grade")
    job = experiment.job(graded)
    trunk = Trunk(graded.name, partial(networks.body, job.grader), {"network": made_from(job.checkpoint)})
    return replace(graded, name=start + task, build=Classifier(LOGISTIC), key={}, trunk=trunk, task=task)


def run(experiment):
    """Train and grade every system on every task that the manifest grades.

    Returns
    -------
    results : Results
        `arm` is a system's name; task and chosen (a classifier's settings) are added.
    absent : dict of str to str
        Why a system or a task is not run.
    """
    settings, made = experiment.study.profile.systems.embeddings, []
    absent = {spec.name: spec.reason for spec in (*settings.encoders, *settings.networks) if spec.reason}
    for task, title in TASKS.items():
        own = [(title, *one) for one in arms(experiment, task) if _is_graded(experiment, one[-1])]
        made += own
        if not own:
            absent[title] = "the manifest does not grade it"
    results = experiment.confirmatory(*(arm for *_, arm in made))
    said = [(arm.name, title, system, _chosen(experiment, arm)) for title, system, arm in made]
    frame = results.frame.merge(pd.DataFrame(said, columns=["arm", "task", "system", "chosen"]), on="arm")
    return replace(results, frame=frame.assign(arm=frame["system"])), absent


def _is_graded(experiment, arm):
    fold = experiment.folds(arm)[0]
    return fold.fit is not None and fold.select is not None and bool({*splits.UNSEEN} & {*fold.reported})


def _chosen(experiment, arm):
    settings = {} if arm.trunk is None else chosen(experiment.job(arm).checkpoint)[0]
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def systems(study):
    """How each system is run.

    Returns
    -------
    DataFrame
        system, kind, how, met (what a stand-in has learnt from before), run ('yes', or why not).
    """
    settings = study.profile.systems.embeddings
    once = "; one network, trained on KL grades: findings by logistic regression on its frozen features"
    once *= not settings.per_task
    told = [(label(spec), "frozen encoder", *_told(study, spec), spec.reason) for spec in settings.encoders]
    for spec in settings.networks:
        told.append((spec.name, "supervised network", networks.described(spec) + once, "", spec.reason))
    return pd.DataFrame(told, columns=["system", "kind", "how", "met", "run"]).replace({"run": {"": "yes"}})


def _told(study, spec):
    # How an encoder is run, and what a stand-in has met before: it is no blind foundation model.
    model, labels, size = study.profile.model, study.profile.systems.labels, f"{spec.image_size} px"
    captions = "nothing"
    if model.start == "pretrain":
        captions = f"{study.profile.pretraining.pictures:,} other phantoms with captions of their findings"
    told = {
        "start": (f"image tower of {model.name} ({protocols.START[model.start]})", captions),
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


def table(results):
    """Metrics of every system on every task and part, each with its 95 % group-bootstrap interval.

    Returns
    -------
    DataFrame
        task, system, split, chosen, n, then each of `METRICS` (macro_auc: over the task's levels) with _low
        and _high; encoder ('' for a network) and grader (classifier or network).
    """
    found = results.table(METRICS, by=("task", "system", "split", "chosen"))
    names = [system.rpartition(" + ") for system in found["system"]]
    return found.assign(encoder=[name[0] for name in names], grader=[name[-1] for name in names])


def compared(study, results):
    """Networks against embeddings with XGBoost, and the encoders against each other, on the unseen split.

    Returns
    -------
    DataFrame
        task, first, second, n, first_qwk, second_qwk, then the paired difference (first minus second) of qwk
        and of linear_kappa, each with _low and _high; outcome: `HIGHER` or `LOWER` where the interval of
        (network minus embeddings) excludes 0; `ALIKE` where that of two encoders lies inside +-`MARGIN`,
        `APART` where it lies outside altogether; else `UNCLEAR`.
    """
    settings = study.profile.systems.embeddings
    first, names = [spec.name for spec in settings.networks], [label(spec) for spec in settings.encoders]
    pairs = [(network, f"{name} + {BOOSTED}") for network, name in product(first, names)]
    pairs += [(f"{a} + {kind}", f"{b} + {kind}") for kind in KINDS for a, b in combinations(names, 2)]
    inside = results.of(split={*results.splits} - {"external"})
    ends = [f"{name}{end}" for name in ("qwk", "linear_kappa") for end in ("", "_low", "_high")]
    found = inside.gaps(pairs, ["qwk", "linear_kappa"], by=("task",))
    found = found.reindex(columns=["task", "first", "second", "n", "first_qwk", "second_qwk", *ends])
    kappas = inside.table(["qwk"], by=("task", "system")).set_index(["task", "system"])["qwk"]
    for one in ("first", "second"):
        found[f"{one}_qwk"] = [kappas[key] for key in zip(found["task"], found[one], strict=True)]
    return found.assign(outcome=outcomes(found, found["first"].isin(first)))


def outcomes(found, network):
    """What each interval of `compared` says, array of str; `network` tells where a network stands first."""
    margin, low, high = np.where(network, 0, MARGIN), found["qwk_low"], found["qwk_high"]
    where = [low > margin, high < -margin, (low > -margin) & (high < margin)]
    said = [np.where(network, HIGHER, APART), np.where(network, LOWER, APART), ALIKE]
    return np.select(where, said, UNCLEAR)


def beaten(found, absent):
    """Whether networks beat embeddings with XGBoost on all tasks, from the rows of `compared` between them.

    *Replicated* when every interval lies above 0 and no task or system is missing, *not replicated* when any
    lies below 0, else *inconclusive*. Ours is the smallest difference."""
    return _claim(found, absent, HIGHER, LOWER, lambda differences: differences)


def alike(found, absent):
    """Whether two encoders perform similarly, from the rows of `compared` between them with XGBoost.

    *Replicated* when every interval lies inside +-`MARGIN` and no task or system is missing, *not replicated*
    when any lies outside altogether, else *inconclusive*. Ours is the largest difference in size."""
    return _claim(found, absent, ALIKE, APART, lambda differences: -differences.abs())


def _claim(found, absent, holds, fails, favour):
    # The row that favours the claim least stands for it.
    if found.empty:
        return not_run("; ".join(dict.fromkeys(absent.values())) or "no pair of systems has been run")
    good, bad = (found["outcome"] == one for one in (holds, fails))
    verdict = decided(good.all() and not absent, bad.any())
    row = found.loc[favour(found["qwk"]).idxmin()]
    said = [
        f"{holds} in {good.sum()} of {len(found)} pairs, {fails} in {bad.sum()}",
        f"ours: {row['first']} minus {row['second']}, {row.task}",
        *(f"{name} not run: {why}" for name, why in absent.items()),
    ]
    return Answer(row.qwk, row.qwk_low, row.qwk_high, "kappa", verdict, "; ".join(said))


def answers(study, metrics, found, absent, knees):
    """What this run answers to the paper's numbers and claims, for `answers.keep`.

    Parameters
    ----------
    metrics, found : DataFrame
        From `table` and `compared`.
    absent : dict
        From `run`.
    knees : DataFrame or str
        From `modality.table`.
    """
    settings, how = study.profile.systems.embeddings, systems(study).set_index("system")["how"]
    network, encoder = "ConvNeXt-Small", label(settings.encoders[0])
    supervised = found["first"].isin([spec.name for spec in settings.networks])
    boosted = found["second"].astype(str).str.endswith(BOOSTED)  # there may be no pair at all
    said = {
        "supervised CNNs beat foundation embeddings + XGBoost on all tasks":
            beaten(found[supervised], absent),
        "BiomedCLIP and RAD-DINO perform similarly": alike(found[~supervised & boosted], absent),
        "zero-shot modality failures are mostly low image quality": modality.claim(knees),
    }
    return {
        (*SYSTEM, f"{network} KLG", "weighted_kappa"): kappa_row(metrics, network, absent, how[network]),
        (*SYSTEM, "BiomedCLIP zero-shot", "modality_accuracy"): modality.recognised(knees, how[encoder]),
        **{(*SYSTEM, claim): answer for claim, answer in said.items()},
    }


def kappa_row(metrics, system, absent, how):
    """A system's weighted kappa of KL grades on the unseen split: `Ours`, or why there is none.

    The paper does not say which weights: the quadratic kappa stands in the row; the linear one, and how the
    network was run, in its note."""
    inside = metrics[metrics["split"] != "external"].set_index(["system", "task"])
    if (system, TASKS["kl_grade"]) not in inside.index:
        return absent.get(system, f"this run has no {system}")
    row = inside.loc[system, TASKS["kl_grade"]]
    said = f"{how}: quadratic weights; with linear ones {row.linear_kappa:.3f}"
    note = f"{said}; another test set than the paper's, whose weights are not stated"
    return Ours(float(row.qwk), note=note, runs=1, boot_low=float(row.qwk_low), boot_high=float(row.qwk_high))
