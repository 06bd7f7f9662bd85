"""The external result: sets and readers, metrics beside a constant, ways of showing, and adaptation."""

import warnings
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
from sklearn.exceptions import ConvergenceWarning

from koa_lib import external, metrics, predictions, protocols, retrieval
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.images.shape import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES

ROWS = knees(200, "b", 1)
seeds = st.integers(0, 2**32 - 1)


def answers(graded):
    return graded[PROBABILITIES].to_numpy().argmax(1)


def test_the_external_result_has_a_row_for_each_set_and_reader_that_graded_it():
    read = ROWS.assign(kl_grade_reader2=pd.array(ROWS["kl_grade"], "Int64"))
    read.loc[0, "kl_grade_reader2"] = pd.NA
    clip = results(*(predicted(read, 0.4, fold, fold=fold) for fold in (1, 2)), predicted(read, 1.0, seed=1))
    table = external.by_set(clip + results(predicted(ROWS, 0.3, arm="ours")))
    assert list(table["set"]) == [
        name for name in ("raw", "deduplicated", "single knee") for _ in range(2)
    ] + ["raw", "deduplicated", "single knee"]
    assert list(table["reader"][:2]) == ["first", "second"] and set(table["reader"][6:]) == {"first"}
    mean = clip.graded(seed=0)
    assert table["accuracy"][0] == pytest.approx(sk.accuracy_score(mean["kl_grade"], answers(mean)))
    assert list(table["n"][:2]) == [200, 199] and (table["n"][2], table["n"][4]) == tuple(
        len(sets.subset(ROWS, name)) for name in sets.SUBSETS[1:]
    )
    assert ((table["ci_low"] <= table["accuracy"]) & (table["accuracy"] <= table["ci_high"])).all()
    assert table["best_constant"][0] == pytest.approx(ROWS["kl_grade"].value_counts(normalize=True).max())


def test_every_metric_stands_beside_the_best_constant_answer():
    plain, mirrored = predicted(ROWS, 0.4), predicted(ROWS, 0.4, 1, mirrored=True)
    table = external.by_metric(results(plain, mirrored)).set_index("metric")
    for name in sets.SUBSETS:
        kept = external.derived(plain, name)
        assert table.loc["accuracy", f"{name}_constant"] == pytest.approx(
            kept["kl_grade"].value_counts(normalize=True).max()
        )
        assert table.loc["auc_kl_4", name] == pytest.approx(
            sk.roc_auc_score(kept["kl_grade"] == 4, kept["p4"])
        )
        assert table.loc["ece", name] == pytest.approx(metrics.ece(kept["kl_grade"], kept[PROBABILITIES]))
        assert set(table[f"{name}_against"]) <= {"better", "worse", "not clear", ""}
    assert table.loc["flip_disagreement", "raw"] == pytest.approx(
        (answers(plain) != answers(mirrored)).mean()
    )
    assert (
        table.loc["macro_auc", ["raw_constant", "raw_against"]].tolist() == [0.5, "better"]
        and table.loc["ece", "raw_against"] == ""
    )
    assert {
        "balanced_accuracy",
        "macro_precision",
        "macro_f1",
        "qwk",
        "linear_kappa",
        "mae",
        "within_one",
    } < set(table.index)


def test_label_shift_is_measured_from_the_test_split_or_else_the_validation_split():
    inside = knees(150, "a")
    for split in ("test", "val"):
        ours = results(
            predicted(inside, 0.5, split=split), *(predicted(ROWS, 0.4, fold, fold=fold) for fold in (1, 2))
        )
        table = external.label_shift(ours).set_index("part")
        graded = external.derived(ours.graded(split="external"), "deduplicated")
        assert table["value"]["external accuracy"] == pytest.approx(
            sk.accuracy_score(graded["kl_grade"], answers(graded))
        )
        assert (
            (table["internal"] == split).all()
            and (table["n_internal"] == 150).all()
            and (table["n_external"] == len(graded)).all()
        )


# Ways of showing


@pytest.fixture(scope="module")
def shown(easy_study):
    experiment, arm = Experiment(easy_study), protocols.our_arm(easy_study)
    return experiment.run(arm, splits=["external"]), external.in_views(experiment, arm), easy_study


def test_a_view_changes_the_pictures_and_not_the_model(shown):
    trained, views, study = shown
    assert views.frame["view"].unique().tolist() == ["-".join(view) for view in VIEWS]
    plain = views.graded(view="stretch-none")
    pd.testing.assert_frame_equal(plain, trained.graded())
    for where, found in views.each("view"):
        graded = found.graded()
        assert list(graded["image_id"]) == list(plain["image_id"])
        assert where["view"] in ("stretch-none", "pad-none", "split-none") or not np.allclose(
            graded[PROBABILITIES], plain[PROBABILITIES]
        )
    assert not list((study.run_dir / "checkpoints").glob("*joint_crop*"))


def test_exploratory_views_are_named_so_and_stand_last(shown):
    _, views, study = shown
    table = external.by_view(study, views)
    for row in table.itertuples():
        assert (row.status == "exploratory") == bool({row.geometry, row.intensity} & EXPLORATORY)
    assert (
        list(table["status"] == "confirmatory") == [True] + [False] * (len(VIEWS) - 1)
        and list(table["as_trained"]).count("yes") == 1
    )
    assert (table["status"] == "exploratory").is_monotonic_increasing and (
        table["ci_low"] <= table["accuracy"]
    ).all()


# Adaptation


