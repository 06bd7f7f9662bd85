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
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_score

from koa_lib.data.files import find_pictures
from koa_lib.data.manifest import read_manifest
from koa_lib.errors import StudyError
from koa_lib.grades import NAMES
from koa_lib.images.read import describe, file_sha256, read_gray
from koa_lib.metrics import confusion, from_confusion
from koa_lib.phantoms import captions, draw, findings, other, regions
from koa_lib.phantoms.cohorts import captioned, write_cohort_a, write_cohort_b
from koa_lib.phantoms.draw import TRAITS, View, render
from koa_lib.phantoms.findings import Findings
from koa_lib.prompts import TABLE_1
from koa_lib.study import MANIFESTS

unit = st.floats(0, 1)
knees = st.builds(Findings, unit, unit, unit, unit, unit)
HEALTHY, SEVERE = Findings(0, 0, 0, 0, 0), Findings(0.95, 0.4, 0.95, 0.9, 0.8)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn_knees(folder):
    return json.loads((folder / "knees.json").read_text())


def as_drawn(folder, image_id):
    """Findings, view and traits of a picture's only knee."""
    ((found, view, traits),) = drawn_knees(folder)[image_id]
    return Findings(**found), View(**view), traits


@pytest.mark.parametrize("cohort, write, count, workers", [
    ("cohort_a", write_cohort_a, 12, 2), ("cohort_b", write_cohort_b, 60, 1),
])  # fmt: skip
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    tmp_path, cohort, write, count, workers, request
):
    folder, rows = request.getfixturevalue(cohort)
    write(tmp_path, count, seed=5, workers=workers)
    assert files(tmp_path) == files(folder)
    assert all(describe(folder / row["path"]).items() <= row.items() for row in rows.to_dict("records"))
    truth = pd.read_csv(folder / "truth.csv")
    assert truth["image_id"].equals(rows["image_id"]) and not rows.filter(regex="latent|true").size


def test_another_seed_gives_other_pictures_and_too_few_are_refused(tmp_path, cohort_a):
    others = write_cohort_a(tmp_path, 3, seed=6, workers=1)
    assert not set(others["pixel_sha256"]) & set(cohort_a[1]["pixel_sha256"])
    with pytest.raises(StudyError, match="5 .*20"):
        write_cohort_b(tmp_path, 5, seed=0)


def test_cohort_a_has_the_layout_of_the_training_set(cohort_a):
    _, rows = cohort_a
    assert len(rows) == 24 and set(rows["split"]) == {"train", "val", "test"}
    assert rows.groupby("group_id")[["side", "split"]].nunique().eq([2, 1]).all(axis=None)
    layout = (f"{row.split}/{row.kl_grade}/{row.group_id}{row.side}.png" for row in rows.itertuples())
    assert list(layout) == list(rows["path"]) and rows[["width", "height"]].eq(224).all(axis=None)


def test_cohort_b_has_the_layout_of_the_external_set(cohort_b):
    folder, rows = cohort_b
    assert len(rows) == 60 and rows["image_id"].is_unique and set(rows["split"]) == {"external"}
    for path, grade in zip(rows["path"], rows["kl_grade"], strict=True):
        name = NAMES[grade]
        assert re.fullmatch(rf"MedicalExpert-I/{grade}{name}/{name}G{grade} \(\d+\)\.png", path)
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(300, 162), (640, 161), (284, 150)}
    again = (folder / "MedicalExpert-II").rglob("*.png")
    second = Counter((file_sha256(path), int(path.parent.name[0])) for path in again)
    assert second == Counter(zip(rows["sha256"], rows["kl_grade_reader2"], strict=True))
    sides = ["".join(view["side"] for _, view, _ in knees) for knees in drawn_knees(folder).values()]
    assert {*sides} == {"L", "R", "RL"} and sides.count("RL") == (rows["width"] == 640).sum()


# Grades


@settings(max_examples=150, deadline=None)
@given(knee=knees, name=st.sampled_from(list(asdict(HEALTHY))), more=unit, seed=st.integers(0, 10_000))
def test_grades_grow_with_findings_and_a_reader_is_at_most_one_off(knee, name, more, seed):
    worse = replace(knee, **{name: max(getattr(knee, name), more)})
    before, after = (
        [findings.kl_grade(one), *findings.finding_grades(one).values()] for one in (knee, worse)
    )
    assert np.all(np.subtract(after, before) >= 0) and set(after[1:]) <= {0, 1, 2, 3}
    label = findings.read(knee, np.random.default_rng(seed))
    assert 0 <= label <= 4 and abs(label - before[0]) <= 1


