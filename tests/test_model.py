"""CLIP and its grader: loading never changes a model silently, and each reading trains what it names."""

import json
from functools import cache

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from koa_lib import model as models
from koa_lib.errors import StudyError
from koa_lib.profile import PARTS
from koa_lib.prompts import PROMPT_SETS, prompts
from koa_lib.report import diagrams

NAMES = models.OURS


@cache
def loaded(name):
    return models.load_clip(name, seed=1)


def grader(name, part):
    clip, _, tokenizer = models.load_clip(name, seed=1)
    return models.ClipGrader(clip, tokenizer, part, prompts("as_printed")).eval()


@cache
def pictures(name):
    size = loaded(name)[1].image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def embedded(clip, name):
    """What a CLIP makes of pictures and of a text."""
    with torch.no_grad():
        return clip.encode_image(pictures(name)), clip.encode_text(loaded(name)[2](["severe knee"]))


def test_a_random_start_follows_its_seed_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    one, same, other = (models.load_clip("koa-tiny", seed=seed)[0].visual.proj for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_give_the_same_outputs_and_are_no_pickle(tmp_path, name):
    clip = models.load_clip(name, seed=9)[0]
    models.save_clip(clip, name, tmp_path / "weights")
    again = models.load_clip(name, tmp_path / "weights")[0]
    assert all(map(torch.equal, embedded(clip, name), embedded(again, name)))
    assert {path.suffix for path in (tmp_path / "weights").iterdir()} == {".json", ".safetensors"}


def own_folder(folder, **changes):
    """Write koa-tiny as we keep it, its card changed."""
    models.save_clip(loaded("koa-tiny")[0], "koa-tiny", folder)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **changes}))


def open_clip_folder(folder, layers=4, weights=True, **changes):
    """Write koa-tiny, with so many blocks and its configuration changed, in open_clip's own layout."""
    config = json.loads(json.dumps(models.architecture("koa-tiny")))
    config["vision_cfg"]["layers"] = layers
    clip = open_clip.CLIP(**config).eval()
    told = {"model_cfg": {**config, **changes}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    if weights:
        save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return clip


def test_open_clips_own_folder_is_read(tmp_path):
    clip = open_clip_folder(tmp_path)
    again, preprocess, _ = models.load_clip("koa-tiny", tmp_path)
    assert preprocess.image_size == 112
    assert all(map(torch.equal, embedded(clip, "koa-tiny"), embedded(again, "koa-tiny")))


@pytest.mark.parametrize(("write", "name", "named"), [
    (own_folder, "koa-conv", "'koa-tiny'.*'koa-conv'"),
    (lambda folder: own_folder(folder, quick_gelu=True), "koa-tiny", "quick_gelu=True"),
    (lambda folder: open_clip_folder(folder, quick_gelu=True), "koa-tiny", "quick_gelu=True"),
    (lambda folder: open_clip_folder(folder, layers=2), "koa-tiny", "layers is 2, not 4"),
    (lambda folder: open_clip_folder(folder, weights=False), "koa-tiny", "no weights"),
    (lambda folder: None, "koa-tiny", "model.json"),
    (lambda folder: None, "ViT-B-33", "'ViT-B-33'.*koa-tiny"),
])
def test_weights_of_another_model_or_none_are_refused(tmp_path, write, name, named):
    write(tmp_path)
    with pytest.raises(StudyError, match=named):
        models.load_clip(name, tmp_path)


# The readings of the trained part


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_trunk_and_tail_make_the_whole_model(name, part):
    made, clip = grader(name, part), loaded(name)[0]
    with torch.no_grad():
        embedding = clip.encode_image(pictures(name))
        embedding = made.adapter(embedding) if part == "adapter" else embedding
        texts = F.normalize(clip.encode_text(loaded(name)[2](list(prompts("as_printed")))), dim=-1)
        expected = clip.logit_scale.exp() * F.normalize(embedding, dim=-1) @ texts.T
        assert torch.allclose(made.tail(made.trunk(pictures(name))), expected, atol=1e-4)


def test_the_adapter_mixes_by_its_ratio():
    features, adapter = torch.randn(4, 32), models.Adapter(32, 0.3)
    changed = (adapter.up.weight @ (adapter.down.weight @ features.T).relu()).relu().T
    assert torch.allclose(adapter(features), 0.3 * changed + 0.7 * features, atol=1e-6)


HEAD = {"koa-tiny": ("clip.visual.ln_post", "clip.visual.proj"), "koa-conv": ("clip.visual.head",),
        "koa-plain": ("clip.visual.head",)}
LAST = {"koa-tiny": ("clip.visual.transformer.resblocks.2.", "clip.visual.transformer.resblocks.3."),
        "koa-conv": ("clip.visual.trunk.layer4",), "koa-plain": ("clip.visual.trunk.layer4",)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_only_the_named_part_is_trained(name, part):
    trained = {"adapter": ("adapter.",), "projection": HEAD[name], "last_blocks": HEAD[name] + LAST[name],
               "full_image": ("clip.visual",), "both_encoders": ("clip.",)}[part]
    made = grader(name, part)
    made.train_tail()
    F.cross_entropy(made(pictures(name)), torch.tensor([0, 2, 4])).backward()
    parameters = dict(made.named_parameters())
    wanted = {key for key in parameters if key.startswith(trained)}
    assert wanted == {key for key, value in parameters.items() if value.grad is not None}
    assert wanted == {key for key, value in parameters.items() if value.requires_grad}
    assert wanted and wanted <= set(made.trained_state())
    counts = [sum(parameters[key].numel() for key in keys) for keys in (wanted, parameters)]
    told = diagrams.parts(made)
    assert sum(count for _, count, is_trained in told if is_trained) == counts[0]
    assert sum(count for _, count, _ in told) == counts[1]


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks"])
def test_frozen_batch_norms_keep_their_statistics(part):
    made = grader("koa-conv", part)
    before = {key: value.clone() for key, value in made.clip.visual.trunk.layer1.named_buffers()}
    made.train_tail()
    with torch.no_grad():
        made(pictures("koa-conv"))
    after = dict(made.clip.visual.trunk.layer1.named_buffers())
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize(("part", "follows"), [("both_encoders", True), ("full_image", False)])
def test_prototypes_follow_the_text_tower_only_when_it_is_trained(part, follows):
    made = grader("koa-tiny", part)
    before = made.prototypes().detach().clone()
    with torch.no_grad():
        made.clip.text_projection.add_(torch.randn_like(made.clip.text_projection))
    assert torch.equal(made.prototypes(), before) != follows


def test_no_prompt_is_cut_by_the_context_of_a_study_model():
    for name in (*NAMES, "ViT-B-32-quickgelu"):
        tokenizer = models.tokenizer(name)
        for prompt in (prompt for kind in PROMPT_SETS.values() for prompt in kind):
            assert len(tokenizer.encode(prompt)) + 2 <= tokenizer.context_length, (name, prompt)
