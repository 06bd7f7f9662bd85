"""Shared by all tests: one smoke run, phantom cohorts, and a small cohort of real files that is easy to
grade."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from koa_lib import cohort, datasets, profile, settings
from koa_lib.data.manifest import write_manifest
from koa_lib.grades import GRADES
from koa_lib.images.read import describe
from koa_lib.phantoms.cohorts import write_cohort_a, write_cohort_b
from koa_lib.predictions import PROBABILITIES
from koa_lib.profile import ROOT
from koa_lib.results import Results
from koa_lib.study import FOLDERS, Inputs, Study

torch.set_num_threads(1)  # the models of the tests are too small to gain from more
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do XGBoost's trees
RUNS = ("test_browser", "test_notebooks", "test_printing")  # files whose tests read a whole run
SHARED = Path(__file__).parents[2] / "shared" / "data"
TINY = settings.Recipe(
    part="adapter", prompts="as_printed", normalisation="clip", geometry="stretch", intensity="none",
    augmentation="as_printed", loss="prototypes", targets="hard", learning_rate=0.001, weight_decay=0.0,
    epochs=2, patience=0, batch=16, warm_up=0.0, averaging=0.0, residual=0.2, folds=2, views=1)


def make(*arguments, timeout=900, **more):
    """Run make in the repository with the environment of this Python, and what else is given."""
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment(**more), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)


def environment(**more):
    """What make is started with: this Python's environment, and what else is given."""
    ours = {"VIRTUAL_ENV": sys.prefix} if sys.prefix != sys.base_prefix else {}
    return {**os.environ, **more, **ours}


