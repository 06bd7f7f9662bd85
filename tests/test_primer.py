"""What the first notebook shows is true: the typical knees have their grades, the bars are the model's."""

import numpy as np
import pytest
import torch
from conftest import TINY

from koa_lib import model
from koa_lib.datasets import to_tensor
from koa_lib.phantoms import findings
from koa_lib.prompts import prompts
from koa_lib.report import primer


@pytest.fixture(scope="module")
def typical():
    return primer.typical_findings()


def test_typical_knees_have_their_grades_and_get_worse(typical):
    assert [findings.kl_grade(found) for found in typical] == [0, 1, 2, 3, 4]
    for name in ("osteophytes", "jsn"):
        assert all(np.diff([getattr(found, name) for found in typical]) > 0)


def test_drawn_knee_narrows_at_the_inner_side(typical):
    healthy, severe = (primer.draw(typical[grade]) for grade in (0, 4))
    x, y = (np.array(primer.VIEW.centre) + primer.VIEW.unit * np.array((-0.6, -0.07))).astype(int)
    gap = np.s_[y - 3 : y + 4, x - 8 : x + 9]
    assert severe[gap].mean() > healthy[gap].mean() + 0.1  # bone where the gap was


def test_compared_gives_cosines_and_the_softmax_of_the_scaled_ones():
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=0)
    grader = model.ClipGrader(clip, tokenizer, "adapter", prompts("as_printed")).eval()
    picture = np.random.default_rng(0).integers(0, 256, (112, 112)).astype(np.uint8)
    table = primer.compared({"a": grader}, picture, TINY.normalisation)
    with torch.no_grad():
        expected = grader(to_tensor(picture[None], TINY.normalisation)).softmax(-1)[0].numpy()
    assert table["probability"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert table["cosine"].abs().max() <= 1
    scaled = np.exp(grader.scale.item() * table["cosine"].to_numpy())
    assert scaled / scaled.sum() == pytest.approx(expected, abs=1e-5)


def test_mean_answers_are_those_of_each_true_grade():
    answers = {"a": np.array([[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0]])}
    table = primer.mean_answers(np.array([0, 0, 2]), answers)
    assert list(table["n"]) == [2, 0, 1, 0, 0] and list(table.loc[0, ["p0", "p1"]]) == [0.5, 0.5]
    assert table.loc[1, "p0":"p4"].isna().all() and set(table["accuracy"]) == {1 / 3}
