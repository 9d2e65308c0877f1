"""TVM's lowering, less what takes half of its time for nothing.

CompactBufferAllocation looks at every access of every buffer, to make buffers smaller than they
were declared. Kernels that are written out (schedules/cuda_*.py) declare what they need, and have
thousands of accesses: 20 of the 39 seconds that swin_micro took to build for cuda-h100. It is left
out for them: they have no blocks, unlike what was scheduled.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_walk

_COMPACTION = "s_tir.CompactBufferAllocation"
# What TVM's pipeline (s_tir/pipeline.py) does up to there.
_UNTIL_COMPACTION = (
    s_tir.transform.CanonicalizeLoop,
    s_tir.transform.LowerCrossThreadReduction,
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.LiftThreadBinding,
    s_tir.transform.ManifestSharedMemoryLocalStage,
    s_tir.transform.CompactBufferAllocation,
)


def lower_with(pipeline: tvm.transform.Pass) -> tvm.transform.Pass:
    """`pipeline`, the lowering of TVM, without the compaction of kernels that have no blocks."""

    @tvm.transform.module_pass(opt_level=0, name="intswin.Lower")
    def lower(mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        scheduled = {gvar: func for gvar, func in mod.functions.items() if _has_blocks(func)}
        if len(scheduled) == len(mod.functions):
            return pipeline(mod)
        if scheduled:
            passes = [make() for make in _UNTIL_COMPACTION]
            compact = tvm.transform.Sequential(passes)(tvm.IRModule(scheduled))
            mod = tvm.IRModule({**mod.functions, **compact.functions}, attrs=mod.attrs)
        with tvm.transform.PassContext(
            opt_level=context.opt_level,
            required_pass=list(context.required_pass),
            disabled_pass=[*context.disabled_pass, _COMPACTION],
            instruments=list(context.instruments),
            config=dict(context.config),
        ):
            return pipeline(mod)

    return lower


def _has_blocks(func: tirx.PrimFunc) -> bool:
    found: list[s_tir.SBlock] = []
    structural_walk(func.body, (s_tir.SBlock, found.append))
    return bool(found)
