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
from koa_lib.metrics import PROBABILITIES
from koa_lib.paper import answers
from koa_lib.paper.scorecard import Ours
from koa_lib.profile import load
from koa_lib.settings import Baseline, Encoder
from koa_lib.store import Store
from koa_lib.systems import jiim2025, modality

NETWORK = Baseline("ResNet18", "resnet18", "random", 32, 0.25, 2, 32, 0.003, "")
ABSENT = Baseline("ConvNeXt-Small", "convnext_small", "random", 32, 1.0, 0, 32, 0.1, "too slow here")
BOOSTED, LINEAR = (f"BiomedCLIP stand-in + {kind}" for kind in ("XGBoost", "logistic regression"))


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
    settings = replace(study.profile.systems.embeddings, networks=(NETWORK, ABSENT), trees=8, per_task=True)
    encoders = (Encoder("BiomedCLIP", "random", "resnet18", 32, 0.25, ""),)
    return with_systems(study, embeddings=replace(settings, **{"encoders": encoders, **changes}))


@pytest.fixture(scope="module")
def study(easy_study):
    """The easy study with one encoder and one small network."""
    return with_settings(easy_study)


@pytest.fixture(scope="module")
def found(study):
    return jiim2025.run(Graded(study))


@pytest.fixture(scope="module")
def metrics(found):
    return jiim2025.table(found[0])


def test_what_is_not_run_is_said(found):
    results, absent = found
    unknown = "the manifest does not grade it"
    assert absent == {"ConvNeXt-Small": "too slow here", "osteophytes": unknown, "sclerosis": unknown}
    assert set(results.frame["task"]) == {"KL grade", "joint-space narrowing"}
    assert set(results.frame["arm"]) == {BOOSTED, LINEAR, "ResNet18"}


def test_all_systems_report_the_same_pictures_and_no_external_one_twice(found):
    for where, part in found[0].each("task", "split"):
        ids = [one.frame["image_id"].tolist() for _, one in part.each("arm")]
        assert len(ids) == 3 and all(one == ids[0] for one in ids)
        if where["split"] == "external":
            # Of 40 files one is a repeat and two conflict; another lacks a grade for narrowing.
            assert len(ids[0]) == 37 - (where["task"] != "KL grade") and set(part.frame["view"]) == {
                "stretch-none"
            }


def test_fitted_chosen_and_reported_patients_are_apart_in_every_task(study):
    experiment, fitted = Graded(study), {}
    for task in ("kl_grade", "jsn"):
        for _, arm in jiim2025.arms(experiment, task):
            (fold,) = experiment.folds(arm)
            groups = [
                set(part.rows["group_id"])
                for part in (fold.fit, fold.select, fold.reported["val"], fold.reported["test"])
            ]
            assert sum(map(len, groups)) == len(set().union(*groups))
            assert set(fold.fit.rows["split"]) == set(fold.select.rows["split"]) == {"train"}
            fitted.setdefault(task, groups[0])
    assert fitted["jsn"] <= fitted["kl_grade"]


def test_a_task_takes_the_pictures_that_are_graded_for_it():
    data = easy_dataset(20, 16, "fit")
    graded = replace(data, rows=data.rows.assign(jsn=pd.array([0, 1, pd.NA, 3] * 5, "Int64")))
    part = splits.for_task(graded, "jsn")
    assert part.role == "fit" and part.grades.tolist() == [0, 1, 3] * 5
    assert part.rows["image_id"].tolist() == [
        name for k, name in enumerate(data.rows["image_id"]) if k % 4 != 2
    ]
    assert (part.images(np.arange(len(part))) == data.images(np.flatnonzero(np.arange(20) % 4 != 2))).all()


@pytest.mark.parametrize("column", [None, pd.array([pd.NA] * 20, "Int64")])
def test_a_task_without_grades_is_absent(column):
    data = easy_dataset(20, 16, "fit")
    rows = data.rows if column is None else data.rows.assign(sclerosis=column)
    assert splits.for_task(replace(data, rows=rows), "sclerosis") is None


