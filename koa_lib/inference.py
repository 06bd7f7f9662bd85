"""A frozen network made quick: the weights of its products are bf16 from the start, or it is compiled by
OpenVINO where that is installed (the extra `fast`)."""

import copy
from importlib.util import find_spec

import torch
from torch import nn

from koa_lib.device import bf16, device_of

PRODUCTS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)  # what autocast computes in bf16
# Compiling takes some ten seconds: it pays for so many pictures of so many pixels a side.
COMPILED_SIDE, COMPILED_PICTURES = 224, 1500
COMPILES = "OpenVINO, bf16"


@torch.no_grad()
def quick(module, work, side, pictures):
    """A network that is only read from.

    Parameters
    ----------
    module : nn.Module
        With `low_precision`, in evaluation mode; it is not changed.
    work : str
        Its function that makes features of normalised pictures.
    side, pictures : int
        Of how many pixels, and how many they will be.

    Returns
    -------
    nn.Module
        A copy to be called under `device.autocast`, which else casts frozen weights anew for every batch;
        embeddings have a cosine above 0.999 with those of float32. The module itself where it is computed in
        float32.
    """
    if not bf16(module) or work in vars(module):
        return module
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if isinstance(part, PRODUCTS):
            part.to(torch.bfloat16)
    compiles = engine(module, side, pictures) == COMPILES
    # Found before the class's own of that name.
    vars(copied)[work] = _compiled(module, work, side) if compiles else getattr(copied, work)
    return copied


def engine(module, side, pictures):
    """Who computes what `quick` makes, and how: 'OpenVINO, bf16', 'torch, bf16' or, where that is slower,
    'torch, float32'."""
    if not bf16(module):
        return "torch, float32"
    able = hasattr(module, "tower") and device_of(module).type == "cpu"  # tried on CLIP's own towers only
    pays = side >= COMPILED_SIDE and pictures >= COMPILED_PICTURES
    return COMPILES if able and pays and find_spec("openvino") else "torch, bf16"


class _Work(nn.Module):
    # A function of a module as the `forward` of one, as the exporter wants it.

    def __init__(self, module, work):
        super().__init__()
        self.module, self.work = module, work

    def forward(self, images):
        return getattr(self.module, self.work)(images)


def _compiled(module, work, side):
    import openvino  # seldom there, and slow to import

    example, batch = torch.zeros(2, 3, side, side), {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(_Work(module, work), (example,), dynamic_shapes=batch)
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(openvino.convert_model(program), "CPU", hints)
    return lambda images: torch.from_numpy(network(images.contiguous().numpy())[0])
