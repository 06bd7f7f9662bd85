"""The data audit finds the known defects in files: built into phantoms, planted, and of real samples."""

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import cohen_kappa_score

from koa_lib.data import audit, looks, sets
from koa_lib.data.files import find_pictures
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.phantoms.cohorts import defects_b
from koa_lib.study import MANIFESTS

GORNALE, CHEN = (read_manifest(MANIFESTS / f"{name}.csv") for name in ("gornale2020", "oai_chen2018"))
DERIVED = list(sets.SUBSETS)
ODD = {
    "two knees in one picture": "two_knees",
    "16-bit pictures": "sixteen_bit",
    "colour pictures": "colour",
    "inverted pictures": "inverted",
    "other sizes": "other_size",
}


def inspected(folder, manifest):
    return looks.with_second_reader(looks.inspect(find_pictures(manifest, folder)), folder)


@pytest.fixture(scope="module")
def seen_a(cohort_a):
    return inspected(*cohort_a)


@pytest.fixture(scope="module")
def audit_b(cohort_b):
    return audit.audit(inspected(*cohort_b), "b", draws=50)


@pytest.fixture
def copy_a(cohort_a, tmp_path):
    """A copy of cohort A that may be spoilt: manifest with files."""
    return find_pictures(cohort_a[1].copy(), shutil.copytree(cohort_a[0], tmp_path / "copy"))


def count(result, what="files"):
    return result.findings.set_index("finding")[what]


def ids(result, name):
    return set(result.affected_files.set_index("finding").loc[[name], "image_id"])


@pytest.fixture
def as_if_read(monkeypatch):
    """Audits manifest rows as if their files had been read, without the format shortcut."""
    monkeypatch.setattr(audit, "predictability", lambda *_: pd.DataFrame(columns=audit.PREDICTED))
    clean = {"readable": True, "problem": None, "as_in_manifest": True, "polarity": 1.0}
    return lambda rows: audit.audit(rows.assign(**clean, perceptual_hash=rows["pixel_sha256"]), "c")


# The published sets


def test_right_answers_for_the_whole_external_set(as_if_read):
    result, agreement = as_if_read(GORNALE), audit.reader_agreement(GORNALE)
    groups = count(result, "groups")[["equal pixels", "equal pixels under different grades"]]
    assert [*groups, *count(result)[["readers disagree", *list(ODD)[:3]]]] == [63, 3, 11, 186, 80, 3]
    assert result.sets[DERIVED].sum().tolist() == [1650, 1576, 1410]
    readers = GORNALE["kl_grade"], GORNALE["kl_grade_reader2"].astype(int)
    assert agreement["qwk"] == pytest.approx(cohen_kappa_score(*readers, weights="quadratic"))


def test_printed_folds_part_the_knees_of_patients_and_ours_do_not(as_if_read):
    some = CHEN["group_id"].drop_duplicates().iloc[::20]
    result = as_if_read(CHEN[CHEN["group_id"].isin(some)])
    printed = count(result, "groups")["patients across image-level folds, as printed"]
    assert printed > 0.5 * len(some) and not count(result)["patients across patient folds, our protocol"]
    table = sets.counts(CHEN, "oai").pivot(index="split", columns="grade", values="n")
    assert table.loc["test"].tolist() == [639, 296, 447, 223, 51]


# Phantoms with built-in defects


def test_built_in_defects_of_cohort_b_are_found(audit_b, cohort_b):
    folder, rows = cohort_b
    known, groups = defects_b(len(rows)), count(audit_b, "groups")
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("image_id")["defect"]
    assert min(known.values()) > 0 and truth.value_counts().drop("").to_dict() == known
    for finding, defect in ODD.items():
        assert ids(audit_b, finding) == set(truth.index[truth == defect]), finding
    assert groups["equal pixels"] == known["copies"] + known["disputed"]
    assert groups["equal pixels under different grades"] == known["disputed"]
    assert groups["near-duplicates"] == known["near_copies"]
    assert groups["readers disagree"] == (rows["kl_grade"] != rows["kl_grade_reader2"]).sum() > 0
    unique = len(rows) - known["copies"] - 2 * known["disputed"]
    assert audit_b.sets[DERIVED].sum().tolist() == [len(rows), unique, unique - known["two_knees"]]


