"""The works that are timed, each in a plain way and in ours, and how."""

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib import inference, machine, metrics, model, profile, retrieval, sources, stats, training
from koa_lib.bench import plain
from koa_lib.data import cohorts
from koa_lib.data.files import find_pictures
from koa_lib.datasets import KneeDataset
from koa_lib.device import random_state
from koa_lib.errors import StudyError
from koa_lib.grading import novelty, predict
from koa_lib.images import array
from koa_lib.phantoms.cohorts import write_cohort_a
from koa_lib.predictions import PROBABILITIES
from koa_lib.prompts import prompts
from koa_lib.store import write_table

COHORT, WHOLE, WIDTH, SEED = "oai_chen2018", 8260, 512, 0
RATE, MILLISECONDS, MINUTES = "pictures per second", "milliseconds", "minutes"
PRINTED = profile.load("paper").as_printed
# One epoch over unchanged pictures, which both ways can have.
RECIPE = replace(PRINTED, normalisation="clip", epochs=1, views=1, batch=plain.BATCH, learning_rate=1e-4,
                 weight_decay=0.0, warm_up=0.0, averaging=0.0, patience=0)


@dataclass(frozen=True)
class Size:
    """How much is measured: a few minutes on two cores."""

    model: str = "ViT-B-32-quickgelu"
    pictures: int = 128
    gradings: int = 1656
    draws: int = 1000
    stored: int = 1_200_000
    repeats: int = 5


@dataclass(frozen=True)
class Work:
    """A work in both ways.

    `apart` says how far their results lie from each other, at most `within`. A call takes so many `pictures`;
    with 0 its milliseconds are told.
    """

    name: str
    plain: Callable
    ours: Callable
    apart: Callable
    within: float
    pictures: int
    note: str


def run(out, data="", size=None):
    """Time every work and write `bench.csv`; prints a line for each.

    Parameters
    ----------
    out : Path
        Folder for `bench.csv`.
    data : str
        Folder with pictures of Chen's set; phantoms are drawn without it.
    size : Size, optional

    Returns
    -------
    DataFrame
        work, plain, ours, unit, ratio (how many times faster ours is), note.

    Raises
    ------
    StudyError
        When the two ways do not give the same.
    """
    size, rows = size or Size(), []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for work in _works(Path(folder), data, size):
            rows.append(measured(work, size.repeats))
            _tell(rows[-1])
    rows.append(_folds({row["work"]: row for row in rows}))
    _tell(rows[-1])
    found = pd.DataFrame(rows)
    write_table(out / "bench.csv", found)
    return found


def measured(work, repeats):
    """A row of the table: medians of both ways, which take turns.

    Raises
    ------
    StudyError
        When their results lie further apart than the work allows.
    """
    apart = work.apart(work.plain(), work.ours())  # which also warms up
    if not apart <= work.within:
        raise StudyError(f"'{work.name}': the results of both ways are {apart:.2g} apart, more than "
                         f"{work.within:g}, so nothing is timed. Look for the change that did it.")
    turns = [[seconds(way) for way in (work.plain, work.ours)] for _ in range(repeats)]
    times = np.median(turns, axis=0)
    values, unit = (work.pictures / times, RATE) if work.pictures else (1000 * times, MILLISECONDS)
    return _row(work.name, values, unit, times[0] / times[1], f"{work.note}; results {apart:.1g} apart")


def _row(work, values, unit, ratio, note):
    return {"work": work, "plain": values[0], "ours": values[1], "unit": unit, "ratio": ratio, "note": note}


def seconds(work):
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _tell(row):
    print("{work:22}{plain:10.1f}{ours:10.1f} {unit:20}{ratio:8.1f} x   {note}".format_map(row), flush=True)


def _works(folder, data, size):
    rows, (clip, preprocess, tokenizer) = listed(folder, data, size.pictures), model.load_clip(size.model)
    side = preprocess.image_size
    files = plain.Files(list(rows["file"]), list(rows["kl_grade"]), side)
    embed = partial(features, folder, rows, side)

    grader = partial(grader_of, clip, tokenizer)
    start, plainly = time.perf_counter(), grader("adapter")
    quick = inference.quick(plainly, "trunk", side, WHOLE)
    note = (f"{len(rows)} {'pictures' if data else 'phantoms'}, {dict(machine.facts())['Processor']}, "
            f"{torch.get_num_threads()} threads, {inference.engine(plainly, side, WHOLE)}")
    yield Work("embed", partial(plain.embeddings, clip, files),
               lambda: F.normalize(torch.as_tensor(embed(quick).all()), dim=-1).numpy(),
               lambda a, b: 1 - (a * b).sum(1).min(), 1e-3, len(files),
               f"file to embedding, {note}; made ready once in {time.perf_counter() - start:.0f} s")
    embedded = embed(quick)
    yield _fine_tune("adapter", grader, files, embedded)
    yield _one_picture(plainly, files, embedded.dataset)
    del quick
    quick = inference.quick(grader("last_blocks"), "trunk", side, WHOLE)
    yield _fine_tune("last_blocks", grader, files, embed(quick))
    yield _table_3(size)
    yield _query(folder, size)


def grader_of(clip, tokenizer, part):
    """A `ClipGrader` of a copy of CLIP, before any training."""
    with random_state(SEED):
        return model.ClipGrader(copy.deepcopy(clip), tokenizer, part, prompts("as_printed")).eval()


