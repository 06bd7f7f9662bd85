"""Checklists and the index of readings: complete, honest, and linked to places that are there."""

import re
from types import SimpleNamespace

import pytest
import yaml

from koa_lib.errors import StudyError
from koa_lib.paper import readings
from koa_lib.profile import ROOT
from reports import checklists, places

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


RUN = SimpleNamespace(exhibits={"leak": {"name": "Table S9", "notebook": "06_statistics"}}, notebooks={"06_statistics": None})


def test_a_place_is_an_exhibit_a_notebook_or_a_page_and_nothing_else():
    assert places.link("leak", RUN) == {"label": "Table S9", "href": "../notebooks/06_statistics.html#leak"}
    assert places.link("06_statistics", RUN) == {"label": "Notebook 6", "href": "../notebooks/06_statistics.html"}
    assert places.link("deviations#d4", RUN) == {"label": "Deviation D4", "href": "deviations.html#d4"}
    assert places.link("model_card#intended-use", RUN)["label"] == "Model card: intended use"
    with pytest.raises(KeyError):
        places.link("table_s99", RUN)


def rows_of_readings():
    return yaml.safe_load((checklists.FOLDER / "readings.yaml").read_text(encoding="utf-8"))


def test_the_index_lists_the_sections_of_deviations():
    text = (ROOT / "reports" / "deviations.md.jinja").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (D\d+)\. (.+)$", text, re.MULTILINE))
    rows = rows_of_readings()
    assert [row["number"] for row in rows] == [f"D{number}" for number in range(1, len(sections) + 1)]
    assert {row["number"] for row in rows} == set(sections) and all(f"({number.lower()})=" in text for number in sections)


def test_every_reading_that_is_trained_is_in_the_index():
    told = yaml.safe_dump((rows := rows_of_readings()), width=9999).lower()
    assert len(rows) > 20
    for factor in {reading.factor for reading in readings.READINGS}:
        assert factor.split()[-1].lower().replace("part", "layers") in told, factor


def test_the_glossary_jumps_to_the_first_term_of_each_letter():
    text = (ROOT / "reports" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^([^\s`#].*)$", text.split("```{glossary}")[1].split("```")[0], re.MULTILINE)
    first = {}
    for term in terms:
        first.setdefault(term[0].upper(), "term-" + re.sub(r"\W+", "-", term).strip("-"))
    assert terms == sorted(terms, key=str.lower) and {letter: anchor for anchor, letter in re.findall(r'<a href="#([^"]+)">(\w)</a>', text)} == first
