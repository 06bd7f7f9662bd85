"""Building a manifest and verifying a folder: every way in which files can differ, planted in a copy and
found again.
"""

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
from koa_lib.grades import GRADES, NAMES
from koa_lib.images.read import decode

LAYOUTS = tuple(cohorts.facts("oai_chen2018").layouts.values())
BESIDE = ("auto_test", "MedicalExpert-II")
PUBLISHED = "KneeXrayData/ClsKLData/kneeKL224"


def noise(path, seed, shape=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def rewritten(path, change=lambda pixels: pixels, **options):
    pixels = change(decode(path)[0].copy())
    Image.fromarray(pixels).save(path, **options)


def one_pixel(pixels):
    pixels[3, 5] ^= 1
    return pixels


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
    assert check.compare(tmp_path / "built.csv", name).startswith(f"{len(paths)} of them equal")


@pytest.mark.parametrize("cohort", ["a", "b"])
def test_phantom_manifest_is_built_again_byte_for_byte(cohort, request, tmp_path):
    folder, rows = request.getfixturevalue(f"cohort_{cohort}")
    lines = as_lines(check.build(f"phantom_{cohort}", folder), tmp_path)
    assert lines == as_lines(rows[COLUMNS], tmp_path)
    assert "no committed manifest" in check.compare(tmp_path / "built.csv", f"phantom_{cohort}")


def test_duplicate_group_is_named_after_a_picture_that_is_not_in_the_folder(shared, tmp_path):
    rows = cohorts.manifest("gornale2020")
    copy = Path(shutil.copytree(shared("gornale_sample"), tmp_path / "copy"))
    rows = rows[[(copy / path).is_file() for path in rows["path"]]]
    first = rows["group_id"].duplicated(keep=False) & (rows["group_id"] == rows["image_id"])
    for path in rows["path"][first]:
        (copy / path).unlink()
    built = check.build("gornale2020", copy)
    assert first.any() and built["group_id"].tolist() == rows["group_id"][~first].tolist()
    as_lines(built, tmp_path)
    sentence = check.compare(tmp_path / "built.csv", "gornale2020")
    assert sentence.startswith("0 of them") and "--readers" in sentence
    assert f"kl_grade_reader2 ({len(built)})" in sentence


def test_duplicate_group_is_named_after_its_first_picture_in_natural_order(cohort_b, tmp_path):
    twin = cohort_b[0] / cohort_b[1]["path"][0]
    noise(tmp_path / "MedicalExpert-I/0Normal/NormalG0 (1).png", 1)
    for name in ("0Normal/NormalG0 (10)", "0Normal/NormalG0 (9)", "1Doubtful/DoubtfulG1 (2)"):
        path = tmp_path / "MedicalExpert-I" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(twin, path)
    built = check.build("phantom_b", tmp_path)
    assert built["image_id"].tolist() == ["NormalG0(1)", "NormalG0(9)", "NormalG0(10)", "DoubtfulG1(2)"]
    assert built["group_id"].tolist() == ["NormalG0(1)", *["NormalG0(9)"] * 3]


@pytest.mark.parametrize("inside", ["", "kaggle/archive", PUBLISHED])
def test_what_lies_around_the_pictures_changes_nothing(cohort_a, tmp_path, inside):
    folder, rows = cohort_a
    root = Path(shutil.copytree(folder, tmp_path / "data" / inside))
    shutil.copytree(root / "train", root / "auto_test")  # detector crops have the names of listed pictures
    left_out = ["train/0/overview.png", "train/5/9999999L.png", "9999998L.png"]
    for name in (*left_out, "train/0/.ipynb_checkpoints/9999997L.png"):
        noise(root / name, 1)
    if inside == PUBLISHED:
        for path in rows["path"]:
            noise(root.with_name("kneeKL299") / path, 1)
    built = check.build("oai_chen2018", tmp_path)
    assert built.equals(rows[COLUMNS]) and {*built.attrs["left_out"]} == {root / name for name in left_out}
    part = rows[rows["split"] == "train"].reset_index(drop=True)
    assert check.build("phantom_a", root / "train").equals(part[COLUMNS])


def test_folder_is_the_label_and_a_lossless_copy_keeps_its_pixel_hash(copy_a, cohort_a):
    first, second = cohort_a[1]["path"][:2]
    saved_as(".bmp")(copy_a, first)
    moved("{split}/4/{stem}.png")(copy_a, second)
    built, listed = (rows.set_index("image_id") for rows in (check.build("phantom_a", copy_a), cohort_a[1]))
    first, second = Path(first).stem, Path(second).stem
    assert built.loc[second, "kl_grade"] == 4 and {*built.index} == {*listed.index}
    same = built.loc[first] == listed.loc[first, built.columns]
    assert same["pixel_sha256"] and not same["sha256"]


def test_unusable_pictures_are_told_at_once(copy_a, cohort_a):
    bad = [copy_a / path for path in cohort_a[1]["path"][[2, 9, 17]]]
    for path, content in zip(bad, (b"", bad[1].read_bytes()[:1500], b"<html>sorry</html>"), strict=True):
        path.write_bytes(content)
    jpeg = copy_a / cohort_a[1]["path"][20]
    rewritten(jpeg, format="JPEG")
    with pytest.raises(StudyError) as error:
        check.build("phantom_a", copy_a)
    head, *lines = str(error.value).splitlines()
    assert head.startswith("4 of 24 files")
    assert all(f"{path}: " in line for path, line in zip([*bad, jpeg], lines, strict=True))


@pytest.mark.parametrize("other", ["train/3/{}.png", "{}.bmp"])
def test_picture_that_is_there_twice_is_named(copy_a, cohort_a, other):
    path = copy_a / cohort_a[1]["path"][0]
    twin = copy_a / other.format(path.stem) if "train" in other else path.with_suffix(".bmp")
    twin.parent.mkdir(exist_ok=True)
    Image.open(path).save(twin)
    with pytest.raises(StudyError, match=f"image_id .*'{path.stem}' .*once only"):
        check.build("phantom_a", copy_a)


@pytest.mark.parametrize(
    "folder, words", [("gone", "is no folder"), ("empty", "none of"), ("file", "is no folder")]
)
def test_wrong_cohort_or_folder_is_named(cohort_a, tmp_path, folder, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for work in (
        lambda place: check.build("gornale2020", place),
        lambda place: check.verify(cohort_a[1], place),
        lambda place: find_pictures(cohort_a[1], place),
    ):
        with pytest.raises(StudyError, match=f"{tmp_path / folder}.* {words}"):
            work(tmp_path / folder)
    with pytest.raises(StudyError, match="'oai' is unknown"):
        check.build("oai", tmp_path)


# The second reader


def write_second_reader(folder, rows, seed):
    """The files again below MedicalExpert-II, in the second reader's grade folders and under new numbers."""
    shutil.rmtree(folder / "MedicalExpert-II", ignore_errors=True)
    for number, k in enumerate(np.random.default_rng(seed).permutation(len(rows))):
        grade = int(rows["kl_grade_reader2"].iloc[k])
        path = folder / f"MedicalExpert-II/{grade}{NAMES[grade]}/{NAMES[grade]}G{grade} ({number}).png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / rows["path"].iloc[k], path)


def test_second_reader_is_matched_by_pixels_in_any_container_and_stays_empty_where_he_has_none(
    copy_b, cohort_b
):
    rows = cohort_b[1]
    unique = rows[~rows.duplicated("pixel_sha256", keep=False)]
    write_second_reader(copy_b, unique.iloc[:12], 4)
    files = sorted((copy_b / "MedicalExpert-II").rglob("*.png"))
    for path in files[::3]:
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    files[1].write_bytes(b"")  # unreadable: left out
    built = check.build("phantom_b", copy_b)
    known = built["kl_grade_reader2"].notna()
    assert known.sum() == 11 and built["image_id"][known].isin(unique["image_id"][:12]).all()
    assert built["kl_grade_reader2"][known].tolist() == rows["kl_grade_reader2"][known].tolist()


@settings(max_examples=40, deadline=None)
@given(
    own=st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(GRADES)), min_size=1),
    second=st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(GRADES))),
)
def test_of_several_grades_for_equal_pixels_the_nearest_is_taken(own, second):
    found = check.nearest_grades(pd.DataFrame(own, columns=["pixel_sha256", "kl_grade"]), second)
    for (digest, grade), value in zip(own, found, strict=True):
        others = [other for name, other in second if name == digest]
        assert (
            pd.isna(value)
            if not others
            else value in others and abs(value - grade) == min(abs(other - grade) for other in others)
        )


