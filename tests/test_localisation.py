"""Where models look: a good verdict needs a model that has learnt and a map that beats both controls."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from koa_lib import explain, metrics, protocols
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.explain import CENTRE, RANDOM, SIDE
from koa_lib.report import overlays
from koa_lib.systems import localisation


@pytest.fixture(scope="module")
def found(easy_study):
    return localisation.explained(easy_study)


def test_all_models_explain_the_same_pictures_which_none_was_trained_on(easy_study, found):
    names, first = [one.name for one in found], found[0].rows
    assert {"CLIP as printed", "CLIP by our protocol", "ResNet50"} <= set(names)
    assert all(list(one.rows["image_id"]) == list(first["image_id"]) for one in found)
    assert (
        len(first) == easy_study.profile.systems.attention.pictures
        and first["kl_grade"].value_counts().max() <= 2
    )
    assert first["kl_grade"].is_monotonic_increasing and len(found[0].pictures) == len(first)
    ours = found[names.index("CLIP by our protocol")]
    assert ours.trained_patients == 0  # its test split shares no patient with its training
    assert protocols.our_arm(easy_study).recipe.folds or not set(first["split"]) & {"train"}


def test_what_is_kept_comes_from_the_store_and_follows_the_model(easy_study, found):
    one, again = found[0], localisation.explained(easy_study)[0]
    assert all(np.array_equal(again.maps[name], values) for name, values in one.maps.items())
    assert set(one.maps) == set(one.cascade) == {"Grad-CAM", "attention rollout"}
    steps = easy_study.profile.systems.attention.cascade
    for result in found:
        assert all(
            maps.shape == (len(result.grades), SIDE, SIDE) and 0 <= maps.min() <= maps.max() <= 1
            for maps in result.maps.values()
        )
        assert all(alike.shape == (len(result.grades), steps) for alike in result.cascade.values())
    assert localisation.known(easy_study, one.rows).shape == (len(one.rows), 0, SIDE, SIDE)


def test_models_that_share_no_unseen_picture_are_refused(easy_study, monkeypatch):
    job = Experiment.job

    def trained_on_all(experiment, arm, fold=1):
        made = job(experiment, arm, fold)
        whole = {**made.fold.reported, "train": experiment.data("training", arm)}
        return replace(made, fold=replace(made.fold, reported=whole))

    monkeypatch.setattr(Experiment, "job", trained_on_all)
    with pytest.raises(StudyError, match="training of one of the models. Give more pictures"):
        localisation.explained(easy_study)


def test_what_is_mapped_tells_each_model_and_how_its_maps_change(found):
    table = localisation.mapped(found)
    assert list(zip(table["model"], table["method"], strict=True)) == [
        (one.name, name) for one in found for name in one.maps
    ]
    assert table["as_run"].str.len().all() and table["layer"].str.contains(".", regex=False).all()
    assert ((table["qwk_low"] > 0) == table["learnt"]).all() and table["qwk"].between(-1, 1).all()
    assert table["trained_patients"].between(0, found[0].rows["group_id"].nunique()).all()
    for column in ("rank correlation, 33 %", "rank correlation, 67 %", "rank correlation, 100 %"):
        assert table[column].dropna().between(-1, 1).all()


# Verdicts


def answered(grades, rng):
    """Answers that are the given grades, with some noise."""
    return 0.6 * np.eye(5)[grades] + 0.4 * rng.dirichlet(np.ones(5), len(grades))


def model(patients=24, seed=0, kappa=(0.7, 0.6, 0.8), **maps):
    """A model that explains two knees of each patient."""
    number = 2 * patients
    rows = pd.DataFrame({"kl_grade": np.arange(number) % 5, "group_id": np.repeat(np.arange(patients), 2)})
    pictures, grades = np.zeros((number, 8, 8), np.uint8), np.zeros(number, int)
    return localisation.Explained("CLIP", "as run", rows, pictures, 0, "layer", kappa, grades, maps, {}, {})


def regions_of(one, seed=0):
    """Three small regions near the middle, elsewhere in each picture."""
    rng, masks = np.random.default_rng(seed), np.zeros((len(one.rows), 3, SIDE, SIDE), bool)
    for mask in masks:
        for region, (down, across) in zip(mask, rng.integers(30, 75, (3, 2)), strict=True):
            region[down : down + 8, across : across + 8] = True
    return masks


def verdict_of(one, masks):
    return localisation.scores([one], masks, 200, 0).set_index("method")["verdict"]


@pytest.mark.parametrize(
    ("pictures", "weights"), [(60, [0.2] * 5), (100, [0.4, 0.15, 0.25, 0.15, 0.05]), (150, [0.2] * 5)]
)
def test_a_guesser_has_hardly_ever_learnt(pictures, weights):
    rng, learnt = np.random.default_rng(pictures), 0
    for trial in range(200):
        grades = rng.choice(5, pictures, p=weights)
        rows = pd.DataFrame({"kl_grade": grades, "group_id": np.arange(pictures) // 2})
        kappa = localisation.kappa(rows, answered(rng.choice(5, pictures, p=weights), rng), 200, trial)
        learnt += model(kappa=kappa).learnt
    assert learnt <= 0.05 * 200 + 2 * np.sqrt(200 * 0.05 * 0.95)  # two standard errors of the simulation


def test_who_grades_well_has_learnt_and_who_gives_one_grade_has_not():
    rng, grades = np.random.default_rng(0), np.arange(60) % 5
    rows = pd.DataFrame({"kl_grade": grades, "group_id": np.arange(60) // 2})
    good, constant = (
        localisation.kappa(rows, answered(given, rng), 200, 0) for given in (grades, np.full(60, 2))
    )
    assert model(kappa=good).learnt and good[0] > 0.8 and not model(kappa=constant).learnt
    qwk = metrics.from_confusion(metrics.confusion(grades, np.full(60, 2)))["qwk"]
    assert constant[0] == pytest.approx(qwk) == 0


def test_kappa_is_of_all_unseen_pictures(found):
    rows = found[0].rows
    assert all(one.kappa[1] <= one.kappa[0] <= one.kappa[2] for one in found)
    right = localisation.kappa(rows, np.eye(5)[rows["kl_grade"]], 50, 0)
    assert right == pytest.approx((1, 1, 1))


def test_a_map_on_the_findings_beats_both_controls_and_only_where_the_model_has_learnt():
    masks = regions_of(model())
    on = masks.any(1) + 0.02
    one = model(on=on, off=1.02 - on, flat=np.ones_like(on))
    table = localisation.scores([one], masks, 200, 0).set_index("method")
    assert dict(table["verdict"]) == {
        "on": localisation.BETTER,
        "off": localisation.WORSE,
        "flat": localisation.WORSE,
        localisation.BLOB: "",
    }
    assert (
        table["inside"]["flat"] == pytest.approx(table["chance_area"]["flat"]) and table["inside"]["on"] > 0.4
    )
    assert table["blob_gain"]["on"] == pytest.approx(
        table["inside"]["on"] - table["inside"][localisation.BLOB]
    )
    assert table["own_gain"]["on"] == pytest.approx(table["inside"]["on"] - table["other_patients"]["on"])
    assert (table["own_gain_low"] <= table["own_gain"])[:3].all() and table["own_p_holm"][
        "flat"
    ] == 1  # no rounding error
    poor = replace(one, kappa=(0.1, -0.1, 0.3))
    assert set(verdict_of(poor, masks)[:3]) == {localisation.NONE}


def test_a_blob_gets_no_good_verdict_wherever_it_lies():
    good, masks = 0, regions_of(model())
    for seed in range(4):
        rng = np.random.default_rng(seed)
        blob = explain.blob(len(masks)) + 0.2 * rng.random((len(masks), SIDE, SIDE))
        # The second beats the blob itself, as it is narrower, and yet it is the same for every patient.
        good += (verdict_of(model(blob=blob, narrow=blob**3), masks) == localisation.BETTER).sum()
    assert good == 0
    assert localisation.scores([model(narrow=explain.blob(48) ** 3)], masks, 200, 0)["blob_gain_low"][0] > 0


def test_a_map_that_is_always_0_is_undefined():
    masks = regions_of(model())
    row = localisation.scores([model(nothing=np.zeros((48, SIDE, SIDE)))], masks, 50, 0).iloc[0]
    assert row["n"] == 0 and np.isnan(row["inside"]) and row["verdict"] == localisation.UNCLEAR


def test_flipped_signs_give_the_exact_p_value():
    # Four patients, all gain: of 16 ways to set the signs two are as far from 0.
    assert localisation.flip_p([1.0, 1, 2, 3], list("abcd"), 0) == pytest.approx(2 / 16)
    assert localisation.flip_p([1.0, -1, np.nan], list("abc"), 0) == 1 and np.isnan(
        localisation.flip_p([1.0, 2], list("aa"), 0)
    )
    values = np.repeat([0.5, 1, -0.2, 0.7, 0.4, 0.6], 4)
    together, alone = (
        localisation.flip_p(values, groups, 0) for groups in (np.repeat(range(6), 4), np.arange(24))
    )
    assert together > 10 * alone  # pictures of a patient go together


def test_curves_are_judged_by_both_orders():
    one = model(**{"Grad-CAM": None, "attention rollout": None})
    heights, noise = (
        {"Grad-CAM": 0.3, "attention rollout": 0.5, RANDOM: 0.6, CENTRE: 0.5},
        np.random.default_rng(0).normal(0, 0.02, (48, 1)),
    )
    deletion = {
        order: np.full((48, 5), height) + noise * (order in one.maps) for order, height in heights.items()
    }
    table = localisation.faithfulness(
        [replace(one, curves={"deletion": deletion, "insertion": deletion})], 100, 0
    )
    rows = table.set_index(["method", "curve"])
    low, high = (rows["verdict"]["Grad-CAM", curve] for curve in ("deletion", "insertion"))
    assert (low, high) == (
        localisation.BETTER,
        localisation.WORSE,
    )  # a low curve is good for deletion, bad for insertion
    assert (
        rows["verdict"]["attention rollout", "deletion"] == localisation.UNCLEAR
        and (rows["verdict"][RANDOM] == "").all()
    )
    gain = rows["random_gain"]["Grad-CAM"]
    assert gain["deletion"] == pytest.approx(0.3 - noise.mean()) and gain["insertion"] == pytest.approx(
        -gain["deletion"]
    )
    assert rows["curve_area"][CENTRE, "deletion"] == pytest.approx(0.5) and rows["at 75 %"].notna().all()
    figure = overlays.curves(table)
    assert len(figure.axes) == 2 and [len(axis.lines) for axis in figure.axes] == [4, 4]


def test_overlays_have_a_panel_for_each_picture_and_map(easy_study, found):
    figure, grades = (
        overlays.maps(found, localisation.known(easy_study, found[0].rows)),
        found[0].rows["kl_grade"].nunique(),
    )
    across = 2 + len(found[0].maps)  # the picture, CLIP's maps, and one of the best network
    assert len(figure.axes) == grades * across
    assert [bool(axis.get_title()) for axis in figure.axes[: across + 1]] == [
        False,
        *[True] * (across - 1),
        False,
    ]
