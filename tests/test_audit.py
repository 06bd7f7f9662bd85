"""The data audit finds the known defects in files: built-in ones of phantoms, planted ones, and those of the real samples."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import cohen_kappa_score

from koa_lib.data import audit, check, duplicates, inspection, sets, shortcut
from koa_lib.data.files import find_pictures
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.images.read import read_gray
from koa_lib.phantoms.cohorts import defects_b
from koa_lib.study import MANIFESTS


@pytest.fixture(scope="module")
def gornale():
    return read_manifest(MANIFESTS / "gornale2020.csv")


@pytest.fixture(scope="module")
def chen():
    return read_manifest(MANIFESTS / "oai_chen2018.csv")


def inspected(folder, manifest):
    return inspection.with_second_reader(inspection.inspect(find_pictures(manifest, folder)), folder)


@pytest.fixture(scope="module")
def seen_a(cohort_a):
    return inspected(*cohort_a)


@pytest.fixture(scope="module")
def seen_b(cohort_b):
    return inspected(*cohort_b)


@pytest.fixture(scope="module")
def audit_b(seen_b):
    return audit.audit(seen_b, "b", draws=50)


def found(result, name):
    return result.findings.set_index("finding").loc[name]


def ids(result, name):
    return set(result.affected_files.loc[result.affected_files["finding"] == name, "image_id"])


# The published manifests


def test_derived_sets_of_the_external_set(gornale):
    raw, unique, single = (sets.subset(gornale, name) for name in sets.SUBSETS)
    assert (len(raw), len(unique)) == (1650, 1576) and single < unique < raw
    kept = gornale[gornale["image_id"].isin(unique)]
    assert kept["pixel_sha256"].is_unique and not (gornale[gornale["image_id"].isin(single)].eval("width / height") >= 3).any()


def test_readers_of_the_external_set(gornale):
    agreement = audit.reader_agreement(gornale)
    first, second = gornale["kl_grade"], gornale["kl_grade_reader2"].astype(int)
    assert agreement["pictures"] == 1650 and agreement["agreement"] == pytest.approx((first == second).mean())
    for name, weights in (("kappa", None), ("linear_kappa", "linear"), ("quadratic_kappa", "quadratic")):
        assert agreement[name] == pytest.approx(cohen_kappa_score(first, second, weights=weights))


def test_counts_add_up(chen):
    table = sets.counts(chen, "oai")
    assert table["n"].sum() == 8260 and len(table) == 15
    assert table.groupby("split")["n"].sum().to_dict() == {"train": 5778, "val": 826, "test": 1656}
    assert table[(table["split"] == "test") & (table["grade"] == 4)]["n"].item() == ((chen["split"] == "test") & (chen["kl_grade"] == 4)).sum()


# Real files


def test_sample_of_the_external_set(shared, gornale):
    seen = inspected(shared("gornale_sample"), gornale)
    result = audit.audit(seen, "gornale2020", draws=20)
    listed = gornale[gornale["image_id"].isin(seen["image_id"])]
    copies = listed[listed.duplicated("pixel_sha256", keep=False)]
    assert found(result, "equal pixels")["groups"] == copies["pixel_sha256"].nunique() and ids(result, "equal pixels") == set(copies["image_id"])
    assert ids(result, "equal pixels under different grades") == {"NormalG0(291)", "DoubtfulG1(330)"}
    assert ids(result, "two knees in one picture") == set(listed.loc[listed["width"] == 640, "image_id"])
    assert ids(result, "16-bit pictures") == set(listed.loc[listed["bit_depth"] == 16, "image_id"])
    assert ids(result, "colour pictures") == set(listed.loc[listed["channels"] == 3, "image_id"])
    for name in ("unreadable files", "suffix and content differ", "pixels differ from the manifest", "inverted pictures"):
        assert found(result, name)["files"] == 0


def test_sample_of_the_training_set_is_clean(shared, chen):
    result = audit.audit(inspected(shared("oai_original_sample"), chen), "oai_chen2018", draws=20)
    files = result.findings.set_index("finding")["files"].drop(["gray values predict the grade", "size and depth predict the grade"])
    assert (files[~files.index.str.contains("image-level")] == 0).all()


# Phantoms with built-in defects


def test_built_in_defects_of_cohort_b_are_found(audit_b, cohort_b):
    folder, rows = cohort_b
    known = defects_b(len(rows))
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("image_id")["defect"]
    assert all(count > 0 for count in known.values()) and truth.value_counts().drop("").to_dict() == known
    for finding, defect in (("two knees in one picture", "two_knees"), ("16-bit pictures", "sixteen_bit"), ("colour pictures", "colour"),
                            ("inverted pictures", "inverted"), ("other sizes", "other_size")):
        assert ids(audit_b, finding) == set(truth.index[truth == defect]), finding
    assert found(audit_b, "equal pixels")["groups"] == known["copies"] + known["disputed"]
    assert found(audit_b, "near-duplicates")["groups"] == known["near_copies"]
    assert ids(audit_b, "near-duplicates") > set(truth.index[truth == "near_copies"])
    assert found(audit_b, "equal pixels under different grades")["groups"] == known["disputed"]
    differ = rows["kl_grade"] != rows["kl_grade_reader2"]
    assert found(audit_b, "readers disagree")["files"] == differ.sum() > 0


def test_derived_sets_of_cohort_b(audit_b, cohort_b):
    _, rows = cohort_b
    known, sets = defects_b(len(rows)), audit_b.sets
    assert sets["raw"].all() and sets["deduplicated"].sum() == len(rows) - known["copies"] - 2 * known["disputed"]
    assert sets["single_knee"].sum() == sets["deduplicated"].sum() - known["two_knees"]
    assert sets["near_group"].nunique() == len(rows) - known["copies"] - known["disputed"] - known["near_copies"]


def test_the_second_reader_is_matched_by_pixels(cohort_b, seen_b):
    folder, rows = cohort_b
    blind = inspection.inspect(find_pictures(rows.assign(kl_grade_reader2=pd.array([pd.NA] * len(rows), "Int64")), folder))
    assert found(audit.audit(blind, "b", draws=20), "readers disagree")["detail"] == "one reader only"
    again = inspection.with_second_reader(blind, folder)["kl_grade_reader2"]
    unique = ~rows.duplicated("pixel_sha256", keep=False)
    assert (again[unique] == rows["kl_grade_reader2"][unique]).all() and again.equals(seen_b["kl_grade_reader2"])


def test_the_files_count_and_not_the_manifest(cohort_b, audit_b):
    folder, rows = cohort_b
    liar = rows.assign(width=224, height=224, bit_depth=8, channels=1, pixel_sha256=[f"{k:064d}" for k in range(len(rows))])
    lied = audit.audit(inspected(folder, liar), "b", draws=50)
    same = audit_b.findings["finding"] != "pixels differ from the manifest"
    assert lied.findings[same].equals(audit_b.findings[same]) and found(lied, "pixels differ from the manifest")["files"] == len(rows)


def test_every_count_has_its_files(audit_b, seen_b, tmp_path):
    counts = audit_b.affected_files.groupby("finding").agg(groups=("group", "nunique"), files=("image_id", "size"))
    for row in audit_b.findings.itertuples():
        if row.files and row.finding in counts.index:
            assert (row.groups, row.files) == tuple(counts.loc[row.finding]), row.finding
    audit_b.write(tmp_path / "out")
    for name, table in (("findings", audit_b.findings), ("affected_files", audit_b.affected_files), ("sets", audit_b.sets)):
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) == len(table)
    assert set(audit_b.affected_files["path"]) <= set(seen_b["path"]) and all(f"  {name} " in audit.as_text(audit_b) for name in counts.index)


# Planted defects


def test_clean_cohort_has_no_findings(seen_a):
    result = audit.audit(seen_a, "a", draws=50)
    files = result.findings.set_index("finding")["files"]
    assert (files.drop([name for name in files.index if "image-level" in name or name == "inverted pictures"]) == 0).all()


def test_leaks_across_the_official_split_are_found(cohort_a, tmp_path):
    folder, rows = cohort_a
    folder = shutil.copytree(folder, tmp_path / "copy")
    rows = rows.copy()
    a, b = rows.index[rows["split"] == "train"][:2]
    c, d = rows.index[rows["split"] == "test"][:2]
    shutil.copy(folder / rows.loc[a, "path"], folder / rows.loc[c, "path"])
    brighter = ImageEnhance.Brightness(Image.open(folder / rows.loc[b, "path"])).enhance(1.05)
    brighter.save(folder / rows.loc[d, "path"])
    e = rows.index[rows["split"] == "val"][0]
    rows.loc[e, "group_id"] = rows.loc[a, "group_id"]
    result = audit.audit(inspected(folder, rows), "a", draws=20)
    name = rows["image_id"]
    assert ids(result, "equal pixels across official split") == {name[a], name[c]}
    assert ids(result, "near-duplicates across official split") == {name[a], name[c], name[b], name[d]}
    assert name[e] in ids(result, "patients across official split") and found(result, "patients across official split")["groups"] == 1


def test_printed_folds_part_the_knees_of_patients_and_ours_do_not(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"image_id": [f"k{i}" for i in range(200)], "kl_grade": np.repeat(np.arange(100) % 5, 2), "group_id": np.repeat([f"p{i}" for i in range(100)], 2)})
    rows = rows.assign(split=np.where(np.arange(200) < 150, "train", "test"), path=rows["image_id"], pixel_sha256=rows["image_id"], width=224, height=224, bit_depth=8,
                       channels=1, mode="L", side="L", readable=True, problem="", as_in_manifest=True, polarity=1.0, kl_grade_reader2=pd.array([pd.NA] * 200, "Int64"),
                       perceptual_hash=[rng.bytes(32).hex() for _ in range(200)], **{name: rng.random(200) for name in inspection.INTENSITY})
    result = audit.audit(rows, "c", draws=20)
    assert found(result, "patients across image-level folds, as printed")["groups"] > 50
    assert found(result, "patients across patient folds, our protocol")["files"] == 0


def test_a_picture_of_the_training_cohort_in_the_external_one_is_found(cohort_b, seen_a, seen_b, cohort_a, tmp_path):
    folder = shutil.copytree(cohort_b[0], tmp_path / "copy")
    target = cohort_b[1]["path"].iloc[7]
    shutil.copy(cohort_a[0] / cohort_a[1]["path"].iloc[3], folder / target)
    clean, found_one = (audit.audit_all({"a": seen_a, "b": rows}, draws=10) for rows in (seen_b, inspected(folder, cohort_b[1])))
    assert found(clean, "also in a")["files"] == 0 and found(found_one, "also in a")["files"] == 1
    listed = found_one.affected_files[found_one.affected_files["finding"] == "also in a"]
    assert set(zip(listed["cohort"], listed["path"], strict=True)) == {("b", target), ("a", cohort_a[1]["path"].iloc[3])}
    assert "Pictures of b that are also in a: 1." in audit.in_words(found_one)


def test_cohorts_are_audited_together(seen_a, seen_b, audit_b, tmp_path):
    both = audit.audit_all({"a": seen_a, "b": seen_b}, draws=50)
    assert both.findings[both.findings["cohort"] == "b"].iloc[:-1].reset_index(drop=True).equals(audit_b.findings)
    assert both.findings.iloc[-1][["finding", "files"]].tolist() == ["also in a", 0]
    assert len(both.sets) == len(seen_a) + len(seen_b) and audit.audit_all({"b": seen_b}, draws=50).findings.equals(audit_b.findings)


def test_unreadable_and_misnamed_files_are_told_and_left_out(cohort_b, tmp_path):
    folder = shutil.copytree(cohort_b[0], tmp_path / "copy")
    rows = cohort_b[1]
    (folder / rows["path"].iloc[2]).write_bytes(b"no picture")
    Image.open(folder / rows["path"].iloc[9]).convert("L").save(folder / "x.jpg")
    (folder / "x.jpg").rename(folder / rows["path"].iloc[9])
    result = audit.audit(inspected(folder, rows), "b", draws=20)
    assert ids(result, "unreadable files") == {rows["image_id"].iloc[2]} and ids(result, "suffix and content differ") == {rows["image_id"].iloc[9]}
    assert len(result.sets) == len(rows) - 1


def test_nothing_readable_is_an_error(cohort_a, seen_a):
    with pytest.raises(StudyError, match="No file of a can be read; the first: broken"):
        audit.audit(seen_a.assign(readable=False, problem="broken"), "a")


# Near-duplicates


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40), threshold=st.integers(0, 130))
def test_near_groups_equal_single_linkage(seed, n, threshold):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n, 256))
    bits[n // 2 :] = np.where(rng.random((n - n // 2, 256)) < 0.1, 1 - bits[: n - n // 2], bits[: n - n // 2])
    rows = pd.DataFrame({"image_id": [f"k{i}" for i in range(n)], "path": [f"p ({i})" for i in range(n)], "perceptual_hash": [np.packbits(row).tobytes().hex() for row in bits]})
    ours = duplicates.near_groups(rows, threshold=threshold)
    theirs = fcluster(linkage(bits, "single", "hamming"), threshold / 256 + 1e-9, "distance")
    pairs = pd.DataFrame({"ours": ours, "theirs": theirs}).drop_duplicates()
    assert pairs["ours"].is_unique and pairs["theirs"].is_unique
    first = rows.groupby(theirs)["image_id"].first()
    assert set(ours) == set(first)  # paths are in natural order here
    nearest = duplicates.distances(rows["perceptual_hash"])
    every = (bits[:, None] != bits[None]).sum(2) + 1000 * np.eye(n, dtype=int)
    assert np.array_equal(nearest, np.minimum(every.min(1), 257))


def test_groups_that_belong_together_are_merged():
    rows = pd.DataFrame({"image_id": list("abcd"), "path": list("abcd"), "perceptual_hash": ["0" * 64, "f" * 64, "0" * 63 + "1", "5" * 64], "group_id": list("xyzy")})
    assert duplicates.near_groups(rows) == ["a", "b", "a", "d"] and duplicates.near_groups(rows, "group_id") == ["a", "b", "a", "b"]


@pytest.mark.parametrize("change", ["jpeg", "brighter", "scaled", "shifted"])
def test_changed_copies_are_near_and_other_knees_are_not(cohort_b, tmp_path, change):
    folder, rows = cohort_b
    single = rows[(rows["width"] == 300) & (rows["bit_depth"] == 8)].drop_duplicates("pixel_sha256").head(12)
    hashes, changed = [], []
    for path in single["path"]:
        picture = Image.open(folder / path).convert("L")
        other = {"jpeg": picture, "brighter": ImageEnhance.Brightness(picture).enhance(1.08), "scaled": picture.resize((225, 121)),
                 "shifted": picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0))}[change]
        other.save(tmp_path / "copy.jpg", quality=60)
        hashes.append(inspection._look(folder / path)[0]["perceptual_hash"])
        changed.append(inspection._look(tmp_path / "copy.jpg")[0]["perceptual_hash"])
    frame = pd.DataFrame({"image_id": [f"{i}" for i in range(24)], "path": [f"{i}" for i in range(24)], "perceptual_hash": hashes + changed})
    assert duplicates.near_groups(frame) == [f"{i}" for i in range(12)] * 2


# Polarity


def test_inverting_a_picture_is_noticed_for_any_picture(cohort_a, tmp_path):
    folder, rows = cohort_a
    for k in (0, 11, 23):
        copy = shutil.copytree(folder, tmp_path / str(k))
        path = copy / rows["path"].iloc[k]
        before = read_gray(path)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        assert np.allclose(read_gray(path), 1 - before, atol=1e-6)
        old, new = (ids(audit.audit(inspected(place, rows), "a", draws=10), "inverted pictures") for place in (folder, copy))
        assert old ^ new == {rows["image_id"].iloc[k]}


# Format shortcut


def formats(n, seed):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"kl_grade": np.arange(n) % 5, "group_id": [f"p{i // 2}" for i in range(n)], "width": 300, "height": 162, "bit_depth": 8, "channels": 1})
    return rows.assign(**{name: rng.random(n) for name in inspection.INTENSITY})


def test_a_planted_shortcut_is_found_and_its_place_named():
    rows = formats(200, 0)
    table = shortcut.predictability(rows, "group_id", draws=100).set_index("features")
    assert not table["above_chance"].any() and (table["chance"] == 0.2).all() and table.loc["size and depth"].isna().sum() == 4
    planted = rows.assign(bit_depth=np.where(rows["kl_grade"] == 4, 16, 8))
    table = shortcut.predictability(planted, "group_id", draws=100).set_index("features")
    assert table["above_chance"].to_dict() == {"size and depth": True, "gray values": False, "both": True}
    planted = rows.assign(mean=rows["kl_grade"] / 5 + 0.05 * rows["mean"])
    table = shortcut.predictability(planted, "group_id", draws=100).set_index("features")
    assert table.loc["gray values", "balanced_accuracy"] > 0.9 and not table.loc["size and depth", "above_chance"]


def test_groups_are_not_parted_by_the_shortcut_test():
    # Each group has its own intensity and one grade: only who knows the group could predict the grade.
    rows = formats(300, 1)
    group = np.arange(300) // 10
    rows = rows.assign(group_id=group.astype(str), kl_grade=np.random.default_rng(2).permutation(np.arange(30) % 5)[group], mean=group / 30)
    table = shortcut.predictability(rows, "group_id", draws=100)
    assert not table["above_chance"].any()


def test_too_few_pictures_for_the_shortcut_test_is_said(seen_a):
    assert shortcut.predictability(formats(4, 0), "group_id").empty
    few = seen_a.drop_duplicates("kl_grade")
    assert "too few" in found(audit.audit(few, "a"), "gray values predict the grade")["detail"]


# Keeping what was read


def test_inspection_survives_its_file(seen_b, cohort_b, tmp_path):
    broken = seen_b.copy()
    broken.loc[3, ["readable", "problem"]] = [False, "it, \"broke\""]
    broken.loc[3, [*inspection.FILE_COLUMNS, *inspection.INTENSITY, "polarity"]] = np.nan
    for frame in (seen_b, broken):
        inspection.write(frame, tmp_path / "files.csv")
        again = inspection.read(tmp_path / "files.csv", find_pictures(cohort_b[1], cohort_b[0]))
        assert audit.audit(again, "b", draws=20).findings.equals(audit.audit(frame, "b", draws=20).findings)


# The whole external set in miniature: its grades, repeats, readers, shapes and depths, with other pixels


def miniature(row):
    """A small picture with the shape, depth and channels of a manifest row; equal where the row's pixels are equal."""
    rng = np.random.default_rng(int(row.pixel_sha256[:8], 16))
    image = np.kron(rng.random((8, 32 if row.width == 640 else 15)), np.ones((2, 2)))
    if row.bit_depth == 16:
        return Image.fromarray((50_000 * image).astype(np.uint16))
    pixels = np.repeat((255 * image).astype(np.uint8)[..., None], 3, axis=2)
    pixels[..., 2] //= int(row.channels)  # three channels in the manifest means that they differ
    return Image.fromarray(pixels)


