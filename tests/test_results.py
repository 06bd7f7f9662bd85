"""Results: means over trainings, tables and differences with intervals, and what may not be mixed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.predictions import PROBABILITIES
from koa_lib.results import Results

NAMES = ("accuracy", "qwk", "macro_f1")


def frame(seed, n=40, arm="a", fold=1, split="test", mirrored=False, names=None):
    rng = np.random.default_rng(seed)
    found = pd.DataFrame(rng.dirichlet(np.ones(5), n), columns=PROBABILITIES)
    said = {"arm": arm, "seed": 0, "fold": fold, "split": split, "view": "stretch-none", "mirrored": mirrored}
    ids = [f"k{k}" for k in range(n)] if names is None else names
    return found.assign(image_id=ids, kl_grade=np.arange(n) % 5, group_id=[f"p{k // 2}" for k in range(n)], **said)


def results(*frames):
    return Results(pd.concat(frames, ignore_index=True), 100, 1)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 1000))
def test_several_folds_are_averaged_picture_by_picture(count, seed):
    folds = [frame(seed + k, fold=k).sample(frac=1, random_state=k) for k in range(count)]
    mean = results(*folds).graded().set_index("image_id")
    expected = sum(one.set_index("image_id")[PROBABILITIES].sort_index() for one in folds) / count
    assert np.allclose(mean[PROBABILITIES].sort_index(), expected) and np.allclose(mean[PROBABILITIES].sum(axis=1), 1)


def test_held_out_folds_stand_one_after_another():
    parts = [frame(k, n=10, fold=k, names=[f"{k}{i}" for i in range(10)]) for k in (1, 2)]
    assert len(results(*parts).graded()) == 20


def test_trainings_that_grade_other_pictures_are_not_averaged():
    with pytest.raises(StudyError, match="k39"):
        results(frame(1), frame(2, n=39, fold=2)).graded()


@pytest.mark.parametrize("other", [{"arm": "b"}, {"split": "external"}])
def test_arms_and_splits_are_never_mixed(other):
    with pytest.raises(StudyError, match=next(iter(other))):
        results(frame(1), frame(2, **other)).graded()


def test_what_was_not_run_is_said():
    with pytest.raises(StudyError, match="external"):
        results(frame(1)).graded(split="external")


def test_a_table_has_the_metrics_of_scikit_learn():
    first, second = frame(1), frame(2, arm="b")
    table = results(first, second).table(NAMES).set_index("arm")
    for arm, graded in (("a", first), ("b", second)):
        truth, given_ = graded["kl_grade"], graded[PROBABILITIES].to_numpy().argmax(1)
        assert table.loc[arm, "accuracy"] == pytest.approx(sk.accuracy_score(truth, given_))
        assert table.loc[arm, "qwk"] == pytest.approx(sk.cohen_kappa_score(truth, given_, weights="quadratic"))
        assert table.loc[arm, "macro_f1"] == pytest.approx(sk.f1_score(truth, given_, average="macro"))
        assert table.loc[arm, "qwk_low"] <= table.loc[arm, "qwk"] <= table.loc[arm, "qwk_high"] and table.loc[arm, "n"] == 40


def test_a_difference_is_paired():
    same = frame(1, arm="b").sample(frac=1, random_state=0)
    gaps = results(frame(1), same, frame(5, arm="c")).gaps([("a", "b"), ("a", "c"), ("a", "absent")], NAMES)
    alike, other = gaps.itertuples()
    assert (alike.qwk, alike.qwk_low, alike.qwk_high) == (0, 0, 0) and other.second == "c"
    a, c = (metrics.from_confusion(metrics.confusion(one["kl_grade"], one[PROBABILITIES].to_numpy().argmax(1)))["qwk"] for one in (frame(1), frame(5)))
    assert other.qwk == pytest.approx(a - c) and other.qwk_low <= other.qwk <= other.qwk_high


def test_flip_disagreement_is_of_the_pictures_and_their_mirror_images():
    both = results(frame(1), frame(2, mirrored=True))
    plain, mirrored = (one[PROBABILITIES].to_numpy().argmax(1) for one in (frame(1), frame(2)))
    assert both.measured(["flip_disagreement"])["flip_disagreement"] == pytest.approx((plain != mirrored).mean())


def test_the_mean_of_seeds_keeps_the_draws_together():
    seeds = [frame(1), frame(2).assign(seed=1)]
    drawn, each = results(*seeds).averaged(["qwk"])
    alone = [stats.samples(one, ["qwk"], 100, 1)["qwk"] for one in seeds]
    assert np.allclose(drawn["qwk"], np.mean(alone, axis=0)) and np.allclose(each["qwk"], [one[0] for one in alone])


def test_an_unknown_metric_is_named():
    with pytest.raises(StudyError, match="kapa"):
        results(frame(1)).table(["kapa"])
