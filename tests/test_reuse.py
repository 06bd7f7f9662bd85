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
from koa_lib.settings import Encoder, Model
from koa_lib.store import Store
from koa_lib.study import FOLDERS
from koa_lib.systems import encoders

NOTHING = "(?!)"
MAIN, OURS = "clip-as_printed", "clip-our_protocol"


class Trial(Store):
    """Notes what a change makes again; builds only what `real` names: the old result often serves as well."""

    def __init__(self, folder, real):
        super().__init__(folder, "trial")
        self.real, self.again = real, []

    def _build(self, path, build):
        name = path.relative_to(self.folder).as_posix()
        self.again.append(name)
        return super()._build(path, build) if re.match(self.real, name) or not path.exists() else 0.0


def weights(folder, seed):
    """A folder with weights that pass for published ones."""
    model.save_clip(model.load_clip("koa-tiny", seed=seed)[0], "koa-tiny", folder / "koa-tiny")
    return str(folder)


@pytest.fixture(scope="module")
def small(easy_study, tmp_path_factory):
    """A finished study with every kind of artefact."""
    base = tmp_path_factory.mktemp("reuse")
    labels = replace(easy_study.profile.systems.labels, pictures=16, batch=16, epochs=1, published=False)
    profile = with_systems(easy_study, labels=labels).profile
    ours = replace(profile.our_protocol, folds=0)
    profile = replace(profile, model=Model("koa-tiny", "openai", 112), our_protocol=ours)
    inputs = replace(easy_study.inputs, weights=weights(base / "weights", 1))
    study = replace(easy_study, profile=profile, inputs=inputs, run_dir=base / "run")
    for folder in FOLDERS:
        (study.run_dir / folder).mkdir(parents=True)
    everything(study)
    return study


def everything(study):
    """Make all artefacts: three arms of CLIP, a network, classifiers on three encoders, exported weights."""
    experiment, network = Experiment(study), replace(study.profile.baselines[1], epochs=1)
    arms = [protocols.main_arm(study), protocols.our_arm(study), protocols.patients_arm(study)]
    for source in ("start", "trained", "dino"):
        spec, head = Encoder(source, source, "", 112, 1.0, ""), Classifier("logistic regression")
        arms.append(encoders.arm(experiment, spec, f"regression-{source}", head))
    for arm in arms:
        experiment.features(arm, experiment.data("training", arm))
    experiment.run(*arms, protocols.baseline_arm(study, network))
    export.export(study)


@pytest.fixture
def again(small, tmp_path, monkeypatch):
    """A function from a change (a module's text, the manifest, fields of the study) to what is made again."""

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
            folder = shutil.copytree(cohort.MANIFESTS, tmp_path / "manifests")
            write_manifest(manifest(read_manifest(folder / "easy_a.csv")), folder / "easy_a.csv")
            monkeypatch.setattr(cohort, "MANIFESTS", folder)
        study = replace(small, run_dir=tmp_path / "run", **changes)
        store = study.__dict__["store"] = Trial(study.run_dir, real)
        everything(study)
        made = "\n".join(store.again)
        return {kind for kind, pattern in KINDS.items() if re.search(f"^{pattern}", made, re.MULTILINE)}

    return run


def learned(name):
    return rf"(checkpoints|predictions)/{name}"


KINDS = {
    "as found": r"data/.*as_found", "inspected": r"data/.*__files", "pictures": r"features/pictures",
    "trunk": r"features/(embedding|pooled)", "encoder": r"features/encoder-start",
    "trained encoder": r"features/encoder-trained", "DINO": r"checkpoints/self-sup",
    "DINO encoder": r"features/encoder-dino", "printed": learned(f"{MAIN}__"),
    "patients": learned(f"{MAIN}-patients"), "ours": learned(OURS), "network": learned("resnet50"),
    "on start": learned("regression-start"), "on trained": learned("regression-trained"),
    "on DINO": learned("regression-dino"), "exported": r"weights$"}
