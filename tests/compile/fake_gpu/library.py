"""Compile the fake libcudart.so.13 and libcuda.so.1, against CUDA's own headers."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from intswin.compile import cuda_driver
from intswin.compile.cuda_toolchain import find_toolkit
from intswin.compile.targets import get_target

_HERE = Path(__file__).parent
_RUNTIME, _DRIVER = "libcudart.so.13", "libcuda.so.1"
_FLAGS = ("-fPIC", "-w", "-g1", "-O1")
_NOT_SUPPORTED = 801  # cudaErrorNotSupported


@functools.cache
def build() -> Path:
    """The folder with both libraries; equal sources are compiled once.

    Raises:
        IntswinError: CUDA's headers are not installed.
        RuntimeError: g++ does not compile them.
    """
    includes = find_toolkit(get_target("cuda-h100")).includes
    sources = sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h"), Path(__file__)])
    sources.append(_HERE.parent / "cuda_emulator/include/launch.h")
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:32]
    base = Path(tempfile.gettempdir()) / f"intswin-fake-gpu-{getpass.getuser()}"
    base.mkdir(mode=0o700, exist_ok=True)
    folder = base / key
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=base) as name:
            scratch = Path(name)
            _compile(scratch, includes)
            try:
                os.rename(scratch, folder)
            except OSError:  # another process was as fast
                return folder
            scratch.mkdir()  # what the context manager removes
    return folder


def _compile(folder: Path, includes: list[Path]) -> None:
    """Into `folder`; the driver's functions are in the runtime's library, which its own loads."""
    flags = ["-std=c++20", *(f"-I{path}" for path in (_HERE / "include", *includes))]
    objects = []
    for source in _HERE.glob("*.cpp"):
        objects.append(folder / f"{source.stem}.o")
        _run(*_FLAGS, *flags, "-c", source, "-o", objects[-1])
    # TVM and torch ask for symbols of the version "libcudart.so.13".
    version = [f"-Wl,-soname,{_RUNTIME}", "-Wl,--default-symver"]
    rest = folder / "rest.c"
    rest.write_text(_rest())
    _run(*_FLAGS, "-x", "c", "-c", rest, "-o", folder / "rest.o")
    objects.append(folder / "rest.o")
    _run("-shared", *_FLAGS, *version, *objects, "-o", folder / _RUNTIME)
    (folder / "empty.c").touch()
    own = [f"-Wl,-soname,{_DRIVER}", "-Wl,--no-as-needed", f"-L{folder}", f"-l:{_RUNTIME}"]
    _run("-shared", *_FLAGS, folder / "empty.c", *own, "-Wl,-rpath,$ORIGIN", "-o", folder / _DRIVER)


def _rest() -> str:
    """Weak functions for all of CUDA's runtime, so that what is linked to it can be loaded."""
    real = next(path for path in cuda_driver._runtime_paths() if path.is_file())
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", real], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r" T (\w+)", listed)
    return "".join(
        f"__attribute__((weak)) int {name}(void) {{ return {_NOT_SUPPORTED}; }}\n" for name in names
    )


def _run(*command: object) -> None:
    result = subprocess.run(
        ["g++", *map(str, command)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
