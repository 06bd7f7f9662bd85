"""Where a run comes from, and what it left: inputs, tables, stamps, steps, hashes, machine and packages."""

import csv
import json
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path

import nbformat

from koa_lib import journal, machine
from koa_lib import profile as profiles
from koa_lib.data import cohorts
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT, Profile
from koa_lib.report import entries, running
from koa_lib.study import stored_inputs


@dataclass(frozen=True)
class Run:
    """A finished run as the report sees it: its folder, inputs, profile, executed notebooks by stem, and
    exhibits by key.

    An exhibit has name ('Table S3'), kind, number, title, notebook, caption, alt, files, reason (why it is
    empty), commit and data.
    """

    folder: Path
    inputs: dict
    settings: Profile
    notebooks: dict
    exhibits: dict

    @classmethod
    def read(cls, folder):
        """The run in a folder; StudyError when its inputs or notebooks are absent or damaged."""
        content = inputs(folder)
        settings = profiles.load(content.get("profile") or folder.name)
        settings = profiles.dry(settings, real=bool(content.get("data"))) if content.get("dry") else settings
        return cls(folder, content, settings, _notebooks(folder), entries.noted(folder))

    @property
    def synthetic(self):
        """Whether its pictures are phantoms."""
        return is_synthetic(self.inputs)

    @property
    def dry(self):
        """Whether it only tried the steps."""
        return bool(self.inputs.get("dry"))

    @property
    def seed(self):
        """Its seed: the given one, else the profile's."""
        return self.settings.seed if self.inputs.get("seed") is None else int(self.inputs["seed"])


def inputs(run_dir):
    """The run's `inputs.yaml` as a dict with lower-case keys; StudyError when it is absent or damaged."""
    path = run_dir / "inputs.yaml"
    if not path.is_file():
        raise StudyError(f"{path} does not exist, so {run_dir} is no run folder. Run 'make reproduce' first.")
    return {key.lower(): value for key, value in stored_inputs(path).items()}


def is_synthetic(content):
    """Whether a run's inputs stand for phantoms: said so, or no data folder given."""
    return bool(content.get("synthetic", not content.get("data")))


def _notebooks(folder):
    return {name: _notebook(folder / "nb" / f"{name}.ipynb") for name in running.names()
            if (folder / "nb" / f"{name}.ipynb").is_file()}


def _notebook(path):
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat and json have several
        raise StudyError(f"{path} is not a notebook ({type(error).__name__}). "
                         "Delete it and run make again.") from error


def note(path, default):
    """The content of a JSON file of a run, or a default where there is none."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged. "
                         "Delete it and the folder nb beside it, and run make again.") from error


def table(run, name):
    """The rows of a table of a run, as text; none where it has not been made."""
    path = run.folder / "tables" / f"{name}.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def manifest(run, cohort):
    """The manifest of a cohort, that of the run's phantoms from its own folder."""
    return cohorts.manifest(cohort, run.folder / "data" / cohort)


def facts(run):
    """Name-value pairs that say what was run; folders by their last name only."""
    # More than one value means that parts of the run were made from different code or data: show them all.
    commits, data = (", ".join(sorted({exhibit[name] for exhibit in run.exhibits.values()})) or "unknown"
                     for name in ("commit", "data"))
    content = run.inputs
    return [
        ("Profile", run.settings.name + " (dry run)" * run.dry),
        ("Training data", "synthetic phantoms, cohort A" if run.synthetic else _folder(content["data"])),
        ("External data",
         "synthetic phantoms, cohort B" if run.synthetic else _folder(content.get("external"))),
        ("Data hash", data),
        ("Seed", run.seed),
        ("Commit", _commits(commits)),
        ("Finished", _finished(run.notebooks.values())),
        ("Time in notebooks", _time(run.folder)),
        *_trainings(run.settings),
        ("Machine", ", ".join(str(value) + " cores" * (name == "Cores")
                              for name, value in machine.facts() if name != "Python")),
    ]


def _commits(told):
    # The stamps of all exhibits; notebooks are executed only when they or their inputs changed, so a run may
    # carry several.
    notes = (["several: notebooks were executed at different times"] * (", " in told)
             + ["+: with changes that were not committed"] * ("+" in told))
    return told + f" ({'; '.join(notes)})" * bool(notes)


def _finished(notebooks):
    # When papermill ended the last one, to the minute.
    ends = [notebook.metadata.get("papermill", {}).get("end_time") or "" for notebook in notebooks]
    return max(ends, default="")[:16].replace("T", " ") or "unknown"


def _time(folder):
    done = total(steps(folder))
    if done["seconds"] is None:
        return "unknown"
    count = done["built"] + done["reused"]
    return (f"{done['seconds'] / 60:.1f} minutes"
            + f", {done['reused']:,} of {count:,} steps reused" * bool(count))


