"""The paper's claims: hand-made predictions lead to each verdict."""

import numpy as np
import pandas as pd
import pytest
from conftest import results
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score, roc_auc_score

from koa_lib.errors import StudyError
from koa_lib.paper import claims
from koa_lib.predictions import PROBABILITIES
from koa_lib.profile import ROOT

CLAIMS = pd.read_csv(ROOT / "data_manifests/published/claims.csv").query("source == 'jpm2026'")
TRUTH = np.arange(500) % 5
NEXT = (TRUTH + 1) % 5


def graded(predicted, truth=TRUTH):
    """A graded frame whose top grades are as given; two pictures are one group."""
    frame = pd.DataFrame(0.6 * np.eye(5)[predicted] + 0.08, columns=PROBABILITIES)
    number = np.arange(len(truth))
    return frame.assign(image_id=[f"k{i}" for i in number], kl_grade=truth, group_id=number // 2)


def nested(*shares):
    """A model per share; what a weaker one grades right, a stronger one does too: differences are sure."""
    draw = np.random.default_rng(1).random(len(TRUTH))
    frames = (graded(np.where(draw < share, TRUTH, NEXT)) for share in shares)
    return dict(zip(claims.ORDER, frames, strict=True))


MODELS = nested(0.9, 0.8, 0.7, 0.6, 0.5)


@pytest.mark.parametrize(("shares", "verdict"), [
    ((0.9, 0.8, 0.7, 0.6, 0.5), "replicated"),
    ((0.5, 0.6, 0.7, 0.8, 0.9), "not replicated"),
    ((0.9, 0.8, 0.6, 0.7, 0.5), "not replicated"),  # one pair of neighbours the other way
    ((0.9, 0.8, 0.7, 0.6, 0.6), "inconclusive"),  # a tie
])
def test_order_of_the_five_accuracies(shares, verdict):
    models = nested(*shares)
    answer = claims.order(models, 200, 0)
    grades = [frame[PROBABILITIES].to_numpy().argmax(1) for frame in models.values()]
    right = [100 * (answers == TRUTH).mean() for answers in grades]
    assert answer.verdict == verdict
    assert answer.ours == pytest.approx(min(-np.diff(right))) and answer.unit == "points"
    assert answer.ci_low <= answer.ours <= answer.ci_high


def test_small_steps_decide_nothing_but_where_they_add_up_they_are_a_clear_reversal():
    def drawn(*right):
        orders = [np.random.default_rng(step).permutation(len(TRUTH)) for step in range(5)]
        models = [graded(np.where(order < n, TRUTH, NEXT)) for order, n in zip(orders, right, strict=True)]
        return claims.order(dict(zip(claims.ORDER, models, strict=True)), 200, 0)

    assert drawn(320, 325, 320, 325, 320).verdict == "inconclusive"
    answer = drawn(310, 325, 340, 355, 370)
    assert answer.verdict == "not replicated" and "VGG19 over Fine-tuned CLIP" in answer.reason


def test_fewer_than_five_models_is_not_run_and_says_which():
    answer = claims.order(MODELS | {"VGG19": "VGG19: needs hours", "ViT": "no ViT"}, 50, 0)
    assert answer.verdict == "not run" and np.isnan(answer.ours)
    assert "no ViT" in answer.reason and "VGG19: needs hours" in answer.reason


def test_a_model_that_answers_nearly_one_grade_is_named_with_what_a_constant_reaches():
    flat, nearly, two = (graded(np.where(np.arange(500) < other, 1, 0)) for other in (0, 25, 30))
    told = claims.one_grade({"VGG19": flat, "ViT": nearly, "MobileNet": two, "ResNet50": "not run"})
    assert all(word in told for word in ("VGG19 (for 500", "ViT (for 475", "20.0 %"))
    assert "MobileNet" not in told
    assert claims.one_grade(MODELS) == ""


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.1), st.integers(0, 9), st.integers(0, 9))
def test_ahead_needs_significance_and_the_lead(p, clip, other):
    row = {"n": 50, "clip_only": clip, "baseline_only": other, "difference": (clip - other) / 50,
           "difference_low": -1, "difference_high": 1}
    table = pd.DataFrame([{"baseline": "VGG19", "p_exact": 0.0, **row, "difference": 1.0},
                          {"baseline": "Wide ResNet", "p_exact": p, **row}])
    answer = claims.ahead(table)
    assert answer.ours == p
    assert answer.verdict == ("replicated" if clip > other and p < 0.05 else "not replicated")


def test_ahead_without_a_wide_resnet_is_not_run():
    assert claims.ahead("it needs hours")[4:] == ("not run", "it needs hours")
    assert claims.ahead(pd.DataFrame({"baseline": ["VGG19"]})).verdict == "not run"


FAR = {(0, 2): 5, (0, 3): 5, (0, 4): 5, (1, 3): 5, (1, 4): 5, (2, 4): 5, (4, 0): 5}


