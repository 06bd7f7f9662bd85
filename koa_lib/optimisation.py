"""The optimiser and its step, the same in every training."""

import torch

from koa_lib.errors import StudyError


def adamw(module, learning_rate, weight_decay):
    """AdamW over the weights that are trained; vectors (biases, norms, scales) do not decay."""
    trained = [value for value in module.parameters() if value.requires_grad]
    decay, plain = [v for v in trained if v.ndim > 1], [v for v in trained if v.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        fused=True,
    )


def descend(loss, module, optimiser, largest=1.0):
    """One step down a loss, its gradient cut to a largest norm; gives the loss as a float.

    Raises
    ------
    StudyError
        When the loss is no number.
    """
    if not torch.isfinite(loss):
        raise StudyError(
            f"The loss became {loss.item()}. Lower the profile's learning_rate of this training."
        )
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([value for value in module.parameters() if value.requires_grad], largest)
    optimiser.step()
    return loss.item()