def pytest_collection_modifyitems(items):
    """What reads a run comes first, because it takes longest."""
    items.sort(key=lambda item: item.path.stem not in RUNS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Two lanes (`make test`): each file stays in one of them, and what reads a run in the same."""
    from xdist.scheduler import LoadFileScheduling

    class Lanes(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "runs" if Path(file).stem in RUNS else file

    return Lanes(config, log)


@pytest.fixture(scope="session")
def smoke_run():
    """The folder of a finished smoke run; make decides what has to run."""
    return _made("smoke")


@pytest.fixture(scope="session")
def demo_run():
    """The folder of a demo run with its report; made where it is not there yet."""
    folder = ROOT / "reports" / "_build" / "demo"
    return folder if (folder / "html" / "index.html").is_file() else _made("demo")


def _made(profile):
    done = make("-j2", "reproduce", f"PROFILE={profile}", timeout=3600)
    assert done.returncode == 0, f"make reproduce PROFILE={profile} failed:\n{done.stdout[-4000:]}"
    return ROOT / "reports" / "_build" / profile


@pytest.fixture(scope="session")
def shared():
    """A function from names to paths in the shared data; skips where they are absent."""

    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"the shared data are not here: no {name} in a folder shared/data "
                        "beside the repository")
        return SHARED / name

    return find


@pytest.fixture(scope="session")
def cohort_a(tmp_path_factory):
    """Folder and manifest of a phantom cohort of 12 patients."""
    folder = tmp_path_factory.mktemp("phantom_a")
    return folder, write_cohort_a(folder, 12, seed=5, workers=1)


@pytest.fixture(scope="session")
def cohort_b(tmp_path_factory):
    """Folder and manifest of an external phantom cohort of 60 pictures."""
    folder = tmp_path_factory.mktemp("phantom_b")
    return folder, write_cohort_b(folder, 60, seed=5)


@pytest.fixture
def tiny():
    """A recipe of two epochs."""
    return TINY


def easy_image(grade, generator, size=40):
    """A picture whose grade is its brightness."""
    return np.clip(30 + 45 * grade + generator.normal(0, 6, (size, size)), 0, 255).astype(np.uint8)


def easy_dataset(pictures=60, size=112, role="any", seed=0):
    """A dataset in memory, two pictures per patient; the grade is the brightness."""
    generator = np.random.default_rng(seed)
    grades = np.arange(pictures) // 2 % len(GRADES)
    rows = pd.DataFrame({"image_id": [f"k{i}" for i in range(pictures)], "kl_grade": grades,
                         "kl_grade_reader2": pd.array([pd.NA] * pictures, "Int64"),
                         "group_id": [f"p{i // 2}" for i in range(pictures)], "split": "train"})
    pixels = np.stack([easy_image(grade, generator, size) for grade in grades])
    return datasets.KneeDataset(rows, pixels, np.arange(pictures), role)


def write_easy_cohort(folder, patients, splits, seed):
    """Write an easy cohort as files, two knees per patient, and return its manifest."""
    generator, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        for side in "LR":
            grade, split, name = patient % 5, splits[patient // 5 % len(splits)], f"{seed}{patient:05d}{side}"
            path = folder / split / str(grade) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(easy_image(grade, generator)).save(path)
            rows.append({"image_id": name, "path": path.relative_to(folder).as_posix(), "split": split,
                         "kl_grade": grade, "kl_grade_reader2": pd.NA, "group_id": name[:-1], "side": side,
                         **describe(path)})
    return pd.DataFrame(rows).astype({"kl_grade_reader2": "Int64"})


def with_systems(study, **sections):
    """The study with other sections of its profile's `systems`."""
    return replace(study, profile=replace(study.profile, systems=replace(study.profile.systems, **sections)))


@pytest.fixture(scope="session")
def easy_study(tmp_path_factory):
    """A study of real files: 60 patients in official splits and 20 external ones, koa-tiny from a random
    start."""
    base = tmp_path_factory.mktemp("easy")
    lists, run = base / "manifests", base / "run"
    lists.mkdir()
    official = ("train", "train", "train", "val", "test")
    for name, patients, splits, seed in (("easy_a", 60, official, 1), ("easy_b", 20, ("external",), 2)):
        write_manifest(write_easy_cohort(base / name, patients, splits, seed), lists / f"{name}.csv")
    for part in (".locks", *FOLDERS):
        (run / part).mkdir(parents=True)
    training, external = (settings.Cohort(name, "folder", 0) for name in ("easy_a", "easy_b"))
    chosen = replace(
        profile.load("smoke"), training=training, external=external, pretraining=None, as_printed=TINY,
        model=settings.Model("koa-tiny", "random", 112), our_protocol=replace(TINY, part="projection"),
        seeds=2, tower_epochs=1, baseline_folds=1, draws=50)
    inputs = Inputs("smoke", 3, str(base / "easy_a"), str(base / "easy_b"), "", "none", dry=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "MANIFESTS", lists)
        yield Study(chosen, 3, inputs, run, "tests")


def knees(n=120, name="k", seed=0):
    """Manifest rows of made-up pictures: two knees of a patient, some files twice, some with two knees in
    one."""
    generator = np.random.default_rng(seed)
    number = np.arange(n)
    same = np.where(number % 40 == 5, number - 1, number)
    grades = generator.integers(0, 5, n // 2 + 1)[number // 2]
    return pd.DataFrame({
        "image_id": [f"{name}{place}" for place in number], "kl_grade": grades,
        "group_id": [f"{name}-{place}" for place in number // 2],
        "kl_grade_reader2": pd.array([pd.NA] * n, "Int64"),
        "split": "external", "width": np.where(number % 17 == 0, 640, 300), "height": 162,
        "pixel_sha256": [f"{name}{place}" for place in same],
    })


def predicted(rows, right=0.5, noise=0, **columns):
    """Predictions as `Results` hold them: that share of the true grade, the others any; `columns` over the
    usual."""
    generator, truth = np.random.default_rng(noise), rows["kl_grade"].to_numpy()
    answers = np.where(generator.random(len(rows)) < right, truth, generator.integers(0, 5, len(rows)))
    probabilities = 0.6 * np.eye(5)[answers] + 0.4 * generator.dirichlet(np.ones(5), len(rows))
    usual = {"arm": "clip", "seed": 0, "fold": 1, "split": "external", "view": "stretch-none",
             "mirrored": False}
    return rows.assign(**dict(zip(PROBABILITIES, probabilities.T, strict=True)), **{**usual, **columns})


def results(*frames, draws=50):
    """`Results` of predictions as from `predicted`."""
    return Results(pd.concat(frames, ignore_index=True), draws, 0)
