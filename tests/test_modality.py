"""Is this a knee radiograph: the answers, their intervals, and the quality of pictures that fail."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import with_systems
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from koa_lib.experiment import Experiment
from koa_lib.phantoms.cohorts import captioned
from koa_lib.phantoms.other import KINDS
from koa_lib.settings import Encoder
from koa_lib.systems import modality

SPEC = Encoder("BiomedCLIP", "start", "", 112, 1.0, "")
STUDY = SimpleNamespace(profile=SimpleNamespace(draws=300, training=SimpleNamespace(name="c")), seed=0)


def with_first(study, spec):
    return with_systems(study, embeddings=replace(study.profile.systems.embeddings, encoders=(spec,)))


def answered(said, cohort="c", **taken):
    """Pictures, two of each patient, with what they are called."""
    groups = [f"{cohort}{k // 2}" for k in range(len(said))]
    even = np.linspace(0, 1, len(said))
    taken = {"sharpness": even, "exposure": 0.5 + even / 100, "contrast": even} | taken
    return pd.DataFrame({**taken, "cohort": cohort, "group_id": groups, "said_plain": said})


def test_two_knees_of_a_patient_are_no_two_witnesses():
    right = pd.Series(np.arange(80) % 8 < 5)
    apart, together = (
        modality.share(STUDY, right, pd.Series(one)) for one in (np.arange(80), np.arange(80) % 8)
    )
    assert apart[:2] == together[:2] == (80, pytest.approx(5 / 8))
    assert apart[2:] == pytest.approx(proportion_confint(50, 80, method="wilson"), abs=0.03)
    assert together[2] < apart[2] < apart[3] < together[3]


@given(st.integers(1, 300), st.booleans())
def test_where_all_are_alike_the_bound_is_exact_for_the_groups(groups, all_right):
    right = pd.Series(np.full(2 * groups, all_right))
    n, value, low, high = modality.share(STUDY, right, pd.Series(np.arange(2 * groups) % groups))
    ends = proportion_confint(groups * all_right, groups, alpha=0.1, method="beta")
    assert (n, value) == (2 * groups, all_right)
    assert (low, high) == pytest.approx((ends[0], 1) if all_right else (0, ends[1]), abs=1e-9)


def test_no_picture_has_no_share():
    assert np.isnan(modality.share(STUDY, pd.Series([], dtype=bool), pd.Series([], dtype=str))[1:]).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_quality_measures_move_the_right_way(seed):
    blocks = np.random.default_rng(seed).uniform(0.1, 0.9, (2, 6, 6))
    images = np.kron(blocks, np.ones((1, 8, 8))).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, images.shape)
    plain, blurred, noisy, dark, bright = (
        modality.measured(one).mean()
        for one in (
            images,
            gaussian_filter(images, (0, 2, 2)),
            images + noise,
            0.7 * images,
            np.minimum(images / 0.7, 1),
        )
    )
    assert blurred["sharpness"] < plain["sharpness"] < noisy["sharpness"]
    assert dark["exposure"] < plain["exposure"] < bright["exposure"]
    assert max(blurred["contrast"], dark["contrast"]) < plain["contrast"]


def test_bytes_measure_like_ratios_and_a_flat_picture_has_only_exposure():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    pd.testing.assert_frame_equal(modality.measured(images), modality.measured(images / 255), rtol=1e-3)
    flat = modality.measured(np.full((1, 16, 16), 0.4))
    assert flat.iloc[0].tolist() == pytest.approx([0, 0.4, 0], abs=1e-6)


def test_knees_and_others_are_counted_apart():
    said = {"c": ["knee", "knee", "hip", "knee"], "chest": ["chest", "knee"], "hand": ["hand", "hand"]}
    table = pd.concat([answered(names, cohort) for cohort, names in said.items()], ignore_index=True)
    found = modality.judged(STUDY, table).set_index("pictures").loc[[*said, "all other anatomies"]]
    assert found["measure"].tolist() == ["sensitivity"] + 3 * ["specificity"]
    assert found["value"].tolist() == [0.75, 0.5, 1, 0.75] and found["failures_called"]["c"] == "hip"


def failing(poor, failures=20, number=200):
    """Of the failing pictures so many are among the worst tenth in everything; no other failure is."""
    failed, worst = np.arange(number) < failures, np.roll(np.arange(number) < number // 10, failures - poor)
    rank = np.argsort(np.argsort(~worst, kind="stable"))  # the worst come first
    return answered(
        np.where(failed, "hip", "knee"),
        sharpness=rank,
        contrast=rank,
        exposure=1 - rank / number - 0.6 * ~worst,
    )


@pytest.mark.parametrize("poor, verdict", [(19, "replicated"), (1, "not replicated"), (11, "inconclusive")])
def test_the_claim_follows_its_rule(poor, verdict):
    found = modality.judged(STUDY, failing(poor))
    answer, shares = (
        modality.claim(found),
        found[found["measure"] == "share of low quality"].set_index("pictures"),
    )
    assert answer.verdict == verdict and answer.ours == pytest.approx(poor / 20)
    assert answer.ci_low <= answer.ours <= answer.ci_high and f"{poor} of 20" in answer.reason
    assert shares["n"].to_dict() == {"knees not recognised": 20, "knees recognised": 180}
    assert shares["value"]["knees recognised"] == pytest.approx((20 - poor) / 180)


def test_a_handful_of_failures_decides_nothing():
    answer = modality.claim(modality.judged(STUDY, failing(2, failures=4)))
    assert answer.verdict == "not run" and "4 of 200" in answer.reason


def test_the_auc_of_a_measure_is_scikit_learns():
    values = np.random.default_rng(3).integers(0, 20, 60) / 20
    table = answered(np.where(np.arange(60) % 5 == 0, "hip", "knee"), sharpness=values, exposure=values)
    found, failed = modality.judged(STUDY, table).set_index("measure"), np.arange(60) % 5 == 0
    worse = {"sharpness": -values, "distance from the median exposure": np.abs(values - np.median(values))}
    for measure, values in worse.items():
        row = found.loc[f"AUC of worse quality, {measure}"]
        assert row["value"] == pytest.approx(roc_auc_score(failed, values)) and row["n"] == 60
        assert row["ci_low"] < row["value"] < row["ci_high"]


def test_without_failures_nothing_is_compared():
    found = modality.judged(STUDY, answered(["knee"] * 10)).set_index(["pictures", "measure"])["value"]
    assert found.filter(like="AUC").isna().all() and np.isnan(
        found["knees not recognised", "share of low quality"]
    )


def test_a_clip_of_knees_alone_is_not_asked(easy_study):
    reason = modality.table(Experiment(with_first(easy_study, replace(SPEC, source="trained"))))
    assert (
        "knees alone" in reason and modality.claim(reason).reason == modality.recognised(reason, "") == reason
    )
    assert modality.why_not(with_first(easy_study, replace(SPEC, source="biomedclip"))) == ""
    assert (
        modality.why_not(with_first(easy_study, replace(SPEC, source="biomedclip", reason="too slow")))
        == "too slow"
    )


def test_other_anatomies_are_new_to_pre_training(easy_study):
    synthetic = SimpleNamespace(synthetic=True, seed=easy_study.seed, profile=easy_study.profile)
    experiment = SimpleNamespace(study=synthetic, data=lambda *asked: None)
    shown = dict(modality.shown(experiment, SimpleNamespace(size=112)))
    others = {kind: shown[kind] for kind in KINDS}
    images = np.concatenate([data.images(np.arange(len(data))) for data in others.values()])
    assert (
        len(images)
        == easy_study.profile.systems.embeddings.others
        == len({image.tobytes() for image in images})
    )
    seen, _, kinds = captioned(40, 7001, 112, workers=1)
    strange = [image for image, kind in zip(seen, kinds, strict=True) if kind != "knee"]
    assert strange and not any((image == other).all() for image in images for other in strange)


def test_every_picture_is_asked_once_and_the_answer_is_the_nearest_text(easy_study):
    study = with_first(easy_study, SPEC)

    class Told(Experiment):
        """Whose embeddings are those of the texts in turn; the first two external files are the same."""

        def pictures(self, role, view, size):
            data = super().pictures(role, view, size)
            same = data.rows["pixel_sha256"].where(data.rows.index != 1, data.rows["pixel_sha256"].iloc[0])
            return replace(data, rows=data.rows.assign(pixel_sha256=same)) if role == "external" else data

        def features(self, arm, part):
            (texts,) = modality.embedded(self, SPEC, modality.wordings(study)).values()
            assert np.linalg.norm(texts, axis=1) == pytest.approx(1, abs=1e-5)
            return 3 * texts[None, np.arange(len(part.pixels)) % len(texts)]

    found = modality.asked(Told(study))
    # Real pictures: no phantoms of other anatomies beside them.
    assert found["cohort"].value_counts().to_dict() == {"easy_a": 120, "easy_b": 39} and found.notna().all(
        axis=None
    )
    names = list(modality.PROMPTS)
    assert found["said_plain"][:120].tolist() == [names[k % len(names)] for k in range(120)]
    assert modality.judged(study, found).iloc[0][["measure", "n", "value"]].tolist() == [
        "sensitivity",
        120,
        0.2,
    ]
