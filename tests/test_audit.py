"""The data audit finds the known defects in files: built into phantoms, planted, and of real samples."""

import shutil

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


@pytest.fixture(scope="module")
def gornale():
    return read_manifest(MANIFESTS / "gornale2020.csv")


@pytest.fixture(scope="module")
def chen():
    return read_manifest(MANIFESTS / "oai_chen2018.csv")


def inspected(folder, manifest):
    return looks.with_second_reader(looks.inspect(find_pictures(manifest, folder)), folder)


@pytest.fixture(scope="module")
def seen_a(cohort_a):
    return inspected(*cohort_a)


@pytest.fixture(scope="module")
def seen_b(cohort_b):
    return inspected(*cohort_b)


@pytest.fixture(scope="module")
def audit_b(seen_b):
    return audit.audit(seen_b, "b", draws=50)


@pytest.fixture
def copy_a(cohort_a, tmp_path):
    """A copy of cohort A that may be spoilt: folder and manifest."""
    return shutil.copytree(cohort_a[0], tmp_path / "copy"), cohort_a[1].copy()


def found(result, name):
    return result.findings.set_index("finding").loc[name]


def ids(result, name):
    return set(result.affected_files.loc[result.affected_files["finding"] == name, "image_id"])


@pytest.fixture
def as_if_read(monkeypatch):
    """Audits manifest rows as if their files had been read, without the format shortcut."""
    monkeypatch.setattr(audit, "predictability", lambda *_: pd.DataFrame(columns=audit.PREDICTED))
    clean = {"readable": True, "problem": None, "as_in_manifest": True, "polarity": 1.0}
    return lambda rows: audit.audit(rows.assign(**clean, perceptual_hash=rows["pixel_sha256"]), "c")


# The published sets


def test_right_answers_for_the_whole_external_set(gornale, as_if_read):
    result = as_if_read(gornale)
    assert found(result, "equal pixels")["groups"] == 63
    assert found(result, "equal pixels under different grades")["groups"] == 3
    for name, files in (("two knees in one picture", 186), ("16-bit pictures", 80), ("colour pictures", 3)):
        assert found(result, name)["files"] == files, name
    assert result.sets[list(sets.SUBSETS)].sum().tolist() == [1650, 1576, 1410]
    first, second, agreement = (
        gornale["kl_grade"],
        gornale["kl_grade_reader2"].astype(int),
        audit.reader_agreement(gornale),
    )
    assert found(result, "readers disagree")["files"] == (first != second).sum() == 11
    for name, weights in (("kappa", None), ("linear_kappa", "linear"), ("qwk", "quadratic")):
        assert agreement[name] == pytest.approx(cohen_kappa_score(first, second, weights=weights))


def test_counts_of_the_training_set(chen):
    table = sets.counts(chen, "oai")
    assert table.pivot(index="split", columns="grade", values="n").loc["test"].tolist() == [
        639,
        296,
        447,
        223,
        51,
    ]


def test_printed_folds_part_the_knees_of_patients_and_ours_do_not(chen, as_if_read):
    some = chen["group_id"].drop_duplicates().iloc[::20]
    result = as_if_read(chen[chen["group_id"].isin(some)])
    assert found(result, "patients across image-level folds, as printed")["groups"] > 0.5 * len(some)
    assert found(result, "patients across patient folds, our protocol")["files"] == 0


def test_sample_of_the_external_set(shared, gornale):
    seen = inspected(shared("gornale_sample"), gornale)
    result, listed = audit.audit(seen, "g", draws=20), gornale[gornale["image_id"].isin(seen["image_id"])]
    for name, rows in (
        ("equal pixels", listed.duplicated("pixel_sha256", keep=False)),
        ("two knees in one picture", listed["width"] == 640),
        ("16-bit pictures", listed["bit_depth"] == 16),
        ("colour pictures", listed["channels"] == 3),
    ):
        assert ids(result, name) == set(listed.loc[rows, "image_id"]), name
    assert ids(result, "equal pixels under different grades") == {"NormalG0(291)", "DoubtfulG1(330)"}
    clean = [
        "unreadable files",
        "suffix and content differ",
        "pixels differ from the manifest",
        "inverted pictures",
    ]
    assert not result.findings.set_index("finding").loc[clean, "files"].any()


def test_sample_of_the_training_set_is_clean(shared, chen):
    files = audit.audit(inspected(shared("oai_original_sample"), chen), "c", draws=20).findings.set_index(
        "finding"
    )["files"]
    assert not files[~files.index.str.contains("image-level|predict")].any()


# Phantoms with built-in defects


