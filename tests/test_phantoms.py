"""Phantoms: repeatable, graded by the rules, honest in difficulty, with known regions, like a real cohort."""

import json
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
from koa_lib.images.read import describe, file_sha256, read_gray
from koa_lib.metrics import confusion, from_confusion
from koa_lib.phantoms import captions, draw, findings, other, regions
from koa_lib.phantoms.cohorts import captioned, write_cohort_a, write_cohort_b
from koa_lib.phantoms.draw import TRAITS, View, render
from koa_lib.phantoms.findings import Findings
from koa_lib.study import MANIFESTS

unit = st.floats(0, 1)
knees = st.builds(Findings, unit, unit, unit, unit, unit)
HEALTHY, SEVERE = Findings(0, 0, 0, 0, 0), Findings(0.95, 0.4, 0.95, 0.9, 0.8)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def truth_of(folder):
    return pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("image_id")


def as_drawn(folder, image_id):
    """Findings, view and traits of a picture's only knee."""
    ((found, view, traits),) = json.loads((folder / "knees.json").read_text())[image_id]
    return Findings(**found), View(**view), traits


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path, cohort_a, cohort_b):
    for write, count, workers, (folder, _) in (
        (write_cohort_a, 12, 2, cohort_a),
        (write_cohort_b, 60, 1, cohort_b),
    ):
        again = tmp_path / write.__name__
        again.mkdir()
        write(again, count, seed=5, workers=workers)
        assert files(again) == files(folder)
    others = write_cohort_a(tmp_path, 3, seed=6, workers=1)
    assert not set(others["pixel_sha256"]) & set(cohort_a[1]["pixel_sha256"])


@pytest.mark.parametrize("cohort", ["cohort_a", "cohort_b"])
def test_cohort_reads_like_a_real_one(cohort, request):
    folder, manifest = request.getfixturevalue(cohort)
    found = find_pictures(read_manifest(folder / "manifest.csv"), folder)
    assert len(found) == len(manifest)
    assert all(describe(row["file"]).items() <= row.items() for row in found.to_dict("records"))
    assert (
        list(truth_of(folder).index) == list(manifest["image_id"])
        and not manifest.filter(regex="latent|true").columns.any()
    )


def test_cohort_a_has_the_layout_of_the_training_set(cohort_a):
    _, rows = cohort_a
    patients = rows.groupby("group_id")
    assert (
        len(rows) == 24
        and (patients["side"].agg(sorted).map("".join) == "LR").all()
        and (patients["split"].nunique() == 1).all()
    )
    assert [f"{row.split}/{row.kl_grade}/{row.group_id}{row.side}.png" for row in rows.itertuples()] == list(
        rows["path"]
    )
    assert set(rows["split"]) == {"train", "val", "test"} and (rows[["width", "height"]] == 224).all(
        axis=None
    )


def test_cohort_b_has_the_layout_of_the_external_set(cohort_b):
    folder, rows = cohort_b
    assert len(rows) == 60 and rows["image_id"].is_unique and set(rows["split"]) == {"external"}
    for path, grade in zip(rows["path"], rows["kl_grade"], strict=True):
        assert re.fullmatch(
            rf"MedicalExpert-I/{grade}{NAMES[grade]}/{NAMES[grade]}G{grade} \(\d+\)\.png", path
        )
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(300, 162), (640, 161), (284, 150)}
    second = Counter(
        (file_sha256(path), int(path.parent.name[0])) for path in (folder / "MedicalExpert-II").rglob("*.png")
    )
    assert second == Counter(zip(rows["sha256"], rows["kl_grade_reader2"], strict=True))


def test_cohort_b_too_small_for_its_defects_is_refused(tmp_path):
    with pytest.raises(StudyError, match="5 pictures.*at least 20"):
        write_cohort_b(tmp_path, 5, seed=0)
    assert not list(tmp_path.iterdir())


# Grades


@settings(max_examples=200, deadline=None)
@given(knee=knees, name=st.sampled_from(list(asdict(HEALTHY))), more=unit, seed=st.integers(0, 10_000))
def test_grades_grow_with_findings_and_a_reader_is_at_most_one_off(knee, name, more, seed):
    worse = replace(knee, **{name: max(getattr(knee, name), more)})
    assert findings.kl_grade(worse) >= findings.kl_grade(knee)
    before, after = findings.finding_grades(knee), findings.finding_grades(worse)
    assert all(after[key] >= before[key] for key in before) and set(after.values()) <= {0, 1, 2, 3}
    label = findings.read(knee, np.random.default_rng(seed))
    assert 0 <= label <= 4 and abs(label - findings.kl_grade(knee)) <= 1


@pytest.mark.parametrize(
    "grade, knee",
    [
        (0, HEALTHY),
        (1, replace(HEALTHY, osteophytes=0.25)),
        (2, replace(HEALTHY, osteophytes=0.6)),
        (3, replace(HEALTHY, osteophytes=0.6, medial_jsn=0.6)),
        (3, replace(HEALTHY, osteophytes=0.6, medial_jsn=0.9)),
        (4, SEVERE),
        (0, replace(HEALTHY, sclerosis=1.0, deformity=1.0)),
    ],
)
def test_grades_follow_the_kl_rules(grade, knee):
    assert findings.kl_grade(knee) == grade


