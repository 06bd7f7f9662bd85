"""Published weights: found in a folder or on the hub, refused in one sentence, of no other architecture."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from koa_lib import model as models
from koa_lib import networks, weights
from koa_lib import profile as profiles
from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256
from koa_lib.systems import preflight, texts

CLIP, NETWORK, MOBILE = "koa-tiny", "resnet18.tv_in1k", "mobilenetv1_100.ra4_e3600_r224_in1k"


@pytest.fixture(scope="module")
def hub_file(tmp_path_factory):
    """A file like that of timm's hub: all 1,000 classes, random numbers."""
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model(MOBILE, pretrained=False).state_dict(), path)
    return path


def clip_folder(folder, file, state):
    """A folder as open_clip's hub has them."""
    config = {"model_cfg": models.architecture(CLIP), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if file.endswith("safetensors"):
        save_file(state, folder / file)
    else:
        torch.save({"epoch": 3, "state_dict": state}, folder / file)
    return folder


@pytest.mark.parametrize(("file", "beside"), [
    ("model.safetensors", ["optimizer.pt", "a.safetensors", "pytorch_model.bin"]),
    ("open_clip_pytorch_model.bin", []), ("epoch_3.pt", [])])
def test_the_file_that_is_loaded_is_the_one_that_is_hashed(tmp_path, file, beside):
    state = models.load_clip(CLIP, seed=3)[0].state_dict()
    folder = clip_folder(tmp_path, file, state)
    for name in ("._a.safetensors", ".old.bin", *beside):
        (folder / name).write_bytes(b"no weights")
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


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(("spoil", "named"), [
    (lambda state: {**state, "layer1.0.conv1.weight": torch.zeros(3)}, "layer1.0.conv1.weight"),
    (lambda state: without(state, "bn1.running_mean"), "bn1.running_mean"),
    (lambda state: {**state, "more": torch.zeros(1)}, "more"),
    (lambda state: timm.create_model("resnet34").state_dict(), "layer1.2"),
])
def test_a_network_whose_file_does_not_fit_is_refused_and_the_tensor_named(tmp_path, spoil, named):
    save_file(spoil(timm.create_model("resnet18").state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(StudyError, match=named):
        networks.create(NETWORK, 64, 1.0, tmp_path)


def test_a_clip_whose_file_does_not_fit_is_refused_and_the_tensor_named(tmp_path):
    state = without(models.load_clip(CLIP, seed=3)[0].state_dict(), "logit_scale")
    with pytest.raises(StudyError, match="logit_scale"):
        models.load_clip(CLIP, clip_folder(tmp_path, "model.safetensors", state))


@pytest.mark.parametrize("place", ["ViT-B-32-quickgelu", "."])
def test_clip_is_found_in_its_own_folder_and_in_a_folder_of_folders(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "open_clip_config.json").write_text("{}")
    assert weights.clip("ViT-B-32-quickgelu", tmp_path) == tmp_path / place


def test_a_network_starts_from_the_file_with_new_outputs(tmp_path, hub_file):
    (tmp_path / MOBILE).mkdir()
    (tmp_path / MOBILE / "model.safetensors").hardlink_to(hub_file)
    made = networks.create(MOBILE, 224, 1.0, weights.network(MOBILE, tmp_path)).state_dict()
    start = load_file(hub_file)
    same = [name for name, value in made.items()
            if value.shape == start[name].shape and torch.equal(value, start[name])]
    assert len(same) == len(made) - 2 and made["classifier.weight"].shape[0] == 5


@pytest.mark.parametrize(("find", "name", "page"), [
    (weights.clip, "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai"),
    (weights.network, "resnet50.tv_in1k", "timm/resnet50.tv_in1k"),
])
def test_absent_weights_are_one_sentence_that_says_what_to_put_where(tmp_path, find, name, page):
    with pytest.raises(StudyError) as error:
        find(name, str(tmp_path))
    told = str(error.value)
    assert "\n" not in told and all(word in told for word in (name, page, "WEIGHTS=<folder>", "safetensors"))


def test_a_hub_out_of_reach_names_each_model_of_the_paper_and_the_way_out(monkeypatch):
    def unreachable(*arguments, **more):
        raise OSError("no route to host")

    monkeypatch.setattr("requests.head", unreachable)
    needed = preflight.needed(profiles.load("paper"))
    for find, name in needed:
        with pytest.raises(StudyError, match=f"{name}.*WEIGHTS=<folder>"):
            find(name)
    assert {"ViT-B-32-quickgelu", "BiomedCLIP", "RAD-DINO"} < {name for _, name in needed}
    assert len(needed) == len({name for _, name in needed})  # each once
    assert preflight.needed(profiles.load("demo")) == preflight.needed(profiles.load("oai")) == []


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that a download of one file needs."""

    content = b""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()
        self.wfile.write(self.content)

    def _answer(self):
        known = self.path == f"/timm/{MOBILE}/resolve/main/model.safetensors"
        self.send_response(200 if known else 404)
        told = {"ETag": '"1"', "X-Repo-Commit": "a" * 40, "Content-Length": len(self.content)}
        for name, value in told.items() if known else ():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_weights_come_from_the_hub_and_then_from_its_cache(tmp_path, hub_file, monkeypatch):
    from huggingface_hub import constants, file_download

    Hub.content = hub_file.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for module in (constants, file_download):
        template = f"{here}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    first = weights.network(MOBILE)
    server.shutdown()
    server.server_close()
    assert weights.network(MOBILE) == first
    assert weights.weights_hash(first) == weights.weights_hash(hub_file)


def refused(settings, folder):
    """What the check before a run says of the weights in a folder."""
    with pytest.raises(StudyError) as error:
        preflight.check(settings, str(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize("damage", ["cut", "html", "other"])
def test_damaged_weights_are_found_before_the_run_and_named(tmp_path, hub_file, damage):
    (tmp_path / MOBILE).mkdir()
    file, content = tmp_path / MOBILE / "model.safetensors", hub_file.read_bytes()[:5000]
    if damage == "other":
        save_file({"conv_stem.weight": torch.zeros(3)}, file)
    else:
        file.write_bytes(content if damage == "cut" else b"<html>not found</html>")
    paper = profiles.load("paper")
    only = replace(paper, model=replace(paper.model, start="random"),
                   baselines=tuple(spec for spec in paper.baselines if spec.timm == MOBILE))
    told = refused(only, tmp_path)
    assert MOBILE in told and str(file.parent) in told


@pytest.mark.parametrize("damage", ["", "cut", "vocabulary"])
def test_a_bert_is_opened_before_the_run_and_a_damaged_one_named(tmp_path, monkeypatch, damage):
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 60}
    config, place = {**texts.BERTS["tiny"].config, **small}, tmp_path / "Small"
    monkeypatch.setitem(texts.BERTS, "Small", texts.Bert("somewhere/Small_BERT", True, config))
    BertModel(BertConfig(**config), add_pooling_layer=False).save_pretrained(place)
    words = [*texts.SPECIAL, *(f"w{number}" for number in range(55))]
    (place / "vocab.txt").write_text("\n".join(words[: 5 if damage == "vocabulary" else 60]))
    if damage == "cut":
        (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:500])
    demo = profiles.load("demo")
    heads = replace(demo.systems.heads, text="Small")
    only = replace(demo, systems=replace(demo.systems, heads=heads))
    if damage:
        assert str(place) in refused(only, tmp_path)
    else:
        preflight.check(only, str(tmp_path))
