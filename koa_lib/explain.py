"""Where the model looks: maps of a grader over its pictures, and scores of such maps.

A map has values from 0 (no part in the grade) to 1 (most). It is held against known regions, against the maps
of other patients, against what blurring does to the grade, and against maps of the model with random weights.
"""

import copy
import math
from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib import tower
from koa_lib.datasets import to_tensor
from koa_lib.device import device_of

# Cells per side that a CNN's last stage has at 224 pixels. A timm CNN that reads smaller pictures is mapped
# at the last stage that still has as many (our reading): a map of one or two cells says nothing.
FEWEST = 7
SIDE = 112  # pixels of a kept map
CELLS = 14  # per side: what is deleted or inserted at once, and (doubled) the grid on which maps are compared
BLUR = 0.1  # of a picture's side: hides joint space, spurs and edges, and draws no edge as a gray patch would
MIDDLE = 0.25  # of a picture's side: width of the blob that looks at no picture
BATCH = 64
# The controls of deletion and insertion: scattered cells, and a blob that grows from the middle.
RANDOM, CENTRE = "random order", "centre-out order"


def heatmap(grader, images, grades=None):
    """Grad-CAM (Selvaraju 2017, doi:10.1109/ICCV.2017.74) of a grade's logit.

    A CNN's map is of the last stage's output. A ViT's is of the patch tokens that enter the last block,
    because what leaves it reaches the logit through the class token alone. Each channel counts with its mean
    gradient; only what speaks for the grade is kept.

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
    layer, kept = grader.get_submodule(mapped_layer(grader, images.shape[-1])), []

    def cut(module, given, output):  # what is before the layer needs no gradient
        kept.append(output.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad(), layer.register_forward_hook(cut):
        logits = grader.eval()(images)
        chosen = logits.argmax(1) if grades is None else torch.as_tensor(grades, device=logits.device)
        gradient, = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), kept)
    last = not hasattr(grader, "tower") and getattr(grader.network, "output_fmt", "") == "NHWC"  # a Swin
    activations, gradient = (_channels_first(values, last) for values in (kept[0].detach(), gradient))
    speaking = F.relu((gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True))
    return _finished(grader, speaking, images)


def attention_map(grader, images, grades=None):
    """Attention rollout from the class token to the patches of a ViT; it is the same for every grade.

    Parameters and result as of `heatmap`; `grades` are not used.
    """
    with torch.no_grad():
        flow = rollout(attentions(grader, images.to(device_of(grader))))
    return _finished(grader, _channels_first(flow[:, 0, :, None]), images)


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
    same = torch.eye(layers[0].shape[-1], device=layers[0].device)
    flow = same
    for attention in layers:
        flow = (attention.mean(1) + same) / 2 @ flow
    return flow


def attentions(grader, images):
    """Attention weights of every block of a ViT, float tensors (n, heads, t, t), first block first."""
    seen = []
    with ExitStack() as changes:
        for attention in (block.attn for block in _blocks(grader)):
            if isinstance(attention, torch.nn.MultiheadAttention):
                changes.enter_context(attention.register_forward_pre_hook(_with_weights, with_kwargs=True))
                hook = attention.register_forward_hook(lambda module, given, output: seen.append(output[1]))
            else:  # timm: only the unfused way passes its weights through a module
                changes.callback(setattr, attention, "fused_attn", attention.fused_attn)
                attention.fused_attn = False
                drop = attention.attn_drop
                hook = drop.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
            changes.enter_context(hook)
        # Of a grader's last block only the class token may be made; its tower makes all.
        (grader.clip.visual if hasattr(grader, "tower") else grader).eval()(images)
    return seen


def _with_weights(module, given, named):
    return given, {**named, "need_weights": True, "average_attn_weights": False}


def methods(grader):
    """The maps that a grader can have: name to function; rollout needs attention."""
    return {"Grad-CAM": heatmap, **({"attention rollout": attention_map} if _blocks(grader) else {})}


def mapped_layer(grader, side):
    """Name of the layer whose output Grad-CAM maps: a CNN's last stage, a ViT's last block but one."""
    clip, blocks = hasattr(grader, "tower"), _blocks(grader)
    if blocks:
        return f"{'clip.visual.transformer.resblocks' if clip else 'network.blocks'}.{len(blocks) - 2}"
    if clip:
        return "clip.visual.trunk.layer4"
    stages = list(grader.network.feature_info)
    fine = [stage for stage in stages if side // stage["reduction"] >= FEWEST] or stages[:1]
    return f"network.{fine[-1]['module']}"


def _blocks(grader):
    # The transformer blocks of a ViT; none of a CNN.
    if hasattr(grader, "tower"):
        return grader.clip.visual.transformer.resblocks if grader.tower.is_vit else []
    from timm.models import VisionTransformer  # slow; whoever has a network has it loaded

    return grader.network.blocks if isinstance(grader.network, VisionTransformer) else []


def _channels_first(values, last=False):
    # Tokens (n, t + h w, c), class tokens first, become (n, c, h, w) like the output of a CNN; as does a
    # picture whose channels come last.
    if values.ndim == 4:
        return values.movedim(-1, 1) if last else values
    side = math.isqrt(values.shape[1])
    return values[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def _finished(grader, maps, images):
    # Maps (n, 1, h, w) at the pictures' size, each divided by its maximum.
    place = grader.tower.placed if hasattr(grader, "tower") else tower.spread
    maps = place(maps, images.shape[-2:])[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


def cascade(grader, untrained, steps):
    """Lose what was learnt, from the output to the input (Adebayo 2018, arXiv:1810.03292).

    Parameters
    ----------
    grader, untrained : ClipGrader or ImageGrader
        The trained one and one of the same architecture with random weights. Texts stay as they are.
    steps : int
        Groups of about as many weights and biases each.

    Yields
    ------
    grader
        The same object each time, with one more group random; all of them at last.
    """
    clip, start = hasattr(grader, "tower"), untrained.state_dict()
    names = [name for name in start if not clip or name.startswith(("clip.visual.", "adapter."))]
    # In the order of the computation: a ViT's projection is listed first.
    names = sorted(names, key=lambda name: (name.startswith("adapter"), name == "clip.visual.proj"))
    changed = copy.deepcopy(grader)
    for group in np.array_split(names[::-1], steps):
        changed.load_state_dict({name: start[name] for name in group}, strict=False)
        yield changed


def inside(maps, masks):
    """Share of each map's sum that lies in its region.

    Parameters
    ----------
    maps : float array (n, H, W), not negative
    masks : bool array (n, H, W)

    Returns
    -------
    float array (n,)
        Chance, for a map that knows nothing, is the region's share of the area; NaN for a map of zeros.
    """
    return (_shares(maps) * masks).sum((1, 2))


def of_others(maps, masks, groups):
    """Share of the maps of *other patients* inside each region: what is known without a look at the picture.

    Parameters
    ----------
    maps, masks : arrays (n, H, W), as of `inside`
    groups : array (n,)
        Patients.

    Returns
    -------
    float array (n,)
        Mean over the maps of other patients that are not all 0; NaN where there is none.
    """
    laid = np.tensordot(masks.astype(float), _shares(maps), ((1, 2), (1, 2)))
    return pd.DataFrame(laid).where(groups[:, None] != groups).mean(axis=1).to_numpy()


def _shares(maps):
    total = maps.sum((1, 2), keepdims=True, dtype=float)
    return maps / np.where(total > 0, total, np.nan)


def blob(number):
    """Maps (number, SIDE, SIDE) that look at no picture: bright in the middle, where crops have the joint."""
    away = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    across = np.exp(-0.5 * (away / MIDDLE) ** 2)
    return np.repeat(np.outer(across, across)[None], number, axis=0)


def rank_correlation(first, second):
    """Spearman correlation of each pair of maps (n, H, W), (n,); NaN where one is constant."""
    first, second = (pd.DataFrame(_cells(maps, 2 * CELLS)).rank(axis=1) for maps in (first, second))
    return first.corrwith(second, axis=1).to_numpy()


def turns(maps, rng):
    """When each cell of a map is changed, int array (n, CELLS ** 2): 0 for the highest, ties by chance."""
    cells = _cells(maps, CELLS)
    return np.argsort(np.lexsort((rng.random(cells.shape), -cells)))


def _cells(maps, side):
    return resized(maps, side).reshape(len(maps), -1)


def resized(maps, side):
    """Maps (n, H, W) in another size, by the mean over what a pixel covers or bilinear."""
    maps = torch.as_tensor(maps)[:, None].float()
    return F.interpolate(maps, (side, side), mode="bilinear", antialias=True)[:, 0].numpy()


def curves(grader, pictures, statistics, maps, grades, steps, seed):
    """Probability of a grade while cells are blurred (deletion) or become sharp (insertion), highest first.

    Petsiuk 2018 (arXiv:1806.07421): a map that finds what the model uses makes deletion fall, and insertion
    rise, early.

    Parameters
    ----------
    grader : ClipGrader or ImageGrader
    pictures : uint8 array (n, side, side)
    statistics : str
        Normalisation of the training.
    maps : dict of str to float array (n, H, W)
        By method. `RANDOM`, a map of zeros, and `CENTRE`, the `blob`, are added.
    grades : int array (n,)
        Whose probability is followed.
    steps, seed : int

    Returns
    -------
    dict of str to dict of str to float array (n, steps + 1)
        By 'deletion' and 'insertion', then by method; from no changed cell to all of them.
    """
    from scipy.ndimage import gaussian_filter

    sharp, every, rng = pictures / np.float32(255), np.arange(len(pictures)), np.random.default_rng(seed)
    hidden = gaussian_filter(sharp, (0, *2 * [BLUR * sharp.shape[-1]]))
    counts, made = np.linspace(0, CELLS**2, steps + 1).round(), {"deletion": {}, "insertion": {}}
    controls = {RANDOM: np.zeros((len(every), SIDE, SIDE)), CENTRE: blob(len(every))}
    for name, values in (maps | controls).items():
        when = torch.as_tensor(turns(values, rng)).view(-1, 1, CELLS, CELLS).float()
        when = F.interpolate(when, sharp.shape[1:])[:, 0].numpy()
        for kind, before, after in (("deletion", sharp, hidden), ("insertion", hidden, sharp)):
            mixed = (np.where(when < count, after, before) for count in counts)
            answers = [probabilities(grader, between, statistics)[every, grades] for between in mixed]
            made[kind][name] = np.stack(answers, axis=1)
    return made


def area(curves):
    """Mean height of curves (n, steps + 1) by the trapezoidal rule, (n,): 0 to 1."""
    return np.trapezoid(curves, axis=1) / (curves.shape[1] - 1)


@torch.no_grad()
def probabilities(grader, pictures, statistics):
    """Probabilities (n, 5) of gray pictures (n, side, side), in full precision like the maps."""
    device, found = device_of(grader.eval()), []
    for start in range(0, len(pictures), BATCH):
        images = to_tensor(pictures[start : start + BATCH], statistics)
        found.append(grader(images.to(device)).softmax(-1).cpu().numpy())
    return np.concatenate(found)


def write(trained, untrained, data, path, *, chosen, statistics, steps, losses, seed):
    """Write a model's answers and maps, and what becomes of them when pictures or weights change, as .npz.

    Parameters
    ----------
    trained, untrained : callables
        Make the trained grader, and the same architecture with random weights.
    data : KneeDataset
    path : Path
        Gets grades (the model's own), layer, methods, maps (methods, n, SIDE, SIDE),
        cascade (methods, n, losses: rank correlation with the trained model's map), orders, deletion and
        insertion (orders, n, steps + 1).
    chosen : int array (n,)
        Positions of the pictures that are explained.
    statistics : str
        Normalisation of the training.
    steps, losses : int
        Of `curves` and of `cascade`.
    seed : int
    """
    grader, pictures = trained(), data.images(chosen)
    images, grades = to_tensor(pictures, statistics), probabilities(grader, pictures, statistics).argmax(1)
    maps = _all_maps(grader, images, grades)
    kept = {"grades": grades, "layer": mapped_layer(grader, images.shape[-1])}
    kept |= {"methods": list(maps), "maps": list(maps.values())}
    for kind, made in curves(grader, pictures, statistics, maps, grades, steps, seed).items():
        kept |= {"orders": list(made), kind: list(made.values())}
    lost = [_all_maps(changed, images, grades) for changed in cascade(grader, untrained(), losses)]
    alike = [[rank_correlation(maps[name], step[name]) for step in lost] for name in maps]
    np.savez(path, **kept, cascade=np.swapaxes(alike, 1, 2))


def _all_maps(grader, images, grades):
    # By method, (n, SIDE, SIDE) each, a batch at a time.
    found = {}
    for name, method in methods(grader).items():
        starts = range(0, len(images), BATCH)
        parts = (method(grader, images[k : k + BATCH], grades[k : k + BATCH]) for k in starts)
        found[name] = resized(np.concatenate(list(parts)), SIDE)
    return found
