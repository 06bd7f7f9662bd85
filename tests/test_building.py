"""Building a manifest from files: it equals the committed one, whatever lies around the pictures and however the second reader named them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.data import building, cohorts
from koa_lib.data.manifest import COLUMNS, natural
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.images.read import decode, describe


def as_lines(frame, folder):
    frame.to_csv(folder / "built.csv", index=False, lineterminator="\n")
    return (folder / "built.csv").read_bytes().splitlines()


def committed(name):
    return (cohorts.MANIFESTS / f"{name}.csv").read_bytes().splitlines()


def names_below(folder):
    return sorted((path.relative_to(folder).as_posix() for path in folder.rglob("*.png")), key=natural)


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)).save(path)


@pytest.fixture
def copy_a(cohort_a, tmp_path):
    return Path(shutil.copytree(cohort_a[0], tmp_path / "copy"))


@pytest.fixture
def copy_b(cohort_b, tmp_path):
    return Path(shutil.copytree(cohort_b[0], tmp_path / "copy"))


@pytest.fixture
def sample(shared):
    """Rows of Gornale's manifest whose pictures are here, and their folder."""
    folder = shared("gornale_sample")
    manifest = cohorts.manifest("gornale2020")
    return folder, manifest[manifest["path"].isin(names_below(folder))].reset_index(drop=True)


# Equal to the committed manifests


@pytest.mark.parametrize("name, folder", [("oai_chen2018", "oai_original_sample"), ("gornale2020", "gornale_sample")])
def test_rows_of_published_files_are_the_committed_ones_byte_for_byte(shared, tmp_path, name, folder):
    head, *lines = as_lines(building.build(name, shared(folder), readers=cohorts.MANIFESTS / f"{name}.csv"), tmp_path)
    ours, *theirs = committed(name)
    paths = [f",{path},".encode() for path in names_below(shared(folder))]
    assert head == ours and len(lines) == len(paths) and all(path in line for path, line in zip(paths, lines, strict=True))
    assert set(lines) <= set(theirs)
    assert f"{len(lines)} of them equal the committed manifest byte for byte" in building.compare(tmp_path / "built.csv", name)


def test_second_reader_stays_empty_without_file_and_folder(sample):
    folder, rows = sample
    built = building.build("gornale2020", folder)
    assert built["kl_grade_reader2"].isna().all() and built.drop(columns="kl_grade_reader2").equals(rows[COLUMNS].drop(columns="kl_grade_reader2"))


def test_duplicate_group_is_named_after_a_picture_that_is_not_in_the_folder(sample, tmp_path):
    folder, rows = sample
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    first = rows["group_id"].duplicated(keep=False) & (rows["group_id"] == rows["image_id"])
    for path in rows["path"][first]:
        (copy / path).unlink()
    rest = rows[~first]
    assert len(rest) < len(rows) and building.build("gornale2020", copy)["group_id"].tolist() == rest["group_id"].tolist()


def test_duplicate_group_is_named_after_its_first_picture_in_natural_order(cohort_b, tmp_path):
    twin = cohort_b[0] / cohort_b[1]["path"][0]
    for name in ("0Normal/NormalG0 (10).png", "0Normal/NormalG0 (9).png", "1Doubtful/DoubtfulG1 (2).png"):
        path = tmp_path / "MedicalExpert-I" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(twin, path)
    noise(tmp_path / "MedicalExpert-I/0Normal/NormalG0 (1).png", 1)
    built = building.build("phantom_b", tmp_path).set_index("image_id")["group_id"]
    assert built.to_dict() == {"NormalG0(1)": "NormalG0(1)", "NormalG0(9)": "NormalG0(9)", "NormalG0(10)": "NormalG0(9)", "DoubtfulG1(2)": "NormalG0(9)"}


@pytest.mark.parametrize("cohort", ["a", "b"])
def test_phantom_manifest_is_built_again_byte_for_byte(cohort, cohort_a, cohort_b, tmp_path):
    folder, rows = {"a": cohort_a, "b": cohort_b}[cohort]
    assert as_lines(building.build(f"phantom_{cohort}", folder), tmp_path) == as_lines(rows[COLUMNS], tmp_path)


# The second reader


def write_second_reader(folder, rows, seed):
    """The files again below MedicalExpert-II, in the second reader's grade folders and under new numbers."""
    for number, k in enumerate(np.random.default_rng(seed).permutation(len(rows))):
        grade = int(rows["kl_grade_reader2"][k])
        path = folder / f"MedicalExpert-II/{grade}{NAMES[grade]}/{NAMES[grade]}G{grade} ({number}).png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / rows["path"][k], path)