@pytest.mark.parametrize(("cells", "verdict"), [
    ({(0, 1): 30, (2, 1): 25, (3, 4): 10, (0, 2): 5}, "replicated"),
    ({(1, 0): 20, (0, 1): 20, (1, 2): 40, (3, 2): 15}, "replicated"),  # both directions are one confusion
    ({(0, 1): 30, (1, 2): 25, (3, 2): 24}, "inconclusive"),  # 1-2 is hardly commoner than 2-3
    ({(0, 1): 30, (2, 1): 5, (3, 4): 25}, "not replicated"),  # 3-4 is commoner than 1-2
    ({(0, 1): 6, (1, 2): 6, **FAR}, "not replicated"),  # mostly far
    ({(0, 1): 9, (1, 2): 9, (0, 3): 4, (0, 4): 4, (1, 4): 4}, "inconclusive"),  # share near a half
    ({(0, 1): 30, (1, 2): 20, (2, 3): 20}, "inconclusive"),  # a tie for the second place
    ({(0, 0): 5, (4, 4): 5}, "inconclusive"),  # no error at all
])
def test_adjacent_errors(cells, verdict):
    truth, predicted = np.repeat(np.array(list(cells)), list(cells.values()), axis=0).T
    answer = claims.adjacent(graded(predicted, truth).assign(group_id=range(len(truth))), 400, 0)
    distance = np.abs(truth - predicted)
    share = (distance == 1).sum() / (distance > 0).sum() if distance.any() else np.nan
    assert answer.verdict == verdict and answer.ours == pytest.approx(share, nan_ok=True)


def test_one_group_gives_no_interval_and_no_verdict():
    assert claims.adjacent(graded(NEXT).assign(group_id="all"), 50, 0).verdict == "inconclusive"


def test_drop_pairs_train_and_external_of_a_run():
    """Runs differ by ten points, but each drops by exactly 20: the paired interval has no width."""
    def exact(share, **named):
        rows = graded(np.where(np.arange(500) < round(500 * share), TRUTH, NEXT))
        return rows.assign(arm="clip", seed=0, view="stretch-none", mirrored=False, **named)

    runs = [exact(share - drop, fold=fold, split=split)
            for fold, share in enumerate((0.9, 0.8, 1.0, 0.9, 0.8))
            for split, drop in (("train", 0), ("external", 0.2))]
    value = claims.train_test_drop(results(*runs))
    assert value[:3] == pytest.approx((20, 20, 20)) and value.runs == 5
    with pytest.raises(StudyError):
        claims.train_test_drop(results(*runs[:-1]))


def leads(frame):
    """Leads of grades 0 and 4 over grades 1 to 3 in AUC and sensitivity, by scikit-learn."""
    truth, probabilities = frame["kl_grade"].to_numpy(), frame[PROBABILITIES].to_numpy()
    auc = [roc_auc_score(truth == grade, probabilities[:, grade]) for grade in range(5)]
    recall = recall_score(truth, probabilities.argmax(1), average=None)
    return [values[a] - values[b] for values in (auc, recall) for a in (0, 4) for b in (1, 2, 3)]


@pytest.mark.parametrize(("sure", "verdict"), [
    ((0.9, 0.2, 0.2, 0.2, 0.9), "replicated"),
    ((0.2, 0.9, 0.9, 0.9, 0.2), "not replicated"),
    ((0.9, 0.2, 0.9, 0.2, 0.9), "inconclusive"),  # another is separated as well
])
def test_grades_are_best_separated_where_the_intervals_of_all_leads_say_so(sure, verdict):
    generator = np.random.default_rng(3)
    own = np.array(sure)[TRUTH, None] * generator.uniform(0.5, 1, (len(TRUTH), 1))
    frame = graded(TRUTH)
    frame[PROBABILITIES] = own * np.eye(5)[TRUTH] + (1 - own) * generator.dirichlet(np.ones(5), len(TRUTH))
    answer, found = claims.separated(frame, 200, 0), leads(frame)
    assert answer.verdict == verdict and answer.ours == pytest.approx(min(found))
    groups = [rows for _, rows in frame.groupby("group_id")]
    drawn = [leads(pd.concat([groups[place] for place in generator.integers(len(groups), size=len(groups))]))
             [int(np.argmin(found))] for _ in range(100)]
    assert (answer.ci_low, answer.ci_high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.04)


def test_separation_is_undefined_without_every_grade():
    truth = np.arange(400) % 4
    assert claims.separated(graded(truth, truth), 50, 0).verdict == "inconclusive"


def test_each_test_of_the_table_is_decided_and_another_is_refused():
    answers = [claims.decide(test, MODELS, 50, 0) for test in CLAIMS["test"]]
    assert len(answers) == 3 and all(answer.reason and answer.verdict != "not run" for answer in answers)
    with pytest.raises(StudyError, match="by eye"):
        claims.decide("by eye", MODELS, 50, 0)
