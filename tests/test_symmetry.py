"""CLIP-KOA's ablation: arms differ in one factor, weights are chosen without a reported picture, and every rate is what it says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset, with_systems

from koa_lib import metrics, model, pairs, predictions, profile, sources, stats, symmetry, training
from koa_lib.datasets import to_tensor
from koa_lib.errors import StudyError
from koa_lib.paper import answers
from koa_lib.paper.published import read as read_published
from koa_lib.prompts import prompts
from koa_lib.settings import Symmetry

SETTINGS = Symmetry("start", "projection", 2, 0.01, (0.5, 2.0), 2)


@pytest.fixture(scope="module")
def study(easy_study):
    return with_systems(easy_study, symmetry=SETTINGS)


@pytest.fixture(scope="module")
def found(study):
    runner = pairs.PairRunner(study)
    choice = symmetry.choice(study, runner)
    before = {path.name for path in (study.run_dir / "predictions").glob("koa-*")}
    return runner, choice, before, symmetry.ablation(study, runner, choice)


def probabilities(seed, n):
    return np.random.default_rng(seed).dirichlet(np.ones(5), n)


def pair_frame(n=40, seed=0):
    generator = np.random.default_rng(seed)
    rows = pd.DataFrame({"image_id": [f"k{i}" for i in range(n)], "kl_grade": generator.integers(0, 5, n), "group_id": [f"p{i // 2}" for i in range(n)]})
    frames = [rows.assign(**dict(zip(predictions.PROBABILITIES, probabilities(seed + way, n).T, strict=True))) for way in (1, 2)]
    return stats.paired(*frames)


def features(dataset, mirrored):
    values = np.stack([dataset.images(np.arange(len(dataset))).mean(axis=1)])
    return sources.Features(replace(dataset, mirrored=mirrored), values[..., ::-1] if mirrored else values)


# The pairs


def test_a_pair_is_the_picture_and_its_mirror_image_and_either_may_come_first():
    data, positions = easy_dataset(60, 16, "fit"), np.arange(60)
    plain, mirrored = features(data, False), features(data, True)
    fixed = pairs.Pairs(plain, mirrored, False).training_batch(positions, torch.Generator().manual_seed(0))
    assert torch.equal(fixed[:, 0], plain.batch(positions)) and torch.equal(fixed[:, 1], mirrored.batch(positions))
    drawn = pairs.Pairs(plain, mirrored, True).training_batch(positions, torch.Generator().manual_seed(0))
    as_they_are, swapped = (drawn == fixed).all(-1).all(-1), (drawn == fixed.flip(1)).all(-1).all(-1)
    assert (as_they_are | swapped).all() and 15 < swapped.sum() < 45


def test_mirrored_features_are_those_of_mirrored_pictures(study, found):
    runner, made = found[0], symmetry.arm(study, "picture")
    grader, data = made.build().eval(), runner.data("training", made.recipe)
    source, = runner._sources(made, grader, "training", data, replace(data, mirrored=True))
    flipped = data.images([5, 0, 11])[..., ::-1].copy()
    with torch.no_grad():
        direct = grader.trunk(to_tensor(flipped, made.recipe.normalisation))
    assert torch.allclose(source.batch([5, 0, 11]), direct, rtol=1e-2, atol=1e-2)


def test_without_losses_the_picture_alone_trains_as_ever(study):
    made = symmetry.arm(study, "picture")
    data, recipe = easy_dataset(64, 112, "fit"), replace(made.recipe, epochs=2, batch=16)
    grader, ordinary = made.build(), made.build()
    with torch.no_grad():
        both = [np.stack([grader.trunk(to_tensor(replace(data, mirrored=way).images(np.arange(64)), "clip")).numpy()]) for way in (False, True)]
    plain, mirrored = (sources.Features(data, values) for values in both)

    class Single(sources.Features):
        def training_batch(self, positions, generator):
            return self.batch(positions)

    training.fit(grader, pairs.Pairs(plain, mirrored, False), None, replace(recipe, loss=pairs.PairLoss(recipe)), 0, "pairs")
    training.fit(ordinary, Single(data, both[0]), None, replace(recipe, loss="prototypes"), 0, "plain")
    for name, value in ordinary.trained_state().items():
        assert torch.allclose(value, grader.trained_state()[name], atol=1e-5), name


def test_the_loss_is_the_weighted_sum_of_its_parts():
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=0)
    grader = model.ClipGrader(clip, tokenizer, "projection", prompts("as_printed"))
    values, grades = torch.randn(6, 2, 128, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    recipe = pairs.PairRecipe(**{**TINY.__dict__, "loss": "pairs"}, seen="both", symmetry=0.5, consistency=2.0)
    loss = pairs.PairLoss(recipe)
    total, logits = loss(grader, values, grades, torch.eye(5))
    one, other = (grader.embed_features(values[:, way]) for way in (0, 1))
    cross_entropy = torch.nn.functional.cross_entropy(torch.cat([grader.logits(one), grader.logits(other)]), torch.cat([grades, grades])).item()
    apart = (1 - (one * other).sum(-1)).mean().item()
    p, q = grader.logits(one).softmax(-1), grader.logits(other).softmax(-1)
    divergence = (((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)) / 2).mean().item()
    assert total.item() == pytest.approx(cross_entropy + 0.5 * apart + 2 * divergence, rel=1e-4)
    assert torch.allclose(logits, grader.logits(one), atol=1e-4) and loss.parts == [pytest.approx([cross_entropy, apart, divergence], rel=1e-3)]


def test_each_loss_pulls_down_what_it_measures(study, found):
    arms = {name: symmetry.arm(study, "both", *weights)
            for name, weights in {"none": (0, 0), "symmetry": (2.0, 0), "consistency": (0, 2.0)}.items()}
    files = {name: found[0]._trained_once(made).checkpoint / "parts.csv" for name, made in arms.items()}
    last = {name: pd.read_csv(file).iloc[-1] for name, file in files.items()}
    assert last["symmetry"]["symmetry"] < last["none"]["symmetry"] and last["consistency"]["consistency"] < last["none"]["consistency"]


def test_small_products_are_computed_in_one_thread_and_threads_come_back(study, found, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(training, "predict", lambda grader, data: seen.append(torch.get_num_threads()) or probabilities(0, len(data)))
    torch.set_num_threads(2)
    try:
        runner, made = pairs.PairRunner(study), symmetry.arm(study, "picture", seed=7)
        runner.both_ways(made)
        assert set(seen) == {1} and torch.get_num_threads() == 2
        assert runner._for(replace(made, recipe=replace(made.recipe, part="last_blocks"))) == 2
    finally:
        torch.set_num_threads(before)


# Choice and protocol


def test_weights_are_chosen_on_the_inner_part_alone(study, found):
    runner, choice, before, _ = found
    inner = runner.inner(symmetry.arm(study, "both"))
    fitted = runner._trained_once(symmetry.arm(study, "both")).fold.fit
    assert set(inner["split"]) == {"train"} and not set(inner["group_id"]) & set(fitted.rows["group_id"])
    assert not before  # nothing was predicted for a report before the choice was made
    assert list(choice["arm"]) == [symmetry.PAIRS] + [symmetry.SYMMETRY] * 2 + [symmetry.CONSISTENCY] * 2 + [symmetry.BOTH] * 4
    for name, rows in choice.groupby("arm"):
        picked = rows[rows["chosen"] == "yes"]
        assert len(picked) == (name != symmetry.PAIRS) and (picked["qwk"] == rows["qwk"].max()).all()
        best = rows[rows["qwk"] == rows["qwk"].max()]
        assert not len(picked) or picked.iloc[0][["symmetry_weight", "consistency_weight"]].sum() == (best["symmetry_weight"] + best["consistency_weight"]).min()


def test_arms_differ_in_what_they_are_named_after(study, found):
    arms = symmetry.arms(study, found[1])
    assert tuple(arms) == symmetry.TRAINED
    for name, made in arms.items():
        recipe = made.recipe
        assert replace(recipe, seen="picture", symmetry=0.0, consistency=0.0) == arms[symmetry.STANDARD].recipe
        assert recipe.seen == {symmetry.STANDARD: "picture", symmetry.FLIPPED: "either"}.get(name, "both")
        assert (recipe.symmetry > 0, recipe.consistency > 0) == (name in (symmetry.SYMMETRY, symmetry.BOTH), name in (symmetry.CONSISTENCY, symmetry.BOTH))


def test_reported_parts_are_test_and_clean_external_pictures_for_each_seed(study, found):
    runs = found[3]
    assert list(runs) == [study.seed, study.seed + 1]
    for parts in runs.values():
        assert list(parts) == ["test", "external"]
        for split, frames in parts.items():
            assert tuple(frames) == symmetry.ARMS and all(set(both["split"]) == {split} for both in frames.values())
            assert all(both["pixel_sha256"].is_unique for both in frames.values()) or split == "test"


def test_external_pictures_are_shown_stretched_whatever_the_training(study):
    cropped = replace(study.profile, our_protocol=replace(study.profile.our_protocol, geometry="center_crop"))
    other = replace(study, profile=cropped)
    runner, made = pairs.PairRunner(other), symmetry.arm(other, "picture")
    assert made.recipe.geometry == "center_crop" and list(runner.both_ways(made)) == ["test", "external"]
    files = {path.name.split("__")[1]: path.name.split("__")[2] for path in (study.run_dir / "predictions").glob("koa-picture__*center_crop*")}
    assert files == {"easy_a-test": "center_crop-none"}
    stretched = {path.name.split("__")[2] for path in (study.run_dir / "predictions").glob("koa-*external*")}
    assert stretched == {"stretch-none"}


def test_a_trained_trunk_is_that_of_our_protocol_and_must_not_have_seen_the_inner_part(study, found):
    on_trained = with_systems(study, symmetry=replace(SETTINGS, trunk="trained"))
    with pytest.raises(StudyError, match="folds"):
        symmetry.arm(on_trained, "picture")
    official = replace(on_trained.profile, our_protocol=replace(TINY, part="both_encoders", folds=0, epochs=1))
    on_trained = replace(on_trained, profile=official)
    made = symmetry.arm(on_trained, "picture")
    from koa_lib.runner import Runner

    from koa_lib.protocols import our_arm

    trained, built = Runner(on_trained).grader(our_arm(on_trained)).clip.state_dict(), made.build()
    assert all(torch.equal(value, trained[name]) for name, value in built.clip.state_dict().items())
    assert built.stage == "pooled" and made.key != symmetry.arm(study, "picture").key and "trained by our protocol" in symmetry.described(on_trained)


# What is measured


def test_averaging_at_test_time_never_changes_its_mind():
    both = pair_frame()
    plain, mirrored = stats.paired_probabilities(both)
    averaged = stats.paired_probabilities(symmetry.at_test(both))
    assert np.allclose(averaged[0], (plain + mirrored) / 2) and np.array_equal(*averaged)
    assert symmetry.measured(symmetry.at_test(both), 20, 0)["flip_disagreement"][0] == 0


def test_rates_and_intervals_equal_those_of_the_study(study):
    both = pair_frame(60)
    row = symmetry.table(study, {symmetry.STANDARD: both}).iloc[0]
    summary = stats.bootstrap_summary(both, study.profile.draws, study.seed).set_index("metric")
    for metric in ("accuracy", "macro_f1", "qwk"):
        assert (row[metric], row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx(tuple(summary.loc[metric, ["value", "ci_low", "ci_high"]]))
    assert row["flip_disagreement"] == pytest.approx(metrics.flip_disagreement(*stats.paired_probabilities(both)))
    assert row["flip_disagreement_low"] < row["flip_disagreement"] < row["flip_disagreement_high"]


def test_differences_are_paired(study):
    frames = {name: pair_frame(60, seed) for seed, name in enumerate(symmetry.ARMS)}
    frames = {name: both.assign(kl_grade=frames[symmetry.STANDARD]["kl_grade"]) for name, both in frames.items()}
    gaps = symmetry.differences(study, {study.seed: {"test": frames}})
    assert list(gaps["comparison"]) == [f"{row.arm} − {row.less}" for row in gaps.itertuples()]
    assert len(gaps) == 9 and not gaps.duplicated(["arm", "less"]).any()
    gap = gaps.query("arm == @symmetry.BOTH and less == @symmetry.PAIRS").iloc[0]
    for metric in ("accuracy", "macro_f1", "qwk"):
        reference = stats.difference(stats.paired(frames[symmetry.BOTH], frames[symmetry.PAIRS]), metric, study.profile.draws, study.seed)
        assert tuple(gap[[metric, f"{metric}_low", f"{metric}_high"]]) == pytest.approx((reference["difference"], reference["ci_low"], reference["ci_high"]))
    rates = [metrics.flip_disagreement(*stats.paired_probabilities(frames[name])) for name in (symmetry.BOTH, symmetry.PAIRS)]
    assert gap["flip_disagreement"] == pytest.approx(rates[0] - rates[1])
    alike = dict.fromkeys(symmetry.ARMS, frames[symmetry.BOTH])
    same = symmetry.differences(study, {study.seed: {"test": alike}})
    assert (same.drop(columns=["comparison", "part", "arm", "less", "n", "seeds_agree"]) == 0).all().all()


def test_each_seed_has_its_difference_and_one_seed_agrees_with_none(study, found):
    runs = found[3]
    gaps = symmetry.differences(study, runs)
    for seed, parts in runs.items():
        row = gaps.query("part == 'external' and arm == @symmetry.BOTH and less == @symmetry.PAIRS").iloc[0]
        rights = [(both["kl_grade"] == stats.predicted(both)[0]).mean()
                  for both in (parts["external"][name] for name in (symmetry.BOTH, symmetry.PAIRS))]
        assert row[f"accuracy_seed_{seed}"] == pytest.approx(rights[0] - rights[1])
    each = gaps.filter(like="accuracy_seed_")
    assert (gaps["seeds_agree"] == ((each > 0).all(axis=1) | (each < 0).all(axis=1))).all()
    alone = symmetry.differences(study, {study.seed: runs[study.seed]})
    assert alone["seeds_agree"].isna().all()


def test_what_was_run_has_each_arm_and_part_with_the_weights_that_were_chosen(study, found):
    _, choice, _, runs = found
    table = symmetry.overview(study, runs, choice).set_index(["part", "arm"])
    assert list(table.loc["test"].index) == list(table.loc["external"].index) == list(symmetry.ARMS)
    picked = choice[(choice["arm"] == symmetry.BOTH) & (choice["chosen"] == "yes")].iloc[0]
    assert table.loc[("test", symmetry.BOTH), "symmetry_weight"] == picked["symmetry_weight"]
    assert (table.xs(symmetry.PAIRS, level="arm")[["symmetry_weight", "consistency_weight"]] == 0).all().all()
    values = [symmetry.table(study, {"": parts["test"][symmetry.PAIRS]}).iloc[0] for parts in runs.values()]
    row = table.loc[("test", symmetry.PAIRS)]
    assert row["qwk"] == values[0]["qwk"] and row["qwk_low"] == values[0]["qwk_low"]
    assert row["qwk_mean"] == pytest.approx(np.mean([value["qwk"] for value in values]))


def test_seeds_have_a_spread_and_one_seed_has_none(found):
    runs = found[3]
    table, alone = symmetry.seed_table(runs), symmetry.seed_table(dict(list(runs.items())[:1]))
    first, second = (metrics.flip_disagreement(*stats.paired_probabilities(parts["external"][symmetry.BOTH])) for parts in runs.values())
    row = table.query("arm == @symmetry.BOTH and part == 'external'").iloc[0]
    assert row["flip_disagreement"] == pytest.approx((first + second) / 2) and row["flip_disagreement_sd"] == pytest.approx(abs(first - second) / 2**0.5)
    assert alone.filter(like="_sd").isna().all().all() and (alone["seeds"] == 1).all()


# Answers


def test_every_row_and_claim_of_the_paper_has_its_answer(study, found):
    kept = symmetry.answers(study, found[3])
    numbers, claimed = (read_published(study.published, name) for name in ("other_systems", "claims"))
    wanted = {tuple(row) for row in numbers.loc[numbers["system"] == symmetry.SYSTEM, ["system", "item", "row", "metric"]].itertuples(index=False)}
    wanted |= {tuple(row) for row in claimed.loc[claimed["source"] == symmetry.SYSTEM, ["source", "item", "claim"]].itertuples(index=False)}
    assert set(kept) == wanted
    answers.keep(study, symmetry.SYSTEM, kept)
    assert set(answers.read(study)) >= wanted
    gain = kept[symmetry.SYSTEM, "abstract", "gain over standard CLIP", "accuracy_gain"]
    means = [np.mean([(parts["test"][name]["kl_grade"] == stats.predicted(parts["test"][name])[0]).mean() for parts in found[3].values()]) for name in (symmetry.BOTH, symmetry.STANDARD)]
    assert gain.value == pytest.approx(100 * (means[0] - means[1])) and f"{means[0] / means[1] - 1:+.2%}" in gain.note


@pytest.mark.parametrize("low, high, raises, agrees", [(0.5, 2, "replicated", "not replicated"), (-2, -0.5, "not replicated", "replicated"), (-1, 1, "inconclusive", "inconclusive"), (0, 0, "inconclusive", "inconclusive")])
def test_a_claim_stands_or_falls_with_the_interval_of_the_difference(low, high, raises, agrees):
    gap = pd.Series({"qwk": (low + high) / 2, "qwk_low": low, "qwk_high": high})
    assert symmetry._claim(gap, "qwk", 1, "").verdict == raises and symmetry._claim(gap, "qwk", -1, "").verdict == agrees
    assert symmetry._claim(gap, "qwk", 1, "")[:3] == (50 * (low + high), 100 * low, 100 * high)


def test_a_dry_run_is_short_and_every_profile_knows_what_stays_frozen(study):
    short = symmetry.settings_of(replace(study, inputs=replace(study.inputs, dry=True)))
    assert (short.epochs, short.seeds, short.weights) == (1, 1, (0.5,))
    trunks = {name: profile.load(name).systems.symmetry.trunk for name in profile.names()}
    assert all(trunk == ("trained" if profile.load(name).model.start == "random" else "start") for name, trunk in trunks.items())
