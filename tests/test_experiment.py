"""The experiment: who fits, chooses and reports, what a run leaves, and that nothing reported is learned."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from koa_lib import cohort, predictions, protocols, training
from koa_lib.classifiers import Classifier
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.experiment import Experiment
from koa_lib.predictions import PROBABILITIES
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
    lines = (study.run_dir / "run.jsonl").read_text().splitlines()
    return [json.loads(line)["status"] for line in lines[since:]]


def ids(part):
    return set(part.rows["image_id"])


def test_every_fold_is_reported_on_every_part(easy_study, finished):
    results = finished[2]
    sizes = results.frame.groupby(["split", "fold"], sort=False).size().unstack().to_dict("index")
    assert sizes == {"train": {1: 60, 2: 60}, "held_out": {1: 60, 2: 60}, "external": {1: 40, 2: 40}}
    listed = read_manifest(easy_study.run_dir.parent / "manifests" / "easy_a.csv")
    assert sorted(results.graded(split="held_out")["image_id"]) == sorted(listed["image_id"])


def test_results_are_what_the_files_say_and_the_mean_of_the_folds_has_a_file(easy_study, finished):
    def written(split, fold):
        name = f"clip-as_printed__easy_{'b' if split == 'external' else 'a'}-{split}__stretch-none"
        return predictions.read(easy_study.run_dir / "predictions" / f"{name}__fold{fold}__seed3.csv")

    for (split, fold), rows in finished[2].frame.groupby(["split", "fold"]):
        assert np.array_equal(written(split, fold)[PROBABILITIES], rows[PROBABILITIES])
        assert list(written(split, fold)["image_id"]) == list(rows["image_id"])
    mean, folds = finished[2].graded(split="external"), [written("external", fold) for fold in (1, 2)]
    assert np.allclose(mean[PROBABILITIES], sum(one[PROBABILITIES] for one in folds) / 2, atol=1e-6)
    assert np.allclose(written("external", "mean")[PROBABILITIES], mean[PROBABILITIES], atol=1e-8)


def test_the_history_has_a_line_per_fold_epoch_and_part(easy_study, finished):
    history = pd.read_csv(easy_study.run_dir / "history" / "clip-as_printed.csv")
    for _, rows in history.groupby("part"):
        assert list(zip(rows["fold"], rows["epoch"], strict=True)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert set(history["part"]) == {"train", "held_out"}  # the latter is the curve of Figure 5


def test_a_second_run_trains_nothing_and_another_recipe_trains_again(easy_study, finished, tmp_path):
    main, results, before = *finished[1:], len(statuses(easy_study))
    assert Experiment(easy_study).run(main).frame.equals(results.frame)
    assert set(statuses(easy_study, before)) == {"reused"}
    study = replace(easy_study, run_dir=shutil.copytree(easy_study.run_dir, tmp_path / "run"))
    changed = Experiment(study).run(replace(main, recipe=replace(main.recipe, learning_rate=0.02)))
    assert "built" in statuses(study) and not changed.frame["p0"].equals(results.frame["p0"])


def test_a_trained_grader_predicts_what_its_file_says(finished):
    experiment, main, results = finished
    split, part = experiment.unseen(main, 2)
    given = training.predict(experiment.grader(main, 2), experiment.source(main, part))
    assert split == "held_out"
    assert np.allclose(given, results.graded(split=split, fold=2)[PROBABILITIES], atol=1e-5)


def test_primary_names_existing_files(easy_study, finished):
    protocols.write_primary(easy_study, finished[2])
    named = json.loads((easy_study.run_dir / "primary.json").read_text())
    assert set(named) == {"easy_a-train", "easy_a-held_out", "easy_b-external"}
    assert all((easy_study.run_dir / "predictions" / file).is_file() for file in named.values())
    assert all("fold2" in file for file in named.values())


def test_zero_shot_and_the_model_before_training_are_graded_too(easy_study, finished):
    experiment, main, _ = finished
    zero = experiment.run(protocols.zero_shot_arm(easy_study, "corrected"))
    sizes = zero.frame["split"].value_counts().to_dict()
    assert sizes == {"train": 80, "external": 40, "val": 20, "test": 20}
    before = experiment.run(protocols.before_arm(easy_study, main), splits=("unseen", "external"))
    assert before.splits == ["held_out", "external"]
    assert set(before.frame["fold"]) == {protocols.main_fold(easy_study)}


def test_augmented_features_are_drawn_anew_for_each_seed(easy_study):
    experiment, ours = Experiment(easy_study), protocols.our_arm(easy_study)
    several = replace(ours, recipe=replace(ours.recipe, views=2))
    part = experiment.data("training", several)
    first, second = (np.asarray(experiment.features(replace(several, seed=seed), part)) for seed in (3, 4))
    assert np.array_equal(first[0], second[0]) and not np.allclose(first[1], second[1])


def test_a_classifier_reads_the_task_that_its_arm_names(easy_study):
    experiment = Experiment(easy_study)
    arm = encoders.arm(experiment, START, "kl", Classifier("logistic regression"))
    results = experiment.run(arm, splits=("unseen", "external"))
    assert results.splits == ["test", "external"] and results.measured(["qwk"], split="test")["qwk"] > 0
    assert experiment.folds(replace(arm, name="sclerosis", task="sclerosis"))[0].fit is None  # not graded


@pytest.mark.parametrize(("name", "fold"), [("paper", 3), ("oai", 1), ("", 2)])
def test_the_paper_shows_its_third_fold_and_others_one_that_they_have(easy_study, name, fold):
    study = replace(easy_study, profile=load(name)) if name else easy_study
    assert protocols.main_fold(study) == fold


def test_a_baseline_shares_the_protocol_of_the_main_arm(easy_study):
    spec, main = easy_study.profile.baselines[1], easy_study.profile.as_printed
    made = protocols.baseline_arm(easy_study, spec)
    own = {name: getattr(spec, name) for name in ("epochs", "learning_rate", "batch")}
    shared = {name: getattr(main, name) for name in ("geometry", "folds", "normalisation")}
    assert vars(made.recipe) == {**vars(made.recipe), **own, **shared}
    assert (made.name, made.scheme, made.size) == ("resnet50", "images", spec.image_size)


def test_a_tower_of_our_protocol_has_not_seen_the_part_that_chooses(easy_study):
    experiment, trained = Experiment(easy_study), replace(START, name="own", source="trained")
    classifier = encoders.arm(experiment, trained, "own", Classifier("logistic regression"))
    (tower,), (reader,) = (experiment.folds(arm) for arm in (protocols.official_arm(easy_study), classifier))
    fitted, chosen, tested = (set(part.rows["group_id"])
                              for part in (tower.fit, reader.select, reader.reported["test"]))
    assert ids(tower.select) == ids(reader.select) and not fitted & (chosen | tested)


# Nothing is learned from what is reported


def everything(study, folder):
    """A whole run in small: both protocols, a network, a classifier; all that was learned or chosen."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    study = replace(study, run_dir=folder)
    experiment, network = Experiment(study), replace(study.profile.baselines[1], epochs=1)
    classifier = encoders.arm(experiment, START, "labels", Classifier("XGBoost", trees=4), fraction=0.5)
    arms = protocols.main_arm(study), protocols.our_arm(study), protocols.baseline_arm(study, network)
    experiment.run(*arms, classifier)
    found = [*folder.glob("checkpoints/**/*.safetensors"), *folder.glob("checkpoints/labels*seed3.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def learned(easy_study, tmp_path_factory):
    return everything(easy_study, tmp_path_factory.mktemp("before"))


@pytest.mark.parametrize(("cohort_of", "split"), [("easy_b", "external"), ("easy_a", "test")])
def test_shuffled_grades_of_reported_pictures_change_no_weight_and_no_choice(
        easy_study, learned, tmp_path, monkeypatch, cohort_of, split):
    lists = shutil.copytree(cohort.MANIFESTS, tmp_path / "lists")
    rows = read_manifest(lists / f"{cohort_of}.csv")
    mixed, of = rows["kl_grade"].to_numpy(copy=True), rows["split"] == split
    mixed[of] = np.random.default_rng(0).permutation(mixed[of])
    write_manifest(rows.assign(kl_grade=mixed), lists / f"{cohort_of}.csv")
    monkeypatch.setattr(cohort, "MANIFESTS", lists)
    after = everything(easy_study, tmp_path / "after")
    # The printed folds contain the test split: that is what `as_printed` means.
    printed = ("as_printed", "resnet") if split == "test" else ()
    kept = [path for path in learned if not any(name in path for name in printed)]
    assert len(kept) >= 3 and learned.keys() == after.keys()
    assert any("labels" in path for path in kept) and all(learned[path] == after[path] for path in kept)


def test_a_run_of_no_arms_is_an_empty_table(easy_study):
    table = Experiment(easy_study).confirmatory().table(["qwk"])
    assert table.empty and {"arm", "split", "qwk_low"} <= set(table)
