"""Geometry and intensity: each named way does what it says, two knees become two rows, and no label takes part."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import easy_image
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import uniform_filter

from koa_lib import datasets, predictions, profile
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.images import joint, shape
from koa_lib.images.read import describe, read_gray
from koa_lib.images.shape import EXPLORATORY, GEOMETRIES, INTENSITIES, LEVELS, TWO_KNEES, adjust, mean_histogram
from koa_lib.predictions import PROBABILITIES
from koa_lib.settings import Cohort

SIMPLE = [geometry for geometry in GEOMETRIES if geometry != "joint_crop"]  # without the slow search


def square(image, geometry, size):
    """The one square of a picture of one knee."""
    (result,) = shape.squares(image, geometry, size)
    return result


@pytest.fixture(scope="module")
def films(cohort_b):
    """A few upright pictures of one knee, and of two, from a phantom cohort B."""
    folder, manifest = cohort_b
    truth = pd.read_csv(folder / "truth.csv").set_index("image_id")["defect"].fillna("")
    defect = manifest["image_id"].map(truth)
    return {kind: [read_gray(folder / path) for path in manifest.loc[defect == name, "path"]][:count]
            for kind, name, count in (("one", "", 8), ("two", "two_knees", 2))}


# Geometry


@settings(max_examples=30, deadline=None)
@given(geometry=st.sampled_from(["stretch", "pad", "center_crop", "split"]), height=st.integers(20, 90), width=st.integers(20, 90), size=st.sampled_from([16, 33, 64]),
       level=st.floats(0, 1, width=32))
def test_every_geometry_gives_squares_and_keeps_a_flat_picture(geometry, height, width, size, level):
    for flat in shape.squares(np.full((height, width), level, dtype=np.float32), geometry, size):
        assert flat.shape == (size, size) and np.allclose(flat, level, atol=1e-5)


def extent(image):
    """Height and width of what is bright."""
    bright = image > 0.5
    return bright.any(axis=1).sum(), bright.any(axis=0).sum()


def disc(height, width, radius):
    y, x = np.mgrid[:height, :width]
    return (np.hypot(y - height / 2, x - width / 2) < radius).astype(np.float32)


@pytest.mark.parametrize("geometry, ratio", [("stretch", 2.0), ("pad", 1.0), ("center_crop", 1.0), ("split", 2.0)])
def test_only_stretch_changes_the_aspect_ratio(geometry, ratio):
    tall, broad = extent(square(disc(100, 200, 30), geometry, 128))
    assert tall / broad == pytest.approx(ratio, rel=0.08)


def test_pad_shows_all_and_center_crop_leaves_the_edges_out():
    image = np.zeros((100, 200), dtype=np.float32)
    image[:, :20] = image[:, -20:] = 1
    assert square(image, "center_crop", 64).max() == 0
    assert extent(square(image, "pad", 64))[1] > 0


def test_every_geometry_with_every_intensity_gives_squares_in_range(films):
    reference = mean_histogram(films["one"])
    for kind, image in (("one", films["one"][0]), ("two", films["two"][0])):
        for geometry in GEOMETRIES:
            shown = shape.squares(image, geometry, 48)
            assert len(shown) == (2 if kind == "two" and geometry in ("split", "joint_crop") else 1)
            for intensity in INTENSITIES:
                for result in (adjust(one, intensity, reference) for one in shown):
                    assert result.shape == (48, 48) and 0 <= result.min() < result.max() <= 1, (kind, geometry, intensity)


@settings(max_examples=40, deadline=None)
@given(geometry=st.sampled_from(SIMPLE), intensity=st.sampled_from(INTENSITIES), height=st.integers(1, 60), width=st.integers(1, 200), size=st.sampled_from([8, 31, 48]),
       low=st.floats(0, 1), span=st.floats(0, 1), seed=st.integers(0, 1000))
def test_any_picture_gives_squares_in_range(geometry, intensity, height, width, size, low, span, seed):
    generator = np.random.default_rng(seed)
    image = (low + (1 - low) * span * generator.random((height, width))).astype(np.float32)
    results = [adjust(one, intensity, mean_histogram([generator.random((9, 9))])) for one in shape.squares(image, geometry, size)]
    assert len(results) == 1 + (geometry == "split" and width / height >= TWO_KNEES)
    assert all(result.shape == (size, size) and np.isfinite(result).all() and 0 <= result.min() and result.max() <= 1 for result in results)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 220), seed=st.integers(0, 1000))
@example(height=10, width=30, seed=0)
@example(height=10, width=29, seed=0)
def test_only_pictures_of_two_knees_are_parted(height, width, seed):
    image = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    parts = shape.halves(image)
    if width < 3 * height:
        assert len(parts) == 1 and parts[0] is image
    else:
        left, right = parts
        assert left.shape == right.shape == (height, width // 2)
        assert np.array_equal(left, image[:, : width // 2]) and np.array_equal(right, image[:, -(width // 2) :])


def test_split_shows_the_left_and_then_the_right_half(films):
    image = films["two"][0]
    height, width = image.shape
    left, right = shape.squares(image, "split", 64)
    assert width >= TWO_KNEES * height and not np.allclose(left, right, atol=0.05)
    assert np.allclose(left, square(image[:, : width // 2], "stretch", 64)) and np.allclose(right, square(image[:, width // 2 :], "stretch", 64))
    assert np.array_equal(square(films["one"][0], "split", 64), square(films["one"][0], "stretch", 64))


@pytest.mark.parametrize("trained", ["stretch", "center_crop"])
def test_joint_crop_cuts_each_half_and_fits_it_like_a_training_file(films, trained):
    for image in (films["two"][0], films["one"][0]):
        shown, parts = shape.squares(image, "joint_crop", 64, trained), shape.halves(image)
        files = [joint.crop(part, shape.FILE_SIDE) for part in parts]
        assert all(np.array_equal(one, square(file, trained, 64)) for one, file in zip(shown, files, strict=True))
        assert len({one.tobytes() for one in shown}) == len(parts)


def test_views_show_every_named_way(films):
    shown = shape.views(films["two"][0], 32, mean_histogram(films["one"]), "stretch")
    assert {name.replace(" ", "_") for name in shown} >= {*GEOMETRIES, "file"} and len(shown) == len(GEOMETRIES) + len(INTENSITIES)
    assert all(image.shape == (32, 32) for name, image in shown.items() if name != "file")
    assert np.array_equal(shown["split"], shape.squares(films["two"][0], "split", 32)[0])


# Intensity


def local_contrast(image):
    mean = uniform_filter(image, 7)
    return np.sqrt(np.clip(uniform_filter(image**2, 7) - mean**2, 0, None)).mean()


def test_clahe_raises_local_contrast(films):
    for image in films["one"][:4]:
        pale = 0.45 + 0.15 * square(image, "stretch", 96).astype(float)
        assert local_contrast(adjust(pale, "clahe")) > 1.5 * local_contrast(pale)


def test_none_changes_nothing(films):
    shown = square(films["one"][0], "stretch", 32)
    assert np.array_equal(adjust(shown, "none"), shown)


def cumulative(image):
    """Share of the pixels below each upper edge of the levels; the last level holds 1, too."""
    edges = np.arange(1, LEVELS + 1) / LEVELS
    return np.array([(image < edge).mean() for edge in edges[:-1]] + [1.0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5))
def test_mean_histogram_gives_each_picture_the_same_weight(seed, sizes):
    generator = np.random.default_rng(seed)
    images = [(generator.integers(0, 256, shape) / np.float32(255)) ** generator.uniform(0.5, 2) for shape in sizes]
    mean = mean_histogram(images)
    assert mean.shape == (LEVELS,) and np.all(np.diff(mean) >= -1e-12) and mean[-1] == pytest.approx(1)
    assert np.allclose(mean, np.mean([cumulative(image) for image in images], axis=0))
    assert np.allclose(mean_histogram(iter(images[::-1])), mean)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.3, 3), levels=st.sampled_from([2, 5, 40, 256]))
def test_match_train_keeps_the_order_of_gray_values(seed, gamma, levels):
    generator = np.random.default_rng(seed)
    image = (generator.integers(0, levels, (24, 24)) / (levels - 1)) ** gamma
    matched = adjust(image, "match_train", mean_histogram([generator.random((30, 30)) ** 2]))
    order = np.argsort(image, axis=None, kind="stable")
    values, result = image.ravel()[order], matched.ravel()[order]
    assert (np.diff(result) >= 0).all() and (np.diff(result)[np.diff(values) == 0] == 0).all()
    assert 0 <= matched.min() and matched.max() <= 1


def test_match_train_gives_the_histogram_of_the_reference(films, cohort_a):
    from skimage.exposure import match_histograms

    folder, manifest = cohort_a
    training = np.stack([square(read_gray(folder / path), "stretch", 64) for path in manifest["path"][:12]])
    reference = mean_histogram(training)
    for image in films["one"]:
        image = square(image, "stretch", 64)
        matched, other = adjust(image, "match_train", reference), match_histograms(image, training.reshape(-1, 64))
        distance = [np.abs(cumulative(result) - reference).max() for result in (image, matched, other)]
        assert max(distance[1:]) < 0.005 < 0.1 < distance[0]
        assert np.abs(matched - other).mean() < 0.002 and np.abs(matched - other).max() < 0.02


def test_match_train_leaves_a_picture_that_is_the_reference(films):
    for image in films["one"]:
        image = np.round(square(image, "stretch", 64) * 255) / 255
        change = np.abs(adjust(image, "match_train", mean_histogram([image])) - image)
        assert change.max() < 1 / 255


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_a_flat_picture_is_matched_to_some_flat_picture(level, films):
    flat = np.full((16, 16), level, np.float32)
    for reference in (mean_histogram(films["one"]), mean_histogram([flat])):
        matched = adjust(flat, "match_train", reference)
        assert np.ptp(matched) == 0 and 0 <= matched[0, 0] <= 1


@pytest.mark.parametrize("values", [(100,), (60, 120), (60, 90, 120, 150)])
def test_few_gray_values_become_the_middle_quantiles_of_the_reference(values):
    image = np.repeat(np.array(values, dtype=np.float32) / 255, 64).reshape(-1, 8)
    reference = mean_histogram([np.linspace(0, 1, 4096).reshape(64, 64)])  # all gray values equally often: quantile q is q
    matched = adjust(image, "match_train", reference)
    expected = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(np.unique(matched) - expected).max() < 0.02


# What was suggested by external labels


def test_exploratory_are_exactly_the_two_that_external_labels_suggested():
    assert EXPLORATORY == {"joint_crop", "match_train"} and EXPLORATORY < {*GEOMETRIES, *INTENSITIES}


@pytest.mark.parametrize("name", profile.names())
def test_no_shipped_profile_trains_or_reports_an_exploratory_view(name):
    shipped = profile.load(name)
    recipes = [recipe for recipe in (shipped.as_printed, shipped.our_protocol) if recipe is not None]
    assert recipes and not EXPLORATORY & {choice for recipe in recipes for choice in (recipe.geometry, recipe.intensity)}


# Datasets of a study


def film(name, grade, generator):
    """An external picture: of two knees, dark left and bright right, when its name says so."""
    one = easy_image(grade, generator)
    return np.hstack([one // 3, one // 3, one, one]) if name.startswith("two") else one


@pytest.fixture
def mixed_study(easy_study, tmp_path, monkeypatch):
    """The easy study in a run folder of its own, with six external pictures, two of them of two knees."""
    generator, rows = np.random.default_rng(11), []
    for k, name in enumerate(("one0", "two1", "one2", "one3", "two4", "one5")):
        path = tmp_path / "films" / "all" / str(k % 5) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(name, k % 5, generator)).save(path)
        rows.append({"image_id": name, "path": path.relative_to(tmp_path / "films").as_posix(), "split": "external", "kl_grade": k % 5, "kl_grade_reader2": pd.NA,
                     "group_id": name, "side": "", **describe(path)})
    lists = tmp_path / "lists"
    lists.mkdir()
    write_manifest(pd.DataFrame(rows).astype({"kl_grade_reader2": "Int64"}), lists / "films.csv")
    (lists / "easy_a.csv").write_bytes((datasets.MANIFESTS / "easy_a.csv").read_bytes())
    monkeypatch.setattr(datasets, "MANIFESTS", lists)
    settings = replace(easy_study.profile, external=Cohort("films", "folder", 0))
    study = replace(easy_study, profile=settings, inputs=replace(easy_study.inputs, external=str(tmp_path / "films")))
    return in_new_run(study, tmp_path / "run")


def in_new_run(study, folder, **inputs):
    """The study in an empty run folder, so that nothing is reused."""
    (folder / ".locks").mkdir(parents=True)
    return replace(study, run_dir=folder, inputs=replace(study.inputs, **inputs))


def test_a_picture_of_two_knees_has_two_rows_with_its_halves(mixed_study):
    data = datasets.dataset(mixed_study, "external", "split", "none", 32)
    ids = list(data.rows["image_id"])
    assert ids == ["one0", "two1", "two1", "one2", "one3", "two4", "two4", "one5"] and len(data) == len(data.pixels) == 8
    assert data.grades.tolist() == [0, 1, 1, 2, 3, 4, 4, 0]
    for name in set(ids):
        where = np.flatnonzero(data.rows["image_id"] == name)
        image = read_gray(data.rows["file"][where[0]])
        expected = [image] if name.startswith("one") else [image[:, :80], image[:, 80:]]
        for got, part in zip(data.images(where), expected, strict=True):
            assert np.abs(got - square(part, "stretch", 32) * 255).max() <= 0.51
    part = data.part(np.array([6, 1]), "report")
    assert list(part.rows["image_id"]) == ["two4", "two1"] and np.array_equal(part.images(np.arange(2)), data.pixels[[6, 1]])


@pytest.mark.parametrize("geometry", ["stretch", "pad", "center_crop"])
def test_other_geometries_keep_one_row_per_picture(mixed_study, geometry):
    data = datasets.dataset(mixed_study, "external", geometry, "none", 32)
    assert data.rows["image_id"].is_unique and len(data) == len(data.pixels) == 6


@pytest.mark.parametrize("trained", ["stretch", "center_crop"])
def test_a_joint_crop_is_fitted_like_the_training_pictures(mixed_study, trained):
    ours = replace(mixed_study.profile.our_protocol, geometry=trained)
    data = datasets.dataset(replace(mixed_study, profile=replace(mixed_study.profile, our_protocol=ours)), "external", "joint_crop", "none", 24)
    image = read_gray(data.rows["file"][0])
    assert len(data) == 8 and np.abs(data.images([0])[0] - square(joint.crop(image, shape.FILE_SIDE), trained, 24) * 255).max() <= 0.51


def test_predictions_of_two_knees_become_one_graded_row(mixed_study, tmp_path):
    data = datasets.dataset(mixed_study, "external", "split", "none", 16)
    probabilities = np.full((8, 5), 0.05)
    probabilities[np.arange(8), [0, 1, 3, 2, 3, 4, 0, 0]] = 0.8
    frame = predictions.frame(data.rows["image_id"], probabilities)
    assert list(frame["image_id"]) == ["one0", "two1", "one2", "one3", "two4", "one5"]
    assert frame[PROBABILITIES].to_numpy().argmax(axis=1).tolist() == [0, 3, 2, 3, 4, 0]
    predictions.write(frame, tmp_path / "a.csv")
    graded = predictions.join(predictions.read(tmp_path / "a.csv"), data.rows)
    assert list(graded["image_id"]) == list(frame["image_id"]) and graded["kl_grade"].tolist() == [0, 1, 2, 3, 4, 0]
    assert graded.equals(predictions.join(predictions.read(tmp_path / "a.csv"), datasets.cohort(mixed_study, "external").rows))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ids=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12))
def test_of_a_repeated_id_the_worse_knee_is_kept(seed, ids):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(5, 0.4), len(ids))
    frame = predictions.frame(ids, probabilities)
    expected = probabilities @ np.arange(5)
    worst = [max((k for k in range(len(ids)) if ids[k] == name), key=lambda k: expected[k]) for name in set(ids)]
    assert list(frame["image_id"]) == [ids[k] for k in sorted(worst)]
    assert np.array_equal(frame[PROBABILITIES].to_numpy(), probabilities[sorted(worst)])


def test_equal_knees_leave_the_first():
    first, second = [0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]
    assert predictions.frame(["a", "a"], [first, second])[PROBABILITIES].to_numpy().tolist() == [first]


def matched(study, geometry="stretch"):
    """Copy of the external pictures with the training cohort's gray values."""
    return np.array(datasets.dataset(study, "external", geometry, "match_train", 24).pixels)


