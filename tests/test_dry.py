"""The profiles for real radiographs in small: the very notebooks and architectures, no weights, no network;
`paper` without data, `oai` on files in the place of its training cohort's."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import easy_image, make
from PIL import Image

from koa_lib import comparison, profile, splits
from koa_lib.data.manifest import read_manifest
from koa_lib.profile import ROOT
from koa_lib.report import entries
from koa_lib.study import MANIFESTS

BUILD = ROOT / "reports" / "_build"

PLAN = {"oai_chen2018": {"train": 5, "val": 1, "test": 2}, "gornale2020": {"external": 8}}


@pytest.mark.parametrize("name", PLAN)
def test_a_dry_run_takes_eight_pictures_a_grade_of_different_groups(name):
    rows = splits.sample(read_manifest(MANIFESTS / f"{name}.csv"))
    assert rows["kl_grade"].nunique() == 5
    for _, part in rows.groupby("kl_grade"):
        assert part["group_id"].nunique() == 8 and part["split"].value_counts().to_dict() == PLAN[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "laptop"])
def test_a_profile_of_published_weights_runs_dry_offline_and_every_page_says_so(name):
    nowhere = "http://127.0.0.1:9"  # a port where nobody answers
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"), nowhere)
    done = make("dry", f"PROFILE={name}", timeout=2400, **proxies)
    assert done.returncode == 0, done.stdout[-4000:]
    run = BUILD / f"{name}-dry"
    pages = [page for page in (run / "html").rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > 9 and all("DRY RUN" in page.read_text(encoding="utf-8") for page in pages)
    assert "DRY RUN" in (run / "headline.txt").read_text()
    built = {json.loads(line)["step"] for line in (run / "run.jsonl").read_text().splitlines()}
    names = [spec.name.lower().replace(" ", "_") for spec in profile.load(name).baselines]
    assert {f"checkpoints/{name}__fold{fold}__seed42" for name in names for fold in (1, 2)} <= built


@pytest.mark.slow
def test_a_folder_of_the_training_cohort_is_enough_and_what_lacks_the_other_says_so(tmp_path):
    shutil.rmtree(BUILD / "oai-dry", ignore_errors=True)
    rows, generator = splits.sample(read_manifest(MANIFESTS / "oai_chen2018.csv")), np.random.default_rng(0)
    for row in rows.itertuples():
        path = tmp_path / "kneeKL224" / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(easy_image(row.kl_grade, generator, 224)).save(path)
    done = make("reproduce", "PROFILE=oai", "DRY=1", f"DATA={tmp_path / 'kneeKL224'}", timeout=2400)
    assert done.returncode == 0, done.stdout[-4000:]
    run = BUILD / "oai-dry"
    note = json.loads((run / "data.json").read_text())
    assert note["training"]["pictures"] == note["training"]["not_as_listed"] == len(rows) == 40
    assert "external" not in note and (run / "html" / "index.html").is_file()
    assert not list((run / "predictions").glob("*gornale*"))
    shown = entries.noted(run)
    lacking = {key for key, entry in entries.every().items() if "external" in entry.needs}
    assert lacking and all(comparison.NO_EXTERNAL in shown[key]["reason"] for key in lacking)
    card = pd.read_csv(run / "tables" / "scorecard.csv")
    assert comparison.NO_EXTERNAL in set(card["reason"]) and not card["verdict"].eq("replicated").any()
