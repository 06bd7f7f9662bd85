"""Published weights: found in a folder or on the hub, refused in one sentence, and never another
architecture's."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from koa_lib import model as models
from koa_lib import networks, weights
from koa_lib import profile as profiles
from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256
from koa_lib.systems import preflight

MOBILE = "mobilenetv1_100.ra4_e3600_r224_in1k"


@pytest.fixture(scope="module")
def hub_file(tmp_path_factory):
    """A file like that of timm's hub: all 1,000 classes, random numbers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model(MOBILE, pretrained=False).state_dict(), path)
    return path


CLIP, NETWORK = "koa-tiny", "resnet18.tv_in1k"


def clip_folder(folder, file, state):
    """A folder as open_clip's hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": open_clip.get_model_config(CLIP), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, folder / file) if file.endswith("safetensors") else torch.save(
        {"epoch": 3, "state_dict": state}, folder / file
    )
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "open_clip_pytorch_model.bin", "epoch_3.pt"])
def test_the_file_that_is_loaded_is_the_one_that_is_hashed(tmp_path, file):
    state = models.load_clip(CLIP, seed=3)[0].state_dict()
    folder = clip_folder(tmp_path, file, state)
    for name in (
        "._a.safetensors",
        ".old.bin",
        *(["optimizer.pt", "a.safetensors", "pytorch_model.bin"] * ("model" in file)),
    ):
        (folder / name).write_bytes(b"no weights")
    if file == "open_clip_pytorch_model.bin":
        (folder / "pytorch_model.bin").unlink()
    for place in (folder, folder / file):
        loaded = models.load_clip(CLIP, place)[0].state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
        assert weights.weights_hash(str(place)) == file_sha256(folder / file)
    assert weights.weights_hash(None) == "random"


@pytest.mark.parametrize("files", [[], [".hidden.pt"], ["epoch_1.pt", "epoch_2.pt"]])
def test_no_file_or_two_of_which_none_is_known_are_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(StudyError, match=str(tmp_path)):
        weights.weights_hash(tmp_path)


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


def other_names(state):
    return {f"resnet.{key}": value for key, value in state.items()}


def other_shape(state):
    return {key: torch.zeros(3) if key == "layer1.0.conv1.weight" else value for key, value in state.items()}


@pytest.mark.parametrize(
    "spoil, named",
    [
        (other_names, "conv1.weight"),
        (other_shape, "layer1.0.conv1.weight"),
        (lambda state: dict(list(state.items())[:60]), "layer3.0"),
        (lambda state: without(state, "bn1.running_mean"), "bn1.running_mean"),
        (lambda state: {**state, "more": torch.zeros(1)}, "more"),
        (lambda state: timm.create_model("resnet34").state_dict(), "layer1.2"),
    ],
)
def test_a_network_whose_file_does_not_fit_is_refused_and_the_first_tensor_named(tmp_path, spoil, named):
    save_file(spoil(timm.create_model("resnet18").state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(StudyError, match=named):
        networks.create(NETWORK, 64, 1.0, tmp_path)


@pytest.mark.parametrize("missing", ["logit_scale", "visual.proj"])
def test_a_clip_whose_file_does_not_fit_is_refused_and_the_tensor_named(tmp_path, missing):
    state = without(models.load_clip(CLIP, seed=3)[0].state_dict(), missing)
    with pytest.raises(StudyError, match=missing):
        models.load_clip(CLIP, clip_folder(tmp_path, "model.safetensors", state))


@pytest.mark.parametrize("place", ["ViT-B-32-quickgelu", "."])
def test_clip_is_found_in_its_own_folder_and_in_a_folder_of_folders(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "open_clip_config.json").write_text("{}")
    assert weights.clip("ViT-B-32-quickgelu", tmp_path) == tmp_path / place


@pytest.mark.parametrize(
    "find, name, page",
    [
        (weights.clip, "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai"),
        (weights.network, "resnet50.tv_in1k", "timm/resnet50.tv_in1k"),
    ],
)
def test_absent_weights_are_one_sentence_that_says_what_to_put_where(tmp_path, find, name, page):
    with pytest.raises(StudyError) as error:
        find(name, str(tmp_path))
    assert "\n" not in str(error.value) and all(
        word in str(error.value) for word in (name, page, "WEIGHTS=<folder>", "safetensors")
    )


def test_a_hub_out_of_reach_is_the_same_sentence(monkeypatch):
    import requests

    def unreachable(*arguments, **more):
        raise OSError("no route to host")

    monkeypatch.setattr(requests, "head", unreachable)
    for find, name in preflight.needed(profiles.load("paper")):
        with pytest.raises(StudyError, match=f"{name} could not be downloaded .* give WEIGHTS=<folder>"):
            find(name)


def test_the_paper_needs_every_named_model_once_and_the_demo_nothing():
    settings = profiles.load("paper")
    systems, found = settings.systems, [name for _, name in preflight.needed(settings)]
    named = [spec.timm for spec in (*settings.baselines, *systems.embeddings.networks)] + [
        spec.architecture for spec in systems.heads.encoders
    ]
    assert sorted(found) == sorted(
        {
            settings.model.name,
            *named,
            systems.labels.architecture,
            systems.heads.text,
            "BiomedCLIP",
            "RAD-DINO",
        }
    )
    assert preflight.needed(profiles.load("demo")) == preflight.needed(profiles.load("oai")) == []


def test_every_network_of_the_paper_has_a_hub_page_and_is_the_named_architecture():
    settings = profiles.load("paper")
    for name in [settings.systems.labels.architecture, *(spec.timm for spec in settings.baselines)]:
        assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"


def test_a_network_starts_from_the_file_with_new_outputs(tmp_path, hub_file):
    (tmp_path / MOBILE).mkdir()
    (tmp_path / MOBILE / "model.safetensors").hardlink_to(hub_file)
    found = weights.network(MOBILE, tmp_path)
    made, start = (
        networks.create(MOBILE, 224, 1.0, found).state_dict(),
        timm.create_model(MOBILE, pretrained=False),
    )
    start.load_state_dict(load_file(hub_file))
    same = [
        name
        for name, value in start.state_dict().items()
        if name in made and value.shape == made[name].shape and torch.equal(value, made[name])
    ]
    assert len(same) == len(made) - 2 and made["classifier.weight"].shape[0] == 5


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that a download of one file needs."""

    content, commit = b"", "a" * 40

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()
        self.wfile.write(self.content)

    def _answer(self):
        known = self.path == f"/timm/{MOBILE}/resolve/main/model.safetensors"
        self.send_response(200 if known else 404)
        if known:
            for name, value in (
                ("ETag", '"1"'),
                ("X-Repo-Commit", self.commit),
                ("Content-Length", str(len(self.content))),
                ("Accept-Ranges", "bytes"),
            ):
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_weights_come_from_the_hub_and_then_from_its_cache(tmp_path, hub_file):
    Hub.content = hub_file.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        f"from koa_lib import weights; path = weights.network({MOBILE!r}); print(weights.weights_hash(path))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    first = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    server.shutdown()
    assert first.stdout.strip() == weights.weights_hash(hub_file), first.stderr[-800:]
    again = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.stdout == first.stdout, again.stderr[-800:]