def _trainings(settings):
    recipe = settings.as_printed
    if recipe is None or not recipe.folds:
        return []
    return [("Trainings of the main model",
             f"{recipe.folds * settings.seeds} ({recipe.folds} folds, "
             f"{settings.seeds} seed{'s' * (settings.seeds > 1)})")]


def _folder(path):
    return Path(str(path)).name if path else "none given"


def steps(run_dir):
    """The steps of each notebook's last execution, from `run.jsonl`.

    Returns
    -------
    list of dict
        notebook, seconds, peak_mib (None where not recorded), built, reused (numbers of steps), steps; each
        step has step, status, time, reason, seconds (of its building) and peak_mib.
    """
    lines = journal.read(run_dir)
    # Other names are the pages, a notebook that is no more, or somebody's own work in this run's store.
    executions = journal.executions(lines)
    return [_execution(name, [lines[place] for place in executions[name]])
            for name in running.names() if name in executions]


def total(executions):
    """Sums of time and steps over all notebooks, and the largest peak of memory."""
    seconds, peaks = ([row[key] for row in executions if row[key] is not None]
                      for key in ("seconds", "peak_mib"))
    return {"seconds": sum(seconds) if seconds else None, "peak_mib": max(peaks, default=None),
            **{key: sum(row[key] for row in executions) for key in ("built", "reused")}}


def _execution(name, lines):
    rows, closing = {}, [line for line in lines if line["step"] == name]
    for line in lines:
        if line["step"] == name:
            continue
        row = rows.setdefault(line["step"], {"step": line["step"], "status": "", "seconds": None,
                                             "reason": "", "peak_mib": None})
        first, built = row["seconds"] is None, line["status"] == "built"
        row |= {"time": line["time"].replace("T", " "), "peak_mib": _largest(row, line)}
        if first or built:  # what was built keeps the reason and the time of its building
            row |= {"status": line["status"], "seconds": line["seconds"], "reason": line.get("reason", "")}
    built = sum(row["status"] == "built" for row in rows.values())
    return {"notebook": name, "seconds": closing[-1]["seconds"] if closing else None,
            "peak_mib": _largest(*lines), "time": lines[-1]["time"].replace("T", " "),
            "built": built, "reused": len(rows) - built, "steps": list(rows.values())}


def _largest(*lines):
    return max((line["peak_mib"] for line in lines if line.get("peak_mib") is not None), default=None)


def seeds(run):
    """Name-value pairs of everything random."""
    pretraining = run.settings.pretraining
    last = run.seed + run.settings.seeds - 1
    rows = [("Study: folds, first training, bootstrap", run.seed),
            ("Trainings of the main model", f"{run.seed} to {last}" if last > run.seed else run.seed)]
    return rows + ([("Pre-training on captioned phantoms", pretraining.seed)] if pretraining else [])


def hashes(run):
    """Rows (what, file or folder, SHA-256 or its beginning): the cohorts as read,
    and the weights of the main model."""
    data = note(run.folder / "data.json", {})
    rows = [(f"{role.capitalize()} cohort: pictures and grades", getattr(run.settings, role).name,
             data[role]["hash"]) for role in ("training", "external") if role in data]
    for checkpoint in main_checkpoints(run):
        key = note(checkpoint.with_name(f"{checkpoint.name}.json"), {}).get("key", {})
        rows += [("Start weights", run.settings.model.name, key["weights"])] if "weights" in key else []
        rows += [("Trained weights of the main model", f"{checkpoint.name}/{path.name}", _sha256(path))
                 for path in sorted(checkpoint.glob("*.safetensors"))]
    return rows


def _sha256(path):
    from koa_lib.images.read import file_sha256

    return file_sha256(path)


def main_checkpoints(run):
    """The checkpoint folders behind `primary.json`; empty where none is kept."""
    found = {}
    for file in note(run.folder / "primary.json", {}).values():
        model, *_, fold, seed = Path(file).stem.split("__")[:5]
        found[run.folder / "checkpoints" / f"{model}__{fold}__{seed}"] = None
    return [folder for folder in found if folder.is_dir()]


def packages():
    """Versions of the project's direct dependencies, and of its extras for the study where they are
    installed, as (name, version) in alphabetical order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [named for extra, named in project["optional-dependencies"].items() if extra != "dev"]
    listed = [*project["dependencies"], *chain(*extras)]
    names = sorted({re.match(r"[\w-]+", requirement)[0] for requirement in listed}, key=str.lower)
    found = [(name, _version(name)) for name in names]
    return [(name, version) for name, version in found if version]


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
