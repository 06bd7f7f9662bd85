"""How the cost of a run grows with pictures, folds and draws: in proportion, if no work is done twice."""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import model, sources, training
from koa_lib.bench import works
from koa_lib.store import write_table


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
            rows += [{"what": what, "amount": amount, "seconds": works.seconds(partial(work, amount))}
                     for amount in getattr(amounts, what)]
    found = pd.concat([_shares(part) for _, part in pd.DataFrame(rows).groupby("what", sort=False)])
    for last in found.groupby("what", sort=False).tail(1).itertuples():
        print(f"{last.amount:,} {last.what}: {last.seconds:.1f} s, grows with the power {last.power:.2f}",
              flush=True)
    write_table(out / "costs.csv", found)
    return found


def _shares(part):
    # What the amounts of one kind of work, and their times, are of the largest.
    amount, seconds = part["amount"], part["seconds"]
    power, _ = np.polyfit(np.log(amount), np.log(seconds), 1)
    return part.assign(share=amount / amount.max(), share_of_time=seconds / seconds.max(), power=power)


def _works(folder, amounts):
    rows, (clip, preprocess, tokenizer) = works.listed(folder, "", amounts.drawn), model.load_clip("koa-tiny")
    grader, number = partial(works.grader_of, clip, tokenizer, "adapter"), max(amounts.pictures)
    embed = partial(works.features, folder, side=preprocess.image_size, quick=grader())
    rng, few, recipe = np.random.default_rng(works.SEED), embed(rows), replace(works.RECIPE, epochs=3)
    places = rng.integers(len(rows), size=number)
    whole = replace(few.dataset, rows=few.dataset.rows.iloc[places].reset_index(drop=True), index=places)
    parts = [np.setdiff1d(np.arange(number), held)
             for held in np.array_split(rng.permutation(number), max(amounts.folds))]

    def pictures(amount):
        repeated = rows.iloc[np.arange(amount) % len(rows)].reset_index(drop=True)
        trained, features = grader(), embed(repeated)
        works.fit(trained, features, works.RECIPE)
        training.predict(trained, features)

    def folds(amount):
        for fit in parts[:amount]:
            works.fit(grader(), sources.Features(whole.part(fit, "fit"), few.array), recipe)

    return {"pictures": pictures, "folds": folds, "draws": partial(works.table_3, works.gradings(number))}
