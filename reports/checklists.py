"""Reporting checklists and the index of readings: lists kept as YAML,
whose entries are linked to their places in a report."""

from collections import Counter

import yaml

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from reports import places

FOLDER = ROOT / "reports" / "checklists"
NAMES = ("tripod_ai", "claim_2024")
# What an item can be, best first; each but the first two needs a note that says why.
STATUSES = ("reported", "partly reported", "not reported", "not done", "not applicable")
_KEYS = {"number", "item", "status", "where", "note"}


def read(name, folder=FOLDER):
    """A checklist: title, about, sections of items.

    Returns
    -------
    dict
        title, citation, about, sections: each with name and items; an item has number, item, status, where
        (targets), note.

    Raises
    ------
    StudyError
        An item that is there twice, has no known status, or neither place nor reason.
    """
    content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    seen = set()
    for item in (item for section in content["sections"] for item in section["items"]):
        item["number"] = str(item["number"])
        item.setdefault("where", [])
        item.setdefault("note", "")
        problem = _problem(item, seen)
        if problem:
            raise StudyError(f"{name}.yaml, item {item['number']}: {problem}")
        seen.add(item["number"])
    return content


def _problem(item, seen):
    if set(item) != _KEYS:
        return f"its keys are {', '.join(sorted(item))}; needed: number, item, status; allowed: where, note."
    if item["number"] in seen:
        return "it is there twice. Keep one."
    if item["status"] not in STATUSES:
        return f"its status is '{item['status']}'; allowed: {', '.join(STATUSES)}."
    if item["status"] in STATUSES[:2] and not item["where"]:
        return "it is reported, so say where."
    return "say why." if item["status"] != STATUSES[0] and not item["note"] else ""


def linked(content, run):
    """The checklist with each target of `where` as a link, and the numbers of items per status."""
    sections = [section | {"items": [
        item | {"where": [places.link(target, run) for target in item["where"]]}
        for item in section["items"]]} for section in content["sections"]]
    counts = Counter(item["status"] for section in sections for item in section["items"])
    return content | {
        "sections": sections,
        "counts": [(status, counts[status]) for status in STATUSES if counts[status]],
        "total": counts.total()}


def readings(run):
    """The index of deviations and readings: number, topic, open, ours, where (links to what it changes)."""
    rows = yaml.safe_load((FOLDER / "readings.yaml").read_text(encoding="utf-8"))
    return [row | {"where": [places.link(target, run) for target in row["where"]]} for row in rows]
