"""The paper's claims: hand-made predictions lead to each verdict."""

import numpy as np
import pandas as pd
import pytest
from conftest import results
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from koa_lib import metrics, stats
from koa_lib.errors import StudyError
from koa_lib.paper import claims
from koa_lib.profile import ROOT

CLAIMS = pd.read_csv(ROOT / "data_manifests/published/claims.csv")
TRUTH = np.arange(500) % 5


def graded(predicted, truth=TRUTH, groups=None):
    """A graded frame whose top grades are as given."""
    frame = pd.DataFrame(0.6 * np.eye(5)[predicted] + 0.08, columns=metrics.PROBABILITIES)
    number = np.arange(len(truth))
    return frame.assign(
        image_id=[f"k{i}" for i in number], kl_grade=truth, group_id=number // 2 if groups is None else groups
    )


def right(share, seed=0, truth=TRUTH):
    """Predictions of which about this share is right, errors one grade off."""
    wrong = np.random.default_rng(seed).random(len(truth)) >= share
    return np.where(wrong, np.where(truth == 4, 3, truth + 1), truth)


def nested(*shares):
    """A model per share; what a weaker one grades right, a stronger one does too: differences are sure."""
    draw = np.random.default_rng(1).random(len(TRUTH))
    return {
        name: graded(np.where(draw < share, TRUTH, (TRUTH + 1) % 5))
        for name, share in zip(claims.ORDER, shares, strict=True)
    }


def confused(cells):
    """A frame with so many pictures of each (true, predicted) pair, each its own group."""
    truth, predicted = np.repeat(np.array(list(cells)), list(cells.values()), axis=0).T
    return graded(predicted, truth, groups=np.arange(len(truth)))


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.9, 0.8, 0.7, 0.6, 0.5), "replicated"),
        ((0.5, 0.6, 0.7, 0.8, 0.9), "not replicated"),
        ((0.9, 0.8, 0.6, 0.7, 0.5), "not replicated"),  # one pair of neighbours the other way
        ((0.9, 0.8, 0.7, 0.6, 0.6), "inconclusive"),  # a tie
    ],
)
def test_order_of_the_five_accuracies(shares, verdict):
    models = nested(*shares)
    answer = claims.order(models, 200, 0)
    assert answer.verdict == verdict
    accuracy = [
        100 * (frame[metrics.PROBABILITIES].to_numpy().argmax(1) == TRUTH).mean() for frame in models.values()
    ]
    assert answer.ours == pytest.approx(min(-np.diff(accuracy))) and answer.unit == "points"
    assert answer.ci_low <= answer.ours <= answer.ci_high and "VGG19" in answer.reason


def test_small_steps_that_add_up_are_a_clear_reversal():
    """No neighbours differ clearly, but the ends do: the order is contradicted."""
    models = {}
    for step, name in enumerate(claims.ORDER):
        order = np.random.default_rng(step).permutation(len(TRUTH))
        models[name] = graded(np.where(order < 310 + 15 * step, TRUTH, (TRUTH + 1) % 5))
    neighbours = [
        claims._difference(models[a], models[b], 200, 0)
        for a, b in zip(claims.ORDER, claims.ORDER[1:], strict=False)
    ]
    assert not any(gap[2] < 0 for gap in neighbours)
    answer = claims.order(models, 200, 0)
    assert answer.verdict == "not replicated" and "VGG19 over Fine-tuned CLIP" in answer.reason


def test_fewer_than_five_models_is_not_run_and_says_which():
    models = nested(0.9, 0.8, 0.7, 0.6, 0.5) | {"VGG19": "VGG19: needs hours", "ViT": "no ViT"}
    answer = claims.order(models, 50, 0)
    assert (
        answer.verdict == "not run"
        and answer.reason == "no ViT; VGG19: needs hours"
        and np.isnan(answer.ours)
    )


def test_a_model_that_answers_nearly_one_grade_is_named_with_what_a_constant_reaches():
    flat, nearly, two = (np.where(np.arange(500) < other, 1, 0) for other in (0, 25, 30))
    models = nested(0.9, 0.8, 0.7, 0.6, 0.5) | {
        "VGG19": graded(flat),
        "ViT": graded(nearly),
        "MobileNet": graded(two),
    }
    reason = claims.order(models, 50, 0).reason
    assert (
        "ViT (for 475 of 500 pictures), VGG19 (for 500 of 500 pictures)" in reason
        and "reaches 20.0 %" in reason
    )
    assert (
        "MobileNet (" not in reason
        and "always grade" not in claims.order(nested(0.9, 0.8, 0.7, 0.6, 0.5), 50, 0).reason
    )
    assert claims.one_grade({"VGG19": "not run"}) == ""


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_ahead_needs_significance_and_the_lead(b, c):
    clip, other = np.repeat([True, False, True], [b, c, 3]), np.repeat([False, True, True], [b, c, 3])
    test = stats.mcnemar(clip, other)
    table = pd.DataFrame(
        [
            {
                "baseline": "VGG19",
                "n": b + c + 3,
                "p_exact": 0.0,
                "clip_only": 9,
                "baseline_only": 0,
                "difference": 1.0,
            },
            {
                "baseline": "Wide ResNet",
                "n": b + c + 3,
                "p_exact": test["p_exact"],
                "clip_only": b,
                "baseline_only": c,
                "difference": (b - c) / (b + c + 3),
            },
        ]
    )
    answer = claims.ahead(table)
    assert answer.ours == test["p_exact"]
    assert (answer.verdict == "replicated") == (b > c and test["p_exact"] < 0.05)
    assert answer.verdict in ("replicated", "not replicated") and answer.unit == "p"
    assert answer.reason.startswith("CLIP" if b > c else "Wide ResNet" if c > b else "neither")


