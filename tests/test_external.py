"""The external result: sets and readers, metrics beside a constant, ways of showing, and adaptation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import knees, predicted, results
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from koa_lib import external, metrics, predictions, protocols, retrieval
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.predictions import PROBABILITIES

ROWS = knees(200, "b", 1)


def answers(graded):
    return graded[PROBABILITIES].to_numpy().argmax(1)


def accuracy(graded):
    return sk.accuracy_score(graded["kl_grade"], answers(graded))


def commonest(graded):
    return graded["kl_grade"].value_counts(normalize=True).max()


def test_the_external_result_has_a_row_for_each_set_and_reader_that_graded_it():
    read = ROWS.assign(kl_grade_reader2=pd.array(ROWS["kl_grade"], "Int64"))
    read.loc[0, "kl_grade_reader2"] = pd.NA
    clip = results(*(predicted(read, 0.4, fold, fold=fold) for fold in (1, 2)), predicted(read, 1.0, seed=1))
    table = external.by_set(clip + results(predicted(ROWS, 0.3, arm="ours")))
    table = table.set_index(["arm", "set", "reader"])
    names = dict(zip(("raw", "deduplicated", "single knee"), sets.SUBSETS, strict=True))
    both = [("clip", name, reader) for name in names for reader in ("first", "second")]
    assert list(table.index) == both + [("ours", name, "first") for name in names]
    for name, subset in names.items():
        mean, row = external.derived(clip.graded(seed=0), subset), table.loc["clip", name, "first"]
        assert row["n"] == len(mean)
        assert (row["accuracy"], row["best_constant"]) == pytest.approx((accuracy(mean), commonest(mean)))
    assert table["n"]["clip", "raw", "second"] == 199


def test_every_metric_stands_beside_the_best_constant_answer():
    plain, mirrored = predicted(ROWS, 0.4), predicted(ROWS, 0.4, 1, mirrored=True)
    table = external.by_metric(results(plain, mirrored)).set_index("metric")
    for name in sets.SUBSETS:
        kept = external.derived(plain, name)
        auc = sk.roc_auc_score(kept["kl_grade"] == 4, kept["p4"])
        expected = [auc, metrics.ece(kept["kl_grade"], kept[PROBABILITIES])]
        assert table.loc[["auc_kl_4", "ece"], name].tolist() == pytest.approx(expected)
        assert table.loc["accuracy", f"{name}_constant"] == pytest.approx(commonest(kept))
    assert table["raw"]["flip_disagreement"] == (answers(plain) != answers(mirrored)).mean()
    assert table.loc["macro_auc", ["raw_constant", "raw_against"]].tolist() == [0.5, "better"]


@pytest.mark.parametrize("split", ["test", "val"])
def test_label_shift_is_measured_from_the_test_split_or_else_the_validation_split(split):
    ours = results(predicted(knees(150, "a"), 0.5, split=split), predicted(ROWS, 0.4))
    table = external.label_shift(ours).set_index("part")
    graded = external.derived(predicted(ROWS, 0.4), "deduplicated")
    assert table["value"]["external accuracy"] == pytest.approx(accuracy(graded))
    told = table[["internal", "n_internal", "n_external"]].drop_duplicates()
    assert told.to_numpy().tolist() == [[split, 150, len(graded)]]


def test_a_view_changes_the_pictures_not_the_model_and_exploratory_ones_stand_last(easy_study, monkeypatch):
    shown = (("stretch", "none"), ("stretch", "match_train"), ("center_crop", "none"), ("joint_crop", "none"))
    monkeypatch.setattr(external, "VIEWS", shown)
    experiment, arm = Experiment(easy_study), protocols.our_arm(easy_study)
    plain, views = experiment.run(arm, splits=["external"]).graded(), external.in_views(experiment, arm)
    pd.testing.assert_frame_equal(views.graded(view="stretch-none"), plain)
    for view in shown[1:]:
        graded = views.graded(view="-".join(view))
        assert list(graded["image_id"]) == list(plain["image_id"])
        assert not np.allclose(graded[PROBABILITIES], plain[PROBABILITIES])
    assert not list((easy_study.run_dir / "checkpoints").glob("*joint_crop*"))
    table = external.by_view(easy_study, views)
    assert list(zip(table["status"], table["geometry"], strict=True)) == [
        ("confirmatory", "stretch"), ("sensitivity", "center_crop"), ("exploratory", "stretch"),
        ("exploratory", "joint_crop")]


# Adaptation


@pytest.mark.parametrize("enough", [True, False])
def test_adaptations_are_named_as_not_zero_shot_and_read_from_their_files(
        easy_study, tmp_path, monkeypatch, enough):
    rows = knees(400 if enough else 40, "b")
    embeddings = np.eye(5)[rows["kl_grade"]] + 0.3 * np.random.default_rng(0).normal(size=(len(rows), 5))

    def part(places, role):
        return SimpleNamespace(rows=rows.iloc[places], at=places)

    data = SimpleNamespace(rows=rows, part=part)
    experiment = SimpleNamespace(
        study=replace(easy_study, run_dir=tmp_path), data=lambda role, arm: data,
        grader=lambda arm, fold: None, source=lambda arm, part: part)
    monkeypatch.setattr(retrieval, "image_embeddings", lambda grader, part: torch.tensor(embeddings[part.at]))
    monkeypatch.setattr(external, "DRAWS", 3)
    (tmp_path / "predictions").mkdir()
    graded = results(*(predicted(part, 0.4, fold=2, seed=3, split=split)
                       for part, split in ((knees(100, "a"), "train"), (rows, "external"))))
    table = external.adaptation(experiment, protocols.main_arm(easy_study), graded)
    assert list(zip(table["zero_shot"], table["labels"], strict=True)) == [
        ("yes", 0), ("no", 0), ("no", 25), ("no", 50), ("no", 100)]
    assert table["reason"].str.startswith("not run").tolist() == [False, False] + [not enough] * 3
    for row, adaptation, files in ((1, "em", 1), (3, "shots10-draw*", 3 * enough)):
        name = f"clip-as_printed__easy_b-external__stretch-none__fold2__seed3__{adaptation}.csv"
        written = [external.derived(predictions.join(predictions.read(path), rows), "single_knee")
                   for path in (tmp_path / "predictions").glob(name)]
        assert len(written) == files
        if files:
            assert table["accuracy"][row] == pytest.approx(np.mean(list(map(accuracy, written))))
            assert row == 1 or table["accuracy"][row] > 0.8
            assert table["best_constant"][row] == pytest.approx(np.mean(list(map(commonest, written))))
            assert (table["against_constant"][row] == "") == (row > 1)  # no interval of other pictures


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_no_group_is_in_training_and_test_and_nothing_else_leaves_the_test(seed, shots):
    generator = np.random.default_rng(seed)
    groups = generator.permutation(np.repeat(np.arange(60), generator.integers(1, 4, 60)))
    grades = (groups + generator.choice([0, 0, 0, 1], len(groups))) % 5
    rows = pd.DataFrame({"kl_grade": grades, "group_id": groups})
    train, test = (rows.iloc[part] for part in external.few_shot_split(rows, shots, generator))
    assert train["kl_grade"].value_counts().to_dict() == dict.fromkeys(range(5), shots)
    assert train["group_id"].is_unique
    assert set(test.index) == set(rows.index[~rows["group_id"].isin(train["group_id"])])


def mixed(groups):
    """Groups that each have a picture of every grade: they can run out."""
    place = np.arange(5 * groups)
    return pd.DataFrame({"kl_grade": place % 5, "group_id": place // 5})


@pytest.mark.parametrize(("rows", "shots", "named"), [
    (knees(50), 4, r"has 4 group"), (knees(50).query("kl_grade < 4"), 1, "Grade 4 has 0 group"),
    (mixed(3), 1, r"has 3 group"), (mixed(5), 1, "no group is left")])
def test_few_shots_that_cannot_be_drawn_are_refused(rows, shots, named):
    with pytest.raises(StudyError, match=named):
        external.few_shot_split(rows, shots, np.random.default_rng(0))
