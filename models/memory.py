"""One clear line when memory runs out, whoever notices: NumPy, torch on the CPU, or CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from intswin.models.errors import IntswinError


@contextlib.contextmanager
def too_little_memory(advice: str) -> Iterator[None]:
    """Raise IntswinError with `advice` when what happens inside runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        by_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not by_type and "can't allocate memory" not in str(error):  # torch's words on a CPU
            raise
        raise IntswinError(advice) from error
