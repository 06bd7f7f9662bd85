"""A study's inputs: written only when they change, checked with one clear sentence."""

import os
from dataclasses import fields, replace

import pytest
import yaml
from conftest import make

from koa_lib import profile, study
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.report import running
from koa_lib.study import Study, prepare_inputs
from koa_lib.systems import preflight


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """Runs go to a folder of the test."""
    monkeypatch.setattr(study, "BUILD", tmp_path / "build")
    return tmp_path / "build"


@pytest.fixture
def picture(tmp_path):
    """A picture in the folder `data`."""
    path = tmp_path / "data" / "train" / "0" / "1L.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    return path


CHANGES = {
    "nothing": lambda picture: None,
    "added": lambda picture: picture.with_name("2L.png").write_bytes(b"more"),
    "edited": lambda picture: (picture.write_bytes(b"picturE"), os.utime(picture, ns=(1, 1))),
    "removed": lambda picture: picture.unlink(),
    "renamed": lambda picture: picture.rename(picture.with_name("9L.png")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_a_changed_picture_changes_the_inputs(build, picture, monkeypatch, change):
    monkeypatch.chdir(build.parent)
    prepare_inputs("oai", data="data")
    written = build / "oai" / "inputs.yaml"
    os.utime(written, ns=(10**18, 10**18))  # so that a rewrite shows in its time
    CHANGES[change](picture)
    prepare_inputs("oai", data=str(build.parent / "data"))  # the same folder from anywhere
    assert (written.stat().st_mtime_ns == 10**18) == (change == "nothing")


def test_a_picture_behind_a_linked_folder_counts_and_a_link_to_nowhere_stops_nothing(build, picture):
    linked = build.parent / "linked"
    linked.mkdir()
    (linked / "train").symlink_to(picture.parent, target_is_directory=True)
    (linked / "gone").symlink_to("nowhere")
    first = prepare_inputs("oai", data=str(linked)).content
    CHANGES["edited"](picture)
    assert prepare_inputs("oai", data=str(linked)).content != first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_library_takes_is_refused_before_anything_is_made(build, seed):
    with pytest.raises(StudyError, match="SEED"):
        prepare_inputs("smoke", seed)
    assert not (build / f"smoke-seed{seed}").exists()


def test_inputs_do_not_change_under_a_notebook_that_is_being_executed(build):
    prepare_inputs("oai", data=str(ROOT / "notebooks"))
    written = (build / "oai" / "inputs.yaml").read_text()
    with running.alone(build / "oai", "nb", "03_fine_tune"):
        prepare_inputs("oai", data=str(ROOT / "notebooks"))
        with pytest.raises(StudyError, match="03_fine_tune of oai"):
            prepare_inputs("oai", data=str(ROOT / "tests"))
    assert (build / "oai" / "inputs.yaml").read_text() == written
    prepare_inputs("oai", data=str(ROOT / "tests"))


def test_inputs_name_what_the_run_depends_on_and_a_study_opens_with_them(build, picture):
    data = build.parent / "data"
    prepare_inputs("oai", seed=7, data=str(data))
    content = yaml.safe_load((build / "oai-seed7" / "inputs.yaml").read_text())
    known = {"profile": "oai", "seed": 7, "data": str(data), "external": "", "synthetic": False, "dry": False}
    assert content == content | known
    opened = Study.open("oai", 7)
    assert opened.folder_of("training") == data and opened.folder_of("external") is None
    (build / "oai-seed7" / "inputs.yaml").write_text("profile: smoke\nseed: 1\n")
    with pytest.raises(StudyError, match="inputs.yaml lacks data, external"):
        Study.open("oai", 7)


@pytest.mark.parametrize("name, given, told", [
    ("oai", {}, ["DATA=<folder", "PROFILE=oai"]),
    ("oai", {"data": "nowhere"}, ["DATA=nowhere"]),
    ("oai", {"data": ".", "external": __file__}, [f"EXTERNAL={__file__}"]),
    ("demo", {"data": "."}, ["phantoms", "PROFILE=oai"]),
    ("paper", {"data": "."}, ["WEIGHTS=<folder"]),
    ("nope", {}, ["'nope'", "demo"])])
def test_mistake_is_one_sentence_and_writes_nothing(build, tmp_path, monkeypatch, name, given, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as error:
        prepare_inputs(name, **given, check=preflight.check)
    assert all(word in str(error.value) for word in told) and "\n" not in str(error.value)
    assert not list(build.rglob("inputs.yaml"))


def test_open_oai_without_data_says_how_to_start():
    with pytest.raises(StudyError, match="DATA=<folder"):
        Study.open("oai")


def test_a_session_has_the_run_folder_of_its_seed_and_writes_beside_it(build):
    opened, other = Study.open("smoke"), Study.open("smoke", 7, step="03_fine_tune")
    assert opened.run_dir == build / "smoke" and opened.synthetic
    assert (opened.own_dir / "tables").is_dir() and not (opened.run_dir / "tables").exists()
    assert other.own_dir == other.run_dir == build / "smoke-seed7"
    assert all(part in other.stamp() for part in ("03_fine_tune", "seed 7"))
    other.headline("All is well.")
    assert (other.run_dir / "headline.txt").read_text() == "All is well.\n"


@pytest.mark.parametrize("seed", ["42", -1, 4.2, True])
def test_a_seed_that_is_no_whole_number_is_refused_before_anything_is_made(build, seed):
    with pytest.raises(StudyError):
        Study.open("smoke", seed)
    assert not build.exists()


def test_a_dry_run_needs_neither_data_nor_weights_and_has_its_own_place(monkeypatch):
    monkeypatch.setenv("KOA_DRY", "1")
    assert prepare_inputs("paper", dry=True, check=lambda *given: pytest.fail("weights are looked for")).dry
    for seed, name in ((None, "paper-dry"), (7, "paper-dry-seed7")):
        opened = Study.open("paper", seed)
        assert opened.dry and opened.run_dir.name == name and "DRY RUN" in opened.stamp()


@pytest.mark.parametrize("given", [
    "", "PROFILE=smoke", "SEED=42", "SEED=7", "DRY=1", "DRY=0", "PROFILE=oai SEED=42 DRY=",
    "PROFILE=paper SEED=3 DRY=1"])
def test_make_and_the_library_name_a_run_alike(given):
    shown = make("-npq", "help", *given.split(), KOA_DRY="").stdout
    told = dict(word.split("=") for word in given.split())
    settings = profile.load(told.get("PROFILE", "demo"))
    name = study.run_name(settings, int(told.get("SEED", settings.seed)), told.get("DRY", "") == "1")
    assert f"\nRUN := {name}\n" in shown and f"\nPAGE := reports/_build/{name}/html/index.html\n" in shown


def test_a_dry_run_changes_folds_seeds_epochs_data_and_start_and_nothing_else():
    whole = profile.load("paper")
    dry = profile.dry(whole, real=True)
    recipes = ("as_printed", "our_protocol")
    short = {name: replace(getattr(whole, name), folds=2, epochs=1) for name in recipes}
    assert {name: getattr(dry, name) for name in short} == short
    assert dry.baselines == tuple(replace(spec, epochs=1, weights="random") for spec in whole.baselines)
    assert (dry.seeds, dry.tower_epochs, dry.baseline_folds, dry.model.start) == (1, 1, 2, "random")
    changed = {*short, "baselines", "seeds", "tower_epochs", "baseline_folds", "model", "systems"}
    for field in fields(whole):
        assert field.name in changed or getattr(dry, field.name) == getattr(whole, field.name)
    networks = [dry.systems.embeddings.networks, whole.systems.embeddings.networks]
    assert networks[0] == tuple(replace(spec, epochs=1, weights="random") for spec in networks[1])
    assert profile.dry(whole, real=False).training.source == "phantoms"
