"""Run what `emit` made: the PrimFuncs of a Relax function in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from cuda_emulator.emulate import emulate_program
from cuda_emulator.errors import EmulationError
from cuda_emulator.lowering import Program, lower


def emulate_network(
    mod: tvm.IRModule,
    target: Target,
    *inputs: np.ndarray,
    races: bool = False,
    on_kernel: Callable[[str, np.ndarray], None] | None = None,
) -> np.ndarray:
    """What the function "main" of a scheduled module returns.

    Args:
        mod: by `emit`, or of one operator, with CUDA schedules.
        target: what it was emitted and scheduled for.
        inputs: one for each parameter of "main".
        races: as in `emulate`.
        on_kernel: called with the name and the output of each PrimFunc that has run.

    Raises:
        EmulationError: a kernel is wrong, or "main" does more than call_tir and reshape.
    """
    main = mod["main"]
    values = list(zip(main.params, inputs, strict=True))
    programs: dict[str, Program] = {}

    def value_of(expr: relax.Expr) -> np.ndarray:
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        return next(array for var, array in values if var.same_as(expr))

    def result_of(binding: relax.VarBinding) -> np.ndarray:
        call = binding.value
        if isinstance(call, tvm.ir.Var):
            return value_of(call)
        shape = tuple(int(extent) for extent in binding.var.ty.shape)
        if call.op == tvm.ir.Op.get("relax.reshape"):
            return value_of(call.args[0]).reshape(shape)
        if call.op != tvm.ir.Op.get("relax.call_tir"):
            raise EmulationError(f"main calls {call.op}, which is not emulated")
        gvar, arguments = call.args[0], call.args[1]
        name = gvar.name_hint
        if name not in programs:
            programs[name] = lower(mod[gvar], target)
        out = np.empty(shape, str(binding.var.ty.dtype))
        arrays = [*(value_of(argument) for argument in arguments), out]
        constant = [isinstance(argument, tvm.ir.GenericConst) for argument in arguments]
        activations = [i for i, fixed in enumerate(constant) if not fixed]
        try:
            emulate_program(programs[name], target, arrays, races=races, activations=activations)
        except EmulationError as error:
            raise EmulationError(f"{name}: {error}") from error
        if on_kernel is not None:
            on_kernel(name, out)
        return out

    for block in main.body.blocks:
        for binding in block.bindings:
            values.append((binding.var, result_of(binding)))
    return value_of(main.body.body)
