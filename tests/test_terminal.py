"""What a person sees of a run: a line per step, folded arms, epochs in place on a terminal only, no colour in a pipe."""

import io
import json
from functools import partial

import pytest

from koa_lib import progress
from koa_lib.report import terminal
from koa_lib.report.terminal import Terminal, Watch
from koa_lib.store import Store

NEW = "it did not exist"


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def kernel(monkeypatch, capsys, tmp_path):
    """A function that gives what a watched kernel prints while it logs some steps, (name, status, seconds, reason),
    or does what it is given."""

    def run(*doings):
        monkeypatch.setenv(progress.WATCHED, "03_fine_tune")
        store = Store(tmp_path, "03_fine_tune")
        for doing in doings:
            doing(store) if callable(doing) else store.log(*doing)
        return capsys.readouterr().out

    return run


@pytest.fixture
def watch(monkeypatch):
    """A function that lets a watch hear text from a kernel: what the stream and the log then hold, and the watch."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def hear(text, stream=None, errors=""):
        stream, log = stream or io.StringIO(), io.StringIO()
        seen = Watch(Terminal(stream), log, "  03 | ", 5)
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):  # a line may come in pieces
            seen.stdout.write(half)
        seen.stderr.write(errors)
        seen.close()
        return stream.getvalue(), log.getvalue(), seen

    return hear


def epochs(label, count, loss=1.0, left=1):
    return lambda store: [
        progress.epoch(label, number, count, {"loss": loss + count - number}, left)
        for number in range(1, count + 1)
    ]


def test_a_step_has_a_line_with_time_and_reason(watch, kernel):
    out, log, seen = watch(kernel(("features/a.npy", "built", 7.1, "code changed")))
    assert len(out.splitlines()) == 1 and all(
        text in out for text in ("features/a.npy", "7.1 s", "code changed")
    )
    assert "features/a.npy" in log and seen.seconds["built"] == 7.1


def test_steps_of_an_arm_are_one_line_with_the_mean_of_its_last_epochs(watch, kernel):
    steps = []
    for fold in (1, 2):
        name = f"checkpoints/clip__fold{fold}"
        steps += [
            lambda store, name=name: progress.tell("", event="building", step=name),
            epochs(f"clip fold {fold}", 2, fold),
        ]
        steps += [
            (name, "built", 4, "code changed"),
            (f"predictions/clip__b__fold{fold}.csv", "built", 0.5, "code changed"),
        ]
    out, log, _ = watch(kernel(*steps, ("checkpoints/vgg19__fold1", "reused", 30, "same key")))
    trained, reused = out.splitlines()
    assert all(text in trained for text in ("clip: 2 trainings", "9.0 s", "code changed", "loss 1.500"))
    assert "vgg19: 1 training reused" in reused and "clip fold 2 epoch 1/2" in log


def test_a_thousand_quick_reuses_are_one_line_and_a_step_counts_once(watch, kernel):
    out, log, seen = watch(
        kernel(*((f"features/{k % 500}.npy", "reused", 0.1, "same key") for k in range(1000)))
    )
    assert len(out.splitlines()) == 1 and "500 files" in out
    assert seen.counts == {"reused": 500} and len(log.splitlines()) == 1000


def test_quick_steps_are_only_in_the_log(watch, kernel):
    out, log, seen = watch(kernel(("predictions/x__b.csv", "built", 0.2, NEW), ("data/b", "built", 0.2, NEW)))
    assert out == "" and "predictions/x__b.csv" in log and "data/b" in log and seen.counts == {"built": 2}


def test_time_of_a_step_within_another_is_not_counted_twice(watch, kernel, tmp_path):
    def outer(store):
        store.make("outer", {}, lambda path: (store.log("inner", "built", 50, NEW), path.write_text("x")))

    _, _, seen = watch(kernel(outer))
    assert seen.counts == {"built": 2} and seen.seconds["built"] < 5
    lines = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert [line.get("nested", False) for line in lines] == [True, False]


def test_epochs_change_in_place_on_a_terminal_and_are_silent_in_a_pipe(watch, kernel):
    text = kernel(epochs("clip fold 1", 3))
    (screen, _, _), (pipe, log, _) = watch(text, Screen()), watch(text)
    assert "\n" not in screen and "\r" in screen and "clip fold 1 epoch 2/3: loss 2.000" in screen
    assert pipe == "" and len(log.splitlines()) == 3


def test_a_long_silence_ends_with_an_epoch_line(watch, kernel, monkeypatch):
    monkeypatch.setattr(terminal, "SILENCE", 0)
    out, _, _ = watch(kernel(epochs("clip", 1, left=130)))
    assert "clip epoch 1/1" in out and "2 min 10 s left" in out


@pytest.mark.parametrize(
    "stream, setting, coloured",
    [
        (Screen, {}, True),
        (Screen, {"NO_COLOR": "1"}, False),
        (Screen, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colours_only_on_a_terminal(watch, kernel, monkeypatch, stream, setting, coloured):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    out, _, _ = watch(kernel(("features/a.npy", "built", 7.1, "code changed")), stream())
    assert ("\x1b[3" in out) == coloured and (stream is Screen or "\x1b" not in out)


def test_a_line_in_place_fits_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    Terminal(screen).now("x" * 100)
    assert screen.getvalue().count("x") < 30


def test_other_output_warnings_and_half_events_are_in_the_log_only(watch):
    out, log, _ = watch("hello\n\x1e{broken\nlast without end", errors="Warning: odd\n10%\r100%\n")
    assert out == "" and " 10%" not in log
    assert all(word in log for word in ("hello", "{broken", "Warning: odd", "100%"))


def test_a_person_at_a_notebook_reads_plain_lines(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(progress.WATCHED, raising=False)
    store = Store(tmp_path, "interactive")
    for step in (
        partial(store.log, "data/a", "built", reason=NEW),
        partial(store.log, "data/b", "reused", reason="same key"),
    ):
        step(seconds=0.3)
        step(seconds=3)
    a, b = capsys.readouterr().out.splitlines()
    assert "data/a" in a and NEW in a and "data/b" in b and "reused" in b and progress.MARK not in a + b


@pytest.mark.parametrize(
    "seconds, words", [(0.04, "0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (4320, "1 h 12 min")]
)
def test_durations_are_in_words(seconds, words):
    assert progress.duration(seconds) == words
