"""What a person sees of a run: a line per step or arm, epochs in place, and no colour in a pipe."""

import io
import json

import pytest

from koa_lib import progress
from koa_lib.report import terminal
from koa_lib.report.terminal import Terminal, Watch
from koa_lib.store import Store


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def watch(monkeypatch, capsys, tmp_path):
    """A function that watches a kernel which logs steps (name, status, seconds) or does what is given.

    It gives the text of the stream and of the log, and the watch.
    """
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(progress.WATCHED, "03_fine_tune")

    def hear(*doings, stream=None, errors=""):
        store = Store(tmp_path, "03_fine_tune")
        for doing in doings:
            doing(store) if callable(doing) else store.log(*doing, "code changed")
        text, stream, log = capsys.readouterr().out, stream or io.StringIO(), io.StringIO()
        seen = Watch(Terminal(stream), log, "  03 | ", 5)
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):  # a line may come in pieces
            seen.stdout.write(half)
        seen.stderr.write(errors)
        seen.close()
        return stream.getvalue(), log.getvalue(), seen

    return hear


def epochs(label, count, loss=1.0, left=1):
    return lambda store: [progress.epoch(label, number, count, {"loss": loss + count - number}, left)
                          for number in range(1, count + 1)]


def test_a_step_has_a_line_with_time_and_reason_but_a_quick_one_only_in_the_log(watch):
    out, log, seen = watch(("features/a.npy", "built", 7.1), ("data/b", "built", 0.2))
    assert out.count("\n") == 1 and all(text in out for text in ("features/a.npy", "7.1 s", "code changed"))
    assert "features/a.npy" in log and "data/b" in log and seen.counts == {"built": 2}


def test_steps_of_an_arm_are_one_line_with_the_mean_of_its_last_epochs(watch):
    steps = []
    for fold in (1, 2):
        steps += [epochs(f"clip fold {fold}", 2, fold), (f"checkpoints/clip__fold{fold}", "built", 4),
                  (f"predictions/clip__b__fold{fold}.csv", "built", 0.5)]
    out, _, _ = watch(lambda store: progress.tell("", event="building", step="checkpoints/clip__fold1"),
                      *steps, ("checkpoints/vgg19__fold1", "reused", 30))
    trained, reused = out.splitlines()
    assert all(text in trained for text in ("clip: 2 trainings", "9.0 s", "code changed", "loss 1.500"))
    assert "vgg19: 1 training reused" in reused


def test_many_quick_reuses_are_one_line_and_a_step_counts_once(watch):
    out, log, seen = watch(*((f"features/{k % 50}.npy", "reused", 0.1) for k in range(100)))
    assert out.count("\n") == 1 and "50 files" in out
    assert seen.counts == {"reused": 50} and log.count("\n") == 100


def test_time_of_a_step_within_another_is_not_counted_twice(watch, tmp_path):
    def outer(store):
        store.make("outer", {}, lambda path: (store.log("inner", "built", 50, "x"), path.write_text("x")))

    _, _, seen = watch(outer)
    assert seen.counts == {"built": 2} and seen.seconds["built"] < 5
    lines = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert [line.get("nested", False) for line in lines] == [True, False]


def test_epochs_change_in_place_on_a_terminal_and_in_a_pipe_tell_only_after_a_silence(watch, monkeypatch):
    screen, _, _ = watch(epochs("clip fold 1", 3), stream=Screen())
    pipe, log, _ = watch(epochs("clip fold 1", 3))
    assert "\n" not in screen and "\r" in screen and "epoch 2/3: loss 2.000" in screen
    assert pipe == "" and log.count("\n") == 3
    monkeypatch.setattr(terminal, "SILENCE", 0)
    late, _, _ = watch(epochs("clip", 1, left=130))
    assert "clip epoch 1/1" in late and "2 min 10 s left" in late


@pytest.mark.parametrize("stream, setting, coloured", [
    (Screen, {}, True), (Screen, {"NO_COLOR": "1"}, False), (Screen, {"TERM": "dumb"}, False),
    (io.StringIO, {}, False)])
def test_colours_only_on_a_terminal(watch, monkeypatch, stream, setting, coloured):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    out, _, _ = watch(("features/a.npy", "built", 7.1), stream=stream())
    assert ("\x1b[3" in out) == coloured and (stream is Screen or "\x1b" not in out)


def test_a_line_in_place_fits_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    Terminal(screen).now("x" * 100)
    assert screen.getvalue().count("x") < 30


def test_other_output_warnings_and_half_events_are_in_the_log_only(watch):
    out, log, _ = watch(lambda store: print("hello\n\x1e{broken\nlast"), errors="Warning: odd\n10%\r100%\n")
    assert out == "" and " 10%" not in log
    assert all(word in log for word in ("hello", "{broken", "last", "Warning: odd", "100%"))


def test_a_person_at_a_notebook_reads_plain_lines(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(progress.WATCHED, raising=False)
    store = Store(tmp_path, "interactive")
    for seconds in (0.3, 3):
        store.log("data/a", "built", seconds, "it did not exist")
        store.log("data/b", "reused", seconds, "same key")
    a, b = capsys.readouterr().out.splitlines()
    assert "data/a" in a and "it did not exist" in a and "data/b" in b and progress.MARK not in a + b


@pytest.mark.parametrize("seconds, words", [
    (0.04, "0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (4320, "1 h 12 min")])
def test_durations_are_in_words(seconds, words):
    assert progress.duration(seconds) == words
