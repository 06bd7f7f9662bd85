"""The report of a run: offline HTML pages made by Sphinx from the executed notebooks and the run's records."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from koa_lib import links, pages, provenance
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.scorecard import sentence

__all__ = ["PAPER_ITEMS", "build", "verify"]

SOURCES = ROOT / "reports"
# Item of the paper: what it shows, and the notebook that makes it.
PAPER_ITEMS = {
    "table_1": ("The grades and their textual descriptions", "01_data_audit"),
    "table_2": ("Overall performance, training and external", "05_external_evaluation"),
    "table_3": ("Performance per grade", "05_external_evaluation"),
    "table_4": ("Comparison with image-only models", "04_baselines"),
    "table_5": ("Comparison with other studies", "06_statistics"),
    "figure_1": ("CLIP for grading, principle", "02_zero_shot_baseline"),
    "figure_2": ("Radiographs per grade and data set", "01_data_audit"),
    "figure_3": ("Inference with CLIP", "02_zero_shot_baseline"),
    "figure_4": ("The fine-tuned model", "03_fine_tune"),
    "figure_5": ("Accuracy and loss over epochs", "03_fine_tune"),
    "figure_6": ("Confusion matrix, external data", "05_external_evaluation"),
    "figure_7": ("Graded examples with probabilities", "05_external_evaluation"),
    "figure_8": ("Image-to-query similarity", "07_similarity_retrieval"),
}
_EXHIBIT = re.compile(r'<figure\b[^>]*\bid="((?:figure|table)-s?\d+)"[^>]*>(.*?)</figure>', re.DOTALL)
_TITLE = re.compile(r"<figcaption[^>]*>(.*?)(?:<br>|</figcaption>)", re.DOTALL)
_MISSING = re.compile(r'class="koa-missing">(?:Not in this run:)?(.*?)</p>', re.DOTALL)
_BANNER = "Synthetic phantoms: no picture of this run shows a patient, and no number of it is a medical result."
_DRY = "DRY RUN: random weights, a few pictures, one epoch. It shows that every step works; its numbers mean nothing."
_FOOTER = "Research and teaching only, not a medical device. MIT licence, the koa-clip authors."


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
    shutil.copytree(SOURCES, source, ignore=shutil.ignore_patterns("_build", "reference", "*.jinja", "__pycache__"))
    inputs = provenance.inputs(run_dir)
    exhibits = _exhibits(notebooks)
    stamps = [(inputs.get("dry"), _DRY), (provenance.is_synthetic(inputs), _BANNER)]
    record = {"run": run_dir.name, "banner": " ".join(text for true, text in stamps if true), "footer": _FOOTER}
    (source / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (source / "nb").mkdir()
    for stem, notebook in notebooks.items():
        nbformat.write(links.in_notebook(_for_reading(notebook), notebooks), source / "nb" / f"{stem}.ipynb")
    facts = provenance.facts(run_dir, inputs, notebooks)
    scores = provenance.scores(run_dir)
    _render("index.md", source, synthetic=provenance.is_synthetic(inputs), facts=facts, scores=scores, scorecards=_scorecards(scores), sentence=sentence(pd.DataFrame(scores)) if scores else "",
            verdicts=provenance.verdicts(scores), items=_items(run_dir, notebooks, exhibits), notebooks=list(notebooks),
            extras=[extra for name, extra in exhibits.items() if name not in PAPER_ITEMS])
    _render("environment.md", source, facts=facts, machine=provenance.machine(), steps=provenance.steps(run_dir),
            timings=provenance.timings(notebooks), packages=provenance.packages())
    links.in_pages(source, notebooks)


def _scorecards(scores):
    # A number of ours beside the paper's, and a count or a cited number that agrees, are different things under one word.
    parts = ("results and claims that need a trained model", "Ours", True), ("rows that need none: counts, repeated and cited numbers, timings, arithmetic", "Found", False)
    return [(name, found, [row for row in scores if row["model"] == model]) for name, found, model in parts]


def _render(name, source, **values):
    templates = Environment(loader=FileSystemLoader(SOURCES), autoescape=True, undefined=StrictUndefined)
    (source / name).write_text(templates.get_template(f"{name}.jinja").render(**values), encoding="utf-8")


def _for_reading(notebook):
    """Fold the code; leave out the parameters, which the front page states, and what names folders of the machine."""
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            hidden = "injected-parameters" in tags or (injected and "parameters" in tags)
            tags.append("remove-cell" if hidden else "hide-input")
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _exhibits(notebooks):
    """Where each table and figure stands: name -> name, title, notebook, page with anchor, reason when empty."""
    found = {}
    for stem, notebook in notebooks.items():
        for anchor, body in _EXHIBIT.findall("\n".join(provenance.html_outputs(notebook))):
            name = anchor.replace("-", "_")
            # An item shown twice is linked where it belongs.
            if name not in found or PAPER_ITEMS.get(name, ("", ""))[1] == stem:
                found[name] = _exhibit(stem, anchor, body)
    return found


def _exhibit(stem, anchor, body):
    kind, number = anchor.split("-")
    caption, missing = _TITLE.search(body), _MISSING.search(body)
    return {
        "name": f"{kind.capitalize()} {number.upper()}",
        "notebook": stem,
        "page": f"nb/{stem}.html#{anchor}",
        "title": _first_sentence(caption[1]) if caption else "",
        "reason": _plain(missing[1]) if missing else "",
    }


def _plain(markup):
    return unescape(" ".join(re.sub(r"<[^>]+>", "", markup).split()))


def _first_sentence(caption):
    text = _plain(caption)
    text = re.sub(r"^(Figure|Table) S?\d+( of the paper)?[.:]?\s*", "", text)
    return text.split(". ")[0].rstrip(".")


def _items(run_dir, notebooks, exhibits):
    rows = []
    for name, (title, maker) in PAPER_ITEMS.items():
        row = {"name": name.replace("_", " ").capitalize(), "title": title, "page": None, "reason": ""}
        if name in exhibits:
            place = exhibits[name]
            row |= {"page": place["page"], "notebook": place["notebook"], "reason": place["reason"],
                    "download": f"_sources/nb/{place['notebook']}.ipynb", "files": _files(run_dir, name)}
        else:
            row["reason"] = f"{maker} {'does not show it' if maker in notebooks else 'has not been run'}"
        rows.append(row)
    return rows


def _files(run_dir, name):
    folder, kinds = ("tables", ("csv",)) if name.startswith("table") else ("figures", ("png", "svg"))
    paths = {kind.upper(): f"{folder}/{name}.{kind}" for kind in kinds}
    return [(label, path) for label, path in paths.items() if (run_dir / path).is_file()]


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
