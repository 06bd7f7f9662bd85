"""The embedded cohorts: rules, bytes, layouts, built-in defects, and that grading is hard for the right reasons."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koa_lib import anatomy, captions, manifests, phantoms
from koa_lib.errors import StudyError
from koa_lib.findings import MIX_B, Findings, draw_findings, finding_grades, kl_grade, noise_ceiling, read
from koa_lib.grades import GRADES, NAMES, TABLE_1
from koa_lib.radiograph import TRAITS, View, render

HEALTHY = Findings(0.0, 0.0, 0.0, 0.0, 0.0)
PATIENTS, PICTURES_B = 150, 60
latents = st.floats(0, 1)


@pytest.fixture(scope="module")
def cohort_a(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    frame = phantoms.write_cohort_a(folder, PATIENTS, seed=3)
    return folder, frame, np.stack([manifests.decode(folder / path)[0] for path in frame["path"]])


@pytest.fixture(scope="module")
def cohort_b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("b")
    return folder, phantoms.write_cohort_b(folder, PICTURES_B, seed=3)


def _truth(folder):
    return pd.read_csv(folder / "truth.csv", keep_default_na=False).set_index("image_id")


def _knee(findings=HEALTHY, side="L", wide=False):
    """The mean of a few films of one average anatomy, so that film and texture do not decide a comparison."""
    size = (162, 300, 80, (150, 85)) if wide else (224, 224, 90, (112, 124))
    view = View(*size, rotation=0.0, side=side, wide=wide)
    return np.mean([render([(findings, view, np.zeros(TRAITS))], np.random.default_rng(k)) for k in range(12)], axis=0)


@given(st.lists(latents, min_size=5, max_size=5), st.integers(0, 4), latents)
def test_no_finding_lowers_the_grade_when_it_grows(values, which, larger):
    grown = [max(value, larger) if k == which else value for k, value in enumerate(values)]
    assert kl_grade(Findings(*grown)) >= kl_grade(Findings(*values))


@pytest.mark.parametrize(
    ("findings", "grade"),
    [
        (HEALTHY, 0),
        (Findings(0.3, 0, 0, 0, 0), 1),
        (Findings(0, 0, 0.2, 0, 0), 1),
        (Findings(0.9, 0, 0.2, 0.9, 0.9), 1),
        (Findings(0, 0.3, 0.5, 0, 0), 2),
        (Findings(0, 0.5, 0.5, 0.2, 0), 3),
        (Findings(0.9, 0, 0.8, 0.2, 0.2), 3),
        (Findings(0.9, 0, 0.8, 0.7, 0.2), 4),
    ],
)
def test_the_rules(findings, grade):
    assert kl_grade(findings) == grade


@given(st.integers(0, 10_000))
def test_a_reader_errs_by_a_neighbour_at_most(seed):
    rng = np.random.default_rng(seed)
    findings = draw_findings(rng.normal(), MIX_B, rng)
    assert abs(read(findings, rng) - kl_grade(findings)) <= 1
    assert all(0 <= grade <= 3 for grade in finding_grades(findings).values())


def test_reader_noise_limits_what_can_be_reached():
    for mix in (phantoms.MIX_A, phantoms.MIX_B):
        assert 0.80 <= noise_ceiling(mix, knees=4000) <= 0.90


def test_a_has_oai_layout_and_a_valid_manifest(cohort_a):
    folder, frame, pixels = cohort_a
    assert list(frame.columns) == [*manifests.COLUMNS, *manifests.FINDINGS]
    assert len(frame) == 2 * PATIENTS and pixels.shape[1:] == (224, 224) and pixels.dtype == np.uint8
    for row in frame.itertuples():
        assert re.fullmatch(rf"(train|val|test)/{row.kl_grade}/9\d{{6}}[LR]\.png", row.path)
        assert row.image_id == row.group_id + row.side and row.path.startswith(row.split)
    assert set(frame["mode"]) == {"L"} and frame["pixel_sha256"].is_unique
    assert frame["kl_grade_reader2"].isna().all()
    assert {path.name for path in folder.iterdir()} == {"train", "val", "test", "manifest.csv", "truth.csv"}


def test_a_splits_patients_and_keeps_the_grade_mix(cohort_a):
    _, frame, _ = cohort_a
    patients = frame.groupby("group_id")
    assert (patients["split"].nunique() == 1).all() and (patients["side"].agg(set) == {"L", "R"}).all()
    shares = frame["split"].value_counts(normalize=True)
    assert np.allclose([shares["train"], shares["val"], shares["test"]], [0.7, 0.1, 0.2])
    mix = frame["kl_grade"].value_counts(normalize=True).reindex(GRADES).to_numpy()
    assert np.abs(mix - phantoms.MIX_A).max() < 0.08
    assert frame.groupby("split")["kl_grade"].nunique().min() >= 4
    pairs = frame.pivot(index="group_id", columns="side", values="kl_grade")
    assert 0.3 < np.corrcoef(pairs["L"], pairs["R"])[0, 1] < 0.7


def test_few_pictures_are_inverted(cohort_a):
    folder, frame, pixels = cohort_a
    inverted = (_truth(folder).loc[frame["image_id"], "defect"] == "inverted").to_numpy()
    assert 0 < inverted.sum() <= 0.04 * len(frame)
    # Bone is brighter than the joint's surroundings, unless the film is inverted.
    bone, corner = pixels[:, 170:200, 80:140].mean((1, 2)), pixels[:, 95:150, :6].mean((1, 2))
    assert ((bone < corner) == inverted).mean() > 0.97


def test_labels_are_noisy_readings_of_the_truth(cohort_a):
    folder, frame, _ = cohort_a
    truth = _truth(folder).loc[frame["image_id"], "true_grade"].to_numpy()
    assert 0.5 < (truth == frame["kl_grade"]).mean() < 0.8 and np.abs(truth - frame["kl_grade"]).max() <= 1


def test_brightness_alone_does_not_grade(cohort_a):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    _, frame, pixels = cohort_a
    bins = np.stack([np.histogram(image, 32, (0, 256))[0] / image.size for image in pixels])
    bins = (bins - bins.mean(0)) / (bins.std(0) + 1e-9)
    model = LogisticRegression(class_weight="balanced", C=0.1, max_iter=300)
    found = cross_val_predict(model, bins, frame["kl_grade"], groups=frame["group_id"], cv=GroupKFold(3))
    assert balanced_accuracy_score(frame["kl_grade"], found) <= 0.35


def test_b_has_the_external_layout(cohort_b):
    folder, frame = cohort_b
    assert manifests.read_manifest(folder / "manifest.csv").equals(frame)
    for row in frame.itertuples():
        name = NAMES[row.kl_grade]
        assert re.fullmatch(rf"MedicalExpert-I/{row.kl_grade}{name}/{name}G{row.kl_grade} \(\d+\)\.png", row.path)
        assert row.image_id == row.path.split("/")[-1][:-4].replace(" ", "")
    assert set(frame["split"]) == {"external"} and set(frame["side"]) == {""} and set(frame["mode"]) == {"RGB", "I;16"}
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(300, 162), (640, 161)}
    assert (frame["kl_grade"] >= 3).mean() > 0.15


def test_b_holds_its_defects_in_known_number(cohort_b):
    folder, frame = cohort_b
    known = phantoms.defects_b(PICTURES_B)
    assert (frame["width"] == 640).sum() == known["two_knees"]
    assert (frame["bit_depth"] == 16).sum() == known["sixteen_bit"]
    assert (frame["channels"] == 3).sum() == known["colour"]
    groups = frame.groupby("pixel_sha256")
    assert frame["pixel_sha256"].duplicated().sum() == known["copies"] + known["disputed"]
    assert (groups["kl_grade"].nunique() > 1).sum() == known["disputed"] == 1
    assert (groups["group_id"].nunique() == 1).all() and frame["group_id"].isin(frame["image_id"]).all()
    changed = frame[frame["kl_grade"] != frame["kl_grade_reader2"]]
    assert 1 <= len(changed) <= 3 and set(changed["kl_grade"]) == {0} and set(changed["kl_grade_reader2"]) == {1}
    assert _truth(folder)["defect"].value_counts().drop("").to_dict() == known


def test_b_needs_room_for_its_defects(tmp_path):
    with pytest.raises(StudyError, match="at least 10"):
        phantoms.write_cohort_b(tmp_path, 9, seed=0)


def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path):
    listings = []
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        for cohort, write, size in (("a", phantoms.write_cohort_a, 4), ("b", phantoms.write_cohort_b, 12)):
            (tmp_path / name / cohort).mkdir(parents=True)
            write(tmp_path / name / cohort, size, seed, workers)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        listings.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert listings[0] == listings[1] and listings[0] != listings[2]
    first, second = phantoms.captioned(8, 5, 64, workers=1), phantoms.captioned(8, 5, 64, workers=2)
    assert (first[0] == second[0]).all() and first[1:] == second[1:]


def test_the_fibula_lies_on_the_side_that_the_name_says():
    left, right = _knee(side="L"), _knee(side="R")
    corners = np.s_[185:220, 16:30], np.s_[185:220, 194:208]
    assert left[corners[1]].mean() > left[corners[0]].mean() + 0.02
    assert right[corners[0]].mean() > right[corners[1]].mean() + 0.02


def _gap(image, columns):
    # Pixel rows of the joint space: darker than half way between bone and the darkest row.
    rows = image[90:160, columns].mean(axis=1)
    return int((rows < (rows.min() + np.median(rows)) / 2).sum())


def test_narrowing_is_several_pixels_in_its_own_compartment():
    medial, lateral = slice(60, 72), slice(152, 164)
    healthy, narrow = _knee(), _knee(Findings(0.7, 0, 0, 0, 0))
    assert _gap(healthy, medial) >= 9 and _gap(healthy, medial) - _gap(narrow, medial) >= 5
    assert abs(_gap(healthy, lateral) - _gap(narrow, lateral)) <= 2


def test_osteophytes_and_sclerosis_show_where_they_belong():
    spurs = _knee(Findings(0, 0, 0.8, 0, 0)) - _knee()
    assert spurs[124:128, 12:20].mean() > 0.05 and spurs[124:128, 204:212].mean() > 0.05
    dense = _knee(Findings(0.1, 0, 0, 0.8, 0)) - _knee(Findings(0.1, 0, 0, 0, 0))
    assert dense[130:138, 50:70].mean() > 0.08 and dense[130:138, 50:70].mean() > 2 * dense[130:138, 155:175].mean()
    ends = _knee(Findings(0.1, 0, 0, 0, 0.9)) - _knee(Findings(0.1, 0, 0, 0, 0))
    assert np.abs(ends[110:140, 20:60]).mean() > 0.03


def test_captions_speak_of_findings_and_never_of_grades():
    images, texts, kinds = phantoms.captioned(120, 7, 56)
    assert images.shape == (120, 56, 56) and images.dtype == np.uint8 and images.std((1, 2)).min() > 5
    assert 0.05 < 1 - kinds.count("knee") / 120 < 0.3 and set(kinds) == {"knee", *anatomy.KINDS}
    sentences = [sentence.split(": ")[-1].lower() for sentence in TABLE_1]
    for text, kind in zip(texts, kinds, strict=True):
        assert not re.search(r"\bkl\b|kellgren|grade|\d", text.lower())
        assert not any(sentence in text.lower() for sentence in sentences)
        assert ("knee" in text) == (kind == "knee") and ("joint space" in text) == (kind == "knee")
    assert len(set(texts)) > 80


def test_captions_carry_side_compartment_and_severity():
    rng = np.random.default_rng(0)
    severe = captions.caption("knee", Findings(0.1, 0.9, 0.9, 0.9, 0.9), "R", rng)
    assert "right" in severe and "lateral joint space" in severe
    healthy = {captions.caption("knee", HEALTHY, "L", rng) for _ in range(30)}
    assert len(healthy) > 25 and all("left" in text and "lateral" not in text for text in healthy)


def test_two_thousand_pictures_fit_in_a_minute_on_two_cores(tmp_path):
    phantoms.captioned(1, 0, 112, workers=1)  # the texture is made once per process
    start = time.process_time()
    phantoms.write_cohort_a(tmp_path, 15, seed=1, workers=1)
    assert (time.process_time() - start) / 30 < 2 * 60 / 2000
