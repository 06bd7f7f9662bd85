"""What strangers meet first: the workflow that runs in public, and where to add something."""

import re

import pytest
import yaml

from koa_lib import losses, profile
from koa_lib.profile import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = ("README.md", "CONTRIBUTING.md")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_hash_with_their_version(path):
    lines = [line for line in path.read_text().splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_the_workflow_runs_the_tests_and_publishes_the_demo_report():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "study.yml").read_text())["jobs"]
    steps = {name: str(job["steps"]) for name, job in jobs.items()}
    assert ".ci/run" in steps["test"] and "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make reproduce PROFILE=demo" in steps["report"] and "reports/_build/demo/html" in steps["report"]
    assert jobs["report"]["needs"] == "test" and jobs["publish"]["needs"] == "report"
    assert set(jobs["publish"]["permissions"]) == {"pages", "id-token"}  # no other job may write


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_links_to_exists(name):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / name).read_text())
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", [*PAGES, "notebooks/profiles/README.md"])
def test_every_make_target_that_a_page_names_exists(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
    assert named and set(named) <= set(targets)


def test_contributing_names_places_that_exist_in_the_library():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert "`of_recipe`" in text and hasattr(losses, "of_recipe")
    assert "`profile.ALLOWED`" in text and "loss" in profile.ALLOWED
