"""Where tensors are computed: a GPU when PyTorch sees one, else the CPU."""

import torch


def compute_device():
    """The device that graders are moved to."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module):
    """The device on which a module's weights lie."""
    return next(module.parameters()).device


def autocast(module):
    """bf16 autocast on the module's device where its `low_precision` says that it pays; weights stay float32."""
    device = device_of(module)
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)  # older GPUs refuse it
    return torch.autocast(device.type, torch.bfloat16, enabled=module.low_precision and able)