def test_metrics_agree_with_scikit_learn(found, metrics):
    row = metrics.set_index(["task", "system", "split"]).loc["joint-space narrowing", LINEAR, "test"]
    frame = found[0].graded(task="joint-space narrowing", arm=LINEAR, split="test")
    grades, predicted = frame["kl_grade"], frame[PROBABILITIES].to_numpy().argmax(1)
    assert row["qwk"] == pytest.approx(cohen_kappa_score(grades, predicted, weights="quadratic"))
    assert row["linear_kappa"] == pytest.approx(cohen_kappa_score(grades, predicted, weights="linear"))
    aucs = [roc_auc_score(grades == grade, frame[f"p{grade}"]) for grade in range(4)]
    assert row["macro_auc"] == pytest.approx(np.mean(aucs)) and row["n"] == len(frame)
    assert row["qwk_low"] <= row["qwk"] <= row["qwk_high"] and row["chosen"].startswith("C ")
    assert [row["encoder"], row["grader"]] == LINEAR.split(" + ")
    assert set(metrics.loc[metrics["encoder"] == "", "grader"]) == {"ResNet18"}
    assert (found[0].of(task="joint-space narrowing").frame["p4"] == 0).all()  # this task has four levels


def test_differences_are_those_of_the_kappas(study, found, metrics):
    table = jiim2025.compared(study, found[0])
    kappas = metrics[metrics["split"] == "test"].set_index(["task", "system"])["qwk"]
    assert list(zip(table["first"], table["second"], strict=True)) == [("ResNet18", BOOSTED)] * 2
    for row in table.itertuples():
        values = (kappas[row.task, "ResNet18"], kappas[row.task, BOOSTED])
        assert (row.first_qwk, row.second_qwk) == pytest.approx(values)
        assert row.qwk == pytest.approx(values[0] - values[1]) and row.qwk_low <= row.qwk <= row.qwk_high


def test_without_a_pair_nothing_is_compared(study, found):
    alone = with_settings(study, networks=())
    table = jiim2025.compared(alone, found[0])
    assert table.empty and jiim2025.beaten(table, {}).verdict == "not run"


def test_findings_are_read_from_one_network_where_networks_are_shared(study, found, tmp_path, monkeypatch):
    def run(network):
        shared = with_settings(study, per_task=False, encoders=(), networks=(network,))
        return shared, jiim2025.run(Graded(replace(shared, run_dir=copied)))[0]

    copied, built, build = shutil.copytree(study.run_dir, tmp_path / "run"), [], Store._build
    watched = lambda store, path, make: built.append(path.name) or build(store, path, make)  # noqa: E731
    monkeypatch.setattr(Store, "_build", watched)
    shared, results = run(NETWORK)
    narrowing = results.of(task="joint-space narrowing").frame
    assert narrowing["chosen"].str.startswith("C ").all() and (narrowing["p4"] == 0).all()
    assert not any(
        "kl_grade" in name and name.endswith(".csv") for name in built
    )  # as in the run of all tasks
    assert "one network, trained on KL grades" in jiim2025.systems(shared)["how"].iloc[0]
    built.clear()
    run(replace(NETWORK, learning_rate=0.01))
    assert {name.split("__")[0] for name in built} == {"network-resnet18-kl_grade", "network-resnet18-jsn"}
    built.clear()
    run(replace(NETWORK, learning_rate=0.01))
    assert not built


def test_stand_ins_are_named_as_such(study):
    told, stand_in = jiim2025.systems(study).set_index("system"), "BiomedCLIP stand-in"
    assert told["how"][stand_in].startswith("stand-in for BiomedCLIP: resnet18, width x 0.25, random weights")
    assert told["run"].to_dict() == {stand_in: "yes", "ResNet18": "yes", "ConvNeXt-Small": "too slow here"}
    published = jiim2025.systems(replace(study, profile=load("paper"))).set_index("system")
    assert (published["met"] == "").all() and {"BiomedCLIP", "RAD-DINO"} < set(published.index)
    for name in ("smoke", "demo", "oai"):
        shown = jiim2025.systems(replace(study, profile=load(name)))
        assert (shown.loc[shown["kind"] == "frozen encoder", "met"] != "").all()


