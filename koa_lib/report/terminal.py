"""The terminal during a run: a few lines that stay, one line that changes in place,
and the full log beside them."""

import json
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from koa_lib.progress import MARK, duration, in_words

SILENCE = 60  # seconds after which an epoch gets a line of its own
SHOWN = 1  # seconds that a step took, or saved, to get a line
STYLES = {"head": "1", "built": "32", "reused": "2"}
_KINDS = {"checkpoints": "training", "predictions": "prediction"}


class Terminal:
    """Where people read: colours and a line in place on a terminal only (not with NO_COLOR, not in a
    pipe)."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colours = self.live and not os.environ.get("NO_COLOR")

    def line(self, text, style=""):
        """Write a line that stays."""
        if self.colours and style:
            text = f"\x1b[{STYLES[style]}m{text}\x1b[0m"
        self.stream.write("\r\x1b[K" * self.live + text + "\n")
        self.stream.flush()

    def now(self, text=""):
        """Show a text in place of the last one, until the next line; nothing in a pipe."""
        if self.live:
            self.stream.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()


@dataclass
class _Group:
    """The steps of one arm, told in one line when the next arm starts."""

    name: str
    counts: dict = field(default_factory=lambda: {"built": Counter(), "reused": Counter()})
    seconds: Counter = field(default_factory=Counter)
    reason: str = ""
    metrics: dict = field(default_factory=dict)

    def add(self, event, kind):
        self.counts[event["event"]][kind] += 1
        self.seconds[event["event"]] += event["seconds"]
        if event["event"] == "built":
            self.reason = self.reason or event["reason"]

    def text(self):
        parts = []
        if self.counts["built"]:
            parts.append(f"{_counted(self.counts['built'])} built in {duration(self.seconds['built'])} "
                         f"because {self.reason}{self._learned()}")
        if self.counts["reused"]:
            parts.append(f"{_counted(self.counts['reused'])} reused "
                         f"({duration(self.seconds['reused'])} saved)")
        return f"{self.name}: {'; '.join(parts)}"

    def _learned(self):
        if not self.metrics:
            return ""
        trainings = list(self.metrics.values())
        names = [name for name in trainings[0] if all(name in metrics for metrics in trainings)]
        means = {name: sum(metrics[name] for metrics in trainings) / len(trainings) for name in names}
        return (f" ({'last epoch' if len(trainings) == 1 else f'mean of {len(trainings)} last epochs'}: "
                f"{in_words(means)})")


def _counted(counts):
    return ", ".join(f"{count} {kind}{'s' * (count != 1)}"
                     for kind, count in sorted(counts.items(), reverse=True))


class Watch:
    """One notebook while it is executed: its events become lines of the terminal, everything it prints goes
    to the full log.

    Parameters
    ----------
    terminal : Terminal
    log : text file
    prefix : str
        Begins each line, so that two notebooks can run side by side.
    cells : int
        Code cells of the notebook.

    Attributes
    ----------
    cell : tuple of int and str
        Number and first line of the code cell that runs.
    counts, seconds : Counter
        Steps and seconds 'built' and 'reused'; a step within another counts, but its seconds don't.
    """

    def __init__(self, terminal, log, prefix, cells):
        self.terminal, self.log, self.prefix, self.cells = terminal, log, prefix, cells
        self.cell, self.counts, self.seconds = (0, ""), Counter(), Counter()
        self._seen, self._group, self._others, self._told = (
            set(), _Group(""), _Group("data, features"), time.monotonic())
        self.stdout, self.stderr = _Lines(self._printed), _Lines(lambda line: self.write(f"! {line}"))

    def start_cell(self, cell, cell_index):
        """Note the code cell that starts; called by nbclient. The cell with the run's parameters is not one
        of the notebook's own."""
        if "injected-parameters" in cell.metadata.get("tags", []):
            return
        self._close_group()
        self.cell = self.cell[0] + 1, cell.source.strip().splitlines()[0]
        self.write(f"code cell {self.cell[0]} of {self.cells}: {self.cell[1]}")
        self.terminal.now(f"{self.prefix}code cell {self.cell[0]} of {self.cells}: {self.cell[1]}")

    def write(self, text):
        """Add lines to the full log, with the time."""
        for line in text.splitlines():
            self.log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self.log.flush()

    def close(self):
        """Tell what is not yet told."""
        self._close_group()
        if self._others.counts["reused"] and self._others.seconds["reused"] >= SHOWN:
            self._line(self._others.text(), "reused")
        self.terminal.now()

    def _printed(self, line):
        try:
            event = json.loads(line[1:]) if line.startswith(MARK) else None
        except json.JSONDecodeError:
            event = None
        self.write(event["text"] if event else line)
        if event and "event" in event:
            getattr(self, f"_{event['event']}")(event)

    def _building(self, event):
        self._enter(event["step"])
        self.terminal.now(self.prefix + event["text"])

    def _epoch(self, event):
        self._group.metrics[event["label"]] = event["metrics"]
        if time.monotonic() - self._told >= SILENCE:
            self._line(event["text"])
        else:
            self.terminal.now(self.prefix + event["text"])

    def _built(self, event):
        self._step(event)

    def _reused(self, event):
        self._step(event)

    def _step(self, event):
        step, status = event["step"], event["event"]
        if step in self._seen:
            return
        self._seen.add(step)
        self.counts[status] += 1
        self.seconds[status] += 0 if event.get("nested") else event["seconds"]
        if kind := _arm(step)[1]:
            self._enter(step)
            self._group.add(event, kind)
        elif status == "reused":
            self._others.add(event, _KINDS.get(step.split("/")[0], "file"))
        elif event["seconds"] >= SHOWN:
            self._line(event["text"], "built")

    def _enter(self, step):
        name, kind = _arm(step)
        if kind and name != self._group.name:
            self._close_group()
            self._group = _Group(name)

    def _close_group(self):
        seconds = self._group.seconds
        if max(seconds.values(), default=0) >= SHOWN:
            self._line(self._group.text(), "built" if self._group.counts["built"] else "reused")
        self._group = _Group("")

    def _line(self, text, style=""):
        self._told = time.monotonic()
        self.terminal.line(self.prefix + text, style)


def _arm(step):
    # The arm of a checkpoint or prediction file, and what it is one of; other steps stand alone.
    folder, _, name = step.partition("/")
    return name.split("__")[0], _KINDS.get(folder, "")


class _Lines:
    """A file for papermill that hands on whole lines."""

    def __init__(self, hear):
        self.hear, self.rest = hear, ""

    def write(self, text):
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.hear(line.rpartition("\r")[2])

    def flush(self):
        """Nothing is held back but half a line."""