def test_the_files_count_and_not_the_manifest(cohort_b, audit_b):
    folder, rows = cohort_b
    liar = rows.assign(width=224, height=224, channels=1, pixel_sha256=[f"{k:064d}" for k in rows.index])
    liar["kl_grade_reader2"] = pd.NA
    lied = audit.audit(inspected(folder, liar), "b", draws=50)
    same = audit_b.findings["finding"] != "pixels differ from the manifest"
    assert lied.findings[same].equals(audit_b.findings[same])
    assert lied.findings.loc[~same, "files"].tolist() == [len(rows)]


def test_every_count_has_its_files_also_of_what_two_cohorts_share(seen_a, cohort_a, cohort_b, tmp_path):
    folder = shutil.copytree(cohort_b[0], tmp_path / "copy")
    source, target = cohort_a[1]["path"].iloc[3], cohort_b[1]["path"].iloc[7]
    shutil.copy(cohort_a[0] / source, folder / target)
    both = audit.audit_all({"a": seen_a, "b": inspected(folder, cohort_b[1])}, draws=10)
    files = both.affected_files
    shared = files[files["finding"] == "also in a"]
    assert set(zip(shared["cohort"], shared["path"], strict=True)) == {("b", target), ("a", source)}
    own = files.drop(shared.index[shared["cohort"] == "a"]).groupby(["finding", "cohort"])
    listed = own.agg(groups=("group", "nunique"), files=("image_id", "size"))
    counted = both.findings[both.findings["files"] > 0].set_index(["finding", "cohort"])
    assert listed.equals(counted[["groups", "files"]].sort_index())


def test_cohorts_stand_side_by_side_and_readers_only_where_there_are_two(audit_b, seen_a, cohort_b):
    both = pd.concat([audit_b.findings, audit_b.findings.head(3).assign(cohort="c")])
    table = audit.side_by_side(both)
    assert table["b files"].tolist() == audit_b.findings["files"].tolist()
    assert table["c files"].notna().sum() == 3 and table["meaning"].ne("").all()
    readers = audit.two_readers({"a": seen_a, "b": cohort_b[1]})
    assert set(readers["cohort"]) == {"b"}
    assert readers.filter(like="reader II").to_numpy().sum() == len(cohort_b[1])


# Planted defects


def test_leaks_across_the_official_split_are_found(copy_a, seen_a):
    assert not count(audit.audit(seen_a, "a", draws=20)).drop("inverted pictures").any()
    first, second, other, last, patient = (
        copy_a.index[copy_a["split"] == split][place]
        for split, place in (("train", 0), ("train", 1), ("test", 0), ("test", 1), ("val", 0))
    )
    files, names = copy_a["file"], copy_a["image_id"]
    shutil.copy(files[first], files[other])
    ImageEnhance.Brightness(Image.open(files[second])).enhance(1.05).save(files[last])
    copy_a.loc[patient, "group_id"] = copy_a.loc[first, "group_id"]
    result = audit.audit(looks.inspect(copy_a), "a", draws=20)
    assert ids(result, "equal pixels across official split") == set(names[[first, other]])
    assert ids(result, "near-duplicates across official split") == set(names[[first, second, other, last]])
    assert names[patient] in ids(result, "patients across official split")
    assert count(result, "groups")["patients across official split"] == 1


def test_bad_files_are_told_left_out_and_remembered(copy_a, tmp_path):
    broken, jpeg = copy_a["file"][2], copy_a["file"][9]
    broken.write_bytes(b"no picture")
    Image.open(jpeg).save(jpeg, "JPEG")
    looks.write_inspected(copy_a, tmp_path / "files.csv")
    result = audit.audit(looks.read(tmp_path / "files.csv", copy_a), "a", draws=20)
    assert ids(result, "unreadable files") == {copy_a["image_id"][2]}
    assert ids(result, "suffix and content differ") == {copy_a["image_id"][9]}
    assert len(result.sets) == len(copy_a) - 1
    with pytest.raises(StudyError, match=copy_a["path"][2]):
        looks.inspect(copy_a.iloc[[2]])


