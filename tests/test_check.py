"""Building a manifest and verifying a folder: every way in which files can differ, planted."""

import builtins
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.data import check, cohorts
from koa_lib.data.files import find_pictures
from koa_lib.data.manifest import COLUMNS, natural
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.read import decode

LAYOUTS = tuple(cohorts.facts("oai_chen2018").layouts.values())
PUBLISHED = "KneeXrayData/ClsKLData/kneeKL224"


def noise(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8)).save(path)


def one_pixel(pixels):
    pixels[3, 5] ^= 1
    return pixels


# Defects: functions that spoil the file of a listed path and return the path of what is there afterwards


def again(suffix=".png", change=lambda pixels: pixels, **options):
    """The picture is written again, perhaps changed or in another container."""

    def plant(root, path):
        pixels, name = change(decode(root / path)[0].copy()), str(Path(path).with_suffix(suffix))
        (root / path).unlink()
        Image.fromarray(pixels).save(root / name, **options)
        return name

    return plant


def moved(place):
    """The file lies elsewhere; `place` is its new path from split, grade, stem and others."""

    def plant(root, path):
        split, grade, stem = path.removesuffix(".png").split("/")
        other_split = {"train": "val", "val": "test", "test": "train"}[split]
        name = place.format(**locals(), other_grade=(int(grade) + 1) % 5)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(root / name)
        return name

    return plant


def filled(content):
    """The file holds other bytes, by a function of the right ones."""

    def plant(root, path):
        (root / path).write_bytes(content((root / path).read_bytes()))
        return path

    return plant


def removed(root, path):
    (root / path).unlink()
    return ""


def dangling(root, path):
    removed(root, path)
    os.symlink("nowhere.png", root / path)
    return path