def rewritten(manifest, change):
    """Change a manifest file in place."""
    write_manifest(change(read_manifest(manifest)), manifest)


@pytest.mark.parametrize("name", ["films", "easy_a"])
def test_match_train_reads_no_label(mixed_study, tmp_path, name):
    before, labels = matched(mixed_study), datasets.MANIFESTS / f"{name}.csv"
    old = labels.read_bytes()
    rewritten(labels, lambda rows: rows.assign(kl_grade=(rows["kl_grade"].to_numpy()[::-1] + 2) % 5))
    assert labels.read_bytes() != old
    assert np.array_equal(matched(in_new_run(mixed_study, tmp_path / "again")), before)


def test_match_train_gives_external_pictures_the_training_histogram(mixed_study):
    data = datasets.dataset(mixed_study, "training", "stretch", "none", 24)
    assert set(data.rows["split"]) > {"train"}  # the test split has no part in it
    training = data.images(np.flatnonzero(data.rows["split"] == "train")) / 255
    plain, after = datasets.dataset(mixed_study, "external", "stretch", "none", 24).pixels / 255, matched(mixed_study) / 255
    reference = np.mean([cumulative(image) for image in training], axis=0)
    assert np.allclose(datasets.training_histogram(mixed_study, 24), reference)
    distance = [np.mean([np.abs(cumulative(image) - reference).mean() for image in images]) for images in (plain, after)]
    assert distance[1] < 0.03 < 0.1 < distance[0]  # what is left is the rounding to 256 gray levels


def test_match_train_follows_the_training_pictures_and_no_other(mixed_study, tmp_path):
    import shutil

    before = matched(mixed_study)
    darker = tmp_path / "darker"
    shutil.copytree(mixed_study.inputs.data, darker)
    for file in darker.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) // 2).save(file)
    after = matched(replace(mixed_study, inputs=replace(mixed_study.inputs, data=str(darker), content="darker")))
    assert after.mean() < 0.7 * before.mean()

    one = next((tmp_path / "films").rglob("one3.png"))
    Image.fromarray(255 - np.asarray(Image.open(one))).save(one)
    other = matched(in_new_run(mixed_study, tmp_path / "other"))
    assert [np.array_equal(old, new) for old, new in zip(before, other, strict=True)] == [name != 3 for name in range(6)]