@pytest.mark.parametrize("chosen", ["index < 1", "index < 2", "kl_grade == 0"])
def test_few_pictures_or_one_grade_are_audited(cohort_b, chosen):
    rows = cohort_b[1].query(chosen)
    result = audit.audit_all({"a": inspected(cohort_b[0], rows)}, draws=20)
    assert result.sets["raw"].sum() == len(rows) and result.format_shortcut.empty
    assert not count(result)["gray values predict the grade"]


# Near-duplicates


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40), share=st.floats(0.02, 0.2))
def test_near_groups_equal_single_linkage(seed, n, share):
    # Chains of pictures, each of which differs from the one before in a share of its bits.
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n, 256))
    for k in np.flatnonzero(rng.random(n - 1) < 0.7) + 1:
        bits[k] = bits[k - 1] ^ (rng.random(256) < share)
    names = [f"p ({k})" for k in range(n)]
    rows = pd.DataFrame(dict.fromkeys(("image_id", "path", "pixel_sha256"), names))
    rows["perceptual_hash"] = [np.packbits(row).tobytes().hex() for row in bits]
    theirs = fcluster(linkage(bits, "single", "hamming"), looks.THRESHOLD / 256 + 1e-9, "distance")
    shuffled = rows.sample(frac=1, random_state=seed)
    ours = pd.Series(looks.near_groups(shuffled), shuffled.index).sort_index()
    assert ours.tolist() == rows.groupby(theirs)["image_id"].transform("first").tolist()


def test_groups_that_belong_together_are_merged():
    rows = pd.DataFrame({name: list("abcd") for name in ("image_id", "path", "pixel_sha256")})
    rows = rows.assign(group_id=list("xyzy"), perceptual_hash=["0" * 64, "f" * 64, "0" * 63 + "1", "5" * 64])
    assert looks.near_groups(rows) == ["a", "b", "a", "d"]
    assert looks.near_groups(rows, "group_id") == ["a", "b", "a", "b"]


@pytest.mark.parametrize("change", [lambda film: film.resize((225, 121)), partial(ImageOps.crop, border=1)])
def test_changed_copies_are_near_and_other_knees_are_not(cohort_b, tmp_path, change):
    rows = find_pictures(cohort_b[1], cohort_b[0]).query("width == 300 and bit_depth == 8")
    single = rows.drop_duplicates("pixel_sha256").head(8)
    copies = [tmp_path / f"{name}.jpg" for name in single["image_id"]]
    for file, copy in zip(single["file"], copies, strict=True):
        change(Image.open(file).convert("L")).save(copy, quality=60)
    twice = pd.concat([single, single.assign(file=copies)], ignore_index=True).assign(image_id=range(16))
    assert looks.near_groups(looks.inspect(twice)) == 2 * list(range(8))


# Format shortcut


@pytest.mark.parametrize("place", ["", "size and depth", "gray values", "groups"])
def test_a_planted_shortcut_is_found_and_chance_is_not(place):
    rng, n = np.random.default_rng(0), np.arange(150)
    rows = pd.DataFrame({"kl_grade": n % 5, "group_id": n // 2} | dict.fromkeys(audit.FORMAT, 8))
    rows = rows.assign(**{name: rng.random(150) for name in looks.INTENSITY})
    if place == "groups":  # each with an intensity and a grade: only who knows the group could tell the grade
        grades = rng.permutation(np.arange(15) % 5)
        rows = rows.assign(group_id=n // 10, kl_grade=grades[n // 10], mean=n // 10 / 15)
    rows["bit_depth"] += 8 * (rows["kl_grade"] == 4) * (place == "size and depth")
    rows["mean"] += 20 * rows["kl_grade"] * (place == "gray values")
    table = audit.predictability(rows, "group_id", draws=50).set_index("features")
    told = {name for name in (place, "both") if place in audit.FEATURES}
    assert set(table.index[table["above_chance"]]) == told and (table["chance"] == 0.2).all()