@pytest.mark.parametrize("grade, osteophytes, narrowing, ends", [
    (0, 0, 0, 1), (1, 0.25, 0, 0), (1, 0, 0.9, 1), (2, 0.6, 0, 0), (3, 0.6, 0.6, 1), (3, 0.6, 0.9, 0),
    (4, 0.6, 0.9, 1),
])  # fmt: skip
def test_grades_follow_the_kl_rules(grade, osteophytes, narrowing, ends):
    assert findings.kl_grade(Findings(narrowing, 0, osteophytes, ends, 0)) == grade


@pytest.mark.parametrize("mix, name, most", [("MIX_A", "oai_chen2018", 0.03), ("MIX_B", "gornale2020", 0.08)])
def test_labels_have_the_real_mix_and_leave_room_for_a_perfect_grader(mix, name, most):
    rng = np.random.default_rng(1)
    drawn = [findings.draw_findings(value, getattr(findings, mix), rng) for value in rng.normal(size=4000)]
    labels = [findings.read(knee, rng) for knee in drawn]
    real = np.bincount(read_manifest(MANIFESTS / f"{name}.csv")["kl_grade"])
    assert np.abs(np.bincount(labels) / 4000 - real / real.sum()).max() < most
    kappa = from_confusion(confusion(labels, [findings.kl_grade(knee) for knee in drawn]))["qwk"]
    assert 0.80 <= kappa <= 0.90


def test_gray_values_alone_do_not_grade_and_knees_of_a_patient_are_alike(tmp_path):
    rows = write_cohort_a(tmp_path, 60, seed=11)
    pairs = rows.pivot(index="group_id", columns="side", values="kl_grade")
    assert 0.2 < pairs["L"].corr(pairs["R"]) < 0.9
    histograms = [Image.open(tmp_path / path).histogram() for path in rows["path"]]
    model = RandomForestClassifier(50, class_weight="balanced", random_state=0)
    rule = {"groups": rows["group_id"], "cv": GroupKFold(4), "scoring": "balanced_accuracy"}
    assert cross_val_score(model, histograms, rows["kl_grade"], **rule).mean() <= 0.35


# Drawing


def alike(one, other):
    return np.corrcoef(one.flat, other.flat)[0, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_sides_mirror_each_other(seed):
    view, traits = View(224, 224, 90, (111.5, 120), 0, "L"), np.random.default_rng(seed).normal(size=TRAITS)
    left, right = (
        render([(SEVERE, replace(view, side=side), traits)], np.random.default_rng(seed)) for side in "LR"
    )
    assert alike(left, right[:, ::-1]) > max(0.85, alike(left, right) + 0.03)


# What was drawn, and where


@pytest.mark.parametrize("cohort, defect", [("cohort_a", ""), ("cohort_b", ""), ("cohort_b", "other_size")])
def test_a_picture_is_told_as_it_was_drawn(cohort, defect, request):
    folder, rows = request.getfixturevalue(cohort)
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False).query("defect == @defect").iloc[0]
    row = rows.set_index("image_id").loc[truth["image_id"]]
    found, view, traits = as_drawn(folder, truth["image_id"])
    assert (view.height, view.width) == (row["height"], row["width"])
    told = [*draw.joint_centre(view), view.unit, *asdict(found).values()]
    assert told == pytest.approx(truth["joint_x":].tolist(), abs=1e-4)
    # Another film of the same knee is most like the picture where it is not moved.
    (x, y), picture, likeness = view.centre, read_gray(folder / row["path"]), []
    for off in (-4, 0, 4):
        moved = found, replace(view, centre=(x + off, y)), traits
        likeness.append(alike(picture, render([moved], np.random.default_rng(0))))
    assert np.argmax(likeness) == 1


def without_noise(knee, view, traits):
    bones = draw.bones(*draw.coordinates(view), knee, traits.astype(np.float32), np.random.default_rng(0))
    return draw.place(bones, view)


