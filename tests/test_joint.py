"""The joint finder: near the truth of phantoms, neutral on OAI crops, and it follows a changed picture."""

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.Image import Resampling

from koa_lib.images import joint, shape
from koa_lib.images.learn_joint import learn
from koa_lib.images.read import read_gray
from koa_lib.phantoms.cohorts import write_cohort_b


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """A phantom cohort B of 50 pictures with its truth, and the joint found in each knee, of two the left."""
    folder = tmp_path_factory.mktemp("joint_b")
    rows = write_cohort_b(folder, 50, seed=1203, workers=1)[["image_id", "path"]]
    rows = rows.merge(pd.read_csv(folder / "truth.csv", keep_default_na=False), on="image_id")
    rows = rows[~rows["defect"].isin(["inverted", "copies", "disputed"])]
    rows["image"] = [shape.halves(read_gray(folder / path))[0] for path in rows["path"]]
    return rows.assign(found=[joint.find(image) for image in rows["image"]])


@pytest.fixture(scope="module")
def single(external):
    return external[external["defect"] != "two_knees"]


def off(found, centre, image):
    """Distance from a place, as a share of the picture's height."""
    return np.hypot(found.x - centre[0], found.y - centre[1]) / image.shape[0]


def alike(one, other):
    return np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]


def test_the_centre_is_near_the_truth_also_in_the_left_of_two_knees(external):
    rows = external.itertuples()
    errors = np.array([off(row.found, (row.joint_x, row.joint_y), row.image) for row in rows])
    assert (errors < 0.06).mean() >= 0.9 and np.median(errors) < 0.04


def test_the_width_follows_the_plateau_and_crops_show_knees_of_equal_size(single):
    ratio = np.array([row.found.across / row.plateau for row in single.itertuples()])
    assert abs(np.median(ratio) - 0.95) < 0.06 and (np.abs(ratio - np.median(ratio)) < 0.12).mean() > 0.85
    before = [row.plateau / row.image.shape[1] for row in single.itertuples()]  # of the file's width
    after = joint.PLATEAU / ratio  # of the crop's
    files, crops = (np.subtract(*np.quantile(one, [0.75, 0.25])) / np.median(one) for one in (before, after))
    assert crops < 0.5 * files and np.median(after) == pytest.approx(joint.PLATEAU, rel=0.12)


def test_an_oai_crop_stays_nearly_whole(shared):
    images = [read_gray(file) for file in sorted(shared("oai_original_sample").rglob("*.png"))[::4]]
    found = [joint.find(image) for image in images]
    share = np.array([(one.x, one.y, one.across / joint.PLATEAU, one.down / joint.LINE) for one in found])
    gap = np.abs(np.median(share, axis=0) / len(images[0]) - (*joint.CENTRE, 1, 1))
    assert len(images) == 20 and gap.max() < 0.12 and gap[:2].max() < 0.02
    likeness = [alike(joint.crop(image, 224, one), image) for image, one in zip(images, found, strict=True)]
    assert np.median(likeness) > 0.6 and np.median([one.score for one in found]) > 0.5


def test_the_joint_follows_what_is_done_to_a_picture(single):
    knees, follows = single[single["defect"] == ""].iloc[::4].head(8), []
    for image, found in zip(knees["image"], knees["found"], strict=True):
        height, width = image.shape
        bright, mirrored = joint.find(0.7 * image + 0.2), joint.find(image[:, ::-1])
        assert np.allclose(astuple(bright)[:4], astuple(found)[:4], atol=2) and joint.find(image) == found
        moved = joint.find(np.pad(image, 20, mode="edge")[:height, :width])
        assert off(moved, (found.x + 20, found.y + 20), image) < 0.05
        assert off(mirrored, (width - 1 - found.x, found.y), image) < 0.06
        stretched = joint.resized(image, (round(1.5 * width), height), Resampling.BILINEAR)
        wide = joint.find(stretched)
        assert off(wide, (1.5 * found.x, found.y), image) < 0.08
        likeness = alike(joint.crop(stretched, 112, wide), joint.crop(image, 112))
        follows.append(
            (mirrored.across / found.across, wide.across / found.across, wide.down / found.down, likeness)
        )
    *ratios, likeness = np.median(follows, axis=0)
    assert ratios == pytest.approx((1, 1.5, 1), rel=0.1) and likeness > 0.88


def ramp(height, width):
    return np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))


@pytest.mark.parametrize("shape", [(162, 300), (300, 100), (10, 10), (1, 20), (50, 1)])
@pytest.mark.parametrize("noise", [0, 1])
def test_a_picture_without_a_knee_gives_some_crop(shape, noise):
    image = 0.5 * (1 - noise) + noise * np.random.default_rng(0).random(shape)
    found, square = joint.find(image), joint.crop(image, 64)
    assert -1 <= found.score < 0.6 and found.down > 0
    assert 0 <= found.x <= image.shape[1] and 0 <= found.y <= image.shape[0]
    assert square.shape == (64, 64) and square.dtype == np.float32 and 0 <= square.min() and square.max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-30, 330), y=st.floats(-30, 190), across=st.floats(15, 120), down=st.floats(15, 120),
    size=st.sampled_from([32, 64, 224]), upright=st.booleans(),
)  # fmt: skip
def test_the_crop_is_the_window_around_the_joint(x, y, across, down, size, upright):
    # A ramp tells where each pixel comes from; beyond the edge the mean of the last rows or columns goes on.
    image = ramp(162, 300) if upright else ramp(300, 162).T
    crop = joint.crop(image, size, joint.Joint(x, y, across, down, 1.0))
    place, side, length = (x, across / joint.PLATEAU, 300) if upright else (y, down / joint.LINE, 162)
    source = place + ((np.arange(size) + 0.5) / size - joint.CENTRE[1 - upright]) * side - 0.5
    step, seen, last = max(1, side / size), (crop if upright else crop.T) * (length - 1), length - 1
    outside = np.maximum(-source, source - last)
    assert np.abs(seen - source)[:, outside < -step].max(initial=0) < 0.35 * step
    end = np.where(source > 0, last - (joint.EDGE - 1) / 2, (joint.EDGE - 1) / 2)
    assert np.abs(seen - end)[:, outside > 1 + step].max(initial=0) < 0.01


def test_learning_again_gives_the_template(shared):
    files = sorted(shared("oai_webp").glob("train/*/*.webp"))
    template, known = learn([read_gray(file) for file in files[:: len(files) // 30]]), np.load(joint.TEMPLATE)
    assert template.shape == known.shape and template.dtype == known.dtype
    assert alike(template, known) > 0.8 and np.array_equal(template, template[:, ::-1])