def test_second_reader_is_matched_by_pixels_never_by_name(sample, tmp_path):
    folder, rows = sample
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    unique = rows.index[~rows.duplicated("pixel_sha256", keep=False)]
    rows.loc[unique[::4], "kl_grade_reader2"] = (rows["kl_grade"][unique[::4]] + 1) % 5  # the readers of the sample agree
    write_second_reader(copy, rows, 3)
    assert building.build("gornale2020", copy).equals(rows[COLUMNS])


def test_second_reader_is_matched_in_another_container_too(copy_b, cohort_b):
    for path in sorted((copy_b / "MedicalExpert-II").rglob("*.png"))[::3]:
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    assert building.build("phantom_b", copy_b).equals(cohort_b[1][COLUMNS])


def test_pictures_that_the_second_reader_lacks_stay_empty(copy_b, cohort_b):
    rows = cohort_b[1]
    shutil.rmtree(copy_b / "MedicalExpert-II")
    unique = rows[~rows.duplicated("pixel_sha256", keep=False)].reset_index(drop=True)
    write_second_reader(copy_b, unique.iloc[:5], 4)
    built = building.build("phantom_b", copy_b)
    known = built["image_id"].isin(unique["image_id"][:5])
    assert built[known]["kl_grade_reader2"].tolist() == rows[known]["kl_grade_reader2"].tolist() and built[~known]["kl_grade_reader2"].isna().all()


@settings(max_examples=40, deadline=None)
@given(own=st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(GRADES)), min_size=1), second=st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(GRADES))))
def test_of_several_grades_for_equal_pixels_the_nearest_is_taken(own, second):
    frame = pd.DataFrame(own, columns=["pixel_sha256", "kl_grade"])
    found = building.nearest_grades(frame, second)
    for (digest, grade), value in zip(own, found, strict=True):
        others = [other for name, other in second if name == digest]
        assert pd.isna(value) if not others else value in others and abs(value - grade) == min(abs(other - grade) for other in others)


@pytest.mark.parametrize("key", ["image_id", "pixel_sha256"])
def test_readers_file_gives_the_grades_by_id_or_pixels(copy_b, cohort_b, tmp_path, key):
    rows = cohort_b[1]
    shutil.rmtree(copy_b / "MedicalExpert-II")
    table = rows[[key, "kl_grade_reader2"]].sample(frac=1, random_state=1)
    table.to_csv(tmp_path / "readers.csv", index=False)
    assert building.build("phantom_b", copy_b, tmp_path / "readers.csv").equals(rows[COLUMNS])


def test_readers_file_with_names_and_pixels_is_matched_by_pixels(copy_b, cohort_b, tmp_path):
    rows = cohort_b[1]
    shutil.rmtree(copy_b / "MedicalExpert-II")
    table = rows[["image_id", "pixel_sha256", "kl_grade_reader2"]].assign(image_id=np.roll(rows["image_id"], 7))  # renumbered
    table.to_csv(tmp_path / "readers.csv", index=False)
    assert building.build("phantom_b", copy_b, tmp_path / "readers.csv").equals(rows[COLUMNS])


@pytest.mark.parametrize("separator, encoding", [(",", "utf-8"), (";", "utf-8"), ("\t", "utf-8"), (",", "utf-8-sig"), (";", "utf-8-sig")])
def test_readers_file_as_spreadsheets_write_it(copy_b, cohort_b, tmp_path, separator, encoding):
    rows = cohort_b[1]
    shutil.rmtree(copy_b / "MedicalExpert-II")
    names = rows["path"].str.split("/").str[-1].str.removesuffix(".png")  # with spaces
    table = pd.DataFrame({"image_id": names, "kl_grade_reader2": rows["kl_grade_reader2"].astype(float)})
    table.loc[0, "kl_grade_reader2"] = np.nan  # so that pandas writes 1.0
    table.to_csv(tmp_path / "readers.csv", sep=separator, encoding=encoding, index=False)
    assert ".0" in (tmp_path / "readers.csv").read_text() and " (" in names[1]
    built = building.build("phantom_b", copy_b, tmp_path / "readers.csv")["kl_grade_reader2"]
    assert pd.isna(built[0]) and built[1:].tolist() == rows["kl_grade_reader2"][1:].tolist()