@pytest.mark.parametrize("keys", [["image_id"], ["pixel_sha256"], ["renumbered", "pixel_sha256"]])
@pytest.mark.parametrize("separator, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_readers_file_counts_more_than_the_folder_as_spreadsheets_write_it(
    copy_b, cohort_b, tmp_path, keys, separator, encoding
):
    rows = cohort_b[1]
    own = rows.index[~rows.duplicated("pixel_sha256", keep=False)][0]
    spaced = rows["path"].str.extract(r"/([^/]+)\.png$")[0]
    table = rows.assign(image_id=spaced, renumbered=np.roll(spaced, 7))
    table["kl_grade_reader2"] = rows["kl_grade_reader2"].astype(float)
    table.loc[own, "kl_grade_reader2"] = np.nan  # so that pandas writes 1.0
    table = table[[*keys, "kl_grade_reader2"]].rename(columns={"renumbered": "image_id"})
    table.sample(frac=1, random_state=1).to_csv(
        tmp_path / "readers.csv", sep=separator, encoding=encoding, index=False
    )
    built = check.build("phantom_b", copy_b, tmp_path / "readers.csv")["kl_grade_reader2"]
    assert pd.isna(built[own]) and built.drop(own).tolist() == rows["kl_grade_reader2"].drop(own).tolist()


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ""),
        (b"", ""),
        (b"\xff\xfe\x00", ""),
        (b"name,grade\nx,1\n", "kl_grade_reader2"),
        (b"kl_grade_reader2\n1\n", "image_id"),
        (b"image_id,kl\nx,1\n", "kl_grade_reader2"),
        (b"image_id,kl_grade_reader2\nother,1\n", "none of the"),
        (b"pixel_sha256,kl_grade_reader2\nother,0\n", "none of the"),
        (b"image_id,kl_grade_reader2\nx,1\ny,NaN\n", "row 3.*'NaN'"),
        (b"image_id,kl_grade_reader2\nx,0\ny,1\nz,5\n", "row 4.*'5'"),
        (b"pixel_sha256,kl_grade_reader2\nx,1.5\n", "row 2.*'1.5'"),
        (b"image_id,kl_grade_reader2\nx (1),0\ny,1\nx(1),0\n", "row 4.*'x\\(1\\)'.*once only"),
    ],
)
def test_wrong_readers_file_is_named_with_the_row(cohort_b, tmp_path, content, words):
    readers = tmp_path / "readers.csv"
    if content is not None:
        readers.write_bytes(content)
    with pytest.raises(StudyError, match=f"^{readers}.*{words}"):
        check.build("phantom_b", cohort_b[0] / "MedicalExpert-I" / "4Severe", readers)


