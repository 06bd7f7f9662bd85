"""How the cost of a run grows with pictures, folds and draws: in proportion, if no work is done twice."""

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import model, sources, training
from koa_lib.bench import works
from koa_lib.device import random_state
from koa_lib.prompts import prompts
from koa_lib.store import write_text


@dataclass(frozen=True)
class Amounts:
    """How much of each is timed; the pictures are those of `drawn` phantoms, again and again."""

    pictures: tuple = (500, 1000, 2000, 4130, 8260)
    folds: tuple = (1, 2, 3, 4, 5)
    draws: tuple = (500, 1000, 2000, 4000, 8000)
    drawn: int = 64


def run(out, amounts=None):
    """Time growing amounts and write `costs.csv`.

    Parameters
    ----------
    out : Path
        Folder for `costs.csv`.
    amounts : Amounts, optional

    Returns
    -------
    DataFrame
        what ('pictures': file to trained adapter, of `koa-tiny`; 'folds': trainings on kept embeddings;
        'draws': intervals of Table 3), amount, seconds; share and share_of_time (of the largest amount);
        power (of the amount, with which the time grows: 1 for a straight line, less where the start costs).
    """
    amounts, rows = amounts or Amounts(), []
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for what, work in _works(Path(folder), amounts).items():
            work(getattr(amounts, what)[0])  # warms up
            rows += [{"what": what, "amount": amount, "seconds": _seconds(work, amount)}
                     for amount in getattr(amounts, what)]
    found = pd.DataFrame(rows)
    whole = found.groupby("what")[["amount", "seconds"]].transform("max")
    found[["share", "share_of_time"]] = (found[["amount", "seconds"]] / whole).to_numpy()
    powers = {what: np.polyfit(np.log(part["amount"]), np.log(part["seconds"]), 1)[0]
              for what, part in found.groupby("what")}
    found["power"] = found["what"].map(powers)
    for what, each in found.groupby("what", sort=False):
        last = each.iloc[-1]
        said = f"{last.amount:,} {what}: {last.seconds:.1f} s, time grows with the power {last.power:.2f}"
        print(said, flush=True)
    write_text(out / "costs.csv", found.to_csv(index=False, lineterminator="\n"))
    return found


def _works(folder, amounts):
    graded = works.gradings(max(amounts.pictures))
    return {"pictures": _pictures(folder, amounts.drawn),
            "folds": _folds(folder, amounts.drawn, max(amounts.pictures), max(amounts.folds)),
            "draws": partial(works.table_3, graded)}


def _seconds(work, amount):
    start = time.perf_counter()
    work(amount)
    return time.perf_counter() - start


def _grader():
    clip, _, tokenizer = model.load_clip("koa-tiny")
    with random_state(works.SEED):
        return model.ClipGrader(clip, tokenizer, "adapter", prompts("as_printed")).eval()


def _fit(features, epochs):
    recipe = replace(works.RECIPE, epochs=epochs)
    with contextlib.redirect_stdout(io.StringIO()):
        training.fit(_grader(), features, None, recipe, works.SEED, "adapter")


def _pictures(folder, drawn):
    rows, grader = works.listed(folder, "", drawn), _grader()

    def work(number):
        repeated = rows.iloc[np.arange(number) % len(rows)].reset_index(drop=True)
        features = works.features(folder, repeated, 112, grader)
        _fit(features, 1)
        training.predict(grader, features)

    return work


def _folds(folder, drawn, number, largest):
    rng = np.random.default_rng(works.SEED)
    features = works.features(folder, works.listed(folder, "", drawn), 112, _grader())
    places = rng.integers(drawn, size=number)
    rows = features.dataset.rows.iloc[places].reset_index(drop=True)
    data = replace(features.dataset, rows=rows, index=places)
    parts = [np.setdiff1d(np.arange(number), out) for out in np.array_split(rng.permutation(number), largest)]

    def work(folds):
        for fit in parts[:folds]:
            _fit(sources.Features(data.part(fit, "fit"), features.array), 3)

    return work