@pytest.mark.parametrize("grade", [0, 1])
@pytest.mark.parametrize("key", ["image_id", "pixel_sha256"])
def test_readers_file_of_another_cohort_is_refused(cohort_b, tmp_path, key, grade):
    (tmp_path / "readers.csv").write_text(f"{key},kl_grade_reader2\nother,{grade}\n")
    with pytest.raises(StudyError, match="readers.csv grades none of the [0-9]+ pictures"):
        building.build("phantom_b", cohort_b[0], tmp_path / "readers.csv")


def test_readers_file_counts_more_than_the_folder(copy_b, cohort_b, tmp_path):
    rows = cohort_b[1].assign(kl_grade_reader2=cohort_b[1]["kl_grade"].map(lambda grade: (grade + 1) % 5))
    rows.iloc[:-1][["image_id", "kl_grade_reader2"]].to_csv(tmp_path / "readers.csv", index=False)
    built = building.build("phantom_b", copy_b, tmp_path / "readers.csv")["kl_grade_reader2"]
    assert built[:-1].tolist() == rows["kl_grade_reader2"][:-1].tolist() and pd.isna(built.iloc[-1])


@pytest.mark.parametrize("content, words", [
    (None, ["cannot be read"]), (b"", ["cannot be read"]), (b"\xff\xfe\x00", ["cannot be read"]), ("folder", ["cannot be read"]),
    (b"name,grade\nx,1\n", ["name, grade", "kl_grade_reader2"]), (b"kl_grade_reader2\n1\n", ["image_id or pixel_sha256"]), (b"image_id,kl\nx,1\n", ["kl_grade_reader2"]),
    (b"image_id,kl_grade_reader2\nx,1\ny,NaN\n", ["row 3", "'NaN'", "0-4"]), (b"image_id,kl_grade_reader2\nx,mild\n", ["row 2", "'mild'"]),
    (b"image_id,kl_grade_reader2\nx,0\ny,1\nz,5\n", ["row 4", "'5'"]), (b"pixel_sha256,kl_grade_reader2\nx,1.5\n", ["row 2", "'1.5'"]),
    (b"image_id,kl_grade_reader2\nx (1),0\ny,1\nx(1),0\n", ["row 4", "'x(1)'", "twice"])])
def test_wrong_readers_file_is_named_with_the_row(cohort_b, tmp_path, content, words):
    readers = tmp_path / "readers.csv"
    if content == "folder":
        readers.mkdir()
    elif content is not None:
        readers.write_bytes(content)
    with pytest.raises(StudyError) as error:
        building.build("phantom_b", cohort_b[0] / "MedicalExpert-I" / "4Severe", readers)
    message = str(error.value)
    assert str(readers) in message and all(word in message for word in words) and "\n" not in message


# What lies around the pictures


def test_what_is_no_picture_of_the_cohort_is_left_out(copy_a, cohort_a):
    rows = cohort_a[1]
    shutil.copytree(copy_a / "train", copy_a / "auto_test")  # detector crops have the names of listed pictures
    noise(copy_a / "train/0/overview.png", 1)
    noise(copy_a / "train/5/9999999L.png", 2)
    noise(copy_a / "9999998L.png", 3)
    (copy_a / "train/0/9999997L.txt").write_text("no picture")
    assert building.build("phantom_a", copy_a).equals(rows[COLUMNS])


@pytest.mark.parametrize("inside", ["", "kaggle/archive", "KneeXrayData/ClsKLData/kneeKL224"])
def test_root_is_found_from_above_beside_another_size_with_the_same_names(cohort_a, tmp_path, inside):
    folder, rows = cohort_a
    shutil.copytree(folder, tmp_path / "data" / inside)
    if inside.endswith("kneeKL224"):
        for k, path in enumerate(rows["path"]):
            noise((tmp_path / "data" / inside).with_name("kneeKL299") / path, k)
        noise((tmp_path / "data" / inside).with_name("kneeKL299") / "train/0/9999999R.png", 99)
    assert building.build("oai_chen2018", tmp_path).equals(rows[COLUMNS])


def test_part_of_a_cohort_gives_its_rows(cohort_a):
    folder, rows = cohort_a
    part = rows[rows["split"] == "train"].reset_index(drop=True)
    assert building.build("phantom_a", folder / "train").equals(part[COLUMNS])


def test_lossless_copy_keeps_its_pixel_hash_and_the_rest_of_the_row(copy_a, cohort_a):
    path = copy_a / cohort_a[1]["path"][0]
    Image.open(path).save(path.with_suffix(".bmp"))
    path.unlink()
    built, row = building.build("phantom_a", copy_a).iloc[0], cohort_a[1].iloc[0]
    differing = {name for name in COLUMNS if not (pd.isna(built[name]) and pd.isna(row[name])) and built[name] != row[name]}
    assert differing == {"path", "sha256"}


