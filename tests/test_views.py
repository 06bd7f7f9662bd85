"""The external cohort in every geometry and intensity: predicted by the arm as trained, confirmatory and exploratory apart."""

from dataclasses import replace

import numpy as np
import pytest
from koa_lib.runner import Runner

from koa_lib import external, protocols
from koa_lib.images.shape import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES


@pytest.fixture(scope="module")
def graded(easy_study):
    arm = protocols.our_arm(easy_study)
    runner = Runner(easy_study)
    return runner.run(arm)["external"], runner.external_views(arm), easy_study


def test_the_view_as_trained_is_the_confirmatory_result(graded):
    frames, views, study = graded
    assert list(views) == list(VIEWS) and VIEWS[0] == ("stretch", "none")
    mean = np.mean([frame[PROBABILITIES] for frame in frames], axis=0)
    assert np.allclose(views[VIEWS[0]][PROBABILITIES], mean, atol=2e-6)


def test_a_view_changes_the_pictures_and_not_the_model(graded):
    _, views, study = graded
    plain = views[VIEWS[0]]
    for view, frame in views.items():
        assert list(frame["image_id"]) == list(plain["image_id"]) and frame["image_id"].is_unique
        assert view in (("stretch", "none"), ("pad", "none"), ("split", "none")) or not np.allclose(frame[PROBABILITIES], plain[PROBABILITIES])
    assert not list((study.run_dir / "checkpoints").glob("*joint_crop*"))


def test_exploratory_views_are_named_so_and_stand_last(graded):
    _, views, study = graded
    rows = external.by_view(study, views)
    for row in rows.itertuples():
        assert (row.status == "exploratory") == bool({row.geometry, row.intensity} & EXPLORATORY)
    assert list(rows["status"] == "confirmatory") == [True] + [False] * (len(VIEWS) - 1)
    assert (rows["status"] == "exploratory").is_monotonic_increasing and (rows["ci_low"] <= rows["accuracy"]).all()


def test_without_an_external_cohort_there_are_no_views(easy_study):
    study = replace(easy_study, inputs=replace(easy_study.inputs, external=""))
    assert Runner(study).external_views(protocols.our_arm(study)) == {}
