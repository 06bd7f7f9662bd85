"""How many threads a computation gets."""

from contextlib import contextmanager

import torch


@contextmanager
def threads(number):
    """Compute in so many threads: one where the products are small,
    because two would wait for each other far longer than they calculate."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