def test_folder_is_the_label(copy_a, cohort_a):
    path = copy_a / cohort_a[1]["path"][0]
    (path.parents[1] / "4").mkdir()
    path.rename(path.parents[1] / "4" / path.name)
    built = building.build("phantom_a", copy_a).set_index("image_id")
    assert built.loc[path.stem, "kl_grade"] == 4 and len(built) == len(cohort_a[1])


def test_difference_to_the_committed_manifest_is_counted(shared, tmp_path):
    copy = Path(shutil.copytree(shared("oai_original_sample"), tmp_path / "copy"))
    first, second = sorted(copy.rglob("*.png"))[:2]
    noise(first, 1)
    second.rename(second.with_stem("9999999L"))
    as_lines(building.build("oai_chen2018", copy), tmp_path)
    sentence = building.compare(tmp_path / "built.csv", "oai_chen2018")
    assert re.match("76 of them equal .* lists 8,260. Rows differ in sha256", sentence) and "kl_grade" not in sentence
    assert all(f"{column} (1)" in sentence for column in ("sha256", "pixel_sha256", "width", "height")) and sentence.endswith(" 1 are not in it.")


def test_column_that_differs_from_the_committed_manifest_is_named(sample, tmp_path):
    as_lines(building.build("gornale2020", sample[0]), tmp_path)  # without a second reader
    assert building.compare(tmp_path / "built.csv", "gornale2020") == (
        "0 of them equal the committed manifest byte for byte, which lists 1,650. Rows differ in kl_grade_reader2 (56). Give --readers FILE for the second reader.")


def test_cohort_without_committed_manifest_is_said(cohort_a, tmp_path):
    as_lines(cohort_a[1], tmp_path)
    assert "no committed manifest" in building.compare(tmp_path / "built.csv", "phantom_a")


# Mistakes


def test_all_unreadable_pictures_are_told_at_once(copy_a, cohort_a):
    bad = [copy_a / path for path in cohort_a[1]["path"][[2, 9, 17]]]
    for path, content in zip(bad, (b"", bad[1].read_bytes()[:1500], b"<html>sorry</html>"), strict=True):
        path.write_bytes(content)
    with pytest.raises(StudyError) as error:
        building.build("phantom_a", copy_a)
    head, *lines = str(error.value).splitlines()
    assert head.startswith("3 of 24 files") and [line.split(" cannot be read")[0].strip() for line in lines] == [str(path) for path in bad]
    assert all("Fetch it again" in line for line in lines)


def test_unreadable_picture_of_the_second_reader_is_left_out(copy_b, cohort_b):
    rows = cohort_b[1]
    shutil.rmtree(copy_b / "MedicalExpert-II")
    unique = rows[~rows.duplicated("pixel_sha256", keep=False)].reset_index(drop=True)
    write_second_reader(copy_b, unique, 4)
    bad = sorted((copy_b / "MedicalExpert-II").rglob("*.png"))[7]
    digest = describe(bad)["pixel_sha256"]
    bad.write_bytes(b"")
    built = building.build("phantom_b", copy_b)
    graded = built["pixel_sha256"].isin(set(unique["pixel_sha256"]) - {digest})
    assert graded.sum() == len(unique) - 1 and built[graded]["kl_grade_reader2"].tolist() == rows[graded]["kl_grade_reader2"].tolist()
    assert built[~graded]["kl_grade_reader2"].isna().all()


@pytest.mark.parametrize("where", ["the same folder", "another grade"])
def test_picture_that_is_there_twice_is_named(copy_a, cohort_a, where):
    path = copy_a / cohort_a[1]["path"][0]
    other = path.with_suffix(".bmp") if where == "the same folder" else path.parents[1] / "3" / path.name
    other.parent.mkdir(exist_ok=True)
    Image.fromarray(decode(path)[0]).save(other)
    with pytest.raises(StudyError, match=f"image_id '{path.stem}' is there twice"):
        building.build("phantom_a", copy_a)


@pytest.mark.parametrize("name, folder, words", [("oai", ".", "'oai' is unknown"), ("oai_chen2018", "gone", "gone does not exist"), ("gornale2020", "empty", "empty holds none of the pictures of gornale2020")])
def test_wrong_cohort_or_folder_is_named(tmp_path, name, folder, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=words):
        building.build(name, tmp_path / folder)
