"""Targets by name, what they can do, and the versions of TVM that this package works with."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm.target import Target, codegen

from intswin.compile.host_cpu import usable_cores
from intswin.models.errors import IntswinError

TVM_VERSION = "0.27.0.post1"
TVM_FFI_VERSIONS = ("0.1.14.post0", "0.1.14.post1")  # 0.1.15 segfaults in MetaSchedule

# Cores that a cross-compiled CPU target is assumed to have; only the tuner reads it.
_CROSS_CORES = 4

_CPU_TARGETS: dict[str, dict[str, Any]] = {
    "llvm-x86-64-v3": {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "llvm-aarch64": {"mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon"]},
}
_CUDA_NAMES = ("cuda-v100", "cuda-t4", "cuda-a100", "cuda-rtx4090", "cuda-h100")

TARGET_NAMES = ("llvm", *_CPU_TARGETS, *_CUDA_NAMES)


def get_target(name: str) -> Target:
    """The TVM target called `name`; "llvm" is the CPU of this machine.

    Raises:
        IntswinError: no such name, or a GPU target, which cannot be compiled for yet.
    """
    if name in _CUDA_NAMES:
        usable = ", ".join(n for n in TARGET_NAMES if n not in _CUDA_NAMES)
        raise IntswinError(f"target {name} is not available yet; available: {usable}")
    if name == "llvm":
        host = {"mtriple": codegen.llvm_get_system_triple(), "mcpu": codegen.llvm_get_system_cpu()}
        return Target({"kind": "llvm", **host, "num-cores": usable_cores()})
    if name in _CPU_TARGETS:
        return Target({"kind": "llvm", **_CPU_TARGETS[name], "num-cores": _CROSS_CORES})
    raise IntswinError(f"unknown target {name!r}; known: {', '.join(TARGET_NAMES)}")


def has_vnni(target: Target) -> bool:
    """Whether `target` multiplies uint8 by int8 four at a time in 512-bit registers (vpdpbusd)."""
    return _has_features(target, ["avx512vnni", "avx512bw", "avx512vl"])


def has_avx2(target: Target) -> bool:
    """Whether `target` has 256-bit integer vectors."""
    return _has_features(target, ["avx2"])


def check_versions() -> None:
    """Refuse versions of TVM that this package was not tested with.

    Raises:
        IntswinError: what is installed and what to install.
    """
    # A build number after "+" or ".dev" would be another build of TVM, so compare all of it.
    if tvm.__version__ != TVM_VERSION or tvm_ffi.__version__ not in TVM_FFI_VERSIONS:
        raise IntswinError(
            f"apache-tvm {tvm.__version__} with apache-tvm-ffi {tvm_ffi.__version__} is installed;"
            f" run pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={TVM_FFI_VERSIONS[-1]}"
        )


def _has_features(target: Target, features: list[str]) -> bool:
    return target.kind.name == "llvm" and bool(codegen.target_has_features(features, target))
