"""Phantoms: repeatable, graded by the rules, honest in difficulty, and indistinguishable from a real cohort for the code."""

import re
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.data.files import find_pictures
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.grades import NAMES, TABLE_1
from koa_lib.images.read import describe, file_sha256
from koa_lib.phantoms import captions, findings
from koa_lib.phantoms.cohorts import captioned, write_cohort_a, write_cohort_b
from koa_lib.phantoms.draw import TRAITS, View, render
from koa_lib.phantoms.findings import Findings
from koa_lib.phantoms.other import KINDS as OTHER_KINDS
from koa_lib.phantoms.other import render as render_other
from koa_lib.study import MANIFESTS

unit = st.floats(0, 1)
knees = st.builds(Findings, unit, unit, unit, unit, unit)
HEALTHY, SEVERE = Findings(0, 0, 0, 0, 0), Findings(0.95, 0.4, 0.95, 0.9, 0.8)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path, cohort_a, cohort_b):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_cohort_a(tmp_path / "a", 12, seed=5, workers=2)
    write_cohort_b(tmp_path / "b", 60, seed=5, workers=1)
    assert files(tmp_path / "a") == files(cohort_a[0]) and files(tmp_path / "b") == files(cohort_b[0])


def test_another_seed_gives_other_pictures(tmp_path, cohort_a):
    other = write_cohort_a(tmp_path, 3, seed=6, workers=1)
    assert not set(other["pixel_sha256"]) & set(cohort_a[1]["pixel_sha256"])


@pytest.mark.parametrize("cohort", ["cohort_a", "cohort_b"])
def test_cohort_reads_like_a_real_one(cohort, request):
    folder, manifest = request.getfixturevalue(cohort)
    found = find_pictures(read_manifest(folder / "manifest.csv"), folder)
    assert len(found) == len(manifest)
    for row in found.to_dict("records"):
        described = describe(row["file"])
        assert described == {name: row[name] for name in described}


def test_cohort_a_has_the_layout_of_the_training_set(cohort_a):
    _, rows = cohort_a
    assert len(rows) == 24 and (rows.groupby("group_id")["side"].agg(lambda sides: "".join(sorted(sides))) == "LR").all()
    assert rows["path"].str.fullmatch(r"(train|val|test)/[0-4]/\d{7}[LR]\.png").all()
    assert [f"{row.split}/{row.kl_grade}/{row.group_id}{row.side}.png" for row in rows.itertuples()] == list(rows["path"])
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(224, 224)}
    assert set(rows["split"]) == {"train", "val", "test"} and (rows.groupby("group_id")["split"].nunique() == 1).all()


def test_cohort_b_has_the_layout_of_the_external_set(cohort_b):
    folder, rows = cohort_b
    assert len(rows) == 60 and rows["image_id"].is_unique and set(rows["split"]) == {"external"}
    pattern = r"MedicalExpert-I/(\d)(\w+)/(\w+)G(\d) \(\d+\)\.png"
    for path, grade in zip(rows["path"], rows["kl_grade"], strict=True):
        number, place, name, again = re.fullmatch(pattern, path).groups()
        assert int(number) == int(again) == grade and place == name == NAMES[grade]
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(300, 162), (640, 161), (284, 150)}
    second = Counter((file_sha256(path), int(path.parent.name[0])) for path in (folder / "MedicalExpert-II").rglob("*.png"))
    assert second == Counter(zip(rows["sha256"], rows["kl_grade_reader2"], strict=True))


def test_truth_is_beside_the_manifest_and_not_in_it(cohort_a):
    folder, rows = cohort_a
    truth = pd.read_csv(folder / "truth.csv", dtype={"image_id": str})
    assert list(truth["image_id"]) == list(rows["image_id"]) and not [name for name in rows if name.startswith(("latent", "true"))]
    assert (truth["true_grade"] - rows["kl_grade"]).abs().max() <= 1


# Grades


