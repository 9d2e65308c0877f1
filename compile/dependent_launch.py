"""A TIR pass: on sm_90 and later a small kernel starts while the one before it still runs.

CUDA calls it programmatic dependent launch. A kernel that is launched so may start when every block
of the kernel before it in the stream has executed `wait_for_grid` or has ended; its own
`wait_for_grid` returns when that kernel has ended and its writes can be seen. Before that a kernel
touches nothing that others read or write, activations, but it may load weights and other constants,
which is what a kernel of a few microseconds gains most from. At most one kernel waits, because
one lets the next start only when it has waited itself.

By induction a kernel whose `wait_for_grid` has returned comes after all earlier ones: each of them
has waited for the one before it, or was launched when that had ended.

Large kernels do not start so: their blocks would fill the multiprocessors in the order in which the
kernel before leaves them, some with many blocks and some with few.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm.ir import Call, Op
from tvm_ffi import structural_walk

from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_tiles import starts_early
from intswin.compile.targets import cuda_arch

_DEVICE_FUNCTION_CALL, _WAIT = Op.get("tirx.cuda.func_call"), "intswin_wait_for_grid"
_LAUNCH_PARAMS = "tirx.kernel_launch_params"
_TAG = "tirx.use_programtic_dependent_launch"  # TVM's spelling
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"  # which has to be the last


@tvm.transform.module_pass(opt_level=0, name="intswin.StartEarly")
def start_early(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Launch the small kernels of a module so; runs where kernels are functions of their own.

    One that does not say where it waits does so first of all.
    """
    functions = {gvar: _started_early(func) for gvar, func in mod.functions.items()}
    return tvm.IRModule(functions, attrs=mod.attrs)


def _started_early(func: tirx.PrimFunc) -> tirx.PrimFunc:
    params = func.attrs.get(_LAUNCH_PARAMS) if func.attrs else None
    if params is None or not starts_early(cuda_arch(func.attrs["target"]), _blocks(func.body)):
        return func
    tags = [str(tag) for tag in params]
    at = len(tags) - (tags[-1] == _DYNAMIC_SHARED)
    func = func.with_attr(_LAUNCH_PARAMS, [*tags[:at], _TAG, *tags[at:]])
    if _waits(func.body):
        return func
    # By TVM's promise of no aliases CUDA's compiler may take what a kernel only reads for constant
    # and load it before `wait_for_grid`. Kernels that wait themselves use `load_activation`.
    func = func.without_attr("tirx.noalias")
    return func.with_body(tirx.SeqStmt([tirx.Evaluate(cuda.wait_for_grid()), func.body]))


def _blocks(body: tirx.Stmt) -> int:
    extents: dict[str, int] = {}

    def look(stmt: tirx.AttrStmt) -> None:
        if stmt.attr_key == "thread_extent" and stmt.node.thread_tag.startswith("blockIdx"):
            extents[str(stmt.node.thread_tag)] = int(stmt.value)

    structural_walk(body, (tirx.AttrStmt, look))
    return math.prod(extents.values())


def _waits(body: tirx.Stmt) -> bool:
    found = []

    def look(call: Call) -> None:
        if call.op == _DEVICE_FUNCTION_CALL and call.args[0].value == _WAIT:
            found.append(call)

    structural_walk(body, (Call, look))
    return bool(found)