@pytest.mark.parametrize("damage", ["cut", "html", "other"])
def test_damaged_weights_are_found_before_the_run_and_named(tmp_path, hub_file, damage):
    place = tmp_path / MOBILE
    place.mkdir()
    content = {"cut": hub_file.read_bytes()[:5000], "html": b"<html>not found</html>"}
    if damage == "other":
        save_file({"conv_stem.weight": torch.zeros(3)}, place / "model.safetensors")
    else:
        (place / "model.safetensors").write_bytes(content[damage])
    settings = profiles.load("paper")
    only = replace(
        settings,
        model=replace(settings.model, start="random"),
        baselines=tuple(spec for spec in settings.baselines if spec.timm == MOBILE),
    )
    with pytest.raises(StudyError) as error:
        preflight.check(only, str(tmp_path))
    assert (
        MOBILE in str(error.value)
        and str(place) in str(error.value)
        and len(str(error.value)) < 600
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "damage, said",
    [
        ("", ""),
        ("cut", "no weights of Small"),
        ("other", "no weights of Small"),
        ("vocabulary", "5 pieces, not the 60"),
    ],
)
def test_a_bert_is_opened_before_the_run_and_a_damaged_one_named(tmp_path, monkeypatch, damage, said):
    from transformers import BertConfig, BertModel

    from koa_lib.systems import texts

    config = {
        **texts.BERTS["tiny"].config,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "vocab_size": 60,
    }
    monkeypatch.setitem(texts.BERTS, "Small", texts.Bert("somewhere/Small_BERT", True, config))
    place = tmp_path / "Small"
    place.mkdir()
    BertModel(
        BertConfig(**{**config, "hidden_size": 32 if damage == "other" else 16}), add_pooling_layer=False
    ).save_pretrained(place)
    weight = place / "model.safetensors"
    weight.write_bytes(weight.read_bytes()[: 500 if damage == "cut" else None])
    pieces = [*texts.SPECIAL, *(f"w{number}" for number in range(0 if damage == "vocabulary" else 55))]
    (place / "vocab.txt").write_text("\n".join(pieces))
    settings = profiles.load("demo")
    only = replace(
        settings, systems=replace(settings.systems, heads=replace(settings.systems.heads, text="Small"))
    )
    assert preflight.needed(only) == [(texts.place, "Small")]
    if not damage:
        preflight.check(only, str(tmp_path))
        return
    with pytest.raises(StudyError, match=said) as error:
        preflight.check(only, str(tmp_path))
    assert str(place) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
