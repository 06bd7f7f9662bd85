"""Verification: every way in which a folder can differ from its manifest, planted in a copy and found again."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.data import cohorts, verification
from koa_lib.data.manifest import find_pictures
from koa_lib.errors import StudyError

LAYOUTS = tuple(cohorts.facts("oai_chen2018").layouts.values())
BESIDE = ("auto_test", "MedicalExpert-II")
PUBLISHED = "KneeXrayData/ClsKLData/kneeKL224"


def noise(seed, shape=(30, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def saved_as(suffix, **options):
    """A defect: the picture is there in another container only."""

    def plant(root, path):
        file = root / path
        name = str(Path(path).with_suffix(suffix))
        Image.open(file).save(root / name, **options)
        file.unlink()
        return name

    return plant


def moved(place, keep=True):
    """A defect: the picture lies elsewhere; `place` makes the new path of its split, grade and name."""

    def plant(root, path):
        name = place(*path.split("/"))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, root / name)
        if not keep:
            changed(root, name)
        (root / path).unlink()
        return name

    return plant


def changed(root, path):
    with Image.open(root / path) as picture:
        pixels = np.array(picture)
    pixels[3, 5] ^= 1
    Image.fromarray(pixels).save(root / path)
    return path


def packed_otherwise(root, path):
    Image.open(root / path).save(root / path, compress_level=9)
    return path


def resized(root, path):
    Image.open(root / path).resize((50, 60)).save(root / path)
    return path


def filled(content):
    """A defect: the file holds other bytes, by a function of the right ones."""

    def plant(root, path):
        (root / path).write_bytes(content((root / path).read_bytes()))
        return path

    return plant


def removed(root, path):
    (root / path).unlink()
    return ""


def dangling(root, path):
    (root / path).unlink()
    os.symlink("nowhere.png", root / path)
    return path


def other_grade(split, grade, name):
    return f"{split}/{(int(grade) + 1) % 5}/{name}"


def other_split(split, grade, name):
    return f"{ {'train': 'val', 'val': 'test', 'test': 'train'}[split]}/{grade}/{name}"


# What is done to a picture's file, and the status that must be found; each returns the path of what lies there then.
DEFECTS = {
    "nothing": (lambda root, path: path, "as listed"),
    "written again": (packed_otherwise, "changed bytes, same pixels"),
    "bytes behind the end": (filled(lambda content: content + b"more"), "changed bytes, same pixels"),
    "lossless webp": (saved_as(".webp", lossless=True), "same pixels, other container"),
    "tiff": (saved_as(".tif"), "same pixels, other container"),
    "bmp": (saved_as(".bmp"), "same pixels, other container"),
    "jpeg": (saved_as(".jpg", quality=60), "re-encoded"),
    "lossy webp": (saved_as(".webp", quality=60), "re-encoded"),
    "one pixel": (changed, "changed pixels"),
    "another size": (resized, "changed pixels"),
    "another grade": (moved(other_grade), "wrong grade folder"),
    "another split": (moved(other_split), "wrong split folder"),
    "folder of another name": (moved(lambda split, grade, name: f"{split}/{grade} of 4/{name}"), "wrong folder"),
    "outside the grade folders": (moved(lambda split, grade, name: f"{split}/{name}"), "wrong grade folder"),
    "another name": (moved(lambda split, grade, name: f"{split}/{grade}/scan_{name}"), "renamed"),
    "another name in another grade": (moved(lambda split, grade, name: f"{split}/{(int(grade) + 2) % 5}/scan_{name}"), "renamed"),
    "no picture's suffix": (moved(lambda split, grade, name: f"{split}/{grade}/{name[:-4]}.txt"), "wrong extension"),
    "no suffix": (moved(lambda split, grade, name: f"{split}/{grade}/{name[:-4]}"), "wrong extension"),
    "empty": (filled(lambda content: b""), "unreadable"),
    "truncated": (filled(lambda content: content[: len(content) // 2]), "unreadable"),
    "no picture": (filled(lambda content: b"<html>sorry</html>"), "unreadable"),
    "a link to nowhere": (dangling, "unreadable"),
    "removed": (removed, "missing"),
}


def plant(root, rows, names):
    """Spoil rows of a folder by the names of defects; returns what the report must say about each."""
    expected = []
    for row, name in zip(rows, names, strict=True):
        defect, status = DEFECTS[name]
        expected.append((status, row.image_id, row.path, defect(root, row.path)))
    return expected


def plant_extras(root, rows):
    """Files without a row: a new picture, a second copy of a listed one, a damaged one, one in another container beside it."""
    noise(1).save(root / "train/0/9999999L.png")
    shutil.copyfile(root / rows[0].path, root / "train/1/copy.png")
    (root / "val/0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    beside = str(Path(rows[1].path).with_suffix(".webp"))
    Image.open(root / rows[1].path).save(root / beside, lossless=True)
    return [("extra", "", "", "train/0/9999999L.png"), ("extra", "", "", "train/1/copy.png"), ("unreadable", "", "", "val/0/broken.png"), ("extra", "", "", beside)]


def told(report):
    return list(report[["status", "image_id", "listed", "found"]].itertuples(index=False, name=None))


@pytest.fixture
def copy(cohort_a, tmp_path):
    """A copy of cohort A to spoil, and its manifest."""
    return Path(shutil.copytree(cohort_a[0], tmp_path / "copy")), cohort_a[1]


def spoiled_report(copy, name, row=0):
    root, manifest = copy
    expected = plant(root, [manifest.iloc[row]], [name])
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    (line,) = [line for line in report.itertuples() if line.image_id == manifest["image_id"][row]]
    assert (line.status, line.image_id, line.listed, line.found) == expected[0]
    assert (report[report["image_id"] != line.image_id]["status"] == "as listed").all()
    return line


@pytest.fixture(scope="module")
def all_defects(cohort_a, tmp_path_factory):
    """A copy with every defect at once: manifest, root, report, and what must be in it."""
    root, manifest = tmp_path_factory.mktemp("spoiled") / "copy", cohort_a[1]
    shutil.copytree(cohort_a[0], root)
    rows = list(manifest.itertuples())
    names = [*DEFECTS, *["nothing"] * (len(rows) - len(DEFECTS))]
    assert len(rows) >= len(DEFECTS) and names[0] == "nothing"
    expected = plant_extras(root, [rows[0], rows[0]]) + plant(root, rows, names)
    return manifest, root, *verification.verify(manifest, root, LAYOUTS, BESIDE), expected


def test_all_defects_in_one_folder_are_told_once_each(all_defects):
    manifest, root, found_root, report, expected = all_defects
    assert found_root == root and Counter(told(report)) == Counter(expected)
    assert len(report) == len(manifest) + sum(image_id == "" for _, image_id, _, _ in expected)
    assert set(report["status"]) == {*verification.GOOD, *verification.BAD}
    on_disk = [path.relative_to(root).as_posix() for split in ("train", "val", "test") for path in (root / split).rglob("*") if not path.is_dir()]
    assert sorted(on_disk) == sorted(name for name in report["found"] if name)


def test_what_needs_attention_and_what_does_not(all_defects):
    *_, report, expected = all_defects
    accepted = ("as listed", "changed bytes, same pixels", "same pixels, other container")
    assert Counter(told(verification.problems(report))) == Counter(line for line in expected if line[0] not in accepted)


def test_summary_names_every_bad_file_and_counts_every_status(all_defects):
    *_, report, _ = all_defects
    lines = verification.summary(report).splitlines()
    for status, count in Counter(report["status"]).items():
        (line,) = [line for line in lines if line.startswith(f"  {status}  ")]
        assert line.removeprefix(f"  {status}").split()[0] == str(count)
    for row in verification.problems(report).itertuples():
        assert sum(line.strip().split(": ")[0] == (row.found or row.listed) for line in lines) == 1


@settings(max_examples=12, deadline=None)
@given(planted=st.dictionaries(st.integers(0, 22), st.sampled_from(sorted(DEFECTS)), max_size=12), extras=st.booleans())
def test_any_mixture_of_defects_is_told_as_planted(cohort_a, tmp_path_factory, planted, extras):
    root, manifest = tmp_path_factory.mktemp("mixture") / "copy", cohort_a[1]
    shutil.copytree(cohort_a[0], root)
    rows = list(manifest.itertuples())
    sound = [row for k, row in enumerate(rows) if k not in planted]
    expected = plant_extras(root, sound) if extras else []
    expected += plant(root, rows, [planted.get(k, "nothing") for k in range(len(rows))])
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    shutil.rmtree(root)
    assert Counter(told(report)) == Counter(expected)


@pytest.mark.parametrize("name, state", [("another grade", "bytes as listed"), ("another split", "bytes as listed"),
                                         ("folder of another name", "bytes as listed")])
def test_misplaced_picture_is_told_where_it_belongs_and_whether_it_is_right(copy, name, state):
    line = spoiled_report(copy, name, 3)
    assert line.detail == f"listed as {line.listed}; {state}"


def test_misplaced_picture_that_was_written_again_is_told_to_be_right(copy):
    root, manifest = copy
    path = manifest["path"][3]
    packed_otherwise(root, path)
    moved(other_grade)(root, path)
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    (line,) = verification.problems(report).itertuples()
    assert (line.status, line.detail) == ("wrong grade folder", f"listed as {path}; pixels as listed")
    assert f"{line.found}: {line.detail}" in verification.summary(report)


def test_another_size_is_told_in_numbers(copy):
    line = spoiled_report(copy, "another size")
    assert line.detail == "50 instead of 224 pixels wide, 60 instead of 224 pixels high."


def test_another_depth_is_told_in_numbers(copy):
    root, manifest = copy
    file = root / manifest["path"][0]
    with Image.open(file) as picture:
        pixels = np.array(picture)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(file)
    (line,) = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).itertuples()
    assert (line.status, line.detail) == ("changed pixels", "16 instead of 8 bits.")


def test_one_changed_pixel_needs_no_detail(copy):
    assert spoiled_report(copy, "one pixel").detail == ""


def test_swapped_pictures_are_told_with_each_others_paths(copy):
    root, manifest = copy
    first, second = manifest["path"][[2, 9]]
    (root / first).rename(root / "kept")
    (root / second).rename(root / first)
    (root / "kept").rename(root / second)
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    found = {line.found: (line.status, line.listed, line.detail) for line in verification.problems(report).itertuples()}
    assert found == {first: ("changed pixels", first, f"holds the picture of {second}."), second: ("changed pixels", second, f"holds the picture of {first}.")}


def test_space_dropped_in_a_name_is_renamed_because_the_study_would_not_find_it(cohort_b, tmp_path):
    folder, manifest = cohort_b
    root = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = manifest["path"].iloc[-1]
    name = path.replace(" ", "")
    (root / path).rename(root / name)
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    (line,) = verification.problems(report).itertuples()
    assert name != path and (line.status, line.image_id, line.listed, line.found) == ("renamed", manifest["image_id"].iloc[-1], path, name)
    assert line.detail == f"listed as {path}; bytes as listed" and path not in set(find_pictures(manifest, root)["path"])


@pytest.mark.parametrize("name", ["empty", "truncated", "no picture", "a link to nowhere"])
def test_unreadable_picture_is_told_the_reason_without_its_path_again(copy, name):
    line = spoiled_report(copy, name)
    assert line.detail and line.found not in line.detail and str(copy[0]) not in line.detail


def test_unreadable_file_that_is_not_listed_is_told_to_be_removed(copy):
    root, manifest = copy
    (root / "val/0/broken.png").write_bytes(b"")
    (line,) = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).itertuples()
    assert (line.status, line.found, line.detail) == ("unreadable", "val/0/broken.png", "not listed: remove it")


@pytest.mark.parametrize("name", ["another name", "no picture's suffix"])
def test_renamed_picture_is_told_its_listed_name(copy, name):
    assert f"rename it to {copy[1]['path'][4]}" in spoiled_report(copy, name, 4).detail


def test_format_behind_a_wrong_suffix_is_told_but_a_wrong_picture_is_not_to_be_renamed(copy):
    root, manifest = copy
    file = root / manifest["path"][0]
    with Image.open(file) as picture:
        picture.load()
    picture.save(file, format="JPEG", quality=60)
    (line,) = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).itertuples()
    assert (line.status, line.found, line.detail) == ("changed pixels", manifest["path"][0], f"{file.name} is a JPEG file.")


@pytest.mark.parametrize("wrong", ["png called jpg", "tiff called png"])
def test_wrong_suffix_of_another_format_is_told(copy, wrong):
    root, manifest = copy
    file = root / manifest["path"][0]
    right = "png" if wrong == "png called jpg" else "tif"
    if wrong == "png called jpg":
        file = file.rename(file.with_suffix(".jpg"))
    else:
        with Image.open(file) as picture:
            picture.load()
        picture.save(file, format="TIFF")
    _, report = verification.verify(manifest, root, LAYOUTS, BESIDE)
    (line,) = verification.problems(report).itertuples()
    assert line.status == "wrong extension" and line.found == file.relative_to(root).as_posix() and f"Rename it to {file.stem}.{right}" in line.detail
    assert f"{line.found}: {line.detail}" in verification.summary(report)


def test_capital_suffix_is_no_problem(copy):
    root, manifest = copy
    file = root / manifest["path"][0]
    file.rename(file.with_suffix(".PNG"))
    assert verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).empty


def test_equal_pictures_under_other_names_are_each_told_once(cohort_b, tmp_path):
    folder, manifest = cohort_b
    root = Path(shutil.copytree(folder, tmp_path / "copy"))
    equal = manifest[manifest.duplicated("pixel_sha256", keep=False)]
    pair = equal[equal["pixel_sha256"] == equal["pixel_sha256"].iloc[0]]
    names = [str(Path(path).with_name(f"scan_{k}.png")) for k, path in enumerate(pair["path"])]
    for path, name in zip(pair["path"], names, strict=True):
        (root / path).rename(root / name)
    renamed = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1])
    assert set(renamed["status"]) == {"renamed"} and sorted(renamed["found"]) == sorted(names) and sorted(renamed["image_id"]) == sorted(pair["image_id"])
    (root / names[0]).unlink()
    statuses = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1])["status"]
    assert sorted(statuses) == ["missing", "renamed"]


def test_another_picture_of_the_same_name_is_not_moved_into_place(copy):
    root, manifest = copy
    row, other = manifest.iloc[0], manifest.iloc[1]
    elsewhere = [Path(other_grade(*row["path"].split("/"))), Path("train/9") / Path(row["path"]).name]
    for path in elsewhere:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    changed(root, other["path"])
    (root / other["path"]).rename(root / elsewhere[0])
    (root / row["path"]).rename(root / elsewhere[1])
    found = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).set_index("found")
    assert found.loc[str(elsewhere[1]), ["status", "image_id"]].tolist() == ["wrong grade folder", row["image_id"]]
    assert found.loc[str(elsewhere[0]), "status"] == "extra"
    (root / elsewhere[1]).unlink()
    found = verification.problems(verification.verify(manifest, root, LAYOUTS, BESIDE)[1]).set_index("status")
    assert sorted(found.loc[["missing"], "image_id"]) == sorted([row["image_id"], other["image_id"]])
    assert found.loc["extra", "detail"] == f"named like {row['path']}, with other pixels: fetch that one"


# Where the pictures lie


@pytest.mark.parametrize("inside", ["", "kaggle/archive", PUBLISHED])
@pytest.mark.parametrize("given_as", ["root", "above", "far above"])
def test_root_is_found_from_above_and_what_lies_beside_is_not_extra(cohort_a, tmp_path, inside, given_as):
    root = tmp_path / "data" / inside
    shutil.copytree(cohort_a[0], root)
    for path in cohort_a[1]["path"]:  # the published detector crops have the same names
        crop = root / "auto_test" / Path(*Path(path).parts[1:])
        crop.parent.mkdir(parents=True, exist_ok=True)
        crop.write_bytes(b"another crop")
    (root / "train" / "0" / "Thumbs.db").write_bytes(b"of the file manager")
    found, report = verification.verify(cohort_a[1], {"root": root, "above": root.parent, "far above": tmp_path}[given_as], LAYOUTS, BESIDE)
    assert found == root and list(report["status"]) == ["as listed"] * len(cohort_a[1])


@pytest.mark.parametrize("below", ["train", "train/0"])
def test_root_is_found_from_below(cohort_a, below):
    root, report = verification.verify(cohort_a[1], cohort_a[0] / below, LAYOUTS, BESIDE)
    inside = report["listed"].str.startswith(f"{below}/")
    assert root == cohort_a[0] and inside.any() and (report[inside]["status"] == "as listed").all()


def test_nothing_is_missing_seen_from_below(cohort_a):
    _, report = verification.verify(cohort_a[1], cohort_a[0] / "train", LAYOUTS, BESIDE)
    assert "missing" not in set(report["status"])


def with_other_size(cohort_a, base, named):
    """The cohort in a folder kneeKL224 that lacks a picture, and beside it kneeKL299 with all names and other pixels."""
    folder, manifest = cohort_a
    root = base / named
    shutil.copytree(folder, root)
    (root / manifest["path"][0]).unlink()
    for k, path in enumerate(manifest["path"]):
        file = root.with_name("kneeKL299") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(k).save(file)
    return root


@pytest.mark.parametrize("start", ["", "KneeXrayData", "KneeXrayData/ClsKLData", PUBLISHED])
def test_other_size_with_the_same_names_does_not_confuse(cohort_a, tmp_path, start):
    root = with_other_size(cohort_a, tmp_path, PUBLISHED)
    found, report = verification.verify(cohort_a[1], tmp_path / start, LAYOUTS, BESIDE)
    assert found == root and Counter(report["status"]) == {"as listed": len(cohort_a[1]) - 1, "missing": 1}


@pytest.mark.parametrize("named", ["kneeKL224", "ClsKLData/kneeKL224"])
def test_other_size_does_not_confuse_in_a_part_of_the_published_folders(cohort_a, tmp_path, named):
    root = with_other_size(cohort_a, tmp_path, named)
    found, _ = verification.verify(cohort_a[1], tmp_path, LAYOUTS, BESIDE)
    assert found == root


def test_external_cohort_with_its_second_reader_beside(cohort_b, tmp_path):
    folder, manifest = cohort_b
    root = Path(shutil.copytree(folder, tmp_path / "set" / "Digital Knee"))
    found, report = verification.verify(manifest, tmp_path, cohorts.facts("gornale2020").layouts.values(), BESIDE)
    assert found == root and list(report["status"]) == ["as listed"] * len(manifest)
    path = Path(manifest["path"].iloc[-1])
    (root / path).rename(root / path.parts[0] / "0Normal" / path.name)
    (line,) = verification.problems(verification.verify(manifest, tmp_path, LAYOUTS, BESIDE)[1]).itertuples()
    assert line.status == "wrong grade folder" and line.listed == str(path) and "/0Normal/" in line.found and str(path) in line.detail


@pytest.mark.parametrize("make, words", [
    (lambda place: None, "does not exist"), (lambda place: place.mkdir(), "holds none of the 24 pictures"),
    (lambda place: place.write_text("a file"), "is a file"), (lambda place: noise(1).save(place, "PNG"), "is a file")])
def test_folder_without_the_cohort_is_named(cohort_a, tmp_path, make, words):
    make(tmp_path / "knees")
    with pytest.raises(StudyError, match=f"knees {words}"):
        verification.verify(cohort_a[1], tmp_path / "knees", LAYOUTS, BESIDE)
