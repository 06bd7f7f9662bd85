"""Manifests, the facts of cohorts, and the files that stand for a manifest's rows."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from koa_lib import cohort
from koa_lib.data import cohorts
from koa_lib.data.files import find_pictures, walk
from koa_lib.data.manifest import SPLITS, data_hash, natural, read_manifest, write_manifest
from koa_lib.errors import StudyError

PUBLISHED = ["oai_chen2018", "gornale2020"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_manifest_survives_reading_and_writing(shared, tmp_path, name):
    write_manifest(cohorts.manifest(name), tmp_path / "copy.csv")
    committed = (cohorts.MANIFESTS / f"{name}.csv").read_bytes()
    assert (tmp_path / "copy.csv").read_bytes() == committed == shared(f"{name}.csv").read_bytes()


@pytest.fixture
def changed(tmp_path):
    """A function that reads six rows of a manifest, with a cell changed."""

    def read(row=0, column="side", value=""):
        frame = pd.read_csv(cohorts.MANIFESTS / "gornale2020.csv", dtype=str, keep_default_na=False, nrows=6)
        frame.loc[row, column] = value
        frame.to_csv(tmp_path / "cohort.csv", index=False)
        return read_manifest(tmp_path / "cohort.csv")

    return read


@pytest.mark.parametrize("row, column, value", [
    (3, "image_id", "NormalG0(1)"),
    *[(2, "kl_grade", value) for value in ("7", "-1", "severe", "", "NaN", "2.5")],
    (4, "kl_grade_reader2", "5"),
    *[(5, "width", value) for value in ("wide", "1e30", "0")],
    (1, "split", "dev"),
    (2, "group_id", ""),
    (2, "sha256", "0" * 63),
    (2, "side", "l"),
    (3, "path", "MedicalExpert-I/0Normal/NormalG0 (1).png"),
    *[(2, "path", path) for path in ("c.png", "/a/b/c.png", "a/../b/c.png", "a\\..\\b\\c", "C:/a/b/c.png")],
    (2, "osteophytes", "4"),
])  # fmt: skip
def test_wrong_cell_is_named_by_file_row_and_value(changed, row, column, value):
    with pytest.raises(StudyError) as error:
        changed(row, column, value)
    assert all(word in str(error.value) for word in ("cohort.csv", f"row {row + 2} ", column, f"'{value}'"))


@pytest.mark.parametrize("column, value, read", [
    ("kl_grade_reader2", "2.0", 2), ("kl_grade", " 3", 3), ("mode", "NA", "NA"),
    ("group_id", 'a "b", c', 'a "b", c'),
])  # fmt: skip
def test_odd_but_right_cell_is_taken(changed, column, value, read):
    assert changed(1, column, value)[column][1] == read


def test_wrong_rows_are_counted_and_never_written(tmp_path, cohort_a):
    with pytest.raises(StudyError, match="row 2 .* 23 more"):
        write_manifest(cohort_a[1].assign(kl_grade=9), tmp_path / "bad.csv")
    with pytest.raises(StudyError, match="bad.csv"):
        write_manifest(cohort_a[1].iloc[:0], tmp_path / "bad.csv")
    assert not (tmp_path / "bad.csv").exists()


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2,3\n4\n", b"image_id\n\xff\xfe\n", b"image_id,path\na,b\n"]
)
def test_file_that_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / "cohort.csv").write_bytes(content)
    for path in (tmp_path / "cohort.csv", tmp_path / "none.csv"):
        with pytest.raises(StudyError, match=path.name):
            read_manifest(path)


@pytest.mark.parametrize(
    "column, value", [("kl_grade", 5), ("split", "other"), ("pixel_sha256", "0" * 64), ("image_id", "other")]
)
def test_data_hash_names_what_matters(cohort_a, column, value):
    frame = cohort_a[1].copy()
    frame.loc[0, column] = value
    assert data_hash(frame) != data_hash(cohort_a[1]) == data_hash(cohort_a[1].assign(side=""))


# Facts of cohorts


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_agree_with_the_manifest(name):
    facts, manifest = cohorts.facts(name), cohorts.manifest(name)
    counts = manifest.groupby(["split", "kl_grade"]).size().unstack()
    assert facts.counts == {split: tuple(row) for split, row in counts.iterrows()}
    assert set(facts.roles) == set(manifest["split"]) <= set(SPLITS)
    told = facts.told(manifest["path"])
    assert {"image_id", "kl_grade"} <= {*told} and (told == manifest[told.columns].astype(str)).all(axis=None)
    beside = pd.Series([f"{folder}/{manifest['path'][0].split('/', 1)[1]}" for folder in facts.beside])
    assert len(beside) and facts.told(beside).isna().all(axis=None)


def test_published_cohorts_have_a_manifest_and_unknown_ones_are_named_with_the_known():
    committed = {path.stem for path in cohorts.MANIFESTS.glob("*.csv")}
    assert set(PUBLISHED) <= committed & {name for name in cohorts.names() if cohorts.facts(name).address}
    with pytest.raises(StudyError, match="'oai_chen'.*oai_chen2018"):
        cohorts.facts("oai_chen")


def test_phantoms_bring_their_manifest_along_and_published_cohorts_do_not(cohort_a, tmp_path):
    assert cohorts.manifest("phantom_a", cohort_a[0]).equals(cohort_a[1])
    assert len(cohorts.manifest("gornale2020", cohort_a[0])) == 1650
    with pytest.raises(StudyError, match=re.escape(f"{tmp_path}/manifest.csv")):
        cohorts.manifest("phantom_a", tmp_path)


@pytest.mark.parametrize("name, column, value", [
    *[("phantom_a", *cell) for cell in (("kl_grade", 4), ("split", "train"), ("image_id", "9000001L"))],
    *[("phantom_b", *cell) for cell in (("kl_grade", 4), ("image_id", "NormalG0(99)"), ("path", "x/y/z"))],
])  # fmt: skip
def test_row_that_contradicts_its_path_is_refused(cohort_a, cohort_b, tmp_path, name, column, value):
    frame = {"phantom_a": cohort_a, "phantom_b": cohort_b}[name][1].copy()
    row = frame.index[(frame["kl_grade"] < 4) & (frame["split"] != "train")][0]
    frame.loc[row, column] = value
    write_manifest(frame, tmp_path / "manifest.csv")
    with pytest.raises(StudyError, match=f"manifest.csv, row {row + 2}: .*{re.escape(str(value))}"):
        cohorts.manifest(name, tmp_path)


# Files


def test_natural_order():
    assert sorted(["a (10)", "a (9)", "a"], key=natural) == ["a", "a (9)", "a (10)"]


def test_walk_follows_links_but_no_loops_and_leaves_out_what_is_hidden(tmp_path):
    for name in "root/a/1.png root/.hidden/1.png root/a/._1.png other/b/2.png".split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "root/link").symlink_to(tmp_path / "other")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "other/b/back").symlink_to(tmp_path / "other")
    (tmp_path / "root/nowhere.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "root/pipe.png")  # opening it would wait for ever
    found = {path.relative_to(tmp_path / "root").as_posix() for path in walk(tmp_path / "root")}
    assert found == {"a/1.png", "link/b/2.png", "nowhere.png"}


def saved(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 14), dtype=np.uint8)).save(path)
    return path


def test_pictures_are_found_as_listed_or_in_another_container(cohort_a, tmp_path):
    folder, manifest = cohort_a
    first, second, third = manifest["path"][:3]
    listed = saved(tmp_path / "outer" / first)
    saved((tmp_path / "outer" / first).with_suffix(".bmp"))
    webp = saved((tmp_path / "outer" / second).with_suffix(".webp"))
    saved(tmp_path / "outer/copies" / second)  # namesakes elsewhere stand for nobody
    saved(tmp_path / "outer/copies" / third)
    found = find_pictures(manifest, tmp_path)
    assert list(found["path"]) == [first, second] and list(found["file"]) == [listed, webp]


def test_a_study_counts_by_hash_what_is_not_as_listed(easy_study, tmp_path):
    copy = Path(shutil.copytree(easy_study.inputs.data, tmp_path / "copy"))
    overwritten, appended = sorted(copy.rglob("*.png"))[:2]
    saved(overwritten)
    appended.write_bytes(appended.read_bytes() + b"more")
    (tmp_path / "run" / ".locks").mkdir(parents=True)
    inputs = replace(easy_study.inputs, data=str(copy))
    study = replace(easy_study, run_dir=tmp_path / "run", inputs=inputs)
    rows = cohort.cohort(study, "training").rows
    assert rows["file"][~rows["as_listed"]].tolist() == [overwritten] and "(1 files" in study.stamp()
