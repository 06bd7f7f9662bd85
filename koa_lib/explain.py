"""Where the model looks: maps of a grader over its pictures, each from 0 (no part in the grade) to 1 (most)."""

import torch
import torch.nn.functional as F

from koa_lib.device import device_of


def heatmap(grader, images, grades=None):
    """Grad-CAM (Selvaraju 2017, doi:10.1109/ICCV.2017.74) of a grade's logit.

    A CNN's map is of the last stage's output. A ViT's is of the patch tokens that enter the last block, because what
    leaves it reaches the logit through the class token alone. Each channel counts with its mean gradient; only what
    speaks for the grade is kept.

    Parameters
    ----------
    grader : ClipGrader
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
    with torch.enable_grad(), _Cut(grader.tower) as cut:
        logits = grader(images)
        chosen = logits.argmax(1) if grades is None else torch.as_tensor(grades, device=logits.device)
        gradient, = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), cut.activations)
    activations, gradient = (_channels_first(value, grader.tower.is_vit) for value in (cut.activations.detach(), gradient))
    maps = F.relu((gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True))
    maps = F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


class _Cut:
    """Cuts the graph at the mapped layer: what is before it needs no gradient."""

    def __init__(self, tower):
        self.layer, self.is_vit, self.activations = tower.last_blocks()[-1], tower.is_vit, None

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
