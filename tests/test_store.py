"""The artefact store: same key reuses, another key rebuilds and says why, nothing half-made is ever used."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_lib import store as stores
from koa_lib.store import Store, plain


@pytest.fixture
def store(tmp_path):
    (tmp_path / ".locks").mkdir()
    return Store(tmp_path, "01_test")


def writer(text):
    def build(path):
        build.calls += 1
        path.write_text(text)

    build.calls = 0
    return build


def lines(store):
    return [json.loads(line) for line in (store.folder / "run.jsonl").read_text().splitlines()]


def test_same_key_is_reused(store):
    build = writer("one")
    paths = [store.make("tables/a.csv", {"seed": 1}, build) for _ in range(3)]
    assert build.calls == 1 and set(paths) == {store.folder / "tables" / "a.csv"} and paths[0].read_text() == "one"
    assert [line["status"] for line in lines(store)] == ["built", "reused", "reused"]


def test_another_key_rebuilds_and_names_what_changed(store):
    store.make("a", {"seed": 1, "data": "x"}, writer("one"))
    path = store.make("a", {"seed": 2, "data": "x"}, writer("two"))
    assert path.read_text() == "two"
    assert lines(store)[-1]["reason"] == "seed changed"


def test_added_and_removed_keys_count_as_changed(store):
    store.make("a", {"seed": 1, "old": 1}, writer("one"))
    store.make("a", {"seed": 1, "new": 1}, writer("two"))
    assert lines(store)[-1]["reason"] == "new, old changed"


def test_log_has_one_whole_line_per_step(store):
    store.make("a", {}, writer("x"))
    (line,) = lines(store)
    assert {"step", "status", "seconds", "reason", "notebook", "time", "peak_mib"} <= set(line)
    assert line["step"] == "a" and line["notebook"] == "01_test" and line["reason"] == "it did not exist"


def test_note_beside_the_artefact_says_how_it_was_made(store):
    path = store.make("a.csv", {"seed": 1}, writer("x"))
    note = json.loads(path.with_name("a.csv.json").read_text())
    assert note["key"]["seed"] == 1 and note["seconds"] >= 0


def failing(path):
    path.write_text("half")
    raise RuntimeError("stopped")


def test_failed_build_leaves_no_artefact(store):
    with pytest.raises(RuntimeError):
        store.make("a.csv", {}, failing)
    assert not (store.folder / "a.csv").exists() and not (store.folder / "a.csv.json").exists()
    assert store.make("a.csv", {}, writer("whole")).read_text() == "whole"


def test_failed_rebuild_keeps_the_old_artefact_usable(store):
    build = writer("old")
    store.make("a.csv", {"seed": 1}, build)
    with pytest.raises(RuntimeError):
        store.make("a.csv", {"seed": 2}, failing)
    assert store.make("a.csv", {"seed": 1}, build).read_text() == "old" and build.calls == 1


def test_folder_artefact_is_replaced_as_a_whole(store):
    def build(name):
        def write(path):
            path.mkdir()
            (path / name).write_text(name)

        return write

    store.make("cohort", {"seed": 1}, build("first"))
    path = store.make("cohort", {"seed": 2}, build("second"))
    assert [entry.name for entry in path.iterdir()] == ["second"]


def test_artefact_without_its_note_is_rebuilt(store):
    (store.folder / "a.csv").write_text("killed before the note was written")
    assert store.make("a.csv", {}, writer("whole")).read_text() == "whole"


def test_killed_build_leaves_nothing_that_is_used(store):
    program = ("import os, sys; from koa_lib.store import Store\n"
               "def build(path):\n    path.write_text('half'); os._exit(9)\n"
               "Store(sys.argv[1], 'killed').make('a.csv', {'seed': 1}, build)")
    assert subprocess.run([sys.executable, "-c", program, str(store.folder)]).returncode == 9
    assert not (store.folder / "a.csv").exists()
    path = store.make("a.csv", {"seed": 1}, writer("whole"))
    assert path.read_text() == "whole" and [p.name for p in store.folder.glob("*a.csv*")].count("a.csv") == 1
    assert not list(store.folder.glob(".part-*"))


def test_two_at_once_build_once(store):
    calls = []

    def slow(path):
        calls.append(1)
        time.sleep(0.3)
        path.write_text("x")

    threads = [threading.Thread(target=Store(store.folder, f"t{k}").make, args=("a", {}, slow)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@dataclass(frozen=True)
class Settings:
    epochs: int
    parts: tuple


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_plain_is_what_json_gives_back(value):
    once = plain({"value": value})
    assert json.loads(json.dumps(once)) == once == plain(once)


def test_dataclass_in_a_key_is_compared_by_value(store):
    build = writer("x")
    store.make("a", {"recipe": Settings(2, ("a", "b"))}, build)
    store.make("a", {"recipe": Settings(2, ("a", "b"))}, build)
    store.make("a", {"recipe": Settings(3, ("a", "b"))}, build)
    assert build.calls == 2 and lines(store)[-1]["reason"] == "recipe changed"


def test_write_text_replaces_whole_files(tmp_path):
    stores.write_text(tmp_path / "a.txt", "first, longer")
    stores.write_text(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_session_beside_a_run_reads_it_and_writes_elsewhere(store, tmp_path):
    before = writer("of the run")
    made = store.make("a.csv", {"seed": 1}, before)
    session = Store(tmp_path, "interactive", tmp_path / "interactive")
    assert session.make("a.csv", {"seed": 1}, before) == made and before.calls == 1
    other = session.make("a.csv", {"seed": 2}, writer("of the session"))
    assert other == tmp_path / "interactive" / "a.csv" and made.read_text() == "of the run"
    assert session.make("a.csv", {"seed": 2}, before) == other and before.calls == 1
    assert len(lines(store)) == 1  # and the journal of the run is its own
