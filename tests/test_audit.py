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
    """A copy of cohort A that may be spoilt: folder and manifest."""
    return shutil.copytree(cohort_a[0], tmp_path / "copy"), cohort_a[1].copy()


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


@pytest.mark.parametrize("name, whole", [("oai_original_sample", CHEN), ("gornale_sample", GORNALE)])
def test_samples_hold_what_their_manifest_says_and_no_more(name, whole, shared, as_if_read):
    seen = inspected(shared(name), whole)
    listed = as_if_read(whole[whole["image_id"].isin(seen["image_id"])])
    assert count(audit.audit(seen, "c")).equals(count(listed))


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


def test_every_count_has_its_files(seen_a, cohort_a, cohort_b, tmp_path):
    folder = shutil.copytree(cohort_b[0], tmp_path / "copy")
    source, target = cohort_a[1]["path"].iloc[3], cohort_b[1]["path"].iloc[7]
    shutil.copy(cohort_a[0] / source, folder / target)
    both = audit.audit_all({"a": seen_a, "b": inspected(folder, cohort_b[1])}, draws=10)
    shared = both.affected_files[both.affected_files["finding"] == "also in a"]
    assert set(zip(shared["cohort"], shared["path"], strict=True)) == {("b", target), ("a", source)}
    own = both.affected_files.drop(shared.index[shared["cohort"] == "a"]).groupby(["finding", "cohort"])
    counted = both.findings[both.findings["files"] > 0].set_index(["finding", "cohort"])[["groups", "files"]]
    listed = own.agg(groups=("group", "nunique"), files=("image_id", "size"))
    assert listed.equals(counted.sort_index()) and len(both.sets) == len(seen_a) + len(cohort_b[1])
    both.write(tmp_path / "out")
    for name, table in both._asdict().items():
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) == len(table)


def test_cohorts_stand_side_by_side_and_readers_only_where_there_are_two(audit_b, seen_a, cohort_b):
    both = pd.concat([audit_b.findings, audit_b.findings.head(3).assign(cohort="c")])
    table = audit.side_by_side(both)
    assert table["finding"].tolist() == audit_b.findings["finding"].tolist() and table["meaning"].ne("").all()
    assert table["b files"].tolist() == audit_b.findings["files"].tolist()
    assert table["c files"].isna().sum() == len(table) - 3
    rows = cohort_b[1].astype({"kl_grade_reader2": "Int64"})
    readers = audit.two_readers({"a": seen_a, "b": rows})
    assert set(readers["cohort"]) == {"b"} and readers.filter(like="reader II").to_numpy().sum() == len(rows)
    assert audit.two_readers({"a": seen_a}).empty


# Planted defects


def test_leaks_across_the_official_split_are_found(copy_a, seen_a):
    folder, rows = copy_a
    clean = count(audit.audit(seen_a, "a", draws=20))
    assert not clean.drop("inverted pictures").any()
    (a, b), (c, d), (e, _) = (rows[rows["split"] == name].index[:2] for name in ("train", "test", "val"))
    files, names = [folder / path for path in rows["path"]], rows["image_id"]
    shutil.copy(files[a], files[c])
    ImageEnhance.Brightness(Image.open(files[b])).enhance(1.05).save(files[d])
    rows.loc[e, "group_id"] = rows.loc[a, "group_id"]
    result = audit.audit(inspected(folder, rows), "a", draws=20)
    assert ids(result, "equal pixels across official split") == {names[a], names[c]}
    assert ids(result, "near-duplicates across official split") == set(names[[a, b, c, d]])
    assert names[e] in ids(result, "patients across official split")
    assert count(result, "groups")["patients across official split"] == 1


def test_bad_files_are_told_left_out_and_remembered(copy_a, tmp_path):
    folder, rows = copy_a
    found = find_pictures(rows, folder)
    found["file"].iloc[2].write_bytes(b"no picture")
    Image.open(found["file"].iloc[9]).save(found["file"].iloc[9], "JPEG")
    looks.write_inspected(found, tmp_path / "files.csv")
    for seen in (looks.inspect(found), looks.read(tmp_path / "files.csv", found)):
        result = audit.audit(seen, "a", draws=20)
        assert ids(result, "unreadable files") == {rows["image_id"].iloc[2]}
        assert ids(result, "suffix and content differ") == {rows["image_id"].iloc[9]}
        assert len(result.sets) == len(rows) - 1
        assert seen["mean"].drop(2).between(0.01, 0.99).all()
    for file in found["file"]:
        file.write_bytes(b"no picture")
    with pytest.raises(StudyError, match=rows["path"].iloc[0]):
        looks.inspect(found)


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
    rows = pd.DataFrame({"path": [f"p ({k})" for k in range(n)]})
    rows["image_id"] = rows["pixel_sha256"] = rows["path"]
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
    single = rows.drop_duplicates("pixel_sha256").head(12)
    copies = [tmp_path / f"{name}.jpg" for name in single["image_id"]]
    for file, copy in zip(single["file"], copies, strict=True):
        change(Image.open(file).convert("L")).save(copy, quality=60)
    twice = pd.concat([single, single.assign(file=copies)], ignore_index=True).assign(image_id=range(24))
    assert looks.near_groups(looks.inspect(twice)) == 2 * list(range(12))


# Format shortcut


@pytest.mark.parametrize("place", ["", "size and depth", "gray values", "groups"])
def test_a_planted_shortcut_is_found_and_chance_is_not(place):
    rng, n = np.random.default_rng(0), np.arange(200)
    rows = pd.DataFrame({"kl_grade": n % 5, "group_id": n // 2} | dict.fromkeys(audit.FORMAT, 8))
    rows = rows.assign(**{name: rng.random(200) for name in looks.INTENSITY})
    if place == "groups":  # each with an intensity and a grade: only who knows the group could tell the grade
        grades = rng.permutation(np.arange(20) % 5)
        rows = rows.assign(group_id=n // 10, kl_grade=grades[n // 10], mean=n // 10 / 20)
    rows["bit_depth"] += 8 * (rows["kl_grade"] == 4) * (place == "size and depth")
    rows["mean"] += 20 * rows["kl_grade"] * (place == "gray values")
    table = audit.predictability(rows, "group_id", draws=100).set_index("features")
    told = {name for name in (place, "both") if place in audit.FEATURES}
    assert set(table.index[table["above_chance"]]) == told and (table["chance"] == 0.2).all()
    assert pd.isna(table.loc["size and depth", "qwk"]) == (place != "size and depth")
