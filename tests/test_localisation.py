"""Where models look: a good verdict needs a model that has learnt and a map that beats both controls."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import predicted, results

from koa_lib import explain, protocols
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.explain import CENTRE, RANDOM, SIDE
from koa_lib.report import overlays
from koa_lib.systems import localisation
from koa_lib.systems.localisation import BETTER, BLOB, NONE, UNCLEAR, WORSE


@pytest.fixture(scope="module")
def found(easy_study):
    return localisation.explained(easy_study)


def test_maps_leave_the_histories_of_all_folds(easy_study, found):
    main = protocols.main_arm(easy_study)
    kept = pd.read_csv(easy_study.own_dir / "history" / f"{main.name}.csv")
    assert set(kept["fold"]) == {fold.number for fold in Experiment(easy_study).folds(main)}


def test_all_models_explain_the_same_pictures_which_none_was_trained_on(easy_study, found):
    by_name, first = {one.name: one for one in found}, found[0].rows
    assert {"CLIP as printed", "CLIP by our protocol", "ResNet50"} <= by_name.keys()
    for one in found:
        assert list(one.rows["image_id"]) == list(first["image_id"]) and len(one.pictures) == len(first)
        for maps in one.maps.values():
            assert maps.shape == (len(first), SIDE, SIDE) and 0 <= maps.min() <= maps.max() <= 1
    assert len(first) == easy_study.profile.systems.attention.pictures
    assert first["kl_grade"].value_counts().max() <= 2 and first["kl_grade"].is_monotonic_increasing
    # Our protocol's test split shares no patient with its training.
    assert by_name["CLIP by our protocol"].trained_patients == 0
    table = localisation.mapped(found)
    named = [(one.name, name) for one in found for name in one.maps]
    assert list(zip(table["model"], table["method"], strict=True)) == named
    assert ((table["qwk_low"] > 0) == table["learnt"]).all()
    assert overlays.maps(found, localisation.known(easy_study, first)).axes


def test_models_that_share_no_unseen_picture_are_refused(easy_study, monkeypatch):
    job = Experiment.job

    def trained_on_all(experiment, arm, fold=1):
        made = job(experiment, arm, fold)
        whole = {**made.fold.reported, "train": experiment.data("training", arm)}
        return replace(made, fold=replace(made.fold, reported=whole))

    monkeypatch.setattr(Experiment, "job", trained_on_all)
    with pytest.raises(StudyError, match="more pictures"):
        localisation.explained(easy_study)


# Verdicts


def model(kappa=(0.7, 0.6, 0.8), **maps):
    """A model that explains two knees of each of 24 patients."""
    number = np.arange(48)
    rows = pd.DataFrame({"kl_grade": number % 5, "group_id": number // 2})
    pictures, grades = np.zeros((48, 8, 8), np.uint8), np.zeros(48, int)
    return localisation.Explained("CLIP", "as run", rows, pictures, 0, "layer", kappa, grades, maps, {}, {})


@pytest.fixture(scope="module")
def masks():
    """Three small regions near the middle, elsewhere in each picture."""
    rng, made = np.random.default_rng(0), np.zeros((48, 3, SIDE, SIDE), bool)
    for mask in made:
        for region, (down, across) in zip(mask, rng.integers(30, 75, (3, 2)), strict=True):
            region[down : down + 8, across : across + 8] = True
    return made


def scores(one, masks):
    return localisation.scores([one], masks, 100, 0).set_index("method")


def test_who_grades_well_has_learnt_and_who_gives_one_grade_has_not():
    grades = np.arange(60) % 5
    rows = pd.DataFrame({"image_id": range(60), "kl_grade": grades, "group_id": np.arange(60) // 2})
    good, constant = (
        tuple(found[name] for name in ("qwk", "qwk_low", "qwk_high")) for found in (
            results(predicted(rows.assign(kl_grade=given), 1.0).assign(kl_grade=grades), draws=200)
            .measured(["qwk"]) for given in (grades, np.full(60, 2))))
    assert good[0] > 0.8 and model(good).learnt and constant[0] == 0 and not model(constant).learnt


def test_a_map_on_the_findings_beats_both_controls_and_only_where_the_model_has_learnt(masks):
    on = masks.any(1) + 0.02
    one = model(on=on, off=1.02 - on, flat=np.ones_like(on), nothing=np.zeros_like(on))
    table = scores(one, masks)
    said = {"on": BETTER, "off": WORSE, "flat": WORSE, "nothing": UNCLEAR, BLOB: ""}
    assert table["verdict"].to_dict() == said
    share = table["inside"]
    assert share["flat"] == pytest.approx(table["chance_area"]["flat"]) and share["on"] > 0.4
    assert table["blob_gain"]["on"] == pytest.approx(share["on"] - share[BLOB])
    assert table["own_gain"]["on"] == pytest.approx(share["on"] - table["other_patients"]["on"])
    assert table["own_p_holm"]["flat"] == 1  # no rounding error
    assert table["n"]["nothing"] == 0 and np.isnan(share["nothing"])
    assert set(scores(replace(one, kappa=(0.1, -0.1, 0.3)), masks)["verdict"][:3]) == {NONE}


def test_a_blob_gets_no_good_verdict_wherever_it_lies(masks):
    blob = explain.blob(48) + 0.2 * np.random.default_rng(0).random((48, SIDE, SIDE))
    # The second beats the blob itself, as it is narrower, and yet it is the same for every patient.
    table = scores(model(blob=blob, narrow=explain.blob(48) ** 3), masks)
    assert BETTER not in set(table["verdict"]) and table["blob_gain_low"]["narrow"] > 0


def test_flipped_signs_of_patients_give_the_exact_p_value():
    # Four patients, all gain: of 16 ways to set the signs two are as far from 0.
    assert localisation.flip_p([1.0, 1, 2, 3], list("abcd"), 0) == pytest.approx(2 / 16)
    assert localisation.flip_p([1.0, -1, np.nan], list("abc"), 0) == 1
    assert np.isnan(localisation.flip_p([1.0, 2], list("aa"), 0))
    values = np.repeat([0.5, 1, -0.2, 0.7, 0.4, 0.6], 4)
    together, alone = (localisation.flip_p(values, units, 0) for units in (np.arange(24) // 4, np.arange(24)))
    assert together > 10 * alone  # pictures of a patient go together


def test_curves_are_judged_by_both_orders():
    good, even = "Grad-CAM", "attention rollout"
    one, noise = model(**{good: None, even: None}), np.random.default_rng(0).normal(0, 0.02, (48, 1))
    heights = {good: 0.3, even: 0.5, RANDOM: 0.6, CENTRE: 0.5}
    made = {order: height + noise * (order in one.maps) + np.zeros(5) for order, height in heights.items()}
    one = replace(one, curves={"deletion": made, "insertion": made})
    table = localisation.faithfulness([one], 100, 0)
    rows = table.set_index(["method", "curve"])
    verdict, gain = rows["verdict"], rows["random_gain"][good]
    # A low curve is good for deletion, bad for insertion.
    assert verdict[good].to_dict() == {"deletion": BETTER, "insertion": WORSE}
    assert verdict[even, "deletion"] == UNCLEAR and (verdict[RANDOM] == "").all()
    assert gain["deletion"] == pytest.approx(0.3 - noise.mean()) == pytest.approx(-gain["insertion"])
    assert rows["curve_area"][CENTRE, "deletion"] == pytest.approx(0.5)
    assert [len(axis.lines) for axis in overlays.curves(table).axes] == [4, 4]
