"""What the other papers' notebooks answer, kept as files: the scorecard takes whatever has been answered so far."""

import json
import math

from koa_lib.claims import Answer
from koa_lib.scorecard import Ours
from koa_lib.store import write_text

FOLDER = "answers"
_KINDS = {"number": Ours, "claim": Answer}


def keep(study, system, answers):
    """Write a system's answers to `answers/<system>.json`.

    Parameters
    ----------
    system : str
        As `published/other_systems.csv` and `claims.csv` name it, e.g. 'CLIP-KOA'.
    answers : dict
        (system, item, row, metric) -> `scorecard.Ours`, (system, item, claim) -> `claims.Answer`.
    """
    rows = [{"key": list(key), "kind": "claim" if isinstance(value, Answer) else "number", "value": _without_nan(value._asdict())} for key, value in answers.items()]
    folder = study.run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{system}.json", json.dumps(rows, indent=1))


def read(study):
    """All kept answers of a run, in the form that `verdicts.scorecard` takes; empty when no such notebook has been run."""
    rows = [row for path in sorted((study.run_dir / FOLDER).glob("*.json")) for row in json.loads(path.read_text(encoding="utf-8"))]
    return {tuple(row["key"]): _KINDS[row["kind"]](**{name: math.nan if value is None else value for name, value in row["value"].items()}) for row in rows}


def _without_nan(values):
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
