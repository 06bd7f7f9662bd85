"""Label fractions: nested, stratified, never parting a patient; a classifier on frozen embeddings; when a start equals the supervised result."""

from dataclasses import replace

import conftest
import numpy as np
import pandas as pd
import pytest
from conftest import with_systems
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import efficiency, equivalence, predictions, profile, splits
from koa_lib.errors import StudyError

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)


def cohort(patients, seed):
    generator = np.random.default_rng(seed)
    grades = np.minimum(4, np.repeat(generator.integers(0, 5, patients), 2) + generator.integers(0, 2, 2 * patients))
    return pd.DataFrame({"group_id": np.repeat([f"p{number}" for number in generator.permutation(patients)], 2), "kl_grade": grades})


@given(patients=st.integers(1, 120), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_fractions_are_nested_and_never_part_a_patient(patients, seed):
    rows, smaller = cohort(patients, seed), set()
    for fraction in FRACTIONS:
        drawn = efficiency.draw(rows, fraction, seed)
        inside = rows["group_id"].iloc[drawn]
        assert smaller <= set(drawn)
        assert (inside.value_counts() == 2).all()
        smaller = set(drawn)
    assert len(smaller) == len(rows)


@given(patients=st.integers(60, 200), fraction=st.sampled_from(FRACTIONS), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_each_grade_gives_its_share_of_patients(patients, fraction, seed):
    rows = cohort(patients, seed)
    worst = rows.groupby("group_id")["kl_grade"].max()
    drawn = worst[rows["group_id"].iloc[efficiency.draw(rows, fraction, seed)].unique()].value_counts()
    for grade, number in worst.value_counts().items():
        assert abs(drawn[grade] - fraction * number) <= max(0.5, 1 - fraction * number)


def test_seeds_draw_other_patients_and_equal_seeds_the_same():
    rows = cohort(80, 1)
    assert list(efficiency.draw(rows, 0.25, 3)) == list(efficiency.draw(rows, 0.25, 3)) != list(efficiency.draw(rows, 0.25, 4))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(fraction):
    with pytest.raises(StudyError, match="label fraction"):
        efficiency.draw(cohort(10, 0), fraction, 0)


def parts():
    fit, select = splits.inner(conftest.easy_dataset(60, size=4, role="fit"), 0)
    return fit, select, np.random.default_rng(0).normal(0, 0.05, (60, 3)) + (np.arange(60) // 2 % 5)[:, None]


def test_a_classifier_learns_what_the_embeddings_hold_and_gives_probabilities():
    fit, select, embeddings = parts()
    given = efficiency.classify(embeddings, fit, select)(embeddings)
    assert given.shape == (60, 5) and np.allclose(given.sum(1), 1) and (given.argmax(1) == np.arange(60) // 2 % 5).mean() > 0.9


def test_a_grade_that_was_not_drawn_gets_nothing():
    fit, select, embeddings = parts()
    kept = [part.part(np.flatnonzero(part.grades < 4), part.role) for part in (fit, select)]
    given = efficiency.classify(embeddings, *kept)(embeddings)
    assert np.allclose(given[:, 4], 0) and np.allclose(given.sum(1), 1)


@pytest.mark.parametrize("roles", [("report", "select"), ("any", "select"), ("fit", "report"), ("fit", "fit")])
def test_reported_pictures_neither_fit_nor_choose(roles):
    fit, select, embeddings = parts()
    with pytest.raises(StudyError, match="nothing is fitted or chosen"):
        efficiency.classify(embeddings, replace(fit, role=roles[0]), replace(select, role=roles[1]))


def graded(right, seed, n=200):
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 5
    guess = np.where(np.random.default_rng(seed + 1).random(n) < right, truth, generator.integers(0, 5, n))
    frame = predictions.frame([f"k{number}" for number in range(n)], np.eye(5)[guess])
    return frame.assign(kl_grade=truth, group_id=[f"p{number // 2}" for number in range(n)])


def found(levels, cohort="test"):
    rows = [{"start": start, "fraction": fraction, "seed": seed, "cohort": cohort, "patients": 10, "pictures": 20, "graded": graded(right, 10 * seed + 7)}
            for start, values in levels.items() for fraction, right in values.items() for seed in (1, 2)]
    return pd.DataFrame(rows)


LABELLED = pd.DataFrame({"patients": [10, 11], "pictures": [20, 22]})


def test_the_curve_is_the_mean_over_seeds_and_its_differences_are_paired(easy_study):
    reference = {"test": [graded(0.8, 7), graded(0.8, 17)]}
    own = found({"random": {1.0: 0.8}, "self-supervised": {1.0: 0.8}})
    own["graded"] = [frame.sample(frac=1, random_state=1) for frame in reference["test"] * 2]  # the same answers in another order
    full, other, line = equivalence.curve(easy_study, own, reference, LABELLED).itertuples()
    each = np.array([line.qwk_seed_1, line.qwk_seed_2])
    assert line.qwk == pytest.approx(each.mean()) == pytest.approx(full.qwk)
    assert line.sd_over_draws == pytest.approx(each.std(ddof=1)) and each[0] != each[1]
    for values in ((line.against_supervised, line.against_supervised_low, line.against_supervised_high), (line.against_random, line.against_random_low, line.against_random_high)):
        assert values == pytest.approx((0, 0, 0))
    assert line.qwk_low < line.qwk < line.qwk_high
    assert np.isnan([full.against_supervised, full.against_random, full.sd_over_draws, full.qwk_seed_1]).all()
    assert np.isnan(other.against_random)
    assert (full.patients, full.pictures, line.patients, line.pictures) == (10, 21, 10, 20)


def test_a_start_that_learned_something_is_above_the_random_one(easy_study):
    own = found({"random": {0.5: 0.1, 1.0: 0.1}, "self-supervised": {0.5: 0.9, 1.0: 0.9}})
    table = equivalence.curve(easy_study, own, {"test": [graded(0.9, 3)]}, LABELLED)
    ahead = table[table["start"] == "self-supervised"]
    assert (ahead["against_random_low"] > 0).all()


COLUMNS = ["cohort", "start", "fraction", "against_supervised", "against_supervised_low", "against_supervised_high"]


def test_a_start_equals_the_supervised_result_from_where_that_holds_for_all_larger_fractions():
    lines = [(0.1, -0.2, -0.3, -0.1), (0.25, -0.05, -0.11, 0.0), (0.5, -0.01, -0.02, 0.03), (1.0, 0.02, -0.01, 0.05)]
    lucky = [(0.1, 0.01, -0.01, 0.1), (0.5, -0.2, -0.3, -0.1), (1.0, -0.05, -0.1, 0.0)]
    table = pd.DataFrame([("test", "self-supervised", *line) for line in lines[::-1]] + [("test", "contrastive", *line) for line in lucky]
                         + [("test", "random", 1.0, -0.2, -0.3, -0.1)], columns=COLUMNS)
    equal = equivalence.equal(table).set_index("start")[["not_below", "within_margin", "as_high"]]
    assert list(equal.loc["self-supervised"]) == [0.25, 0.5, 1.0]
    assert equal.loc["contrastive", "not_below"] == 1.0 and equal.loc["contrastive", ["within_margin", "as_high"]].isna().all()
    assert equal.loc["random"].isna().all()
    full = pd.DataFrame([("test", "supervised", 1.0, 0.7)], columns=["cohort", "start", "fraction", "qwk"])
    shown = equivalence.fractions(pd.concat([full, table], ignore_index=True))
    assert (shown["supervised"] == 0.7).all() and shown["within_margin"].iloc[0] == ""
    held = shown[shown["start"] == "self-supervised"].set_index("label_percent").sort_index()
    assert held["within_margin"].to_dict() == {10.0: "no", 25.0: "no", 50.0: "yes", 100.0: "yes"}
    assert held["not_below"].tolist() == ["no", "yes", "yes", "yes"]
    assert set(shown[shown["start"] == "random"]["not_below"]) == {"no"}


@pytest.mark.parametrize(("half", "verdict"), [((-0.01, -0.02, 0.03), "replicated"), ((-0.05, -0.2, 0.1), "inconclusive"), ((-0.2, -0.3, -0.1), "not replicated")])
def test_the_claim_about_half_of_the_labels_has_three_ends(half, verdict):
    lucky = ("test", "self-supervised", 0.25, 0.0, -0.01, 0.01)  # another fraction decides nothing
    lines = [lucky, ("test", "self-supervised", 0.5, *half), ("test", "self-supervised", 1.0, 0.1, 0.05, 0.2)]
    table = pd.DataFrame(lines, columns=COLUMNS).assign(qwk_low=0.3)
    number, claim = equivalence.answers(table).values()
    assert claim.verdict == verdict and "50%" in claim.reason
    assert number.value == (0.25 if verdict == "replicated" else 1.0) == claim.ours
    never = table.assign(against_supervised_low=-0.5)
    assert [answer[0] for answer in equivalence.answers(never).values()] == [np.inf, np.inf]
    full = {"cohort": "test", "start": "supervised", "fraction": 1.0, "qwk_low": -0.01}
    chance = pd.concat([table, pd.DataFrame([full])])
    assert list(equivalence.answers(chance).values())[1].verdict == "inconclusive"


def test_a_profile_without_contrastive_weights_says_why(easy_study):
    reasons = {spec.name: spec.reason for spec in efficiency.starts(easy_study)}
    assert "random weights" in reasons["contrastive"] and not reasons["random"] and not reasons["self-supervised"]


def test_each_start_grades_the_unseen_and_the_external_pictures_with_equal_draws(easy_study):
    study = quick(easy_study)
    table = efficiency.run(study)
    assert set(table["start"]) == {"random", "self-supervised"} and set(table["cohort"]) == {"test", "external"} and len(table) == 2 * 2 * 2 * 2
    sizes = table.groupby(["fraction", "seed"])["pictures"].nunique()
    assert (sizes == 1).all() and (table["pictures"] == 2 * table["patients"]).all()
    again = efficiency.run(study)
    assert all(a.equals(b) for a, b in zip(table["graded"], again["graded"], strict=True))
    assert len(list((study.run_dir / "predictions").glob("labels-*"))) == len(table)


def quick(study):
    own = study.profile.systems.labels
    small = replace(own, pictures=16, batch=16, epochs=1, fractions=(0.5, 1.0), seeds=2)
    return with_systems(study, labels=small)


def test_each_start_says_what_it_learned_from_and_whether_it_collapsed(easy_study):
    table = efficiency.towers(quick(easy_study)).set_index("start")
    assert "random weights" in table["not_run"]["contrastive"] and np.isnan(table["spread"]["contrastive"])
    own = table.loc["self-supervised"]
    assert (own["unlabelled"], own["steps"], own["batch"]) == (16, 1, 16)
    assert own["collapsed"] in (True, False)
    assert own["loss"] >= own["loss_floor"] * 0.999
    assert own["uniform_loss"] == pytest.approx(np.log(easy_study.profile.systems.labels.prototypes))


def test_contrastive_weights_of_phantoms_are_named_a_stand_in(easy_study):
    study = replace(easy_study, profile=replace(easy_study.profile, model=replace(easy_study.profile.model, start="pretrain")))
    learned = efficiency._learned_from(study)
    assert "stand-in" in learned["contrastive"] and "timm" not in learned["self-supervised"]
    own = replace(study.profile.systems.labels, published=True)
    published = with_systems(study, labels=own)
    assert "timm's published weights" in efficiency._learned_from(published)["self-supervised"]


def test_every_profile_can_answer_for_half_of_the_labels_or_less():
    for name in profile.names():
        fractions = profile.load(name).systems.labels.fractions
        assert list(fractions) == sorted(fractions) and fractions[0] <= equivalence.HALF and fractions[-1] == 1