def pairs(rows, network):
    found = pd.DataFrame(rows, columns=["qwk_low", "qwk_high"], dtype=float)
    found = found.assign(task="KL grade", first="A", second="B", qwk=found.mean(axis=1))
    return found.assign(outcome=jiim2025.outcomes(found, np.full(len(found), network)))


@pytest.mark.parametrize(
    "rows, absent, verdict",
    [
        ([(0.1, 0.2), (0.01, 0.3)], {}, "replicated"),
        ([(0.1, 0.2)], {"sclerosis": "not graded"}, "inconclusive"),
        ([(0.1, 0.2), (-0.1, 0.3)], {}, "inconclusive"),
        ([(0.1, 0.2), (np.nan, np.nan)], {}, "inconclusive"),
        ([(0.1, 0.2), (-0.3, -0.1)], {"sclerosis": "not graded"}, "not replicated"),
        ([], {"sclerosis": "not graded"}, "not run"),
    ],
)
def test_networks_beat_embeddings_by_the_rule(rows, absent, verdict):
    answer = jiim2025.beaten(pairs(rows, network=True), absent)
    assert answer.verdict == verdict
    assert not absent or "not graded" in answer.reason
    assert not rows or answer.ours == pytest.approx(np.nanmin(np.mean(rows, axis=1)))


@pytest.mark.parametrize(
    "rows, absent, verdict",
    [
        ([(-0.04, 0.04), (0.0, 0.049)], {}, "replicated"),
        ([(-0.04, 0.04)], {"sclerosis": "not graded"}, "inconclusive"),
        ([(-0.04, 0.06)], {}, "inconclusive"),
        ([(0.01, 0.2)], {}, "inconclusive"),
        ([(-0.04, 0.04), (0.06, 0.2)], {}, "not replicated"),
        ([(-0.2, -0.051)], {}, "not replicated"),
    ],
)
def test_encoders_are_alike_by_the_rule(rows, absent, verdict):
    answer = jiim2025.alike(pairs(rows, network=False), absent)
    assert answer.verdict == verdict and abs(answer.ours) == pytest.approx(
        np.abs(np.mean(rows, axis=1)).max()
    )


def test_the_scorecard_gets_a_number_or_a_reason(study, found, metrics):
    results, absent = found
    ours = jiim2025.kappa_row(metrics, "ResNet18", absent, "narrowed")
    assert (
        isinstance(ours, Ours)
        and "linear" in ours.note
        and ours.note.startswith("narrowed: ")
        and np.isnan(ours.ci_low)
    )
    row = metrics.set_index(["task", "system", "split"]).loc["KL grade", "ResNet18", "test"]
    assert (ours.value, ours.boot_low, ours.boot_high) == (row["qwk"], row["qwk_low"], row["qwk_high"])
    asked = replace(study.profile.systems.embeddings.encoders[0], source="trained")
    knees = modality.table(Experiment(with_settings(study, encoders=(asked,))))
    given = jiim2025.answers(study, metrics, jiim2025.compared(study, results), absent, knees)
    assert given[*jiim2025.SYSTEM, "ConvNeXt-Small KLG", "weighted_kappa"] == "too slow here"
    assert "knees alone" in given[*jiim2025.SYSTEM, "BiomedCLIP zero-shot", "modality_accuracy"]
    claims = {key[2]: answer.verdict for key, answer in given.items() if len(key) == 3}
    assert (
        len(claims) == 3 and claims["zero-shot modality failures are mostly low image quality"] == "not run"
    )
    answers.keep(study, jiim2025.SYSTEM[0], given)
    try:
        assert given.keys() <= answers.read(study).keys()
    finally:
        (study.run_dir / answers.FOLDER / "JIIM-2025.json").unlink()
