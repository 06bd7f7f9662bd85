"""Search by text: image-to-query similarities, and the pictures nearest to a query."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib.device import device_of
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, prompts


@torch.no_grad()
def image_embeddings(grader, data):
    """Unit image embeddings (n, d) of a grader for `sources.Features` or `sources.Pictures`."""
    grader.eval()
    chunks = np.array_split(np.arange(len(data)), max(1, len(data) // 128))
    return torch.cat([grader.embed_features(data.batch(chunk).to(device_of(grader))).cpu() for chunk in chunks])


@torch.no_grad()
def query_embeddings(grader, tokenizer, queries):
    """Unit text embeddings (q, d) of free queries."""
    return F.normalize(grader.clip.encode_text(tokenizer(list(queries)).to(device_of(grader))).float(), dim=-1).cpu()


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
        raise StudyError(f"{len(cosine)} rows of cosines stand against {grades.size} grades. Give one grade for each picture.")
    rows = []
    for grade in GRADES:
        relevant, row = grades == grade, {"grade": grade, "pictures": int((grades == grade).sum())}
        if row["pictures"]:
            row["share"] = relevant.mean()
            row |= {f"precision_at_{k}": relevant[order[grade, :k]].mean() for k in ks}
            row["average_precision"] = average_precision_score(relevant, np.asarray(cosine)[:, grade])
        rows.append(row)
    table = pd.DataFrame(rows, columns=["grade", "pictures", "share", *(f"precision_at_{k}" for k in ks), "average_precision"]).astype({"grade": object})
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

    rng, held = np.random.default_rng(seed), [grade for grade in GRADES if (np.asarray(grades) == grade).any()]
    drawn = np.full((shuffles, len(GRADES)), np.nan)
    for row in drawn:
        shuffled = rng.permutation(grades)
        row[held] = [average_precision_score(shuffled == grade, np.asarray(cosine)[:, grade]) for grade in held]
    drawn = np.column_stack([drawn, np.nanmean(drawn, axis=1)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return pd.DataFrame({"grade": [*GRADES, "mean"], "average_precision": drawn.mean(0), "low": low, "high": high})


def chance_in_words(table, luck):
    """Mean average precision beside that of a random order, and the grades on either side of it, from `ranking` and `chance`."""
    own, mean, by_luck = table["average_precision"], table.iloc[-1], luck.iloc[-1]
    better, worse = (", ".join(map(str, luck["grade"][:-1][beyond[:-1]])) or "none" for beyond in (own > luck["high"], own < luck["average_precision"]))
    return (f"Mean average precision over the grades is {mean.average_precision:.2f}; a random order has {by_luck.average_precision:.2f} on average "
            f"({by_luck.low:.2f} to {by_luck.high:.2f} in 95 % of the shuffles). Above that range: grade {better}; worse than a random order has on average: grade {worse}. "
            f"Of the first ten pictures {100 * mean.precision_at_10:.0f} % are right.")


def inverted_in_words(hits, inverted, queries):
    """How many of the pictures found, and of the right ones among them, are inverted films.

    Parameters
    ----------
    hits, inverted : bool arrays (5, m)
        Per query, of the pictures nearest to it: of its grade; inverted.
    """
    marked = [f"{inverted[k].sum()} of {inverted.shape[1]} for \"{query}\" ({(hits[k] & inverted[k]).sum()} of its {hits[k].sum()} hits)"
              for k, query in enumerate(queries) if inverted[k].any()]
    if not marked:
        return "None of the pictures found is an inverted film."
    return (f"Inverted films among the pictures found: {', '.join(marked)}. Where they are many, the query may have found a gray-value polarity, and a hit among them says little "
            "about the grade.")


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
        raise StudyError(f"Search needs finite cosines (n, {len(GRADES)}), one column per query; these have the shape {cosine.shape}. Embed the pictures again.")
    return np.argsort(-cosine, axis=0, kind="stable")[:number].T
