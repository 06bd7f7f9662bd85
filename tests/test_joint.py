"""The joint finder: near the truth of phantoms, neutral on OAI crops, and it follows a changed picture."""

import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.Image import Resampling

from koa_lib.images import joint, shape
from koa_lib.images.read import read_gray
from koa_lib.phantoms.cohorts import write_cohort_b


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """A phantom cohort B of 70 pictures with its truth: `image`, and `centre` and `plateau` in its pixels."""
    folder = tmp_path_factory.mktemp("joint_b")
    rows = write_cohort_b(folder, 70, seed=1203, workers=1)[["image_id", "path"]]
    rows = rows.merge(pd.read_csv(folder / "truth.csv"), on="image_id")
    rows["image"] = [read_gray(folder / path) for path in rows["path"]]
    rows["centre"] = list(zip(rows["joint_x"], rows["joint_y"], strict=True))
    return rows


@pytest.fixture(scope="module")
def single(external):
    """The different pictures of one knee and right polarity, with the joint found in each."""
    rows = external[~external["defect"].isin(["two_knees", "inverted", "copies", "disputed"])]
    return rows.assign(found=[joint.find(image) for image in rows["image"]])


@pytest.fixture(scope="module")
def knees(single):
    """Eight knees without any defect, each with the joint found in it."""
    return [(row.image, row.found) for row in single[single["defect"].isna()].iloc[::7].head(8).itertuples()]


def off(found, centre, image):
    """Distance from a place, as a share of the picture's height."""
    return np.hypot(found.x - centre[0], found.y - centre[1]) / image.shape[0]


def alike(one, other):
    return np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]


def test_the_centre_is_near_the_truth_also_in_the_left_of_two_knees(single, external):
    rows = external[external["defect"] == "two_knees"]
    halves = rows.assign(image=[shape.halves(image)[0] for image in rows["image"]])
    halves["found"] = [joint.find(image) for image in halves["image"]]
    for knees, least, share in ((single, 50, 0.95), (halves, 8, 0.85)):
        errors = np.array([off(row.found, row.centre, row.image) for row in knees.itertuples()])
        assert len(errors) >= least and (errors < 0.06).mean() >= share and np.median(errors) < 0.04


def test_the_width_follows_the_plateau_and_crops_show_knees_of_equal_size(single):
    ratio = np.array([row.found.across / row.plateau for row in single.itertuples()])
    assert abs(np.median(ratio) - 0.95) < 0.06 and (np.abs(ratio - np.median(ratio)) < 0.12).mean() > 0.85
    before = np.array([row.plateau / row.image.shape[1] for row in single.itertuples()])
    after = joint.PLATEAU / ratio  # the plateau's share of the crop's width, and of the file's width above
    spread = [
        np.subtract(*np.quantile(shares, [0.75, 0.25])) / np.median(shares) for shares in (before, after)
    ]
    assert spread[1] < 0.5 * spread[0] and np.median(after) == pytest.approx(joint.PLATEAU, rel=0.12)


def test_an_oai_crop_stays_nearly_whole(shared):
    images = [read_gray(file) for file in sorted(shared("oai_original_sample").rglob("*.png"))[::4]]
    found = [joint.find(image) for image in images]
    share = np.array([(one.x, one.y, one.across / joint.PLATEAU, one.down / joint.LINE) for one in found])
    gap = np.abs(np.median(share, axis=0) / len(images[0]) - (*joint.CENTRE, 1, 1))
    assert len(images) == 20 and gap.max() < 0.12 and gap[:2].max() < 0.02
    likeness = np.array(
        [alike(joint.crop(*pair), pair[0]) for pair in zip(images, [224] * 20, found, strict=True)]
    )
    assert np.median(likeness) > 0.6 and (likeness > 0.3).mean() > 0.85
    assert np.median([one.score for one in found]) > 0.5


def test_the_joint_follows_what_is_done_to_a_picture(knees):
    generator, moves, ratios, likeness = np.random.default_rng(0), [], [], []
    for image, found in knees:
        height, width = image.shape
        bright = joint.find(0.7 * image + 0.2)
        assert np.allclose(astuple(bright)[:4], astuple(found)[:4], atol=2) and joint.find(image) == found
        right, down = generator.integers([-20, -12], [21, 13])
        moved = np.pad(image, 20, mode="edge")[20 - down :, 20 - right :][:height, :width]
        moves.append(off(joint.find(moved), (found.x + right, found.y + down), image))
        mirrored = joint.find(image[:, ::-1])
        stretched = joint.resized(image, (round(1.5 * width), height), Resampling.BILINEAR)
        wide = joint.find(stretched)
        assert off(mirrored, (width - 1 - found.x, found.y), image) < 0.06
        assert off(wide, (1.5 * found.x, found.y), image) < 0.08
        ratios.append((mirrored.across / found.across, wide.across / found.across, wide.down / found.down))
        likeness.append(alike(joint.crop(stretched, 112, wide), joint.crop(image, 112)))
    assert (
        max(moves) < 0.05 and np.median(moves) < 0.02 and np.median(likeness) > 0.88 and min(likeness) > 0.5
    )
    assert np.median(ratios, axis=0) == pytest.approx((1, 1.5, 1), rel=0.1)


def ramp(height, width):
    return np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))


RANDOM = np.random.default_rng(0).random
NO_KNEES = {
    "flat": np.full((162, 300), 0.5, np.float32),
    "black": np.zeros((224, 224)),
    "noise": RANDOM((162, 300)),
    **{f"noise {size}": RANDOM(size) for size in ((300, 100), (10, 10), (1, 20), (50, 1))},
    "darker": ramp(162, 300)[:, ::-1],
    "brighter": ramp(162, 300),
}


@pytest.mark.parametrize("name", NO_KNEES)
def test_a_picture_without_a_knee_gives_some_crop(name):
    image = NO_KNEES[name]
    found, square = joint.find(image), joint.crop(image, 64)
    assert -1 <= found.score < (0.3 if name in ("flat", "black", "noise") else 0.6) and found.down > 0
    assert 0 <= found.x <= image.shape[1] and 0 <= found.y <= image.shape[0]
    assert min(image.shape) < 16 or 0.3 * found.down < found.across < 4 * found.down
    assert square.shape == (64, 64) and square.dtype == np.float32 and 0 <= square.min() and square.max() <= 1


@settings(max_examples=60, deadline=None)
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
    inside, beyond = (
        np.abs(source - last / 2) < last / 2 - step,
        np.abs(source - last / 2) > last / 2 + 1 + step,
    )
    assert np.abs(seen - source)[:, inside].max(initial=0) < 0.35 * step
    end = np.where(source > 0, last - (joint.EDGE - 1) / 2, (joint.EDGE - 1) / 2)
    assert np.abs(seen - end)[:, beyond].max(initial=0) < 0.01


def test_learning_again_gives_the_template(shared, tmp_path):
    files = sorted(shared("oai_webp").glob("train/*/*.webp"))
    for file in files[:: len(files) // 48]:
        (tmp_path / file.name).symlink_to(file)
    subprocess.run([sys.executable, "-m", "koa_lib.images.learn_joint", tmp_path], cwd=tmp_path, check=True)
    template = np.load(tmp_path / joint.TEMPLATE.name)
    assert template.shape == (2 * joint.HALF_HEIGHT, 2 * joint.HALF_WIDTH) and template.dtype == np.float32
    assert alike(template, np.load(joint.TEMPLATE)) > 0.8 and np.array_equal(template, template[:, ::-1])