OF_CLIP = {"printed", "patients", "ours", "trained encoder", "on trained", "exported"}
ON_WEIGHTS = OF_CLIP | {"trunk", "encoder", "on start"}
DINO = {"DINO", "DINO encoder", "on DINO"}
TOWERS = ON_WEIGHTS | DINO  # everything in which CLIP's architecture is
FITTED = OF_CLIP | {"network", "on start", "on DINO"}  # on grades
ALL = TOWERS | {"network"}


def line(text):
    return text + "\n\nNEW = 1\n"


# What a change of code makes again: exactly that, and nothing else.
SOURCES = {
    "a docstring": ("metrics.py", lambda text: text.replace('"""', '"""In other words: ', 1), set()),
    "a comment": ("training.py", lambda text: text + "# seen\n", set()),
    "a table of the results": ("results.py", line, set()),
    "an interval": ("stats.py", line, set()),
    "how arms are run": ("experiment.py", line, set()),
    "what an arm is": ("arm.py", line, set()),
    "another paper's heads": ("projection.py", line, set()),
    "how phantoms are drawn": ("phantoms/draw.py", line, set()),
    "a metric, by which epochs are chosen": ("metrics.py", line, FITTED),
    "a loss": ("losses.py", line, FITTED),
    "how classifiers are chosen": ("classifiers.py", line, {"on start", "on trained", "on DINO"}),
    "a network of Table 4": ("networks.py", line, {"network"}),
    "how pictures are augmented": ("datasets.py", line, ALL),
    "how pictures are read": ("images/read.py", line, ALL | {"as found", "inspected", "pictures"}),
    "how pictures are fitted": ("images/shape.py", line, ALL | {"pictures", "inspected"}),
    "how pictures are graded": ("grading/predict.py", line, {"exported"}),
    "how a grade is told": ("grading/show.py", line, set()),
    "an architecture": ("model_configs/koa-tiny.json", lambda text: text + " ", TOWERS),
}


@pytest.mark.parametrize("what", SOURCES)
def test_changed_code_makes_again_what_it_reaches(again, what):
    file, change, right = SOURCES[what]
    assert again(source=(file, change)) == right


def changed_group(rows):
    """The first knee of the training split goes to the second patient."""
    train = rows.index[rows["split"] == "train"]
    return rows.assign(group_id=rows["group_id"].mask(rows.index == train[0], rows["group_id"][train[2]]))


def changed_grade(rows):
    first = rows.index == rows.index[rows["split"] == "train"][0]
    return rows.assign(kl_grade=rows["kl_grade"].mask(first, (rows["kl_grade"] + 1) % 5))


@pytest.mark.parametrize("change", [changed_group, changed_grade])
def test_a_changed_group_or_grade_trains_again_what_was_fitted_on_it(again, change):
    assert again(manifest=change, real="") == FITTED


def ours(**changes):
    return lambda profile: replace(profile, our_protocol=replace(profile.our_protocol, **changes))


def longer(profile):
    labels = replace(profile.systems.labels, epochs=2)
    return replace(profile, systems=replace(profile.systems, labels=labels))


