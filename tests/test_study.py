"""A study's inputs: written only when they change, checked with one clear sentence."""

import os
from dataclasses import replace

import pytest
import yaml

from koa_lib import profile, study
from koa_lib.errors import StudyError
from koa_lib.study import Study, prepare_inputs, run_name
from koa_lib.systems import preflight


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """Runs go to a folder of the test."""
    monkeypatch.setattr(study, "BUILD", tmp_path / "build")
    return tmp_path / "build"


@pytest.fixture
def data(tmp_path):
    """A folder with one picture."""
    (tmp_path / "data" / "train" / "0").mkdir(parents=True)
    (tmp_path / "data" / "train" / "0" / "1L.png").write_bytes(b"picture")
    return tmp_path / "data"


def age(path):
    """Make a file look old, so that a rewrite shows in its time."""
    os.utime(path, ns=(10**18, 10**18))
    return path.stat().st_mtime_ns


def test_unchanged_inputs_are_not_touched(build, data):
    prepare_inputs("oai", data=str(data))
    old = age(build / "oai" / "inputs.yaml")
    prepare_inputs("oai", data=str(data))
    assert (build / "oai" / "inputs.yaml").stat().st_mtime_ns == old


@pytest.mark.parametrize("change", ["added", "edited", "removed", "renamed"])
def test_changed_picture_changes_the_inputs(build, data, change):
    prepare_inputs("oai", data=str(data))
    old, picture = age(build / "oai" / "inputs.yaml"), data / "train" / "0" / "1L.png"
    {"added": lambda: picture.with_name("2L.png").write_bytes(b"more"), "edited": lambda: picture.write_bytes(b"picturE"),
     "removed": picture.unlink, "renamed": lambda: picture.rename(picture.with_name("9L.png"))}[change]()
    prepare_inputs("oai", data=str(data))
    assert (build / "oai" / "inputs.yaml").stat().st_mtime_ns != old


def test_inputs_name_what_the_run_depends_on(build, data):
    prepare_inputs("oai", seed=7, data=str(data), external=str(data))
    content = yaml.safe_load((build / "oai-seed7" / "inputs.yaml").read_text())
    assert content["profile"] == "oai" and content["seed"] == 7 and content["synthetic"] is False
    assert content["data"] == content["external"] == str(data.resolve())


def test_relative_folder_means_the_same_from_anywhere(build, data, monkeypatch):
    monkeypatch.chdir(data.parent)
    assert prepare_inputs("oai", data="data").data == str(data.resolve())


@pytest.mark.parametrize("profile_name, given, words", [
    ("oai", {}, ["DATA=<folder", "PROFILE=oai"]), ("oai", {"data": "nowhere"}, ["DATA=nowhere", "no folder"]),
    ("demo", {"data": "."}, ["phantoms", "PROFILE=oai"]), ("paper", {"data": "."}, ["WEIGHTS=<folder"]), ("nope", {}, ["'nope'", "demo"])])
def test_mistake_is_one_sentence_and_writes_nothing(build, profile_name, given, words):
    with pytest.raises(StudyError) as error:
        prepare_inputs(profile_name, **given, check=preflight.check)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert not list(build.rglob("inputs.yaml"))


def test_file_instead_of_a_folder_is_refused(data):
    with pytest.raises(StudyError, match="EXTERNAL="):
        prepare_inputs("oai", data=str(data), external=str(data / "train" / "0" / "1L.png"))


def test_open_oai_without_data_says_how_to_start():
    with pytest.raises(StudyError, match="DATA=<folder"):
        Study.open("oai")


def test_open_uses_the_inputs_that_make_wrote(data):
    prepare_inputs("oai", data=str(data))
    opened = Study.open("oai")
    assert opened.folder_of("training") == data.resolve() and opened.folder_of("external") is None and not opened.synthetic


def test_open_makes_the_run_folder_of_its_seed(build):
    assert Study.open("smoke").run_dir == build / "smoke"
    other = Study.open("smoke", 7)
    assert other.run_dir == build / "smoke-seed7" and other.seed == 7 and other.synthetic
    assert (other.shown_dir / "tables").is_dir() and not (other.run_dir / "tables").exists()  # make makes the run's own


@pytest.mark.parametrize("seed", ["42", -1, 4.2, True])
def test_a_seed_that_is_no_whole_number_is_refused_before_anything_is_made(build, seed):
    with pytest.raises(StudyError, match="no whole number from 0"):
        Study.open("smoke", seed)
    assert not build.exists() or not list(build.iterdir())


def test_run_is_named_by_profile_and_foreign_seed():
    settings = profile.load("demo")
    assert run_name(settings, settings.seed) == "demo" and run_name(settings, 1) == "demo-seed1"


def test_stamp_and_headline(build):
    opened = Study.open("smoke", step="03_fine_tune")
    assert opened.stamp().startswith("03_fine_tune") and "seed 42" in opened.stamp()
    opened.headline("All is well.")
    assert (build / "smoke" / "headline.txt").read_text() == "All is well.\n"


def test_a_dry_run_needs_neither_data_nor_weights_and_has_its_own_place(build, monkeypatch):
    monkeypatch.setenv("KOA_DRY", "1")
    inputs = prepare_inputs("paper", dry=True, check=lambda *given: pytest.fail("weights are looked for"))
    study = Study.open("paper")
    assert inputs.dry and study.dry and study.run_dir.name == "paper-dry" and study.synthetic and study.stamp().startswith("DRY RUN")
    assert run_name(study.profile, 7, dry=True) == "paper-dry-seed7"


def test_a_dry_run_changes_folds_seeds_epochs_data_and_start_and_nothing_else():
    whole, dry = profile.load("paper"), profile.dry(profile.load("paper"), real=True)
    assert (dry.as_printed, dry.our_protocol) == tuple(replace(recipe, folds=2, epochs=1) for recipe in (whole.as_printed, whole.our_protocol))
    assert dry.baselines == tuple(replace(spec, epochs=1, weights="random") for spec in whole.baselines)
    assert dry.systems.embeddings.networks == tuple(replace(spec, epochs=1, weights="random") for spec in whole.systems.embeddings.networks)
    assert replace(dry, systems=whole.systems, as_printed=whole.as_printed, our_protocol=whole.our_protocol, baselines=whole.baselines, seeds=3, tower_epochs=30, baseline_folds=5, model=whole.model) == whole
    assert profile.dry(whole, real=False).training.source == "phantoms"
