"""From files to tensors: gray values are what they claim, augmentation is repeatable."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import cohort, datasets
from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.images.read import read_gray
from koa_lib.settings import Cohort


@pytest.mark.parametrize("value", [255.0, -1.0, np.uint16(65535), np.nan])
def test_wrong_range_never_reaches_a_model(value):
    with pytest.raises(StudyError):
        datasets.to_tensor(np.full((1, 4, 4), value), "clip")


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
def test_tensor_is_normalised_per_channel(statistics):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    tensor = datasets.to_tensor(images, statistics)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in datasets.STATISTICS[statistics])
    assert tensor.shape == (3, 3, 8, 8) and tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy() * std + mean, images[:, None] / 255, atol=1e-5)
    assert torch.allclose(tensor, datasets.to_tensor(images / 255, statistics), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(["as_printed", "strong"]), seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_augmentation_keeps_shape_and_range_and_follows_its_generator(kind, seed, n):
    images = np.random.default_rng(seed).integers(0, 256, (n, 24, 24), dtype=np.uint8)
    images[0, 0, 0] = 255
    first, again, other = (
        datasets.augment(images, kind, torch.Generator().manual_seed(start))
        for start in (seed, seed, seed + 1)
    )
    assert first.shape == (n, 24, 24) and 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_printed_augmentation_flips_half_and_turns_up_to_ten_degrees():
    # A bright bar right of the centre: where it goes tells flip and angle.
    image = np.zeros((200, 81, 81), dtype=np.uint8)
    image[:, 39:42, 60] = 255
    out = datasets.augment(image, "as_printed", torch.Generator().manual_seed(0)).numpy()
    y, x = np.mgrid[-40:41, -40:41]
    across, down = ((out * place).sum((1, 2)) / out.sum((1, 2)) for place in (x, y))
    assert 0.4 < (across < 0).mean() < 0.6 and np.hypot(across, down) == pytest.approx(20, abs=0.5)
    assert 7 < np.rad2deg(np.abs(np.arctan(down / across))).max() < 10.5


def test_part_keeps_rows_and_pictures_together():
    data = easy_dataset(20, size=8)
    part = data.part(np.array([13, 2, 7]), "report").part(np.array([2, 0]), "fit")
    assert part.role == "fit" and list(part.rows["image_id"]) == ["k7", "k13"]
    assert np.array_equal(part.images(np.arange(2)), data.pixels[[7, 13]])
    assert part.grades.tolist() == data.grades[[7, 13]].tolist()


def test_dataset_of_a_study_holds_its_files(easy_study):
    data = cohort.dataset(easy_study, "training", "stretch", "none", 32)
    assert len(data) == 120 and data.role == "any"
    for position in (0, 17, 119):
        (expected,) = shape.squares(read_gray(data.rows["file"][position]), "stretch", 32)
        assert np.abs(data.images(np.array([position]))[0] - expected * 255).max() <= 0.51


def test_without_a_folder_there_is_no_external_cohort(easy_study):
    study = replace(easy_study, inputs=replace(easy_study.inputs, external=""))
    assert cohort.cohort(study, "external") is None
    assert cohort.dataset(study, "external", "stretch", "none", 32) is None


def in_new_run(study, folder, **changed):
    (folder / ".locks").mkdir(parents=True)
    return replace(study, run_dir=folder, **changed)


def test_unreadable_picture_is_named_and_leaves_nothing_half_made(easy_study, tmp_path):
    folder = shutil.copytree(easy_study.inputs.data, tmp_path / "copy")
    broken = sorted(folder.rglob("*.png"))[5]
    broken.write_bytes(b"broken")
    study = in_new_run(easy_study, tmp_path / "run", inputs=replace(easy_study.inputs, data=str(folder)))
    with pytest.raises(StudyError, match=broken.name):
        cohort.dataset(study, "training", "stretch", "none", 32)
    assert not list((tmp_path / "run" / "features").glob("pictures__*"))


def test_phantoms_of_a_study_are_made_once(easy_study, tmp_path):
    chosen = replace(easy_study.profile, training=Cohort("phantom_a", "phantoms", 3))
    study = in_new_run(easy_study, tmp_path / "run", profile=chosen)
    first = cohort.cohort(study, "training")
    manifest = first.root / "manifest.csv"
    stamp = manifest.stat().st_mtime_ns
    assert len(first.rows) == 6 and all(file.is_file() for file in first.rows["file"])
    assert cohort.cohort(study, "training").rows.equals(first.rows) and manifest.stat().st_mtime_ns == stamp