def test_built_in_defects_of_cohort_b_are_found(audit_b, cohort_b):
    folder, rows = cohort_b
    known = defects_b(len(rows))
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("image_id")["defect"]
    assert min(known.values()) > 0 and truth.value_counts().drop("").to_dict() == known
    for finding, defect in (
        ("two knees in one picture", "two_knees"),
        ("16-bit pictures", "sixteen_bit"),
        ("colour pictures", "colour"),
        ("inverted pictures", "inverted"),
        ("other sizes", "other_size"),
    ):
        assert ids(audit_b, finding) == set(truth.index[truth == defect]), finding
    groups = audit_b.findings.set_index("finding")["groups"]
    assert groups["equal pixels"] == known["copies"] + known["disputed"]
    assert (
        groups["equal pixels under different grades"] == known["disputed"]
        and groups["near-duplicates"] == known["near_copies"]
    )
    assert groups["readers disagree"] == (rows["kl_grade"] != rows["kl_grade_reader2"]).sum() > 0
    unique = len(rows) - known["copies"] - 2 * known["disputed"]
    assert audit_b.sets[list(sets.SUBSETS)].sum().tolist() == [len(rows), unique, unique - known["two_knees"]]


def test_the_files_count_and_not_the_manifest(cohort_b, audit_b):
    folder, rows = cohort_b
    nobody = pd.array([pd.NA] * len(rows), "Int64")
    liar = rows.assign(
        width=224,
        height=224,
        channels=1,
        pixel_sha256=[f"{k:064d}" for k in range(len(rows))],
        kl_grade_reader2=nobody,
    )
    lied, same = (
        audit.audit(inspected(folder, liar), "b", draws=50),
        audit_b.findings["finding"] != "pixels differ from the manifest",
    )
    assert lied.findings[same].equals(audit_b.findings[same]) and lied.findings[~same]["files"].tolist() == [
        len(rows)
    ]


def test_every_count_has_its_files(audit_b, seen_a, seen_b, tmp_path):
    both = audit.audit_all({"a": seen_a, "b": seen_b}, draws=50)
    assert (
        both.findings[both.findings["cohort"] == "b"]
        .iloc[:-1]
        .reset_index(drop=True)
        .equals(audit_b.findings)
    )
    listed = both.affected_files.groupby(["finding", "cohort"]).agg(
        groups=("group", "nunique"), files=("image_id", "size")
    )
    counted = both.findings[both.findings["files"] > 0].set_index(["finding", "cohort"])[["groups", "files"]]
    assert listed.sort_index().equals(counted.sort_index()) and len(both.sets) == len(seen_a) + len(seen_b)
    both.write(tmp_path / "out")
    assert all(
        len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) == len(table) for name, table in both._asdict().items()
    )


# Planted defects


def test_leaks_across_the_official_split_are_found(copy_a):
    folder, rows = copy_a
    clean = audit.audit(inspected(folder, rows), "a", draws=20).findings.set_index("finding")["files"]
    (a, b), (c, d) = (rows.index[rows["split"] == split][:2] for split in ("train", "test"))
    e = rows.index[rows["split"] == "val"][0]
    shutil.copy(folder / rows.loc[a, "path"], folder / rows.loc[c, "path"])
    ImageEnhance.Brightness(Image.open(folder / rows.loc[b, "path"])).enhance(1.05).save(
        folder / rows.loc[d, "path"]
    )
    rows.loc[e, "group_id"] = rows.loc[a, "group_id"]
    result, name = audit.audit(inspected(folder, rows), "a", draws=20), rows["image_id"]
    assert not clean.drop("inverted pictures").any()
    assert ids(result, "equal pixels across official split") == {name[a], name[c]}
    assert ids(result, "near-duplicates across official split") == {name[a], name[c], name[b], name[d]}
    assert (
        name[e] in ids(result, "patients across official split")
        and found(result, "patients across official split")["groups"] == 1
    )


def test_a_picture_of_the_training_cohort_in_the_external_one_is_found(cohort_a, cohort_b, seen_a, tmp_path):
    folder = shutil.copytree(cohort_b[0], tmp_path / "copy")
    source, target = cohort_a[1]["path"].iloc[3], cohort_b[1]["path"].iloc[7]
    shutil.copy(cohort_a[0] / source, folder / target)
    result = audit.audit_all({"a": seen_a, "b": inspected(folder, cohort_b[1])}, draws=10)
    assert found(result, "also in a")["files"] == 1
    listed = result.affected_files[result.affected_files["finding"] == "also in a"]
    assert set(zip(listed["cohort"], listed["path"], strict=True)) == {("b", target), ("a", source)}


def test_bad_files_are_told_left_out_and_remembered(copy_a, tmp_path):
    folder, rows = copy_a
    (folder / rows["path"].iloc[2]).write_bytes(b"no picture")
    path = folder / rows["path"].iloc[9]
    Image.open(path).save(path, "JPEG")
    seen = inspected(folder, rows)
    looks.write_inspected(find_pictures(rows, folder), tmp_path / "files.csv")
    again = looks.read(tmp_path / "files.csv", find_pictures(rows, folder))
    for result in (audit.audit(seen, "a", draws=20), audit.audit(again, "a", draws=20)):
        assert ids(result, "unreadable files") == {rows["image_id"].iloc[2]}
        assert ids(result, "suffix and content differ") == {rows["image_id"].iloc[9]}
        assert len(result.sets) == len(rows) - 1
    pd.testing.assert_frame_equal(again[looks.INTENSITY], seen[looks.INTENSITY])


