"""Run a compiled artifact: uint8 images in, int32 logits or labels out.

Needs NumPy, Pillow and TVM's runtime, neither torch nor timm.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile import artifact, host_cpu
from intswin.compile.compiled_network import KernelTimes, Network, Prediction
from intswin.compile.tvm_runtime import VirtualMachine, aligned_empty
from intswin.models.errors import IntswinError

__all__ = ["CompiledNetwork", "Prediction", "check_runs_here", "load", "open_network"]


class CompiledNetwork(Network):
    """A network on this machine's CPU.

    It may be called from several threads. Calls wait for each other: one image already uses every
    core.
    """

    def __init__(self, library: bytes, metadata: dict[str, Any]) -> None:
        super().__init__(metadata)
        self._machine = VirtualMachine(library)
        self._input = aligned_empty((self.batch, *self._image_shape), "uint8")
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        self._check_batch(images)
        with self._lock:
            np.copyto(self._input, images)
            return self._machine.main(self._input).copy()

    def kernel_times(self, images: np.ndarray) -> KernelTimes:
        """See `Network`."""
        self._check_batch(images)
        with self._lock:
            np.copyto(self._input, images)
            return self._machine.kernel_times(self._input)


def load(path: str | Path, device: int = 0) -> Network:
    """Open an artifact for this machine's CPU, or for its GPU `device`.

    Raises:
        IntswinError: not an artifact, damaged, compiled for another machine, or too large for it.
    """
    stored = artifact.read(path)
    check_runs_here(stored, device)
    return open_network(stored.library, stored.metadata, device)


def open_network(
    library: bytes, metadata: dict[str, Any], device: int = 0, cuda_graph: bool = True
) -> Network:
    """A network in memory that runs here; for a GPU, it is a `cuda_runtime.CudaNetwork`.

    `device` and `cuda_graph` are arguments of that class.

    Raises:
        IntswinError: there is no usable GPU, or its memory does not suffice.
    """
    if metadata["target"]["kind"] == "cuda":
        from intswin.compile.cuda_runtime import CudaNetwork  # noqa: PLC0415 - opens CUDA

        return CudaNetwork(library, metadata, device, cuda_graph)
    return CompiledNetwork(library, metadata)


def prepare_device(metadata: dict[str, Any], device: int = 0) -> None:
    """Load what `tvm_runtime.load_executable` needs for code of this artifact's target.

    Raises:
        IntswinError: there is no usable GPU.
    """
    if metadata["target"]["kind"] == "cuda":
        from intswin.compile.cuda_runtime import open_device  # noqa: PLC0415

        open_device(device)


def check_runs_here(stored: artifact.Artifact, device: int = 0) -> None:
    """Raise IntswinError when the artifact's code cannot run on this machine's CPU or GPU."""
    target = stored.metadata["target"]
    if target["kind"] == "cuda":
        from intswin.compile import cuda_runtime  # noqa: PLC0415

        reason, fitting = cuda_runtime.check_runs_here(target, device)
    else:
        reason = host_cpu.missing(target["machine"], target["features"])
        fitting = "llvm"
    if reason:
        raise IntswinError(
            f"{stored.path} is compiled for target {target['name']}: {reason}; "
            f"compile it for this machine with: intswin compile --target {fitting}"
        )
