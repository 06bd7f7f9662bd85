"""The report of a run: offline HTML pages made by Sphinx from the executed notebooks and the run's
records."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from koa_lib import journal, machine
from koa_lib.errors import GOES_ON, StudyError
from koa_lib.profile import ROOT
from koa_lib.progress import duration
from koa_lib.report import entries, running
from koa_lib.report.terminal import Terminal
from koa_lib.store import write_text
from reports import checklists, data_cards, front_page, model_card, pages, places, provenance

SOURCES = ROOT / "reports"
_LEFT_OUT = ("_build", "reference", "checklists", "exhibits", "__pycache__", "*.jinja", "*.py")
_AT_ROOT = ("conf.py", "_ext", "_static", "_templates", "references.bib")
_BANNER = ("Synthetic phantoms: no picture of this run shows a patient, "
           "and no number of it is a medical result.")
_DRY = ("DRY RUN: random weights, a few pictures, one epoch. "
        "It shows that every step works; its numbers mean nothing.")
_FOOTER = "Research and teaching only, not a medical device. MIT licence, the koa-clip authors."
FAILED_LINES = 3  # of a failed build are shown; all are in its log


def tell_and_build(run_dir):
    """Build the HTML report of a run and tell how long it took.

    Raises
    ------
    StudyError
        In at most five lines; the whole is in `logs/report.log`.
    """
    terminal, clock, log = Terminal(), time.perf_counter(), run_dir / "logs" / "report.log"
    terminal.now("report: building the pages")
    try:
        build(run_dir)
    except StudyError as error:
        terminal.now()
        lines = str(error).splitlines()
        if len(lines) <= FAILED_LINES:
            raise
        log.parent.mkdir(parents=True, exist_ok=True)
        write_text(log, str(error) + "\n")
        raise StudyError("\n".join([*lines[:FAILED_LINES], f"  full log: {log}", f"  {GOES_ON}"])) from None
    seconds = time.perf_counter() - clock
    journal.append(run_dir, "report", "built", seconds, "pages built", "report", children=True)
    terminal.line(f"report: pages built in {duration(seconds)}", "head")


def build(run_dir):
    """Build the HTML pages of a run; the last good pages stay until the new ones are whole.

    Parameters
    ----------
    run_dir : Path
        A run folder with `inputs.yaml`, `exhibits.json` and all executed notebooks in `nb/`.

    Returns
    -------
    Path
        `run_dir/html/index.html`.

    Raises
    ------
    StudyError
        A notebook or an exhibit is missing, a warning of Sphinx, a dead link, or a page that would load
        something from a network.
    """
    run = provenance.Run.read(Path(run_dir).resolve())
    problems = missing(run)
    if problems:
        several = ([f"Or delete the folder {run.folder / 'nb'}: {len(problems)} things are missing."]
                   * (len(problems) > 1))
        raise StudyError("\n".join(
            [f"The report of {run.folder.name} cannot be built:", *several, *problems]))
    with running.alone(run.folder, "report", "the report"):
        _make(run, run.folder / "html.tmp")
    return run.folder / "html" / "index.html"


def _make(run, work):
    shutil.rmtree(work, ignore_errors=True)
    _write_sources(run, work / "source")
    _run_sphinx(work)
    for folder in ("tables", "figures"):
        shutil.copytree(run.folder / folder, work / "html" / folder,
                        ignore=shutil.ignore_patterns(".*", "*.json"))
    problems = pages.problems(work / "html")
    if problems:
        raise StudyError("\n".join([f"The report of {run.folder.name} has dead links or would not work "
                                    f"offline; its pages are in {work}:", *problems]))
    _swap(work / "html", run.folder / "html")
    shutil.rmtree(work)


def missing(run):
    """Sentences on what a report needs and the run lacks: notebooks, and files of declared exhibits."""
    found = [f"{name} has not been executed. Run 'make reproduce' with this profile."
             for name in running.names() if name not in run.notebooks]
    for key, entry in entries.every().items():
        shown = run.exhibits.get(key)
        gone = [file for file in shown["files"] if not (run.folder / file).is_file()] if shown else []
        if not shown or gone:
            what = f"{gone[0]} is gone" if gone else f"it has not shown '{key}'"
            found.append(f"{entry.notebook}: {what}. "
                         f"Delete {run.folder / 'nb' / entry.notebook}.ipynb and run make again.")
    return found


def _write_sources(run, source):
    # As in the repository: notebooks/ beside reports/, so that links of both work as they are written.
    shutil.copytree(SOURCES, source / "reports", ignore=shutil.ignore_patterns(*_LEFT_OUT, *_AT_ROOT))
    for name in _AT_ROOT:
        copy = shutil.copytree if (SOURCES / name).is_dir() else shutil.copyfile
        copy(SOURCES / name, source / name)
    stamps = [(run.dry, _DRY), (run.synthetic, _BANNER)]
    record = {"run": run.folder.name, "banner": " ".join(text for true, text in stamps if true),
              "footer": _FOOTER}
    (source / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (source / "notebooks").mkdir()
    for name, notebook in run.notebooks.items():
        nbformat.write(_for_reading(notebook), source / "notebooks" / f"{name}.ipynb")
    _write_pages(run, source)


def _write_pages(run, source):
    results, common = model_card.results(run), {"synthetic": run.synthetic, "facts": provenance.facts(run)}
    readings = checklists.readings(run)
    for name in checklists.NAMES:
        _render("checklist.md", source / "reports" / f"{name}.md",
                list=checklists.linked(checklists.read(name), run), **common)
    _render("deviations.md", source / "reports", readings=readings)
    _render("model_card.md", source / "reports", card=model_card.card(run, results), **common)
    _render("data_cards.md", source / "reports", cards=data_cards.cards(run), **common)
    steps = provenance.steps(run.folder)
    _render("environment.md", source / "reports", machine=machine.facts(), seeds=provenance.seeds(run),
            hashes=provenance.hashes(run), steps=steps, total=provenance.total(steps),
            packages=provenance.packages(), **common)
    _render("index.md", source, front=front_page.front(run, results, readings),
            notebooks=list(run.notebooks), pages=list(places.PAGES), **common)


def _render(name, target, **values):
    templates = Environment(loader=FileSystemLoader(SOURCES), autoescape=True, undefined=StrictUndefined)
    templates.filters |= {"seconds": lambda value: "" if value is None else f"{value:,.1f}",
                          "whole": lambda value: "" if value is None else f"{value:,.0f}"}
    path = target / name if target.is_dir() else target
    path.write_text(templates.get_template(f"{name}.jinja").render(**values), encoding="utf-8")


def _for_reading(notebook):
    """Fold the code; leave out the parameters, which the front page states,
    and what names folders of the machine."""
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            hidden = "injected-parameters" in tags or (injected and "parameters" in tags)
            solution = "solution" in tags
            tags.append("remove-cell" if hidden else "hide-cell" if solution else "hide-input")
            if solution:
                # Code and answer in one fold, named for what it gives away.
                cell.metadata["mystnb"] = {"code_prompt_show": "Show solution",
                                           "code_prompt_hide": "Hide solution"}
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _run_sphinx(work):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "--no-color",
               "-b", "html", "-d", str(work / "doctrees"), str(work / "source"), str(work / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.replace(f"{work / 'source'}/", "") for line in done.stderr.splitlines() if line.strip()]
        marked = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|rror:", line)] or lines
        raise StudyError(
            f"Sphinx could not build the report of {work.parent.name}; the last good one is unchanged, "
            f"the sources are in {work / 'source'}. It says:\n" + "\n".join(marked[:10]))


def _swap(new, place):
    old = place.with_name(f".old-{place.name}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
