"""Where a run comes from: its inputs, stamps, steps, machine, packages and scores, ready to be shown."""

import csv
import json
import os
import platform
import re
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import yaml

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.scorecard import WITHOUT_MODEL

__all__ = ["facts", "html_outputs", "inputs", "is_synthetic", "machine", "packages", "scores", "steps", "timings"]
__all__ += ["verdicts"]

_STAMP = re.compile(r"commit (\S+) · data ([^·<]+) · seed (\d+)")


def inputs(run_dir):
    """The run's `inputs.yaml` as a dict with lower-case keys; StudyError when it is absent or no mapping."""
    path = run_dir / "inputs.yaml"
    if not path.is_file():
        raise StudyError(f"{path} does not exist, so {run_dir} is no run folder. Run 'make reproduce' first.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no list of 'key: value' lines. Delete it and run make again.")
    return {key.lower(): value for key, value in content.items()}


def is_synthetic(content):
    """Whether a run's inputs stand for phantoms: said so, or no data folder given."""
    return bool(content.get("synthetic", not content.get("data")))


def html_outputs(notebook):
    """The HTML texts among a notebook's cell outputs."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]


def facts(run_dir, content, notebooks):
    """Name-value pairs that say what was run; folders by their last name only."""
    texts = [text for notebook in notebooks.values() for text in html_outputs(notebook)]
    stamps = [match.groups() for text in texts for match in _STAMP.finditer(text)] or [("unknown",) * 3]
    # More than one value means that parts of the run were made from different code or data: show them all.
    commits, data, seeds = (", ".join(sorted(set(values))) for values in zip(*stamps, strict=True))
    phantoms = is_synthetic(content)
    times = timings(notebooks)
    seconds = [row["seconds"] for row in times if row["seconds"] is not None]
    return [
        ("Profile", content.get("profile", run_dir.name) + " (dry run)" * bool(content.get("dry"))),
        ("Training data", "synthetic phantoms, cohort A" if phantoms else _folder(content["data"])),
        ("External data", "synthetic phantoms, cohort B" if phantoms else _folder(content.get("external"))),
        ("Data hash", data),
        ("Seed", content.get("seed") or seeds),
        ("Commit", commits),
        ("Finished", max((row["finished"] for row in times if row["finished"]), default="unknown")),
        ("Time in notebooks", f"{sum(seconds) / 60:.1f} minutes" if seconds else "unknown"),
    ]


def _folder(path):
    return Path(str(path)).name if path else "none given"


def timings(notebooks):
    """Rows (stem, finished, seconds) as papermill recorded them."""
    rows = []
    for stem, notebook in notebooks.items():
        record = notebook.metadata.get("papermill", {})
        seconds, finished = record.get("duration"), record.get("end_time") or ""
        rows.append({"stem": stem, "finished": finished[:16].replace("T", " "),
                     "seconds": None if seconds is None else round(seconds, 1)})
    return rows


def steps(run_dir):
    """One row per step of `run.jsonl`: its last status, and seconds and reason of its last building."""
    path, rows = run_dir / "run.jsonl", {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed run
        row = rows.setdefault(entry["step"], {"seconds": "", "reason": ""})
        row |= {"step": entry["step"], "notebook": entry.get("notebook", ""), "status": entry["status"],
                "time": entry.get("time", "").replace("T", " ")}
        if entry["status"] == "built":
            row |= {"seconds": f"{entry['seconds']:.1f}", "reason": entry.get("reason", "")}
    return list(rows.values())


def machine():
    """Name-value pairs on processor, memory and system; no host name, no path."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [("Processor", names[0] if names else platform.machine()), ("Cores", cores)]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        rows.append(("Memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"))
    return [*rows, ("System", f"{platform.system()} {platform.machine()}"), ("Python", platform.python_version())]


def packages():
    """Installed versions of the project's direct dependencies, as (name, version) in alphabetical order."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = sorted((re.match(r"[\w-]+", requirement)[0] for requirement in listed), key=str.lower)
    return [(name, _version(name)) for name in names]


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def scores(run_dir):
    """The rows of `tables/scorecard.csv`, with `interval` made of its bounds; empty when there is none."""
    path = run_dir / "tables" / "scorecard.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for place, row in enumerate(rows):
        row["place"] = place
        row["model"] = row.get("rule") not in WITHOUT_MODEL
        row["item"] = row["item"].replace("_", " ").capitalize()
        row["metric"] = row["metric"].replace("_", " ")
        bounds = [_short(row[name]) for name in ("ci_low", "ci_high")]
        row["interval"] = " to ".join(bounds) if all(bounds) else ""
        row["published"], row["ours"] = "<" * row.get("rule", "").startswith("below") + _short(row["published"]), _short(row["ours"])
    return rows


def _group(row):
    return row["source"] + (", needing a trained model" if row["model"] else ", needing none")


def _short(text):
    try:
        return "<0.001" if 0 < float(text) < 0.0005 else f"{float(text):.3f}".rstrip("0").rstrip(".")
    except ValueError:
        return text


def verdicts(rows):
    """Counts of verdicts by source, rows that need a trained model apart: {"columns": verdicts, "rows": [(source, counts)]}."""
    columns = sorted({row["verdict"] for row in rows})
    counts = Counter((_group(row), row["verdict"]) for row in rows)
    sources = list(dict.fromkeys(_group(row) for row in sorted(rows, key=lambda row: not row["model"])))
    table = [(source, [counts[source, column] for column in columns]) for source in sources]
    return {"columns": columns, "rows": table}
