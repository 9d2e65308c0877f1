"""Machine code for NVIDIA GPUs, made on any machine: NVRTC instead of nvcc, no GPU, no driver.

TVM gives the CUDA source of all kernels to a callback and stores what it returns. Ours returns the
machine code (a cubin) and, where another GPU could use it, PTX beside it in one fatbin: the driver
takes the machine code where it fits and compiles the PTX elsewhere.

NVRTC comes from pip: release 12 for sm_70, which release 13 does not know, else release 13.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path

import tvm_ffi
from tvm.target import Target

from intswin.compile.cuda_stub_driver import load_cuda_backend
from intswin.compile.targets import cuda_arch
from intswin.models.errors import IntswinError

_OLDEST_OF_RELEASE_13 = 75
_CALLBACK = "tvm_callback_cuda_compile"


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """NVRTC and the headers that go with it.

    Attributes:
        nvrtc: the shared library.
        includes: folders of cuda_runtime.h and its like, and of CCCL (cuda/std).
    """

    nvrtc: Path
    includes: list[Path]


class KernelCompiler:
    """The callback that compiles TVM's CUDA source for one target.

    Attributes:
        error: what was wrong, if anything was: TVM passes an exception on without its type.
        used: whether TVM called it.
    """

    def __init__(self, target: Target) -> None:
        self._arch, self._toolkit = str(target.attrs["arch"]), find_toolkit(target)
        self._with_ptx = ptx_arch(target) is not None
        self.error: IntswinError | None = None
        self.used = False

    def install(self) -> None:
        """Let TVM compile by this object from now on."""
        load_cuda_backend()
        tvm_ffi.register_global_func(_CALLBACK, self._compile, override=True)

    def _compile(self, source: str) -> bytes:
        self.used = True
        try:
            cubin, ptx = compile_source(source, self._arch, self._toolkit)
            return fatbin(cubin, ptx, self._arch) if self._with_ptx else cubin
        except IntswinError as error:
            self.error = error
            raise


def check_installed(target: Target) -> None:
    """Find all that compiling for a CUDA target needs, before the work begins.

    Raises:
        IntswinError: NVRTC or nvFatbin is not installed.
    """
    find_toolkit(target)
    if ptx_arch(target) is not None:
        _load_nvfatbin(str(target.attrs["arch"]))


def ptx_arch(target: Target) -> str | None:
    """The PTX that a network's library holds for newer GPUs, such as "compute_70".

    None for sm_90a: that code may use what is in no other GPU.
    """
    arch = str(target.attrs["arch"])
    return None if arch[-1].isalpha() else arch.replace("sm_", "compute_")


def find_toolkit(target: Target) -> Toolkit:
    """NVRTC for a CUDA target.

    Raises:
        IntswinError: it is not installed; says which extra brings it.
    """
    release = 13 if cuda_arch(target) >= _OLDEST_OF_RELEASE_13 else 12
    for nvrtc, includes in _toolkits(release):
        headers = [folder / "cuda/std/cstdint" for folder in includes]  # TVM's source asks for it
        if nvrtc.is_file() and any(header.is_file() for header in headers):
            return Toolkit(nvrtc, includes)
    raise _missing(f"NVRTC {release} (with its headers)", str(target.attrs["arch"]), release)


def compile_source(source: str, arch: str, toolkit: Toolkit) -> tuple[bytes, bytes]:
    """Compile CUDA C++.

    Args:
        source: device code.
        arch: such as "sm_70".
        toolkit: of `find_toolkit`.

    Returns:
        the cubin, an ELF file, and the PTX that it was made from.

    Raises:
        IntswinError: the source is wrong; says the first error.
    """
    nvrtc = _Nvrtc(toolkit.nvrtc)
    options = [f"--gpu-architecture={arch}", "--device-as-default-execution-space"]
    options += [f"--include-path={folder}" for folder in toolkit.includes]
    program = nvrtc.create(source)
    try:
        if nvrtc.compile(program, options):
            raise IntswinError(
                f"the CUDA kernels do not compile for {arch}: {_first_error(nvrtc.log(program))}"
            )
        return nvrtc.result(program, "CUBIN"), nvrtc.result(program, "PTX")
    finally:
        nvrtc.destroy(program)


def fatbin(cubin: bytes, ptx: bytes, arch: str) -> bytes:
    """Put machine code and PTX into one file, as cuModuleLoadData takes it.

    Raises:
        IntswinError: nvFatbin is not installed.
    """
    library = _load_nvfatbin(arch)
    handle, size = c_void_p(), c_size_t()
    # Uncompressed, so that what a library holds can be read back (cuda_code.py).
    options = (c_char_p * 2)(b"-64", b"-compress=false")

    def call(name: str, *arguments: object) -> None:
        status = getattr(library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with {status}")

    number = arch.removeprefix("sm_").encode()
    call("nvFatbinCreate", byref(handle), options, c_size_t(len(options)))
    try:
        call("nvFatbinAddCubin", handle, cubin, c_size_t(len(cubin)), number, b"intswin")
        call("nvFatbinAddPTX", handle, ptx, c_size_t(len(ptx)), number, b"intswin", b"")
        call("nvFatbinSize", handle, byref(size))
        result = ctypes.create_string_buffer(size.value)
        call("nvFatbinGet", handle, result)
    finally:
        call("nvFatbinDestroy", byref(handle))
    return result.raw


class _Nvrtc:
    """The functions of nvrtc.h that are used. Wrong use raises RuntimeError."""

    def __init__(self, path: Path) -> None:
        # NVRTC opens this library by its name alone, and 13.0 does not look in its own folder.
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = c_char_p

    def create(self, source: str) -> c_void_p:
        program = c_void_p()
        text = source.encode()
        self._call("CreateProgram", byref(program), text, b"kernels.cu", 0, None, None)
        return program

    def compile(self, program: c_void_p, options: list[str]) -> int:
        """0 when the source is right."""
        array = (c_char_p * len(options))(*(option.encode() for option in options))
        return self._library.nvrtcCompileProgram(program, len(options), array)

    def log(self, program: c_void_p) -> str:
        return self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")

    def result(self, program: c_void_p, kind: str) -> bytes:
        return self._bytes(program, kind)

    def destroy(self, program: c_void_p) -> None:
        self._call("DestroyProgram", byref(program))

    def _bytes(self, program: c_void_p, name: str) -> bytes:
        size = c_size_t()
        self._call(f"Get{name}Size", program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{name}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{name}")(*arguments)
        if status:
            text = self._library.nvrtcGetErrorString(status).decode()
            raise RuntimeError(f"nvrtc{name}: {text}")


def _toolkits(release: int) -> Iterator[tuple[Path, list[Path]]]:
    """Where NVRTC may be: in pip's packages, or (release 13) in a toolkit."""
    name = f"libnvrtc.so.{release}"
    for folder in _pip_folders():
        if release == 12:
            includes = [folder / "cuda_runtime/include", folder / "cuda_cccl/include"]
            yield folder / "cuda_nvrtc/lib" / name, includes
        else:
            yield folder / "cu13/lib" / name, _with_cccl(folder / "cu13/include")
    for folder in _toolkit_folders():
        yield folder / "lib64" / name, _with_cccl(folder / "include")


def _load_nvfatbin(arch: str) -> ctypes.CDLL:
    name = "libnvfatbin.so.13"
    folders = [folder / "cu13/lib" for folder in _pip_folders()]
    folders += [folder / "lib64" for folder in _toolkit_folders()]
    for folder in folders:
        if (folder / name).is_file():
            return ctypes.CDLL(str(folder / name))
    raise _missing("nvFatbin", arch, 12 if arch == "sm_70" else 13)


def _missing(what: str, arch: str, release: int) -> IntswinError:
    return IntswinError(
        f"{what}, which compiles for {arch}, is not installed; "
        f"run: pip install 'intswin[cuda{release}]'"
    )


def _pip_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec is not None else []


def _toolkit_folders() -> list[Path]:
    named = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")]
    return [Path(folder) for folder in (*named, "/usr/local/cuda") if folder]


def _with_cccl(include: Path) -> list[Path]:
    return [include, include / "cccl"]


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line)]
    return next(iter(errors or lines), "NVRTC gives no reason")
