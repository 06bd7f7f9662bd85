"""Executing the study's notebooks: to another name first, moved on success, kept for reading on failure."""

import json
import logging
import os
import sys
import time

from koa_lib import profile as profiles
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.study import BUILD, is_dry, run_name

FOLDER = ROOT / "notebooks"


def run_dir(profile, seed=None):
    """The folder of a run."""
    settings = profiles.load(profile)
    return BUILD / run_name(settings, settings.seed if seed is None else seed, is_dry())


def execute(name, profile, seed=None):
    """Execute one notebook by papermill; its prints appear in the terminal as they come.

    Returns
    -------
    Path of the executed notebook, ``<run>/nb/<name>.ipynb``.

    Raises
    ------
    StudyError
        Unknown notebook, or a cell failed: names the cell, the error and where the notebook is kept.
    """
    source = FOLDER / f"{name}.ipynb"
    if not source.is_file():
        raise StudyError(f"There is no notebook '{name}'. Known: {', '.join(sorted(p.stem for p in FOLDER.glob('[0-9]*.ipynb')))}.")
    settings = profiles.load(profile)
    seed = settings.seed if seed is None else seed
    folder = run_dir(profile, seed) / "nb"
    folder.mkdir(parents=True, exist_ok=True)
    running, target = folder / f"{name}.running.ipynb", folder / f"{name}.ipynb"
    start = time.perf_counter()
    print(f"{name}: started", flush=True)
    with _alone(folder.parent, name):
        _papermill(source, running, {"profile": profile, "seed": seed}, name)
        os.replace(running, target)
    (folder / f"{name}.failed.ipynb").unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    _log(folder.parent, name, seconds)
    print(f"{name}: done in {seconds:.0f} s", flush=True)
    return target


def _alone(folder, name):
    from filelock import FileLock, Timeout

    (folder / ".locks").mkdir(exist_ok=True)
    lock = FileLock(str(folder / ".locks" / f"nb__{name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise StudyError(f"{name} of {folder.name} is being executed by another process. Wait for it, or stop it, and start again.") from None


def _papermill(source, running, parameters, name):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    _print_cell_output(name)
    os.environ["KOA_STEP"] = name
    try:
        papermill.execute_notebook(source, running, parameters, kernel_name="python3", log_output=True, progress_bar=False, cwd=FOLDER,
                                   extra_arguments=["--IPKernelApp.log_level=40"])
    except PapermillExecutionError as error:
        failed = running.with_name(f"{name}.failed.ipynb")
        os.replace(running, failed)
        message = error.evalue if error.ename == "StudyError" else f"{error.ename}: {error.evalue}"
        raise StudyError(f"{name} failed in code cell {error.exec_count}.\n  {message}\n  The notebook is kept in {failed}\n"
                         "  Finished work is kept: the same command goes on from there.") from None


def _print_cell_output(name):
    # papermill hands on what cells print through its logger, and results too; only printed lines end with a line break.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"  {name[:2]} | %(message)s"))
    handler.addFilter(lambda record: record.getMessage().endswith("\n") and "<figure" not in record.getMessage())
    handler.terminator = ""
    logger = logging.getLogger("papermill")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _log(folder, name, seconds):
    line = {"step": name, "status": "built", "seconds": round(seconds, 2), "reason": "executed", "notebook": name, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
    with open(folder / "run.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def summarise(folder):
    """The closing lines of a run: main result, time and where the report is."""
    if not (folder / "run.jsonl").is_file():
        raise StudyError(f"There is no run in {folder}. Start one with 'make reproduce' and this profile.")
    path = folder / "headline.txt"
    headline = path.read_text().strip() if path.exists() else "no headline was written"
    latest = {}
    for text in (folder / "run.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["step"] == line["notebook"]:
            latest[line["step"]] = line["seconds"]
    return f"{headline}\nnotebooks: {sum(latest.values()) / 60:.1f} min\nreport: {folder / 'html' / 'index.html'}"
