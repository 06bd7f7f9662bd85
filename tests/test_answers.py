"""Answers of the other systems' notebooks survive a file, and the scorecard takes what is there."""

import math
from types import SimpleNamespace

from koa_lib.paper import answers
from koa_lib.paper.claims import Answer, not_run
from koa_lib.verdict import Ours


def test_what_is_kept_is_read_again_and_a_session_comes_before_the_run(tmp_path):
    run = SimpleNamespace(run_dir=tmp_path, own_dir=tmp_path)
    assert answers.read(run) == {}
    number, claim = ("CLIP-KOA", "abstract", "CLIP-KOA", "accuracy"), ("CLIP-KOA", "abstract", "a claim")
    given = {number: Ours(58.25, 55.0, math.nan, "3 seeds"), claim: not_run("no data"),
             ("CLIP-KOA", "x", "why", "y"): "no picture"}
    answers.keep(run, "CLIP-KOA", given)
    other = Answer(0.1, 0.05, 0.2, "ratio", "replicated", "")
    answers.keep(run, "JIIM-2025", {("JIIM-2025", "x", "y"): other})
    found = answers.read(run)
    assert {key: repr(found[key]) for key in given} == {key: repr(value) for key, value in given.items()}
    assert len(found) == 4
    session = SimpleNamespace(run_dir=tmp_path, own_dir=tmp_path / "interactive")
    session.own_dir.mkdir()
    answers.keep(session, "CLIP-KOA", {number: Ours(60.0)})
    assert answers.read(session)[number].value == 60 and answers.read(run)[number].value == 58.25
