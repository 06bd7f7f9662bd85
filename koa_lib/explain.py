"""Where the model looks: maps of a grader over its pictures, each from 0 (no part in the grade) to 1 (most)."""

import copy

import numpy as np
import torch
import torch.nn.functional as F

from koa_lib.device import device_of

# Cells per side that a CNN's last stage has at 224 pixels. A timm CNN that reads smaller pictures is mapped at the last
# stage that still has as many (our reading): a map of one or two cells says nothing.
FEWEST = 7


def heatmap(grader, images, grades=None):
    """Grad-CAM (Selvaraju 2017, doi:10.1109/ICCV.2017.74) of a grade's logit.

    A CNN's map is of the last stage's output. A ViT's is of the patch tokens that enter the last block, because what
    leaves it reaches the logit through the class token alone. Each channel counts with its mean gradient; only what
    speaks for the grade is kept.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    images : float tensor (n, 3, H, W)
        Normalised as in training.
    grades : int sequence (n,), optional
        By default the grade with the highest logit of each picture.

    Returns
    -------
    float array (n, H, W) in [0, 1]
        Each map is divided by its maximum; all 0 where nothing speaks for the grade.
    """
    images = images.to(device_of(grader))
    grader.eval()
    with torch.enable_grad(), _Cut(*_mapped(grader, images.shape[-1])) as cut:
        logits = grader(images)
        chosen = logits.argmax(1) if grades is None else torch.as_tensor(grades, device=logits.device)
        gradient, = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), cut.activations)
    activations, gradient = (_channels_first(value, cut.is_vit) for value in (cut.activations.detach(), gradient))
    return _finished(F.relu((gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)), images)


def attention_map(grader, images, grades=None):
    """Attention rollout from the class token to the patches of a ViT; it is the same for every grade.

    Parameters and result as of `heatmap`; `grades` are not used.
    """
    with torch.no_grad():
        flow = rollout(attentions(grader, images.to(device_of(grader))))
    return _finished(_channels_first(flow[:, 0, :, None], True), images)


def rollout(layers):
    """Attention rollout (Abnar and Zuidema 2020, doi:10.18653/v1/2020.acl-main.385).

    Heads are averaged, each block's residual path counts as half an identity, and the blocks are multiplied.

    Parameters
    ----------
    layers : sequence of float tensors (n, heads, t, t)
        Attention of each block, first block first; the rows are what attends and sum to 1.

    Returns
    -------
    float tensor (n, t, t)
        How much of each input token is in each output token; rows sum to 1.
    """
    flow = torch.eye(layers[0].shape[-1], device=layers[0].device)
    for attention in layers:
        mixed = attention.mean(1) + torch.eye(attention.shape[-1], device=attention.device)
        flow = mixed / mixed.sum(-1, keepdim=True) @ flow
    return flow


def attentions(grader, images):
    """Attention weights of every block of a ViT, a list of float tensors (n, heads, t, t), first block first."""
    grader.eval()
    seen, handles, fused = [], [], []
    for block in _blocks(grader):
        if isinstance(block.attn, torch.nn.MultiheadAttention):
            handles.append(block.attn.register_forward_pre_hook(_with_weights, with_kwargs=True))
            handles.append(block.attn.register_forward_hook(lambda module, given, output: seen.append(output[1])))
        else:  # timm: only the unfused way passes its weights through a module
            fused.append((block.attn, block.attn.fused_attn))
            block.attn.fused_attn = False
            handles.append(block.attn.attn_drop.register_forward_pre_hook(lambda module, given: seen.append(given[0])))
    try:
        grader(images)
    finally:
        for handle in handles:
            handle.remove()
        for attention, before in fused:
            attention.fused_attn = before
    return seen


def _with_weights(module, given, named):
    return given, {**named, "need_weights": True, "average_attn_weights": False}


def methods(grader):
    """The maps that a grader can have: name to function; rollout needs attention."""
    return {"Grad-CAM": heatmap, **({"attention rollout": attention_map} if _blocks(grader) else {})}


def layer(grader, side):
    """What Grad-CAM maps for pictures of this side, in words: the layer's name and its cells."""
    module, is_vit = _mapped(grader, side)
    with torch.no_grad(), _Cut(module, is_vit) as cut:
        grader.eval()(torch.zeros(1, 3, side, side, device=device_of(grader)))
    cells = "{2} x {3} cells".format(*_channels_first(cut.activations, is_vit).shape)
    name = next(name for name, other in grader.named_modules() if other is module)
    return f"{'input' if is_vit else 'output'} of {name.split('.', 1)[1]}, {cells}"


def _blocks(grader):
    # The transformer blocks of a ViT; none of a CNN.
    if hasattr(grader, "tower"):
        return list(grader.tower.visual.transformer.resblocks) if grader.tower.is_vit else []
    return list(grader.network.blocks) if hasattr(grader.network, "patch_embed") else []


def _mapped(grader, side):
    # The layer that Grad-CAM maps, and whether a ViT's tokens before it or a CNN's output of it.
    if hasattr(grader, "tower"):
        return grader.tower.last_blocks()[-1], grader.tower.is_vit
    if _blocks(grader):
        return _blocks(grader)[-1], True
    stages = grader.network.feature_info
    fine = [stage for stage in stages if side // stage["reduction"] >= FEWEST] or list(stages)[:1]
    return grader.network.get_submodule(fine[-1]["module"]), False


class _Cut:
    """Cuts the graph at the mapped layer: what is before it needs no gradient."""

    def __init__(self, layer, is_vit):
        self.layer, self.is_vit, self.activations = layer, is_vit, None

    def __enter__(self):
        register = self.layer.register_forward_pre_hook if self.is_vit else self.layer.register_forward_hook
        self.handle = register(self._keep)
        return self

    def _keep(self, module, given, *output):
        self.activations = (output or given)[0].detach().requires_grad_()
        return self.activations if output else (self.activations, *given[1:])

    def __exit__(self, *error):
        self.handle.remove()


def _channels_first(values, is_vit):
    # Tokens (n, 1 + h w, c), the class token first, become (n, c, h, w).
    if not is_vit:
        return values
    patches = values[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).reshape(len(values), -1, side, side)


def _finished(maps, images):
    # Maps (n, 1, h, w) at the pictures' size, each divided by its maximum.
    maps = F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


def cascade(grader, untrained, steps):
    """Lose what was learnt, from the output to the input (Adebayo 2018, arXiv:1810.03292).

    Parameters
    ----------
    grader, untrained : ClipGrader or ImageGrader
        The trained one and one of the same architecture with random weights. Texts stay as they are.
    steps : int
        Groups of about as many layers each.

    Yields
    ------
    share : float
        Of the layers that have the random weights so far; 1 at last.
    grader
        The same object each time, changed.
    """
    members = {}
    for name in grader.state_dict():
        if not hasattr(grader, "tower") or name.startswith(("clip.visual.", "adapter.")):
            members.setdefault(_layer_of(name), []).append(name)
    layers = sorted(members, key=lambda name: (name.startswith("adapter"), name == "clip.visual.proj"))  # what is computed last
    changed, start = copy.deepcopy(grader), untrained.state_dict()
    for number, group in enumerate(np.array_split(layers[::-1], steps), 1):
        changed.load_state_dict({name: start[name] for layer in group for name in members[layer]}, strict=False)
        yield number / steps, changed


def _layer_of(name):
    return name if name == "clip.visual.proj" else name.rpartition(".")[0]
