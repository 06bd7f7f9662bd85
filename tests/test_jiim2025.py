"""Frozen embeddings against supervised networks: tasks, pictures, differences and what follows from them."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import easy_dataset, with_systems
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from koa_lib import splits
from koa_lib.experiment import Experiment
from koa_lib.predictions import PROBABILITIES
from koa_lib.settings import Baseline, Encoder
from koa_lib.store import Store
from koa_lib.systems import jiim2025

NETWORK = Baseline("ResNet18", "resnet18", "random", 32, 0.25, 2, 32, 0.003, "network", "")
ABSENT = Baseline("ConvNeXt-Small", "convnext_small", "random", 32, 1.0, 0, 32, 0.1, "network", "too slow")
BIOMED = Encoder("BiomedCLIP", "random", "resnet18", 32, 0.25, "")
BOOSTED, LINEAR = (f"BiomedCLIP stand-in + {kind}" for kind in ("XGBoost", "logistic regression"))
KL, NARROWING = "KL grade", "joint-space narrowing"


class Graded(Experiment):
    """An experiment whose cohorts are graded for narrowing, too, in all pictures but the first of each split.

    The external one has two files twice, the second pair under two grades."""

    def pictures(self, role, view, size):
        data = super().pictures(role, view, size)
        rows = data.rows.assign(jsn=data.rows["kl_grade"].clip(upper=3).astype("Int64"))
        rows.loc[rows.groupby("split").head(1).index, "jsn"] = pd.NA
        if role == "external":
            pixels = rows["pixel_sha256"].to_numpy(copy=True)
            pixels[[1, 39]] = pixels[[0, 2]]
            rows["pixel_sha256"] = pixels
        return replace(data, rows=rows)


def with_settings(study, **changes):
    own = {"networks": (NETWORK, ABSENT), "encoders": (BIOMED,), "trees": 8, "per_task": True, **changes}
    return with_systems(study, embeddings=replace(study.profile.systems.embeddings, **own))


@pytest.fixture(scope="module")
def study(easy_study):
    """The easy study with one encoder and one small network."""
    return with_settings(easy_study)


@pytest.fixture(scope="module")
def found(study):
    return jiim2025.run(Graded(study))


@pytest.fixture(scope="module")
def metrics(found):
    return jiim2025.table(found[0]).set_index(["task", "system", "split"])


def test_what_is_not_run_is_said(study, found):
    results, absent = found
    assert absent.keys() == {"ConvNeXt-Small", "osteophytes", "sclerosis"}
    assert set(results.frame["task"]) == {KL, NARROWING}
    assert set(results.frame["arm"]) == {BOOSTED, LINEAR, "ResNet18"}
    told = jiim2025.systems(study).set_index("system")["run"].to_dict()
    assert told == {"BiomedCLIP stand-in": "yes", "ResNet18": "yes", "ConvNeXt-Small": "too slow"}


def test_all_systems_report_the_same_pictures_and_no_external_one_twice(found):
    for where, part in found[0].each("task", "split"):
        ids = [one.frame["image_id"].tolist() for _, one in part.each("arm")]
        assert len(ids) == 3 and all(one == ids[0] for one in ids)
        if where["split"] == "external":
            # Of 40 files one is a repeat and two conflict; another lacks a grade for narrowing.
            assert len(ids[0]) == 37 - (where["task"] != KL)
            assert set(part.frame["view"]) == {"stretch-none"}


def test_fitted_chosen_and_reported_patients_are_apart_in_every_task(study):
    experiment = Graded(study)
    for _, arm in (*jiim2025.arms(experiment, "kl_grade"), *jiim2025.arms(experiment, "jsn")):
        (fold,) = experiment.folds(arm)
        parts = (fold.fit, fold.select, fold.reported["val"], fold.reported["test"])
        groups = [set(part.rows["group_id"]) for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups))
        assert set(fold.fit.rows["split"]) == set(fold.select.rows["split"]) == {"train"}


def test_a_task_takes_the_pictures_that_are_graded_for_it_and_is_absent_without_any():
    data, kept = easy_dataset(20, 16, "fit"), np.flatnonzero(np.arange(20) % 4 != 2)
    grades = pd.array([0, 1, pd.NA, 3] * 5, "Int64")
    graded = replace(data, rows=data.rows.assign(jsn=grades, sclerosis=pd.NA))
    part = splits.for_task(graded, "jsn")
    assert part.role == "fit" and part.grades.tolist() == [0, 1, 3] * 5
    assert (part.images(np.arange(15)) == data.images(kept)).all()
    assert splits.for_task(data, "sclerosis") is splits.for_task(graded, "sclerosis") is None


def test_metrics_are_those_of_the_tasks_own_levels(found, metrics):
    row, results = metrics.loc[NARROWING, LINEAR, "test"], found[0].of(task=NARROWING)
    frame = results.graded(arm=LINEAR, split="test")
    aucs = [roc_auc_score(frame["kl_grade"] == grade, frame[f"p{grade}"]) for grade in range(4)]
    predicted = frame[PROBABILITIES].to_numpy().argmax(1)
    kappa = cohen_kappa_score(frame["kl_grade"], predicted, weights="linear")
    assert row[["macro_auc", "linear_kappa"]].tolist() == pytest.approx([np.mean(aucs), kappa])
    assert (results.frame["p4"] == 0).all() and row["chosen"].startswith("C ")


def test_findings_are_read_from_one_network_where_networks_are_shared(study, found, tmp_path, monkeypatch):
    copied, built, build = shutil.copytree(study.run_dir, tmp_path / "run"), [], Store._build

    def watched(store, path, make):
        built.append(path.name)
        return build(store, path, make)

    def run(network):
        built.clear()
        shared = with_settings(study, per_task=False, encoders=(), networks=(network,))
        return jiim2025.run(Graded(replace(shared, run_dir=copied)))[0].of(task=NARROWING).frame

    monkeypatch.setattr(Store, "_build", watched)
    narrowing = run(NETWORK)
    assert narrowing["chosen"].str.startswith("C ").all() and (narrowing["p4"] == 0).all()
    # Of KL grades all is as in the run of all tasks.
    assert not any("kl_grade" in name and name.endswith(".csv") for name in built)
    run(replace(NETWORK, learning_rate=0.01))
    assert {name.split("__")[0] for name in built} == {"network-resnet18-kl_grade", "network-resnet18-jsn"}


@pytest.mark.parametrize(("rule", "rows", "absent", "verdict", "ours"), [
    ("beaten", [(0.1, 0.2), (0.01, 0.3)], {}, "replicated", 0.15),
    ("beaten", [(0.1, 0.2)], {"sclerosis": "not graded"}, "inconclusive", 0.15),
    ("beaten", [(0.1, 0.2), (-0.1, 0.3)], {}, "inconclusive", 0.1),
    ("beaten", [(0.1, 0.2), (-0.3, -0.1)], {"sclerosis": "not graded"}, "not replicated", -0.2),
    ("alike", [(-0.04, 0.04), (0.0, 0.048)], {}, "replicated", 0.024),
    ("alike", [(-0.04, 0.04)], {"sclerosis": "not graded"}, "inconclusive", 0),
    ("alike", [(-0.04, 0.06)], {}, "inconclusive", 0.01),
    ("alike", [(-0.06, 0.04)], {}, "inconclusive", -0.01),
    ("alike", [(-0.04, 0.04), (0.06, 0.2)], {}, "not replicated", 0.13),
])
def test_the_claims_are_decided_by_the_rule(rule, rows, absent, verdict, ours):
    found = pd.DataFrame(rows, columns=["qwk_low", "qwk_high"])
    found = found.assign(task=KL, first="A", second="B", qwk=found.mean(axis=1))
    found = found.assign(outcome=jiim2025.outcomes(found, np.full(len(found), rule == "beaten")))
    answer = getattr(jiim2025, rule)(found, absent)
    assert answer.verdict == verdict and answer.ours == pytest.approx(ours)
    assert jiim2025.beaten(found.head(0), absent).verdict == "not run"


def test_the_scorecard_gets_a_number_or_a_reason(study, found, metrics):
    results, absent = found
    rows, row = metrics.reset_index(), metrics.loc[KL, "ResNet18", "test"]
    table = jiim2025.compared(study, results)
    assert list(zip(table["first"], table["second"], strict=True)) == [("ResNet18", BOOSTED)] * 2
    assert (table["first_qwk"] - table["second_qwk"]).tolist() == pytest.approx(table["qwk"].tolist())
    ours = jiim2025.kappa_row(rows, "ResNet18", absent, "")
    assert (ours.value, ours.boot_low, ours.boot_high) == tuple(row[["qwk", "qwk_low", "qwk_high"]])
    given = jiim2025.answers(study, rows, table, absent, "knees alone")
    assert given[*jiim2025.SYSTEM, "ConvNeXt-Small KLG", "weighted_kappa"] == "too slow"
    assert given[*jiim2025.SYSTEM, "BiomedCLIP zero-shot", "modality_accuracy"] == "knees alone"
    verdicts = [answer.verdict for key, answer in given.items() if len(key) == 3]
    assert len(verdicts) == 3 and "not run" in verdicts
