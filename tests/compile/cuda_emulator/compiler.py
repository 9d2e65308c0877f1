"""CUDA C++ to a shared library by g++; equal sources are compiled once."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cuda_emulator.errors import EmulationError
from cuda_emulator.ptx import without_ptx

_INCLUDE = Path(__file__).parent / "include"
_STUBS = ("cuda.h", "sm_61_intrinsics.h")  # what TVM's code includes: nothing of it is needed
_SANITIZE = "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero"
_FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fwrapv",  # as on the GPU
    "-fno-strict-aliasing",
    # A call of the barrier runs other threads: nothing may be concluded from its own code.
    *("-fno-ipa-reference", "-fno-ipa-modref", "-fno-ipa-pure-const", "-fno-ipa-ra"),
    "-U_FORTIFY_SOURCE",  # it forbids longjmp between stacks
    "-w",
    _SANITIZE,
    "-fno-sanitize-recover=all",
]
_RACES = ["-fsanitize=thread", "-DEMU_RACES"]
_EXTERN_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*|alignas\(\d+\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\];"
)
_ALIGNED_SHARED = re.compile(r"__shared__\s+alignas\(")


def compile_kernels(
    source: str, kernels: Sequence[str], arch: int, races: bool = False
) -> ctypes.CDLL:
    """A library with `int emulate_<kernel>(const emu::Launch*, void** arguments)` for each kernel.

    `races`: with a call of include/races.h at every access.

    Raises:
        EmulationError: g++ does not compile the source; the message has its first errors.
    """
    text = _EXTERN_SHARED.sub(r"\1* \2 = (\1*)emu::dynamic_shared;", without_ptx(source))
    text = _ALIGNED_SHARED.sub("__shared__ __align__(", text)  # alignas there is nvcc's extension
    entries = [
        f'extern "C" int emulate_{name}(const emu::Launch* launch, void** arguments) '
        f"{{ return emu::run(*launch, {name}, arguments); }}"
        for name in kernels
    ]
    text = "\n".join(['#include "emulator.h"', '#line 1 "kernel.cu"', text, *entries])
    flags = [*_FLAGS, f"-D__CUDA_ARCH__={arch}0", *(_RACES if races else [])]
    return _library(text, tuple(flags))


@functools.cache
def _library(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    headers = "".join(path.read_text() for path in sorted(_INCLUDE.glob("*.h")))
    key = hashlib.sha256("\n".join([text, headers, *flags]).encode()).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"intswin-cuda-emulator-{getpass.getuser()}"
    library = folder / f"{key[:32]}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            os.replace(_compile(text, flags, Path(scratch)), library)
    return ctypes.CDLL(str(library))


def _compile(text: str, flags: tuple[str, ...], scratch: Path) -> Path:
    for stub in _STUBS:
        (scratch / stub).touch()
    (scratch / "kernel.cpp").write_text(text)
    include = ["-I", str(_INCLUDE), "-I", str(scratch)]
    # In two steps: the link must not add the sanitizers' own libraries.
    commands = [
        ["g++", *flags, *include, "-c", "kernel.cpp", "-o", "kernel.o"],
        ["g++", "-shared", "kernel.o", "-o", "kernel.so"],
    ]
    for command in commands:
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error" in line]
            raise EmulationError("g++: " + "; ".join(errors[:3] or result.stderr.splitlines()[:3]))
    return scratch / "kernel.so"
