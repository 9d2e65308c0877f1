"""TVM's runtime without TVM's Python package.

`import tvm` takes 3-4 s where torch is installed, because tvm_ffi and tvm import it when they find
it, and classifying one image takes milliseconds. Running a Relax executable needs two shared
libraries only: tvm_ffi, imported here with torch hidden, and libtvm_runtime.so. A later
`import tvm` or `import torch` in the same process works as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile.host_cpu import usable_cores
from intswin.models.errors import IntswinError

CPU, CUDA = 1, 2  # kDLCPU, kDLCUDA
POOLED_ALLOCATOR = 2
_NO_INSTRUMENT = "ffi.Array"  # a function of TVM that takes anything and does next to nothing
ALIGNMENT = 64  # bytes; TVM's generated code loads its arguments with aligned vector instructions


class VirtualMachine:
    """One Relax executable on this CPU.

    Calls must not overlap: the machine keeps its call frames in itself.
    """

    def __init__(self, library: bytes) -> None:
        tvm_ffi = load_runtime()
        self._machine = load_executable(library)
        self._from_dlpack = tvm_ffi.from_dlpack
        self._machine["vm_initialization"](CPU, 0, POOLED_ALLOCATOR)
        self._main = self._machine["main"]

    def main(self, array: np.ndarray) -> np.ndarray:
        """Call `main`: one array in (as `aligned_empty` makes it), one out."""
        return np.from_dlpack(self._main(self._from_dlpack(array)))

    def kernel_times(self, array: np.ndarray) -> list[tuple[str, float]]:
        """Call `main` once and give each kernel's name and seconds, in execution order.

        A kernel called twice is there twice. The callback adds microseconds to each.
        """
        times: list[tuple[str, float]] = []
        started = 0.0

        def around(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
            nonlocal started
            now = time.perf_counter()
            if before:
                started = now
            else:
                times.append((str(name), now - started))
            return 0

        with instrumented(self._machine, around):
            self.main(array)
        return times


@contextlib.contextmanager
def instrumented(machine: Any, around: Callable[..., int]) -> Iterator[None]:
    """Let a Relax executable call `around(function, name, before, result, *arguments)`.

    It is called before and after every kernel and built-in function inside; 0 means: go on.
    """
    machine["set_instrument"](load_runtime().convert(around))
    try:
        yield
    finally:
        # An instrument cannot be removed, and one in Python would slow every later call.
        machine["set_instrument"](load_runtime().get_global_func(_NO_INSTRUMENT))


def load_executable(library: bytes) -> Any:
    """The Relax executable in a shared library, not initialized.

    Raises:
        IntswinError: there is no space to unpack the library.
    """
    tvm_ffi = load_runtime()
    # dlopen keeps the mapping, so the file may go as soon as it is loaded.
    try:
        with tempfile.TemporaryDirectory(prefix="intswin-") as folder:
            path = Path(folder) / "library.so"
            path.write_bytes(library)
            module = tvm_ffi.load_module(path)
    except OSError as error:
        raise IntswinError(
            f"cannot unpack the library to {tempfile.gettempdir()}: {error.strerror or error}"
        ) from error
    return module["vm_load_executable"]()


def aligned_empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialized C-order array whose first byte is 64-byte aligned."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def use_all_cores() -> None:
    """Let TVM use every core unless the user's environment says otherwise.

    TVM's own default is fewer threads than cores, about 2x slower here. The variable is read when
    a thread first runs a kernel.
    """
    if not os.environ.get("TVM_NUM_THREADS") and not os.environ.get("OMP_NUM_THREADS"):
        os.environ["TVM_NUM_THREADS"] = str(usable_cores())


@functools.cache
def load_runtime() -> Any:
    """The module tvm_ffi, with libtvm_runtime.so loaded into the process."""
    use_all_cores()
    with _torch_hidden():
        import tvm_ffi  # noqa: PLC0415
    from tvm_ffi.libinfo import load_lib_ctypes  # noqa: PLC0415

    load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[_library_folder()])
    return tvm_ffi


@functools.cache
def load_cuda_runtime() -> Any:
    """The module tvm_ffi, with TVM's CUDA runtime; libcuda and libcudart are loaded already.

    Raises:
        IntswinError: TVM's library does not load with them.
    """
    tvm_ffi = load_runtime()
    path = _library_folder() / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise IntswinError(f"TVM's CUDA runtime cannot be loaded: {error}") from error
    return tvm_ffi


def _library_folder() -> Path:
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise IntswinError("the package apache-tvm is not installed; pip install intswin again")
    return Path(spec.origin).parent / "lib"


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Make `import torch` fail inside; nothing happens when torch is already there."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
