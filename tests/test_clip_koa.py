"""CLIP-KOA: arms differ in one factor, weights are chosen without a reported picture, claims on all seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset, predicted, with_systems
from conftest import results as made_results

from koa_lib import predictions, protocols, sources, stats
from koa_lib.datasets import to_tensor
from koa_lib.experiment import Experiment
from koa_lib.paper.published import read as read_published
from koa_lib.settings import Model, Symmetry
from koa_lib.study import FOLDERS
from koa_lib.systems import clip_koa
from koa_lib.systems.clip_koa import AT_TEST, BOTH, CONSISTENCY, FLIPPED, STANDARD, SYMMETRY

SETTINGS = Symmetry(None, 0, "projection", 2, 0.01, (0.5, 2.0), 2)
CLAIM = (clip_koa.SYSTEM, "abstract", "symmetry and consistency losses raise accuracy over standard CLIP")
STEADY = (clip_koa.SYSTEM, "abstract", "predictions agree between original and flipped image")


@pytest.fixture(scope="module")
def experiment(easy_study):
    return Experiment(with_systems(easy_study, symmetry=SETTINGS))


@pytest.fixture(scope="module")
def weights(experiment):
    """The chosen weights; what was predicted up to then is of the inner part alone."""
    found = clip_koa.chosen(experiment)
    files = list((experiment.study.run_dir / "predictions").glob("koa-*"))
    assert files and all("-inner__" in file.name for file in files)
    return found


@pytest.fixture(scope="module")
def results(experiment, weights):
    return clip_koa.run(experiment, weights)


def groups(part):
    return set(part.rows["group_id"])


# The pairs


def features(dataset, mirrored):
    values = dataset.images(np.arange(len(dataset))).mean(axis=1)[None]
    return sources.Features(replace(dataset, mirrored=mirrored), values[..., ::-1] if mirrored else values)


def test_a_pair_is_the_picture_and_its_mirror_image_and_either_may_come_first():
    data, positions = easy_dataset(60, 16, "fit"), np.arange(60)
    both = features(data, False), features(data, True)
    fixed, drawn = (sources.Pairs(*both, either).training_batch(positions, torch.Generator().manual_seed(0))
                    for either in (False, True))
    assert all(torch.equal(fixed[:, way], both[way].batch(positions)) for way in (0, 1))
    as_they_are, swapped = (drawn == fixed).all(-1).all(-1), (drawn == fixed.flip(1)).all(-1).all(-1)
    assert (as_they_are | swapped).all() and 15 < swapped.sum() < 45


def test_mirrored_features_are_those_of_mirrored_pictures(experiment):
    made, picked = clip_koa.arm(experiment, "picture"), [5, 0, 11]
    data = experiment.data("training", made)
    flipped = to_tensor(data.images(picked)[..., ::-1].copy(), made.recipe.normalisation)
    with torch.no_grad():
        direct = made.build().eval().trunk(flipped)
    found = experiment.source(made, replace(data, mirrored=True)).batch(picked)
    assert torch.allclose(found, direct, rtol=1e-2, atol=1e-2)


# Choice and protocol


def test_weights_are_chosen_on_the_inner_part_alone(experiment, weights):
    made = clip_koa.arm(experiment, "both", *weights[BOTH])
    inner = experiment.run(made, splits=("inner",)).graded()
    fold, values = experiment.folds(made)[0], SETTINGS.weights
    for name, part in {**fold.reported, "train": fold.fit}.items():
        assert not set(inner["group_id"]) & groups(part), name
    grid = {SYMMETRY: [(value, 0.0) for value in values], CONSISTENCY: [(0.0, value) for value in values],
            BOTH: [(one, other) for one in values for other in values]}
    for name, pairs in grid.items():
        runs = (experiment.run(clip_koa.arm(experiment, "both", *pair), splits=("inner",)) for pair in pairs)
        kappas = [run.measured(["qwk"])["qwk"] for run in runs]
        best = [pair for pair, kappa in zip(pairs, kappas, strict=True) if kappa == max(kappas)]
        assert weights[name] in best and sum(weights[name]) == min(map(sum, best))


def test_arms_differ_in_what_they_are_named_after(experiment, weights):
    arms = clip_koa.arms(experiment, weights)
    standard = arms[STANDARD]
    assert {*arms, AT_TEST} == set(clip_koa.ARMS)
    for name, made in arms.items():
        own = {field: getattr(standard, field) for field in ("name", "loss", "seen", "build", "trunk")}
        assert replace(made, **own) == standard and made.trunk.key == standard.trunk.key
        assert made.seen == {STANDARD: "picture", FLIPPED: "either"}.get(name, "both")
        with_losses = name in (SYMMETRY, BOTH), name in (CONSISTENCY, BOTH)
        assert (made.loss.symmetry > 0, made.loss.consistency > 0) == with_losses
        assert made.loss.both == (made.seen == "both")


def test_reported_are_test_and_clean_external_pictures_with_their_mirror_images_for_each_seed(results):
    assert results.splits == ["test", "external"] and set(results.frame["arm"]) == set(clip_koa.ARMS)
    assert set(results.frame["seed"]) == {3, 4}
    for where, part in results.each("arm", "seed", "split"):
        both = part.graded()
        assert "p0_b" in both and len(part.frame) == 2 * len(both)
        assert where["split"] == "test" or both["pixel_sha256"].is_unique


def test_external_pictures_are_shown_stretched_whatever_the_training(experiment, weights):
    cropped = replace(experiment.study.profile.our_protocol, geometry="center_crop")
    study = with_systems(experiment.study, symmetry=replace(SETTINGS, seeds=1))
    other = Experiment(replace(study, profile=replace(study.profile, our_protocol=cropped)))
    views = clip_koa.run(other, weights).frame.groupby("split")["view"].unique()
    assert list(views["test"]) == ["center_crop-none"] and list(views["external"]) == ["stretch-none"]


def test_a_trained_trunk_is_that_of_our_protocol_which_has_not_seen_the_inner_part(experiment):
    own = replace(SETTINGS, model=experiment.study.profile.model, model_epochs=1)
    study = with_systems(experiment.study, symmetry=own)
    ours = replace(TINY, part="both_encoders", epochs=1)
    trained = Experiment(replace(study, profile=replace(study.profile, our_protocol=ours)))
    official, made = protocols.official_arm(trained.study), clip_koa.arm(trained, "picture")
    fitted, chosen = (trained.folds(arm)[0] for arm in (official, made))
    assert fitted.fit.fingerprint == chosen.fit.fingerprint and not groups(fitted.fit) & groups(chosen.select)
    wanted, built = trained.grader(official).clip.state_dict(), made.build().clip.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in built.items())


def test_a_symmetric_tower_stands_beside_the_arms_and_never_changes_its_mind(experiment, tmp_path):
    own = replace(SETTINGS, model=Model("koa-plain", "random", 120), model_epochs=1, seeds=1, weights=(0.5,))
    profile = with_systems(experiment.study, symmetry=own).profile
    profile = replace(profile, model=Model("koa-conv", "random", 128),
                      our_protocol=replace(TINY, part="both_encoders", epochs=1))
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    beside = Experiment(replace(experiment.study, profile=profile, run_dir=tmp_path))
    made = clip_koa.arm(beside, "picture", model=profile.model)
    found = beside.run(made, splits=("unseen",), both_ways=True)
    assert np.array_equal(*stats.predicted(found.graded()))
    assert clip_koa.has_symmetric(beside.study) and not clip_koa.has_symmetric(experiment.study)


# What is measured


def test_averaging_at_test_time_never_changes_its_mind_and_is_written(experiment, results):
    standard, averaged = (results.of(arm=name, split="test", seed=3).graded() for name in (STANDARD, AT_TEST))
    plain, mirrored = stats.paired_probabilities(standard)
    found = stats.paired_probabilities(averaged)
    assert np.allclose(found[0], (plain + mirrored) / 2) and np.array_equal(*found)
    file = "koa-at_test__easy_a-test__stretch-none__fold1__seed3.csv"
    kept = predictions.read(experiment.study.run_dir / "predictions" / file)
    assert np.allclose(kept[predictions.PROBABILITIES], found[0], atol=1e-8)


def test_what_was_run_has_each_arm_and_part_with_weights_mean_and_spread(results, weights):
    table = clip_koa.overview(clip_koa.means(results), weights).set_index(["part", "arm"])
    assert list(table.index) == [(part, name) for part in ("test", "external") for name in clip_koa.ARMS]
    each = [part.graded() for _, part in results.of(arm=BOTH, split="external").each("seed")]
    rates = [np.not_equal(*stats.predicted(both)).mean() for both in each]
    row, name = table.loc[("external", BOTH)], "flip_disagreement"
    assert row[[name, f"{name}_sd"]].tolist() == pytest.approx([np.mean(rates), np.std(rates, ddof=1)])
    assert tuple(row[["symmetry_weight", "consistency_weight"]]) == weights[BOTH]


def made_up(*gains, n=60, changing=(0, 0), arms=clip_koa.ARMS):
    """Results with the share of right answers that both losses add with each seed, and the shares of grades
    that change in the mirror image without and with them."""
    number, frames = np.arange(n), []
    rows = pd.DataFrame({"image_id": number, "kl_grade": number % 5, "group_id": number // 2})
    for arm, (seed, gain), mirrored in (
            (arm, pair, way) for arm in arms for pair in enumerate(gains) for way in (False, True)):
        right = (7 * number % n) / n < 0.5 + gain * (arm == BOTH)  # spread over the patients
        turned = mirrored & ((13 * number % n) / n < changing[arm == BOTH])
        given = (rows["kl_grade"] + (right == turned)) % 5
        said = {"arm": arm, "seed": seed, "split": "test", "mirrored": mirrored}
        frames.append(predicted(rows.assign(kl_grade=given), 1.0, **said).assign(kl_grade=rows["kl_grade"]))
    return made_results(*frames, draws=60)


def test_the_symmetric_tower_is_held_against_standard_clip_where_it_was_run():
    for arms in (clip_koa.ARMS, (*clip_koa.ARMS, clip_koa.CONSTRUCTION)):
        table = clip_koa.differences(clip_koa.means(made_up(0.1, 0.1, arms=arms)))
        assert set(table["arm"]) == {*arms} - {STANDARD}
        assert (table["less"][table["arm"] == clip_koa.CONSTRUCTION] == STANDARD).all()


@pytest.mark.parametrize(("gains", "verdict"), [
    ((0.3, 0.2, 0.3), "replicated"), ((-0.2, -0.3, -0.3), "not replicated"), ((0, 0, 0), "inconclusive"),
    ((0.3, -0.4, -0.5), "not replicated"), ((0.4, -0.4, 0.05), "inconclusive")])
def test_a_claim_stands_or_falls_with_the_mean_over_all_seeds(gains, verdict):
    means = clip_koa.means(made_up(*gains))
    answer = clip_koa.answers(means)[CLAIM]
    gap = clip_koa.differences(means).set_index(["arm", "less"]).loc[BOTH, STANDARD]
    assert answer.verdict == verdict and answer.ours == pytest.approx(100 * np.mean(gains), abs=0.01)
    assert answer[:3] == pytest.approx(tuple(100 * gap[["accuracy", "accuracy_low", "accuracy_high"]]))
    assert [gap[f"accuracy_seed_{seed}"] for seed in range(3)] == pytest.approx(gains, abs=1e-9)
    assert gap["seeds_agree"] == (len(set(np.sign(gains))) == 1 and gains[0] != 0)


@pytest.mark.parametrize(("changing", "verdict"), [
    ((0.4, 0.1), "replicated"), ((0.1, 0.4), "not replicated")])
def test_fewer_changing_grades_are_what_the_second_claim_wants(changing, verdict):
    assert clip_koa.answers(clip_koa.means(made_up(0.0, changing=changing)))[STEADY].verdict == verdict


def test_every_row_and_claim_of_the_paper_has_its_answer(experiment, results):
    study, kept = experiment.study, clip_koa.answers(clip_koa.means(results))
    numbers, claims = (read_published(study.published, name) for name in ("other_systems", "claims"))
    wanted = numbers[["system", "item", "row", "metric"]].to_numpy().tolist()
    wanted += claims[["source", "item", "claim"]].to_numpy().tolist()
    assert set(kept) == {tuple(row) for row in wanted if row[0] == clip_koa.SYSTEM}
    gain = kept[clip_koa.SYSTEM, "abstract", "gain over standard CLIP", "accuracy_gain"]
    both, standard = (results.of(arm=name, split="test").averaged(["accuracy"])[0]["accuracy"][0]
                      for name in (BOTH, STANDARD))
    assert gain.value == pytest.approx(100 * (both - standard))
