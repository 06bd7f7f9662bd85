"""The journal of a run: whole lines, half lines left out, no growth, and honest times."""

import json
import time

import pytest

from koa_lib import journal
from reports import provenance


def write(folder, *lines):
    (folder / journal.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def execution(name, day, steps, built):
    """The lines of one execution of a notebook: its steps, then its own line."""
    line = {"reason": "r", "notebook": name, "time": f"2026-01-0{day}T03:04:05", "peak_mib": 900}
    rows = [{"step": step, "status": "built" if step in built else "reused", "seconds": 5} for step in steps]
    return [line | row for row in [*rows, {"step": name, "status": "built", "seconds": 9, "peak_mib": 1000}]]


def test_peak_memory_is_that_of_this_process(tmp_path):
    ballast = bytearray(64 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    journal.append(tmp_path, "a", "built", 1, "r", "01_a")
    (found,) = journal.read(tmp_path)
    assert 64 < found["peak_mib"] < 10**6


def test_half_a_line_spoils_neither_itself_nor_the_next(tmp_path):
    assert journal.read(tmp_path) == []
    (tmp_path / journal.FILE).write_text('{"step": "half')
    for step in "ab":
        journal.append(tmp_path, step, "built", 1, "r", "01_a")
    assert [found["step"] for found in journal.read(tmp_path)] == ["a", "b"]


def test_steps_are_those_of_the_last_execution_and_what_was_built_keeps_its_time(tmp_path):
    first, again = execution("03_fine_tune", 2, "ab", "a"), execution("03_fine_tune", 2, "a", "")
    write(tmp_path, *execution("03_fine_tune", 1, "xa", "xa"), *execution("interactive", 1, "y", "y"),
          *first[:-1], again[0] | {"seconds": 0, "peak_mib": 950}, first[-1])
    (found,) = provenance.steps(tmp_path)
    steps = [(step["step"], step["status"], step["seconds"], step["peak_mib"]) for step in found["steps"]]
    assert steps == [("a", "built", 5, 950), ("b", "reused", 5, 900)]
    assert (found["seconds"], found["peak_mib"], found["built"], found["reused"]) == (9, 1000, 1, 1)
    whole = provenance.total([found, found | {"peak_mib": None, "seconds": None}])
    assert whole == {"seconds": 9, "peak_mib": 1000, "built": 2, "reused": 2}


def test_compacting_keeps_what_the_environment_page_shows(tmp_path):
    one, two = "01_data_audit", "02_zero_shot_baseline"
    lines = [*execution("03_long_gone", 1, "z", "z"), *execution(one, 1, "abc", "abc"),
             *execution(two, 1, "cd", "d"), *execution(one, 2, "ab", "a"), *execution(two, 2, "cd", "")]
    write(tmp_path, *lines * 5, *execution(one, 3, "ab", ""))
    before = provenance.steps(tmp_path)
    assert [row["notebook"] for row in before] == [one, two]  # and none that the study no longer has
    assert {row["step"] for row in before[0]["steps"]} == {"a", "b"}  # c belonged to an older version
    for _ in range(2):
        journal.compact(tmp_path)
        assert provenance.steps(tmp_path) == before
        assert len(journal.read(tmp_path)) <= 3 + 3 + 4 + 2  # two executions, and what was built before them


def test_since_a_moment(tmp_path):
    write(tmp_path, *execution("01_a", 1, "", ""))
    journal.append(tmp_path, "new", "built", 1, "r", "01_a")
    assert [found["step"] for found in journal.since(journal.read(tmp_path), time.time() - 60)] == ["new"]


@pytest.mark.parametrize("text, moment", [("", None), ("soon", None), ("1700000000", 1.7e9)])
def test_when_make_began(monkeypatch, text, moment):
    monkeypatch.setenv(journal.STARTED, text)
    assert journal.started() == moment