def test_ahead_without_a_wide_resnet_is_not_run():
    assert claims.ahead("it needs hours")[4:] == ("not run", "it needs hours")
    assert claims.ahead(pd.DataFrame({"baseline": ["VGG19"]})).verdict == "not run"


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ({(0, 1): 30, (2, 1): 25, (3, 4): 10, (0, 2): 5}, "replicated"),
        ({(1, 0): 10, (0, 1): 20, (1, 2): 25, (3, 2): 24}, "replicated"),  # both directions are one confusion
        ({(0, 1): 30, (2, 1): 5, (3, 4): 20}, "not replicated"),  # 3-4 is commoner than 1-2
        (
            {
                (0, 1): 6,
                (1, 2): 6,
                (0, 2): 5,
                (0, 3): 5,
                (0, 4): 5,
                (1, 3): 5,
                (1, 4): 5,
                (2, 4): 5,
                (4, 0): 5,
            },
            "not replicated",
        ),  # mostly far
        ({(0, 1): 9, (1, 2): 9, (0, 3): 4, (0, 4): 4, (1, 4): 4}, "inconclusive"),  # share near a half
        ({(0, 1): 30, (1, 2): 20, (2, 3): 20}, "inconclusive"),  # a tie for the second place
        ({(0, 0): 5, (4, 4): 5}, "inconclusive"),  # no error at all
    ],
)
def test_adjacent_errors(cells, verdict):
    answer = claims.adjacent(confused(cells), 400, 0)
    assert answer.verdict == verdict
    errors = {pair: count for pair, count in cells.items() if pair[0] != pair[1]}
    share = (
        sum(count for (i, j), count in errors.items() if abs(i - j) == 1) / sum(errors.values())
        if errors
        else np.nan
    )
    assert answer.ours == pytest.approx(share, nan_ok=True)
    assert not errors or answer.ci_low <= answer.ours <= answer.ci_high


def test_one_group_gives_no_interval_and_no_verdict():
    frame = confused({(0, 1): 30, (2, 1): 25}).assign(group_id="all")
    assert claims.adjacent(frame, 50, 0).verdict == "inconclusive"


def test_drop_pairs_train_and_external_of_a_run():
    """Runs differ by ten points, but each drops by exactly 20: the paired interval has no width."""

    def exact(share, **named):
        rows = graded(np.where(np.arange(500) < 500 * share, TRUTH, (TRUTH + 1) % 5))
        return rows.assign(arm="clip", seed=0, view="stretch-none", mirrored=False, **named)

    shares = [(0.9, 0.7), (0.8, 0.6), (1.0, 0.8), (0.9, 0.7), (0.8, 0.6)]
    runs = [
        exact(share, fold=fold, split=split)
        for fold, pair in enumerate(shares)
        for split, share in zip(("train", "external"), pair, strict=True)
    ]
    value = claims.train_test_drop(results(*runs))
    assert value[:3] == pytest.approx((20, 20, 20)) and value.runs == 5
    with pytest.raises(StudyError, match="no predictions"):
        claims.train_test_drop(results(*runs[:-1]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_best_separated_grades_against_sklearn(seed):
    generator = np.random.default_rng(seed)
    sure = generator.uniform(0, 0.9, 5)[TRUTH][:, None]
    probabilities = sure * np.eye(5)[TRUTH] + (1 - sure) * generator.dirichlet(np.ones(5), len(TRUTH))
    frame = pd.DataFrame(probabilities, columns=metrics.PROBABILITIES).assign(kl_grade=TRUTH)
    auc = [roc_auc_score(TRUTH == grade, probabilities[:, grade]) for grade in range(5)]
    recall = [(probabilities.argmax(1)[TRUTH == grade] == grade).mean() for grade in range(5)]
    best = all(set(np.argsort(values)[-2:]) == {0, 4} for values in (auc, recall))
    answer = claims.separated(frame)
    assert (answer.verdict == "replicated") == (best and answer.ours > 0)
    assert answer.verdict == (
        "replicated" if answer.ours > 0 else "not replicated" if answer.ours < 0 else "inconclusive"
    )


def test_separation_is_undefined_without_every_grade():
    truth = np.arange(400) % 4
    assert claims.separated(graded(truth, truth)).verdict == "inconclusive"


def test_each_test_of_the_table_is_decided_and_another_is_refused():
    clip = graded(right(0.8))
    models = nested(0.9, 0.8, 0.7, 0.6, 0.5) | {"Fine-tuned CLIP": clip}
    answers = [
        claims.decide(test, models, 50, 0) for test in CLAIMS.loc[CLAIMS["source"] == "jpm2026", "test"]
    ]
    assert len(answers) == 3 and all(answer.reason and answer.verdict != "not run" for answer in answers)
    with pytest.raises(StudyError, match="nothing decides"):
        claims.decide("by eye", models, 50, 0)
