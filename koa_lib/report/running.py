"""Executing the study's notebooks: to another name first, moved on success, kept for reading on failure."""

import logging
import os
import re
import sys
import time
from contextlib import contextmanager

from koa_lib import journal
from koa_lib import profile as profiles
from koa_lib.errors import GOES_ON, StudyError
from koa_lib.profile import ROOT
from koa_lib.progress import WATCHED, duration, without_events
from koa_lib.report import kernels, stamps
from koa_lib.report.terminal import Terminal, Watch
from koa_lib.study import BUILD, is_dry, run_name

FOLDER = ROOT / "notebooks"
LONGEST = 100  # letters of a question or an error in one line
# What an error's text holds, and what it means.
_MEANINGS = {"No space left on device": "The disk is full: free some space.",
             "PytorchStreamWriter failed": "The disk may be full: free some space.",
             "not enough memory": "Memory ran out: close other programs.",
             "MemoryError": "Memory ran out: close other programs."}


def run_dir(profile, seed=None):
    """The folder of a run."""
    settings = profiles.load(profile)
    return BUILD / run_name(settings, settings.seed if seed is None else seed, is_dry())


def names():
    """The study's notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.ipynb"))


def execute(name, profile, seed=None):
    """Execute one notebook by papermill; the terminal shows its steps, `<run>/logs/<name>.log` everything.
    Where another process executes it already, its end is awaited, and what it made is taken.

    Returns
    -------
    Path of the executed notebook, ``<run>/nb/<name>.ipynb``.

    Raises
    ------
    StudyError
        Unknown notebook, a cell failed or the kernel died: five lines with cell, error, log, notebook and how
        to go on.
    """
    if name not in names():
        raise StudyError(f"There is no notebook '{name}'. Known: {', '.join(names())}.")
    settings = profiles.load(profile)
    seed = settings.seed if seed is None else seed
    folder = run_dir(profile, seed)
    for part in ("nb", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    running, target = folder / "nb" / f"{name}.running.ipynb", folder / "nb" / f"{name}.ipynb"
    terminal, clock, stamp = Terminal(), time.perf_counter(), stamps.of(name, settings.name)
    before = _written(target)
    with alone(folder, "nb", name):
        if _written(target) != before and stamps.noted(target) == stamp:
            terminal.line(f"{_place(name)}: taken from the other process")
            return target
        _announce(terminal, name)
        watch = _run(running, {"profile": profile, "seed": seed}, name, terminal)
        _clean(running, stamp)
        os.replace(running, target)
    target.with_name(f"{name}.failed.ipynb").unlink(missing_ok=True)
    seconds = time.perf_counter() - clock
    journal.append(folder, name, "built", seconds, "executed", name, peak_mib=_peak_mib(folder, name))
    terminal.line(f"{_place(name)}: done in {duration(seconds)}; {_steps(watch.counts, watch.seconds)}",
                  "head")
    return target


def alone(folder, kind, name):
    """A context in which no other process makes this thing of a run; where one does, that is said, and its
    end awaited."""
    from filelock import FileLock, Timeout

    (folder / ".locks").mkdir(exist_ok=True)
    lock = FileLock(folder / ".locks" / f"{kind}__{name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        Terminal().line(f"{name} of {folder.name} is being made by another process: waiting for its end "
                        "(Ctrl-C stops the waiting)")
        return lock.acquire()


def _peak_mib(folder, name):
    # A forked kernel is no child of this process, but tells its memory at each step.
    lines = journal.read(folder)
    steps = journal.executions(lines).get(name, ())
    return max([journal.peak_mib(children=True), *(lines[place].get("peak_mib") or 0 for place in steps)])


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


# What is told before and after


def _place(name):
    known = names()
    return f"[{known.index(name) + 1}/{len(known)}] {name}"


def _announce(terminal, name):
    question = re.search(r"\*\*Question\.\*\* (.*)",
                         "\n".join(cell.source for cell in read(FOLDER / f"{name}.ipynb").cells))
    terminal.line(_place(name) + (f": {_short(question[1])}" if question else ""), "head")


def _short(text):
    return text if len(text) <= LONGEST else text[: LONGEST - 2].rsplit(" ", 1)[0] + " …"


def _steps(counts, seconds):
    parts = [f"{counts[status]} step{'s' * (counts[status] != 1)} {status}"
             for status in ("built", "reused") if counts[status]]
    saved = f" ({duration(seconds['reused'])} saved)" if counts["reused"] else ""
    return (", ".join(parts) or "no expensive step") + saved


# Execution


def _run(running, parameters, name, terminal):
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source, log = FOLDER / f"{name}.ipynb", running.parents[1] / "logs" / f"{name}.log"
    cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in read(source).cells)
    with open(log, "w", encoding="utf-8", errors="backslashreplace") as file, _stderr_to(file):
        watch = Watch(terminal, file, f"  {name[:2]} | ", cells)
        try:
            _papermill(source, running, parameters, name, watch)
        except PapermillExecutionError as error:
            watch.write("\n".join(error.traceback))
            raise _failure(name, watch, running,
                           f"{error.ename}: " * (error.ename != "StudyError") + error.evalue) from None
        except DeadKernelError:
            raise _failure(name, watch, running,
                           f"The kernel died (peak memory so far "
                           f"{_peak_mib(running.parents[1], name):,} MiB). "
                           "Most often memory ran out: close other programs, run without -j, "
                           "or take a smaller profile.") from None
        except KeyboardInterrupt:
            logging.getLogger("asyncio").disabled = True  # what the cell answers to it has no reader any more
            running.unlink(missing_ok=True)
            raise
        finally:
            watch.close()
    return watch


def _papermill(source, running, parameters, name, watch):
    import papermill

    # What is computed outside the store takes no more threads than what the store makes.
    threads = profiles.load(parameters["profile"]).threads
    with _environment({WATCHED: name, "OMP_NUM_THREADS": str(threads)}):
        papermill.execute_notebook(
            source, running, parameters, kernel_name="python3", progress_bar=False, cwd=FOLDER,
            stdout_file=watch.stdout, stderr_file=watch.stderr, on_cell_execute=watch.start_cell,
            extra_arguments=["--IPKernelApp.log_level=40"], start_timeout=600, **_kernels())


def _kernels():
    # Forked ones where `kernels` listens.
    if kernels.SOCKET not in os.environ:
        return {}
    from jupyter_client.manager import AsyncKernelManager

    class Forked(AsyncKernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            usual = super().format_kernel_cmd(extra_arguments)
            return [sys.executable, "-P", kernels.__file__, *usual[usual.index("-f"):]]

    return {"kernel_manager_class": Forked}


@contextmanager
def _environment(told):
    # The kernel process inherits it.
    kept = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def read(path):
    """A notebook's file as a `NotebookNode`; StudyError where it is none."""
    import nbformat

    try:
        return nbformat.read(path, 4)
    except Exception as error:  # nbformat and json have several
        raise StudyError(f"{path} is not a notebook ({type(error).__name__}). "
                         f"Restore it, e.g. with 'git checkout {path}'.") from None


def _clean(running, stamp=None):
    # The notebook without what its steps told the terminal; a finished one with the stamp of its code.
    import nbformat

    notebook = without_events(read(running))
    if stamp:
        stamps.note(notebook, stamp)
    nbformat.write(notebook, running)


def _failure(name, watch, running, error):
    failed = running.with_name(f"{name}.failed.ipynb")
    _clean(running)
    os.replace(running, failed)
    first, *more = error.strip().splitlines() or ["no message"]
    meaning = next((f" {meaning}" for text, meaning in _MEANINGS.items() if text in error), "")
    number, source = watch.cell
    return StudyError(f"{name} failed in code cell {number}: {_short(source)}\n"
                      f"  {first}{' …' * bool(more)}{meaning}\n"
                      f"  full log: {watch.log.name}\n"
                      f"  the notebook as far as it came: {failed}\n"
                      f"  {GOES_ON}")


@contextmanager
def _stderr_to(file):
    # The kernel process inherits it: what compiled libraries say belongs in the log.
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
