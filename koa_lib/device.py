"""Where tensors are computed (a GPU when PyTorch sees one, else the CPU), in how many threads, and how what
is random starts."""

from contextlib import contextmanager

import torch


def compute_device():
    """The device that graders are moved to."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module):
    """The device on which a module's weights lie."""
    return next(module.parameters()).device


BF16_UNITS = ("amx_bf16", "bf16", "sve_bf16")  # as torch calls them; without, bf16 is slower


def bf16(module):
    """Whether a module's products are computed in bf16: where its `low_precision` says that it pays, and the
    device has units for it."""
    if device_of(module).type == "cpu":
        known = torch.cpu.get_capabilities()
        # Intel's avx512_bf16 alone took 1.4 (a convolutional step) to 1.9 times (a product) as long as
        # float32.
        vectors = known.get("avx512_bf16") and "Intel" not in known.get("cpu_name", "")
        return module.low_precision and bool(vectors or any(known.get(unit) for unit in BF16_UNITS))
    # Older GPUs refuse.
    return module.low_precision and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(module):
    """bf16 autocast on the module's device where `bf16`; weights stay float32."""
    return torch.autocast(device_of(module).type, torch.bfloat16, enabled=bf16(module))


@contextmanager
def threads(number):
    """Compute in so many threads: one where the products are small, because two would wait for each other far
    longer than they calculate."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def random_state(seed):
    """torch's random numbers begin at a seed, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded(seed, build, *arguments):
    """What a builder makes with torch's random numbers of a seed, on the device that is computed on."""
    with random_state(seed):
        return build(*arguments).to(compute_device())
