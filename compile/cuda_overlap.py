"""A kernel is launched while the one before it ends: programmatic dependent launch, sm_90.

One after the other, a kernel is launched when the last block of the kernel before it has ended,
which leaves the GPU idle for about a microsecond, and a network of small kernels for a third of its
time. Here a kernel is launched when all blocks of the one before have started. Each of its blocks
first lets the next kernel be launched, and then waits until the kernel before has ended and what
it wrote can be seen. Nothing is read or written before that, so the order of all memory accesses
is what it was: a kernel ends only after the one before it has, and so on back to the first.

CUDA programming guide, "Programmatic Dependent Launch and Synchronization".
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.target import Target

from intswin.compile.schedules.cuda_intrinsics import after_previous_kernel
from intswin.compile.targets import cuda_arch

_OLDEST = 90
_PARAMETERS = "tirx.kernel_launch_params"
_TAG = "tirx.use_programtic_dependent_launch"  # as TVM spells it
_LAST_TAG = "tirx.use_dyn_shared_memory"  # TVM wants it last


def overlap_launches(target: Target) -> list[tvm.transform.Pass]:
    """The pass for the kernels of a target, behind the split of host and device; none before sm_90.

    Kernels that do not run behind each other in one stream are not affected: the stream's order
    holds at both ends of the sequence.
    """
    return [_overlap] if cuda_arch(target) >= _OLDEST else []


@tirx.transform.prim_func_pass(opt_level=0)
def _overlap(
    func: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext
) -> tirx.PrimFunc:
    if _PARAMETERS not in func.attrs:
        return func  # the host's
    tags = [str(tag) for tag in func.attrs[_PARAMETERS]]
    place = tags.index(_LAST_TAG) if _LAST_TAG in tags else len(tags)
    body = tirx.SeqStmt([tirx.Evaluate(after_previous_kernel()), func.body])
    return func.with_body(body).with_attr(_PARAMETERS, [*tags[:place], _TAG, *tags[place:]])
