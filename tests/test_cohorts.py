"""The facts of the cohorts: they agree with the committed manifests, and a wrong name or key is told."""

import re
from collections import Counter
from pathlib import PurePosixPath

import pytest
import yaml

from koa_lib.data import cohorts
from koa_lib.data.manifest import SPLITS, tail, write_manifest
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES

PUBLISHED = ["oai_chen2018", "gornale2020"]


@pytest.fixture(scope="module", params=PUBLISHED)
def known(request):
    """Facts and committed manifest of a published cohort."""
    return cohorts.facts(request.param), cohorts.manifest(request.param)


def test_every_committed_manifest_has_facts_and_every_published_cohort_a_manifest():
    committed = {path.stem for path in cohorts.MANIFESTS.glob("*.csv")}
    assert committed == set(PUBLISHED) == {name for name in cohorts.names() if cohorts.facts(name).address}


def test_unknown_cohort_is_named_with_the_choice():
    with pytest.raises(StudyError) as error:
        cohorts.facts("oai_chen")
    assert "'oai_chen'" in str(error.value) and all(name in str(error.value) for name in cohorts.names())


def test_pictures_per_split_and_grade_are_those_of_the_manifest(known):
    facts, manifest = known
    listed = Counter(zip(manifest["split"], manifest["kl_grade"], strict=True))
    assert facts.counts == {split: tuple(listed[split, grade] for grade in GRADES) for split in facts.counts}
    assert sum(map(sum, facts.counts.values())) == len(manifest)


def test_every_split_has_a_role(known):
    facts, manifest = known
    assert set(facts.roles) == set(manifest["split"]) <= set(SPLITS)


def test_path_tells_what_the_manifest_says(known):
    facts, manifest = known
    for row in manifest.itertuples():
        named = facts.pattern.fullmatch(tail(row.path)).groupdict()
        assert int(named["grade"]) == row.kl_grade and named["id"].replace(" ", "") == row.image_id
        assert named.get("split", row.split) == row.split and named.get("group", row.group_id) == row.group_id and named.get("side", "") == row.side


def test_folders_beside_the_cohort_are_no_part_of_it(known):
    facts, manifest = known
    parts = PurePosixPath(manifest["path"].iloc[0]).with_suffix("").parts
    assert facts.beside and not any(facts.pattern.fullmatch("/".join((name, *parts[1:]))) for name in facts.beside)


@pytest.mark.parametrize("other", ["train/5/9000001L", "train/0/900000L", "train/0/9000001", "dev/0/9000001L", "0/9000001L", "x/train/0/9000001L"])
def test_other_names_are_no_part_of_it(other):
    assert not cohorts.facts("oai_chen2018").pattern.fullmatch(other)


@pytest.mark.parametrize("root, layout", [("/d/KneeXrayData/ClsKLData/kneeKL224", "Mendeley"), ("/d/kaggle", "Kaggle"), ("/d/KneeXrayData/ClsKLData/kneeKL299", "Kaggle")])
def test_layout_is_named_by_the_folders_above_the_pictures(root, layout):
    assert cohorts.facts("oai_chen2018").layout(root) == layout


def test_what_a_person_needs_to_fetch_a_cohort_is_there(known):
    facts, _ = known
    number, version = re.fullmatch(r"10\.17632/(\w+)\.(\d)", facts.doi).groups()
    assert facts.archive == f"{number}-{version}.zip" and facts.page.endswith(f"/{number}/{version}") and facts.licence and facts.citation
    assert facts.sha256 is None or re.fullmatch("[0-9a-f]{64}", facts.sha256)


def test_phantoms_bring_their_manifest_along(cohort_a, cohort_b, tmp_path):
    for name, (folder, rows) in (("phantom_a", cohort_a), ("phantom_b", cohort_b)):
        assert cohorts.manifest(name, folder).equals(rows)
        assert all(cohorts.facts(name).pattern.fullmatch(tail(path)) for path in rows["path"])
    with pytest.raises(StudyError, match=re.escape(f"{tmp_path}/manifest.csv does not exist")):
        cohorts.manifest("phantom_a", tmp_path)


@pytest.mark.parametrize("name, column, value", [("phantom_a", "kl_grade", 4), ("phantom_a", "split", "train"), ("phantom_a", "image_id", "9000001L"),
                                                 ("phantom_b", "kl_grade", 4), ("phantom_b", "image_id", "NormalG0(999)"), ("phantom_b", "path", "x/y/z.png")])
def test_row_that_contradicts_its_path_is_refused(cohort_a, cohort_b, tmp_path, name, column, value):
    frame = {"phantom_a": cohort_a, "phantom_b": cohort_b}[name][1].copy()
    row = frame.index[(frame["kl_grade"] < 4) & (frame["split"] != "train")][0]
    frame.loc[row, column] = value
    write_manifest(frame, tmp_path / "manifest.csv")
    with pytest.raises(StudyError, match="contradict the path") as error:
        cohorts.manifest(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/manifest.csv, row {row + 2}: ") and str(value) in message and frame["path"][row] in message


def test_published_manifest_is_the_committed_one_whatever_lies_in_the_folder(cohort_a):
    assert len(cohorts.manifest("gornale2020", cohort_a[0])) == 1650


@pytest.mark.parametrize("change", [{"licens": "MIT"}, {"roles": None}])
def test_mistake_in_the_facts_is_named(tmp_path, monkeypatch, change):
    content = yaml.safe_load((cohorts.MANIFESTS / "cohorts.yaml").read_text(encoding="utf-8"))
    content["phantom_a"].update(change)
    content["phantom_a"] = {key: value for key, value in content["phantom_a"].items() if key != "roles" or value}
    (tmp_path / "cohorts.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(cohorts, "MANIFESTS", tmp_path)
    with pytest.raises(StudyError, match=f"cohorts.yaml.*phantom_a.{next(iter(change))}"):
        cohorts._all.__wrapped__()
