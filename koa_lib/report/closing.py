"""What closes a run: the lines that say what was found, how long it took and what can follow."""

import time

from koa_lib import journal
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.progress import duration
from koa_lib.report import entries, words


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
    kinds = [exhibit["kind"] for exhibit in entries.noted(folder).values()]
    return "\n".join([
        f"result: {words.people(headline)}",
        f"made: {kinds.count('table')} tables, {kinds.count('figure')} figures in {folder}",
        f"time: {_time(lines)}",
        f"next: {_next(folder, options)}",
        f"report: {(folder / 'html' / 'index.html').as_uri()}"])


def _time(lines):
    started = journal.started()
    if started is None:
        last = {line["step"]: line["seconds"] for line in lines if line["step"] == line["notebook"]}
        return f"{duration(sum(last.values()))} in notebooks, each as executed last"
    steps = {"built": {}, "reused": {}}
    for line in journal.since(lines, started):
        if line["step"] != line["notebook"]:
            steps[line["status"]][line["step"]] = 0 if line.get("nested") else line["seconds"]
    built, reused = steps["built"], {step: seconds for step, seconds in steps["reused"].items()
                                     if step not in steps["built"]}
    return (f"{duration(time.time() - started)} in all; "
            f"{len(built)} step{'s' * (len(built) != 1)} built in {duration(sum(built.values()))}, "
            f"{len(reused)} reused ({duration(sum(reused.values()))} saved)")


def _next(folder, options):
    kept = any((ROOT / "reports" / "reference" / folder.name).glob("*.csv"))
    options = f" {options}" * bool(options)
    return (f"'make verify{options}' holds the tables against the reference; " * kept
            + f"'make pdf{options}' prints the report to one PDF")
