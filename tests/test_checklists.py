"""Checklists and the index of readings: complete, honest, and linked to places that are there."""

import re

import pytest
import yaml

from koa_lib import readings
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from reports import checklists, pages, places

# Sub-items of TRIPOD+AI, counted in its published table (52 in all); the other numbers have none.
TRIPOD = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
NUMBERS = {"tripod_ai": [f"{number}{letter}" for number in range(1, 28) for letter in TRIPOD.get(number, [""])], "claim_2024": [str(number) for number in range(1, 45)]}


def items(name):
    return [item for section in checklists.read(name)["sections"] for item in section["items"]]


@pytest.mark.parametrize("name", checklists.NAMES)
def test_numbers_are_complete_and_in_order(name):
    assert [item["number"] for item in items(name)] == NUMBERS[name]
    assert len(NUMBERS[name]) == {"tripod_ai": 52, "claim_2024": 44}[name]


@pytest.mark.parametrize("name", checklists.NAMES)
def test_every_item_says_where_or_why_not(name):
    for item in items(name):
        assert item["status"] in checklists.STATUSES and item["item"]
        assert item["where"] if item["status"].endswith("reported") and item["status"] != "not reported" else item["note"], item["number"]


@pytest.mark.parametrize("change, message", [({"status": "fine"}, "its status is 'fine'"), ({"where": []}, "say where"), ({"status": "not done"}, "say why"),
                                             ({"number": 2}, "it is there twice"), ({"wher": []}, "its keys are")])
def test_a_dishonest_item_is_refused(tmp_path, change, message):
    item = {"number": 1, "item": "title", "status": "reported", "where": ["index"]}
    second = {"number": 2, "item": "other", "status": "not done", "note": "no time"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"sections": [{"name": "a", "items": [second, item | change]}]}))
    with pytest.raises(StudyError, match=message):
        checklists.read("x", tmp_path)


def test_a_place_that_this_run_lacks_is_named_without_a_link():
    found = places.Places({"05_external_evaluation": None}, {"table_s2": {"page": "nb/01.html#table-s2"}})
    assert found.link("table_s2") == {"label": "Table S2", "href": "nb/01.html#table-s2"}
    assert found.link("table_s99") == {"label": "Table S99", "href": None}
    assert found.link("05_external_evaluation") == {"label": "Notebook 5", "href": "nb/05_external_evaluation.html"}
    assert found.link("12_explainability")["href"] is None
    assert found.link("deviations#d4") == {"label": "Deviation D4", "href": "deviations.html#d4"}
    assert found.link("model_card#intended-use")["label"] == "Model card: intended use"


def test_the_index_lists_the_sections_of_deviations():
    text = (ROOT / "reports" / "deviations.md.jinja").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (D\d+)\. (.+)$", text, re.MULTILINE))
    rows = checklists.readings(places.Places({}, {}))
    assert [row["number"] for row in rows] == [f"D{number}" for number in range(1, len(sections) + 1)]
    assert {row["number"] for row in rows} == set(sections) and all(f"({number.lower()})=" in text for number in sections)


def test_every_reading_that_is_trained_is_in_the_index():
    told = yaml.safe_dump((rows := checklists.readings(places.Places({}, {}))), width=9999).lower()
    assert len(rows) > 20
    for factor in {reading.factor for reading in readings.READINGS}:
        assert factor.split()[-1].lower().replace("part", "layers") in told, factor


@pytest.mark.parametrize("name", [*checklists.NAMES, "readings"])
def test_smoke_report_has_every_place(smoke_run, name):
    """Each target of a list is a page and an anchor of the built report; only notebooks that do not exist yet may be absent."""
    import nbformat

    from reports.build import _executed

    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in _executed(smoke_run)}
    links = places.Places(notebooks, places.exhibits(notebooks))
    if name == "readings":
        wanted = [(row["number"], place) for row in checklists.readings(links) for place in row["where"]]
    else:
        linked = checklists.linked(checklists.read(name), links)
        wanted = [(item["number"], place) for section in linked["sections"] for item in section["items"] for place in item["where"]]
    built = {path.relative_to(smoke_run / "html").as_posix(): page.ids for path, page in pages._read(smoke_run / "html").items()}
    absent = {f"Notebook {number}" for number in range(13)} - {f"Notebook {int(stem[:2])}" for stem in notebooks}
    for number, place in wanted:
        assert place["href"] or place["label"] in absent, f"item {number}: {place['label']} is not in the report"
        page, _, anchor = (place["href"] or "index.html").partition("#")
        assert page in built and (not anchor or anchor in built[page]), f"item {number} links to {place['href']}"


def test_the_glossary_jumps_to_the_first_term_of_each_letter():
    text = (ROOT / "reports" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^([^\s`#].*)$", text.split("```{glossary}")[1].split("```")[0], re.MULTILINE)
    first = {}
    for term in terms:
        first.setdefault(term[0].upper(), "term-" + re.sub(r"\W+", "-", term).strip("-"))
    assert terms == sorted(terms, key=str.lower) and {letter: anchor for anchor, letter in re.findall(r'<a href="#([^"]+)">(\w)</a>', text)} == first