# Verifying


def saved_as(suffix, **options):
    """A defect: the picture is there in another container only."""

    def plant(root, path):
        name = str(Path(path).with_suffix(suffix))
        Image.open(root / path).save(root / name, **options)
        (root / path).unlink()
        return name

    return plant


def moved(place):
    """A defect: the picture lies elsewhere; `place` is its new path from split, grade, stem and others."""

    def plant(root, path):
        split, grade, stem = path.removesuffix(".png").split("/")
        other = {
            "other_grade": (int(grade) + 1) % 5,
            "other_split": {"train": "val", "val": "test", "test": "train"}[split],
        }
        name = place.format(split=split, grade=grade, stem=stem, **other)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(root / name)
        return name

    return plant


def filled(content):
    """A defect: the file holds other bytes, by a function of the right ones."""

    def plant(root, path):
        (root / path).write_bytes(content((root / path).read_bytes()))
        return path

    return plant


def changed(change=lambda pixels: pixels, **options):
    def plant(root, path):
        rewritten(root / path, change, **options)
        return path

    return plant


def removed(root, path):
    (root / path).unlink()
    return ""


def dangling(root, path):
    (root / path).unlink()
    os.symlink("nowhere.png", root / path)
    return path


OTHER_GRADE = "{split}/{other_grade}/{stem}.png"


