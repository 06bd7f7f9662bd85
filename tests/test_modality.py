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


def with_first(study, **changes):
    spec = replace(SPEC, **changes)
    return with_systems(study, embeddings=replace(study.profile.systems.embeddings, encoders=(spec,)))


def answered(said, cohort="c", **taken):
    """Pictures, two of each patient, with what they are called and how well they are taken."""
    even = np.linspace(0, 1, len(said))
    taken = {"sharpness": even, "exposure": 0.5 + even / 100, "contrast": even} | taken
    groups = [f"{cohort}{k // 2}" for k in range(len(said))]
    return pd.DataFrame({**taken, "cohort": cohort, "group_id": groups, "said_plain": said})


def test_two_knees_of_a_patient_are_no_two_witnesses():
    number = np.arange(80)
    right = pd.Series(number % 8 < 5)
    apart, together = (modality.share(STUDY, right, pd.Series(groups)) for groups in (number, number % 8))
    assert apart[:2] == together[:2] == (80, pytest.approx(5 / 8))
    assert apart[2:] == pytest.approx(proportion_confint(50, 80, method="wilson"), abs=0.03)
    assert together[2] < apart[2] < apart[3] < together[3]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.booleans())
def test_where_all_are_alike_the_bound_is_exact_for_the_groups(groups, all_right):
    right, units = pd.Series(np.full(2 * groups, all_right)), pd.Series(np.arange(2 * groups) % groups)
    low, high = proportion_confint(groups * all_right, groups, alpha=0.1, method="beta")
    expected = (2 * groups, 1, low, 1) if all_right else (2 * groups, 0, 0, high)
    assert modality.share(STUDY, right, units) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_quality_measures_move_the_right_way_and_bytes_measure_like_ratios(seed):
    generator = np.random.default_rng(seed)
    image = np.kron(generator.uniform(0.1, 0.9, (1, 6, 6)), np.ones((1, 8, 8)))
    changed = (image, gaussian_filter(image, (0, 2, 2)), image + generator.normal(0, 0.1, image.shape),
               0.7 * image, image / 0.7, np.uint8(255 * image))
    plain, blurred, noisy, dark, bright, as_bytes = (modality.quality(one).iloc[0] for one in changed)
    assert blurred["sharpness"] < plain["sharpness"] < noisy["sharpness"]
    assert dark["exposure"] < plain["exposure"] < bright["exposure"]
    assert max(blurred["contrast"], dark["contrast"]) < plain["contrast"]
    assert as_bytes.tolist() == pytest.approx(plain.tolist(), rel=0.05)


def test_knees_and_others_are_counted_apart():
    said = {"c": ["knee", "knee", "hip", "knee"], "chest": ["chest", "knee"], "hand": ["hand", "hand"]}
    table = pd.concat([answered(names, cohort) for cohort, names in said.items()], ignore_index=True)
    found = modality.judged(STUDY, table).set_index("pictures").loc[[*said, "all other anatomies"]]
    assert found["measure"].tolist() == ["sensitivity"] + 3 * ["specificity"]
    assert found["value"].tolist() == [0.75, 0.5, 1, 0.75] and found["failures_called"]["c"] == "hip"


def failing(poor, failures=20):
    """Of the failing among 200 pictures so many are the worst tenth in everything; no other failure is."""
    number = np.arange(200)
    worst = np.roll(number < 20, failures - poor)
    rank = np.argsort(np.argsort(~worst, kind="stable"))  # the worst come first
    taken = {"sharpness": rank, "contrast": rank, "exposure": 1 - rank / 200 - 0.6 * ~worst}
    return modality.judged(STUDY, answered(np.where(number < failures, "hip", "knee"), **taken))


@pytest.mark.parametrize(("poor", "verdict"), [
    (19, "replicated"), (1, "not replicated"), (11, "inconclusive")])
def test_the_claim_follows_its_rule(poor, verdict):
    found = failing(poor)
    answer = modality.claim(found)
    assert answer.verdict == verdict and answer.ours == pytest.approx(poor / 20)
    assert answer.ci_low <= answer.ours <= answer.ci_high
    shares = found[found["measure"] == "share of low quality"]
    assert shares["n"].tolist() == [20, 180] and shares["value"].iloc[1] == pytest.approx((20 - poor) / 180)


def test_a_handful_of_failures_or_none_decides_nothing():
    assert modality.claim(failing(2, failures=4)).verdict == "not run"
    found = modality.judged(STUDY, answered(["knee"] * 10)).set_index(["pictures", "measure"])["value"]
    assert found.filter(like="AUC").isna().all()
    assert np.isnan(found["knees not recognised", "share of low quality"])


def test_the_auc_of_a_measure_is_scikit_learns():
    values, failed = np.random.default_rng(3).integers(0, 20, 60) / 20, np.arange(60) % 5 == 0
    table = answered(np.where(failed, "hip", "knee"), sharpness=values, exposure=values)
    found = modality.judged(STUDY, table).set_index("measure")["value"]
    worse = {"sharpness": -values, "distance from the median exposure": np.abs(values - np.median(values))}
    for measure, score in worse.items():
        assert found[f"AUC of worse quality, {measure}"] == pytest.approx(roc_auc_score(failed, score))


def test_a_clip_of_knees_alone_is_not_asked(easy_study):
    reason = modality.table(Experiment(with_first(easy_study, source="trained")))
    assert reason and modality.claim(reason).reason == modality.recognised(reason, "") == reason
    assert modality.why_not(with_first(easy_study, source="biomedclip")) == ""
    assert modality.why_not(with_first(easy_study, source="biomedclip", reason="too slow")) == "too slow"


def test_other_anatomies_are_new_to_pre_training(easy_study):
    synthetic = SimpleNamespace(synthetic=True, seed=easy_study.seed, profile=easy_study.profile)
    experiment = SimpleNamespace(study=synthetic, data=lambda *asked: None)
    shown = dict(modality.pictures(experiment, SimpleNamespace(size=112)))
    images = {image.tobytes() for kind in KINDS for image in shown[kind].images(np.arange(len(shown[kind])))}
    assert len(images) == easy_study.profile.systems.embeddings.others
    seen, _, kinds = captioned(20, 7001, 112, workers=1)
    strange = {image.tobytes() for image, kind in zip(seen, kinds, strict=True) if kind != "knee"}
    assert strange and not images & strange


def test_every_picture_is_asked_once_and_the_answer_is_the_nearest_text(easy_study):
    study = with_first(easy_study)

    class Told(Experiment):
        """Whose embeddings are those of the texts in turn; the first two external files are the same."""

        def pictures(self, role, view, size):
            data = super().pictures(role, view, size)
            same = data.rows["pixel_sha256"].where(data.rows.index != 1, data.rows["pixel_sha256"].iloc[0])
            return replace(data, rows=data.rows.assign(pixel_sha256=same)) if role == "external" else data

        def features(self, arm, part):
            (texts,) = modality.embedded(self, SPEC, modality.wordings(study)).values()
            return 3 * texts[None, np.arange(len(part.pixels)) % len(texts)]

    found, names = modality.asked(Told(study)), list(modality.PROMPTS)
    # Real pictures: no phantoms of other anatomies beside them.
    assert found["cohort"].value_counts().to_dict() == {"easy_a": 120, "easy_b": 39}
    assert found["said_plain"][:120].tolist() == names * 24 and found.notna().all(axis=None)
    told = modality.judged(study, found).iloc[0][["measure", "n", "value"]]
    assert told.tolist() == ["sensitivity", 120, 0.2]
