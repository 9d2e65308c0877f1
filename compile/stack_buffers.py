"""A TIR pass: small arrays of a kernel live on the stack.

TVM takes arrays above 1024 bytes from its workspace pool, once an iteration of the parallel loop
that needs them, and LLVM cannot keep such memory in registers: a 7 x 48 register tile lost 16 %.
"""

from __future__ import annotations

import math
import re

import tvm
from tvm import tirx
from tvm_ffi import structural_map

_MAX_BYTES = 16384


@tvm.transform.module_pass(opt_level=0, name="intswin.KeepSmallBuffersOnStack")
def keep_small_buffers_on_stack(
    mod: tvm.IRModule, _context: tvm.transform.PassContext
) -> tvm.IRModule:
    """Mark the allocations; runs before `tirx.transform.LowerTVMBuiltin`."""
    functions = {
        gvar: func.with_body(structural_map(func.body, (tirx.AllocBuffer, _mark)))
        for gvar, func in mod.functions.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def _mark(alloc: tirx.AllocBuffer) -> tirx.AllocBuffer:
    buffer = alloc.buffer
    bits = math.prod(int(number) for number in re.findall(r"\d+", str(buffer.dtype)))  # int32x16
    size = math.prod(int(extent) for extent in buffer.shape) * bits // 8
    if size > _MAX_BYTES:
        return alloc
    return tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.const(True, "bool")})
