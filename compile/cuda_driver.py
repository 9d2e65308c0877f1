"""The functions of CUDA's driver and runtime libraries that running and timing needs.

TVM's own CUDA runtime uses the same libcudart.so.13, so that streams, events and memory are shared
with it, with torch and with CuPy.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from intswin.models.errors import IntswinError

_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart.so.13"
_OLDEST_DRIVER = 13000  # CUDA version, 1000 * major + 10 * minor, that libcudart.so.13 needs
_OLDEST_DRIVER_NAME = "580"
# cuda.h and driver_types.h
_NO_DEVICE, _OUT_OF_MEMORY = 100, 2
_COMPUTE_MAJOR, _COMPUTE_MINOR, _PROCESSORS, _CLOCK_KHZ, _L2_BYTES = 75, 76, 16, 13, 38
_CAPTURE_RELAXED = 2
_NON_BLOCKING = 1
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        index: of CUDA.
        name: such as "NVIDIA H100 80GB HBM3".
        capability: such as (9, 0).
        processors: multiprocessors.
        clock_mhz: the highest clock of the multiprocessors.
        memory: bytes.
        l2_cache: bytes.
        driver: the newest CUDA version that the driver knows, such as "13.0".
    """

    index: int
    name: str
    capability: tuple[int, int]
    processors: int
    clock_mhz: int
    memory: int
    l2_cache: int
    driver: str


@functools.cache
def gpu(index: int = 0) -> Gpu:
    """The device called `index`.

    Raises:
        IntswinError: no driver, a driver that is too old, or no such device.
    """
    cuda = _load_driver()
    status = cuda.cuInit(0)
    if status:
        reason = (
            "its driver finds no GPU"
            if status == _NO_DEVICE
            else f"its driver does not start (error {status} of cuInit)"
        )
        raise IntswinError(f"this machine cannot run CUDA code: {reason}; look at: nvidia-smi")
    version, count = c_int(), c_int()
    cuda.cuDriverGetVersion(byref(version))
    if version.value < _OLDEST_DRIVER:
        raise IntswinError(
            f"the NVIDIA driver is too old: it knows CUDA {_version(version.value)}, and 13.0 is "
            f"needed; install driver {_OLDEST_DRIVER_NAME} or newer"
        )
    cuda.cuDeviceGetCount(byref(count))
    if index >= count.value:
        raise IntswinError(f"there is no GPU {index}; this machine has {count.value}")
    name, memory = ctypes.create_string_buffer(128), c_size_t()
    cuda.cuDeviceGetName(name, len(name), index)
    cuda.cuDeviceTotalMem_v2(byref(memory), index)

    def attribute(number: int) -> int:
        value = c_int()
        cuda.cuDeviceGetAttribute(byref(value), number, index)
        return value.value

    return Gpu(
        index=index,
        name=name.value.decode(),
        capability=(attribute(_COMPUTE_MAJOR), attribute(_COMPUTE_MINOR)),
        processors=attribute(_PROCESSORS),
        clock_mhz=attribute(_CLOCK_KHZ) // 1000,
        memory=memory.value,
        l2_cache=attribute(_L2_BYTES),
        driver=_version(version.value),
    )


def cannot_run(arch: str, ptx: str | None, capability: tuple[int, int]) -> str:
    """Why a GPU cannot run code; empty when it can.

    Args:
        arch: of the machine code, such as "sm_80", "sm_90a".
        ptx: of the PTX that is there as well, such as "compute_70"; None without one.
        capability: of the GPU.

    Machine code runs on a GPU of the same major version with an equal or higher minor one, that
    of an "a" architecture on no other; PTX is compiled by the driver for any newer GPU (CUDA C++
    Programming Guide, "Application Compatibility").
    """
    version, only = _arch(arch)
    if capability == version or (
        not only and capability[0] == version[0] and capability[1] >= version[1]
    ):
        return ""
    if ptx is not None:
        version, only = _arch(ptx)
        if capability >= version and not only:
            return ""
    here = f"{capability[0]}{capability[1]}"
    return f"its code is for {arch}{f' and {ptx}' if ptx else ''}, and this GPU is sm_{here}"


