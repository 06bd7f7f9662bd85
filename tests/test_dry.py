"""The paper profile in small: the very notebooks, the true architectures, no data, no weights, no network."""

import json

import pytest
from conftest import make

from koa_lib import profile, splits
from koa_lib.data.manifest import read_manifest
from koa_lib.profile import ROOT
from koa_lib.study import MANIFESTS

PLAN = {"oai_chen2018": {"train": 5, "val": 1, "test": 2}, "gornale2020": {"external": 8}}


@pytest.mark.parametrize("name", PLAN)
def test_a_dry_run_takes_eight_pictures_a_grade_of_different_groups(name):
    rows = splits.sample(read_manifest(MANIFESTS / f"{name}.csv"))
    assert rows["kl_grade"].nunique() == 5
    for _, part in rows.groupby("kl_grade"):
        assert part["group_id"].nunique() == 8 and part["split"].value_counts().to_dict() == PLAN[name]


@pytest.mark.slow
def test_the_paper_profile_runs_dry_offline_and_every_page_says_so():
    nowhere = "http://127.0.0.1:9"  # a port where nobody answers
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"), nowhere)
    done = make("dry", timeout=2400, **proxies)
    assert done.returncode == 0, done.stdout[-4000:]
    run = ROOT / "reports" / "_build" / "paper-dry"
    pages = [page for page in (run / "html").rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > 9 and all("DRY RUN" in page.read_text(encoding="utf-8") for page in pages)
    assert "DRY RUN" in (run / "headline.txt").read_text()
    built = {json.loads(line)["step"] for line in (run / "run.jsonl").read_text().splitlines()}
    names = [spec.name.lower().replace(" ", "_") for spec in profile.load("paper").baselines]
    assert {f"checkpoints/{name}__fold{fold}__seed42" for name in names for fold in (1, 2)} <= built
