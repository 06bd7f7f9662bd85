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
    """A function that loads a copy of the smoke profile with another value at a key; None removes the key."""
    def read(key, value):
        content = yaml.safe_load((profile.FOLDER / "smoke.yaml").read_text())
        place, (*path, last) = content, key.split(".")
        for step in path:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
        if value is None:
            del place[last]
        (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(content))
        return load("smoke", tmp_path)

    return read


def test_a_reason_for_nothing_that_is_known_is_refused(altered):
    with pytest.raises(StudyError, match="not_comparable.network' is unknown.*networks"):
        altered("not_comparable", {"network": "frozen"})


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
    paper = load("paper")
    printed = paper.as_printed
    assert (printed.part, printed.prompts, printed.normalisation) == ("adapter", "as_printed", "imagenet")
    assert (printed.geometry, printed.learning_rate) == ("stretch", 1e-4)
    assert (printed.epochs, printed.folds) == (30, 5)
    assert paper.model.name == "ViT-B-32-quickgelu"


@pytest.mark.parametrize("key", [*(field.name for field in fields(Profile)),
                                 *(f"our_protocol.{field.name}" for field in fields(Recipe))])
def test_missing_key_is_named(altered, key):
    with pytest.raises(StudyError, match=f"'{key}'"):
        altered(key, None)


# Key, value, what the error names beside file and key: what is allowed.
MISTAKES = [
    ("colour", 1, "draws"), ("our_protocol.dropout", 1, "residual"), ("training.path", 1, "source"),
    ("baselines.1.depth", 1, "timm"),
    ("seed", "42", "int"), ("seed", True, "int"), ("seed", 4.0, "int"), ("purpose", 3, "str"),
    ("our_protocol.epochs", 2.5, "int"), ("our_protocol.learning_rate", True, "float"),
    ("our_protocol.learning_rate", "1e-4", "float"), ("pretraining.batch", "64", "int"),
    ("training", 3, "name, source, size"), ("baselines", {}, "a list"), ("not_run", [], "a mapping"),
    ("not_run", {"heads": 3}, "str"), ("baselines.1.width", "narrow", "float"),
    ("our_protocol.part", "head", "both_encoders"), ("our_protocol.geometry", "squeeze", "stretch, pad"),
    ("as_printed.normalisation", "zscore", "imagenet, clip"), ("our_protocol.loss", "hinge", "infonce"),
    ("training.source", "web", "phantoms, folder"), ("model.start", "imagenet", "pretrain, random"),
    ("seeds", 0, "1 to"), ("our_protocol.folds", 1, "0"), ("our_protocol.folds", -2, "0"),
    ("as_printed.batch", 0, "1 to"), ("as_printed.views", 0, "1 to"), ("as_printed.patience", -3, "0 to"),
    ("as_printed.residual", 5.0, "0 to 1"), ("as_printed.learning_rate", -1.0, "to 10"),
    ("baseline_folds", 0, "1 to"), ("draws", 0, "1 to"), ("seed", -3, "0 to"), ("name", "demo", "smoke"),
]


@pytest.mark.parametrize("key, value, allowed", MISTAKES)
def test_a_mistake_names_the_key_and_what_is_allowed(altered, key, value, allowed):
    with pytest.raises(StudyError) as error:
        altered(key, value)
    named = f"'{key.replace('.1.', '[1].')}"
    assert all(word in str(error.value) for word in ("smoke.yaml", named, allowed))


def test_whole_number_is_accepted_where_a_decimal_is_meant(altered):
    assert altered("our_protocol.weight_decay", 0).our_protocol.weight_decay == 0.0


def test_unknown_profile_lists_the_known():
    with pytest.raises(StudyError) as error:
        load("dmeo")
    assert "'dmeo'" in str(error.value) and all(name in str(error.value) for name in profile.names())


@pytest.mark.parametrize("text", [
    b"", b"- a\n- b\n", b"seed: [1, 2\n", b"seed: 1\nseed: 2\n", b"purpose: \xff\n"])
def test_file_that_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "smoke.yaml").write_bytes(text)
    with pytest.raises(StudyError, match="smoke.yaml"):
        load("smoke", tmp_path)
