"""Results: means over trainings, tables and differences with intervals, and what may not be mixed."""

import numpy as np
import pandas as pd
import pytest
from conftest import predicted, results
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from koa_lib import stats
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES


def frame(noise, n=40, names="k", **more):
    """Predictions of n pictures, two of a patient."""
    number = np.arange(n)
    rows = pd.DataFrame({"kl_grade": number % 5, "group_id": number // 2})
    rows = rows.assign(image_id=[f"{names}{k}" for k in number])
    return predicted(rows, 0.2, noise, **{"arm": "a", "split": "test", **more})


def answers(one):
    return one[PROBABILITIES].to_numpy().argmax(1)


def kappa(one):
    return sk.cohen_kappa_score(one["kl_grade"], answers(one), weights="quadratic")


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 1000))
def test_several_folds_are_averaged_picture_by_picture(count, seed):
    folds = [frame(seed + k, fold=k).sample(frac=1, random_state=k) for k in range(count)]
    mean, *each = (one.sort_values("image_id")[PROBABILITIES] for one in (results(*folds).graded(), *folds))
    assert np.allclose(mean, np.mean([one.to_numpy() for one in each], axis=0))


def test_held_out_folds_stand_one_after_another():
    assert len(results(*(frame(k, n=10, fold=k, names=f"{k}-") for k in (1, 2))).graded()) == 20


@pytest.mark.parametrize(("other", "act", "named"), [
    ({"n": 39, "fold": 2}, lambda found: found.graded(), "k39"),
    ({"arm": "b"}, lambda found: found.graded(), "'arm' .*a, b"),
    ({"split": "external"}, lambda found: found.graded(), "'split' .*test, external"),
    ({"view": "pad-none"}, lambda found: found.graded(), "'view'"),
    ({"fold": 2}, lambda found: found.graded(split="external"), "external"),
    ({"fold": 2}, lambda found: found.table(["kapa"]), "kapa"),
])
def test_what_may_not_be_mixed_or_was_not_run_is_named(other, act, named):
    with pytest.raises(StudyError, match=named):
        act(results(frame(1), frame(2, **other)))


def test_a_difference_is_paired():
    found = results(frame(1), frame(1, arm="b").sample(frac=1, random_state=0), frame(5, arm="c"))
    alike, other = found.gaps([("a", "b"), ("a", "c"), ("a", "absent")], ["qwk"]).itertuples()
    assert (alike.qwk, alike.qwk_low, alike.qwk_high) == (0, 0, 0) and other.second == "c"
    kappas = found.table(["qwk"])["qwk"].tolist()
    assert kappas == pytest.approx([kappa(frame(noise)) for noise in (1, 1, 5)])
    assert other.qwk == pytest.approx(kappas[0] - kappas[2])
    assert other.qwk_low <= other.qwk <= other.qwk_high


def test_flip_disagreement_is_of_the_pictures_and_their_mirror_images():
    found = results(frame(1), frame(2, mirrored=True)).measured(["flip_disagreement"])["flip_disagreement"]
    assert found == pytest.approx((answers(frame(1)) != answers(frame(2))).mean())


def test_the_mean_of_seeds_keeps_the_draws_together():
    seeds = [frame(1), frame(2, seed=1)]
    drawn, each = results(*seeds).averaged(["qwk"])
    alone = [stats.samples(one, ["qwk"], 50, 0)["qwk"] for one in seeds]
    assert np.allclose(drawn["qwk"], np.mean(alone, axis=0))
    assert np.allclose(each["qwk"], list(map(kappa, seeds)))


def test_a_verdict_is_of_all_trainings():
    """The rule of the protocol, on accuracies that are known."""
    runs = results(*(frame(noise, n=200, fold=noise) for noise in range(1, 6)))
    mean = np.mean([(answers(part.frame) == part.frame["kl_grade"]).mean() for _, part in runs.each("fold")])
    assert runs.verdict("accuracy", mean, 0.5)[0] == "replicated"
    assert runs.verdict("accuracy", mean + 0.9, 0.03)[0] == "not replicated"
    assert runs.verdict("accuracy", mean, 0.5, fold=[1, 2, 3, 4])[0] == "inconclusive"
