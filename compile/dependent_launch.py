"""A TIR pass: on sm_90 and later a kernel starts while the one before it still runs.

CUDA calls it programmatic dependent launch. A kernel with the launch attribute may start as soon as
every block of the kernel before it in the stream has executed `launch_dependents` or has ended; its
`wait_for_grid` returns when that kernel has ended and its writes can be seen. Every kernel here
executes `launch_dependents` first of all, and `wait_for_grid` before it touches anything that
another kernel reads or writes: activations. Weights and other constants may be loaded before, which
is what a kernel of a few microseconds gains most from.

By induction a kernel whose `wait_for_grid` has returned comes after all earlier ones: each of them
has waited for the one before it.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import Call, Op
from tvm_ffi import structural_walk

from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_tiles import FIRST_WITH_DEPENDENT_LAUNCH
from intswin.compile.targets import cuda_arch

_DEVICE_FUNCTION_CALL, _WAIT = Op.get("tirx.cuda.func_call"), "intswin_wait_for_grid"
_LAUNCH_PARAMS = "tirx.kernel_launch_params"
_TAG = "tirx.use_programtic_dependent_launch"  # TVM's spelling
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"  # which has to be the last


@tvm.transform.module_pass(opt_level=0, name="intswin.LaunchDependents")
def launch_dependents(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Launch the kernels of a module so; runs where kernels are functions of their own.

    One that does not say where it waits does so at once.
    """
    functions = {gvar: _dependent(func) for gvar, func in mod.functions.items()}
    return tvm.IRModule(functions, attrs=mod.attrs)


def _dependent(func: tirx.PrimFunc) -> tirx.PrimFunc:
    params = func.attrs.get(_LAUNCH_PARAMS) if func.attrs else None
    if params is None or cuda_arch(func.attrs["target"]) < FIRST_WITH_DEPENDENT_LAUNCH:
        return func
    tags = [str(tag) for tag in params]
    at = len(tags) - (tags[-1] == _DYNAMIC_SHARED)
    func = func.with_attr(_LAUNCH_PARAMS, [*tags[:at], _TAG, *tags[at:]])
    if _waits(func.body):
        return func
    # By TVM's promise of no aliases CUDA's compiler may take what a kernel only reads for constant
    # and load it before `wait_for_grid`. Kernels that wait themselves use `load_activation`.
    func = func.without_attr("tirx.noalias")
    first = [tirx.Evaluate(cuda.launch_dependents()), tirx.Evaluate(cuda.wait_for_grid())]
    return func.with_body(tirx.SeqStmt([*first, func.body]))


def _waits(body: tirx.Stmt) -> bool:
    found = []

    def look(call: Call) -> None:
        if call.op == _DEVICE_FUNCTION_CALL and call.args[0].value == _WAIT:
            found.append(call)

    structural_walk(body, (Call, look))
    return bool(found)
