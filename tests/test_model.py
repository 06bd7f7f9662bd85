"""CLIP and its grader: loading never changes a model silently, and each reading trains what it names."""

import json
from functools import cache

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from koa_lib import model as models
from koa_lib.errors import StudyError
from koa_lib.profile import PARTS
from koa_lib.prompts import PROMPT_SETS, prompts

NAMES = ("koa-tiny", "koa-conv")


@cache
def loaded(name):
    return models.load_clip(name, seed=1)


def grader(name, part, residual=0.2, prompt_set="as_printed"):
    clip, _, tokenizer = models.load_clip(name, seed=1)
    return models.ClipGrader(clip, tokenizer, part, prompts(prompt_set), residual).eval()


@cache
def pictures(name, n=3):
    size = loaded(name)[1].image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name, size", [("koa-tiny", 112), ("koa-conv", 144)])
def test_load_clip_gives_a_working_triple(name, size):
    clip, preprocess, tokenizer = loaded(name)
    assert preprocess.image_size == size
    with torch.no_grad():
        image, text = clip.encode_image(pictures(name)), clip.encode_text(tokenizer(["a knee", "a hip"]))
    assert image.shape[-1] == text.shape[-1] and not clip.training


def test_random_start_follows_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (models.load_clip("koa-tiny", seed=seed)[0].visual.proj for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


def test_unknown_name_says_what_can_be_used():
    with pytest.raises(StudyError, match="'ViT-B-33' is unknown.*koa-tiny"):
        models.load_clip("ViT-B-33")


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_give_the_same_outputs(tmp_path, name):
    clip, _, tokenizer = models.load_clip(name, seed=9)
    models.save_clip(clip, name, tmp_path / "weights")
    again = models.load_clip(name, tmp_path / "weights")[0]
    tokens = tokenizer(["severe knee"])
    with torch.no_grad():
        assert torch.equal(clip.encode_image(pictures(name)), again.encode_image(pictures(name)))
        assert torch.equal(clip.encode_text(tokens), again.encode_text(tokens))
    assert {path.suffix for path in (tmp_path / "weights").iterdir()} == {".json", ".safetensors"}
    card = json.loads((tmp_path / "weights" / "model.json").read_text())
    assert card["name"] == name and {"quick_gelu", "grades", "statistics"} <= set(card)


def test_weights_of_another_model_are_refused(tmp_path):
    models.save_clip(loaded("koa-tiny")[0], "koa-tiny", tmp_path)
    with pytest.raises(StudyError, match="weights of 'koa-tiny', not of 'koa-conv'"):
        models.load_clip("koa-conv", tmp_path)


def test_weights_of_another_activation_are_refused(tmp_path):
    models.save_clip(loaded("koa-tiny")[0], "koa-tiny", tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, "quick_gelu": True}))
    with pytest.raises(StudyError, match="quick_gelu=True"):
        models.load_clip("koa-tiny", tmp_path)


def test_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(StudyError, match="neither model.json nor open_clip_config.json"):
        models.load_clip("koa-tiny", tmp_path)


@pytest.fixture
def open_clip_folder(tmp_path):
    """A function that writes koa-tiny in open_clip's own layout, its configuration changed, and gives the model too."""

    def write(weights=True, **changes):
        clip = models.load_clip("koa-tiny", seed=4)[0]
        config = {**open_clip.get_model_config("koa-tiny"), **changes}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
        if weights:
            save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
        return clip

    return write


def test_open_clips_own_folder_is_read(open_clip_folder, tmp_path):
    clip = open_clip_folder()
    again, preprocess, tokenizer = models.load_clip("koa-tiny", tmp_path)
    assert preprocess.image_size == 112 and tokenizer(["knee"]).shape == (1, 64)
    with torch.no_grad():
        assert torch.equal(clip.encode_image(pictures("koa-tiny")), again.encode_image(pictures("koa-tiny")))


def test_open_clips_folder_of_another_activation_is_refused(open_clip_folder, tmp_path):
    open_clip_folder(quick_gelu=True)
    with pytest.raises(StudyError, match="quick_gelu=True but 'koa-tiny' builds quick_gelu=False"):
        models.load_clip("koa-tiny", tmp_path)


def test_open_clips_folder_without_its_weights_is_refused(open_clip_folder, tmp_path):
    open_clip_folder(weights=False)
    with pytest.raises(StudyError):
        models.load_clip("koa-tiny", tmp_path)


def test_open_clips_folder_of_another_architecture_is_refused(tmp_path):
    # Never another architecture under a name.
    config = json.loads(json.dumps(open_clip.get_model_config("koa-tiny")))
    config["vision_cfg"]["layers"] = 2
    other = open_clip.CLIP(**config)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(StudyError):
        models.load_clip("koa-tiny", tmp_path)


def test_openai_architecture_uses_quick_gelu():
    assert models.activation("ViT-B-32-quickgelu") and not models.activation("ViT-B-32") and not models.activation("koa-tiny")


def test_quick_gelu_is_built_where_it_is_named():
    from open_clip.transformer import QuickGELU

    config = {**open_clip.get_model_config("koa-tiny"), "quick_gelu": True}
    assert any(isinstance(module, QuickGELU) for module in open_clip.CLIP(**config).modules())
    assert not any(isinstance(module, QuickGELU) for module in loaded("koa-tiny")[0].modules())


