"""Targets by name, what they can do, and the versions of TVM that this package works with."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.target import Target, codegen

from intswin.compile.host_cpu import usable_cores
from intswin.compile.names import CPU_TARGETS, CUDA_TARGETS, known_target
from intswin.models.errors import IntswinError

TVM_VERSION = "0.27.0.post1"
TVM_FFI_VERSIONS = ("0.1.14.post0", "0.1.14.post1")  # 0.1.15 segfaults in MetaSchedule

# Cores that a cross-compiled CPU target is assumed to have; only the tuner reads it.
_CROSS_CORES = 4

# The CPU beside a GPU only launches kernels: code for any x86-64 CPU is as fast as its own.
_CUDA_HOST = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}


def get_target(name: str) -> Target:
    """The TVM target called `name`; "llvm" is the CPU of this machine.

    Raises:
        IntswinError: no such name.
    """
    if name == "llvm":
        host = {"mtriple": codegen.llvm_get_system_triple(), "mcpu": codegen.llvm_get_system_cpu()}
        return Target({"kind": "llvm", **host, "num-cores": usable_cores()})
    if name in CPU_TARGETS:
        return Target({"kind": "llvm", **CPU_TARGETS[name], "num-cores": _CROSS_CORES})
    arch, shared_memory, l2_cache = CUDA_TARGETS[known_target(name)]
    return Target(
        {
            "kind": "cuda",
            "arch": arch,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": shared_memory,
            "thread_warp_size": 32,
            "registers_per_block": 65536,
            "l2_cache_size_bytes": l2_cache,
            "host": _CUDA_HOST,
        }
    )


def has_vnni(target: Target) -> bool:
    """Whether `target` multiplies uint8 by int8 four at a time in 512-bit registers (vpdpbusd)."""
    return _has_features(target, ["avx512vnni", "avx512bw", "avx512vl"])


def has_avx2(target: Target) -> bool:
    """Whether `target` has 256-bit integer vectors."""
    return _has_features(target, ["avx2"])


def is_cuda(target: Target) -> bool:
    """Whether `target` is an NVIDIA GPU."""
    return target.kind.name == "cuda"


def cuda_arch(target: Target) -> int:
    """The compute capability of a CUDA target: 70, 75, 80, 89 or 90 (also for sm_90a)."""
    return int(str(target.attrs["arch"]).removeprefix("sm_").rstrip("af"))


def cuda_name(target: Target) -> str:
    """The name of a CUDA target, such as "cuda-h100"."""
    arch = str(target.attrs["arch"])
    names = (name for name, (known, _, _) in CUDA_TARGETS.items() if known == arch)
    return next(names, f"cuda-{arch}")


def has_mma(target: Target) -> bool:
    """Whether `target` multiplies int8 by tensor cores (mma.sync)."""
    return is_cuda(target) and cuda_arch(target) >= 75


def has_wgmma(target: Target) -> bool:
    """Whether the tensor cores of `target` multiply int8 from shared memory (wgmma): sm_90a."""
    return is_cuda(target) and str(target.attrs["arch"]) == "sm_90a"


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
