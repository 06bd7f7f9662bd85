"""From files to tensors: gray values are what they claim, augmentation is repeatable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib import cohort, datasets
from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.images.read import read_gray


def test_sixteen_bits_are_rescaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 400).reshape(20, 20).round().astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    gray = read_gray(tmp_path / "ramp.png")
    assert gray.dtype == np.float32 and np.allclose(gray, ramp / 65535, atol=1e-6)


def test_same_picture_reads_the_same_in_eight_and_sixteen_bits(tmp_path):
    low = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(low).save(tmp_path / "low.png")
    Image.fromarray(low.astype(np.uint16) * 257).save(tmp_path / "high.png")
    assert np.allclose(read_gray(tmp_path / "low.png"), read_gray(tmp_path / "high.png"), atol=1e-6)


def test_unequal_channels_are_averaged(tmp_path):
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[..., 0], colour[..., 1] = 255, 51
    Image.fromarray(colour).save(tmp_path / "colour.png")
    assert np.allclose(read_gray(tmp_path / "colour.png"), (1 + 0.2) / 3, atol=1e-6)


@pytest.mark.parametrize("values", [np.full((1, 4, 4), 255.0), np.full((1, 4, 4), -1.0), np.full((2, 4, 4), 65535, dtype=np.uint16)])
def test_wrong_range_never_reaches_a_model(values):
    with pytest.raises(StudyError, match="the model needs"):
        datasets.to_tensor(values, "clip")


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
def test_tensor_is_normalised_per_channel(statistics):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    tensor = datasets.to_tensor(images, statistics)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in datasets.STATISTICS[statistics])
    assert tensor.shape == (3, 3, 8, 8) and tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy() * std + mean, images[:, None] / 255, atol=1e-5)
    assert torch.equal(tensor, datasets.to_tensor(images, statistics)) and torch.allclose(tensor, datasets.to_tensor(images / 255, statistics), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(["as_printed", "strong"]), seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_augmentation_keeps_shape_and_range_and_follows_its_generator(kind, seed, n):
    images = np.random.default_rng(seed).integers(0, 256, (n, 24, 24), dtype=np.uint8)
    images[0, 0, 0] = 255
    first = datasets.augment(images, kind, torch.Generator().manual_seed(seed))
    assert first.shape == (n, 24, 24) and 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, datasets.augment(images, kind, torch.Generator().manual_seed(seed)))
    assert not torch.equal(first, datasets.augment(images, kind, torch.Generator().manual_seed(seed + 1)))


def test_printed_augmentation_flips_half_and_turns_up_to_ten_degrees():
    # A bright bar right of the centre: where it goes tells flip and angle.
    image = np.zeros((200, 81, 81), dtype=np.uint8)
    image[:, 40, 60] = image[:, 39, 60] = image[:, 41, 60] = 255
    out = datasets.augment(image, "as_printed", torch.Generator().manual_seed(0)).numpy()
    y, x = np.mgrid[-40:41, -40:41]
    mass = out.sum((1, 2))
    across, down = (out * x).sum((1, 2)) / mass, (out * y).sum((1, 2)) / mass
    assert 0.4 < (across < 0).mean() < 0.6
    angles = np.rad2deg(np.arctan(down / across))
    assert np.abs(angles).max() < 10.5 and np.abs(angles).max() > 7 and np.hypot(across, down) == pytest.approx(20, abs=0.5)


def test_part_keeps_rows_and_pictures_together():
    data = easy_dataset(20, size=8)
    part = data.part(np.array([13, 2, 7]), "report")
    assert part.role == "report" and list(part.rows["image_id"]) == ["k13", "k2", "k7"]
    assert np.array_equal(part.images(np.arange(3)), data.pixels[[13, 2, 7]])
    again = part.part(np.array([2, 0]), "fit")
    assert list(again.rows["image_id"]) == ["k7", "k13"] and np.array_equal(again.images(np.array([0, 1])), data.pixels[[7, 13]])
    assert again.grades.tolist() == data.grades[[7, 13]].tolist()


def test_dataset_of_a_study_holds_its_files(easy_study):
    data = cohort.dataset(easy_study, "training", "stretch", "none", 32)
    assert len(data) == 120 and data.role == "any"
    for position in (0, 17, 119):
        (expected,) = shape.squares(read_gray(data.rows["file"][position]), "stretch", 32)
        assert np.abs(data.images(np.array([position]))[0] - expected * 255).max() <= 0.51


def test_cohort_of_a_study_describes_itself(easy_study):
    members = cohort.cohort(easy_study, "external")
    assert members.name == "easy_b" and "40 pictures, 20 groups" in repr(members) and members.rows["as_listed"].all()


def test_without_a_folder_there_is_no_external_cohort(easy_study):
    study = replace(easy_study, inputs=replace(easy_study.inputs, external=""))
    assert cohort.cohort(study, "external") is None
    assert cohort.dataset(study, "external", "stretch", "none", 32) is None


def test_unreadable_picture_is_named_and_leaves_nothing_half_made(easy_study, tmp_path):
    import shutil

    folder = shutil.copytree(easy_study.inputs.data, tmp_path / "copy")
    broken = sorted(folder.rglob("*.png"))[5]
    broken.write_bytes(b"broken")
    (tmp_path / "run" / ".locks").mkdir(parents=True)
    study = replace(easy_study, inputs=replace(easy_study.inputs, data=str(folder)), run_dir=tmp_path / "run")
    with pytest.raises(StudyError, match=broken.name):
        cohort.dataset(study, "training", "stretch", "none", 32)
    assert not list((tmp_path / "run" / "features").glob("pictures__*"))


def test_phantoms_of_a_study_are_made_once(easy_study, tmp_path):
    from koa_lib.settings import Cohort

    (tmp_path / ".locks").mkdir()
    settings = replace(easy_study.profile, training=Cohort("phantom_a", "phantoms", 3))
    study = replace(easy_study, profile=settings, run_dir=tmp_path)
    first = cohort.cohort(study, "training")
    stamp = (tmp_path / "data" / "phantom_a" / "manifest.csv").stat().st_mtime_ns
    assert len(first.rows) == 6 and all(file.is_file() for file in first.rows["file"])
    assert cohort.cohort(study, "training").rows.equals(first.rows)
    assert (tmp_path / "data" / "phantom_a" / "manifest.csv").stat().st_mtime_ns == stamp
