"""Answers of the other systems' notebooks survive a file, and the scorecard takes what is there."""

import math
from dataclasses import replace

import pytest

from koa_lib.paper import answers
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.scorecard import Ours


@pytest.fixture
def study(easy_study, tmp_path):
    return replace(easy_study, run_dir=tmp_path)


def test_what_is_kept_is_read_again(study):
    given = {("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"): Ours(58.25, 55.0, math.nan, "3 seeds"), ("CLIP-KOA", "abstract", "a claim"): not_run("no data"),
             ("CLIP-KOA", "abstract", "another"): Answer(0.1, 0.05, 0.2, "ratio", "inconclusive", "half")}
    answers.keep(study, "CLIP-KOA", given)
    answers.keep(study, "JIIM-2025", {("JIIM-2025", "abstract", "x", "y"): Ours(1.0)})
    found = answers.read(study)
    assert list(found) == [*given, ("JIIM-2025", "abstract", "x", "y")]
    for key, value in given.items():
        assert type(found[key]) is type(value)
        assert repr(found[key]) == repr(value)


def test_a_run_without_answers_has_none(study):
    assert answers.read(study) == {}