@pytest.mark.parametrize("enough", [True, False])
def test_adaptations_are_named_as_not_zero_shot_and_read_from_their_files(
    easy_study, tmp_path, monkeypatch, enough
):
    study = replace(easy_study, run_dir=tmp_path)
    arm = protocols.main_arm(study)
    rows = knees(400 if enough else 40, "b").assign(split="external")
    embeddings = np.eye(5)[rows["kl_grade"]] + 0.3 * np.random.default_rng(0).normal(size=(len(rows), 5))
    data = SimpleNamespace(
        rows=rows, part=lambda places, role: SimpleNamespace(rows=rows.iloc[places], places=places)
    )
    experiment = SimpleNamespace(
        study=study, data=lambda role, arm: data, grader=lambda arm, fold: None, source=lambda arm, part: part
    )
    monkeypatch.setattr(
        retrieval, "image_embeddings", lambda grader, part: torch.tensor(embeddings[part.places])
    )
    parts = {"train": knees(100, "a").query("kl_grade > 0 or image_id < 'a2'"), "external": rows}
    (tmp_path / "predictions").mkdir()
    table = external.adaptation(
        experiment,
        arm,
        results(
            *(predicted(part, 0.4, fold=2, seed=study.seed, split=split) for split, part in parts.items())
        ),
    )
    assert list(table["zero_shot"]) == ["yes", "no", "no", "no", "no"] and list(table["labels"]) == [
        0,
        0,
        25,
        50,
        100,
    ]
    assert table["reason"].str.startswith("not run: ").tolist() == [False, False] + [not enough] * 3
    files = sorted(
        (tmp_path / "predictions").glob("clip-as_printed__easy_b-external__stretch-none__fold2__seed3__*.csv")
    )
    assert len(files) == 1 + enough * 3 * external.DRAWS
    kept = sets.subset(rows, "single_knee")
    em = predictions.join(predictions.read(next(file for file in files if "__em." in file.name)), rows).query(
        "image_id in @kept"
    )
    assert table["accuracy"][1] == pytest.approx(sk.accuracy_score(em["kl_grade"], answers(em)))
    if enough:
        shots = [
            predictions.join(predictions.read(file), rows) for file in files if "__shots10-draw" in file.name
        ]
        accuracy = [sk.accuracy_score(graded["kl_grade"], answers(graded)) for graded in shots]
        constant = [graded["kl_grade"].value_counts(normalize=True).max() for graded in shots]
        row = table.set_index("labels").loc[50]
        assert row["accuracy"] == pytest.approx(np.mean(accuracy)) and row["best_constant"] == pytest.approx(
            np.mean(constant)
        )
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.percentile(accuracy, [2.5, 97.5])))
        assert (
            row["against_constant"] == "better" and row["accuracy"] > 0.8 and set(shots[0]["image_id"]) < kept
        )


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 4))
def test_no_group_is_in_training_and_test(seed, shots):
    generator = np.random.default_rng(seed)
    groups = generator.permutation(np.repeat(np.arange(60), generator.integers(1, 4, 60)))
    rows = pd.DataFrame(
        {"kl_grade": (groups + generator.choice([0, 0, 0, 1], len(groups))) % 5, "group_id": groups}
    )
    train, test = (rows.iloc[part] for part in external.few_shot_split(rows, shots, generator))
    assert train["kl_grade"].value_counts().to_dict() == dict.fromkeys(range(5), shots)
    assert train["group_id"].is_unique and not set(train["group_id"]) & set(test["group_id"])
    # Nothing but the drawn groups leaves the test.
    assert len(test) == (~rows["group_id"].isin(train["group_id"])).sum()


def accuracy(embeddings, rows, shots, draw=0, seed=1):
    graded = external.few_shot(embeddings, rows, shots, draw, seed).merge(rows, on="image_id")
    return sk.balanced_accuracy_score(graded["kl_grade"], answers(graded))


def test_few_shots_grade_separable_embeddings_and_not_noise():
    rows, generator = knees(300), np.random.default_rng(0)
    embeddings = np.eye(8)[rows["kl_grade"]] + 0.4 * generator.normal(size=(300, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        few, many = ([accuracy(embeddings, rows, shots, draw) for draw in range(5)] for shots in (1, 10))
        noise = [accuracy(generator.normal(size=(300, 8)), rows, 5, draw) for draw in range(20)]
    assert np.mean(many) > max(0.7, np.mean(few) + 0.1) and np.mean(noise) == pytest.approx(0.2, abs=0.03)
    first, again, other = (external.few_shot(embeddings, rows, 1, 0, seed) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_few_shot_refuses_what_it_cannot_draw():
    rows = knees(50)
    groups = rows.groupby("kl_grade")["group_id"].nunique().min()
    with pytest.raises(StudyError, match=rf"has {groups} group\(s\), too few to draw {groups}"):
        external.few_shot(np.zeros((50, 2)), rows, groups, 0)
    with pytest.raises(StudyError, match="Grade 4 has 0 group"):
        external.few_shot(np.zeros((50, 2)), rows.assign(kl_grade=rows["kl_grade"].clip(upper=3)), 1, 0)
    # Groups of mixed grades can run out.
    for number, match in (
        (3, r"has 3 group\(s\), too few to draw 1 beside those"),
        (5, "no group is left to test on"),
    ):
        mixed = pd.DataFrame(
            {"kl_grade": np.tile(np.arange(5), number), "group_id": np.repeat(np.arange(number), 5)}
        )
        with pytest.raises(StudyError, match=match):
            external.few_shot_split(mixed, 1, np.random.default_rng(0))
