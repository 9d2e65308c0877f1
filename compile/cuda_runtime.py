"""Run a CUDA artifact: NumPy images, or tensors that are on the GPU already.

Tensors of other libraries come in and go out by DLPack, without a copy. Kernels are launched into
the caller's stream, so a call returns before they have run, and the caller's own CUDA graph can
record it. Memory between the layers comes from TVM's pool: after two calls, or two
after a capture, no call allocates on the device. (TVM's VM holds the last call's output.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from intswin.compile import cuda_driver
from intswin.compile.compiled_network import KernelTimes, Network
from intswin.compile.cuda_driver import CudaRuntime
from intswin.compile.cuda_tensors import exported, imported, stream_address
from intswin.compile.cuda_timing import recording, time_launches
from intswin.compile.tvm_runtime import (
    CPU,
    CUDA,
    POOLED_ALLOCATOR,
    instrumented,
    load_cuda_runtime,
    load_executable,
)
from intswin.models.errors import IntswinError

_BUILTIN = "vm.builtin."
_DEFAULT_STREAM = 0
_REPEATS = 20  # launches of a kernel in the graph that times it
_REPLAYS = 5


# The target that suits a GPU best: the newest whose code it runs.
_TARGETS = {(7, 0): "v100", (7, 5): "t4", (8, 0): "a100", (8, 9): "rtx4090", (9, 0): "h100"}


def check_runs_here(target: dict[str, Any], device: int = 0) -> tuple[str, str]:
    """Why GPU `device` cannot run an artifact, and the target that it could run.

    Args:
        target: "target" of the artifact's metadata.
        device: index of the GPU.

    Returns:
        the reason, empty when there is none, and a name of `names.TARGET_NAMES`.

    Raises:
        IntswinError: there is no usable GPU.
    """
    try:
        capability = cuda_driver.gpu(device).capability
    except IntswinError as error:
        return str(error), "llvm"
    # By PTX cuda-v100 runs on all of them; machine code runs on its own major version.
    fitting = max(
        (c for c in _TARGETS if c[0] == capability[0] and c <= capability), default=(7, 0)
    )
    reason = cuda_driver.cannot_run(target["arch"], target.get("ptx"), capability)
    return reason, f"cuda-{_TARGETS[fitting]}"


def open_device(device: int) -> tuple[CudaRuntime, Any]:
    """The CUDA runtime, with `device` current, and tvm_ffi with TVM's CUDA code loaded.

    Raises:
        IntswinError: there is no usable GPU.
    """
    cuda = cuda_driver.runtime(device)
    ffi = load_cuda_runtime()
    cuda.use_device()
    return cuda, ffi


class CudaNetwork(Network):
    """A network on a GPU; made by `runtime.load`.

    It may be called from several threads; calls from different streams run one after the other,
    because they share the memory between the layers.
    """

    def __init__(
        self, library: bytes, metadata: dict[str, Any], device: int = 0, cuda_graph: bool = True
    ) -> None:
        """Put the weights on the GPU `device`.

        Args:
            library: of the artifact.
            metadata: of the artifact.
            device: index.
            cuda_graph: run NumPy images by one graph, not by a launch for each kernel.

        Raises:
            IntswinError: no usable GPU, or its memory does not suffice.
        """
        super().__init__(metadata)
        self.device = device
        self._lock = threading.RLock()
        self._cuda, self._ffi = open_device(device)
        self._device = self._ffi.device("cuda", device)
        self._order = _order(device)
        self._kept: list[Any] = []  # memory that the caller's graphs use
        self._recorded: CapturedCall | None = None
        self._cuda_graph = cuda_graph
        with self._explained():
            self._machine = load_executable(library)
            allocator = POOLED_ALLOCATOR
            self._machine["vm_initialization"](CUDA, device, allocator, CPU, 0, allocator)
            # TVM copies the weights in the default stream, and no other stream waits for them.
            self._cuda.synchronize(_DEFAULT_STREAM)
            self._main = self._machine["main"]
            self._stream = self._cuda.new_stream()
            self._input = self._empty((self.batch, *self._image_shape), "uint8")

    def __call__(self, images: Any, stream: Any = None) -> Any:
        """Logits of exactly the compiled batch.

        Args:
            images: uint8 (batch, size, size, 3), RGB: a NumPy array, or a tensor of this GPU with
                DLPack (torch, CuPy, ...), contiguous, which is read in place.
            stream: for a tensor: a CUDA stream of torch or CuPy or its address; None for the
                current one of the tensor's library. The logits are complete in its order.

        Returns:
            int32 (batch, classes): a NumPy array for one, else a tensor of the same library.

        Raises:
            IntswinError: another shape, dtype or device, memory that is not contiguous, or too
                little memory on the GPU.
        """
        if isinstance(images, np.ndarray):
            self._check_batch(images)
            return self._run_on_host(images)
        tensor = self._imported(images)
        address = stream_address(images, stream, self._ffi)
        with self._lock, self._explained():
            self._cuda.use_device()
            logits = self._launch(tensor, address)
        return exported(logits, images)

    def capture(self, images: Any = None) -> CapturedCall:
        """Record one call as a CUDA graph.

        Args:
            images: a tensor as `__call__` takes it, whose memory each replay reads; None: the
                recorded call has memory of its own, a DLPack tensor `images`.

        Raises:
            IntswinError: as `__call__`.
        """
        tensor = self._imported(images) if images is not None else None
        with self._lock, self._explained():
            self._cuda.use_device()
            if tensor is None:
                tensor = self._empty((self.batch, *self._image_shape), "uint8")
            like = images if images is not None else tensor
            return self._capture(tensor, like)

    def kernel_calls(self, images: np.ndarray) -> list[KernelCall]:
        """The kernels of one call, in execution order; `images` as in `__call__`.

        Each can be launched again, on what the call left in its memory.
        """
        self._check_batch(images)
        calls: list[KernelCall] = []

        def note(function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> int:
            if before and not str(name).startswith(_BUILTIN):
                calls.append(KernelCall(str(name), function, arguments))
            return 0

        with self._lock, self._explained():
            self._cuda.use_device()
            self._copy_in(self._input, images)
            with instrumented(self._machine, note):
                self._launch(self._input, self._stream)
            self._cuda.synchronize(self._stream)
        return calls

    def kernel_times(self, images: np.ndarray) -> KernelTimes:
        """Seconds of each kernel of one call, in execution order; `images` as in `__call__`.

        Each kernel runs some times in a row, recorded as a graph: its inputs are in the L2 cache
        where they fit, and the gap between two kernels of a graph is part of its time.
        """
        calls = self.kernel_calls(images)
        with (
            self._lock,
            self._explained(),
            self._ffi.use_raw_stream(self._device, self._stream),
        ):
            spans = [
                time_launches(self._cuda, self._stream, call, _REPEATS, _REPLAYS) for call in calls
            ]
        names = (call.name for call in calls)
        return list(zip(names, map(float, np.median(spans, axis=1)), strict=True))

    def _run_on_host(self, images: np.ndarray) -> np.ndarray:
        logits = np.empty((self.batch, len(self.classes)), np.int32)
        with self._lock, self._explained():
            self._cuda.use_device()
            if self._cuda_graph and self._recorded is None:
                self._recorded = self._capture(self._input, self._input)
            self._copy_in(self._input, images)
            if self._recorded is not None:
                self._recorded.replay(self._stream)
                result = self._recorded.logits
            else:
                result = self._launch(self._input, self._stream)
            self._cuda.copy_out(logits.ctypes.data, result.data_ptr(), logits.nbytes, self._stream)
            self._cuda.synchronize(self._stream)
        return logits

    def _launch(self, tensor: Any, stream: int) -> Any:
        """Put the kernels of one call into a stream; the output is TVM's tensor."""
        with self._ffi.use_raw_stream(self._device, stream):
            if not self._cuda.is_capturing(stream):
                with self._order.turn(stream):
                    return self._main(tensor)
            # A graph goes on using its memory when nothing here refers to it any more. What is kept
            # cannot be used for a later layer, so that more may be needed than for a call.
            with (
                self._cuda.allocation_while_capturing(),
                instrumented(self._machine, _keeper(self._kept)),
            ):
                logits = self._main(tensor)
                self._order.wait()  # calls before this one may still use what the graph was given
            self._kept.append(logits)
            return logits

    def _capture(self, tensor: Any, like: Any) -> CapturedCall:
        self._launch(tensor, self._stream)  # loads the kernels, and fills the pool
        self._cuda.synchronize(self._stream)
        kept: list[Any] = [tensor]
        with (
            recording(self._cuda, self._stream) as finish,
            self._ffi.use_raw_stream(self._device, self._stream),
            instrumented(self._machine, _keeper(kept)),
        ):
            logits = self._main(tensor)
            graph = finish()
        self._order.wait()  # calls of other threads may still use what the graph was given
        kept.append(logits)
        return CapturedCall(like, exported(logits, like), self, graph, kept)

    def _copy_in(self, tensor: Any, images: np.ndarray) -> None:
        # From memory that is not pinned, the copy has left it when this returns.
        images = np.ascontiguousarray(images)
        self._cuda.copy_in(tensor.data_ptr(), images.ctypes.data, images.nbytes, self._stream)

    def _imported(self, images: Any) -> Any:
        return imported(images, (self.batch, *self._image_shape), self.device, self._ffi)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        return allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), self._device, None)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what CUDA says into one line."""
        try:
            yield
        except IntswinError:
            raise
        except RuntimeError as error:
            reason = explanation(str(error), self.batch)
            if not reason:
                raise
            raise IntswinError(reason) from error


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A kernel and what a network calls it with; calling this launches it again.

    Attributes:
        name: of the kernel.
        function: launches it into the current stream of tvm_ffi.
        arguments: DLPack tensors of the GPU, the output last.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> None:
        """Launch it."""
        self.function(*self.arguments)


@dataclasses.dataclass
class CapturedCall:
    """A call of a network that is recorded as a CUDA graph.

    Keep it until its replays have run: its memory is used again when it is gone.

    Attributes:
        images: the tensor that every replay reads; fill it in the order of the replay's stream.
        logits: the tensor that every replay writes.
    """

    images: Any
    logits: Any
    _network: CudaNetwork
    _graph: int
    _kept: list[Any]

    def replay(self, stream: Any = None) -> Any:
        """Run it in a stream, as `CudaNetwork.__call__` finds it; returns `logits`.

        Replays of one recorded call must not overlap.
        """
        network = self._network
        address = stream_address(self.images, stream, network._ffi)
        network._cuda.use_device()
        network._cuda.launch_graph(self._graph, address)
        return self.logits

    def __del__(self) -> None:
        """Free the graph; its memory goes back to the pool."""
        with contextlib.suppress(cuda_driver.CudaError):  # when the process ends, CUDA ends first
            self._network._cuda.free_graph(self._graph)


class _Order:
    """Lets calls in different streams run one after the other: they use the same memory."""

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda, self._event = cuda, cuda.new_event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self, stream: int) -> Iterator[None]:
        """What is launched inside waits for the turn before."""
        with self._lock:
            # Also in the stream of the turn before: its address may be another stream's by now.
            self._cuda.wait(stream, self._event)
            try:
                yield
            finally:
                self._cuda.record(self._event, stream)

    def wait(self) -> None:
        """Wait here for the last turn."""
        with self._lock:
            self._cuda.wait_here(self._event)


@functools.cache
def _order(device: int) -> _Order:
    """Of all networks on a device: TVM has one pool of memory for them."""
    cuda = cuda_driver.runtime(device)
    cuda.use_device()
    return _Order(cuda)


def explanation(message: str, batch: int) -> str:
    """One line for a message of CUDA or TVM that a user can do something about; else empty."""
    text = message.lower()
    if "out of memory" in text or "out_of_memory" in text:
        return (
            f"the GPU's memory does not suffice for batch {batch}; "
            "free some (see nvidia-smi) or compile for a smaller batch"
        )
    if "unsupported_ptx_version" in text or "unsupported ptx version" in text:
        return "the NVIDIA driver is too old for the artifact's PTX code; install a newer driver"
    if "no_binary_for_gpu" in text or "no kernel image" in text:
        return "the artifact has no code for this GPU; compile it for this GPU's target"
    return ""


def _keeper(kept: list[Any]) -> Callable[..., int]:
    """An instrument that keeps all memory that kernels are given."""

    def keep(_function: Any, _name: str, before: bool, _result: Any, *arguments: Any) -> int:
        if before:
            kept.extend(argument for argument in arguments if hasattr(argument, "data_ptr"))
        return 0

    return keep
