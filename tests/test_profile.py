"""Profiles: all load, and every mistake in one is an error that names the key and what is allowed."""

from dataclasses import FrozenInstanceError, fields

import pytest
import yaml

from koa_lib import profile
from koa_lib.errors import StudyError
from koa_lib.profile import load
from koa_lib.settings import Profile, Recipe


@pytest.fixture
def altered(tmp_path):
    """A function that loads a copy of the smoke profile after a change."""

    def read(change):
        content = yaml.safe_load((profile.FOLDER / "smoke.yaml").read_text())
        change(content)
        (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(content))
        return load("smoke", tmp_path)

    return read


def put(key, value):
    def change(content):
        *path, last = key.split(".")
        for step in path:
            content = content[int(step) if step.isdigit() else step]
        content[last] = value

    return change


def test_the_four_profiles_exist():
    assert {"smoke", "demo", "oai", "paper"} <= set(profile.names())


@pytest.mark.parametrize("name", profile.names())
def test_profile_loads(name):
    settings = load(name)
    assert settings.name == name and settings.seed == 42
    assert settings.synthetic == (name in ("smoke", "demo"))
    # What cannot run has a reason in words.
    assert settings.as_printed is not None or settings.not_run["as_printed"]
    assert all(baseline.reason or baseline.epochs > 0 for baseline in settings.baselines)


def test_settings_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        load("smoke").our_protocol.epochs = 7


def test_paper_trains_what_the_paper_prints():
    printed = load("paper").as_printed
    assert (printed.part, printed.prompts, printed.normalisation, printed.geometry) == ("adapter", "as_printed", "imagenet", "stretch")
    assert (printed.learning_rate, printed.epochs, printed.folds) == (1e-4, 30, 5)
    assert load("paper").model.name == "ViT-B-32-quickgelu"


@pytest.mark.parametrize("key", ["colour", "our_protocol.dropout", "training.path", "baselines.1.depth"])
def test_unknown_key_is_named_with_what_is_allowed(altered, key):
    with pytest.raises(StudyError) as error:
        altered(put(key, 1))
    shown = key.replace(".1.", "[1].")
    assert f"'{shown}' is unknown" in str(error.value) and "Allowed here: " in str(error.value)
    siblings = {"colour": "draws", "our_protocol.dropout": "residual", "training.path": "source", "baselines.1.depth": "timm"}
    assert siblings[key] in str(error.value)


@pytest.mark.parametrize("key", [field.name for field in fields(Profile)] + [f"our_protocol.{field.name}" for field in fields(Recipe)])
def test_missing_key_is_named(altered, key):
    def remove(content):
        *path, last = key.split(".")
        del (content[path[0]] if path else content)[last]

    with pytest.raises(StudyError, match=f"'{key}' is missing"):
        altered(remove)


@pytest.mark.parametrize("key, value, allowed", [
    ("seed", "42", "int"), ("seed", True, "int"), ("seed", 4.0, "int"), ("seed", None, "int"), ("purpose", 3, "str"),
    ("our_protocol.epochs", 2.5, "int"), ("our_protocol.folds", True, "int"),
    ("our_protocol.learning_rate", True, "float"), ("our_protocol.learning_rate", "1e-4", "float"), ("pretraining.batch", "64", "int"),
    ("training", 3, "name, source, size"), ("our_protocol", None, "learning_rate"), ("seeds", 1.5, "int"),
    ("baselines", {}, "a list"), ("not_run", [], "a mapping"), ("not_run", {"x": 3}, "str")])
def test_wrong_type_names_key_and_type(altered, key, value, allowed):
    with pytest.raises(StudyError) as error:
        altered(put(key, value))
    assert f"'{key}" in str(error.value) and allowed in str(error.value) and "smoke.yaml" in str(error.value)


@pytest.mark.parametrize("key, value, allowed", [
    ("our_protocol.part", "head", "both_encoders"), ("our_protocol.geometry", "squeeze", "stretch, pad, center_crop"),
    ("as_printed.normalisation", "zscore", "imagenet, clip"), ("our_protocol.loss", "hinge", "prototypes, infonce"),
    ("training.source", "web", "phantoms, folder"), ("model.start", "imagenet", "pretrain, random, openai")])
def test_bad_choice_lists_the_choices(altered, key, value, allowed):
    with pytest.raises(StudyError) as error:
        altered(put(key, value))
    assert key in str(error.value) and allowed in str(error.value)


def test_wrong_entry_of_a_list_is_named_by_position(altered):
    with pytest.raises(StudyError, match=r"'baselines\[1\]\.width'"):
        altered(put("baselines.1.width", "narrow"))


def test_whole_number_is_accepted_where_a_decimal_is_meant(altered):
    assert altered(put("our_protocol.weight_decay", 0)).our_protocol.weight_decay == 0.0


def test_unknown_profile_lists_the_known():
    with pytest.raises(StudyError) as error:
        load("dmeo")
    assert "'dmeo'" in str(error.value) and all(name in str(error.value) for name in profile.names())


def test_name_must_equal_the_file(altered):
    with pytest.raises(StudyError, match="'name' is 'demo'"):
        altered(put("name", "demo"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "seed: [1, 2\n"])
def test_file_that_is_no_mapping_is_one_sentence(tmp_path, text):
    (tmp_path / "smoke.yaml").write_text(text)
    with pytest.raises(StudyError, match="smoke.yaml"):
        load("smoke", tmp_path)


@pytest.mark.parametrize("key, value", [("seeds", 0), ("our_protocol.folds", 1), ("our_protocol.folds", -2), ("as_printed.batch", 0), ("as_printed.views", 0), ("as_printed.patience", -3),
                                        ("as_printed.residual", 5.0), ("as_printed.learning_rate", -1.0), ("baseline_folds", 0), ("draws", 0), ("seed", -3)])
def test_a_number_out_of_range_names_key_and_range(altered, key, value):
    with pytest.raises(StudyError) as error:
        altered(put(key, value))
    assert f"'{key}' is {value}" in str(error.value) and "allowed" in str(error.value)