# The readings of the trained part


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_trunk_and_tail_make_the_whole_model(name, part):
    made = grader(name, part)
    with torch.no_grad():
        embedding = made.clip.encode_image(pictures(name))
        if made.adapter is not None:
            embedding = made.adapter(embedding)
        expected = made.clip.logit_scale.exp() * F.normalize(embedding, dim=-1) @ F.normalize(made.clip.encode_text(made.tokens), dim=-1).T
        assert torch.allclose(made.tail(made.trunk(pictures(name))), expected, atol=1e-4)
        assert torch.allclose(made(pictures(name)), expected, atol=1e-4)


def trained_names(name, part):
    """What each reading trains, as parameter names of open_clip's model."""
    vit = name == "koa-tiny"
    head = ("clip.visual.ln_post", "clip.visual.proj") if vit else ("clip.visual.head",)
    last = ("clip.visual.transformer.resblocks.2.", "clip.visual.transformer.resblocks.3.") if vit else ("clip.visual.trunk.layer4",)
    return {"adapter": ("adapter.",), "projection": head, "last_blocks": head + last, "full_image": ("clip.visual",), "both_encoders": ("clip.",)}[part]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_only_the_named_part_gets_gradients(name, part):
    made = grader(name, part)
    made.train_tail()
    F.cross_entropy(made(pictures(name)), torch.tensor([0, 2, 4])).backward()
    wanted = {key for key, _ in made.named_parameters() if key.startswith(trained_names(name, part))}
    moved = {key for key, value in made.named_parameters() if value.grad is not None}
    assert {key for key, value in made.named_parameters() if value.requires_grad} == wanted
    assert moved == wanted and wanted
    assert set(made.trained_state()) >= wanted


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks"])
def test_frozen_batch_norms_keep_their_statistics(part):
    made = grader("koa-conv", part)
    before = {key: value.clone() for key, value in made.clip.visual.trunk.layer1.named_buffers()}
    made.train_tail()
    with torch.no_grad():
        made(pictures("koa-conv"))
    assert all(torch.equal(value, before[key]) for key, value in made.clip.visual.trunk.layer1.named_buffers())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt_set", ["as_printed", "corrected"])
def test_adapter_of_ratio_zero_is_zero_shot_clip(name, prompt_set):
    clip, _, tokenizer = loaded(name)
    made = grader(name, "adapter", 0.0, prompt_set)
    with torch.no_grad():
        image, text = clip.encode_image(pictures(name)).numpy(), clip.encode_text(tokenizer(list(prompts(prompt_set)))).numpy()
        ours = made(pictures(name)).numpy()
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (image, text)]
    assert np.allclose(ours, clip.logit_scale.exp().item() * unit[0] @ unit[1].T, atol=1e-4)


def test_adapter_mixes_by_its_ratio():
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    adapter = models.Adapter(32, 0.3)
    weights = [layer.weight for layer in (adapter.down, adapter.up)]
    expected = 0.3 * (features @ weights[0].T).clamp(min=0).matmul(weights[1].T).clamp(min=0) + 0.7 * features
    assert torch.allclose(adapter(features), expected, atol=1e-6)


def test_prototypes_follow_the_text_tower_only_when_it_is_trained():
    for part, follows in (("both_encoders", True), ("full_image", False)):
        made = grader("koa-tiny", part)
        before = made.prototypes().detach().clone()
        with torch.no_grad():
            made.clip.text_projection.add_(torch.randn_like(made.clip.text_projection))
        assert torch.equal(made.prototypes(), before) != follows


def test_prototypes_are_unit_vectors_one_per_grade():
    prototypes = grader("koa-tiny", "adapter").prototypes()
    assert prototypes.shape[0] == 5 and torch.allclose(prototypes.norm(dim=-1), torch.ones(5), atol=1e-5)


def test_table_1_fits_the_context_of_every_study_model():
    # A truncated prompt would silently lose its finding words.
    for name in (*NAMES, "ViT-B-32-quickgelu"):
        tokenizer = open_clip.get_tokenizer(name)
        for prompt in (prompt for kind in PROMPT_SETS.values() for prompt in kind):
            assert len(tokenizer.encode(prompt)) + 2 <= tokenizer.context_length, (name, prompt)


@pytest.mark.parametrize("part", PARTS)
def test_parts_count_every_parameter_once(part):
    made = grader("koa-tiny", part)
    table = models.parts(made)
    assert sum(count for _, count, _ in table) == sum(p.numel() for p in made.parameters())
    trained = {next(word for word in ("adapter", "projection", "last", "earlier", "text") if word in name) for name, _, is_trained in table if is_trained}
    assert trained == {"adapter": {"adapter"}, "projection": {"projection"}, "last_blocks": {"projection", "last"}, "full_image": {"projection", "last", "earlier"},
                       "both_encoders": {"projection", "last", "earlier", "text"}}[part]


def test_vit_b_32_has_the_printed_layer_arithmetic():
    # Counted by hand for ViT-B/32: block 7,087,872; last two + ln_post + proj; adapter 512 -> 128 -> 512.
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
        adapter = models.Adapter(512, 0.2)

    def count(*modules):
        return sum(p.numel() for module in modules for p in ([module] if isinstance(module, nn.Parameter) else module.parameters()))

    visual = clip.visual
    assert len(visual.transformer.resblocks) == 12 and count(visual.transformer.resblocks[-1]) == 7_087_872
    assert count(visual.ln_post, visual.proj) == 394_752 and count(adapter) == 131_072
    assert count(*models.Tower(visual).last_blocks(), *models.Tower(visual).head_modules(), visual.proj) == 14_175_744 + 394_752
    assert models.facts(clip, "ViT-B-32-quickgelu")["parameters"] == count(clip)
