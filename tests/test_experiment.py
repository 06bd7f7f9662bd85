"""The experiment: who fits, chooses and reports, what a run leaves behind, and that nothing is learned from what is reported."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import with_systems

from koa_lib import cohort, predictions, protocols, training
from koa_lib.classifiers import Classifier
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.experiment import Experiment
from koa_lib.profile import load
from koa_lib.settings import Encoder
from koa_lib.study import FOLDERS
from koa_lib.systems import encoders

START = Encoder("start", "start", "", 112, 1.0, "")


@pytest.fixture(scope="module")
def finished(easy_study):
    """The experiment, the main arm and its results."""
    experiment, main = Experiment(easy_study), protocols.main_arm(easy_study)
    return experiment, main, experiment.run(main)


def statuses(study, since=0):
    return [json.loads(line)["status"] for line in (study.run_dir / "run.jsonl").read_text().splitlines()[since:]]


def test_every_fold_is_reported_on_every_part(easy_study, finished):
    results = finished[2]
    sizes = results.frame.groupby(["split", "fold"], sort=False).size().unstack().to_dict("index")
    assert sizes == {"train": {1: 60, 2: 60}, "held_out": {1: 60, 2: 60}, "external": {1: 40, 2: 40}}
    listed = read_manifest(easy_study.run_dir.parent / "manifests" / "easy_a.csv")
    assert sorted(results.graded(split="held_out")["image_id"]) == sorted(listed["image_id"])


def test_results_are_what_the_files_say(easy_study, finished):
    results, folder = finished[2], easy_study.run_dir / "predictions"
    for (split, fold), rows in results.frame.groupby(["split", "fold"]):
        name = f"clip-as_printed__{'easy_b' if split == 'external' else 'easy_a'}-{split}__stretch-none__fold{fold}__seed3.csv"
        frame = predictions.read(folder / name)
        assert np.array_equal(frame[predictions.PROBABILITIES], rows[predictions.PROBABILITIES]) and list(frame["image_id"]) == list(rows["image_id"])


def test_files_keep_ranks(tmp_path):
    tiny = np.array([[1e-8, 2e-8, 3e-8, 4e-8, 1 - 1e-7]])
    predictions.write(predictions.frame(["a"], tiny), tmp_path / "p.csv")
    assert np.allclose(predictions.read(tmp_path / "p.csv")[predictions.PROBABILITIES], tiny, rtol=1e-8, atol=0)


def test_the_mean_of_the_folds_is_written(easy_study, finished):
    results = finished[2]
    mean = results.graded(split="external")
    folds = [results.graded(split="external", fold=fold)[predictions.PROBABILITIES].to_numpy() for fold in (1, 2)]
    assert np.allclose(mean[predictions.PROBABILITIES], np.mean(folds, axis=0), atol=1e-6)
    written = predictions.read(easy_study.run_dir / "predictions" / "clip-as_printed__easy_b-external__stretch-none__foldmean__seed3.csv")
    assert np.allclose(written[predictions.PROBABILITIES], mean[predictions.PROBABILITIES], atol=1e-8)


def test_history_has_a_line_per_fold_epoch_and_part(easy_study, finished):
    history = pd.read_csv(easy_study.run_dir / "history" / "clip-as_printed.csv")
    for part in ("train", "held_out"):  # the held-out curve of Figure 5
        rows = history[history["part"] == part]
        assert list(zip(rows["fold"], rows["epoch"], strict=True)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert set(history["part"]) == {"train", "held_out"}


def test_a_second_run_trains_nothing_and_gives_the_same(easy_study, finished):
    before = len(statuses(easy_study))
    again = Experiment(easy_study).run(finished[1])
    assert set(statuses(easy_study, before)) == {"reused"} and again.frame.equals(finished[2].frame)


def test_another_recipe_trains_again_into_the_same_place(easy_study, finished, tmp_path):
    study, (_, main, results) = replace(easy_study, run_dir=shutil.copytree(easy_study.run_dir, tmp_path / "run")), finished
    changed = Experiment(study).run(replace(main, recipe=replace(main.recipe, learning_rate=0.02)))
    assert "built" in statuses(study) and not changed.frame["p0"].equals(results.frame["p0"])


def test_a_trained_grader_predicts_what_its_file_says(finished):
    experiment, main, results = finished
    split, part = experiment.unseen(main, 2)
    written = results.graded(split=split, fold=2)
    given = training.predict(experiment.grader(main, 2), experiment.source(main, part))
    assert split == "held_out" and list(part.rows["image_id"]) == list(written["image_id"])
    assert np.allclose(given, written[predictions.PROBABILITIES], atol=1e-5)


def test_primary_names_existing_files(easy_study, finished):
    protocols.write_primary(easy_study, finished[2])
    named = json.loads((easy_study.run_dir / "primary.json").read_text())
    assert set(named) == {"easy_a-train", "easy_a-held_out", "easy_b-external"}
    assert all((easy_study.run_dir / "predictions" / file).is_file() and "fold2" in file for file in named.values())


def test_zero_shot_and_before_training_have_prediction_files(easy_study, finished):
    experiment, main, _ = finished
    zero = experiment.run(protocols.zero_shot_arm(easy_study, "corrected"))
    assert zero.frame.groupby("split", sort=False).size().to_dict() == {"train": 80, "val": 20, "test": 20, "external": 40}
    before = experiment.run(protocols.before_arm(easy_study, main), splits=("unseen", "external"))
    assert before.splits == ["held_out", "external"] and set(before.frame["fold"]) == {protocols.main_fold(easy_study)}
    folder = easy_study.run_dir / "predictions"
    assert len(list(folder.glob("zero_shot-corrected__*.csv"))) == 4 and len(list(folder.glob("clip-as_printed-before__*.csv"))) == 2


def test_mirrored_pictures_are_graded_beside_the_others(easy_study, finished):
    experiment, main, results = finished
    both = experiment.run(main, splits=("external",), both_ways=True)
    assert both.of(mirrored=False).frame["p0"].tolist() == results.of(split="external").frame["p0"].tolist()
    assert 0 <= both.measured(["flip_disagreement"], fold=1)["flip_disagreement"] <= 1
    assert {"p0", "p0_b"} <= set(both.graded(fold=1).columns)


def test_the_external_cohort_can_be_shown_in_another_view(easy_study, finished):
    experiment, main, results = finished
    shown = experiment.run(main, splits=("external",), view=("pad", "none"))
    assert set(shown.frame["view"]) == {"pad-none"} and len(shown.frame) == 80


def test_augmented_features_are_drawn_anew_for_each_seed(easy_study):
    experiment, ours = Experiment(easy_study), protocols.our_arm(easy_study)
    several = replace(ours, recipe=replace(ours.recipe, views=2))
    part = experiment.data("training", several)
    first, second = (np.asarray(experiment.features(replace(several, seed=seed), part)) for seed in (3, 4))
    assert np.array_equal(first[0], second[0]) and not np.allclose(first[1], second[1])


def test_a_classifier_reads_the_task_that_its_arm_names(easy_study):
    experiment = Experiment(easy_study)
    arm = encoders.arm(experiment, START, "kl", Classifier("logistic regression"))
    absent = replace(arm, name="sclerosis", task="sclerosis")
    results = experiment.run(arm, splits=("unseen", "external"))
    assert results.splits == ["test", "external"] and results.measured(["qwk"], split="test")["qwk"] > 0
    assert experiment.folds(absent)[0].fit is None


def test_the_paper_shows_its_third_fold(easy_study):
    assert protocols.main_fold(replace(easy_study, profile=load("paper"))) == 3
    assert protocols.main_fold(replace(easy_study, profile=load("oai"))) == 1
    assert protocols.main_fold(easy_study) == 2  # of two


def test_a_baseline_shares_the_protocol_of_the_main_arm(easy_study):
    spec, main = easy_study.profile.baselines[1], easy_study.profile.as_printed
    made = protocols.baseline_arm(easy_study, spec)
    assert (made.name, made.scheme, made.size) == ("resnet50", "images", spec.image_size)
    assert (made.recipe.epochs, made.recipe.learning_rate, made.recipe.batch) == (spec.epochs, spec.learning_rate, spec.batch)
    assert (made.recipe.geometry, made.recipe.folds, made.recipe.normalisation) == (main.geometry, main.folds, main.normalisation)


def test_an_imagenet_network_reads_pictures_by_imagenets_statistics(easy_study, monkeypatch):
    monkeypatch.setattr("koa_lib.weights.network", lambda name, given: None)
    study = replace(easy_study, profile=replace(easy_study.profile, as_printed=None))
    spec = replace(study.profile.baselines[1], weights="imagenet")
    assert protocols.baseline_arm(study, spec).recipe.normalisation == "imagenet"


def test_a_tower_of_our_protocol_has_not_seen_the_part_that_chooses(easy_study):
    experiment = Experiment(easy_study)
    arm = protocols.official_arm(easy_study)
    (fold,) = experiment.folds(arm)
    other = encoders.arm(experiment, replace(START, name="own", source="trained"), "own", Classifier("logistic regression"))
    (reader,) = experiment.folds(other)
    assert set(fold.select.rows["image_id"]) == set(reader.select.rows["image_id"])
    assert not set(fold.fit.rows["group_id"]) & (set(reader.select.rows["group_id"]) | set(reader.reported["test"].rows["group_id"]))


# Nothing is learned from what is reported


def everything(study):
    """A whole run in small: printed and our protocol, a network, a classifier; digests of all that was learned or chosen."""
    experiment = Experiment(study)
    network = protocols.baseline_arm(study, replace(study.profile.baselines[1], epochs=1))
    arms = [protocols.main_arm(study), protocols.our_arm(study), network,
            encoders.arm(experiment, START, "labels", Classifier("XGBoost", trees=4), fraction=0.5)]
    experiment.run(*arms)
    found = {path: path.read_bytes() for path in sorted((study.run_dir / "checkpoints").rglob("*.safetensors"))}
    found |= {path: path.read_bytes() for path in (study.run_dir / "checkpoints").glob("labels*.json") if "json.json" not in path.name}
    return {path.relative_to(study.run_dir).as_posix(): content for path, content in found.items()}


def fresh(study, folder):
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    return with_systems(replace(study, run_dir=folder))


@pytest.mark.parametrize("which", ["external", "test"])
def test_shuffled_grades_of_reported_pictures_change_no_weight_and_no_choice(easy_study, tmp_path, monkeypatch, which):
    before = everything(fresh(easy_study, tmp_path / "before"))
    lists = shutil.copytree(cohort.MANIFESTS, tmp_path / "lists")
    name = "easy_b" if which == "external" else "easy_a"
    rows = read_manifest(lists / f"{name}.csv")
    of = rows["split"] == which
    mixed = rows["kl_grade"].to_numpy(copy=True)
    mixed[of] = np.random.default_rng(0).permutation(mixed[of])
    write_manifest(rows.assign(kl_grade=mixed), lists / f"{name}.csv")
    monkeypatch.setattr(cohort, "MANIFESTS", lists)
    after = everything(fresh(easy_study, tmp_path / "after"))
    if which == "test":  # the printed folds contain the test split: that is what `as_printed` means
        before, after = ({path: content for path, content in found.items() if "as_printed" not in path and "resnet" not in path} for found in (before, after))
    assert len(before) >= 3 and before.keys() == after.keys() and all(before[path] == after[path] for path in before)
