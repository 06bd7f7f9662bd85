"""The joint finder: as near as the phantoms' truth, neutral on OAI crops, and it follows what is done to a picture."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.images import joint, shape
from koa_lib.images.read import read_gray
from koa_lib.phantoms.cohorts import write_cohort_b


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """A phantom cohort B of 70 pictures with its truth: `image`, and `centre` and `plateau` in the picture's pixels."""
    folder = tmp_path_factory.mktemp("joint_b")
    rows = write_cohort_b(folder, 70, seed=1203, workers=1)[["image_id", "path"]].merge(pd.read_csv(folder / "truth.csv"), on="image_id")
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


def moved(image, right, down):
    """The content moved within its frame; the edge is repeated."""
    pad = max(abs(right), abs(down))
    height, width = image.shape
    return np.pad(image, pad, mode="edge")[pad - down : pad - down + height, pad - right : pad - right + width]


def resized(image, width, height):
    return np.asarray(Image.fromarray(np.asarray(image, np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def test_the_centre_is_within_six_percent_of_the_truth(single):
    errors = np.array([off(row.found, row.centre, row.image) for row in single.itertuples()])
    assert len(errors) > 50 and (errors < 0.06).mean() >= 0.95 and np.median(errors) < 0.04


def test_a_picture_that_was_cut_is_no_worse(single):
    cut = single[single["defect"] == "other_size"]
    assert len(cut) == 1 and all(off(row.found, row.centre, row.image) < 0.06 for row in cut.itertuples())


def test_the_joint_is_found_in_the_left_half_of_two_knees(external):
    rows = external[external["defect"] == "two_knees"]
    halves = [shape.halves(image)[0] for image in rows["image"]]
    errors = np.array([off(joint.find(half), centre, half) for half, centre in zip(halves, rows["centre"], strict=True)])
    assert len(errors) == 8 and (errors < 0.06).mean() >= 0.85 and np.median(errors) < 0.04


def test_the_width_follows_the_plateau(single):
    ratio = np.array([row.found.across / row.plateau for row in single.itertuples()])
    assert np.median(ratio) == pytest.approx(0.95, abs=0.06) and (np.abs(ratio - np.median(ratio)) < 0.12).mean() > 0.85


def test_crops_show_knees_of_equal_size(single):
    # The plateau's share of the crop's width varies less than its share of the file's width.
    before = np.array([row.plateau / row.image.shape[1] for row in single.itertuples()])
    after = np.array([row.plateau * joint.PLATEAU / row.found.across for row in single.itertuples()])
    spread = [np.subtract(*np.quantile(shares, [0.75, 0.25])) / np.median(shares) for shares in (before, after)]
    assert spread[1] < 0.5 * spread[0] and np.median(after) == pytest.approx(joint.PLATEAU, rel=0.12)


def nearly_the_whole(images, centre):
    """Whether crops of pictures that already are OAI's field of view are nearly these pictures."""
    found = [joint.find(image) for image in images]
    share = np.array([(j.x, j.y, j.across / joint.PLATEAU, j.down / joint.LINE) for j in found]) / len(images[0])
    likeness = [alike(joint.crop(image, 224, j), image) for image, j in zip(images, found, strict=True)]
    assert np.abs(np.median(share[:, :2], axis=0) - joint.CENTRE).max() < centre
    assert (np.subtract(*np.quantile(share[:, :2], [0.75, 0.25], axis=0)) < 0.06).all()
    return np.median(share[:, 2:], axis=0), np.array(likeness)


def test_an_oai_crop_stays_nearly_whole(shared):
    files = sorted(shared("oai_original_sample").rglob("*.png"))[::4]
    side, likeness = nearly_the_whole([read_gray(file) for file in files], 0.02)
    assert len(files) == 20 and np.abs(side - 1).max() < 0.12 and np.median(likeness) > 0.6 and (likeness > 0.3).mean() > 0.85


def test_a_phantom_of_an_oai_crop_stays_nearly_whole(cohort_a):
    folder, manifest = cohort_a
    truth = pd.read_csv(folder / "truth.csv").set_index("image_id")["defect"]
    upright = manifest[manifest["image_id"].map(truth) != "inverted"]
    side, likeness = nearly_the_whole([read_gray(folder / path) for path in upright["path"][::3]], 0.06)
    assert np.abs(side - 1).max() < 0.3 and np.median(likeness) > 0.45


def test_the_same_picture_gives_the_same_joint_in_any_thread(knees):
    images = [image for image, _ in knees[:4]]
    copies = [image.copy() for image in images]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(joint.find, images))
    again = [joint.find(image) for image in images]
    assert threaded == again == [found for _, found in knees[:4]]
    assert all(np.array_equal(image, copy) for image, copy in zip(images, copies, strict=True))


def test_brightness_and_contrast_move_nothing(knees):
    for image, found in knees[:3]:
        assert np.allclose(astuple(joint.find(0.7 * image + 0.2))[:4], astuple(found)[:4], atol=2)


def test_the_joint_moves_with_the_content(knees):
    generator, errors = np.random.default_rng(0), []
    for image, found in knees:
        right, down = (int(step) for step in generator.integers([-20, -12], [21, 13]))
        errors.append(off(joint.find(moved(image, right, down)), (found.x + right, found.y + down), image))
    assert np.max(errors) < 0.05 and np.median(errors) < 0.02


def test_stretching_widens_the_joint_and_leaves_the_crop(knees):
    wider, heights, places, likeness = [], [], [], []
    for image, found in knees:
        height, width = image.shape
        stretched = resized(image, round(1.5 * width), height)
        again = joint.find(stretched)
        wider.append(again.across / found.across)
        heights.append(again.down / found.down)
        places.append(off(again, (1.5 * found.x, found.y), image))
        likeness.append(alike(joint.crop(stretched, 112, again), joint.crop(image, 112, found)))
    assert np.median(wider) == pytest.approx(1.5, rel=0.03) and (np.abs(np.array(wider) / 1.5 - 1) < 0.1).mean() >= 0.8
    assert np.median(heights) == pytest.approx(1, abs=0.15) and np.max(places) < 0.08
    assert np.median(likeness) > 0.88 and np.min(likeness) > 0.5


def test_a_stretched_oai_crop_is_cut_as_before(shared):
    wider, likeness = [], []
    for file in sorted(shared("oai_original_sample").rglob("*.png"))[::10]:
        image = read_gray(file)
        stretched = resized(image, 336, 224)
        found, again = joint.find(image), joint.find(stretched)
        wider.append(again.across / found.across)
        likeness.append(alike(joint.crop(stretched, 112, again), joint.crop(image, 112, found)))
    assert np.median(wider) == pytest.approx(1.5, rel=0.03) and np.median(likeness) > 0.85


def test_a_mirrored_knee_is_found_at_the_mirrored_place(knees):
    for image, found in knees[:4]:
        mirrored = joint.find(image[:, ::-1])
        assert off(mirrored, (image.shape[1] - 1 - found.x, found.y), image) < 0.06
        assert mirrored.across == pytest.approx(found.across, rel=0.1)


def ramp(height, width):
    return np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))


