"""Search by text: image-to-query similarities, and the pictures nearest to a query."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib.grades import GRADES, prompts


@torch.no_grad()
def image_embeddings(grader, data):
    """Unit image embeddings (n, d) of a grader for `training.Features` or `training.Pictures`."""
    grader.eval()
    chunks = np.array_split(np.arange(len(data)), max(1, len(data) // 128))
    return torch.cat([grader.embed_features(data.batch(chunk)) for chunk in chunks])


@torch.no_grad()
def query_embeddings(grader, tokenizer, queries):
    """Unit text embeddings (q, d) of free queries."""
    return F.normalize(grader.clip.encode_text(tokenizer(list(queries))).float(), dim=-1)


def similarities(image_ids, images, texts, prompt_set="queries"):
    """Cosine of each picture with each query of a prompt set.

    Returns
    -------
    DataFrame
        image_id, prompt_set, query, cosine: one row per pair.
    """
    queries = prompts(prompt_set)
    cosine = (images @ texts.T).numpy()
    return pd.DataFrame({"image_id": np.repeat(list(image_ids), len(queries)), "prompt_set": prompt_set,
                         "query": np.tile(queries, len(cosine)), "cosine": cosine.ravel()})


def ranking(cosine, grades):
    """How well each query finds the pictures of its grade.

    Parameters
    ----------
    cosine : float array (n, 5)
        Column g is the query of grade g.
    grades : int array (n,)

    Returns
    -------
    DataFrame
        grade, pictures, share (what a random order gives), precision_at_10, average_precision.
    """
    from sklearn.metrics import average_precision_score

    rows = []
    for grade in GRADES:
        relevant = np.asarray(grades) == grade
        first = np.argsort(-cosine[:, grade], kind="stable")[:10]
        found = average_precision_score(relevant, cosine[:, grade]) if relevant.any() else np.nan
        rows.append((grade, int(relevant.sum()), relevant.mean(), relevant[first].mean(), found))
    return pd.DataFrame(rows, columns=["grade", "pictures", "share", "precision_at_10", "average_precision"])
