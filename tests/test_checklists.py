"""Checklists and the index of readings: complete, honest, and linked to places that are there."""

import re
from types import SimpleNamespace

import pytest
import yaml

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from reports import checklists, places

# Sub-items of TRIPOD+AI, counted in its published table (52 in all); the other numbers have none.
TRIPOD = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab",
          27: "abc"}
NUMBERS = {"tripod_ai": [f"{n}{letter}" for n in range(1, 28) for letter in TRIPOD.get(n, [""])],
           "claim_2024": [str(n) for n in range(1, 45)]}
ROWS = yaml.safe_load((checklists.FOLDER / "readings.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", checklists.NAMES)
def test_items_are_complete_and_in_order(name):
    items = [item for section in checklists.read(name)["sections"] for item in section["items"]]
    assert [item["number"] for item in items] == NUMBERS[name] and all(item["item"] for item in items)
    assert len(items) == {"tripod_ai": 52, "claim_2024": 44}[name]


@pytest.mark.parametrize("change", [
    {"status": "fine"}, {"where": []}, {"status": "partly reported"}, {"status": "not done"}, {"number": 2},
    {"wher": []}])
def test_a_dishonest_item_is_refused_by_number(tmp_path, change):
    item = {"number": 1, "item": "title", "status": "reported", "where": ["index"]} | change
    second = {"number": 2, "item": "other", "status": "not done", "note": "no time"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"sections": [{"name": "a", "items": [second, item]}]}))
    with pytest.raises(StudyError, match=f"x.yaml, item {item['number']}:"):
        checklists.read("x", tmp_path)


@pytest.mark.parametrize(("target", "label", "href"), [
    ("leak", "Table S9", "../notebooks/06_statistics.html#leak"),
    ("06_statistics", "Notebook 6", "../notebooks/06_statistics.html"),
    ("deviations#d4", "Deviation D4", "deviations.html#d4"),
    ("model_card#intended-use", "Model card: intended use", "model_card.html#intended-use")])
def test_a_place_is_an_exhibit_a_notebook_or_a_page_and_nothing_else(target, label, href):
    run = SimpleNamespace(exhibits={"leak": {"name": "Table S9", "notebook": "06_statistics"}},
                          notebooks={"06_statistics": None})
    assert places.link(target, run) == {"label": label, "href": href}
    with pytest.raises(KeyError):
        places.link("table_s99", run)


def test_the_index_lists_the_sections_of_deviations():
    text = (ROOT / "reports" / "deviations.md.jinja").read_text(encoding="utf-8")
    sections = re.findall(r"^\(d(\d+)\)=\n### D\1\. ", text, re.MULTILINE)
    assert [row["number"] for row in ROWS] == [f"D{number}" for number in range(1, len(sections) + 1)]
    assert {row["number"] for row in ROWS} == {f"D{number}" for number in sections}


def test_the_glossary_jumps_to_the_first_term_of_each_letter():
    text = (ROOT / "reports" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^([^\s`#].*)$", text.split("```{glossary}")[1].split("```")[0], re.MULTILINE)
    first = {term[0].upper(): "term-" + re.sub(r"\W+", "-", term).strip("-") for term in reversed(terms)}
    links = re.findall(r'<a href="#([^"]+)">(\w)</a>', text)
    assert terms == sorted(terms, key=str.lower) and {letter: anchor for anchor, letter in links} == first
