"""Where jobs are done: a cluster finds what this process finds, also when a worker dies."""

import json
import os
import signal
import sys
from dataclasses import dataclass, replace

import pytest
from conftest import TINY, make

from koa_lib import engine, journal, losses, profile, protocols, settings
from koa_lib.classifiers import Classifier
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.grading import archive, export
from koa_lib.settings import Encoder
from koa_lib.study import FOLDERS, Inputs, Study
from koa_lib.systems import encoders

START = Encoder("start", "start", "", 112, 1.0, "")


def test_an_unknown_engine_is_told_before_anything_runs():
    done = make("-s", "reproduce", "PROFILE=smoke", "ENGINE=slurm")
    assert done.returncode and "ENGINE=slurm is unknown" in done.stdout and "Traceback" not in done.stdout


def test_a_cluster_that_is_not_installed_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setenv(engine.CHOICE, "ray")
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"\[cluster\]"):
        engine.each(print, [], threads=1)


@dataclass
class Deadly:
    """A loss that kills its process, once, in the middle of a training."""

    poison: str

    def __post_init__(self):
        self.steps = 0

    def __call__(self, *given):
        self.steps += 1
        if self.steps == 3 and os.path.exists(self.poison):
            os.remove(self.poison)
            os.kill(os.getpid(), signal.SIGKILL)
        return losses.of_recipe(TINY)(*given)


@pytest.fixture
def study(tmp_path):
    """A function that gives the same small study of phantoms with another run folder."""
    smoke = profile.load("smoke")
    cohorts = {role: replace(getattr(smoke, role), size=60) for role in ("training", "external")}
    small = replace(smoke, **cohorts, pretraining=None, as_printed=TINY, draws=10,
                    our_protocol=replace(TINY, part="projection"),
                    model=settings.Model("koa-tiny", "random", 112))

    def made(name):
        for folder in FOLDERS:
            (tmp_path / name / folder).mkdir(parents=True)
        return Study(small, 3, Inputs("smoke", 3, "", "", "", "none", dry=False), tmp_path / name, "tests")

    return made


@pytest.fixture
def cluster(monkeypatch):
    """Ray, with two workers where it is started here."""
    ray = pytest.importorskip("ray", reason="the extra `cluster` (Ray) is not installed")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


def found(study, poison):
    """What a study finds by two folds of an arm whose loss may kill, and by a classifier; and its files."""
    experiment = Experiment(study)
    results = experiment.run(
        replace(protocols.main_arm(study), loss=Deadly(str(poison))),
        encoders.arm(experiment, START, "labels", Classifier("logistic regression")),
    )
    files = [path for name in ("predictions", "history") for path in (study.run_dir / name).glob("*.csv")]
    return results.frame, {path.name: path.read_bytes() for path in files}


def built(study):
    return [line["step"] for line in journal.read(study.run_dir) if line["status"] == "built"]


@pytest.mark.slow
def test_a_cluster_finds_the_same_though_a_worker_dies(study, tmp_path, cluster, monkeypatch):
    poison, (here, there) = tmp_path / "poison", map(study, ("here", "there"))
    frame, files = found(here, poison)
    poison.touch()
    monkeypatch.setenv(engine.CHOICE, "ray")
    again = found(there, poison)
    assert not poison.exists() and len(files) > 8
    assert again[0].equals(frame) and again[1] == files
    assert len(built(there)) == len(set(built(there))) and set(built(there)) == set(built(here))
    cluster.shutdown()
    assert found(there, poison)[0].equals(frame) and len(built(there)) == len(built(here))
    assert not cluster.is_initialized()  # nothing had to be sent


@pytest.mark.slow
def test_a_cluster_grades_an_archive_alike(study, tmp_path, cluster, monkeypatch):
    made = study("run")
    Experiment(made).run(protocols.our_arm(made))
    weights, pictures = str(export.export(made)), str(made.run_dir / "data")
    (tmp_path / "bad.png").write_text("no picture")

    def lines(name):
        assert archive.run([pictures, str(tmp_path / "bad.png")], weights, str(tmp_path / name)) == 1
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    here = lines("here.jsonl")
    monkeypatch.setenv(engine.CHOICE, "ray")
    assert len(here) > 2 * 32 and lines("there.jsonl") == here
