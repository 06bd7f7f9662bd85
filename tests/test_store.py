"""The artefact store: same key reuses, another key rebuilds and says why, nothing half-made is ever used."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch

from koa_lib.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, "01_test")


def writer(text):
    def build(path):
        build.calls += 1
        path.write_text(text)

    build.calls = 0
    return build


def failing(path):
    path.write_text("half")
    raise RuntimeError("stopped")


def lines(store):
    return [json.loads(line) for line in (store.folder / "run.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Settings:
    epochs: int
    parts: tuple


def test_the_same_key_is_reused_and_each_step_is_logged_once(store):
    build = writer("one")
    for _ in range(3):  # a dataclass is compared by value
        path = store.make("tables/a.csv", {"seed": 1, "recipe": Settings(2, ("a", "b"))}, build)
    assert build.calls == 1 and path == store.folder / "tables" / "a.csv" and path.read_text() == "one"
    assert [line["status"] for line in lines(store)] == ["built", "reused", "reused"]
    first = lines(store)[0]
    assert (first["step"], first["notebook"]) == ("tables/a.csv", "01_test") and first["reason"]
    assert json.loads(path.with_name("a.csv.json").read_text())["key"]["seed"] == 1


@pytest.mark.parametrize(("before", "after", "changed"), [
    ({"seed": 1, "data": "x"}, {"seed": 2, "data": "x"}, "seed"),
    ({"seed": 1, "old": 1}, {"seed": 1, "new": 1}, "new, old"),
    ({"seed": 1}, {"seed": 1, "new": 1}, "new"),
    ({"recipe": Settings(2, ())}, {"recipe": Settings(3, ())}, "recipe"),
])
def test_another_key_rebuilds_and_names_what_changed(store, before, after, changed):
    store.make("a", before, writer("one"))
    assert store.make("a", after, writer("two")).read_text() == "two"
    assert lines(store)[-1]["reason"] == f"{changed} changed"


def test_a_failed_build_leaves_nothing_and_a_failed_rebuild_the_old(store):
    old = writer("old")
    for seed, wanted in ((1, False), (2, True)):
        with pytest.raises(RuntimeError):
            store.make("a.csv", {"seed": seed}, failing)
        assert (store.folder / "a.csv").exists() == (store.folder / "a.csv.json").exists() == wanted
        assert store.make("a.csv", {"seed": 1}, old).read_text() == "old" and old.calls == 1


def test_a_file_without_its_note_is_rebuilt(store):
    (store.folder / "a.csv").write_text("killed before the note was written")
    assert store.make("a.csv", {}, writer("whole")).read_text() == "whole"


def test_a_killed_build_leaves_nothing_that_is_used(store):
    program = ("import os, sys; from koa_lib.store import Store\n"
               "def build(path):\n    path.write_text('half'); os._exit(9)\n"
               "Store(sys.argv[1], 'killed').make('a.csv', {'seed': 1}, build)")
    assert subprocess.run([sys.executable, "-c", program, str(store.folder)]).returncode == 9
    assert not (store.folder / "a.csv").exists()
    assert store.make("a.csv", {"seed": 1}, writer("whole")).read_text() == "whole"
    assert not list(store.folder.glob(".part-*"))


def test_two_at_once_build_once(store):
    calls = []

    def slow(path):
        calls.append(1)
        time.sleep(0.3)
        path.write_text("x")

    several = [Store(store.folder, f"t{k}") for k in range(3)]
    threads = [threading.Thread(target=one.make, args=("a", {}, slow)) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_session_beside_a_run_reads_it_and_writes_elsewhere(store, tmp_path):
    before = writer("of the run")
    made = store.make("a.csv", {"seed": 1}, before)
    session = Store(tmp_path, "interactive", tmp_path / "interactive")
    assert session.make("a.csv", {"seed": 1}, before) == made and before.calls == 1
    other = session.make("a.csv", {"seed": 2}, writer("of the session"))
    assert other == tmp_path / "interactive" / "a.csv" and made.read_text() == "of the run"
    assert session.make("a.csv", {"seed": 2}, before) == other and before.calls == 1
    assert len(lines(store)) == 1  # and the journal of the run is its own


def test_what_is_made_is_computed_in_the_given_threads_and_nothing_else(tmp_path):
    seen, before = [], torch.get_num_threads()

    def build(path):
        seen.append(torch.get_num_threads())
        path.write_text("made")

    Store(tmp_path, "t", threads=before + 1).make("a", {}, build)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
