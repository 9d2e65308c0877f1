"""Run a whole emitted network: the PrimFuncs of its Relax function in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from cuda_emulator.emulate import emulate
from cuda_emulator.errors import EmulationError


def emulate_network(
    mod: tvm.IRModule,
    target: Target,
    image: np.ndarray,
    on_kernel: Callable[[str, np.ndarray], None] | None = None,
) -> np.ndarray:
    """The logits of a module that `emit` made and `apply_default_schedules` scheduled.

    `on_kernel(name, output)` is called after each PrimFunc.

    Raises:
        EmulationError: a kernel is wrong, or `main` does more than call_tir and a last reshape.
    """
    main = mod["main"]
    values: list[tuple[relax.Var, np.ndarray]] = [(main.params[0], image)]

    def value_of(expr: relax.Expr) -> np.ndarray:
        if isinstance(expr, relax.Constant):
            return expr.data.numpy()
        return next(array for var, array in values if var.same_as(expr))

    for block in main.body.blocks:
        for binding in block.bindings:
            values.append((binding.var, _run(mod, target, binding, value_of, on_kernel)))
    return value_of(main.body.body)


def _run(mod, target, binding, value_of, on_kernel) -> np.ndarray:
    call = binding.value
    if isinstance(call, relax.Var):
        return value_of(call)
    shape = tuple(int(extent) for extent in binding.var.ty.shape)
    if call.op == tvm.ir.Op.get("relax.reshape"):
        return value_of(call.args[0]).reshape(shape)
    if call.op != tvm.ir.Op.get("relax.call_tir"):
        raise EmulationError(f"the network calls {call.op}, which is not emulated")
    gvar, inputs = call.args[0], call.args[1]
    out = np.empty(shape, str(binding.var.ty.dtype))
    emulate(mod[gvar], target, [*(value_of(x) for x in inputs), out])
    if on_kernel is not None:
        on_kernel(gvar.name_hint, out)
    return out