def fit(grader, features, recipe):
    """Train a grader and tell nothing of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        training.fit(grader, features, None, recipe, SEED, "")


def listed(folder, data, number):
    """Rows of pictures with their files: of a folder, or phantoms that are drawn into one."""
    if data:
        rows = find_pictures(cohorts.manifest(COHORT), data, cohorts.facts(COHORT).layouts.values())
    else:
        rows = write_cohort_a(folder, -(-number // 2), SEED)
        rows["file"] = [folder / path for path in rows["path"]]
    even = np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)
    return rows.iloc[even].reset_index(drop=True)


def features(folder, rows, side, quick):
    """Files to cached features, as a run makes them."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        pictures, path = Path(made) / "pictures", Path(made) / "features.npy"
        array.write_squares(list(rows["file"]), "stretch", side, "stretch", pictures)
        data = KneeDataset(rows, np.load(pictures / "pixels.npy"), np.arange(len(rows)), "fit")
        sources.extract(path, lambda: quick, data.whole, RECIPE, SEED)
        return sources.Features(data, np.load(path))


def _farthest(first, second):
    return np.abs(first - second).max()


def _fine_tune(part, grader, files, features):
    theirs, mine, recipe = grader(part), grader(part), replace(RECIPE, part=part)
    batch = min(plain.BATCH, len(files))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(SEED)).numpy()
    batches = np.sort(order[: len(files) // batch * batch].reshape(-1, batch)).tolist()

    def apart(*_):
        return _farthest(plain.probabilities(theirs, files), training.predict(mine, features))

    return Work(f"finetune_{part}", partial(plain.epoch, theirs, files, batches, recipe.learning_rate),
                partial(fit, mine, features, recipe), apart, 0.02, len(files), "an epoch after the first")


def _one_picture(grader, files, data):
    side = data.pixels.shape[-1]
    quick = predict.ready(grader, side, WHOLE)
    *_, traits = predict.forward(quick, data.pixels, "clip")
    card = {"geometry": "stretch", "intensity": "none", "image_size": side, "statistics": "clip"}
    ready = predict.Model(quick, card, novelty.fit(traits, traits))
    return Work("one_picture", partial(plain.grade, grader, files, 0),
                lambda: next(predict.grade(ready, files.files[:1])).probabilities, _farthest, 0.01, 0,
                "file to probabilities, warm; ours also looks whether the picture is unusual")


def gradings(number):
    """So many made-up gradings of pairs of knees, as a graded frame."""
    rng, grades = np.random.default_rng(SEED), np.arange(number) % 5
    given = (rng.dirichlet(np.ones(5), number) + np.eye(5)[grades]) / 2
    return pd.DataFrame(given, columns=PROBABILITIES).assign(kl_grade=grades, group_id=np.arange(number) // 2)


def table_3(graded, draws):
    """Sensitivity of each grade and macro-AUC, (draws, 6), of groups drawn with replacement."""
    sensitivity, _ = metrics.rates(stats.resampled(graded, draws, SEED))
    auc = stats.samples(graded, ["macro_auc"], draws, SEED)["macro_auc"]
    return np.column_stack([sensitivity, auc])[1:]


def _table_3(size):
    graded = gradings(size.gradings)
    given = (graded[name].to_numpy() for name in ("kl_grade", PROBABILITIES, "group_id"))
    loop, ours = partial(plain.drawn, *given, size.draws, SEED), partial(table_3, graded, size.draws)
    return Work("table_3", loop, ours, _farthest, 1e-9, 0,
                f"sensitivities and macro-AUC, {size.draws:,} draws of groups of {size.gradings:,} pictures")


def _query(folder, size):
    path, rng = folder / "stored.npy", np.random.default_rng(SEED)
    stored = np.lib.format.open_memmap(path, "w+", np.float16, (size.stored, WIDTH))
    for part in np.array_split(np.arange(size.stored), -(-size.stored // 50_000)):
        vectors = rng.standard_normal((len(part), WIDTH), np.float32)
        stored[part] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    query, whole = stored[0].astype(np.float32), stored.astype(np.float32)
    stored = np.load(path, mmap_mode="c")
    note = f"ten nearest of {size.stored:,}; plain: float32 in memory, ours: float16 mapped from disk"
    return Work("query", lambda: np.argsort(-(whole @ query))[:10],
                lambda: retrieval.nearest(stored, query)[0], _farthest, 0, 0, note)


def _folds(found):
    # Computed: the plain way passes the whole network in every epoch, ours once per view.
    fitted, held = WHOLE * (PRINTED.folds - 1) // PRINTED.folds, WHOLE // PRINTED.folds

    def minutes(way, embedded, graded):
        one = PRINTED.epochs * fitted / found["finetune_last_blocks"][way] + held / found[graded][way]
        return (embedded / found["embed"][way] + PRINTED.folds * one) / 60

    plainly = minutes("plain", 0, "embed")
    ours = minutes("ours", PRINTED.views * WHOLE, "finetune_last_blocks")
    return _row("folds", (plainly, ours), MINUTES, plainly / ours,
                f"computed from embed and finetune_last_blocks, not run: {PRINTED.folds} folds of "
                f"{PRINTED.epochs} epochs, {WHOLE:,} pictures, {PRINTED.views} views")
