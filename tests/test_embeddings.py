"""Frozen embeddings against supervised networks: tasks, classifiers, differences and the claims that follow from them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import with_systems
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from koa_lib import baselines, embeddings, modality, sources, supervised, tasks
from koa_lib.errors import StudyError
from koa_lib.metrics import PROBABILITIES
from koa_lib.paper import answers
from koa_lib.paper.scorecard import Ours
from koa_lib.profile import load
from koa_lib.settings import Baseline, Encoder


@pytest.fixture(scope="module")
def study(easy_study):
    """The easy study with one encoder and one small network."""
    own = replace(easy_study.profile.systems.embeddings, encoders=(Encoder("BiomedCLIP", "random", "resnet18", 32, 0.25, ""),), trees=8, per_task=True,
                  networks=(Baseline("ResNet18", "resnet18", "random", 32, 0.25, 2, 32, 0.003, ""), Baseline("ConvNeXt-Small", "convnext_small", "random", 32, 1.0, 0, 32, 0.1, "too slow here")))
    return with_systems(easy_study, embeddings=own)


@pytest.fixture(scope="module")
def comparison(study):
    return embeddings.Comparison(study).run()


def test_other_embeddings_are_graded_again(study, comparison, tmp_path, monkeypatch):
    study, again = replace(study, run_dir=shutil.copytree(study.run_dir, tmp_path / "run")), []
    monkeypatch.setattr(type(study.store), "_build", lambda self, path, build: again.append(path.name) or 0.0)
    embeddings.Comparison(study).run()
    assert not again
    embed = embeddings.encoders.embed
    monkeypatch.setattr(embeddings.encoders, "embed", lambda *arguments: embed(*arguments) + 1)  # as after another pre-training
    embeddings.Comparison(study).run()
    assert again and all(name.startswith("biomedclip") for name in again)


def features(part, values=None):
    values = np.eye(5, dtype=np.float32)[part.grades] + 0.01 if values is None else values
    return sources.Features(part, values[None])


def easy(role, pictures=60, seed=0):
    from conftest import easy_dataset

    return easy_dataset(pictures, 16, role, seed)


@pytest.mark.parametrize("kind", embeddings.CLASSIFIERS)
def test_a_classifier_learns_what_embeddings_hold(kind):
    found = baselines.classify(kind, features(easy("fit")), features(easy("select", 30, 1)), 16, 0)
    fresh = easy("report", 40, 2)
    probabilities = found.probabilities(np.asarray(features(fresh).batch(np.arange(40))))
    assert probabilities.shape == (40, 5) and probabilities.sum(1) == pytest.approx(1)
    assert (probabilities.argmax(1) == fresh.grades).all() and found.kappa == 1


@pytest.mark.parametrize("kind", embeddings.CLASSIFIERS)
@pytest.mark.parametrize("roles", [("report", "select"), ("fit", "report"), ("fit", "fit")])
def test_nothing_is_fitted_or_chosen_on_what_is_reported(kind, roles):
    with pytest.raises(StudyError, match="nothing is fitted or chosen"):
        baselines.classify(kind, features(easy(roles[0])), features(easy(roles[1])), 8, 0)


def test_the_choice_is_the_best_on_the_inner_part():
    rng = np.random.default_rng(0)
    fit, select = easy("fit"), easy("select", 40, 1)
    noisy = [np.eye(5, dtype=np.float32)[part.grades] + rng.normal(0, 0.8, (len(part), 5)).astype(np.float32) for part in (fit, select)]
    found = baselines.classify("logistic regression", *(features(part, values) for part, values in zip((fit, select), noisy, strict=True)), 8, 0)
    kappas = []
    for _, predict in baselines._linear(noisy[0], fit.grades):
        kappas.append(cohen_kappa_score(select.grades, predict(noisy[1]).argmax(1), weights="quadratic"))
    assert found.kappa == pytest.approx(max(kappas)) and found.settings["C"] == baselines.PENALTIES[int(np.argmax(kappas))]


@pytest.mark.parametrize("kind", embeddings.CLASSIFIERS)
def test_a_grade_that_was_not_fitted_gets_no_probability(kind):
    fit, select = easy("fit"), easy("select", 20, 1)
    some = fit.part(np.flatnonzero(np.isin(fit.grades, (0, 3))), "fit")
    found = baselines.classify(kind, sources.Features(some, features(fit).array), features(select), 4, 0)
    probabilities = found.probabilities(np.eye(5, dtype=np.float32))
    assert (probabilities[:, [1, 2, 4]] == 0).all() and probabilities.sum(1) == pytest.approx(1)


def test_one_grade_alone_is_refused():
    fit = easy("fit")
    with pytest.raises(StudyError, match="same grade"):
        baselines.classify("XGBoost", features(fit.part(np.flatnonzero(fit.grades == 2), "fit")), features(easy("select")), 4, 0)


def test_a_task_takes_the_pictures_that_are_graded_for_it():
    data = easy("fit", 20)
    graded = replace(data, rows=data.rows.assign(jsn=pd.array([0, 1, pd.NA, 3] * 5, "Int64")))
    part = embeddings.for_task(graded, "jsn")
    assert part.role == "fit" and part.grades.tolist() == [0, 1, 3] * 5
    assert part.rows["image_id"].tolist() == [name for k, name in enumerate(data.rows["image_id"]) if k % 4 != 2]
    assert (part.images(np.arange(len(part))) == data.images(np.flatnonzero(np.arange(20) % 4 != 2))).all()


@pytest.mark.parametrize("column", [None, pd.array([pd.NA] * 20, "Int64")])
def test_a_task_without_grades_is_absent(column):
    data = easy("fit", 20)
    rows = data.rows if column is None else data.rows.assign(sclerosis=column)
    assert embeddings.for_task(replace(data, rows=rows), "sclerosis") is None


def test_a_manifest_without_findings_runs_on_kl_grades_alone_and_says_so(comparison):
    assert {task for _, task, _ in comparison.frames} == {"kl_grade"}
    assert {name: comparison.absent[name] for name in ("osteophytes", "joint-space narrowing", "sclerosis")} == dict.fromkeys(("osteophytes", "joint-space narrowing", "sclerosis"), "the manifest does not grade it")
    assert comparison.absent["ConvNeXt-Small"] == "too slow here"
    assert {system for system, _, _ in comparison.frames} == {"BiomedCLIP stand-in + XGBoost", "BiomedCLIP stand-in + logistic regression", "ResNet18"}


def test_fitted_chosen_and_reported_patients_are_apart(study):
    fold = embeddings.Comparison(study)._fold(32, "kl_grade")
    groups = [set(part.rows["group_id"]) for part in (fold.fit, fold.select, *fold.reported.values())]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert set(fold.fit.rows["split"]) == set(fold.select.rows["split"]) == {"train"} and set(fold.reported) == {"val", "test"}
    assert (fold.fit.role, fold.select.role, fold.reported["test"].role) == ("fit", "select", "report")


def test_all_systems_report_the_same_pictures(comparison, study):
    for split in ("test", "external"):
        ids = [frame["image_id"].tolist() for (_, _, part), frame in comparison.frames.items() if part == split]
        assert len(ids) == 3 and all(one == ids[0] for one in ids)
    for path in (study.run_dir / "checkpoints").glob("biomedclip*.json"):
        if not path.name.endswith(".json.json"):
            assert set(json.loads(path.read_text())) == {"settings", "kappa"}


def test_a_second_run_reuses_everything(study, comparison, monkeypatch):
    monkeypatch.setattr(embeddings, "classify", None)
    monkeypatch.setattr(supervised.training, "fit", None)
    again = embeddings.Comparison(study).run()
    assert again.chosen == comparison.chosen and all(again.frames[key].equals(frame) for key, frame in comparison.frames.items())


def unseen(study, comparison):
    return tasks.results(study, comparison).query("part == 'test'")


def test_results_agree_with_scikit_learn(comparison, study):
    table = unseen(study, comparison).set_index("system")
    frame = comparison.frames["BiomedCLIP stand-in + logistic regression", "kl_grade", "test"]
    row, predicted = table.loc["BiomedCLIP stand-in + logistic regression"], frame[PROBABILITIES].to_numpy().argmax(1)
    assert row["qwk"] == pytest.approx(cohen_kappa_score(frame["kl_grade"], predicted, weights="quadratic"))
    assert row["linear_kappa"] == pytest.approx(cohen_kappa_score(frame["kl_grade"], predicted, weights="linear"))
    present = sorted(set(frame["kl_grade"]))
    aucs = [roc_auc_score(frame["kl_grade"] == grade, frame[f"p{grade}"]) for grade in present]
    assert row["levels_auc"] == pytest.approx(np.mean(aucs)) and row["n"] == len(frame)
    assert row["qwk_low"] <= row["qwk"] <= row["qwk_high"]
    assert (row["encoder"], row["grader"]) == ("BiomedCLIP stand-in", "logistic regression") and row["chosen"].startswith("C ")
    assert table.index[0] == "ResNet18" and table.loc["ResNet18", ["encoder", "grader"]].tolist() == ["", "ResNet18"]


def test_a_system_does_not_differ_from_itself(comparison, study):
    pair = [("ResNet18", "ResNet18"), ("ResNet18", "BiomedCLIP stand-in + XGBoost")]
    table = tasks.differences(study, comparison.frames, pair, "test")
    assert table.loc[0, ["qwk_difference", "qwk_difference_low", "qwk_difference_high"]].tolist() == [0, 0, 0]
    results = unseen(study, comparison).set_index("system")["qwk"]
    assert table.loc[1, ["first_qwk", "second_qwk"]].tolist() == pytest.approx([results["ResNet18"], results["BiomedCLIP stand-in + XGBoost"]])
    assert table.loc[1, "qwk_difference"] == pytest.approx(results["ResNet18"] - results["BiomedCLIP stand-in + XGBoost"])


def test_findings_are_read_from_one_network_where_networks_are_shared(study):
    settings = replace(study.profile.systems.embeddings, per_task=False, encoders=(), networks=study.profile.systems.embeddings.networks[:1])
    shared = with_systems(study, embeddings=settings)
    run = embeddings.Comparison(shared)
    open_data = run.runner.data
    run.runner.data = lambda role, recipe: replace(open_data(role, recipe), rows=open_data(role, recipe).rows.assign(jsn=lambda rows: rows["kl_grade"].clip(upper=3)))
    run.run()
    chosen = {row["task"]: row["chosen"] for row in run.chosen}
    assert chosen["KL grade"] == "best epoch of 2" and chosen["joint-space narrowing"].startswith("C ")
    assert (run.frames["ResNet18", "jsn", "test"]["p4"] == 0).all()
    assert "one network, trained on KL grades" in tasks.systems(shared)["how"].iloc[0]


def test_stand_ins_are_named_as_such(study):
    told = tasks.systems(study).set_index("system")
    assert told["how"]["BiomedCLIP stand-in"].startswith("stand-in for BiomedCLIP: resnet18, width x 0.25, random weights")
    assert told["run"]["ConvNeXt-Small"] == "too slow here" and "width x 0.25" in told["how"]["ResNet18"]
    published = tasks.systems(replace(study, profile=load("paper"))).set_index("system")
    assert (published["met"] == "").all() and {"BiomedCLIP", "RAD-DINO"} < set(published.index)
    for name in ("smoke", "demo", "oai"):
        shown = tasks.systems(replace(study, profile=load(name)))
        assert (shown.loc[shown["kind"] == "frozen encoder", "met"] != "").all()


def gaps(rows, margin, *outcomes):
    made = [{"task": "KL grade", "first": "A", "second": "B", "qwk_difference": (low + high) / 2, "qwk_difference_low": low,
             "qwk_difference_high": high} for low, high in rows]
    table = pd.DataFrame(made, columns=["task", "first", "second", *(f"qwk_difference{end}" for end in ("", "_low", "_high"))])
    return table.assign(outcome=tasks._outcomes(table, margin, *outcomes))


@pytest.mark.parametrize("rows, absent, verdict", [
    ([(0.1, 0.2), (0.01, 0.3)], {}, "replicated"),
    ([(0.1, 0.2)], {"sclerosis": "not graded"}, "inconclusive"),
    ([(0.1, 0.2), (-0.1, 0.3)], {}, "inconclusive"),
    ([(0.1, 0.2), (-0.3, -0.1)], {"sclerosis": "not graded"}, "not replicated"),
    ([], {"sclerosis": "not graded"}, "not run"),
])
def test_networks_beat_embeddings_by_the_rule(rows, absent, verdict):
    answer = tasks.beaten(gaps(rows, 0, tasks.HIGHER, tasks.LOWER, tasks.UNCLEAR), absent)
    assert answer.verdict == verdict
    assert not absent or "not graded" in answer.reason
    assert not rows or answer.ours == pytest.approx(min(sum(row) / 2 for row in rows))


@pytest.mark.parametrize("rows, absent, verdict", [
    ([(-0.04, 0.04), (0.0, 0.049)], {}, "replicated"),
    ([(-0.04, 0.04)], {"sclerosis": "not graded"}, "inconclusive"),
    ([(-0.04, 0.06)], {}, "inconclusive"),
    ([(-0.04, 0.04), (0.06, 0.2)], {}, "not replicated"),
    ([(-0.2, -0.051)], {}, "not replicated"),
])
def test_encoders_are_alike_by_the_rule(rows, absent, verdict):
    answer = tasks.alike(gaps(rows, tasks.MARGIN, tasks.APART, tasks.APART, tasks.ALIKE), absent)
    assert answer.verdict == verdict and abs(answer.ours) == pytest.approx(max(abs(sum(row)) / 2 for row in rows))


def test_the_scorecard_gets_a_number_or_a_reason(comparison, study):
    table = tasks.results(study, comparison)
    ours = tasks.kappa_row(table, "ResNet18", comparison.absent, "narrowed")
    assert isinstance(ours, Ours) and "linear" in ours.note and ours.note.startswith("narrowed: ") and np.isnan(ours.ci_low)
    compared, check = tasks.compared(study, comparison), modality.Check(with_systems(study, embeddings=asked_of_knees(study)))
    found = tasks.answers(study, comparison, table, compared, check)
    assert found[tasks.SYSTEM, tasks.ITEM, "ConvNeXt-Small KLG", "weighted_kappa"] == "too slow here"
    assert "knees alone" in found[tasks.SYSTEM, tasks.ITEM, "BiomedCLIP zero-shot", "modality_accuracy"]
    claims = {key[2]: answer.verdict for key, answer in found.items() if len(key) == 3}
    assert len(claims) == 3 and claims["zero-shot modality failures are mostly low image quality"] == "not run"
    answers.keep(study, tasks.SYSTEM, found)
    try:
        kept = answers.read(study)
        assert kept[tasks.SYSTEM, tasks.ITEM, "ConvNeXt-Small KLG", "weighted_kappa"] == "too slow here" and len(kept) == 5
    finally:
        (study.run_dir / answers.FOLDER / "JIIM-2025.json").unlink()


def asked_of_knees(study):
    settings = study.profile.systems.embeddings
    return replace(settings, encoders=(replace(settings.encoders[0], source="trained"),))


def test_convnext_is_narrowed_and_keeps_its_depth():
    import torch

    with torch.device("meta"):
        whole, narrow = (baselines.create("convnext_small", 32, width) for width in (1.0, 0.25))
    assert len(list(whole.modules())) == len(list(narrow.modules()))
    assert sum(p.numel() for p in narrow.parameters()) < 0.1 * sum(p.numel() for p in whole.parameters())


def test_a_network_is_kept_and_grades_as_it_did(study, comparison):
    spec = study.profile.systems.embeddings.networks[0]
    fold = embeddings.Comparison(study)._fold(32, "kl_grade")
    network, part = supervised.trained(study, spec, fold, "kl_grade"), fold.reported["test"]
    frame = comparison.frames["ResNet18", "kl_grade", "test"]
    assert part.rows["image_id"].tolist() == frame["image_id"].tolist()
    assert network.probabilities(part, part.grades) == pytest.approx(frame[PROBABILITIES].to_numpy(), abs=1e-4)
    assert next(row["inner_qwk"] for row in comparison.chosen if row["system"] == "ResNet18") == network.kappa
