"""What is made again after a change, and what is not: keys that cannot go stale."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import with_systems
from PIL import Image

from koa_lib import cohort, model, prompts, protocols, reach, training
from koa_lib.classifiers import Classifier
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.grading import export
from koa_lib.paper import answers
from koa_lib.phantoms.cohorts import write_cohort_a
from koa_lib.settings import Encoder, Model
from koa_lib.store import Store
from koa_lib.study import FOLDERS
from koa_lib.systems import encoders

NOTHING = "(?!)"
MAIN, OURS = "clip-as_printed", "clip-our_protocol"


class Trial(Store):
    """Notes what a change makes again; builds only what `real` names, as the old result often serves as well here."""

    def __init__(self, folder, real):
        super().__init__(folder, "trial")
        self.real, self.again = real, []

    def _build(self, path, build):
        name = path.relative_to(self.folder).as_posix()
        self.again.append(name)
        return super()._build(path, build) if re.match(self.real, name) or not path.exists() else 0.0


@pytest.fixture(scope="module")
def small(easy_study, tmp_path_factory):
    """A finished study of every kind of artefact: published weights, three arms of CLIP, a network, classifiers on three encoders."""
    base = tmp_path_factory.mktemp("reuse")
    model.save_clip(model.load_clip("koa-tiny", seed=1)[0], "koa-tiny", base / "weights" / "koa-tiny")
    labels = replace(easy_study.profile.systems.labels, pictures=16, batch=16, epochs=1, published=False)
    profile = replace(with_systems(easy_study, labels=labels).profile, model=Model("koa-tiny", "openai", 112), our_protocol=replace(easy_study.profile.our_protocol, folds=0))
    inputs = replace(easy_study.inputs, weights=str(base / "weights"))
    study = replace(easy_study, profile=profile, inputs=inputs, run_dir=base / "run")
    for folder in FOLDERS:
        (study.run_dir / folder).mkdir(parents=True)
    everything(study)
    return study


def everything(study):
    """Make all artefacts."""
    experiment = Experiment(study)
    arms = [protocols.main_arm(study), protocols.our_arm(study), protocols.patients_arm(study)]
    for source in ("start", "trained", "dino"):
        spec = Encoder(source, source, "", 112, 1.0, "")
        arms.append(encoders.arm(experiment, spec, f"regression-{source}", Classifier("logistic regression")))
    for arm in arms:
        experiment.features(arm, experiment.data("training", arm))
    experiment.run(*arms, network(study))
    export.export(study)


def network(study):
    return protocols.baseline_arm(study, replace(study.profile.baselines[1], epochs=1))


@pytest.fixture
def again(small, tmp_path, monkeypatch):
    """A function from a change to the kinds of artefacts that are made again: a module's text, the manifest, or fields of the study."""

    def run(source=None, manifest=None, real=NOTHING, **changes):
        shutil.copytree(small.run_dir, tmp_path / "run")
        if source:
            package = tmp_path / "koa_lib"
            shutil.copytree(reach.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
            path, change = package / source[0], source[1]
            text = path.read_text(encoding="utf-8")
            assert change(text) != text
            path.write_text(change(text), encoding="utf-8")
            monkeypatch.setattr(reach, "PACKAGE", package)
        if manifest:
            folder = tmp_path / "manifests"
            shutil.copytree(cohort.MANIFESTS, folder)
            rows = read_manifest(folder / "easy_a.csv")
            write_manifest(manifest(rows), folder / "easy_a.csv")
            monkeypatch.setattr("koa_lib.cohort.MANIFESTS", folder)
        study = replace(small, run_dir=tmp_path / "run", **changes)
        store = Trial(study.run_dir, real)
        study.__dict__["store"] = store
        everything(study)
        return {kind for kind, pattern in KINDS.items() if any(re.match(pattern, name) for name in store.again)}

    return run


KINDS = {
    "as found": r"data/.*as_found", "inspected": r"data/.*__files", "pictures": r"features/pictures", "trunk": r"features/(embedding|pooled)",
    "encoder": r"features/encoder-start", "trained encoder": r"features/encoder-trained", "DINO": r"checkpoints/self-sup",
    "DINO encoder": r"features/encoder-dino", "printed": rf"(checkpoints|predictions)/{MAIN}__", "patients": rf"(checkpoints|predictions)/{MAIN}-patients",
    "ours": rf"(checkpoints|predictions)/{OURS}", "network": r"(checkpoints|predictions)/resnet50", "on start": r"(checkpoints|predictions)/regression-start",
    "exported": r"weights$", "on trained": r"(checkpoints|predictions)/regression-trained", "on DINO": r"(checkpoints|predictions)/regression-dino"}
OF_CLIP = {"printed", "patients", "ours", "trained encoder", "on trained", "exported"}
ON_WEIGHTS = OF_CLIP | {"trunk", "encoder", "on start"}
DINO = {"DINO", "DINO encoder", "on DINO"}
TOWERS = ON_WEIGHTS | DINO  # everything in which CLIP's architecture is
FITTED = OF_CLIP | {"network", "on start", "on DINO"}  # on grades
ALL = TOWERS | {"network"}
LINE = "\n\nNEW = 1\n"  # code at the end of a module


def changed_group(rows):
    """The first knee of the training split goes to the second patient."""
    train = rows.index[rows["split"] == "train"]
    return rows.assign(group_id=rows["group_id"].mask(rows.index == train[0], rows["group_id"][train[2]]))


def changed_grade(rows):
    first = rows.index == rows.index[rows["split"] == "train"][0]
    return rows.assign(kl_grade=rows["kl_grade"].mask(first, (rows["kl_grade"] + 1) % 5))


# What a change makes again: exactly that, and nothing else.
SOURCES = {
    "a docstring": ("metrics.py", lambda text: text.replace('"""', '"""In other words: ', 1), set()),
    "a comment": ("training.py", lambda text: text + "# seen\n", set()),
    "a table of the results": ("results.py", lambda text: text + LINE, set()),
    "an interval": ("stats.py", lambda text: text + LINE, set()),
    "how arms are run": ("experiment.py", lambda text: text + LINE, set()),
    "how phantoms are drawn": ("phantoms/draw.py", lambda text: text + LINE, set()),
    "a metric, by which epochs are chosen": ("metrics.py", lambda text: text + LINE, FITTED),
    "a loss": ("losses.py", lambda text: text + LINE, FITTED),
    "how classifiers are chosen": ("classifiers.py", lambda text: text + LINE, {"on start", "on trained", "on DINO"}),
    "a network of Table 4": ("networks.py", lambda text: text + LINE, {"network"}),
    "how pictures are augmented": ("datasets.py", lambda text: text + LINE, ALL),
    "how pictures are read": ("images/read.py", lambda text: text + LINE, ALL | {"as found", "inspected", "pictures"}),
    "how pictures are fitted": ("images/shape.py", lambda text: text + LINE, ALL | {"pictures", "inspected"}),
    "how pictures are graded": ("grading/predict.py", lambda text: text + LINE, {"exported"}),
    "how a grade is told": ("grading/show.py", lambda text: text + LINE, set()),
    "an architecture": ("model_configs/koa-tiny.json", lambda text: text + " ", TOWERS),
}


@pytest.mark.parametrize("what", SOURCES)
def test_changed_code_makes_again_what_it_reaches(again, what):
    file, change, right = SOURCES[what]
    assert again(source=(file, change)) == right


def test_a_prompt_makes_again_what_is_behind_prototypes(again, monkeypatch):
    sentences = prompts.prompts("as_printed")
    monkeypatch.setitem(prompts.PROMPT_SETS, "as_printed", (*sentences[:4], "the worst knees"))
    assert again() == OF_CLIP


@pytest.mark.parametrize("change", [changed_group, changed_grade])
def test_a_changed_group_or_grade_trains_again_what_was_fitted_on_it(again, change):
    assert again(manifest=change, real="") == FITTED


def test_another_version_of_torch_makes_all_again_that_uses_it(again, monkeypatch):
    versions = {**reach.versions(), "torch": "0.1"}
    monkeypatch.setattr(reach, "versions", lambda: versions)
    assert again() == ALL


def test_other_published_weights_make_again_what_starts_from_them(again, small, tmp_path):
    model.save_clip(model.load_clip("koa-tiny", seed=2)[0], "koa-tiny", tmp_path / "weights" / "koa-tiny")
    assert again(inputs=replace(small.inputs, weights=str(tmp_path / "weights"))) == ON_WEIGHTS


def test_a_changed_picture_is_found_by_its_content(again, small, tmp_path):
    data = shutil.copytree(small.inputs.data, tmp_path / "pictures")
    first = sorted(data.rglob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    assert again(inputs=replace(small.inputs, data=str(data), content="another time"), real="data/") == ALL | {"as found", "pictures"}


def test_touched_files_are_looked_at_and_nothing_else(again, small):
    assert again(inputs=replace(small.inputs, content="another time")) == {"as found"}


def test_other_settings_make_again_what_they_belong_to(again, small):
    slower = replace(small.profile, our_protocol=replace(small.profile.our_protocol, learning_rate=0.0005))
    assert again(profile=slower) == {"ours", "trained encoder", "on trained", "exported"}


def test_pretraining_epochs_reach_the_embeddings_that_start_from_it(again, small):
    labels = replace(small.profile.systems.labels, epochs=2)
    assert again(profile=with_systems(small, labels=labels).profile) == DINO


def test_the_intensity_reaches_pretraining(again, small):
    ours = replace(small.profile.our_protocol, intensity="clahe")
    assert {"DINO", "DINO encoder", "ours"} <= again(profile=replace(small.profile, our_protocol=ours))


def test_drawing_phantoms_depends_on_little():
    drawn, trained = (reach.reached(function)["code"] for function in (write_cohort_a, training.fit))
    assert drawn != trained and "torch" not in reach.reached(write_cohort_a)["libraries"] and "torch" in reach.reached(training.fit)["libraries"]


def test_code_is_found_through_imports_inside_functions_and_named_files(tmp_path, monkeypatch):
    package = tmp_path / "koa_lib"
    (package / "data").mkdir(parents=True)
    files = {"__init__.py": "", "data/__init__.py": "", "a.py": "def f():\n    from koa_lib.data import b\n", "data/b.py": 'X = "table.npy"\n', "c.py": "", "data/table.npy": "1"}

    def digest(**changed):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "koa_lib"
        (folder / "data").mkdir(parents=True)
        for name, text in {**files, **changed}.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(reach, "PACKAGE", folder)
        return reach.reached(function)["code"]

    def function():
        pass

    function.__module__ = "koa_lib.a"
    same = digest()
    assert digest(**{"c.py": "x = 1", "data/b.py": '"""What."""\n\nX = "table.npy"  # why\n'}) == same
    assert len({same, digest(**{"data/b.py": 'X = "table.npy"\nY = 1\n'}), digest(**{"data/table.npy": "2"}), digest(**{"data/__init__.py": "x = 1"})}) == 4


def test_a_session_in_jupyterlab_writes_beside_the_run(small):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in small.run_dir.rglob("*") if path.is_file() and "interactive" not in path.parts}

    before = state()
    ours = replace(small.profile.our_protocol, epochs=1)
    session = replace(small, step="interactive", profile=replace(small.profile, our_protocol=ours))
    for folder in FOLDERS:
        (session.shown_dir / folder).mkdir(parents=True)
    everything(session)
    experiment = Experiment(session)
    experiment.run(protocols.zero_shot_arm(session, "as_printed"))
    protocols.write_primary(session, experiment.run(protocols.main_arm(session)))
    answers.keep(session, "CLIP-KOA", {("CLIP-KOA", "a", "b", "c"): "not run"})
    session.headline("tried")
    assert state() == before
    own = {path.relative_to(small.run_dir / "interactive").as_posix() for path in (small.run_dir / "interactive").rglob("*")}
    assert {"primary.json", "headline.txt", "answers/CLIP-KOA.json", f"checkpoints/{OURS}__fold1__seed{small.seed}"} <= own
    assert not any(name.startswith(f"checkpoints/{MAIN}__") for name in own)  # read where it was made
    assert answers.read(session) == {("CLIP-KOA", "a", "b", "c"): "not run"} and answers.read(small) == {}


def test_weights_of_another_training_are_refused(small, tmp_path):
    experiment = Experiment(small)
    grader = experiment.grader(protocols.our_arm(small))
    path = experiment.job(protocols.main_arm(small)).checkpoint / "state.safetensors"
    with pytest.raises(StudyError, match=path.name):
        training.load_state(grader, path)


def test_a_state_that_was_being_written_when_the_power_went_is_not_used(small, tmp_path, monkeypatch):
    path, arm, experiment = tmp_path / "x.resume", protocols.our_arm(small), Experiment(small)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)
    recipe, source, written = replace(arm.recipe, epochs=3), experiment.source(arm, experiment.folds(arm)[0].fit), []
    save = torch.save

    def cut(state, place):
        written.append(path.read_bytes() if path.exists() else b"")
        if len(written) > 1:
            Path(place).write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, place)

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        training.fit(arm.build(), source, None, recipe, 0, "cut", path)
    assert path.read_bytes() == written[1] != b""
