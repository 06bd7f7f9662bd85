"""Is this a knee radiograph: the answers, their intervals, and the quality of pictures that fail."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import with_systems
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from statsmodels.stats.proportion import proportion_confint

from koa_lib import modality, quality
from koa_lib.phantoms.other import KINDS as OTHER_KINDS
from koa_lib.settings import Encoder

SPEC = Encoder("BiomedCLIP", "start", "", 112, 1.0, "")
pictures = st.builds(lambda seed: np.kron(np.random.default_rng(seed).uniform(0.1, 0.9, (2, 6, 6)), np.ones((1, 8, 8))).astype(np.float32), st.integers(0, 10_000))


def with_first(study, spec):
    return with_systems(study, embeddings=replace(study.profile.systems.embeddings, encoders=(spec,)))


def answers(said, kind="knee"):
    return pd.DataFrame({"cohort": "c", "kind": kind, "said_plain": said, "image_id": [f"i{k}" for k in range(len(said))], "group_id": [f"g{k // 2}" for k in range(len(said))]})


@given(st.integers(1, 400), st.floats(0, 1))
def test_shares_have_wilson_intervals(n, part):
    right = np.arange(n) < round(part * n)
    low, high = proportion_confint(right.sum(), n, method="wilson")
    assert quality.share(right) == pytest.approx((right.mean(), low, high), abs=1e-6)


def test_no_picture_has_no_share():
    assert np.isnan(quality.share(np.zeros(0, bool))).all()


@settings(deadline=None, max_examples=25)
@given(pictures)
def test_quality_measures_move_the_right_way(images):
    plain = quality.measured(images)
    noise = np.random.default_rng(0).normal(0, 0.1, images.shape)
    spoilt = {"blur": gaussian_filter(images, (0, 2, 2)), "noise": images + noise, "under-exposure": 0.7 * images,
              "over-exposure": np.minimum(images / 0.7, 1)}
    found = {kind: quality.measured(picture) for kind, picture in spoilt.items()}
    assert (found["blur"]["sharpness"] < plain["sharpness"]).all() and (found["blur"]["contrast"] < plain["contrast"]).all()
    assert (found["noise"]["sharpness"] > plain["sharpness"]).all()
    assert (found["under-exposure"]["exposure"] < plain["exposure"]).all() and (found["under-exposure"]["contrast"] < plain["contrast"]).all()
    assert (found["over-exposure"]["exposure"] > plain["exposure"]).all()


def test_more_blur_is_less_sharp_and_bytes_measure_like_ratios():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    sharp = [quality.measured(gaussian_filter(images / 255, (0, width, width)))["sharpness"].mean() for width in (0.3, 1, 3)]
    assert sharp == sorted(sharp, reverse=True)
    pd.testing.assert_frame_equal(quality.measured(images), quality.measured(images / 255), rtol=1e-3)


def test_a_flat_picture_has_neither_sharpness_nor_contrast():
    flat = quality.measured(np.full((1, 16, 16), 0.4))
    assert flat.iloc[0].tolist() == pytest.approx([0, 0.4, 0], abs=1e-6)


def test_rates_count_knees_and_others_apart():
    table = pd.concat([answers(["knee", "knee", "hip", "knee"]), answers(["chest", "knee"], "chest"), answers(["hand", "hand"], "hand")], ignore_index=True)
    found = modality.rates(table, "plain").set_index(["pictures", "measure"])
    assert found["value"].to_dict() == {("c", "sensitivity"): 0.75, ("chest", "specificity"): 0.5, ("hand", "specificity"): 1.0, ("all other anatomies", "specificity"): 0.75}
    assert found["failures_called"]["c", "sensitivity"] == "hip"


def failing(number=40, poor=True):
    # The last eight pictures fail; they are blurred when `poor`.
    failed = np.arange(number) >= number - 8
    table = answers(np.where(failed, "hip", "knee")).assign(sharpness=np.where(failed == poor, 0.001, 1) + 0.01 * np.arange(number) / number, exposure=0.5, contrast=0.2)
    return table.assign(exposure=0.5 + 0.001 * (np.arange(number) % 7), contrast=0.2 + 0.001 * (np.arange(number) % 5))


def test_the_auc_of_a_measure_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    table = failing().assign(sharpness=np.random.default_rng(3).random(40))
    found = quality.judged(table, "plain")
    row = quality.failures(found, 50, 0).set_index("measure").loc["sharpness"]
    assert row["worse_auc"] == pytest.approx(roc_auc_score(found["failed"], -found["sharpness"]))
    assert row["worse_auc_low"] <= row["worse_auc"] <= row["worse_auc_high"]
    assert row["mean_difference"] == pytest.approx(row["failures"] - row["successes"])


def test_blurred_failures_are_of_low_quality_and_others_are_not():
    worse = quality.failures(quality.judged(failing(), "plain"), 100, 0).set_index("measure").loc["sharpness"]
    better = quality.failures(quality.judged(failing(poor=False), "plain"), 100, 0).set_index("measure").loc["sharpness"]
    assert worse["worse_auc"] == 1 and better["worse_auc"] == 0 and worse["mean_difference"] < 0 < better["mean_difference"]


def judged(poor_failures, failures=20, number=200):
    failed = np.arange(number) < failures
    return pd.DataFrame({"failed": failed, "poor": np.arange(number) < poor_failures})


@pytest.mark.parametrize("poor, verdict", [(18, "replicated"), (2, "not replicated"), (11, "inconclusive")])
def test_the_claim_follows_its_rule(poor, verdict):
    answer = quality.claim(judged(poor))
    assert answer.verdict == verdict and answer.ours == pytest.approx(poor / 20)


def test_a_handful_of_failures_decides_nothing():
    answer = quality.claim(judged(2, failures=4))
    assert answer.verdict == "not run" and "4 of 200" in answer.reason


def test_without_failures_nothing_is_compared():
    found = quality.failures(quality.judged(answers(["knee"] * 10).assign(sharpness=np.arange(10.0), exposure=0.5, contrast=0.1), "plain"), 20, 0)
    assert found[["mean_difference", "worse_auc"]].isna().all(axis=None)


def test_a_clip_of_knees_alone_is_not_asked(easy_study):
    assert "knees alone" in modality.why_not(with_first(easy_study, replace(SPEC, source="trained")))
    assert modality.why_not(with_first(easy_study, replace(SPEC, source="biomedclip"))) == ""
    assert modality.why_not(with_first(easy_study, replace(SPEC, source="biomedclip", reason="too slow"))) == "too slow"


def test_other_anatomies_are_new_to_pre_training(easy_study):
    from koa_lib.phantoms.cohorts import captioned

    images, kinds = modality.others(easy_study, 112)
    seen, _, shown = captioned(40, 7001, 112, workers=1)
    assert set(kinds) == set(OTHER_KINDS) and len(images) == len(kinds)
    strange = [image for image, kind in zip(seen, shown, strict=True) if kind != "knee"]
    assert strange and not any((image == other).all() for image in images for other in strange)


def test_the_answer_is_the_nearest_text(easy_study):
    check = modality.Check(with_first(easy_study, SPEC))
    for wording, texts in check.texts.items():
        assert check.said(3 * texts, wording).tolist() == list(check.sets[wording])
        assert np.linalg.norm(texts, axis=1) == pytest.approx(1, abs=1e-5)


def test_every_picture_is_asked_once_and_measured(easy_study):
    check = modality.Check(with_first(easy_study, SPEC))
    found = check.pictures
    assert found["image_id"].is_unique and found.notna().all(axis=None)
    assert (found["kind"] == "knee").all()  # real pictures: no phantoms of other anatomy beside them
    table = check.table().set_index("measure")
    assert set(table.index) >= {"sensitivity", "share of low quality"} and "specificity" not in table.index
    failed, recognised = table.loc["share of low quality", "n"]
    assert failed + recognised == check.knees().n and failed == check.judged["failed"].sum()
    assert sum(table.index.str.startswith("AUC of worse")) == len(quality.MEASURES)
