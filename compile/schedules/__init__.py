"""Default schedules: a deterministic one for every PrimFunc that `emit` makes."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx
from tvm.target import Target

from intswin.compile.schedules import cuda_elementwise, cuda_kernels
from intswin.compile.schedules.elementwise import (
    schedule_mean_pool,
    schedule_patchify,
    schedule_rows,
)
from intswin.compile.schedules.gemm import schedule_linear
from intswin.compile.targets import is_cuda

# By the attribute "intswin.op". Each schedules the function "main" of the schedule it is given.
_CPU_SCHEDULES: dict[str, Callable[[s_tir.Schedule, Target], None]] = {
    "linear": schedule_linear,
    "patchify": schedule_patchify,
    "mean_pool": schedule_mean_pool,
    "gather_rows": schedule_rows,
    "add_constant": schedule_rows,
    "separate_gelu": schedule_rows,  # of comparisons only
}

_CUDA_SCHEDULES: dict[str, Callable[[s_tir.Schedule, Target], None]] = {
    "patchify": cuda_elementwise.schedule_patchify,
    "mean_pool": cuda_elementwise.schedule_mean_pool,
    "gather_rows": cuda_elementwise.schedule_gather_rows,
    "add_constant": cuda_elementwise.schedule_add_constant,
}


def apply_default_schedules(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Schedule every PrimFunc with the attribute "intswin.op" that is not scheduled already."""
    scheduled = {}
    for gvar, func in mod.functions.items():
        if not isinstance(func, tirx.PrimFunc) or "tirx.is_scheduled" in func.attrs:
            continue
        if "intswin.op" in func.attrs:
            scheduled[gvar] = _schedule(func, target)
    mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gvar, func in scheduled.items():
        mod[gvar] = func
    return mod


def _schedule(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    op = str(func.attrs["intswin.op"])
    sch = s_tir.Schedule(func)
    if not is_cuda(target):
        _CPU_SCHEDULES[op](sch, target)
    elif op in cuda_kernels.OPERATORS:  # the kernel is written from what was decided
        cuda_kernels.schedule(sch, target)
        return cuda_kernels.kernel(sch.mod["main"], target)
    else:
        _CUDA_SCHEDULES[op](sch, target)
    return sch.mod["main"]