OF_OURS = {"ours", "trained encoder", "on trained", "exported"}
SETTINGS = {
    "learning rate": (ours(learning_rate=0.0005), OF_OURS),
    "epochs of the pre-training": (longer, DINO),
    "intensity": (ours(intensity="clahe"), OF_OURS | DINO | {"pictures", "trunk", "encoder", "on start"}),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_other_settings_make_again_what_they_belong_to(again, small, what):
    change, right = SETTINGS[what]
    assert again(profile=change(small.profile)) == right


def test_a_prompt_makes_again_what_is_behind_prototypes(again, monkeypatch):
    sentences = prompts.prompts("as_printed")
    monkeypatch.setitem(prompts.PROMPT_SETS, "as_printed", (*sentences[:4], "the worst knees"))
    assert again() == OF_CLIP


def test_another_version_of_torch_makes_all_again_that_uses_it(again, monkeypatch):
    versions = {**reach.versions(), "torch": "0.1"}
    monkeypatch.setattr(reach, "versions", lambda: versions)
    assert again() == ALL


def test_other_published_weights_make_again_what_starts_from_them(again, small, tmp_path):
    assert again(inputs=replace(small.inputs, weights=weights(tmp_path / "weights", 2))) == ON_WEIGHTS


def test_a_changed_picture_is_found_by_its_content(again, small, tmp_path):
    data = shutil.copytree(small.inputs.data, tmp_path / "pictures")
    first = sorted(data.rglob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    inputs = replace(small.inputs, data=str(data), content="another time")
    assert again(inputs=inputs, real="data/") == ALL | {"as found", "pictures"}


def test_touched_files_are_looked_at_and_nothing_else(again, small):
    assert again(inputs=replace(small.inputs, content="another time")) == {"as found"}


def test_code_is_found_through_imports_inside_functions_and_named_files(tmp_path, monkeypatch):
    files = {"__init__.py": "", "data/__init__.py": "", "a.py": "def f():\n    from koa_lib.data import b\n",
             "data/b.py": 'X = "table.npy"\n', "c.py": "", "data/table.npy": "1"}

    def function():
        pass

    def digest(**changed):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "koa_lib"
        (folder / "data").mkdir(parents=True)
        for name, text in {**files, **changed}.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(reach, "PACKAGE", folder)
        return reach.reached(function)["code"]

    function.__module__ = "koa_lib.a"
    same, told = digest(), '"""What."""\n\nX = "table.npy"  # why\n'
    assert digest(**{"c.py": "x = 1", "data/b.py": told}) == same
    reaching = {"data/b.py": 'X = "table.npy"\nY = 1\n', "data/table.npy": "2", "data/__init__.py": "x = 1"}
    assert len({same, *(digest(**{name: text}) for name, text in reaching.items())}) == 4


def test_a_session_in_jupyterlab_writes_beside_the_run(small):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in small.run_dir.rglob("*")
                if path.is_file() and "interactive" not in path.parts}

    before, said = state(), {("CLIP-KOA", "a", "b", "c"): "not run"}
    session = replace(small, step="interactive", profile=ours(epochs=1)(small.profile))
    for folder in FOLDERS:
        (session.own_dir / folder).mkdir(parents=True)
    everything(session)
    protocols.write_primary(session, Experiment(session).run(protocols.main_arm(session)))
    answers.keep(session, "CLIP-KOA", said)
    session.headline("tried")
    assert state() == before
    own = {path.relative_to(session.own_dir).as_posix() for path in session.own_dir.rglob("*")}
    trained = f"checkpoints/{OURS}__fold1__seed{small.seed}"
    assert {"primary.json", "headline.txt", "answers/CLIP-KOA.json", trained} <= own
    assert not any(name.startswith(f"checkpoints/{MAIN}__") for name in own)  # read where it was made
    assert answers.read(session) == said and answers.read(small) == {}


def test_weights_of_another_training_are_refused(small):
    experiment = Experiment(small)
    path = experiment.job(protocols.main_arm(small)).checkpoint / training.STATE
    with pytest.raises(StudyError, match=path.name):
        training.load_state(experiment.grader(protocols.our_arm(small)), path)


def test_a_state_that_was_being_written_when_the_power_went_is_not_used(small, tmp_path, monkeypatch):
    path, arm, experiment = tmp_path / "x.resume", protocols.our_arm(small), Experiment(small)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", 0)
    source, save, written = experiment.source(arm, experiment.folds(arm)[0].fit), torch.save, []

    def cut(state, place):
        written.append(path.read_bytes() if path.exists() else b"")
        if len(written) > 1:
            Path(place).write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, place)

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        training.fit(arm.build(), source, None, replace(arm.recipe, epochs=3), 0, "cut", path)
    assert path.read_bytes() == written[1] != b""
