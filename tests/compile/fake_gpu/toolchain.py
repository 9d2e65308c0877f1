"""`cuda_toolchain.py` with g++ and the emulator in the place of NVRTC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cuda_emulator.compiler import compile_kernels
from fake_gpu import image
from intswin.compile.cuda_toolchain import Toolkit

_KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(")


def install(toolchain: Any) -> None:
    """Replace what compiles in the module cuda_toolchain."""
    toolchain.compile_source = compile_source
    toolchain.fatbin = lambda cubin, ptx, _arch: image.fatbin(cubin, ptx)
    toolchain.find_toolkit = lambda _target: Toolkit(Path(), [])
    toolchain.check_installed = lambda _target: None


def compile_source(source: str, arch: str, _toolkit: Toolkit) -> tuple[bytes, bytes]:
    """As cuda_toolchain.compile_source: a cubin of `image.py`, and PTX."""
    kernels = sorted(set(_KERNEL.findall(source)))
    number = int(re.sub(r"\D", "", arch))
    library = Path(compile_kernels(source, kernels, number)._name).read_bytes()
    return image.cubin(library, number, kernels), image.ptx(number, kernels)
