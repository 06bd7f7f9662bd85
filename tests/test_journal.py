"""The journal of a run: whole lines, half lines left out, no growth, and honest times."""

import json
import time

import pytest

from koa_lib import journal
from reports import provenance


def line(step, seconds=1.0, status="built", notebook="01_a", moment="2026-01-02T03:04:05", **more):
    return {"step": step, "status": status, "seconds": seconds, "reason": "r", "notebook": notebook, "time": moment, **more}


def write(folder, *lines):
    (folder / journal.FILE).write_text("".join(json.dumps(text) + "\n" for text in lines))


def test_peak_memory_is_that_of_this_process(tmp_path):
    ballast = bytearray(64 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    journal.append(tmp_path, "a", "built", 1, "r", "01_a")
    (found,) = journal.read(tmp_path)
    assert 64 < found["peak_mib"] < 10**6 and found["peak_mib"] == pytest.approx(journal.peak_mib(), rel=0.2)


def test_half_a_line_spoils_neither_itself_nor_the_next(tmp_path):
    write(tmp_path, line("a"))
    with open(tmp_path / journal.FILE, "a") as file:
        file.write('{"step": "half')
    journal.append(tmp_path, "b", "built", 1, "r", "01_a")
    assert [found["step"] for found in journal.read(tmp_path)] == ["a", "b"]


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    assert journal.read(tmp_path) == []
    journal.compact(tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))


def execution(name, number, steps, built):
    """The lines of one execution of a notebook: its steps, then its own line."""
    moment = f"2026-01-0{number}T03:04:05"
    return [line(step, 5, "built" if step in built else "reused", name, moment=moment) for step in steps] + [line(name, 9, "built", name, moment=moment, own=4.0)]


def test_compacting_keeps_what_the_environment_page_shows(tmp_path):
    lines = [*execution("03_long_gone", 1, "z", "z"), *execution("01_data_audit", 1, "abc", "abc"), *execution("02_zero_shot_baseline", 1, "cd", "d"), *execution("01_data_audit", 2, "ab", "a"), *execution("02_zero_shot_baseline", 2, "cd", "")]
    write(tmp_path, *lines * 5, *execution("01_data_audit", 3, "ab", ""))
    before = provenance.steps(tmp_path)
    assert [row["notebook"] for row in before] == ["01_data_audit", "02_zero_shot_baseline"]  # and none that the study no longer has
    journal.compact(tmp_path)
    once = (tmp_path / journal.FILE).read_bytes()
    journal.compact(tmp_path)
    assert (tmp_path / journal.FILE).read_bytes() == once
    assert len(journal.read(tmp_path)) <= 3 + 3 + 4 + 2  # two executions, and what was built before them
    assert provenance.steps(tmp_path) == before
    assert {row["step"] for row in before[0]["steps"]} == {"a", "b"}  # c belonged to an older version of the notebook


def test_since_a_moment(tmp_path):
    journal.append(tmp_path, "new", "built", 1, "r", "01_a")
    lines = [line("old"), *journal.read(tmp_path)]
    assert [found["step"] for found in journal.since(lines, time.time() - 60)] == ["new"]


@pytest.mark.parametrize("text, moment", [("", None), ("soon", None), ("1700000000", 1.7e9)])
def test_when_make_began(monkeypatch, text, moment):
    monkeypatch.setenv(journal.STARTED, text)
    assert journal.started() == moment
