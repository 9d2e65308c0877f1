"""Targets and activations by name, without TVM or torch: a wrong name is known at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intswin.models.errors import IntswinError

ACTIVATIONS = ("relu", "igelu", "shiftgelu")

CPU_TARGETS: dict[str, dict[str, Any]] = {
    "llvm-x86-64-v3": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "llvm-aarch64": {"mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon"]},
}
# The card's compute capability, the most shared memory that a block may ask for (dynamic; the
# CUDA C++ Programming Guide's table of compute capabilities) and the L2 cache, in bytes.
CUDA_TARGETS: dict[str, tuple[str, int, int]] = {
    "cuda-v100": ("sm_70", 96 * 1024, 6 << 20),
    "cuda-t4": ("sm_75", 64 * 1024, 4 << 20),
    "cuda-a100": ("sm_80", 163 * 1024, 40 << 20),
    "cuda-rtx4090": ("sm_89", 99 * 1024, 72 << 20),
    "cuda-h100": ("sm_90a", 227 * 1024, 50 << 20),
}
TARGET_NAMES = ("llvm", *CPU_TARGETS, *CUDA_TARGETS)


def known_activation(name: str) -> str:
    """`name`. Raises IntswinError where no activation is called so."""
    return _known("activation", name, ACTIVATIONS)


def known_target(name: str) -> str:
    """`name`. Raises IntswinError where no target is called so."""
    return _known("target", name, TARGET_NAMES)


def _known(kind: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise IntswinError(f"unknown {kind} {name!r}; use one of: {', '.join(names)}")
    return name