def test_right_answers_for_the_whole_external_set(gornale, tmp_path):
    order, count = np.random.default_rng(0).permutation(len(gornale)), dict.fromkeys(range(5), 0)
    for k in order:
        row, picture = gornale.iloc[k], miniature(gornale.iloc[k])
        second = int(row["kl_grade_reader2"])
        count[second] += 1
        for path in (row["path"], f"MedicalExpert-II/{second}X/XG{second} ({count[second]}).png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / path, compress_level=1)
    result = audit.audit(inspected(tmp_path, gornale.assign(kl_grade_reader2=pd.array([pd.NA] * 1650, "Int64"))), "gornale2020", draws=20)
    equal = found(result, "equal pixels")
    assert equal["groups"] == 63 and "1,579 unique pictures of 1,650" in equal["detail"] and found(result, "equal pixels under different grades")["groups"] == 3
    for name, files in (("two knees in one picture", 186), ("16-bit pictures", 80), ("colour pictures", 3), ("readers disagree", 11)):
        assert found(result, name)["files"] == files, name
    assert "kappa 0.991" in found(result, "readers disagree")["detail"] and "quadratic 0.998" in found(result, "readers disagree")["detail"]
    assert result.sets[list(sets.SUBSETS)].sum().tolist() == [1650, 1576, 1410]
    built = check.build("gornale2020", tmp_path)
    for column in ("image_id", "path", "kl_grade", "kl_grade_reader2", "group_id"):
        assert built[column].tolist() == gornale[column].tolist(), column
