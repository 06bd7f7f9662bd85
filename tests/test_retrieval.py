"""Search by text: cosines are cosines, and ranking measures what it says."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_score

from koa_lib import model as models
from koa_lib import retrieval, sources
from koa_lib.errors import StudyError
from koa_lib.prompts import prompts


@pytest.fixture(scope="module")
def searched():
    clip, _, tokenizer = models.load_clip("koa-tiny", seed=2)
    grader = models.ClipGrader(clip, tokenizer, "full_image", prompts("as_printed"))
    source = sources.Pictures(easy_dataset(150, role="report"), TINY)
    return grader, tokenizer, source, retrieval.image_embeddings(grader, source)


def test_embeddings_are_unit_vectors_in_the_order_of_the_pictures(searched):
    grader, _, source, images = searched
    assert images.shape == (150, 128) and torch.allclose(images.norm(dim=1), torch.ones(150), atol=1e-5)
    with torch.no_grad():
        alone = grader.embed_features(source.batch(np.array([140])))
    assert torch.allclose(images[140], alone[0], atol=1e-5)


def test_kept_similarities_are_cosines_in_long_form(searched, tmp_path):
    grader, tokenizer, source, images = searched
    texts = retrieval.query_embeddings(grader, tokenizer, prompts("queries"))
    (tmp_path / "similarities").mkdir()
    retrieval.keep(SimpleNamespace(shown_dir=tmp_path), SimpleNamespace(name="arm"), source.dataset.rows["image_id"], images @ texts.T)
    frame = pd.read_csv(tmp_path / "similarities" / "arm.csv")
    assert len(frame) == 750 and set(frame["prompt_set"]) == {"queries"} and frame["cosine"].abs().max() <= 1
    row = frame[(frame["image_id"] == "k7") & (frame["query"] == "Severe knee")]
    with torch.no_grad():
        text = grader.clip.encode_text(tokenizer(["Severe knee"]))[0].numpy()
        image = grader.clip.encode_image(source.batch(np.array([7])))[0].numpy()
    assert row["cosine"].item() == pytest.approx(image @ text / np.linalg.norm(image) / np.linalg.norm(text), abs=1e-5)


KS = [5, 10, 20]
PRECISIONS = [f"precision_at_{k}" for k in KS]


def test_perfect_order_has_perfect_precision():
    grades = np.repeat(np.arange(5), 20)
    table = retrieval.ranking(np.eye(5)[grades], grades)
    assert list(table.columns) == ["grade", "pictures", "share", *PRECISIONS, "average_precision"]
    assert (table[[*PRECISIONS, "average_precision"]] == 1).all(axis=None) and list(table["grade"]) == [0, 1, 2, 3, 4, "mean"]
    assert table["pictures"].tolist() == [20] * 5 + [100] and np.allclose(table["share"], 0.2)


def test_reversed_order_is_worse_than_chance():
    grades = np.repeat(np.arange(5), 12)
    table = retrieval.ranking(np.random.default_rng(0).normal(0, 0.01, (60, 5)) - np.eye(5)[grades], grades)
    assert (table[PRECISIONS] == 0).all(axis=None) and (table["average_precision"] < table["share"]).all()


def test_chance_is_what_shuffled_grades_reach():
    """Of few pictures a random order finds more than their share; with 1 of n it is the mean of 1/rank."""
    grades, cosine = np.repeat(np.arange(5), [20, 10, 5, 4, 1]), np.random.default_rng(0).normal(size=(40, 5))
    luck = retrieval.chance(cosine, grades, shuffles=2000)
    assert luck["chance"][4] == pytest.approx((1 / np.arange(1, 41)).mean(), abs=0.01) and len(luck) == 6
    assert luck["chance"][5] == pytest.approx(luck["chance"][:5].mean())
    assert (luck["chance_low"] <= luck["chance"]).all() and (luck["chance"] <= luck["chance_high"]).all()
    assert retrieval.chance(cosine[:39], grades[:39], shuffles=5).loc[4].isna().all()


def test_only_what_lies_outside_the_random_orders_is_above_or_below_them():
    grades = np.repeat(np.arange(5), 12)
    found = np.eye(5)[grades] * [1, 1, 1, 1, -1] + np.random.default_rng(0).normal(0, 0.01, (60, 5))
    table = retrieval.beside_chance({"found": found, "noise": np.zeros((60, 5))}, grades)
    assert list(table["wording"]) == ["found"] * 6 + ["noise"] * 6 and list(table["grade"][6:]) == [0, 1, 2, 3, 4, "mean"]
    assert list(table["against_chance"][:5]) == ["above"] * 4 + ["below"]
    assert set(table["against_chance"][6:]) == {"within"}
    plain = retrieval.ranking(found, grades)
    assert (table.loc[:5, plain.columns].drop(columns="grade") == plain.drop(columns="grade")).all(axis=None)
    luck = retrieval.chance(found, grades)
    assert list(table["chance_high"][:6]) == list(luck["chance_high"])
    absent = retrieval.beside_chance({"found": found[:48]}, grades[:48])
    assert absent["against_chance"][4] == "" and absent["against_chance"][5] == "above"


@pytest.mark.parametrize(("grades", "shown"), [([3, 0, 4, 0, 4], [1, 2]), ([2, 1, 3, 1], [1, 2]), ([2, 2], [0])])
def test_examples_are_the_first_of_the_lowest_and_of_the_highest_grade(grades, shown):
    cosine = np.random.default_rng(0).normal(size=(len(grades), 5))
    found = retrieval.examples([f"k{place}" for place in range(len(grades))], cosine, np.array(grades), list("abcde"))
    assert list(found.index) == shown and list(found["image_id"]) == [f"k{place}" for place in shown]
    assert np.array_equal(found[list("abcde")], cosine[shown])
    assert list(found["nearest"]) == ["abcde"[place] for place in cosine[shown].argmax(1)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), held=st.integers(1, 5), digits=st.sampled_from([1, 8]))
def test_ranking_agrees_with_scikit_learn(seed, n, held, digits):
    generator = np.random.default_rng(seed)
    grades, cosine = generator.integers(0, held, n), generator.normal(size=(n, 5)).round(digits)  # one digit makes ties
    table = retrieval.ranking(cosine, grades)
    for grade, row in table.head(5).iterrows():
        relevant = grades == grade
        order = sorted(range(n), key=lambda place: (-cosine[place, grade], place))
        assert row["pictures"] == relevant.sum()
        if not relevant.any():
            assert row[["share", *PRECISIONS, "average_precision"]].isna().all()
            continue
        assert row["share"] == relevant.mean()
        assert row["average_precision"] == pytest.approx(average_precision_score(relevant, cosine[:, grade]))
        for k in KS:
            assert row[f"precision_at_{k}"] == precision_score(relevant[order[:k]], np.ones(min(k, n)), zero_division=0)
    there = np.unique(grades)
    mean = average_precision_score(grades[:, None] == there, cosine[:, there], average="macro")
    assert table["average_precision"].iloc[-1] == pytest.approx(mean) and table["pictures"].iloc[-1] == n


def test_without_pictures_nothing_is_defined():
    table = retrieval.ranking(np.zeros((0, 5)), [])
    assert table["pictures"].tolist() == [0] * 6 and table.drop(columns=["grade", "pictures"]).isna().all(axis=None)


@pytest.mark.parametrize("cosine", [np.zeros((3, 4)), np.zeros(5), np.full((3, 5), np.nan), np.zeros((2, 5))])
def test_cosines_of_another_shape_or_without_a_number_are_refused(cosine):
    with pytest.raises(StudyError, match="one column per query and one row for each of 3 grades"):
        retrieval.ranking(cosine, [0, 1, 2])