class CudaRuntime:
    """Streams, events, graphs and copies. Every method raises CudaError when CUDA does."""

    def __init__(self, library: ctypes.CDLL, device: int = 0) -> None:
        self._library, self._device = library, device
        library.cudaGetErrorString.restype = c_char_p

    def use_device(self) -> None:
        """Make the device current in this thread."""
        self._call("cudaSetDevice", c_int(self._device))

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        stream = c_void_p()
        self._call("cudaStreamCreateWithFlags", byref(stream), c_int(_NON_BLOCKING))
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait for what was put into a stream."""
        self._call("cudaStreamSynchronize", c_void_p(stream))

    def is_capturing(self, stream: int) -> bool:
        """Whether launches into the stream are recorded, not run."""
        status = c_int()
        self._call("cudaStreamIsCapturing", c_void_p(stream), byref(status))
        return status.value != 0

    def new_event(self) -> int:
        """An event that takes the time."""
        event = c_void_p()
        self._call("cudaEventCreate", byref(event))
        return event.value or 0

    def free_event(self, event: int) -> None:
        """Free an event."""
        self._call("cudaEventDestroy", c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        """Let the event happen when the stream gets here."""
        self._call("cudaEventRecord", c_void_p(event), c_void_p(stream))

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for an event."""
        self._call("cudaStreamWaitEvent", c_void_p(stream), c_void_p(event), c_int(0))

    def wait_here(self, event: int) -> None:
        """Wait for an event."""
        self._call("cudaEventSynchronize", c_void_p(event))

    def seconds(self, start: int, end: int) -> float:
        """Between two events that have happened."""
        milliseconds = c_float()
        self._call("cudaEventElapsedTime", byref(milliseconds), c_void_p(start), c_void_p(end))
        return milliseconds.value / 1e3

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts into the stream from now on; memory may be allocated."""
        mode = c_int(_CAPTURE_RELAXED)
        self._call("cudaStreamBeginCapture", c_void_p(stream), mode)

    @contextlib.contextmanager
    def allocation_while_capturing(self) -> Iterator[None]:
        """Let this thread allocate memory although a stream is being captured."""
        mode = c_int(_CAPTURE_RELAXED)
        self._call("cudaThreadExchangeStreamCaptureMode", byref(mode))
        try:
            yield
        finally:
            self._call("cudaThreadExchangeStreamCaptureMode", byref(mode))

    def end_capture(self, stream: int) -> int:
        """The recorded graph."""
        graph = c_void_p()
        self._call("cudaStreamEndCapture", c_void_p(stream), byref(graph))
        return graph.value or 0

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed."""
        graph = c_void_p()
        self._library.cudaStreamEndCapture(c_void_p(stream), byref(graph))
        if graph:
            self._library.cudaGraphDestroy(graph)
        self._library.cudaGetLastError()

    def instantiate(self, graph: int) -> int:
        """Make a recorded graph executable; the recording is freed."""
        executable = c_void_p()
        self._call("cudaGraphInstantiate", byref(executable), c_void_p(graph), ctypes.c_ulonglong())
        self._call("cudaGraphDestroy", c_void_p(graph))
        return executable.value or 0

    def launch_graph(self, executable: int, stream: int) -> None:
        """Run an executable graph in a stream."""
        self._call("cudaGraphLaunch", c_void_p(executable), c_void_p(stream))

    def free_graph(self, executable: int) -> None:
        """Free an executable graph."""
        self._call("cudaGraphExecDestroy", c_void_p(executable))

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy bytes from an address of the host to one of the device."""
        self._copy(device, host, size, _HOST_TO_DEVICE, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy bytes from an address of the device to one of the host."""
        self._copy(host, device, size, _DEVICE_TO_HOST, stream)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        pointers = c_void_p(to), c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, c_size_t(size), c_int(kind), c_void_p(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            self._library.cudaGetLastError()  # it would be reported again by the next call
            text = "out of memory" if status == _OUT_OF_MEMORY else self._text(status)
            raise CudaError(f"{name}: {text}")

    def _text(self, status: int) -> str:
        return self._library.cudaGetErrorString(c_int(status)).decode()


@functools.cache
def runtime(device: int = 0) -> CudaRuntime:
    """The CUDA runtime for a device.

    Raises:
        IntswinError: see `gpu`; or there is no libcudart.so.13.
    """
    gpu(device)
    return CudaRuntime(load_runtime_library(), device)


@functools.cache
def load_runtime_library() -> ctypes.CDLL:
    """libcudart.so.13: the process's, the linker's, that of pip or that of a toolkit.

    Raises:
        IntswinError: there is none.
    """
    for path in _runtime_paths():
        try:
            return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise IntswinError(
        f"{_RUNTIME} is missing, which CUDA artifacts need; "
        "run: pip install nvidia-cuda-runtime (or install CUDA toolkit 13)"
    )


def _runtime_paths() -> Iterator[Path]:
    yield Path(_RUNTIME)
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        yield Path(folder) / "cu13" / "lib" / _RUNTIME
        yield Path(folder) / "cuda_runtime" / "lib" / _RUNTIME
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "lib64" / _RUNTIME
    yield Path("/usr/local/cuda/lib64") / _RUNTIME


def _load_driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise IntswinError(
            f"this machine cannot run CUDA code: it has no NVIDIA driver ({_DRIVER})"
        ) from error


def _arch(name: str) -> tuple[tuple[int, int], bool]:
    """(major, minor) of "sm_90a" or "compute_70", and whether it runs on exactly that GPU."""
    match = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)([af]?)", name)
    if match is None:
        raise IntswinError(f"the artifact names an unknown GPU architecture, {name!r}")
    return (int(match[1]), int(match[2])), bool(match[3])


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