@pytest.mark.parametrize("side", "LR")
@pytest.mark.parametrize("medial, rest", [(0, 0), (0.5, 0.3), (0.7, 0.85)])
def test_the_drawn_gap_lies_in_the_joint_line_or_the_margins(medial, rest, side):
    view, traits = View(224, 224, 90, (110, 126), 3.0, side), np.random.default_rng(1).normal(size=TRAITS)
    knee = Findings(medial, medial / 7, rest, rest, rest)
    density, (line, margins, _) = without_noise(knee, view, traits), regions.drawn(knee, view, traits)
    # The joint line is the darkest gap; severe narrowing leaves none on the medial side.
    lateral = (np.arange(224) > view.centre[0]) == (side == "L")
    columns = np.flatnonzero(line.any(0) & lateral)
    gap = np.clip(density[96:156, columns], 0.001, None)  # turning the drawing overshoots a little below 0
    assert (line | margins)[96:156, columns][gap == gap.min(axis=0)].mean() > 0.95
    healthy = regions.drawn(HEALTHY, view, traits)
    line, margins, _ = regions.drawn(replace(HEALTHY, medial_jsn=medial), view, traits)
    assert not ((line ^ healthy[0]) & ~(margins | healthy[1])).any()  # as wide as in health


@pytest.mark.parametrize("side", "LR")
def test_each_region_is_where_its_finding_changes_the_drawing(side):
    view, traits = View(224, 224, 90, (110, 126), 3.0, side), np.random.default_rng(1).normal(size=TRAITS)
    plain, masks = without_noise(HEALTHY, view, traits), regions.drawn(HEALTHY, view, traits)
    for place, field in enumerate(("medial_jsn", "osteophytes", "sclerosis")):
        change = np.abs(without_noise(replace(HEALTHY, **{field: 1.0}), view, traits) - plain)
        inside = [change[mask].mean() for mask in masks]
        assert inside[place] > 5 * change[~masks.any(axis=0)].mean(), field
        if field != "sclerosis":  # a femur that comes down changes the bone at its end, too
            assert np.argmax(inside) == place


def test_regions_of_a_cohort_are_those_of_its_knees_and_never_overlap(cohort_a, easy_study):
    folder, rows = cohort_a
    training = replace(easy_study.profile.training, source="phantoms")
    study = replace(easy_study, profile=replace(easy_study.profile, training=training))
    masks = regions.of_cohort(study, find_pictures(rows, folder).iloc[:3], 224)
    assert masks.shape == (3, 3, 224, 224) and masks.sum(1).max() == 1
    for image_id, found in zip(rows["image_id"], masks, strict=False):
        assert np.array_equal(found, regions.drawn(*as_drawn(folder, image_id)))
        assert 0.08 < found.any(0).mean() < 0.25
    with pytest.raises(StudyError, match="easy_a"):
        regions.of_cohort(easy_study, None, 112)


# Captions

GRADES = re.compile(r"\b(grade|kl|kellgren|lawrence|stage|score)\b|\d", re.IGNORECASE)


@settings(max_examples=150, deadline=None)
@given(knee=knees, side=st.sampled_from("LR"), seed=st.integers(0, 100_000))
def test_caption_speaks_of_findings_and_never_of_grades(knee, side, seed):
    text, healthy = (
        captions.caption("knee", one, side, np.random.default_rng(seed)) for one in (knee, HEALTHY)
    )
    assert "knee" in text and ("left" in text, "right" in text) == (side == "L", side == "R")
    assert not GRADES.search(text) and not any(one.split(": ")[1].lower() in text.lower() for one in TABLE_1)
    narrowed = "medial" if knee.medial_jsn >= knee.lateral_jsn else "lateral"
    assert (narrowed in text) == (findings.finding_grades(knee)["jsn"] > 0)
    assert text != healthy or findings.kl_grade(knee) == 0


def test_captioned_pictures_show_mostly_knees_of_their_own():
    images, texts, kinds = captioned(30, seed=3, size=32)
    assert images.shape == (30, 32, 32) and images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 30
    assert 15 < kinds.count("knee") < 30 and set(kinds) <= {"knee", *other.KINDS}
    assert all(("knee" in text) == (kind == "knee") for text, kind in zip(texts, kinds, strict=True))
    again = captioned(4, seed=3, size=32, workers=1)
    assert np.array_equal(again[0], images[:4]) and again[1] == texts[:4]


@pytest.mark.parametrize("rotation", [-5.0, 5.0])
def test_the_centre_of_the_joint_turns_with_the_film(rotation):
    view = View(224, 224, 90, (110, 126), rotation, "L")
    u, v = draw.coordinates(view)
    dot = draw.place(np.exp(-((u / 0.04) ** 2) - ((v + draw.GAP / 2) / 0.04) ** 2).astype(np.float32), view)
    rows, columns = np.indices(dot.shape)
    centre = [(columns * dot).sum() / dot.sum(), (rows * dot).sum() / dot.sum()]
    assert centre == pytest.approx(draw.joint_centre(view), abs=0.6)
