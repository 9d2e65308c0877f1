"""CUDA C++ to a shared library by g++; equal sources are compiled once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cuda_emulator.errors import EmulationError
from cuda_emulator.ptx import without_ptx

_INCLUDE = Path(__file__).parent / "include"
_FIRST_LINE = '#line 1 "kernel.cu"\n'
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
    "-ftrivial-auto-var-init=pattern",  # fresh stacks hold zeros, unlike a GPU's registers
    "-g1",  # line numbers
    "-w",
    _SANITIZE,
    "-fno-sanitize-recover=all",
]
_RACES = ["-fsanitize=thread", "-DEMU_RACES"]
_EXTERN_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__|alignas)?(?:\((\d+)\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\];"
)
_ALIGNED_SHARED = re.compile(r"__shared__\s+alignas\(")


def compile_kernels(
    source: str, kernels: Sequence[str], arch: int, races: bool = False
) -> ctypes.CDLL:
    """A library with `int emulate_<kernel>(const emu::Launch*, void** arguments)` for each kernel.

    `unsigned parameters_<kernel>` is the number of its arguments.

    `races`: with a call of include/races.h at every access.

    Raises:
        EmulationError: g++ does not compile the source; the message has its first errors.
    """
    alignments = [int(found[1] or 16) for found in _EXTERN_SHARED.finditer(source)]
    text = _EXTERN_SHARED.sub(r"\2* \3 = (\2*)emu::dynamic_shared;", without_ptx(source))
    text = _ALIGNED_SHARED.sub("__shared__ __align__(", text)  # alignas there is nvcc's extension
    entries = [
        f'extern "C" int emulate_{name}(const emu::Launch* launch, void** arguments) '
        f"{{ return emu::run(*launch, {name}, arguments); }}\n"
        f'extern "C" const unsigned parameters_{name} = emu::parameter_count({name});'
        for name in kernels
    ]
    text = "\n".join(
        [
            '#include "emulator.h"',
            f"const unsigned emu::kSharedAlignment = {max(alignments, default=16)};",
            f"#define __CUDA_ARCH__ {arch}0",
            '#line 1 "kernel.cu"',
            text,
            *entries,
        ]
    )
    return _library(text, (*_FLAGS, *(_RACES if races else [])))


def with_line(text: str, library: ctypes.CDLL) -> str:
    """An error message with the line of kernel.cu for the "(+address)" at its end."""
    match = re.search(r" \(\+(0x[0-9a-f]+)\)$", text)
    if match is None:
        return text
    command = ["addr2line", "-i", "-e", library._name, hex(int(match.group(1), 16) - 1)]
    frames = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = re.findall(r"kernel\.(?:cu|cpp):(\d+)", frames)
    source = Path(library._name).with_suffix(".cu")
    code = source.read_text().splitlines()[int(lines[-1]) - 1].strip() if lines else ""
    return text[: match.start()] + (f": {source}:{lines[-1]}: {code}" if lines else "")


@functools.cache
def _library(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    headers = _folder() / f"headers-{_key(_headers(), *flags)}"
    if not headers.exists():
        _make(headers, lambda scratch: _precompile(scratch, flags))
    library = _folder() / f"{_key(text, headers.name)}.so"
    if not library.exists():
        library.with_suffix(".cu").write_text(text.split(_FIRST_LINE)[1])
        _make(library, lambda scratch: _compile(text, flags, headers, scratch))
    return ctypes.CDLL(str(library))


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"intswin-cuda-emulator-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _headers() -> str:
    return "".join(path.read_text() for path in sorted(_INCLUDE.glob("*.h")))


def _make(path: Path, build: Callable[[Path], Path]) -> None:
    """`path` from what `build` makes in a scratch folder; another process may be as fast."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = build(Path(scratch))
        with contextlib.suppress(OSError):  # a folder that is there is not replaced
            os.replace(built, path)


def _precompile(scratch: Path, flags: tuple[str, ...]) -> Path:
    """A folder of the headers, precompiled: they cost more than most kernels."""
    shutil.copytree(_INCLUDE, scratch / "headers")
    for stub in _STUBS:
        (scratch / "headers" / stub).touch()
    _run(["g++", *flags, "-x", "c++-header", "emulator.h"], scratch / "headers")
    return scratch / "headers"


def _compile(text: str, flags: tuple[str, ...], headers: Path, scratch: Path) -> Path:
    (scratch / "kernel.cpp").write_text(text)
    # In two steps: the link must not add the sanitizers' own libraries.
    _run(["g++", *flags, "-I", str(headers), "-c", "kernel.cpp", "-o", "kernel.o"], scratch)
    _run(["g++", "-shared", "kernel.o", "-o", "kernel.so"], scratch)
    return scratch / "kernel.so"


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        raise EmulationError("g++: " + "; ".join(errors[:3] or result.stderr.splitlines()[:3]))