@pytest.mark.parametrize(
    "mix, name, most", [(findings.MIX_A, "oai_chen2018", 0.03), (findings.MIX_B, "gornale2020", 0.08)]
)
def test_labels_have_the_real_mix_and_leave_room_for_a_perfect_grader(mix, name, most):
    rng = np.random.default_rng(1)
    drawn = [findings.draw_findings(value, mix, rng) for value in rng.normal(size=8000)]
    labels = np.array([findings.read(knee, rng) for knee in drawn])
    real = read_manifest(MANIFESTS / f"{name}.csv")["kl_grade"].value_counts(normalize=True).sort_index()
    assert np.abs(np.bincount(labels, minlength=5) / 8000 - real.to_numpy()).max() < most
    kappa = from_confusion(confusion(labels, [findings.kl_grade(knee) for knee in drawn]))["qwk"]
    assert 0.80 <= kappa <= 0.90


def test_gray_values_alone_do_not_grade_and_knees_of_a_patient_are_alike(tmp_path):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold, cross_val_score

    rows = write_cohort_a(tmp_path, 100, seed=11)
    pairs = rows.pivot(index="group_id", columns="side", values="kl_grade")
    assert 0.2 < np.corrcoef(pairs["L"], pairs["R"])[0, 1] < 0.9
    histograms = np.stack([Image.open(tmp_path / path).histogram() for path in rows["path"]])
    model, scores = (
        RandomForestClassifier(100, class_weight="balanced", random_state=0),
        {"scoring": "balanced_accuracy"},
    )
    found = cross_val_score(
        model, histograms, rows["kl_grade"], groups=rows["group_id"], cv=GroupKFold(4), **scores
    )
    assert found.mean() <= 0.35


# Drawing


def drawn(knee=HEALTHY, side="L", seed=0, wide=False):
    traits = np.random.default_rng([seed, 1]).normal(size=TRAITS)
    return render(
        [(knee, View(224, 224, 90.0, (111.5, 120.0), 0.0, side, wide), traits)], np.random.default_rng(seed)
    )


@pytest.mark.parametrize(
    "image",
    [drawn(SEVERE, wide=True), *(other.render(kind, np.random.default_rng(0)) for kind in other.KINDS)],
)
def test_pictures_use_the_range(image):
    assert image.shape == (224, 224) and image.min() >= 0 and image.max() <= 1 and image.std() > 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_sides_mirror_each_other(seed):
    left, right = drawn(SEVERE, "L", seed), drawn(SEVERE, "R", seed)
    mirrored, same = (np.corrcoef(left.ravel(), image.ravel())[0, 1] for image in (right[:, ::-1], right))
    assert mirrored > max(0.85, same + 0.03)


@pytest.mark.parametrize(
    "field, rows, columns",
    [
        ("medial_jsn", slice(105, 122), slice(30, 95)),
        ("lateral_jsn", slice(105, 122), slice(130, 195)),
        ("sclerosis", slice(115, 135), slice(30, 195)),
        ("osteophytes", slice(90, 135), slice(0, 224)),
        ("deformity", slice(80, 135), slice(20, 205)),
    ],
)
def test_each_finding_shows_where_it_belongs(field, rows, columns):
    # A left knee has its medial side at the viewer's left; the same seed draws the same film.
    difference = np.abs(drawn(replace(HEALTHY, **{field: 0.9})) - drawn(HEALTHY))
    inside = np.zeros_like(difference, dtype=bool)
    inside[rows, columns] = True
    assert difference[inside].mean() > max(2 * difference[~inside].mean(), 0.01)


# What was drawn, and where


@pytest.mark.parametrize("cohort, defect", [("cohort_a", ""), ("cohort_b", ""), ("cohort_b", "other_size")])
def test_a_picture_is_told_as_it_was_drawn(cohort, defect, request):
    folder, rows = request.getfixturevalue(cohort)
    truth = truth_of(folder)
    row = rows[(truth["defect"] == defect).to_numpy()].iloc[0]
    (found, view, traits), told = as_drawn(folder, row["image_id"]), truth.loc[row["image_id"]]
    assert (view.height, view.width) == (row["height"], row["width"])
    assert draw.joint_centre(view) == pytest.approx((told["joint_x"], told["joint_y"]), abs=1e-3)
    assert list(asdict(found).values()) == pytest.approx(
        [told[f"latent_{name}"] for name in asdict(found)], abs=1e-4
    )
    # Another film of the same knee is most like the picture where it is not moved.
    x, y = view.centre
    films = [
        render([(found, replace(view, centre=(x + off, y)), traits)], np.random.default_rng(0))
        for off in (-4, 0, 4)
    ]
    likeness = [np.corrcoef(read_gray(folder / row["path"]).ravel(), film.ravel())[0, 1] for film in films]
    assert np.argmax(likeness) == 1