@settings(max_examples=200, deadline=None)
@given(knee=knees, name=st.sampled_from(list(asdict(HEALTHY))), more=unit)
def test_grade_never_falls_when_a_finding_grows(knee, name, more):
    worse = replace(knee, **{name: max(getattr(knee, name), more)})
    assert findings.kl_grade(worse) >= findings.kl_grade(knee)
    before, after = findings.finding_grades(knee), findings.finding_grades(worse)
    assert all(after[key] >= before[key] for key in before) and set(after.values()) <= {0, 1, 2, 3}


def test_grades_follow_the_kl_rules():
    assert findings.kl_grade(HEALTHY) == 0 and findings.kl_grade(SEVERE) == 4
    assert findings.kl_grade(replace(HEALTHY, osteophytes=0.25)) == 1  # possible lipping
    assert findings.kl_grade(replace(HEALTHY, osteophytes=0.6)) == 2  # definite osteophytes, no narrowing
    assert findings.kl_grade(replace(HEALTHY, osteophytes=0.6, medial_jsn=0.6)) == 3
    assert findings.kl_grade(replace(HEALTHY, sclerosis=1.0, deformity=1.0)) == 0  # not without osteophytes or narrowing


@settings(max_examples=60, deadline=None)
@given(knee=knees, seed=st.integers(0, 10_000))
def test_reader_is_at_most_one_grade_off(knee, seed):
    label = findings.read(knee, np.random.default_rng(seed))
    assert 0 <= label <= 4 and abs(label - findings.kl_grade(knee)) <= 1


@pytest.mark.parametrize("mix", [findings.MIX_A, findings.MIX_B])
def test_reader_noise_leaves_room_but_not_too_much(mix):
    assert 0.80 <= findings.noise_ceiling(mix, knees=8000) <= 0.90


@pytest.mark.parametrize("mix, name, most", [(findings.MIX_A, "oai_chen2018", 0.03), (findings.MIX_B, "gornale2020", 0.08)])
def test_grade_mix_of_labels_is_near_the_real_one(mix, name, most):
    generator = np.random.default_rng(1)
    labels = [findings.read(findings.draw_findings(value, mix, generator), generator) for value in generator.normal(size=8000)]
    real = read_manifest(MANIFESTS / f"{name}.csv")["kl_grade"].value_counts(normalize=True).sort_index()
    assert np.abs(np.bincount(labels, minlength=5) / 8000 - real.to_numpy()).max() < most


