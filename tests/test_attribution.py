"""Scores of attribution maps: right by hand on synthetic maps, at chance where a map knows nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import easy_dataset
from scipy.stats import spearmanr

from koa_lib import attribution, explain, explanations, localisation
from koa_lib.model import ClipGrader, load_clip
from koa_lib.prompts import prompts
from koa_lib.protocols import our_arm
from koa_lib.report import overlays


def square(side=8, top=2, left=2, size=4):
    mask = np.zeros((1, side, side), bool)
    mask[0, top : top + size, left : left + size] = True
    return mask


# Scores


def test_share_inside_by_hand():
    maps = np.zeros((1, 8, 8))
    maps[0, 2, 2], maps[0, 0, 0] = 3, 1
    assert attribution.inside(maps, square()) == pytest.approx([0.75])
    assert attribution.inside(np.ones((1, 8, 8)), square()) == pytest.approx([16 / 64])  # chance is the area
    assert np.isnan(attribution.inside(np.zeros((1, 8, 8)), square())).all()


def test_pointing_game_hits_misses_and_ties():
    maps = np.full((4, 8, 8), 0.1)
    maps[0, 3, 3], maps[1, 0, 7] = 1, 1
    maps[2, 3, 3], maps[2, 0, 0] = 1, 1
    maps[3] = 0.5
    hits = attribution.inside(attribution.highest(maps), np.repeat(square(), 4, axis=0))
    assert hits == pytest.approx([1, 0, 0.5, 16 / 64])
    assert np.isnan(attribution.inside(attribution.highest(np.zeros((1, 8, 8))), square())).all()


def test_order_follows_the_map_and_breaks_ties_by_chance():
    maps = np.zeros((200, 28, 28), np.float32)
    maps[:, :2, :2] = 1  # one cell
    found = attribution.order(maps, np.random.default_rng(0))
    assert (found[:, 0] == 0).all() and all(sorted(row) == list(range(196)) for row in found.tolist())
    assert abs(np.corrcoef(found[:, 1:].ravel(), np.tile(np.arange(195), 200))[0, 1]) < 0.05


class Sum(torch.nn.Module):
    """Grade 1 is the more probable the more of the sharp corner is left; grade 0 takes the rest, other grades nothing."""

    low_precision = False

    def __init__(self, scale=3.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        logit = self.scale * images[:, 0, :8, :8].mean((1, 2))
        return torch.stack([torch.zeros_like(logit), logit, *[torch.full_like(logit, -50.0)] * 3], dim=1)


def corner(count, side=56):
    images = np.zeros((count, side, side), np.uint8)
    images[:, :8, :8] = 255
    return images


def test_deletion_by_the_right_map_falls_first_and_insertion_rises_first():
    pictures_, right = corner(3), np.zeros((3, 56, 56), np.float32)
    right[:, :8, :8] = 1
    rng = np.random.default_rng(1)
    orders = {"right": attribution.order(right, rng), "wrong": attribution.order(1 - right, rng)}
    found = attribution.curves(Sum(), pictures_, "clip", orders, np.ones(3, int), 7)
    areas = {name: attribution.area(values).mean() for name, values in found.items()}
    assert areas["right", "deletion"] < areas["wrong", "deletion"] and areas["right", "insertion"] > areas["wrong", "insertion"]
    for name in orders:
        deletion, insertion = found[name, "deletion"], found[name, "insertion"]
        assert deletion.shape == (3, 8) and np.allclose(deletion[:, 0], insertion[:, -1]) and np.allclose(deletion[:, -1], insertion[:, 0])


def test_deletion_by_a_map_of_zeros_is_like_random_order():
    rng, pictures_ = np.random.default_rng(2), corner(300)
    orders = {"zeros": attribution.order(np.zeros((300, 56, 56), np.float32), rng), attribution.RANDOM: np.argsort(rng.random((300, 196)), axis=1)}
    found = attribution.curves(Sum(), pictures_, "clip", orders, np.ones(300, int), 6)
    zeros, random = (attribution.area(found[name, "deletion"]) for name in orders)
    assert zeros.mean() == pytest.approx(random.mean(), abs=float(4 * np.sqrt((zeros.var() + random.var()) / 300)))
    # A random order backwards is the insertion of another one: not computed twice.
    assert np.array_equal(found[attribution.RANDOM, "insertion"], found[attribution.RANDOM, "deletion"][:, ::-1])
    assert attribution.area(found["zeros", "insertion"]).mean() == pytest.approx(random.mean(), abs=0.02)


def test_centre_out_order_is_a_blob_that_grows():
    found = attribution.order(attribution.middle(3, 112), np.random.default_rng(0))
    down, across = found // attribution.CELLS - 6.5, found % attribution.CELLS - 6.5
    away = down**2 + across**2
    assert all(sorted(row) == list(range(196)) for row in found.tolist()) and (np.diff(away, axis=1) >= 0).all()


def test_maps_of_other_patients_are_laid_over_a_picture():
    maps, masks = np.zeros((4, 8, 8)), np.zeros((4, 8, 8), bool)
    maps[0, 0, 0], maps[1, 1, 1], maps[2, 2, 2] = 1, 1, 5  # the last map is all 0
    masks[:, 2, 2], masks[3, 0, 0] = True, True
    assert attribution.of_others(maps, masks, list("abbc")) == pytest.approx([1 / 2, 0, 0, 2 / 3])
    assert np.isnan(attribution.of_others(maps, masks, list("aaaa"))).all()
    ranks = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32)
    pairs = {(a, b): spearmanr(ranks[a].ravel(), ranks[b].ravel()).statistic for a in range(3) for b in range(3)}
    assert attribution.likeness(ranks, list("abb")) == pytest.approx([(pairs[0, 1] + pairs[0, 2]) / 2, pairs[1, 0], pairs[2, 0]], abs=1e-6)


def test_flipped_signs_give_the_exact_p_value():
    # Four patients, all gain: of 16 ways to set the signs two are as far from 0.
    assert attribution.flip_p([1.0, 1, 2, 3], list("abcd"), 0) == pytest.approx(2 / 16, abs=0.015)
    assert attribution.flip_p([1.0, -1, np.nan], list("abc"), 0) == 1 and np.isnan(attribution.flip_p([1.0, 2], list("aa"), 0))
    values = np.repeat([0.5, 1, -0.2, 0.7, 0.4, 0.6], 4)
    assert attribution.flip_p(values, np.repeat(list("abcdef"), 4), 0) > 10 * attribution.flip_p(values, np.arange(24), 0)  # pictures of a patient go together


def test_area_is_the_trapezoid():
    assert attribution.area(np.array([[1.0, 0.5, 0.0], [1, 1, 1]])) == pytest.approx([0.5, 1])


def test_similarities_of_maps():
    rng = np.random.default_rng(4)
    a, b = (rng.random((3, 28, 28)).astype(np.float32) for _ in range(2))
    assert attribution.rank_correlation(a, a) == pytest.approx([1] * 3) and attribution.structural_similarity(a, a) == pytest.approx([1] * 3)
    assert attribution.rank_correlation(a, a**3) == pytest.approx([1] * 3)
    assert attribution.rank_correlation(a, b) == pytest.approx([spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)], abs=1e-6)
    nothing = np.zeros_like(a)
    assert np.isnan(attribution.rank_correlation(a, nothing)).all() and np.isnan(attribution.structural_similarity(a, nothing)).all()


def test_interval_resamples_patients():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 5)
    together, alone = (attribution.mean_interval(values, groups, 2000, 0) for groups in (np.repeat(list("abcd"), 5), np.arange(20)))
    assert together[0] == alone[0] == 0.5 and together[2] - together[1] > alone[2] - alone[1]
    assert attribution.mean_interval([np.nan, 1.0, 2.0], list("abc"), 100, 0)[0] == 1.5
    assert np.isnan(attribution.mean_interval([np.nan], ["a"], 10, 0)).all() and np.isnan(attribution.mean_interval([1.0, 2.0], ["a", "a"], 10, 0)[1])


# Models of a study


@pytest.fixture(scope="module")
def looked(easy_study):
    found, absent = explanations.subjects(easy_study)
    return found, absent, [explanations.explained(easy_study, subject) for subject in found]


def test_all_models_explain_the_same_unseen_pictures(easy_study, looked):
    found, _, _ = looked
    ids = [list(subject.part.rows["image_id"]) for subject in found]
    assert {subject.name for subject in found} >= {"CLIP as printed", "CLIP by our protocol", "ResNet50"} and all(names == ids[0] for names in ids)
    assert len(ids[0]) == easy_study.profile.systems.attention.pictures and found[0].part.rows["kl_grade"].value_counts().max() <= 2
    ours = next(subject for subject in found if subject.arm.name == our_arm(easy_study).name)
    assert not set(ours.part.rows["split"]) & {"train"} or ours.arm.recipe.folds


def test_what_is_mapped_is_told_in_words_and_with_its_leak(easy_study, looked):
    _, _, results = looked
    rows = localisation.mapped(results, {"VGG": "too slow"})
    assert list(zip(rows["model"], rows["method"], strict=True))[:-1] == [(one.subject.name, name) for one in results for name in one.maps]
    rows = rows.drop_duplicates("model").set_index("model")
    assert rows.loc["VGG", "reason"] == "too slow" and rows["accuracy"].drop("VGG").between(0, 1).all()
    assert rows["layer"].drop("VGG").str.contains("last block|last stage|stage \\d of \\d").all()
    assert rows.loc["CLIP by our protocol", "trained_patients"] == 0  # its test split shares no patient with its training
    assert rows["trained_patients"].drop("VGG").le(results[0].subject.part.rows["group_id"].nunique()).all()


def test_a_model_no_better_than_a_constant_gets_no_verdict(looked):
    one = looked[2][0]
    truth = one.subject.part.grades
    commonest = np.full(len(truth), np.bincount(truth).argmax())
    assert localisation.unlearnt([replace(one, grades=commonest)]) == [one.subject.name] and localisation.unlearnt([replace(one, grades=truth)]) == []
    masks = np.zeros((len(truth), 3, 112, 112), bool)
    masks[:, :, 50:60] = True
    rows = localisation.scores([replace(one, grades=commonest)], masks, 100, 0)
    assert (rows[["chance_verdict", "own_verdict", "blob_verdict", "pointing_chance_verdict"]][:-1] == localisation.NONE).all(axis=None)
    assert rows["chance_verdict"].iloc[-1] != localisation.NONE and rows["own_verdict"].iloc[-1] == ""


def test_real_pictures_get_maps_without_scores_and_are_kept(easy_study, looked):
    found, absent, results = looked
    for one in results:
        assert one.curves == {} and all(maps.shape == (len(one.grades), 112, 112) and maps.min() >= 0 and maps.max() <= 1 for maps in one.maps.values())
        assert set(one.maps) == set(explain.methods(one.subject.trained()))
    for subject in found:
        one, two = subject.untrained().state_dict(), subject.untrained().state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)  # the same check in every run
    again = explanations.explained(easy_study, found[0])
    assert np.array_equal(again.maps["Grad-CAM"], results[0].maps["Grad-CAM"])
    table = localisation.mapped(results, {})
    for name in ("rank correlation, 33 %", "rank correlation, 100 %", "SSIM, 67 %", "rank_of_others"):
        assert table[name].dropna().between(-1, 1).all()
    assert localisation.known(easy_study, results).shape == (len(results[0].grades), 0, 112, 112)


def test_scores_tell_a_map_on_the_findings_from_chance(looked, monkeypatch):
    monkeypatch.setattr(localisation, "LEVEL", 0.3)  # 0.05 can't be reached by so few patients
    one = looked[2][0]
    rng, n = np.random.default_rng(0), len(one.grades)
    masks = np.zeros((n, 3, 112, 112), bool)
    masks[:, 0, 50:60, 20:90], masks[:, 1, 40:70, 5:15], masks[:, 2, 60:70, 20:90] = True, True, True
    good = replace(one, grades=one.subject.part.grades, maps={"Grad-CAM": masks[:, 0] + 0.01, "attention rollout": rng.random((n, 112, 112))})
    rows = localisation.scores([good], masks, 200, 0).set_index("method")
    assert rows["chance_verdict"]["Grad-CAM"] == "above chance" and rows["inside"]["Grad-CAM"] > 0.8 and rows["joint line"]["Grad-CAM"] > 5
    assert rows["inside"]["attention rollout"] == pytest.approx(rows["chance_area"]["attention rollout"], abs=0.01)
    assert rows["other_patients"]["Grad-CAM"] == pytest.approx(rows["inside"]["Grad-CAM"]) and abs(rows["own_gain"]["Grad-CAM"]) < 1e-6  # all have the same regions here
    assert (rows["chance_p_holm"] >= 1 / (attribution.FLIPS + 1)).all() and rows["own_p_holm"]["bright in the middle"] == 1
    assert rows["model"]["bright in the middle"] == localisation.NO_MODEL
    assert rows["chance_gain"]["Grad-CAM"] == pytest.approx(rows["inside"]["Grad-CAM"] - rows["chance_area"]["Grad-CAM"]) and np.isnan(rows["blob_gain_low"]["bright in the middle"])
    assert rows["blob_gain"]["Grad-CAM"] == pytest.approx(rows["inside"]["Grad-CAM"] - rows["inside"]["bright in the middle"])
    assert rows["pointing_hits"]["Grad-CAM"] == 1 and rows["pointing_hits"]["bright in the middle"] in (0, 1)


def test_figures_have_a_panel_for_each_picture_and_model(easy_study, looked):
    results = looked[2]
    grades = results[0].subject.part.rows["kl_grade"].nunique()
    figure = overlays.maps(results, localisation.known(easy_study, results))
    across = 2 + len(results[0].maps)  # the picture, CLIP's maps, and one of the best network
    assert len(figure.axes) == grades * across and [bool(axis.get_title()) for axis in figure.axes[: across + 1]] == [False, *[True] * (across - 1), False]
    orders = (*results[0].maps, attribution.RANDOM, attribution.CENTRE)
    rising = np.linspace(np.zeros(len(results[0].grades)), 1, 5).T
    curved = replace(results[0], curves={(name, kind): rising for name in orders for kind in localisation.CURVES})
    table = localisation.faithfulness([curved], 50, 0)
    figure = overlays.curves(table)
    assert len(figure.axes) == 2 and [len(axis.lines) for axis in figure.axes] == [len(orders)] * 2


def test_measured_on_a_phantom_like_study(easy_study, looked):
    # The same steps as on phantoms, here on a model that knows brightness.
    clip, _, tokenizer = load_clip("koa-tiny", seed=1)
    grader, part = ClipGrader(clip, tokenizer, "full_image", prompts("as_printed")), easy_dataset(10, role="report")
    subject = replace(looked[0][0], part=part)
    maps = {"Grad-CAM": np.random.default_rng(0).random((10, 112, 112)).astype(np.float32)}
    made = explanations._curves(subject, grader, maps, np.zeros(10, int), 4, 0)
    curves = {tuple(name.split("|")[1:]): values for name, values in made.items()}
    one = explanations.Explained(subject, "", np.zeros(10, int), maps, curves, {})
    table = localisation.faithfulness([one], 100, 0)
    area, map_rows = table.set_index(["method", "curve"])["curve_area"], table[table["method"] == "Grad-CAM"].set_index("curve")
    deletion, insertion = map_rows.loc["deletion"], map_rows.loc["insertion"]
    for control, order in {"random": attribution.RANDOM, "centre": attribution.CENTRE}.items():
        assert deletion[f"{control}_gain"] == pytest.approx(area[order, "deletion"] - deletion["curve_area"], abs=1e-6)
        assert insertion[f"{control}_gain"] == pytest.approx(insertion["curve_area"] - area[order, "insertion"], abs=1e-6)
        assert insertion[f"{control}_gain_low"] <= insertion[f"{control}_gain"] <= insertion[f"{control}_gain_high"]
    assert set(map_rows["centre_verdict"]) <= {"better", "worse", "unclear", localisation.NONE}
    assert area[attribution.RANDOM, "deletion"] == pytest.approx(area[attribution.RANDOM, "insertion"])
    assert map_rows["random_p_holm"].between(0, 1).all() and table["at 100 %"].notna().all()
