"""Search by text: image-to-query similarities, and the pictures nearest to a query."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib import metrics
from koa_lib.device import device_of
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.prompts import prompts
from koa_lib.store import write_text

NEAREST = (5, 10, 20)  # precision is measured among so many first pictures
SPARE = 20  # times as many candidates are looked at once more: half precision may change their order


@torch.no_grad()
def image_embeddings(grader, data):
    """Unit image embeddings (n, d) of a grader for `sources.Features` or `sources.Pictures`."""
    grader.eval()
    chunks = np.array_split(np.arange(len(data)), max(1, len(data) // 128))
    embedded = (grader.embed_features(data.batch(chunk).to(device_of(grader))) for chunk in chunks)
    return torch.cat([part.cpu() for part in embedded])


@torch.no_grad()
def query_embeddings(grader, tokenizer, queries):
    """Unit text embeddings (q, d) of free queries."""
    tokens = tokenizer(list(queries)).to(device_of(grader))
    return F.normalize(grader.clip.encode_text(tokens).float(), dim=-1).cpu()


def nearest(embeddings, query, k=10):
    """The stored embeddings nearest to a query; a file of float16 is read as it is.

    Parameters
    ----------
    embeddings : float16 or float32 array (n, d)
        Unit vectors, e.g. ``np.load(path, mmap_mode="c")``.
    query : float array (d,)
        Unit vector.
    k : int

    Returns
    -------
    (int array (k,), float array (k,))
        Positions, nearest first, and cosines in float32.
    """
    stored, query = torch.from_numpy(embeddings), torch.as_tensor(query).float()
    among = (stored @ query.to(stored.dtype)).topk(min(SPARE * k, len(stored))).indices
    found = (stored[among].float() @ query).topk(min(k, len(among)))
    return among[found.indices].numpy(), found.values.numpy()


def keep(study, arm, image_ids, cosine, prompt_set="queries"):
    """Write cosines (n, 5) of pictures with the queries of a prompt set, a row a pair."""
    queries = prompts(prompt_set)
    pairs = {"image_id": np.repeat(list(image_ids), len(queries)), "prompt_set": prompt_set,
             "query": np.tile(queries, len(cosine)), "cosine": np.ravel(cosine)}
    text = pd.DataFrame(pairs).to_csv(index=False, lineterminator="\n", float_format="%.5f")
    write_text(study.own_dir / "similarities" / f"{arm.name}.csv", text)


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
        grade, pictures, share (what a random order gives), precision_at_<k> (among the k first pictures, or
        all where there are fewer; ties by position), average_precision (ratios); NaN for a grade without
        pictures. The last row, grade "mean", holds the number of pictures and the means over the other
        grades.

    Raises
    ------
    StudyError
        When there is not one row of five finite cosines for each grade.
    """
    cosine, grades = np.asarray(cosine, dtype=float), np.asarray(grades)
    if cosine.shape != (len(grades), len(GRADES)) or not np.isfinite(cosine).all():
        raise StudyError(
            f"Search needs finite cosines (n, {len(GRADES)}), one column per query and one row for each of "
            f"{len(grades)} grades; these have the shape {cosine.shape}. Embed the pictures again.")
    order, rows = np.argsort(-cosine, axis=0, kind="stable"), []
    for grade, average in zip(GRADES, _average_precision(cosine, grades), strict=False):
        relevant = pd.Series((grades == grade)[order[:, grade]])
        precisions = {f"precision_at_{k}": relevant.head(k).mean() for k in NEAREST}
        rows.append({"grade": grade, "pictures": relevant.sum(), "share": relevant.mean(), **precisions,
                     "average_precision": average})
    table = pd.DataFrame(rows)
    measured = list(table.columns[2:])
    table.loc[table["pictures"] == 0, measured] = np.nan
    mean = {"grade": "mean", "pictures": len(grades), **table[measured].mean()}
    return pd.concat([table.astype({"grade": object}), pd.DataFrame([mean])], ignore_index=True)


def _average_precision(cosine, grades):
    # Of each grade, NaN without pictures, and their mean.
    from sklearn.metrics import average_precision_score

    found = [average_precision_score(grades == grade, cosine[:, grade]) if (grades == grade).any() else np.nan
             for grade in GRADES]
    return [*found, metrics.mean_defined(np.array(found))]


def chance(cosine, grades, shuffles=200, seed=0):
    """Average precision in a random order, the grades shuffled; few pictures reach more than their share.

    Returns
    -------
    DataFrame
        For each grade and then for their mean: chance (mean over the shuffles), chance_low, chance_high
        (their middle 95 %).
    """
    rng = np.random.default_rng(seed)
    drawn = np.array([_average_precision(cosine, rng.permutation(grades)) for _ in range(shuffles)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return pd.DataFrame({"chance": drawn.mean(0), "chance_low": low, "chance_high": high})


def beside_chance(cosines, grades, seed=0):
    """`ranking` of several wordings of the queries beside what a random order reaches.

    Parameters
    ----------
    cosines : dict of str to float array (n, 5)
        Wording to its cosines.

    Returns
    -------
    DataFrame
        wording, then as `ranking`, then as `chance`, and against_chance: 'above' or 'below' where the average
        precision lies outside the middle 95 % of the shuffles, else 'within'.
    """
    tables = {wording: ranking(cosine, grades).join(chance(cosine, grades, seed=seed))
              for wording, cosine in cosines.items()}
    table = pd.concat(tables, names=["wording"]).reset_index("wording").reset_index(drop=True)
    found = table["average_precision"]
    outside = [found.isna(), found > table["chance_high"], found < table["chance_low"]]
    return table.assign(against_chance=np.select(outside, ["", "above", "below"], "within"))


def examples(image_ids, cosine, grades, queries):
    """The first picture of the lowest and of the highest grade, with its cosine to each query.

    Returns
    -------
    DataFrame
        image_id, kl_grade, nearest (query), then a column per query; indexed by the picture's position.
    """
    cosines = pd.DataFrame(np.asarray(cosine, dtype=float), columns=list(queries))
    named = {"image_id": list(image_ids), "kl_grade": grades, "nearest": cosines.idxmax(axis=1)}
    first = pd.DataFrame(named).join(cosines).drop_duplicates("kl_grade").sort_values("kl_grade")
    return first.iloc[[0, -1]].drop_duplicates("kl_grade")