def without_noise(knee, view, traits):
    u, v = draw.coordinates(view)
    return draw.place(draw.bones(u, v, knee, np.asarray(traits, np.float32), np.random.default_rng(0)), view)


@pytest.mark.parametrize(
    "knee", [HEALTHY, Findings(0.5, 0.1, 0.4, 0.3, 0.1), Findings(0.7, 0.1, 0.9, 0.9, 0.8)]
)
@pytest.mark.parametrize("side", "LR")
def test_joint_line_is_the_darkest_gap_between_the_bones(knee, side):
    view, traits = View(224, 224, 90, (110, 126), 3.0, side), np.random.default_rng(1).normal(size=TRAITS)
    density, (line, margins, _) = without_noise(knee, view, traits), regions.drawn(knee, view, traits)
    lateral = (np.arange(224) > view.centre[0]) == (
        side == "L"
    )  # severe narrowing leaves no gap on the medial side
    columns = np.flatnonzero(line.any(0) & lateral)
    gap = np.clip(density[96:156, columns], 0.001, None)  # turning the drawing overshoots a little below 0
    assert (line | margins)[96:156, columns][gap == gap.min(axis=0)].mean() > 0.95


@pytest.mark.parametrize("side", "LR")
def test_regions_are_where_a_finding_changes_the_drawing(side):
    view, traits = View(224, 224, 90, (110, 126), -2.0, side), np.random.default_rng(2).normal(size=TRAITS)
    masks = dict(zip(regions.NAMES, regions.drawn(HEALTHY, view, traits), strict=True))
    plain, anywhere = without_noise(HEALTHY, view, traits), np.any(list(masks.values()), axis=0)
    line, margins, _ = regions.drawn(replace(HEALTHY, medial_jsn=0.9), view, traits)
    assert not ((line ^ masks["joint line"]) & ~(margins | masks["margins"])).any()  # as wide as in health
    for name, field in zip(regions.NAMES, ("medial_jsn", "osteophytes", "sclerosis"), strict=True):
        change = np.abs(without_noise(replace(HEALTHY, **{field: 1.0}), view, traits) - plain)
        inside = {key: change[mask].mean() for key, mask in masks.items()}
        assert inside[name] > 5 * change[~anywhere].mean(), name
        if name != "subchondral bone":  # a femur that comes down changes the bone at its end, too
            assert max(inside, key=inside.get) == name


def test_regions_of_a_cohort_are_those_of_its_knees(cohort_a, easy_study):
    folder, rows = cohort_a
    training = replace(easy_study.profile.training, source="phantoms")
    study = replace(easy_study, profile=replace(easy_study.profile, training=training))
    masks = regions.of_cohort(study, find_pictures(rows, folder).iloc[:3], 224)
    assert masks.shape == (3, 3, 224, 224) and masks.sum(1).max() == 1 and not masks[:, :, [0, -1]].any()
    for image_id, found in zip(rows["image_id"], masks, strict=False):
        assert np.array_equal(found, regions.drawn(*as_drawn(folder, image_id)))
        assert (
            found[:, :, :100].any((1, 2)).all()
            and found[:, :, 124:].any((1, 2)).all()
            and 0.08 < found.any(0).mean() < 0.25
        )
    with pytest.raises(StudyError, match="easy_a"):
        regions.of_cohort(easy_study, None, 112)


# Captions

GRADE_WORDS = re.compile(r"\b(grade|kl|kellgren|lawrence|stage|score)\b|\d", re.IGNORECASE)


@settings(max_examples=300, deadline=None)
@given(knee=knees, side=st.sampled_from("LR"), seed=st.integers(0, 100_000))
def test_caption_speaks_of_findings_and_never_of_grades(knee, side, seed):
    text, healthy = (
        captions.caption("knee", shown, side, np.random.default_rng(seed)) for shown in (knee, HEALTHY)
    )
    assert "knee" in text and ("left" in text, "right" in text) == (side == "L", side == "R")
    assert not GRADE_WORDS.search(text) and not any(
        sentence.split(": ")[1].lower() in text.lower() for sentence in TABLE_1
    )
    narrowed = "medial" if knee.medial_jsn >= knee.lateral_jsn else "lateral"
    assert (narrowed in text) == (findings.finding_grades(knee)["jsn"] > 0) and (text == healthy) <= (
        findings.kl_grade(knee) == 0
    )


def test_captioned_pictures_show_mostly_knees_of_their_own():
    images, texts, kinds = captioned(60, seed=3, size=32)
    assert images.shape == (60, 32, 32) and images.dtype == np.uint8
    assert 0.02 < np.mean([kind != "knee" for kind in kinds]) < 0.4 and set(kinds) <= {"knee", *other.KINDS}
    assert all(("knee" in text) == (kind == "knee") for text, kind in zip(texts, kinds, strict=True))
    again = captioned(8, seed=3, size=32, workers=1)
    assert np.array_equal(again[0], images[:8]) and again[1] == texts[:8]
