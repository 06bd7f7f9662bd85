"""Protocols, the runner and comparisons: who fits, chooses and reports, and what a run leaves behind."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, easy_dataset
from koa_lib.runner import Runner

from koa_lib import comparison, external, predictions, protocols, readings
from koa_lib.data import sets
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.profile import load
from koa_lib.protocols import Arm


def official_data(patients=120):
    data = easy_dataset(2 * patients, size=4)
    cycle = np.repeat(np.arange(patients) // 5 % 10, 2)
    data.rows["split"] = np.select([cycle == 0, cycle <= 2], ["val", "test"], "train")
    return data


def arm(scheme, folds=5, patience=0):
    return Arm("arm", replace(TINY, folds=folds, patience=patience), build=None, seed=0, scheme=scheme)


def ids(part):
    return set(part.rows["image_id"])


def groups(part):
    return set(part.rows["group_id"])


def test_as_printed_folds_are_over_all_pictures():
    data = official_data()
    made = protocols.folds(data, arm("images"), seed=0)
    assert [fold.number for fold in made] == [1, 2, 3, 4, 5]
    assert sorted(name for fold in made for name in ids(fold.reported["held_out"])) == sorted(ids(data))
    for fold in made:
        assert fold.select is None and fold.fit.role == "fit" and set(fold.reported) == {"train", "held_out"}
        assert ids(fold.fit) == ids(fold.reported["train"]) == ids(data) - ids(fold.reported["held_out"])
        assert set(fold.fit.rows["split"]) == {"train", "val", "test"}
    assert any(groups(fold.fit) & groups(fold.reported["held_out"]) for fold in made)


@pytest.mark.parametrize("folds", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_our_protocol_keeps_patients_together_and_never_fits_on_test(folds, seed):
    data = official_data()
    made = protocols.folds(data, arm("official", folds=folds), seed)
    assert len(made) == max(1, folds)
    for fold in made:
        assert (fold.fit.role, fold.select.role) == ("fit", "select")
        learned = groups(fold.fit) | groups(fold.select)
        assert not groups(fold.fit) & groups(fold.select)
        assert "test" not in set(fold.fit.rows["split"]) | set(fold.select.rows["split"])
        for name, part in fold.reported.items():
            assert part.role == "report"
            assert name == "train" or not groups(part) & learned, name
        assert set(fold.reported["test"].rows["split"]) == {"test"} and len(fold.reported["test"]) == (data.rows["split"] == "test").sum()


def test_folds_over_patients_part_no_patient_and_cover_everything():
    data = official_data()
    made = protocols.folds(data, arm("patients"), seed=0)
    assert sorted(name for fold in made for name in ids(fold.reported["held_out"])) == sorted(ids(data))
    for fold in made:
        assert fold.select is None and not groups(fold.fit) & groups(fold.reported["held_out"])


@pytest.mark.parametrize("scheme", ["images", "patients"])
def test_early_stopping_is_decided_inside_the_training_part(scheme):
    data = official_data()
    for fold in protocols.folds(data, arm(scheme, patience=5), seed=0):
        assert ids(fold.fit) | ids(fold.select) == ids(fold.reported["train"]) and not groups(fold.fit) & groups(fold.select)
        assert not ids(fold.select) & ids(fold.reported["held_out"]) and fold.select.role == "select"


def test_our_folds_hold_out_train_and_val_once():
    data = official_data()
    held_out = [name for fold in protocols.folds(data, arm("official"), 0) for name in ids(fold.reported["held_out"])]
    assert sorted(held_out) == sorted(data.rows.loc[data.rows["split"] != "test", "image_id"])


def test_official_split_reports_val_and_nothing_absent():
    data = official_data()
    data = data.part(np.flatnonzero(data.rows["split"] != "test"), "any")
    (fold,) = protocols.folds(data, arm("official", folds=0), 0)
    assert set(fold.reported) == {"train", "val"} and protocols.unseen_split(fold.reported) == "val"
    assert set(fold.select.rows["split"]) == {"train"}


def test_cohort_without_training_pictures_is_refused_in_words():
    # E.g. DATA points at the val folder alone.
    data = official_data()
    data = data.part(np.flatnonzero(data.rows["split"] == "val"), "any")
    with pytest.raises(StudyError, match="train"):
        protocols.folds(data, arm("official", folds=0), 0)


@pytest.mark.parametrize("splits, unseen", [(("train", "held_out", "test"), "test"), (("train", "held_out", "external"), "held_out"), (("train", "val"), "val")])
def test_unseen_split_is_never_the_training_part_or_the_external_set(splits, unseen):
    assert protocols.unseen_split(dict.fromkeys(splits)) == unseen


def test_paper_shows_its_third_fold(easy_study):
    assert protocols.main_fold(replace(easy_study, profile=load("paper"))) == 3
    assert protocols.main_fold(replace(easy_study, profile=load("oai"))) == 1
    assert protocols.main_fold(easy_study) == 2  # of two


def test_readings_change_one_factor(easy_study):
    study = replace(easy_study, profile=replace(easy_study.profile, as_printed=replace(load("paper").as_printed, folds=2)))
    main, made = protocols.main_arm(study), readings.arms(study)
    assert len({item.name for _, item in made}) == len(made) == len(readings.READINGS)
    for reading, item in made:
        changed = {name for name, value in item.recipe.__dict__.items() if value != getattr(main.recipe, name)}
        assert set(reading.change) == changed - {"epochs"} and len(reading.change) == 1, reading
        assert item.only == (2,) and item.scheme == main.scheme and item.seed == main.seed


def test_readings_that_train_blocks_get_the_profiles_epochs(easy_study):
    epochs = {item.recipe.part: item.recipe.epochs for _, item in readings.arms(easy_study)}
    assert epochs["full_image"] == epochs["both_encoders"] == epochs["last_blocks"] == easy_study.profile.tower_epochs == 1
    assert epochs["adapter"] == epochs["projection"] == easy_study.profile.as_printed.epochs


def test_baseline_shares_the_protocol_of_the_main_arm(easy_study):
    spec = easy_study.profile.baselines[1]
    made = protocols.baseline_arm(easy_study, spec)
    main = easy_study.profile.as_printed
    assert made.name == "resnet50" and made.scheme == "images" and made.recipe.image_size == spec.image_size
    assert (made.recipe.epochs, made.recipe.learning_rate, made.recipe.batch) == (spec.epochs, spec.learning_rate, spec.batch)
    assert (made.recipe.geometry, made.recipe.folds, made.recipe.normalisation) == (main.geometry, main.folds, main.normalisation)


# The runner on real files


@pytest.fixture(scope="module")
def finished(easy_study):
    """The main arm, its results and the runner."""
    runner, main = Runner(easy_study), protocols.main_arm(easy_study)
    return runner, main, runner.run(main)


def status_of(study, since=0):
    return [json.loads(line)["status"] for line in (study.run_dir / "run.jsonl").read_text().splitlines()[since:]]


def test_run_reports_every_fold_on_every_part(easy_study, finished):
    _, _, results = finished
    assert {name: len(frames) for name, frames in results.items()} == {"train": 2, "held_out": 2, "external": 2}
    held_out = pd.concat(results["held_out"])
    assert sorted(held_out["image_id"]) == sorted(read_manifest(easy_study.run_dir.parent / "manifests" / "easy_a.csv")["image_id"])
    assert [frame.attrs["fold"] for frame in results["external"]] == [1, 2] and all(len(frame) == 40 for frame in results["external"])


def test_prediction_files_are_named_by_the_contract(easy_study, finished):
    found = {path.name for path in (easy_study.run_dir / "predictions").glob("clip-as_printed__*fold[12]*.csv")}
    assert found == {f"clip-as_printed__{part}__stretch-none__fold{k}__seed3.csv" for k in (1, 2) for part in ("easy_a-train", "easy_a-held_out", "easy_b-external")}


def test_prediction_files_hold_the_results(easy_study, finished):
    _, _, results = finished
    frame = predictions.read(easy_study.run_dir / "predictions" / "clip-as_printed__easy_a-held_out__stretch-none__fold2__seed3.csv")
    graded = predictions.join(frame, read_manifest(easy_study.run_dir.parent / "manifests" / "easy_a.csv"))
    assert graded[["image_id", "kl_grade", "p0", "p4"]].equals(results["held_out"][1][["image_id", "kl_grade", "p0", "p4"]])


def test_history_has_a_line_per_fold_and_epoch(easy_study, finished):
    history = pd.read_csv(easy_study.run_dir / "history" / "clip-as_printed.csv")
    assert list(history.columns) == ["model", "fold", "epoch", "part", "loss", "accuracy"]
    for part in ("train", "held_out"):  # the held-out curve of Figure 5
        rows = history[history["part"] == part]
        assert list(zip(rows["fold"], rows["epoch"], strict=True)) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert set(history["part"]) == {"train", "held_out"}


def test_second_run_trains_nothing_and_gives_the_same(easy_study, finished):
    _, main, results = finished
    before = len(status_of(easy_study))
    again = Runner(easy_study).run(main)
    assert set(status_of(easy_study, before)) == {"reused"}
    assert all(a.equals(b) for name in results for a, b in zip(results[name], again[name], strict=True))


def test_another_recipe_trains_again_into_the_same_place(easy_study, finished, tmp_path):
    import shutil

    run = shutil.copytree(easy_study.run_dir, tmp_path / "run")
    study, (_, main, results) = replace(easy_study, run_dir=run), finished
    before = len(status_of(study))
    changed = Runner(study).run(replace(main, recipe=replace(main.recipe, learning_rate=0.02)))
    assert "built" in status_of(study, before)
    assert not changed["held_out"][0]["p0"].equals(results["held_out"][0]["p0"])


def test_grader_of_a_fold_predicts_what_its_file_says(finished):
    from koa_lib import training

    runner, main, results = finished
    grader = runner.grader(main, 2)
    part, source = runner.unseen(main, grader)
    assert list(part.rows["image_id"]) == list(results["held_out"][1]["image_id"])
    assert np.allclose(training.predict(grader, source), results["held_out"][1][predictions.PROBABILITIES], atol=1e-5)


def test_primary_names_existing_files(easy_study, finished):
    _, main, results = finished
    protocols.write_primary(easy_study, main, results)
    named = json.loads((easy_study.run_dir / "primary.json").read_text())
    assert set(named) == {"easy_a-train", "easy_a-held_out", "easy_b-external"}
    assert all((easy_study.run_dir / "predictions" / file).is_file() and "fold2" in file for file in named.values())


def test_fold_mean_is_the_mean_of_the_folds(easy_study, finished):
    _, main, results = finished
    mean = protocols.fold_mean(easy_study, main, results, "external")
    expected = sum(frame[predictions.PROBABILITIES] for frame in results["external"]) / 2
    assert np.allclose(mean[predictions.PROBABILITIES], expected, atol=1e-5) and list(mean["kl_grade"]) == list(results["external"][0]["kl_grade"])
    written = predictions.read(easy_study.run_dir / "predictions" / "clip-as_printed__easy_b-external__stretch-none__foldmean__seed3.csv")
    assert np.allclose(written[predictions.PROBABILITIES], expected, atol=1e-5)
    assert protocols.fold_mean(easy_study, main, results, "test") is None


def test_zero_shot_grades_every_official_split_untrained(easy_study, finished):
    results = finished[0].zero_shot("corrected")
    assert {name: len(frame) for name, frame in results.items()} == {"train": 80, "val": 20, "test": 20, "external": 40}
    assert len(list((easy_study.run_dir / "predictions").glob("zero_shot-corrected__*.csv"))) == 4


def test_our_arm_runs_its_folds(easy_study, finished):
    results = finished[0].run(protocols.our_arm(easy_study))
    assert {name: len(frames) for name, frames in results.items()} == {"train": 2, "held_out": 2, "test": 2, "external": 2}
    assert set(results["test"][0]["split"]) == {"test"}
    assert set(pd.read_csv(easy_study.run_dir / "history" / "clip-our_protocol.csv")["part"]) == {"train", "inner"}


# Comparisons


def test_fold_table_has_the_metrics_of_each_fold(finished):
    from sklearn import metrics as sk

    results = finished[2]
    table = comparison.fold_table(results)
    assert len(table) == 6
    row, graded = table[(table["part"] == "external") & (table["fold"] == 2)].iloc[0], results["external"][1]
    predicted = graded[predictions.PROBABILITIES].to_numpy().argmax(1)
    assert row["n"] == 40 and row["accuracy"] == pytest.approx(sk.accuracy_score(graded["kl_grade"], predicted))
    assert row["qwk"] == pytest.approx(sk.cohen_kappa_score(graded["kl_grade"], predicted, weights="quadratic", labels=range(5)))


def test_the_model_before_training_grades_the_same_pictures(easy_study, finished):
    runner, arm, results = finished
    before = comparison.before_training(easy_study, runner, arm, results)
    assert set(before) == {"held_out", "external"} and before["held_out"][0].attrs["fold"] == protocols.main_fold(easy_study)
    after = comparison.shown_fold(easy_study, results, "held_out")
    assert list(before["held_out"][0]["image_id"]) == list(after["image_id"])


def test_external_rows_cover_set_and_reader(easy_study, finished):
    graded = finished[2]["external"][0]
    rows = external.by_set(easy_study, {"clip": graded})
    assert list(rows["set"]) == ["raw", "deduplicated", "single knee"] and set(rows["reader"]) == {"first"}
    both = graded.assign(kl_grade_reader2=pd.array(graded["kl_grade"], "Int64"))
    both.loc[0, "kl_grade_reader2"] = pd.NA
    second = external.by_set(easy_study, {"clip": both})
    assert list(second.loc[second["reader"] == "second", "n"]) == [39, 39, 39]
    assert ((rows["ci_low"] <= rows["accuracy"]) & (rows["accuracy"] <= rows["ci_high"])).all()


def test_paired_tests_count_what_only_one_grades_right(easy_study, finished):
    results = finished[2]
    mean = comparison.fold_means(results, "external", [1, 2])
    perfect = results["external"][0].copy()
    perfect[predictions.PROBABILITIES] = np.eye(5)[perfect["kl_grade"]]
    wrong_in_both = {name: int((frame[predictions.PROBABILITIES].to_numpy().argmax(1) != frame["kl_grade"]).sum()) for name, frame in (("mean", mean), ("first", results["external"][0]))}
    table = comparison.paired_tests(easy_study, results, {"perfect": {"external": [perfect]}, "same": results}, "external").set_index("baseline")
    assert list(table["folds"]) == [1, 2]  # one fold against one, two against two
    assert table.loc["perfect", "clip_only"] == 0 and table.loc["perfect", "baseline_only"] == wrong_in_both["first"]
    assert table.loc["perfect", "difference"] == pytest.approx(-wrong_in_both["first"] / 40)
    assert table.loc["same", "difference"] == 0 and table.loc["same", "p_exact"] == 1
    assert (table["p_holm"] >= table["p_exact"]).all()
    assert list(table["ahead"]) == ["baseline", "not clear"] and table["one_answer"].between(0.2, 1).all()
    assert comparison.paired_tests(easy_study, results, {}, "external").empty


def test_fold_means_average_what_is_asked_for(easy_study, finished):
    frames = finished[2]["external"]
    values = [frame[predictions.PROBABILITIES].to_numpy() for frame in frames]
    for numbers, expected in (([1], values[0]), ([1, 2], (values[0] + values[1]) / 2)):
        assert np.allclose(comparison.fold_means(finished[2], "external", numbers)[predictions.PROBABILITIES], expected, atol=1e-5)
    assert comparison.common_folds(finished[2], {"external": frames[1:]}, split="external") == [2]


def test_leak_is_the_difference_of_the_pooled_held_out_folds(easy_study, finished):
    runner, _, by_image = finished
    by_patient = runner.run(protocols.patients_arm(easy_study))
    table = comparison.leak(easy_study, by_image, by_patient).set_index("metric")
    for column, found in (("by_image", by_image), ("by_patient", by_patient)):
        pooled = pd.concat(found["held_out"])
        right = pooled[predictions.PROBABILITIES].to_numpy().argmax(1) == pooled["kl_grade"]
        assert len(pooled) == 120 and table.loc["accuracy", column] == pytest.approx(right.mean())
    assert (table["parted_by_image"] > 0.2).all() and (table["parted_by_patient"] == 0).all() and (table["n"] == 120).all()


def test_seeds_train_again_on_the_same_folds(easy_study, finished):
    runs = finished[0].run_seeds()
    assert list(runs) == [3, 4] and {frame.attrs["seed"] for frame in runs[4]["external"]} == {4}
    assert not runs[3]["external"][0]["p0"].equals(runs[4]["external"][0]["p0"])
    assert list(runs[3]["held_out"][0]["image_id"]) == list(runs[4]["held_out"][0]["image_id"])  # the folds stay


def test_mirrored_pictures_are_graded_anew_and_kept_apart(easy_study, finished):
    runner, main, results = finished
    frames = runner.mirrored(main)
    assert [frame.attrs["fold"] for frame in frames] == [1, 2]
    for plain, mirrored in zip(results["external"], frames, strict=True):
        assert list(plain["image_id"]) == list(mirrored["image_id"]) and not plain["p0"].equals(mirrored["p0"])
    assert len(list((easy_study.run_dir / "predictions").glob("clip-as_printed__easy_b-external__*__mirrored.csv"))) == 2
    data = runner.data("external", main.recipe)
    assert np.array_equal(replace(data, mirrored=True).images([0])[0], data.images([0])[0][:, ::-1])


# Readings and the external cohort


def test_reading_table_has_a_row_per_option_and_the_paired_difference(easy_study, finished):
    runner, _, printed = finished
    chosen = [(reading, made) for reading, made in readings.arms(easy_study) if reading.factor in ("loss", "residual ratio")]
    found = [(reading, made, runner.run(made)) for reading, made in chosen]
    table = readings.table(easy_study, printed, found)
    assert list(table["option"]) == ["as printed", "0.4", "0.6", "0.8", "1", "symmetric InfoNCE"]
    assert np.allclose(table["difference"], table["qwk"] - table["qwk"][0]) and (table["qwk_low"] <= table["qwk_high"]).all()
    assert (table.loc[1:, "difference_low"] <= table.loc[1:, "difference_high"]).all() and (table["n"] == 60).all()


def test_every_metric_stands_beside_the_best_constant_answer(easy_study, finished):
    runner, main, results = finished
    graded, mirrored = results["external"][0], runner.mirrored(main)[0]
    table = external.by_metric(easy_study, graded, mirrored).set_index("metric")
    for name in sets.SUBSETS:
        kept = external.derived(graded, name)
        assert table.loc["accuracy", f"{name}_constant"] == pytest.approx(kept["kl_grade"].value_counts(normalize=True).max())
        assert set(table[f"{name}_against"]) <= {"better", "worse", "not clear", ""}
    mean = external.mirrored(easy_study, runner, main)
    assert np.allclose(mean["p0"], np.mean([frame["p0"] for frame in runner.mirrored(main)], axis=0), atol=1e-5)
    changed = graded[predictions.PROBABILITIES].to_numpy().argmax(1) != mirrored[predictions.PROBABILITIES].to_numpy().argmax(1)
    assert table.loc["flip_disagreement", "raw"] == pytest.approx(changed.mean())
    assert {"balanced_accuracy", "macro_precision", "macro_f1", "qwk", "linear_kappa", "mae", "within_one", "macro_auc", "ece", *(f"auc_kl_{g}" for g in range(5))} <= set(table.index)


def test_adaptations_are_named_as_not_zero_shot(easy_study, finished):
    runner, main, results = finished
    study, graded = replace(easy_study, profile=replace(easy_study.profile, draws=20)), results["external"][1]
    table = external.adaptation(study, runner, main, results)
    assert list(table["zero_shot"]) == ["yes"] + ["no"] * (len(table) - 1) and len(table) == 2 + len(external.SHOTS)
    assert table["reason"][2:].str.startswith("not run: ").all()  # four groups a grade
    constant = external.derived(graded, "single_knee")["kl_grade"].value_counts(normalize=True).max()
    assert list(table["best_constant"][:2]) == pytest.approx([constant] * 2)
    assert list((study.run_dir / "predictions").glob("clip-as_printed__easy_b-external__*fold2__seed3__em.csv"))
    assumed = table[[f"assumed_{grade}" for grade in range(5)]][:2]
    assert assumed.sum(axis=1).tolist() == pytest.approx([1, 1]) and not np.allclose(*assumed.to_numpy())