# What is done to a picture's file, the status that must be found, and words of its detail.
DEFECTS = {
    "nothing": (lambda root, path: path, "as listed", ""),
    "written again": (changed(compress_level=9), "changed bytes, same pixels", ""),
    "bytes behind the end": (filled(lambda content: content + b"more"), "changed bytes, same pixels", ""),
    "lossless webp": (saved_as(".webp", lossless=True), "same pixels, other container", ""),
    "bmp": (saved_as(".bmp"), "same pixels, other container", ""),
    "lossy": (saved_as(".webp", quality=60), "re-encoded", ""),
    "one pixel": (changed(one_pixel), "changed pixels", ""),
    "another size": (
        changed(lambda pixels: pixels[:60, :50]),
        "changed pixels",
        "50 instead of 224 pixels wide, 60 instead of 224 pixels high.",
    ),
    "another depth": (
        changed(lambda pixels: pixels.astype(np.uint16) * 257),
        "changed pixels",
        "16 instead of 8 bits.",
    ),
    "lossy under its name": (changed(format="JPEG", quality=60), "changed pixels", " is a JPEG file."),
    "another grade": (moved(OTHER_GRADE), "wrong grade folder", "listed as {}; bytes as listed"),
    "another split": (
        moved("{other_split}/{grade}/{stem}.png"),
        "wrong split folder",
        "listed as {}; bytes as listed",
    ),
    "folder of another name": (
        moved("{split}/{grade} of 4/{stem}.png"),
        "wrong folder",
        "listed as {}; bytes as listed",
    ),
    "deeper": (moved("more/{split}/{grade}/{stem}.png"), "wrong folder", "listed as {}; bytes as listed"),
    "outside the grade folders": (
        moved("{split}/{stem}.png"),
        "wrong grade folder",
        "listed as {}; bytes as listed",
    ),
    "another name": (moved("{split}/{grade}/scan_{stem}.png"), "renamed", "rename it to {}"),
    "another name and grade": (moved("{split}/{other_grade}/scan_{stem}.png"), "renamed", "rename it to {}"),
    "no picture's suffix": (moved("{split}/{grade}/{stem}.txt"), "wrong extension", "rename it to {}"),
    "no suffix": (moved("{split}/{grade}/{stem}"), "wrong extension", "rename it to {}"),
    "another format's suffix": (
        moved("{split}/{grade}/{stem}.jpg"),
        "wrong extension",
        "a PNG file. Rename it to ",
    ),
    "empty": (filled(lambda content: b""), "unreadable", "empty"),
    "truncated": (filled(lambda content: content[: len(content) // 2]), "unreadable", "truncated"),
    "a link to nowhere": (dangling, "unreadable", "No such file"),
    "removed": (removed, "missing", ""),
}


def plant(root, rows, names):
    """Spoil rows of a folder by the names of defects; returns what the report must say about each."""
    return [
        (DEFECTS[name][1], row.image_id, row.path, DEFECTS[name][0](root, row.path))
        for row, name in zip(rows, names, strict=True)
    ]


def plant_extras(root, row):
    """Files without a row: a new picture, a second copy of a listed one, a damaged one, one in another
    container beside it.
    """
    noise(root / "train/0/9999999L.png", 1)
    shutil.copyfile(root / row.path, root / "train/1/copy.png")
    (root / "val/0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    beside = str(Path(row.path).with_suffix(".webp"))
    Image.open(root / row.path).save(root / beside, lossless=True)
    return [
        ("extra", "", "", "train/0/9999999L.png"),
        ("extra", "", "", "train/1/copy.png"),
        ("unreadable", "", "", "val/0/broken.png"),
        ("extra", "", "", beside),
    ]


def verified(manifest, root):
    """What a verification tells of a folder."""
    return check.verify(manifest, root, LAYOUTS, BESIDE)[1]


def told(report):
    return Counter(report[["status", "image_id", "listed", "found"]].itertuples(index=False, name=None))


def test_all_defects_in_one_folder_are_told_once_each(copy_a, cohort_a):
    rows = list(cohort_a[1].itertuples())
    assert len(rows) == len(DEFECTS)
    expected = plant_extras(copy_a, rows[0]) + plant(copy_a, rows, DEFECTS)
    root, report = check.verify(cohort_a[1], copy_a, LAYOUTS, BESIDE)
    assert (
        root == copy_a
        and told(report) == Counter(expected)
        and set(report["status"]) == {*check.GOOD, *check.BAD}
    )
    for row, (_, _, detail) in zip(rows, DEFECTS.values(), strict=True):
        said = report[report["image_id"] == row.image_id]["detail"].iloc[0]
        assert detail.format(row.path) in said and bool(detail) == bool(said) and str(copy_a) not in said
    assert report[report["found"] == "val/0/broken.png"]["detail"].item() == "not listed: remove it"
    bad = check.problems(report)
    assert told(bad) == Counter(line for line in expected if line[0] not in check.GOOD)
    lines = check.summary(report).splitlines()
    for status, count in Counter(report["status"]).items():
        assert sum(line.startswith(f"  {status:<29}{count:>6}") for line in lines) == 1
    named = [line.strip().split(": ")[0] for line in lines]
    assert all(named.count(row.found or row.listed) == 1 for row in bad.itertuples())


@settings(max_examples=10, deadline=None)
@given(
    planted=st.dictionaries(st.integers(0, 22), st.sampled_from(sorted(DEFECTS)), max_size=12),
    extras=st.booleans(),
)
def test_any_mixture_of_defects_is_told_as_planted(cohort_a, tmp_path_factory, planted, extras):
    root, manifest = tmp_path_factory.mktemp("mixture") / "copy", cohort_a[1]
    shutil.copytree(cohort_a[0], root)
    rows = list(manifest.itertuples())
    expected = plant_extras(root, rows[23]) if extras else []
    expected += plant(root, rows, [planted.get(k, "nothing") for k in range(len(rows))])
    assert told(verified(manifest, root)) == Counter(expected)
    shutil.rmtree(root)


def test_swapped_pictures_are_told_with_each_others_paths(copy_a, cohort_a):
    first, second = cohort_a[1]["path"][[2, 9]]
    for old, new in ((first, "kept"), (second, first), ("kept", second)):
        (copy_a / old).rename(copy_a / new)
    bad = check.problems(verified(cohort_a[1], copy_a))
    assert {*bad["status"]} == {"changed pixels"} and (bad["found"] == bad["listed"]).all()
    told = {f"holds the picture of {path}." for path in (second, first)}
    assert {*bad["detail"]} == told and second in bad.set_index("found")["detail"][first]


def test_misplaced_picture_that_was_written_again_is_told_to_have_its_pixels(copy_a, cohort_a):
    path = cohort_a[1]["path"][3]
    rewritten(copy_a / path, compress_level=9)
    moved(OTHER_GRADE)(copy_a, path)
    (line,) = check.problems(verified(cohort_a[1], copy_a)).itertuples()
    assert (line.status, line.detail) == ("wrong grade folder", f"listed as {path}; pixels as listed")


@pytest.mark.parametrize("place", [OTHER_GRADE, "more/{split}/{grade}/{stem}.png", "{split}/9/{stem}.dat"])
def test_namesake_with_other_pixels_stands_for_nobody(copy_a, cohort_a, place):
    row = cohort_a[1].iloc[0]
    rewritten(copy_a / row["path"], one_pixel)
    name = moved(place)(copy_a, row["path"])
    found = check.problems(verified(cohort_a[1], copy_a)).set_index("status")
    assert found.loc["missing", "image_id"] == row["image_id"] and row["path"] not in set(
        find_pictures(cohort_a[1], copy_a)["path"]
    )
    if name.endswith("png"):
        assert tuple(found.loc["extra", ["found", "detail"]]) == (
            name,
            f"named like {row['path']}, with other pixels: fetch that one",
        )
        shutil.copyfile(cohort_a[0] / row["path"], copy_a / "train/9.png")
        assert set(check.problems(verified(cohort_a[1], copy_a))["status"]) == {"renamed", "extra"}


def test_dropped_space_is_renamed(copy_b, cohort_b):
    path = cohort_b[1]["path"].iloc[-1]
    (copy_b / path).rename(copy_b / path.replace(" ", ""))
    (line,) = check.problems(verified(cohort_b[1], copy_b)).itertuples()
    expected = ("renamed", path, path.replace(" ", ""), f"listed as {path}; bytes as listed")
    assert (line.status, line.listed, line.found, line.detail) == expected


def test_equal_pictures_under_other_names_are_told_once_each(copy_b, cohort_b):
    manifest = cohort_b[1]
    twins = manifest[manifest.duplicated("pixel_sha256", keep=False)]
    pair = twins[twins["pixel_sha256"] == twins["pixel_sha256"].iloc[0]]
    names = [str(Path(path).with_name(f"scan_{k}.png")) for k, path in enumerate(pair["path"])]
    for path, name in zip(pair["path"], names, strict=True):
        (copy_b / path).rename(copy_b / name)
    found = check.problems(verified(manifest, copy_b))
    assert {*found["status"]} == {"renamed"} and sorted(found["found"]) == sorted(names)
    assert sorted(found["image_id"]) == sorted(pair["image_id"])
    (copy_b / names[0]).unlink()
    assert sorted(check.problems(verified(manifest, copy_b))["status"]) == ["missing", "renamed"]


def test_suffix_as_published_and_capital_suffix_are_no_problem(copy_a, cohort_a):
    first, second = (copy_a / path for path in cohort_a[1]["path"][:2])
    first.rename(first.with_suffix(".PNG"))
    second.rename(second.with_suffix(".jpg"))
    manifest = cohort_a[1].copy()
    manifest.loc[1, "path"] = manifest["path"][1].replace(".png", ".jpg")
    assert set(verified(manifest, copy_a)["status"]) == {"as listed"}


def test_file_that_the_system_refuses_is_told_and_the_others_go_on(copy_a, cohort_a, monkeypatch):
    listed, lost = cohort_a[1]["path"][[0, 1]]
    name = moved(OTHER_GRADE)(copy_a, lost)
    refused, real = {copy_a / listed, copy_a / name}, builtins.open

    def guarded(file, *more, **options):
        if not isinstance(file, int) and Path(file) in refused:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *more, **options)

    # The tests may run as root, for whom chmod 000 is no hindrance.
    monkeypatch.setattr(builtins, "open", guarded)
    report = verified(cohort_a[1], copy_a)
    bad = check.problems(report)
    expected = [("unreadable", listed), ("unreadable", name), ("missing", "")]
    assert [*zip(bad["status"], bad["found"], strict=True)] == expected and len(report) == 25
    assert bad["detail"].str.contains("Permission denied").tolist() == [True, True, False]
    with pytest.raises(StudyError, match="2 of 24 files"):
        check.build("phantom_a", copy_a)


@pytest.mark.parametrize("start", ["", "KneeXrayData", PUBLISHED, f"{PUBLISHED}/train"])
def test_root_is_found_beside_another_size_with_the_same_names(cohort_a, tmp_path, start):
    root, manifest = tmp_path / PUBLISHED, cohort_a[1]
    shutil.copytree(cohort_a[0], root)
    lost = manifest["path"][manifest["split"] == "test"].iloc[0]
    (root / lost).unlink()
    for path in manifest["path"]:
        noise(root.with_name("kneeKL299") / path, 1)
        (root / "auto_test" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "auto_test" / path).write_bytes(b"another crop")
    found, report = check.verify(manifest, tmp_path / start, LAYOUTS, BESIDE)
    assert found == root and Counter(report["status"]) == {"as listed": 23, "missing": 1}
