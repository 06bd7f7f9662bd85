"""What a person sees of a run: lines per step, folded arms, epochs in place on a terminal only, no colour in a pipe."""

import functools
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
def watch(monkeypatch):
    """A function that lets a watch hear text from a kernel and gives what the terminal and the log then hold."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def hear(text, stream=None, errors=""):
        stream, log = stream or io.StringIO(), io.StringIO()
        seen = Watch(Terminal(stream), log, "  03 | ", 5)
        seen.stdout.write(text)
        seen.stderr.write(errors)
        seen.close()
        return stream.getvalue(), log.getvalue(), seen

    return hear


def told(monkeypatch, capsys, *calls):
    """What the kernel prints when it is watched."""
    monkeypatch.setenv(progress.WATCHED, "03_fine_tune")
    for call, arguments in calls:
        call(*arguments)
    return capsys.readouterr().out


def steps(monkeypatch, capsys, tmp_path, *lines):
    store = Store(tmp_path, "03_fine_tune")
    return told(monkeypatch, capsys, *((store.log, line) for line in lines))


def test_a_step_has_a_line_with_time_and_reason(watch, monkeypatch, capsys, tmp_path):
    out, log, seen = watch(steps(monkeypatch, capsys, tmp_path, ("features/a.npy", "built", 7.1, "code changed")))
    assert out == "  03 | features/a.npy: built in 7.1 s because code changed\n" and "features/a.npy: built in 7.1 s" in log and seen.seconds["built"] == 7.1


def test_steps_of_an_arm_are_one_line_with_the_mean_of_its_last_epochs(watch, monkeypatch, capsys, tmp_path):
    store = Store(tmp_path, "03_fine_tune")
    calls = []
    for fold, loss in ((1, 1.5), (2, 2.5)):
        building = functools.partial(progress.tell, event="building", step=f"checkpoints/clip__fold{fold}")
        calls += [(building, ("being built",)), *((progress.epoch, (f"clip fold {fold}", number, 2, {"loss": loss + 2 - number}, 1)) for number in (1, 2))]
        calls += [(store.log, (f"checkpoints/clip__fold{fold}", "built", 4, "code changed")), (store.log, (f"predictions/clip__b__fold{fold}.csv", "built", 0.5, "code changed"))]
    calls += [(store.log, ("checkpoints/vgg19__fold1", "reused", 30, "same key"))]
    out, log, _ = watch(told(monkeypatch, capsys, *calls))
    assert out.splitlines() == ["  03 | clip: 2 trainings, 2 predictions built in 9.0 s because code changed (mean of 2 last epochs: loss 2.000)",
                                "  03 | vgg19: 1 training reused (30 s saved)"]
    assert all(f"clip fold {fold} epoch {number}/2" in log for fold in (1, 2) for number in (1, 2))


def test_a_thousand_quick_reuses_are_one_line_and_a_step_counts_once(watch, monkeypatch, capsys, tmp_path):
    lines = [(f"features/{k % 500}.npy", "reused", 0.1, "same key") for k in range(1000)]
    out, log, seen = watch(steps(monkeypatch, capsys, tmp_path, *lines))
    assert out.splitlines() == ["  03 | data, features: 500 files reused (50 s saved)"] and seen.counts == {"reused": 500} and len(log.splitlines()) == 1000


def test_quick_steps_are_only_in_the_log(watch, monkeypatch, capsys, tmp_path):
    out, log, seen = watch(steps(monkeypatch, capsys, tmp_path, ("predictions/x__b.csv", "built", 0.2, "it did not exist"), ("data/b", "built", 0.2, "it did not exist")))
    assert out == "" and "predictions/x__b.csv" in log and "data/b" in log and seen.counts == {"built": 2}


def test_time_of_a_step_within_another_is_not_counted_twice(watch, monkeypatch, capsys, tmp_path):
    store = Store(tmp_path, "03_fine_tune")
    (tmp_path / ".locks").mkdir()
    monkeypatch.setenv(progress.WATCHED, "03_fine_tune")
    store.make("outer", {}, lambda path: (store.log("inner", "built", 50, "it did not exist"), path.write_text("x")))
    _, _, seen = watch(capsys.readouterr().out)
    assert seen.counts == {"built": 2} and seen.seconds["built"] < 5
    assert [line.get("nested", False) for line in map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())] == [True, False]


def test_epochs_change_in_place_on_a_terminal_and_are_silent_in_a_pipe(watch, monkeypatch, capsys):
    text = told(monkeypatch, capsys, *((progress.epoch, ("clip fold 1", number, 3, {"loss": 1.0, "accuracy": 0.5}, 3 - number)) for number in (1, 2, 3)))
    screen, _, _ = watch(text, Screen())
    pipe, log, _ = watch(text)
    assert "\n" not in screen and screen.count("\r\x1b[K") == 4 and "clip fold 1 epoch 2/3: loss 1.000, accuracy 0.500; 1.0 s left" in screen
    assert pipe == "" and len(log.splitlines()) == 3


def test_a_long_silence_ends_with_an_epoch_line(watch, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENCE", 0)
    out, _, _ = watch(told(monkeypatch, capsys, (progress.epoch, ("clip", 1, 3, {"loss": 1.0}, 130))))
    assert out == "  03 | clip epoch 1/3: loss 1.000; 2 min 10 s left\n"


@pytest.mark.parametrize("stream, setting, coloured", [(Screen, {}, True), (Screen, {"NO_COLOR": "1"}, False), (Screen, {"TERM": "dumb"}, False), (io.StringIO, {}, False)])
def test_colours_only_on_a_terminal(watch, monkeypatch, capsys, tmp_path, stream, setting, coloured):
    text = steps(monkeypatch, capsys, tmp_path, ("features/a.npy", "built", 7.1, "code changed"))
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    out, _, _ = watch(text, stream())
    assert ("\x1b[32m" in out) == coloured and (stream is Screen or "\x1b" not in out)


def test_a_line_in_place_fits_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    Terminal(screen).now("x" * 100)
    assert screen.getvalue().count("x") == 29


def test_other_output_warnings_and_half_events_are_in_the_log_only(watch):
    out, log, _ = watch("hello\n\x1e{broken\nlast without end", errors="Warning: odd\n10%\r100%\n")
    assert out == "" and all(word in log for word in ("hello", "{broken", "! Warning: odd", "! 100%")) and " 10%" not in log


def test_a_line_may_come_in_pieces(watch, monkeypatch, capsys, tmp_path):
    text = steps(monkeypatch, capsys, tmp_path, ("data/a", "built", 3, "it did not exist"))
    stream = io.StringIO()
    seen = Watch(Terminal(stream), io.StringIO(), "", 1)
    for letter in text:
        seen.stdout.write(letter)
    assert stream.getvalue() == "data/a: built in 3.0 s because it did not exist\n"


def test_a_person_at_a_notebook_reads_plain_lines(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(progress.WATCHED, raising=False)
    store = Store(tmp_path, "interactive")
    for seconds in (0.3, 3):
        store.log("data/a", "built", seconds, "it did not exist")
        store.log("data/b", "reused", seconds, "same key")
    assert capsys.readouterr().out.splitlines() == ["data/a: built in 3.0 s because it did not exist", "data/b: reused (3.0 s saved)"]


@pytest.mark.parametrize("seconds, words", [(0, "0 s"), (0.04, "0 s"), (7.12, "7.1 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (170, "2 min 50 s"), (4320, "1 h 12 min")])
def test_durations_are_in_words(seconds, words):
    assert progress.duration(seconds) == words
