"""How fast this machine's CPU grades and trains with the paper's true architecture, at random weights."""

import contextlib
import io
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import profile
from koa_lib.device import machine
from koa_lib.store import write_text

MODEL = "ViT-B-32-quickgelu"
PICTURES = 8260  # of one training as printed
# How much is measured: about 10 s in all on two cores that do nothing else.
SECONDS, FEWEST = 2.0, 5  # for single pictures
EMBEDDED, STEPS = 16, 50
REPEATS = (
    3  # of a throughput, the fastest counts: warming up and other work on the machine only ever lengthen it
)


@dataclass(frozen=True)
class Speed:
    """Measured on the CPU, with warm caches.

    Attributes
    ----------
    picture_ms : array (repeats,)
        Milliseconds to grade one picture in memory: normalisation, image tower, similarity to five fixed
        prototypes.
    embed_per_second : float
        Pictures per second through augmentation and the frozen tower, in batches; the fastest of three
        repeats.
    adapter_step_ms : float
        Milliseconds of one training step of the adapter on cached embeddings, likewise.
    threads : int
    """

    picture_ms: np.ndarray
    embed_per_second: float
    adapter_step_ms: float
    threads: int


def measure():
    """Time the paper's recipe on the true architecture, as `ClipGrader` and `training` run it.

    Returns
    -------
    Speed
    """
    import torch

    from koa_lib.model import ClipGrader, load_clip
    from koa_lib.prompts import prompts

    recipe = profile.load("paper").as_printed
    clip, preprocess, tokenizer = load_clip(MODEL)
    with torch.random.fork_rng(devices=[]):
        grader = ClipGrader(clip, tokenizer, recipe.part, prompts(recipe.prompts), recipe.residual).eval()
        data = _pictures(preprocess.image_size, recipe.batch * STEPS)
        single = _single(grader, data, recipe)
        return Speed(
            single, _embedding(grader, data, recipe), _step(grader, data, recipe), torch.get_num_threads()
        )


def measured(study):
    """`measure`, kept in the study's store for this machine, thread count, model and torch.

    Returns
    -------
    Speed
    """
    import torch

    key = {
        "model": MODEL,
        "recipe": profile.load("paper").as_printed,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    found = json.loads(study.store.make("speed.json", key, _write).read_text(encoding="utf-8"))
    return Speed(**{**found, "picture_ms": np.array(found["picture_ms"])})


def expected(found, pictures, epochs, views, batch):
    """Computed minutes of one training: each picture embedded once per view, then the adapter's steps.

    Decoding the files is left out.

    Parameters
    ----------
    found : Speed
    pictures, epochs, views, batch : int
        As in the profile's recipe.

    Returns
    -------
    float
    """
    steps = epochs * (pictures // batch)
    return float((pictures * views / found.embed_per_second + steps * found.adapter_step_ms / 1000) / 60)


def expected_as_printed(found):
    """`expected` for one training as printed: 8,260 pictures and the paper profile's recipe."""
    recipe = profile.load("paper").as_printed
    return expected(found, PICTURES, recipe.epochs, recipe.views, recipe.batch)


def table(found, published):
    """The paper's two times and what they are made of, as this machine has them; shown, not judged.

    Parameters
    ----------
    found : Speed
    published : DataFrame
        `published/jpm2026.csv`.

    Returns
    -------
    DataFrame
        metric, what, unit, relation, published (NaN where nothing is printed), ours, repeats_low,
        repeats_high (their middle 95 %), how, place.
    """
    recipe = profile.load("paper").as_printed
    parts = f"{PICTURES:,} pictures in {recipe.views} views, then the steps of {recipe.epochs} epochs"
    low, high = np.percentile(found.picture_ms, [2.5, 97.5])
    fastest = f"fastest of {REPEATS} repeats"
    rows = [
        ("inference_ms", "Grading one picture", "milliseconds", np.median(found.picture_ms), low, high,
         f"median of {len(found.picture_ms)} repeats"),
        ("training_minutes", "One training as printed", "minutes", expected_as_printed(found), np.nan, np.nan,
         f"computed, not run: {parts}; without decoding"),
        ("", "Frozen tower, one second", "pictures", found.embed_per_second, np.nan, np.nan, fastest),
        ("", "One step of the adapter", "milliseconds", found.adapter_step_ms, np.nan, np.nan, fastest),
    ]
    frame = pd.DataFrame(
        rows, columns=["metric", "what", "unit", "ours", "repeats_low", "repeats_high", "how"])
    printed = published[published["row"] == "runtime"].set_index("metric").reindex(frame["metric"])
    frame.insert(3, "relation", printed["relation"].fillna("").to_numpy())
    frame.insert(4, "published", printed["value"].to_numpy())
    return frame.assign(place=f"{_processor()}, {found.threads} thread{'s' * (found.threads != 1)}, no GPU")


def _processor():
    return dict(machine())["Processor"]


def _write(path):
    found = measure()
    write_text(path, json.dumps({**found.__dict__, "picture_ms": found.picture_ms.round(3).tolist()}))


def _pictures(size, rows):
    # A few random pictures, each listed often enough for the steps of an epoch.
    from koa_lib.datasets import KneeDataset

    pixels = np.random.default_rng(0).integers(0, 256, (EMBEDDED, size, size), dtype=np.uint8)
    return KneeDataset(
        pd.DataFrame({"kl_grade": np.arange(rows) % 5}), pixels, np.arange(rows) % EMBEDDED, "fit"
    )


def _single(grader, data, recipe):
    import torch

    from koa_lib.datasets import to_tensor
    from koa_lib.device import autocast

    def grade():
        with torch.no_grad(), autocast(grader):
            grader(to_tensor(data.images([0]), recipe.normalisation)).softmax(-1)

    grade()
    times, end = [], time.perf_counter() + SECONDS
    while len(times) < FEWEST or time.perf_counter() < end:
        times.append(_seconds(grade))
    return 1000 * np.array(times)


def _embedding(grader, data, recipe):
    from koa_lib.sources import extract

    batch, twice = data.part(np.arange(EMBEDDED), "fit"), replace(recipe, views=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        seconds = min(_seconds(lambda: extract(path, lambda: grader, batch, twice, 0))
                      for _ in range(REPEATS))
    return 2 * EMBEDDED / seconds


def _step(grader, data, recipe):
    from koa_lib.sources import Features
    from koa_lib.training import fit

    width = grader.fixed_prototypes.shape[1]
    features = Features(data, np.random.default_rng(0).normal(size=(1, EMBEDDED, width)).astype(np.float16))
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = min(
            _seconds(lambda: fit(grader, features, None, replace(recipe, epochs=1), 0, "speed"))
            for _ in range(REPEATS)
        )
    return 1000 * seconds / STEPS


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
