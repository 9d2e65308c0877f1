"""What code compiled for a CPU needs, and whether this machine has it.

Code that uses an instruction the CPU lacks dies with SIGILL, without a message. An artifact
therefore carries the instruction sets that its target allowed LLVM to use, and the runtime compares
them with this machine's before it loads the library.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

# The instruction sets that generated code may contain, by LLVM name and /proc/cpuinfo name. LLVM
# lists many more features; those describe costs or privileged instructions.
CPUINFO_NAMES = {
    **{name: name for name in ("sse2", "ssse3", "popcnt", "avx", "avx2", "fma", "f16c", "movbe")},
    **{name: name for name in ("adx", "bmi2", "gfni", "vaes", "vpclmulqdq")},
    **{f"avx512{part}": f"avx512{part}" for part in ("f", "cd", "bw", "dq", "vl", "ifma", "vbmi")},
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    # aarch64
    "neon": "asimd",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "lse": "atomics",
}


def requirements(target: tvm.target.Target) -> dict[str, Any]:
    """What a machine must be to run code compiled for the CPU `target`.

    Returns:
        {"kind": "llvm", "mcpu": LLVM's CPU name, "machine": as platform.machine() says,
        "features": names as /proc/cpuinfo spells them}
    """
    from tvm.target import codegen  # noqa: PLC0415  the runtime imports this file without tvm

    triple = str(target.attrs.get("mtriple", "")) or codegen.llvm_get_system_triple()
    features = {str(name) for name in codegen.llvm_get_cpu_features(target)}
    return {
        "kind": target.kind.name,
        "mcpu": str(target.attrs.get("mcpu", "")),
        "machine": triple.split("-")[0],
        "features": sorted(CPUINFO_NAMES[name] for name in features & set(CPUINFO_NAMES)),
    }


def missing(machine: str, features: list[str]) -> str:
    """Why this machine cannot run code with these requirements; empty when it can.

    Where /proc/cpuinfo does not exist only the machine is compared.
    """
    if machine != platform.machine():
        return f"it is for {machine} and this machine is {platform.machine()}"
    here = cpu_features()
    lacking = sorted(set(features) - here) if here else []
    return f"this CPU lacks {', '.join(lacking)}" if lacking else ""


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this CPU as /proc/cpuinfo lists them; empty where that does not exist."""
    return frozenset(_cpuinfo_line("flags|Features").split())


def cpu_name() -> str:
    """The model name of this CPU, for reports."""
    return _cpuinfo_line("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut to a container's CPU quota.

    TVM's workers spin while they wait, so more of them than the quota allows are throttled
    together.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores or 1


def _cpuinfo_line(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    line = re.search(rf"^(?:{name})\s*: *(.*)$", text, re.MULTILINE)
    return line.group(1).strip() if line else ""