NOISE = np.random.default_rng(0)
NO_KNEES = {
    "flat": np.full((162, 300), 0.5, np.float32),
    "black": np.zeros((224, 224), np.float32),
    "noise": NOISE.random((162, 300)),
    "portrait noise": NOISE.random((300, 100)),
    "10 x 10": NOISE.random((10, 10)),
    "2 x 7": NOISE.random((2, 7)),
    "one row": NOISE.random((1, 20)),
    "one column": NOISE.random((50, 1)),
    "one pixel": np.ones((1, 1)),
    "darker to the right": ramp(162, 300)[:, ::-1],
    "brighter to the right": ramp(162, 300),
}


@pytest.mark.parametrize("name", NO_KNEES)
def test_a_picture_without_a_knee_gives_some_crop(name):
    image = NO_KNEES[name]
    found = joint.find(image)
    assert np.isfinite(astuple(found)).all() and found.score < 0.6
    assert 0 <= found.x <= image.shape[1] and 0 <= found.y <= image.shape[0] and found.down > 0
    square = joint.crop(image, 64)
    assert square.shape == (64, 64) and square.dtype == np.float32 and 0 <= square.min() and square.max() <= 1


@pytest.mark.parametrize("name", ["flat", "noise", "portrait noise", "brighter to the right"])
def test_the_width_is_positive_without_a_knee(name):
    found = joint.find(NO_KNEES[name])
    assert 0.3 * found.down < found.across < 4 * found.down


