"""Search by text: cosines are cosines, and ranking measures what it says."""

import numpy as np
import pytest
import torch
from conftest import TINY, easy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib import model as models
from koa_lib import retrieval, training
from koa_lib.grades import prompts


@pytest.fixture(scope="module")
def searched():
    clip, _, tokenizer = models.load_clip("koa-tiny", seed=2)
    grader = models.ClipGrader(clip, tokenizer, "full_image", "as_printed")
    source = training.Pictures(easy_dataset(150, role="report"), TINY)
    return grader, tokenizer, source, retrieval.image_embeddings(grader, source)


def test_embeddings_are_unit_vectors_in_the_order_of_the_pictures(searched):
    grader, _, source, images = searched
    assert images.shape == (150, 128) and torch.allclose(images.norm(dim=1), torch.ones(150), atol=1e-5)
    with torch.no_grad():
        alone = grader.embed_features(source.batch(np.array([140])))
    assert torch.allclose(images[140], alone[0], atol=1e-5)


def test_similarities_are_cosines_in_long_form(searched):
    grader, tokenizer, source, images = searched
    texts = retrieval.query_embeddings(grader, tokenizer, prompts("queries"))
    frame = retrieval.similarities(source.dataset.rows["image_id"], images, texts)
    assert len(frame) == 750 and set(frame["prompt_set"]) == {"queries"} and frame["cosine"].abs().max() <= 1 + 1e-5
    row = frame[(frame["image_id"] == "k7") & (frame["query"] == "Severe knee")]
    with torch.no_grad():
        text = grader.clip.encode_text(tokenizer(["Severe knee"]))[0].numpy()
        image = grader.clip.encode_image(source.batch(np.array([7])))[0].numpy()
    assert row["cosine"].item() == pytest.approx(image @ text / np.linalg.norm(image) / np.linalg.norm(text), abs=1e-5)


def test_perfect_order_has_perfect_precision():
    grades = np.repeat(np.arange(5), 12)
    table = retrieval.ranking(np.eye(5)[grades], grades)
    assert (table["precision_at_10"] == 1).all() and (table["average_precision"] == 1).all()
    assert table["pictures"].tolist() == [12] * 5 and np.allclose(table["share"], 0.2)


def test_reversed_order_is_worse_than_chance():
    grades = np.repeat(np.arange(5), 12)
    table = retrieval.ranking(np.random.default_rng(0).normal(0, 0.01, (60, 5)) - np.eye(5)[grades], grades)
    assert (table["precision_at_10"] == 0).all() and (table["average_precision"] < table["share"]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_average_precision_equals_its_definition(seed):
    generator = np.random.default_rng(seed)
    grades, cosine = generator.integers(0, 5, 40), generator.normal(size=(40, 5))
    table = retrieval.ranking(cosine, grades)
    for grade in range(5):
        hits = (grades == grade)[np.argsort(-cosine[:, grade])]
        if hits.any():
            expected = np.mean([hits[: k + 1].mean() for k in np.flatnonzero(hits)])
            assert table["average_precision"][grade] == pytest.approx(expected) and table["precision_at_10"][grade] == hits[:10].mean()


def test_absent_grade_has_no_average_precision():
    table = retrieval.ranking(np.random.default_rng(0).normal(size=(20, 5)), np.zeros(20, dtype=int))
    assert table["average_precision"].isna().tolist() == [False, True, True, True, True] and table["pictures"].tolist() == [20, 0, 0, 0, 0]
