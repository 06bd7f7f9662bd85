"""The report of a run: offline HTML pages made by Sphinx from the executed notebooks and the run's records."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from koa_lib import device, journal
from koa_lib.errors import GOES_ON, StudyError
from koa_lib.profile import ROOT
from koa_lib.progress import duration
from koa_lib.report.terminal import Terminal
from koa_lib.store import write_text
from reports import cards, checklists, front_page, links, pages, places, provenance
from reports.places import PAPER_ITEMS

__all__ = ["build", "verify"]

SOURCES = ROOT / "reports"
_BANNER = "Synthetic phantoms: no picture of this run shows a patient, and no number of it is a medical result."
FAILED_LINES = 3  # of a failed build are shown; all are in its log
_DRY = "DRY RUN: random weights, a few pictures, one epoch. It shows that every step works; its numbers mean nothing."
_FOOTER = "Research and teaching only, not a medical device. MIT licence, the koa-clip authors."


def tell_and_build(folder):
    """Build the HTML report of a run and tell how long it took.

    Raises
    ------
    StudyError
        In at most five lines; the whole is in `logs/report.log`.
    """
    terminal, clock, log = Terminal(), time.perf_counter(), folder / "logs" / "report.log"
    terminal.now("report: building the pages")
    try:
        build(folder)
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


def build(run_dir):
    """Build the HTML pages of a run; the last good pages stay until the new ones are whole.

    Parameters
    ----------
    run_dir : Path
        A run folder with `inputs.yaml` and executed notebooks in `nb/`.

    Returns
    -------
    Path
        `run_dir/html/index.html`.

    Raises
    ------
    StudyError
        No executed notebook, a warning of Sphinx, or a page that would load something from a network.
    """
    run_dir = Path(run_dir).resolve()
    notebooks = _read_notebooks(run_dir)
    work = run_dir / "html.tmp"
    shutil.rmtree(work, ignore_errors=True)
    _write_sources(run_dir, notebooks, work / "source")
    _run_sphinx(work)
    for folder in ("tables", "figures"):
        if (run_dir / folder).is_dir():
            shutil.copytree(run_dir / folder, work / "html" / folder, ignore=shutil.ignore_patterns(".*", "*.json"))
    problems = pages.remote_resources(work / "html")
    if problems:
        raise StudyError(f"The report of {run_dir.name} would not work offline: {'; '.join(problems[:5])}. "
                         f"Remove that output from the notebook; the pages are in {work}.")
    _swap(work / "html", run_dir / "html")
    shutil.rmtree(work)
    for problem in verify(run_dir):
        print(f"report: {problem}", flush=True)
    return run_dir / "html" / "index.html"


def verify(run_dir):
    """Check a built report.

    Returns
    -------
    list of str
        What is wrong, one sentence each: items of the paper without file or anchor, pages older than their
        notebook, dead links, remote resources. Empty when all is well.
    """
    run_dir = Path(run_dir).resolve()
    html = run_dir / "html"
    if not (html / "index.html").is_file():
        return [f"{html / 'index.html'} does not exist"]
    return _missing_items(run_dir) + _stale_pages(run_dir) + pages.dead_links(html) + pages.remote_resources(html)


def _missing_items(run_dir):
    found = []
    shown = pages.exhibits(run_dir / "html")
    for name in PAPER_ITEMS:
        folder, kind = ("tables", "csv") if name.startswith("table") else ("figures", "png")
        for base in (run_dir, run_dir / "html"):
            path = base / folder / f"{name}.{kind}"
            if not path.is_file() or not path.stat().st_size:
                found.append(f"{path.relative_to(run_dir)} is missing or empty")
        if name.replace("_", "-") not in shown:
            found.append(f"no page shows {name.replace('_', ' ')}")
    return found


def _stale_pages(run_dir):
    found = []
    for path in _executed(run_dir):
        page = run_dir / "html" / "nb" / f"{path.stem}.html"
        if not page.is_file():
            found.append(f"{path.name} has no page")
        elif page.stat().st_mtime < path.stat().st_mtime:
            found.append(f"the page of {path.name} is older than the notebook")
    return found


def _executed(run_dir):
    # 05_x.running.ipynb and 05_x.failed.ipynb are not results.
    return sorted(path for path in (run_dir / "nb").glob("[0-9][0-9]_*.ipynb") if "." not in path.stem)


def _read_notebooks(run_dir):
    paths = _executed(run_dir)
    if not paths:
        raise StudyError(f"{run_dir / 'nb'} holds no executed notebook. Run 'make reproduce' first.")
    notebooks = {}
    for path in paths:
        try:
            notebooks[path.stem] = nbformat.read(path, as_version=4)
        except Exception as error:
            name = type(error).__name__
            raise StudyError(f"{path} is not a notebook ({name}). Delete it and run make again.") from error
    return notebooks


def _write_sources(run_dir, notebooks, source):
    shutil.copytree(SOURCES, source, ignore=shutil.ignore_patterns("_build", "reference", "checklists", "*.jinja", "__pycache__"))
    run = provenance.Run.read(run_dir, notebooks)
    stamps = [(run.dry, _DRY), (run.synthetic, _BANNER)]
    record = {"run": run_dir.name, "banner": " ".join(text for true, text in stamps if true), "footer": _FOOTER}
    (source / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (source / "nb").mkdir()
    found, results = places.exhibits(notebooks), cards.measured(run)
    shown = {name.replace("_", "-") for name in found}
    for name, notebook in notebooks.items():
        nbformat.write(links.in_notebook(_for_reading(notebook), notebooks, shown), source / "nb" / f"{name}.ipynb")
    where, common = places.Places(notebooks, found), {"synthetic": run.synthetic, "facts": provenance.facts(run), "notebooks": list(notebooks)}
    for name in checklists.NAMES:
        _render("checklist.md", source / f"{name}.md", list=checklists.linked(checklists.read(name), where), **common)
    readings = checklists.readings(where)
    _render("deviations.md", source, readings=readings)
    _render("model_card.md", source, card=cards.model_card(run, results), **common)
    _render("data_cards.md", source, cards=cards.data_cards(run), has_findings="01_data_audit" in notebooks)
    _render_environment(run, source, common)
    _render_front_page(run, source, found, results, common | {"papers": front_page.papers(front_page.scores(run.folder), notebooks, found, readings)})
    links.in_pages(source, notebooks, shown)


def _render_front_page(run, source, found, results, common):
    rows, items = front_page.scores(run.folder), places.items(run.folder, run.notebooks, found)
    pages_found = [page for page in places.PAGES if (source / f"{page}.md").is_file()]
    _render("index.md", source, scores=rows, verdict=front_page.verdict(run, rows, results, items), verdicts=front_page.verdicts(rows), headlines=front_page.headlines(rows),
            sources=front_page.sources(rows), items=items, others=places.others(run.notebooks, found), pages=pages_found, **common)


def _render_environment(run, source, common):
    steps = provenance.steps(run.folder)
    _render("environment.md", source, machine=device.machine(), seeds=provenance.seeds(run), hashes=provenance.hashes(run), steps=steps, total=provenance.total(steps),
            packages=provenance.packages(), **common)


def _render(name, target, **values):
    templates = Environment(loader=FileSystemLoader(SOURCES), autoescape=True, undefined=StrictUndefined)
    templates.filters |= {"seconds": lambda value: "" if value is None else f"{value:,.1f}", "whole": lambda value: "" if value is None else f"{value:,.0f}"}
    path = target / name if target.is_dir() else target
    path.write_text(templates.get_template(f"{name}.jinja").render(**values), encoding="utf-8")


def _for_reading(notebook):
    """Fold the code; leave out the parameters, which the front page states, and what names folders of the machine."""
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
                cell.metadata["mystnb"] = {"code_prompt_show": "Show solution", "code_prompt_hide": "Hide solution"}
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _run_sphinx(work):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "--no-color", "-b", "html", "-d", str(work / "doctrees"),
               str(work / "source"), str(work / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.replace(f"{work / 'source'}/", "") for line in done.stderr.splitlines() if line.strip()]
        marked = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|rror:", line)] or lines
        raise StudyError(f"Sphinx could not build the report of {work.parent.name}; the last good one is unchanged, "
                         f"the sources are in {work / 'source'}. It says:\n" + "\n".join(marked[:10]))


def _swap(new, place):
    old = place.with_name(f".old-{place.name}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