def test_an_inverted_picture_gives_some_crop(single):
    # OAI and the external sets hold some, so that one of them must not stop a whole cohort.
    for row in single.iloc[::10].itertuples():
        found = joint.find(1 - row.image)
        assert 0.3 * found.down < found.across < 4 * found.down and joint.crop(1 - row.image, 64, found).shape == (64, 64)


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-30, 330), y=st.floats(-30, 190), across=st.floats(15, 120), down=st.floats(15, 120), size=st.sampled_from([32, 64, 224]), upright=st.booleans())
def test_the_crop_is_the_window_around_the_joint(x, y, across, down, size, upright):
    # A ramp tells where each pixel of the crop comes from; beyond the edge the mean of the last rows or columns goes on.
    image = ramp(162, 300) if upright else ramp(300, 162).T
    square = joint.crop(image, size, joint.Joint(x, y, across, down, 1.0))
    place, side, length = (x, across / joint.PLATEAU, 300) if upright else (y, down / joint.LINE, 162)
    source = place + ((np.arange(size) + 0.5) / size - joint.CENTRE[0 if upright else 1]) * side - 0.5
    step, along = max(1, side / size), square if upright else square.T
    inside, beyond = (step < source) & (source < length - 1 - step), (source < -1 - step) | (source > length + step)
    assert square.shape == (size, size) and square.dtype == np.float32 and 0 <= square.min() and square.max() <= 1
    assert np.abs(along * (length - 1) - source)[:, inside].max(initial=0) < 0.35 * step
    end = np.where(source > 0, length - 1 - (joint.EDGE - 1) / 2, (joint.EDGE - 1) / 2)
    assert np.abs(along * (length - 1) - end)[:, beyond].max(initial=0) < 0.01


def test_beyond_the_edge_each_row_goes_on_as_it_ended():
    image = np.tile(np.linspace(0.2, 0.8, 100, dtype=np.float32)[:, None], (1, 100))
    square = joint.crop(image, 50, joint.Joint(95, 55, 42, 37.5, 1.0))
    assert np.ptp(square, axis=1).max() < 1e-5 and square[-1, 0] - square[0, 0] > 0.5


def test_the_joint_is_found_when_none_is_given(knees):
    image, found = knees[0]
    assert np.array_equal(joint.crop(image, 64), joint.crop(image, 64, found))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), gain=st.floats(0.3, 1), offset=st.floats(0, 0.3))
def test_local_contrast_knows_no_exposure(seed, gain, offset):
    image = np.random.default_rng(seed).random((40, 50))
    assert np.allclose(joint.normalised(gain * image + offset), joint.normalised(image), atol=0.03)


def test_learning_again_gives_the_template(shared):
    files = sorted(shared("oai_webp").glob("train/*/*.webp"))
    images = [read_gray(files[k]) for k in np.linspace(0, len(files) - 1, 48).astype(int)]
    template = joint.learn(images)
    assert template.shape == (2 * joint.HALF_HEIGHT, 2 * joint.HALF_WIDTH) and template.dtype == np.float32
    assert alike(template, np.load(joint.TEMPLATE)) > 0.8


def test_the_template_is_of_oai_pictures_and_finds_them_better_than_others(shared, knees):
    own = [joint.find(read_gray(file)).score for file in sorted(shared("oai_original_sample").rglob("*.png"))[:8]]
    none = [joint.find(NO_KNEES[name]).score for name in ("flat", "black", "noise")]
    assert np.median(own) > np.median([found.score for _, found in knees]) > 0.4 > 0.3 > max(none)
