"""What closes a run: its pages, and the lines that say what was found, how long it took and what can follow."""

import time

from koa_lib import budget, journal, labels
from koa_lib import profile as profiles
from koa_lib.errors import GOES_ON, StudyError
from koa_lib.progress import duration
from koa_lib.store import write_text
from koa_lib.study import stored_inputs
from koa_lib.terminal import Terminal

FAILED_LINES = 3  # of a failed build are shown; all are in its log


def build_pages(folder):
    """Build the HTML report of a run and tell how long it took.

    Raises
    ------
    StudyError
        In at most five lines; the whole is in `logs/report.log`.
    """
    from koa_lib import report

    terminal, clock, log = Terminal(), time.perf_counter(), folder / "logs" / "report.log"
    terminal.now("report: building the pages")
    try:
        report.build(folder)
    except StudyError as error:
        terminal.now()
        lines = str(error).splitlines()
        if len(lines) <= FAILED_LINES:
            raise
        log.parent.mkdir(parents=True, exist_ok=True)
        write_text(log, str(error) + "\n")
        raise StudyError("\n".join([*lines[:FAILED_LINES], f"  full log: {log}", f"  {GOES_ON}"])) from None
    seconds = time.perf_counter() - clock
    journal.append(folder, "report", "built", seconds, "pages built", "report", children=True)
    terminal.line(f"report: pages built in {duration(seconds)}", "head")


def summarise(folder, options=""):
    """The closing lines of a run.

    Parameters
    ----------
    folder : Path
        The run folder.
    options : str
        What make was given to name the run, e.g. 'PROFILE=oai'.

    Raises
    ------
    StudyError
        When there is no run.
    """
    lines = journal.read(folder)
    if not lines:
        raise StudyError(f"There is no run in {folder}. Start one with 'make reproduce' and this profile.")
    path = folder / "headline.txt"
    headline = path.read_text(encoding="utf-8").strip() if path.exists() else "no headline was written"
    tables, figures = (len(list((folder / kind).glob(pattern))) for kind, pattern in (("tables", "[!.]*.csv"), ("figures", "[!.]*.png")))
    spent = _spent(folder, lines)
    return "\n".join([f"result: {labels.words(headline)}", f"made: {tables} tables, {figures} figures in {folder}", f"time: {_time(lines)}",
                      *([f"budget: {spent}"] if spent else []), f"next: {_next(folder, options)}", f"report: {(folder / 'html' / 'index.html').as_uri()}"])


def _spent(folder, lines):
    path = folder / "inputs.yaml"
    if not path.is_file():
        return ""
    inputs = stored_inputs(path)
    settings = profiles.load(inputs["profile"])
    return budget.sentence(budget.spent(profiles.dry(settings, real=bool(inputs["data"])) if inputs.get("dry") else settings, lines))


def _time(lines):
    started = journal.started()
    if started is None:
        last = {line["step"]: line["seconds"] for line in lines if line["step"] == line["notebook"]}
        return f"{duration(sum(last.values()))} in notebooks, each as executed last"
    steps = {"built": {}, "reused": {}}
    for line in journal.since(lines, started):
        if line["step"] != line["notebook"]:
            steps[line["status"]][line["step"]] = 0 if line.get("nested") else line["seconds"]
    built, reused = steps["built"], {step: seconds for step, seconds in steps["reused"].items() if step not in steps["built"]}
    return (f"{duration(time.time() - started)} in all; {len(built)} step{'s' * (len(built) != 1)} built in {duration(sum(built.values()))}, "
            f"{len(reused)} reused ({duration(sum(reused.values()))} saved)")


def _next(folder, options):
    from koa_lib import reference

    try:
        kept = list(reference.folder(folder).glob("*.csv"))
    except StudyError:
        kept = []
    options = f" {options}" * bool(options)
    return f"'make verify{options}' holds the tables against the reference; " * bool(kept) + f"'make pdf{options}' prints the report to one PDF"