def test_cohort_b_too_small_for_its_defects_is_refused(tmp_path):
    with pytest.raises(StudyError, match="at least 20"):
        write_cohort_b(tmp_path, 5, seed=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """About 300 knees of cohort A: their pictures and manifest."""
    folder = tmp_path_factory.mktemp("many")
    rows = write_cohort_a(folder, 150, seed=11)
    return np.stack([np.asarray(Image.open(folder / path)) for path in rows["path"]]), rows


def test_histogram_alone_does_not_grade(many):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, rows = many
    histograms = np.stack([np.histogram(image, 32, (0, 256))[0] for image in images])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced"))
    predicted = cross_val_predict(model, histograms, rows["kl_grade"], groups=rows["group_id"], cv=StratifiedGroupKFold(4, shuffle=True, random_state=0))
    assert balanced_accuracy_score(rows["kl_grade"], predicted) <= 0.35


def test_knees_of_a_patient_are_alike(many):
    pairs = many[1].pivot(index="group_id", columns="side", values="kl_grade")
    assert 0.2 < np.corrcoef(pairs["L"], pairs["R"])[0, 1] < 0.9


def test_few_pictures_are_inverted(many):
    # A knee film is brighter in the middle than at its rim; an inverted one is darker.
    images, _ = many
    middle, rim = images[:, 60:180, 60:164].mean((1, 2)), images[:, :, [*range(8), *range(216, 224)]].mean((1, 2))
    assert 0 < (middle < rim).mean() < 0.06


# Drawing


def drawn(knee=HEALTHY, side="L", seed=0, wide=False):
    traits = np.random.default_rng([seed, 1]).normal(size=TRAITS)
    return render([(knee, View(224, 224, 90.0, (111.5, 120.0), 0.0, side, wide), traits)], np.random.default_rng(seed))


@settings(max_examples=10, deadline=None)
@given(knee=knees, seed=st.integers(0, 1000), wide=st.booleans())
def test_picture_is_finite_and_uses_the_range(knee, seed, wide):
    image = drawn(knee, seed=seed, wide=wide)
    assert image.shape == (224, 224) and image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1 and image.std() > 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sides_mirror_each_other(seed):
    left, right = drawn(SEVERE, "L", seed), drawn(SEVERE, "R", seed)

    def likeness(other):
        return np.corrcoef(left.ravel(), other.ravel())[0, 1]

    assert likeness(right[:, ::-1]) > 0.85 and likeness(right[:, ::-1]) > likeness(right) + 0.03


@pytest.mark.parametrize("field, rows, columns", [
    ("medial_jsn", slice(105, 122), slice(30, 95)), ("lateral_jsn", slice(105, 122), slice(130, 195)), ("sclerosis", slice(115, 135), slice(30, 195)),
    ("osteophytes", slice(90, 135), slice(0, 224)), ("deformity", slice(80, 135), slice(20, 205))])
def test_each_finding_shows_where_it_belongs(field, rows, columns):
    # A left knee has its medial side at the viewer's left; the same seed draws the same film.
    difference = np.abs(drawn(replace(HEALTHY, **{field: 0.9})) - drawn(HEALTHY))
    inside = np.zeros_like(difference, dtype=bool)
    inside[rows, columns] = True
    assert difference[inside].mean() > 2 * difference[~inside].mean() > -1


def test_narrowing_closes_the_joint_space():
    # The gap between the bones is darker than bone; with narrowing the dark band in the medial half gets thinner.
    def dark(knee):
        strip = drawn(knee)[95:130, 45:85].mean(axis=1)
        return (strip < (strip.max() + strip.min()) / 2).sum()

    assert dark(replace(HEALTHY, medial_jsn=0.9)) < dark(HEALTHY)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_anatomy_is_a_picture_and_repeatable(kind):
    image = render_other(kind, np.random.default_rng(0))
    assert image.shape == (224, 224) and 0 <= image.min() and image.max() <= 1 and image.std() > 0.05
    assert np.array_equal(image, render_other(kind, np.random.default_rng(0)))


# Captions


GRADE_WORDS = re.compile(r"\b(grade|kl|kellgren|lawrence|stage|score)\b|\d", re.IGNORECASE)


@settings(max_examples=300, deadline=None)
@given(knee=knees, side=st.sampled_from("LR"), seed=st.integers(0, 100_000))
def test_caption_speaks_of_findings_and_never_of_grades(knee, side, seed):
    text = captions.caption("knee", knee, side, np.random.default_rng(seed))
    assert "knee" in text and ("left" in text) == (side == "L" or "both sides" in text and "left" in text)
    assert not GRADE_WORDS.search(text) and not any(sentence.split(": ")[1].lower() in text.lower() for sentence in TABLE_1)


def test_caption_follows_the_findings():
    texts = {name: {captions.caption("knee", knee, "R", np.random.default_rng(seed)) for seed in range(40)} for name, knee in (("healthy", HEALTHY), ("severe", SEVERE))}
    assert not texts["healthy"] & texts["severe"] and len(texts["healthy"]) > 5
    assert all("medial" in text and "lateral" not in text for text in texts["severe"])


def test_captioned_pictures_show_mostly_knees_of_their_own():
    images, texts, kinds = captioned(60, seed=3, size=32)
    assert images.shape == (60, 32, 32) and images.dtype == np.uint8 and len(texts) == 60
    assert 0.02 < np.mean([kind != "knee" for kind in kinds]) < 0.4 and set(kinds) <= {"knee", *OTHER_KINDS}
    assert all(("knee" in text) == (kind == "knee") for text, kind in zip(texts, kinds, strict=True))
    again = captioned(8, seed=3, size=32, workers=1)
    assert np.array_equal(again[0], images[:8]) and again[1] == texts[:8]
