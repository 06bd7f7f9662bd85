"""The paper profile in small: the very notebooks, the true architectures, no data, no weights, no network."""

import json

import pytest
from conftest import make

from koa_lib import profile, splits
from koa_lib.data.manifest import read_manifest
from koa_lib.profile import ROOT
from koa_lib.study import MANIFESTS


@pytest.mark.parametrize("name, per_split", [("oai_chen2018", {"train": 5, "val": 1, "test": 2}), ("gornale2020", {"external": 8})])
def test_a_dry_run_takes_eight_pictures_a_grade_of_different_groups(name, per_split):
    rows = splits.sample(read_manifest(MANIFESTS / f"{name}.csv"))
    for _, part in rows.groupby("kl_grade"):
        assert len(part) == 8 and part["group_id"].nunique() >= 5 and part["split"].value_counts().to_dict() == per_split
    assert rows["kl_grade"].nunique() == 5


@pytest.mark.slow
def test_the_paper_profile_runs_dry_offline_and_every_page_says_so():
    nowhere = "http://127.0.0.1:9"  # a port where nobody answers
    done = make("dry", timeout=2400, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, ALL_PROXY=nowhere, HF_ENDPOINT=nowhere)
    assert done.returncode == 0, done.stdout[-4000:]
    run = ROOT / "reports" / "_build" / "paper-dry"
    pages = [page for page in (run / "html").rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > 9 and all("DRY RUN" in page.read_text(encoding="utf-8") for page in pages)
    built = [json.loads(line)["step"] for line in (run / "run.jsonl").read_text().splitlines()]
    for spec in profile.load("paper").baselines:
        name = spec.name.lower().replace(" ", "_")
        assert {f"checkpoints/{name}__fold{fold}__seed42" for fold in (1, 2)} <= set(built)
    assert "DRY RUN" in (run / "headline.txt").read_text()
