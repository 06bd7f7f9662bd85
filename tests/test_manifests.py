"""Manifests: the contract file of the data, its errors, and the hash that recognises a picture in any container."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.data.manifest import data_hash, find_pictures, read_manifest, write_manifest
from koa_lib.errors import StudyError
from koa_lib.images.read import decode, describe, pixel_sha256
from koa_lib.study import MANIFESTS

PUBLISHED = ["oai_chen2018", "gornale2020"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_manifest_survives_reading_and_writing(tmp_path, name):
    frame = read_manifest(MANIFESTS / f"{name}.csv")
    write_manifest(frame, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == (MANIFESTS / f"{name}.csv").read_bytes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_manifest_equals_the_shared_one(shared, name):
    assert (MANIFESTS / f"{name}.csv").read_bytes() == shared(f"{name}.csv").read_bytes()


def test_phantom_manifest_survives_reading_and_writing(tmp_path, cohort_b):
    folder, frame = cohort_b
    write_manifest(frame, tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == (folder / "manifest.csv").read_bytes()


@pytest.fixture
def changed(tmp_path):
    """A function that reads a small manifest after a change to its text cells."""

    def read(change):
        frame = pd.read_csv(MANIFESTS / "gornale2020.csv", dtype=str, keep_default_na=False, nrows=6)
        path = tmp_path / "cohort.csv"
        frame = change(frame)
        frame.to_csv(path, index=False)
        return read_manifest(path)

    return read


def cell(row, column, value):
    def change(frame):
        frame.loc[row, column] = value
        return frame

    return change


def test_small_manifest_is_accepted_as_it_is(changed):
    assert len(changed(lambda frame: frame)) == 6


@pytest.mark.parametrize("row, column, value", [
    (3, "image_id", "NormalG0(1)"), (2, "kl_grade", "7"), (2, "kl_grade", "-1"), (4, "kl_grade_reader2", "5"), (1, "kl_grade", "severe"),
    (0, "kl_grade", ""), (5, "kl_grade", "2.5"), (5, "width", "wide"), (1, "split", "dev"), (2, "group_id", ""),
    (3, "path", "MedicalExpert-I/0Normal/NormalG0 (1).png"), (2, "path", "NormalG0 (3).png"), (2, "path", "0Normal/NormalG0 (3).png")])
def test_wrong_cell_is_named_by_file_row_and_value(changed, row, column, value):
    with pytest.raises(StudyError) as error:
        changed(cell(row, column, value))
    message = str(error.value)
    assert "cohort.csv" in message and f"row {row + 2}" in message and column in message and f"'{value}'" in message


def test_missing_column_is_named(changed):
    with pytest.raises(StudyError, match="cohort.csv lacks the column.*group_id"):
        changed(lambda frame: frame.drop(columns="group_id"))


def test_manifest_without_rows_is_refused(changed):
    with pytest.raises(StudyError, match="cohort.csv has no rows"):
        changed(lambda frame: frame.iloc[:0])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n1,2,3\n4\n", b"image_id\n\xff\xfe\n", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_file_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "cohort.csv").write_bytes(content)
    with pytest.raises(StudyError, match="cohort.csv"):
        read_manifest(tmp_path / "cohort.csv")


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(StudyError, match="absent.csv does not exist"):
        read_manifest(tmp_path / "absent.csv")


def test_invalid_manifest_is_not_written(tmp_path, cohort_a):
    with pytest.raises(StudyError):
        write_manifest(cohort_a[1].assign(kl_grade=9), tmp_path / "bad.csv")
    assert not (tmp_path / "bad.csv").exists()


# Pictures


def random_picture(seed, shape, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def saved(folder, pixels, suffix, **options):
    path = folder / f"picture{suffix}"
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("shape", [(9, 14), (9, 14, 3)])
def test_hash_is_the_same_in_every_lossless_container(tmp_path, shape):
    pixels = random_picture(1, shape)
    paths = [saved(tmp_path, pixels, ".png"), saved(tmp_path, pixels, ".tiff"), saved(tmp_path, pixels, ".bmp"),
             saved(tmp_path, pixels, ".webp", lossless=True)]
    found = [describe(path) for path in paths]
    assert len({row["pixel_sha256"] for row in found}) == 1 and len({row["sha256"] for row in found}) == 4
    assert {(row["width"], row["height"], row["bit_depth"]) for row in found} == {(14, 9, 8)}


def test_hash_is_the_same_for_sixteen_bits_in_png_and_tiff(tmp_path):
    pixels = random_picture(2, (9, 14), np.uint16)
    png, tiff = (describe(saved(tmp_path, pixels, suffix)) for suffix in (".png", ".tiff"))
    assert png["pixel_sha256"] == tiff["pixel_sha256"] and png["bit_depth"] == 16 and png["channels"] == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), wide=st.booleans(), colour=st.booleans())
def test_hash_follows_its_definition(seed, wide, colour):
    dtype = np.uint16 if wide else np.uint8
    pixels = random_picture(seed, (5, 7, 3) if colour else (5, 7), dtype)
    head = f"5x7{'x3' if colour else ''}:{'uint16' if wide else 'uint8'}:".encode()
    assert pixel_sha256(pixels) == hashlib.sha256(head + pixels.astype("<u2" if wide else "u1").tobytes()).hexdigest()
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    assert pixel_sha256(np.asfortranarray(big_endian)) == pixel_sha256(pixels)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), row=st.integers(0, 8), column=st.integers(0, 13), bit=st.integers(0, 7))
def test_one_changed_pixel_changes_the_hash(seed, row, column, bit):
    pixels = random_picture(seed, (9, 14))
    other = pixels.copy()
    other[row, column] ^= 1 << bit
    assert pixel_sha256(pixels) != pixel_sha256(other)


def test_shape_and_depth_belong_to_the_hash():
    pixels = random_picture(3, (6, 4))
    others = [pixels.reshape(4, 6), pixels.astype(np.uint16), pixels.reshape(2, 4, 3)]
    assert len({pixel_sha256(array) for array in (pixels, *others)}) == 4


def test_equal_channels_count_as_one(tmp_path):
    gray = random_picture(4, (9, 14))
    colour = np.repeat(gray[..., None], 3, axis=2)
    one, three = describe(saved(tmp_path, gray, ".png")), describe(saved(tmp_path, colour, ".bmp"))
    assert one["pixel_sha256"] == three["pixel_sha256"] and three["channels"] == 1 and (one["mode"], three["mode"]) == ("L", "RGB")


def test_alpha_is_dropped_and_a_palette_expanded(tmp_path):
    gray = random_picture(5, (9, 14))
    alpha = np.dstack([gray, gray, gray, random_picture(6, (9, 14))])
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    expected = pixel_sha256(gray)
    for path, mode in ((saved(tmp_path, alpha, ".png"), "RGBA"), (tmp_path / "palette.png", "P")):
        row = describe(path)
        assert (row["pixel_sha256"], row["mode"]) == (expected, mode)


@pytest.mark.parametrize("content", ["text", "half", "empty"])
def test_unreadable_picture_is_named(tmp_path, content):
    path = saved(tmp_path, random_picture(7, (60, 60)), ".png")
    path.write_bytes({"text": b"not a picture", "half": path.read_bytes()[:900], "empty": b""}[content])
    with pytest.raises(StudyError, match="picture.png cannot be read as a picture"):
        decode(path)


@pytest.mark.parametrize("name, folder, count", [("oai_chen2018", "oai_original_sample", 78), ("gornale2020", "gornale_sample", 56)])
def test_every_original_file_matches_its_row(shared, name, folder, count):
    manifest = read_manifest(MANIFESTS / f"{name}.csv")
    found = find_pictures(manifest, shared(folder))
    assert len(found) == count and (found["status"] == "as listed").all()
    for row in found.to_dict("records"):
        described = describe(row["file"])
        assert described == {name: row[name] for name in described}, row["path"]


def test_re_encoded_pictures_are_found_and_marked(shared):
    manifest = read_manifest(MANIFESTS / "oai_chen2018.csv")
    found = find_pictures(manifest, shared("oai_webp"))
    assert len(found) == 6604 and (found["status"] == "re-encoded").all() and set(found["split"]) == {"train", "val"}
    assert all(file.stem == name for file, name in zip(found["file"], found["image_id"], strict=True))


def test_pictures_are_found_in_another_container(tmp_path, cohort_a):
    folder, manifest = cohort_a
    row = manifest.iloc[0]
    target = (tmp_path / "outer" / row["path"]).with_suffix(".webp")
    target.parent.mkdir(parents=True)
    Image.open(folder / row["path"]).save(target, lossless=True)
    found = find_pictures(manifest, tmp_path)
    assert list(found["image_id"]) == [row["image_id"]] and list(found["status"]) == ["re-encoded"]
    assert describe(target)["pixel_sha256"] == row["pixel_sha256"]


def test_folder_mistakes_are_named(tmp_path, cohort_a):
    with pytest.raises(StudyError, match="gone does not exist"):
        find_pictures(cohort_a[1], tmp_path / "gone")
    with pytest.raises(StudyError, match="holds none of the 24 pictures"):
        find_pictures(cohort_a[1], tmp_path)


@pytest.mark.parametrize("column, value", [("kl_grade", 3), ("split", "test"), ("pixel_sha256", "0" * 64), ("image_id", "other")])
def test_data_hash_names_what_matters(cohort_a, column, value):
    frame = cohort_a[1].copy()
    before = data_hash(frame)
    frame.loc[0, column] = value if frame.loc[0, column] != value else (4 if column == "kl_grade" else "train")
    assert data_hash(frame) != before == data_hash(cohort_a[1])
