"""CLIP-KOA: arms differ in one factor, weights are chosen without a reported picture, and claims are decided on all seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset, with_systems

from koa_lib import metrics, predictions, profile, protocols, sources, stats, training
from koa_lib.datasets import to_tensor
from koa_lib.experiment import Experiment
from koa_lib.paper import answers
from koa_lib.paper.published import read as read_published
from koa_lib.results import Results
from koa_lib.settings import Symmetry
from koa_lib.systems import clip_koa

SETTINGS = Symmetry("start", "projection", 2, 0.01, (0.5, 2.0), 2)
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


# The pairs


def features(dataset, mirrored):
    values = dataset.images(np.arange(len(dataset))).mean(axis=1)[None]
    return sources.Features(replace(dataset, mirrored=mirrored), values[..., ::-1] if mirrored else values)


def test_a_pair_is_the_picture_and_its_mirror_image_and_either_may_come_first():
    data, positions = easy_dataset(60, 16, "fit"), np.arange(60)
    both = features(data, False), features(data, True)
    fixed, drawn = (
        sources.Pairs(*both, either).training_batch(positions, torch.Generator().manual_seed(0))
        for either in (False, True)
    )
    assert all(torch.equal(fixed[:, way], both[way].batch(positions)) for way in (0, 1))
    as_they_are, swapped = (drawn == fixed).all(-1).all(-1), (drawn == fixed.flip(1)).all(-1).all(-1)
    assert (as_they_are | swapped).all() and 15 < swapped.sum() < 45


def test_mirrored_features_are_those_of_mirrored_pictures(experiment):
    made = clip_koa.arm(experiment, "picture")
    data = experiment.data("training", made)
    source = experiment.source(made, replace(data, mirrored=True))
    flipped = data.images([5, 0, 11])[..., ::-1].copy()
    with torch.no_grad():
        direct = made.build().eval().trunk(to_tensor(flipped, made.recipe.normalisation))
    assert torch.allclose(source.batch([5, 0, 11]), direct, rtol=1e-2, atol=1e-2)


def test_without_losses_the_picture_alone_trains_as_ever(experiment):
    made = clip_koa.arm(experiment, "picture")
    data, grader, ordinary = easy_dataset(64, 112, "fit"), made.build(), made.build()
    with torch.no_grad():
        values = [
            grader.trunk(to_tensor(replace(data, mirrored=way).images(np.arange(64)), "clip")).numpy()
            for way in (False, True)
        ]
    plain, mirrored = (sources.Features(data, each[None]) for each in values)
    # A source with one view draws no number but the view's.
    plain.training_batch = lambda positions, generator: plain.batch(positions)
    training.fit(grader, sources.Pairs(plain, mirrored, False), None, made.recipe, 0, "pairs", loss=made.loss)
    training.fit(ordinary, plain, None, made.recipe, 0, "plain")
    for name, value in ordinary.trained_state().items():
        assert torch.allclose(value, grader.trained_state()[name], atol=1e-5), name


def test_each_loss_pulls_down_what_it_measures(experiment):
    pairs = {"none": (0, 0), "symmetry": (2.0, 0), "consistency": (0, 2.0)}
    last = {
        name: experiment.history(clip_koa.arm(experiment, "both", *pair)).query("part == 'train'").iloc[-1]
        for name, pair in pairs.items()
    }
    for name in ("symmetry", "consistency"):
        assert last[name][name] < last["none"][name]


# Choice and protocol


def test_weights_are_chosen_on_the_inner_part_alone(experiment, weights):
    made = clip_koa.arm(experiment, "both", *weights[clip_koa.BOTH])
    inner = experiment.run(made, splits=("inner",)).graded()
    fold = experiment.folds(made)[0]
    for part in (fold.fit, *(part for name, part in fold.reported.items() if name != "train")):
        assert not set(inner["group_id"]) & set(part.rows["group_id"])
    values = SETTINGS.weights
    grid = {
        clip_koa.SYMMETRY: [(value, 0.0) for value in values],
        clip_koa.CONSISTENCY: [(0.0, value) for value in values],
        clip_koa.BOTH: [(one, other) for one in values for other in values],
    }
    for name, pairs in grid.items():
        arms = {pair: clip_koa.arm(experiment, "both", *pair) for pair in pairs}
        kappas = {
            pair: experiment.run(arm, splits=("inner",)).measured(["qwk"])["qwk"]
            for pair, arm in arms.items()
        }
        best = [pair for pair in pairs if kappas[pair] == max(kappas.values())]
        assert weights[name] in best and sum(weights[name]) == min(map(sum, best))


def test_arms_differ_in_what_they_are_named_after(experiment, weights):
    arms = clip_koa.arms(experiment, weights)
    assert {*arms, clip_koa.AT_TEST} == set(clip_koa.ARMS)
    for name, made in arms.items():
        standard = arms[clip_koa.STANDARD]
        assert (
            replace(
                made,
                name=standard.name,
                loss=standard.loss,
                seen=standard.seen,
                build=standard.build,
                trunk=standard.trunk,
            )
            == standard
            and made.trunk.key == standard.trunk.key
        )
        assert made.seen == {clip_koa.STANDARD: "picture", clip_koa.FLIPPED: "either"}.get(name, "both")
        wanted = name in (clip_koa.SYMMETRY, clip_koa.BOTH), name in (clip_koa.CONSISTENCY, clip_koa.BOTH)
        assert (made.loss.symmetry > 0, made.loss.consistency > 0) == wanted
        assert made.loss.both == (made.seen == "both")


def test_reported_parts_are_test_and_clean_external_pictures_for_each_seed(experiment, results):
    study = experiment.study
    assert results.splits == ["test", "external"] and set(results.frame["arm"]) == set(clip_koa.ARMS)
    for where, part in results.each("arm", "seed", "split"):
        both = part.graded()
        assert where["seed"] in (study.seed, study.seed + 1) and "p0_b" in both
        assert where["split"] == "test" or both["pixel_sha256"].is_unique
        assert len(part.frame) == 2 * len(both)


def test_external_pictures_are_shown_stretched_whatever_the_training(experiment, weights):
    study = experiment.study
    cropped = replace(study.profile, our_protocol=replace(study.profile.our_protocol, geometry="center_crop"))
    other = with_systems(replace(study, profile=cropped), symmetry=replace(SETTINGS, seeds=1))
    views = clip_koa.run(Experiment(other), weights).frame.groupby("split")["view"].unique()
    assert list(views["test"]) == ["center_crop-none"] and list(views["external"]) == ["stretch-none"]


def test_a_trained_trunk_is_that_of_our_protocol_which_has_not_seen_the_inner_part(experiment):
    study = with_systems(experiment.study, symmetry=replace(SETTINGS, trunk="trained"))
    study = replace(
        study, profile=replace(study.profile, our_protocol=replace(TINY, part="both_encoders", epochs=1))
    )
    trained = Experiment(study)
    official, made = protocols.official_arm(study), clip_koa.arm(trained, "picture")
    fits = [part.folds(arm)[0].fit.fingerprint for part, arm in ((trained, official), (trained, made))]
    assert not official.recipe.folds and fits[0] == fits[1]
    wanted, built = trained.grader(official).clip.state_dict(), made.build()
    assert all(torch.equal(value, wanted[name]) for name, value in built.clip.state_dict().items())
    assert built.stage == "pooled" and made.key != clip_koa.arm(experiment, "picture").key


# What is measured


def test_averaging_at_test_time_never_changes_its_mind_and_is_written(experiment, results):
    standard, averaged = (
        results.of(arm=name, split="test", seed=3).graded() for name in (clip_koa.STANDARD, clip_koa.AT_TEST)
    )
    plain, mirrored = stats.paired_probabilities(standard)
    found = stats.paired_probabilities(averaged)
    assert np.allclose(found[0], (plain + mirrored) / 2) and np.array_equal(*found)
    assert (
        results.measured(["flip_disagreement"], arm=clip_koa.AT_TEST, split="external", seed=3)[
            "flip_disagreement"
        ]
        == 0
    )
    file = (
        experiment.study.run_dir / "predictions" / "koa-at_test__easy_a-test__stretch-none__fold1__seed3.csv"
    )
    assert np.allclose(predictions.read(file)[predictions.PROBABILITIES], found[0], atol=1e-8)


def test_what_was_run_has_each_arm_and_part_with_weights_mean_and_spread(results, weights):
    table = clip_koa.overview(results, weights).set_index(["part", "arm"])
    assert list(table.loc["test"].index) == list(table.loc["external"].index) == list(clip_koa.ARMS)
    row = table.loc[("external", clip_koa.BOTH)]
    assert (row["symmetry_weight"], row["consistency_weight"]) == weights[clip_koa.BOTH]
    assert (table.xs(clip_koa.PAIRS, level="arm")[["symmetry_weight", "consistency_weight"]] == 0).all().all()
    each = [part.graded() for _, part in results.of(arm=clip_koa.BOTH, split="external").each("seed")]
    rates = [metrics.flip_disagreement(*stats.paired_probabilities(both)) for both in each]
    assert row["flip_disagreement"] == pytest.approx(np.mean(rates))
    assert row["flip_disagreement_sd"] == pytest.approx(np.std(rates, ddof=1))
    assert row["flip_disagreement_low"] <= row["flip_disagreement"] <= row["flip_disagreement_high"]
    alone = clip_koa.overview(results.of(seed=3), weights)
    assert alone.filter(like="_sd").isna().all().all() and (alone["seeds"] == 1).all()
    kappa = results.of(seed=3).measured(["qwk"], arm=clip_koa.PAIRS, split="test")
    same = alone.query("part == 'test' and arm == @clip_koa.PAIRS").iloc[0]
    assert same[["qwk", "qwk_low", "qwk_high"]].tolist() == pytest.approx(
        list(kappa.values())[1:], nan_ok=True
    )


def graded(right, seed, arm, n=60):
    """Predictions of pictures and mirror images: `right` says for each picture whether it, and its mirror image, are graded rightly."""
    rows = pd.DataFrame(
        {
            "image_id": [f"k{i}" for i in range(n)],
            "kl_grade": np.arange(n) % 5,
            "group_id": [f"p{i // 2}" for i in range(n)],
            "arm": arm,
            "seed": seed,
            "fold": 1,
            "split": "test",
            "view": "stretch-none",
            "pixel_sha256": "",
        }
    )
    frames = []
    for way, hits in zip((False, True), right, strict=True):
        answers = np.where(hits, rows["kl_grade"], (rows["kl_grade"] + 1) % 5)
        frames.append(
            rows.assign(
                mirrored=way, **dict(zip(predictions.PROBABILITIES, np.eye(5)[answers].T, strict=True))
            )
        )
    return pd.concat(frames)


def made_up(*gains, n=60, changing=(0, 0)):
    """Results with the share of right answers that both losses add with each seed, and the shares of changing grades without and with them."""
    frames = []
    for seed, gain in enumerate(gains):
        for arm in clip_koa.ARMS:
            place = (7 * np.arange(n) % n) / n  # spread over the patients
            right = place < 0.5 + gain * (arm == clip_koa.BOTH)
            turned = (13 * np.arange(n) % n) / n < changing[arm == clip_koa.BOTH]
            frames.append(graded((right, right != turned), seed, arm, n))
    return Results(pd.concat(frames, ignore_index=True), 200, 0)


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ((0.3, 0.2, 0.3), "replicated"),
        ((-0.2, -0.3, -0.3), "not replicated"),
        ((0.0, 0.0, 0.0), "inconclusive"),
        ((0.3, -0.4, -0.5), "not replicated"),
        ((0.4, -0.4, 0.05), "inconclusive"),
    ],
)
def test_a_claim_stands_or_falls_with_the_mean_over_all_seeds(gains, verdict):
    results = made_up(*gains)
    answer, gap = (
        clip_koa.answers(results)[CLAIM],
        clip_koa.differences(results).query("arm == @clip_koa.BOTH").iloc[0],
    )
    assert answer.verdict == verdict and answer.ours == pytest.approx(100 * np.mean(gains), abs=0.01)
    assert answer[:3] == pytest.approx(tuple(100 * gap[["accuracy", "accuracy_low", "accuracy_high"]]))
    assert [gap[f"accuracy_seed_{seed}"] for seed in range(3)] == pytest.approx(gains, abs=1e-9)
    assert gap["seeds_agree"] == (len(set(np.sign(gains))) == 1 and gains[0] != 0)


def test_fewer_changing_grades_are_what_the_second_claim_wants():
    assert clip_koa.answers(made_up(0.0, changing=(0.4, 0.1)))[STEADY].verdict == "replicated"
    assert clip_koa.answers(made_up(0.0, changing=(0.1, 0.4)))[STEADY].verdict == "not replicated"


def test_differences_are_paired_and_one_seed_agrees_with_none(results):
    one = results.of(seed=3)
    gaps = clip_koa.differences(one)
    assert (
        len(gaps) == 2 * 9
        and not gaps.duplicated(["arm", "less", "part"]).any()
        and gaps["seeds_agree"].isna().all()
    )
    row = gaps.query("arm == @clip_koa.BOTH and less == @clip_koa.PAIRS and part == 'test'").iloc[0]
    reference = one.of(split="test").gap(clip_koa.BOTH, clip_koa.PAIRS, clip_koa.METRICS)
    assert row[list(reference)].tolist() == pytest.approx(list(reference.values()), nan_ok=True)


# Answers


def test_every_row_and_claim_of_the_paper_has_its_answer(experiment, results):
    study, kept = experiment.study, clip_koa.answers(results)
    numbers, claimed = (read_published(study.published, name) for name in ("other_systems", "claims"))
    ours, words = numbers[numbers["system"] == clip_koa.SYSTEM], claimed[claimed["source"] == clip_koa.SYSTEM]
    wanted = {
        *ours[["system", "item", "row", "metric"]].itertuples(index=False, name=None),
        *words[["source", "item", "claim"]].itertuples(index=False, name=None),
    }
    assert set(kept) == wanted
    answers.keep(study, clip_koa.SYSTEM, kept)
    assert set(answers.read(study)) >= wanted
    gain = kept[clip_koa.SYSTEM, "abstract", "gain over standard CLIP", "accuracy_gain"]
    means = [
        results.of(arm=name, split="test").averaged(["accuracy"])[1]["accuracy"].mean()
        for name in (clip_koa.BOTH, clip_koa.STANDARD)
    ]
    assert (
        gain.value == pytest.approx(100 * (means[0] - means[1]))
        and f"{means[0] / means[1] - 1:+.2%}" in gain.note
    )


def test_a_dry_run_is_short_and_every_profile_knows_what_stays_frozen():
    loaded = {name: profile.load(name) for name in profile.names()}
    short = profile.dry(loaded["paper"], real=False).systems.symmetry
    assert (short.epochs, short.seeds, len(short.weights)) == (1, 1, 1)
    assert all(
        settings.systems.symmetry.trunk == ("trained" if settings.model.start == "random" else "start")
        for settings in loaded.values()
    )
