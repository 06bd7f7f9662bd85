"""Published weights: found in a folder or on the hub, refused in one sentence, and never another architecture's."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from koa_lib import baselines, weights
from koa_lib import model as models
from koa_lib import profile as profiles
from koa_lib.errors import StudyError

MOBILE = "mobilenetv1_100.ra4_e3600_r224_in1k"


@pytest.fixture(scope="module")
def hub_file(tmp_path_factory):
    """A file like that of timm's hub: all 1,000 classes, random numbers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model(MOBILE, pretrained=False).state_dict(), path)
    return path


def test_weights_hash_names_the_weights(tmp_path):
    for seed in (1, 2):
        models.save_clip(models.load_clip("koa-tiny", seed=seed)[0], "koa-tiny", tmp_path / str(seed))
    one, two = (weights.weights_hash(tmp_path / seed) for seed in "12")
    assert one != two and weights.weights_hash(None) == "random" and one == weights.weights_hash(str(tmp_path / "1"))
    assert weights.weights_hash(tmp_path / "1" / "model.safetensors") == one


@pytest.mark.parametrize("place", ["ViT-B-32-quickgelu", "."])
def test_clip_is_found_in_its_own_folder_and_in_a_folder_of_folders(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "open_clip_config.json").write_text("{}")
    assert weights.clip("ViT-B-32-quickgelu", tmp_path) == tmp_path / place


@pytest.mark.parametrize("find, name, page", [(weights.clip, "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai"), (weights.network, "resnet50.tv_in1k", "timm/resnet50.tv_in1k")])
def test_absent_weights_are_one_sentence_that_says_what_to_put_where(tmp_path, find, name, page):
    with pytest.raises(StudyError) as error:
        find(name, str(tmp_path))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in (name, page, "WEIGHTS=<folder>", "safetensors"))


def test_a_hub_out_of_reach_is_the_same_sentence(monkeypatch):
    import requests

    def unreachable(*arguments, **more):
        raise OSError("no route to host")

    monkeypatch.setattr(requests, "head", unreachable)
    for find, name in weights.needed(profiles.load("paper")):
        with pytest.raises(StudyError, match=f"{name} could not be downloaded .* give WEIGHTS=<folder>"):
            find(name)


def test_the_paper_needs_every_named_model_once_and_the_demo_nothing():
    settings = profiles.load("paper")
    systems, found = settings.systems, [name for _, name in weights.needed(settings)]
    named = [spec.timm for spec in (*settings.baselines, *systems.embeddings.networks)] + [spec.architecture for spec in systems.heads.encoders]
    assert sorted(found) == sorted({settings.model.name, *named, systems.labels.architecture, systems.heads.text, "BiomedCLIP", "RAD-DINO"})
    assert weights.needed(profiles.load("demo")) == weights.needed(profiles.load("oai")) == []


def test_every_network_of_the_paper_has_a_hub_page_and_is_the_named_architecture():
    settings = profiles.load("paper")
    for name in [settings.systems.labels.architecture, *(spec.timm for spec in settings.baselines)]:
        assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"


def test_a_network_starts_from_the_file_with_new_outputs(tmp_path, hub_file):
    (tmp_path / MOBILE).mkdir()
    (tmp_path / MOBILE / "model.safetensors").hardlink_to(hub_file)
    found = weights.network(MOBILE, tmp_path)
    made, start = baselines.create(MOBILE, 224, 1.0, found).state_dict(), timm.create_model(MOBILE, pretrained=False)
    start.load_state_dict(load_file(hub_file))
    same = [name for name, value in start.state_dict().items() if name in made and value.shape == made[name].shape and torch.equal(value, made[name])]
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
            for name, value in (("ETag", '"1"'), ("X-Repo-Commit", self.commit), ("Content-Length", str(len(self.content))), ("Accept-Ranges", "bytes")):
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_weights_come_from_the_hub_and_then_from_its_cache(tmp_path, hub_file):
    Hub.content = hub_file.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = f"from koa_lib import weights; path = weights.network({MOBILE!r}); print(weights.weights_hash(path))"
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "no_proxy": "*"}
    first = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert first.stdout.strip() == weights.weights_hash(hub_file), first.stderr[-800:]
    again = subprocess.run([sys.executable, "-c", code], env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=120)
    assert again.stdout == first.stdout, again.stderr[-800:]


def test_a_bare_weight_file_of_clip_gives_the_same_model_as_its_folder(tmp_path):
    import open_clip

    model = models.load_clip("koa-tiny", seed=3)[0]
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config("koa-tiny"), "preprocess_cfg": {}}))
    by_folder, by_file = (models.load_clip("koa-tiny", place)[0].state_dict() for place in (tmp_path, tmp_path / "open_clip_model.safetensors"))
    assert all(torch.equal(by_folder[key], by_file[key]) and torch.equal(by_file[key], value) for key, value in model.state_dict().items())


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
    only = replace(settings, model=replace(settings.model, start="random"), baselines=tuple(spec for spec in settings.baselines if spec.timm == MOBILE))
    with pytest.raises(StudyError) as error:
        weights.check(only, str(tmp_path))
    assert MOBILE in str(error.value) and str(place) in str(error.value) and len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.mark.parametrize("damage, said", [("", ""), ("cut", "weights of Small .* cannot be used"), ("other", "no weights of Small"), ("vocabulary", "5 pieces, not the 60")])
def test_a_bert_is_opened_before_the_run_and_a_damaged_one_named(tmp_path, monkeypatch, damage, said):
    from transformers import BertConfig, BertModel

    from koa_lib import texts

    config = {**texts.BERTS["tiny"].config, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 60}
    monkeypatch.setitem(texts.BERTS, "Small", texts.Bert("somewhere/Small_BERT", True, config))
    place = tmp_path / "Small"
    place.mkdir()
    BertModel(BertConfig(**{**config, "hidden_size": 32 if damage == "other" else 16}), add_pooling_layer=False).save_pretrained(place)
    weight = place / "model.safetensors"
    weight.write_bytes(weight.read_bytes()[: 500 if damage == "cut" else None])
    pieces = [*texts.SPECIAL, *(f"w{number}" for number in range(0 if damage == "vocabulary" else 55))]
    (place / "vocab.txt").write_text("\n".join(pieces))
    settings = profiles.load("demo")
    only = replace(settings, systems=replace(settings.systems, heads=replace(settings.systems.heads, text="Small")))
    assert weights.needed(only) == [(weights.bert, "Small")]
    if not damage:
        weights.check(only, str(tmp_path))
        return
    with pytest.raises(StudyError, match=said) as error:
        weights.check(only, str(tmp_path))
    assert str(place) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
