"""Search by text: cosines are cosines, and ranking measures what it says."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from koa_lib import model as models
from koa_lib import retrieval, sources
from koa_lib.errors import StudyError
from koa_lib.prompts import prompts

PRECISIONS = [f"precision_at_{k}" for k in (5, 10, 20)]
GRADES = np.repeat(np.arange(5), 12)
NOISE = np.random.default_rng(0).normal(0, 0.01, (60, 5))


def test_kept_similarities_are_cosines_of_every_picture_and_query(tmp_path):
    clip, _, tokenizer = models.load_clip("koa-tiny", seed=2)
    grader = models.ClipGrader(clip, tokenizer, "full_image", prompts("as_printed"))
    source, queries = sources.Pictures(easy_dataset(140, role="report"), TINY), prompts("queries")
    (tmp_path / "similarities").mkdir()
    texts = retrieval.query_embeddings(grader, tokenizer, queries)
    cosines, names = retrieval.image_embeddings(grader, source) @ texts.T, source.dataset.rows["image_id"]
    retrieval.keep(SimpleNamespace(own_dir=tmp_path), SimpleNamespace(name="arm"), names, cosines)
    kept = pd.read_csv(tmp_path / "similarities" / "arm.csv").set_index(["image_id", "query"])["cosine"]
    with torch.no_grad():
        image = clip.encode_image(source.batch(np.array([139])))
        text = clip.encode_text(tokenizer([queries[4]]))
    assert kept["k139", queries[4]] == pytest.approx(torch.cosine_similarity(image, text).item(), abs=1e-5)
    assert len(kept) == 140 * 5


def test_the_nearest_of_a_file_are_found_in_their_exact_order(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    places, cosines = retrieval.nearest(np.load(tmp_path / "vectors.npy", mmap_mode="c"), vectors[7], 5)
    wanted = vectors.astype(float) @ vectors[7].astype(float)
    assert places.tolist() == np.argsort(-wanted)[:5].tolist()
    assert cosines == pytest.approx(np.sort(wanted)[::-1][:5], rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 5), st.sampled_from([1, 8]))
def test_ranking_agrees_with_scikit_learn_and_a_sorted_list(seed, n, held, digits):
    generator = np.random.default_rng(seed)
    grades = generator.integers(0, held, n)
    cosine = generator.normal(size=(n, 5)).round(digits)  # one digit makes ties
    table, measured = retrieval.ranking(cosine, grades), ["share", *PRECISIONS, "average_precision"]
    for grade, row in table.head(5).iterrows():
        relevant = grades == grade
        order = sorted(range(n), key=lambda place: (-cosine[place, grade], place))
        expected = [np.nan] * 5
        if relevant.any():
            average = average_precision_score(relevant, cosine[:, grade])
            expected = [relevant.mean(), *(relevant[order[:k]].mean() for k in (5, 10, 20)), average]
        assert list(row[measured]) == pytest.approx(expected, nan_ok=True)
        assert row["pictures"] == relevant.sum()
    means = table[measured].astype(float)
    pd.testing.assert_series_equal(means.iloc[5], means[:5].mean(), check_names=False)


def test_chance_is_what_shuffled_grades_reach():
    # Of few pictures a random order finds more than their share; with 1 of n it is the mean of 1/rank.
    grades, cosine = np.repeat(np.arange(5), [20, 10, 5, 4, 1]), np.random.default_rng(0).normal(size=(40, 5))
    luck = retrieval.chance(cosine, grades, shuffles=300)
    assert luck["chance"][4] == pytest.approx((1 / np.arange(1, 41)).mean(), abs=0.03)
    assert luck["chance"][5] == pytest.approx(luck["chance"][:5].mean())
    assert luck["chance"].between(luck["chance_low"], luck["chance_high"]).all()


def test_only_what_lies_outside_the_random_orders_is_above_or_below_them():
    found = np.eye(5)[GRADES] * [1, 1, 1, 1, -1] + NOISE
    table = retrieval.beside_chance({"found": found, "noise": np.zeros((60, 5))}, GRADES)
    assert list(table["wording"]) == ["found"] * 6 + ["noise"] * 6
    assert list(table["against_chance"][:5]) == ["above"] * 4 + ["below"]
    assert set(table["against_chance"][6:]) == {"within"}
    absent = retrieval.beside_chance({"found": found[:48]}, GRADES[:48])["against_chance"]
    assert (absent[4], absent[5]) == ("", "above")


@pytest.mark.parametrize(("grades", "shown"), [([3, 0, 4, 0, 4], [1, 2]), ([2, 2], [0])])
def test_examples_are_the_first_of_the_lowest_and_of_the_highest_grade(grades, shown):
    cosine, names = np.random.default_rng(0).normal(size=(len(grades), 5)), list("abcde")
    found = retrieval.examples(range(len(grades)), cosine, np.array(grades), names)
    assert list(found["image_id"]) == shown and np.array_equal(found[names], cosine[shown])
    assert list(found["nearest"]) == [names[place] for place in cosine[shown].argmax(1)]


@pytest.mark.parametrize("cosine", [np.zeros((3, 4)), np.zeros(5), np.full((3, 5), np.nan), np.zeros((2, 5))])
def test_cosines_of_another_shape_or_without_a_number_are_refused(cosine):
    with pytest.raises(StudyError, match="3 grades"):
        retrieval.ranking(cosine, [0, 1, 2])