def test_nothing_readable_is_an_error_with_the_first_file(copy_a):
    folder, rows = copy_a
    for path in rows["path"]:
        (folder / path).write_bytes(b"no picture")
    with pytest.raises(StudyError, match=rows["path"].iloc[0]):
        looks.inspect(find_pictures(rows, folder))


@pytest.mark.parametrize(
    "chosen", [lambda rows: rows.index < 1, lambda rows: rows.index < 2, lambda rows: rows["kl_grade"] == 0]
)
def test_few_pictures_or_one_grade_are_audited(cohort_b, chosen):
    rows = cohort_b[1][chosen(cohort_b[1])].reset_index(drop=True)
    result = audit.audit_all({"a": inspected(cohort_b[0], rows)}, draws=20)
    assert result.sets["raw"].sum() == len(rows) and result.format_shortcut.empty
    assert "too few" in found(result, "gray values predict the grade")["detail"]


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
    rows = pd.DataFrame(
        {
            "image_id": names,
            "path": names,
            "pixel_sha256": names,
            "perceptual_hash": [np.packbits(row).tobytes().hex() for row in bits],
        }
    )
    theirs = fcluster(linkage(bits, "single", "hamming"), looks.THRESHOLD / 256 + 1e-9, "distance")
    shuffled = rows.sample(frac=1, random_state=seed)
    ours = pd.Series(looks.near_groups(shuffled), shuffled.index).sort_index()
    assert ours.equals(rows.groupby(theirs)["image_id"].transform("first").astype(ours.dtype).rename(None))
    apart = (bits[:, None] != bits[None]).sum(2) + 1000 * np.eye(n, dtype=int)
    assert np.array_equal(looks.distances(rows["perceptual_hash"]), apart.min(1))


def test_groups_that_belong_together_are_merged():
    rows = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "path": list("abcd"),
            "pixel_sha256": list("abcd"),
            "group_id": list("xyzy"),
            "perceptual_hash": ["0" * 64, "f" * 64, "0" * 63 + "1", "5" * 64],
        }
    )
    assert looks.near_groups(rows) == ["a", "b", "a", "d"]
    assert looks.near_groups(rows, "group_id") == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    "change", [lambda picture: picture.resize((225, 121)), lambda picture: ImageOps.crop(picture, 1)]
)
def test_changed_copies_are_near_and_other_knees_are_not(cohort_b, tmp_path, change):
    folder, rows = cohort_b
    single = rows[(rows["width"] == 300) & (rows["bit_depth"] == 8)].drop_duplicates("pixel_sha256").head(12)
    files, copies = [folder / path for path in single["path"]], [tmp_path / f"{k}.jpg" for k in range(12)]
    for file, copy in zip(files, copies, strict=True):
        change(Image.open(file).convert("L")).save(copy, quality=60)
    seen = looks.inspect(
        pd.concat([single, single], ignore_index=True).assign(image_id=range(24), file=files + copies)
    )
    assert looks.near_groups(seen) == 2 * list(range(12))


# Format shortcut


def formats(n, seed):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "kl_grade": np.arange(n) % 5,
            "group_id": np.arange(n) // 2,
            "width": 300,
            "height": 162,
            "bit_depth": 8,
            "channels": 1,
        }
    )
    return rows.assign(**{name: rng.random(n) for name in looks.INTENSITY})


@pytest.mark.parametrize("place", [None, "size and depth", "gray values"])
def test_a_planted_shortcut_is_found_and_chance_is_not(place):
    rows = formats(200, 0)
    rows["bit_depth"] = np.where((rows["kl_grade"] == 4) & (place == "size and depth"), 16, 8)
    rows["mean"] += 20 * rows["kl_grade"] * (place == "gray values")
    table = audit.predictability(rows, "group_id", draws=100).set_index("features")
    assert table["above_chance"].to_dict() == {
        name: bool(place) and name in (place, "both") for name in audit.FEATURES
    }
    assert (table["chance"] == 0.2).all() and pd.isna(table.loc["size and depth", "qwk"]) == (
        place != "size and depth"
    )


def test_groups_are_not_parted_by_the_shortcut_test():
    # Each group has its own intensity and one grade: only who knows the group could predict the grade.
    rows, group = formats(300, 1), np.arange(300) // 10
    rows = rows.assign(
        group_id=group,
        kl_grade=np.random.default_rng(2).permutation(np.arange(30) % 5)[group],
        mean=group / 30,
    )
    assert not audit.predictability(rows, "group_id", draws=100)["above_chance"].any()