OTHER_GRADE = "{split}/{other_grade}/{stem}.png"
# The status that must be found, and words of its detail, with the listed path for {}.
DEFECTS = {
    "nothing": (lambda root, path: path, "as listed", ""),
    "written again": (again(compress_level=9), "changed bytes, same pixels", ""),
    "bytes behind the end": (filled(lambda content: content + b"more"), "changed bytes, same pixels", ""),
    "lossless webp": (again(".webp", lossless=True), "same pixels, other container", ""),
    "bmp": (again(".bmp"), "same pixels, other container", ""),
    "lossy": (again(".webp", quality=60), "re-encoded", ""),
    "one pixel": (again(change=one_pixel), "changed pixels", ""),
    "another size": (again(change=lambda pixels: pixels[:60]), "changed pixels", "60 instead of 224"),
    "another depth": (again(change=lambda pixels: pixels * np.uint16(257)), "changed pixels", "16 instead"),
    "lossy under its name": (again(format="JPEG", quality=60), "changed pixels", "JPEG"),
    "another grade": (moved(OTHER_GRADE), "wrong grade folder", "{}; bytes"),
    "another split": (moved("{other_split}/{grade}/{stem}.png"), "wrong split folder", "{}; bytes"),
    "folder of another name": (moved("{split}/{grade} of 4/{stem}.png"), "wrong folder", "{}; bytes"),
    "deeper": (moved("more/{split}/{grade}/{stem}.png"), "wrong folder", "{}; bytes"),
    "outside the grade folders": (moved("{split}/{stem}.png"), "wrong grade folder", "{}; bytes"),
    "another name": (moved("{split}/{grade}/scan_{stem}.png"), "renamed", "{}"),
    "another name and grade": (moved("{split}/{other_grade}/scan_{stem}.png"), "renamed", "{}"),
    "no picture's suffix": (moved("{split}/{grade}/{stem}.txt"), "wrong extension", "{}"),
    "no suffix": (moved("{split}/{grade}/{stem}"), "wrong extension", "{}"),
    "another format's suffix": (moved("{split}/{grade}/{stem}.jpg"), "wrong extension", "PNG"),
    "empty": (filled(lambda content: b""), "unreadable", "empty"),
    "truncated": (filled(lambda content: content[: len(content) // 2]), "unreadable", "truncated"),
    "a link to nowhere": (dangling, "unreadable", "No such file"),
    "removed": (removed, "missing", ""),
}


@pytest.fixture
def copy_a(cohort_a, tmp_path):
    return Path(shutil.copytree(cohort_a[0], tmp_path / "copy"))


@pytest.fixture
def copy_b(cohort_b, tmp_path):
    return Path(shutil.copytree(cohort_b[0], tmp_path / "copy"))


# Building


def as_lines(frame, folder):
    frame.to_csv(folder / "built.csv", index=False, lineterminator="\n")
    return (folder / "built.csv").read_bytes().splitlines()


@pytest.mark.parametrize(
    "name, folder", [("oai_chen2018", "oai_original_sample"), ("gornale2020", "gornale_sample")]
)
def test_rows_of_published_files_are_the_committed_ones_byte_for_byte(shared, tmp_path, name, folder):
    committed = cohorts.MANIFESTS / f"{name}.csv"
    head, *lines = as_lines(check.build(name, shared(folder), readers=committed), tmp_path)
    paths = [path.relative_to(shared(folder)).as_posix() for path in shared(folder).rglob("*.png")]
    assert {head, *lines} <= set(committed.read_bytes().splitlines())
    assert [line.split(b",")[1].decode() for line in lines] == sorted(paths, key=natural)
    assert f"{len(paths)} of them equal" in check.compare(tmp_path / "built.csv", name)


@pytest.mark.parametrize("cohort", ["a", "b"])
def test_phantom_manifest_is_built_again_byte_for_byte(cohort, request, tmp_path):
    folder, rows = request.getfixturevalue(f"cohort_{cohort}")
    assert as_lines(check.build(f"phantom_{cohort}", folder), tmp_path) == as_lines(rows[COLUMNS], tmp_path)


def test_duplicate_group_is_named_after_a_picture_that_is_not_in_the_folder(shared, tmp_path):
    rows = cohorts.manifest("gornale2020")
    copy = Path(shutil.copytree(shared("gornale_sample"), tmp_path / "copy"))
    rows = rows[[(copy / path).is_file() for path in rows["path"]]]
    first = rows["group_id"].duplicated(keep=False) & (rows["group_id"] == rows["image_id"])
    for path in rows["path"][first]:
        (copy / path).unlink()
    built = check.build("gornale2020", copy)
    assert first.any() and built["group_id"].tolist() == rows["group_id"][~first].tolist()
    as_lines(built, tmp_path)  # without the second reader's file every row differs in his grade
    assert f"kl_grade_reader2 ({len(built)})" in check.compare(tmp_path / "built.csv", "gornale2020")


def test_duplicate_group_is_named_after_its_first_picture_in_natural_order(cohort_b, tmp_path):
    for name in ("0Normal/NormalG0 (10)", "0Normal/NormalG0 (9)", "1Doubtful/DoubtfulG1 (2)"):
        path = tmp_path / "MedicalExpert-I" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cohort_b[0] / cohort_b[1]["path"][0], path)
    built = check.build("phantom_b", tmp_path)
    assert built["image_id"].tolist() == ["NormalG0(9)", "NormalG0(10)", "DoubtfulG1(2)"]
    assert set(built["group_id"]) == {"NormalG0(9)"}


def test_what_lies_around_the_pictures_changes_nothing(cohort_a, tmp_path):
    root = Path(shutil.copytree(cohort_a[0], tmp_path / PUBLISHED))
    shutil.copytree(root / "train", root / "auto_test")  # detector crops have the names of listed pictures
    left_out = {root / "train/0/overview.png", root / "train/5/9999999L.png", root / "9999998L.png"}
    other_size = (root.with_name("kneeKL299") / path for path in cohort_a[1]["path"])
    for path in (*left_out, *other_size, root / "train/0/.ipynb_checkpoints/9999997L.png"):
        noise(path)
    built = check.build("oai_chen2018", tmp_path)
    assert built.equals(cohort_a[1][COLUMNS]) and {*built.attrs["left_out"]} == left_out


def test_a_part_of_a_cohort_gives_its_rows(cohort_a):
    folder, rows = cohort_a
    part = rows[rows["split"] == "train"].reset_index(drop=True)
    assert check.build("phantom_a", folder / "train").equals(part[COLUMNS])


def test_folder_is_the_label(copy_a, cohort_a):
    row = cohort_a[1].query("kl_grade < 4").iloc[0]
    moved("{split}/4/{stem}.png")(copy_a, row["path"])
    built = check.build("phantom_a", copy_a).set_index("image_id")["kl_grade"]
    assert built[row["image_id"]] == 4 and set(built.index) == set(cohort_a[1]["image_id"])


def test_unusable_pictures_are_told_at_once(copy_a, cohort_a):
    paths = cohort_a[1]["path"][[2, 9, 20]]
    for path, name in zip(paths, ("empty", "truncated", "lossy under its name"), strict=True):
        DEFECTS[name][0](copy_a, path)
    with pytest.raises(StudyError, match="3 of 24") as error:
        check.build("phantom_a", copy_a)
    assert all(f"{copy_a / path}: " in str(error.value) for path in paths)


@pytest.mark.parametrize("other", ["train/3/{}.png", "train/0/{}.bmp"])
def test_picture_that_is_there_twice_is_named(copy_a, cohort_a, other):
    path = copy_a / cohort_a[1]["path"][0]
    Image.open(path).save(copy_a / other.format(path.stem))
    with pytest.raises(StudyError, match=f"image_id .*'{path.stem}'"):
        check.build("phantom_a", copy_a)


@pytest.mark.parametrize("folder", ["gone", "empty", "file"])
@pytest.mark.parametrize("work", [check.verify, find_pictures, lambda _, to: check.build("phantom_a", to)])
def test_wrong_folder_is_named(cohort_a, tmp_path, folder, work):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=f"{tmp_path / folder}"):
        work(cohort_a[1], tmp_path / folder)


# The second reader


def test_second_reader_is_matched_by_pixels_and_stays_empty_without_one(copy_b, cohort_b):
    for file in sorted((copy_b / check.SECOND_READER).rglob("*.png"))[::9]:
        again(".tif")(copy_b, file.relative_to(copy_b))
    built = check.build("phantom_b", copy_b)["kl_grade_reader2"]
    assert built.tolist() == cohort_b[1]["kl_grade_reader2"].tolist()
    shutil.rmtree(copy_b / check.SECOND_READER)
    assert check.build("phantom_b", copy_b)["kl_grade_reader2"].isna().all()


pictured = st.tuples(st.sampled_from("pqr"), st.sampled_from(GRADES))


@settings(max_examples=40, deadline=None)
@given(own=st.lists(pictured, min_size=1), second=st.lists(pictured))
def test_of_several_grades_for_equal_pixels_the_nearest_is_taken(own, second):
    found = check.nearest_grades(pd.DataFrame(own, columns=["pixel_sha256", "kl_grade"]), second)
    for (digest, grade), value in zip(own, found, strict=True):
        others = {other: abs(other - grade) for name, other in second if name == digest}
        assert others[value] == min(others.values()) if others else pd.isna(value)


@pytest.mark.parametrize("separator, encoding, key", [
    (",", "utf-8", "image_id"), (";", "utf-8-sig", "pixel_sha256"), ("\t", "utf-8", "image_id"),
])  # fmt: skip
def test_readers_file_is_taken_as_spreadsheets_write_it(cohort_b, tmp_path, separator, encoding, key):
    rows = cohort_b[1].query("kl_grade == 0")
    grades = rows["kl_grade_reader2"].astype(float)
    grades[0] = np.nan  # so that pandas writes 1.0
    names = [Path(path).stem for path in rows["path"]]  # with their space
    table = rows.assign(image_id=names, kl_grade_reader2=grades)[[key, "kl_grade_reader2"]]
    table[::-1].to_csv(tmp_path / "readers.csv", sep=separator, encoding=encoding, index=False)
    folder = cohort_b[0] / "MedicalExpert-I" / "0Normal"
    built = check.build("phantom_b", folder, tmp_path / "readers.csv")["kl_grade_reader2"]
    assert pd.isna(built[0]) and built[1:].tolist() == grades[1:].tolist()


@pytest.mark.parametrize("content, words", [
    (b"", ""),
    (b"\xff\xfe\x00", ""),
    (b"image_id,kl\nx,1\n", "kl_grade_reader2"),
    (b"kl_grade_reader2\n1\n", "image_id"),
    (b"pixel_sha256,kl_grade_reader2\nother,0\n", ""),
    (b"image_id,kl_grade_reader2\nx,1\ny,NaN\n", "row 3.*'NaN'"),
    (b"pixel_sha256,kl_grade_reader2\nx,1.5\n", "row 2.*'1.5'"),
    (b"image_id,kl_grade_reader2\nx (1),0\ny,1\nx(1),0\n", "row 4.*'x\\(1\\)'"),
])  # fmt: skip
def test_wrong_readers_file_is_named_with_the_row(cohort_b, tmp_path, content, words):
    readers = tmp_path / "readers.csv"
    readers.write_bytes(content)
    with pytest.raises(StudyError, match=f"^{readers}.*{words}"):
        check.build("phantom_b", cohort_b[0] / "MedicalExpert-I" / "4Severe", readers)


# Verifying


def plant(root, rows, names):
    """Spoil rows of a folder by the names of defects; returns what the report must say about each."""
    return [
        (DEFECTS[name][1], row.image_id, row.path, DEFECTS[name][0](root, row.path))
        for row, name in zip(rows, names, strict=True)
    ]


def plant_extras(root, row):
    """Files without a row: a new picture, a copy of a listed one, a damaged one, one in another container."""
    noise(root / "train/0/9999999L.png")
    shutil.copyfile(root / row.path, root / "train/1/copy.png")
    (root / "val/0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    beside = str(Path(row.path).with_suffix(".webp"))
    Image.open(root / row.path).save(root / beside, lossless=True)
    extras = [("extra", "", "", name) for name in ("train/0/9999999L.png", "train/1/copy.png", beside)]
    return [*extras, ("unreadable", "", "", "val/0/broken.png")]


def verified(manifest, root):
    """What a verification tells of a folder."""
    return check.verify(manifest, root, LAYOUTS, ["MedicalExpert-II"])[1]


def bad(manifest, root):
    """The files that a verification finds wrong."""
    return check.problems(verified(manifest, root))


def told(report):
    return Counter(report[["status", "image_id", "listed", "found"]].itertuples(index=False, name=None))


def test_all_defects_in_one_folder_are_told_once_each_with_what_to_know(copy_a, cohort_a):
    rows = list(cohort_a[1].itertuples())
    expected = plant_extras(copy_a, rows[0]) + plant(copy_a, rows, DEFECTS)
    report = verified(cohort_a[1], copy_a)
    assert told(report) == Counter(expected) and set(report["status"]) == {*check.GOOD, *check.BAD}
    details = report.set_index("image_id")["detail"]
    for row, (_, _, detail) in zip(rows, DEFECTS.values(), strict=True):
        said = details[row.image_id]
        assert detail.format(row.path) in said and bool(detail) == bool(said) and str(copy_a) not in said
    text = check.summary(report)
    assert all((row.found or row.listed) in text for row in check.problems(report).itertuples())


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(st.integers(0, 22), st.sampled_from(sorted(DEFECTS)), max_size=12), st.booleans())
def test_any_mixture_of_defects_is_told_as_planted(cohort_a, tmp_path_factory, planted, extras):
    root, rows = tmp_path_factory.mktemp("mixture") / "copy", list(cohort_a[1].itertuples())
    shutil.copytree(cohort_a[0], root)
    expected = plant_extras(root, rows[23]) if extras else []
    expected += plant(root, rows, [planted.get(k, "nothing") for k in range(len(rows))])
    assert told(verified(cohort_a[1], root)) == Counter(expected)
    shutil.rmtree(root)


def test_swapped_pictures_are_told_with_each_others_paths(copy_a, cohort_a):
    first, second = cohort_a[1]["path"][[2, 9]]
    for old, new in ((first, "kept"), (second, first), ("kept", second)):
        (copy_a / old).rename(copy_a / new)
    found = bad(cohort_a[1], copy_a).set_index("found")
    assert {*found["status"]} == {"changed pixels"} and (found.index == found["listed"]).all()
    assert second in found["detail"][first] and first in found["detail"][second]


@pytest.mark.parametrize("place", [OTHER_GRADE, "more/{split}/{grade}/{stem}.png", "{split}/9/{stem}.dat"])
def test_namesake_with_other_pixels_stands_for_nobody(copy_a, cohort_a, place):
    row = cohort_a[1].iloc[0]
    name = moved(place)(copy_a, again(change=one_pixel)(copy_a, row["path"]))
    expected = {("missing", row["image_id"], row["path"], "")}
    assert set(told(bad(cohort_a[1], copy_a))) - {("extra", "", "", name)} == expected
    assert row["path"] not in set(find_pictures(cohort_a[1], copy_a)["path"])
    shutil.copyfile(cohort_a[0] / row["path"], copy_a / "train/9.png")  # this one does
    assert "renamed" in set(bad(cohort_a[1], copy_a)["status"])


def test_equal_pictures_under_other_names_are_told_once_each(copy_b, cohort_b):
    twins = cohort_b[1][cohort_b[1].duplicated("pixel_sha256", keep=False)]
    pair = twins[twins["pixel_sha256"] == twins["pixel_sha256"].iloc[0]]["path"]
    for path in pair:
        (copy_b / path).rename(copy_b / path.replace(" ", ""))
    found = bad(cohort_b[1], copy_b)
    assert {*found["status"]} == {"renamed"} and sorted(found["listed"]) == sorted(pair)
    (copy_b / found["found"].iloc[0]).unlink()
    assert sorted(bad(cohort_b[1], copy_b)["status"]) == ["missing", "renamed"]


def test_suffix_as_published_and_capital_suffix_are_no_problem(copy_a, cohort_a):
    first, second = (copy_a / path for path in cohort_a[1]["path"][:2])
    first.rename(first.with_suffix(".PNG"))
    second.rename(second.with_suffix(".jpg"))
    manifest = cohort_a[1].copy()
    manifest.loc[1, "path"] = manifest["path"][1].replace(".png", ".jpg")
    assert set(verified(manifest, copy_a)["status"]) == {"as listed"}


def test_file_that_the_system_refuses_is_told_and_the_others_go_on(copy_a, cohort_a, monkeypatch):
    listed, real = cohort_a[1]["path"][0], builtins.open

    def guarded(file, *more, **options):
        if file == copy_a / listed:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *more, **options)

    # The tests may run as root, for whom chmod 000 is no hindrance.
    monkeypatch.setattr(builtins, "open", guarded)
    (line,) = bad(cohort_a[1], copy_a).itertuples()
    assert (line.status, line.found) == ("unreadable", listed) and "Permission denied" in line.detail


@pytest.mark.parametrize("start", ["", "KneeXrayData", PUBLISHED, f"{PUBLISHED}/train"])
def test_root_is_found_beside_another_size_with_the_same_names(cohort_a, tmp_path, start):
    root, manifest = tmp_path / PUBLISHED, cohort_a[1]
    shutil.copytree(cohort_a[0], root)
    (root / manifest["path"][manifest["split"] == "test"].iloc[0]).unlink()
    for path in manifest["path"]:
        noise(root.with_name("kneeKL299") / path)
    found, report = check.verify(manifest, tmp_path / start, LAYOUTS)
    assert found == root and Counter(report["status"]) == {"as listed": 23, "missing": 1}
