"""PyTorch in float32 or bfloat16, eager or compiled by inductor."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
from pathlib import Path
from typing import Any

from intswin.compile.peers.inputs import float_model
from intswin.compile.peers.task import Loaded, Task


def environment(threads: int) -> dict[str, str]:
    """What PyTorch's CPU tuning guide says: tcmalloc and Intel's OpenMP, pinned threads."""
    preload = [path for path in (_tcmalloc(), _intel_openmp()) if path]
    return {
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        "KMP_BLOCKTIME": "1",  # milliseconds that an idle thread spins
        "TORCHINDUCTOR_FREEZING": "1",
        # Several workers build at once, and the pool of compilers would outlive the build.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "LD_PRELOAD": " ".join(preload),
    }


def prepare(task: Task) -> None:
    """Nothing: `load` compiles, and inductor keeps a cache of its own."""


def load(task: Task) -> Loaded:
    """Variants are fp32-eager, fp32-compile, bf16-eager and bf16-compile."""
    import torch  # noqa: PLC0415

    from intswin.models.swin import with_fused_attention  # noqa: PLC0415

    torch.set_num_threads(task.threads)
    precision, mode = task.competitor.variant.split("-")
    model = with_fused_attention(float_model(task, task.competitor.activation))
    pixels = torch.from_numpy(task.pixels)
    call = torch.compile(model) if mode == "compile" else model

    def run() -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return call(pixels)

    return Loaded(run, lambda logits: logits.float().numpy())


def _tcmalloc() -> str | None:
    return ctypes.util.find_library("tcmalloc") or ctypes.util.find_library("tcmalloc_minimal")


def _intel_openmp() -> str | None:
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(Path(f.locate()).resolve()) for f in files if f.name == "libiomp5.so"), None)
