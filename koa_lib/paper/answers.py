"""What the other papers' notebooks answer, kept as files for the scorecard."""

import json
import math

from koa_lib.store import write_text
from koa_lib.verdict import Answer, Ours

FOLDER = "answers"
_KINDS = {"number": Ours, "claim": Answer}


def keep(study, system, answers):
    """Write a system's answers to `answers/<system>.json`.

    Parameters
    ----------
    system : str
        As `published/other_systems.csv` and `claims.csv` name it, e.g. 'CLIP-KOA'.
    answers : dict
        (system, item, row, metric) -> `verdict.Ours` or a str that says why there is none, (system, item,
        claim) -> `verdict.Answer`.
    """
    rows = [{"key": list(key), **_plain(value)} for key, value in answers.items()]
    folder = study.own_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{system}.json", json.dumps(rows, indent=1))


def read(study):
    """All kept answers of a run, as `scorecard.scorecard` takes them; empty when there are none."""
    # What a session in JupyterLab has answered comes after, and so instead of, what the run has.
    folders = [base / FOLDER for base in dict.fromkeys((study.run_dir, study.own_dir))]
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    return {tuple(row["key"]): _back(row["kind"], row["value"]) for row in rows}


def _plain(value):
    if isinstance(value, str):
        return {"kind": "reason", "value": value}
    values = {name: None if number != number else number for name, number in value._asdict().items()}
    return {"kind": "claim" if isinstance(value, Answer) else "number", "value": values}


def _back(kind, value):
    if kind == "reason":
        return value
    return _KINDS[kind](**{name: math.nan if number is None else number for name, number in value.items()})
