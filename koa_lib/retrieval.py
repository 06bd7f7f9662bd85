"""Search by text: image-to-query similarities, and the pictures nearest to a query."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib.device import device_of
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.prompts import prompts


@torch.no_grad()
def image_embeddings(grader, data):
    """Unit image embeddings (n, d) of a grader for `sources.Features` or `sources.Pictures`."""
    grader.eval()
    chunks = np.array_split(np.arange(len(data)), max(1, len(data) // 128))
    return torch.cat(
        [grader.embed_features(data.batch(chunk).to(device_of(grader))).cpu() for chunk in chunks]
    )


@torch.no_grad()
def query_embeddings(grader, tokenizer, queries):
    """Unit text embeddings (q, d) of free queries."""
    return F.normalize(
        grader.clip.encode_text(tokenizer(list(queries)).to(device_of(grader))).float(), dim=-1
    ).cpu()


def similarities(image_ids, images, texts, prompt_set="queries"):
    """Cosine of each picture with each query of a prompt set.

    Returns
    -------
    DataFrame
        image_id, prompt_set, query, cosine: one row per pair.
    """
    queries = prompts(prompt_set)
    cosine = (images @ texts.T).numpy()
    return pd.DataFrame(
        {
            "image_id": np.repeat(list(image_ids), len(queries)),
            "prompt_set": prompt_set,
            "query": np.tile(queries, len(cosine)),
            "cosine": cosine.ravel(),
        }
    )


def ranking(cosine, grades, ks=(5, 10, 20)):
    """How well each query finds the pictures of its grade.

    Parameters
    ----------
    cosine : float array (n, 5)
        Column g is the query of grade g.
    grades : int array (n,)
    ks : sequence of int
        Precision is measured among so many first pictures, or among all where there are fewer; ties by position.

    Returns
    -------
    DataFrame
        grade, pictures, share (what a random order gives), precision_at_<k>, average_precision (ratios); NaN for a
        grade without pictures. The last row, grade "mean", holds their number and the means over the other grades.

    Raises
    ------
    StudyError
        As `nearest`; also when there is not one grade for each row of cosines.
    """
    from sklearn.metrics import average_precision_score

    grades, order = np.asarray(grades), nearest(cosine, len(cosine))
    if grades.shape != (len(cosine),):
        raise StudyError(
            f"{len(cosine)} rows of cosines stand against {grades.size} grades. "
            "Give one grade for each picture."
        )
    rows = []
    for grade in GRADES:
        relevant, row = grades == grade, {"grade": grade, "pictures": int((grades == grade).sum())}
        if row["pictures"]:
            row["share"] = relevant.mean()
            row |= {f"precision_at_{k}": relevant[order[grade, :k]].mean() for k in ks}
            row["average_precision"] = average_precision_score(relevant, np.asarray(cosine)[:, grade])
        rows.append(row)
    table = pd.DataFrame(
        rows, columns=["grade", "pictures", "share", *(f"precision_at_{k}" for k in ks), "average_precision"]
    ).astype({"grade": object})
    table.loc[len(GRADES)] = ["mean", len(grades), *table.iloc[:, 2:].astype(float).mean()]
    return table.astype(dict.fromkeys(table.columns[2:], float))


def chance(cosine, grades, shuffles=200, seed=0):
    """Average precision in a random order, which is above the share of a grade where its pictures are few: the grades are shuffled.

    Returns
    -------
    DataFrame
        grade, then "mean" for mAP; average_precision (mean over the shuffles), low, high (their middle 95 %).
    """
    from sklearn.metrics import average_precision_score

    rng, held = (
        np.random.default_rng(seed),
        [grade for grade in GRADES if (np.asarray(grades) == grade).any()],
    )
    drawn = np.full((shuffles, len(GRADES)), np.nan)
    for row in drawn:
        shuffled = rng.permutation(grades)
        row[held] = [
            average_precision_score(shuffled == grade, np.asarray(cosine)[:, grade]) for grade in held
        ]
    drawn = np.column_stack([drawn, np.nanmean(drawn, axis=1)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {"grade": [*GRADES, "mean"], "average_precision": drawn.mean(0), "low": low, "high": high}
    )


def beside_chance(cosines, grades, seed=0):
    """`ranking` of several wordings of the queries beside what a random order reaches.

    Parameters
    ----------
    cosines : dict of str to float array (n, 5)
        Wording to its cosines.

    Returns
    -------
    DataFrame
        wording, then as `ranking`, then chance, chance_low, chance_high (as `chance`) and against_chance:
        'above' or 'below' where the average precision lies outside the middle 95 % of the shuffles, else 'within'.
    """
    tables = []
    for wording, cosine in cosines.items():
        table, luck = ranking(cosine, grades), chance(cosine, grades, seed=seed)
        luck = luck.set_axis(["grade", "chance", "chance_low", "chance_high"], axis=1).drop(columns="grade")
        tables.append(table.assign(wording=wording).join(luck))
    table = pd.concat(tables, ignore_index=True)
    found = table["average_precision"]
    outside = [found.isna(), found > table["chance_high"], found < table["chance_low"]]
    table = table.assign(against_chance=np.select(outside, ["", "above", "below"], "within"))
    return table[["wording", *table.columns.drop("wording")]]


def examples(image_ids, cosine, grades, queries):
    """The first picture of the lowest and of the highest grade, with its cosine to each query.

    Returns
    -------
    DataFrame
        image_id, kl_grade, nearest (query), then a column per query; indexed by the picture's position.
    """
    frame = pd.DataFrame(np.asarray(cosine, dtype=float), columns=list(queries))
    frame.insert(0, "nearest", frame.idxmax(axis=1))
    frame.insert(0, "kl_grade", np.asarray(grades))
    frame.insert(0, "image_id", list(image_ids))
    return frame.loc[[(frame["kl_grade"] == grade).idxmax() for grade in sorted({min(grades), max(grades)})]]


def nearest(cosine, number):
    """Positions of the pictures nearest to each query, nearest first; ties by position.

    Parameters
    ----------
    cosine : float array (n, 5)
    number : int

    Returns
    -------
    int array (5, min(number, n))

    Raises
    ------
    StudyError
        Another shape, or a cosine that is no number.
    """
    cosine = np.asarray(cosine, dtype=float)
    if cosine.ndim != 2 or cosine.shape[1] != len(GRADES) or not np.isfinite(cosine).all():
        raise StudyError(
            f"Search needs finite cosines (n, {len(GRADES)}), one column per query; "
            f"these have the shape {cosine.shape}. Embed the pictures again."
        )
    return np.argsort(-cosine, axis=0, kind="stable")[:number].T
