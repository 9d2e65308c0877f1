"""TVM's CUDA code generator on a machine without an NVIDIA driver.

TVM stores compiled CUDA code by its CUDA runtime library, which is linked to the driver's library,
libcuda.so.1; where that is missing `import tvm` skips the runtime, builds keep the source only and
do not say so. Compiling needs nothing of the driver, so a library of that name whose functions
all answer "no device" takes its place in this process. A real driver is never replaced.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import tvm_ffi
from tvm.base import _LOADED_LIBS
from tvm.support.cc import get_cc
from tvm_ffi.libinfo import load_lib_ctypes

from intswin.compile.cuda_driver import load_runtime_library
from intswin.models.errors import IntswinError

_DRIVER = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE of cuda.h
# What libtvm_runtime_cuda.so uses of the driver: nm -D --undefined-only lists all but the last.
_FUNCTIONS = (
    *("cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString"),
    *("cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload"),
    "cuTensorMapEncodeTiled",
    "cuInit",  # cuda_driver.py asks it whether there is a GPU
)


@functools.cache
def load_cuda_backend() -> None:
    """Make TVM able to store compiled CUDA code, unless `import tvm` has done so.

    Raises:
        IntswinError: there is no libcudart.so.13, or no C compiler.
    """
    if tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None:
        return
    load_runtime_library()
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        _load_stub()
    folder = Path(_LOADED_LIBS["tvm_runtime"]._name).resolve().parent
    load_lib_ctypes("tvm", "tvm_runtime_cuda", "RTLD_LOCAL", extra_lib_paths=[folder])


def _load_stub() -> None:
    compiler = get_cc()
    if not compiler:
        raise IntswinError("compiling for a GPU needs a C compiler: install gcc")
    with tempfile.TemporaryDirectory(prefix="intswin-") as folder:
        source, library = Path(folder) / "stub.c", Path(folder) / _DRIVER
        source.write_text(
            "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _FUNCTIONS)
        )
        # The name in the library is what the linker knows a loaded library by.
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{_DRIVER}", "-o", library]
        command += ["-x", "c", source]  # TVM's choice of a compiler may be g++
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise IntswinError(f"the C compiler {compiler} does not work: {lines[-1]}") from error
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
