"""Offsets in CUDA kernels are int32: why none overflows.

An offset counts the elements of one tensor (the bytes before it are counted in 64 bits, by pointer
arithmetic), and all offsets that a kernel computes lie inside of a tensor, or less than a block of
threads' part behind its end, where nothing is loaded or stored. Addresses of 64 bits would cost
registers and additions in every load. So tensors that long are refused here.
"""

from __future__ import annotations

import math

from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph

_BEHIND = 1 << 16  # elements; more than any block has
MOST_ELEMENTS = (1 << 31) - _BEHIND


def check_batch(graph: IntegerGraph, batch: int) -> None:
    """Refuse a batch with which a tensor would have more than MOST_ELEMENTS elements.

    Raises:
        IntswinError: the batch is so large.
    """
    specs = [graph.input, *(node.out for node in graph.nodes)]
    largest = max(math.prod(spec.shape) for spec in specs)
    if batch * largest > MOST_ELEMENTS:
        raise IntswinError(
            f"batch {batch} is too large for a GPU: a tensor of this network has {largest} numbers "
            f"an image, and kernels count them in 32 bits; use {MOST_ELEMENTS // largest} or less"
        )
