"""Compile one operator, and compare it with the reference."""

import importlib

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.target import Target, codegen

from cuda_emulator import emulate_network
from intswin.compile.build import build
from intswin.compile.schedules import apply_default_schedules
from intswin.compile.targets import get_target, has_avx2
from intswin.models.integer_ops import execute

# Those whose code this CPU can run; "plain" is this machine without any vector extension that the
# vector kernels look for.
TARGETS = ["llvm", *(["llvm-x86-64-v3"] if has_avx2(get_target("llvm")) else [])]
VECTOR_TARGETS = [*TARGETS, "plain"]


def named_target(name):
    if name == "plain":
        return Target({"kind": "llvm", "mtriple": codegen.llvm_get_system_triple()})
    return get_target(name)


def emit_operator(case, batch, target):
    """A module whose `main` is the operator alone."""
    operator = importlib.import_module(f"intswin.compile.operators.{case.node.op}")
    bb = relax.BlockBuilder()
    inputs = [
        relax.Var(f"x{i}", relax.TensorType([batch, *spec.shape], spec.dtype))
        for i, spec in enumerate(case.specs)
    ]
    with bb.function("main", inputs):
        with bb.dataflow():
            out = bb.emit_output(operator.emit(bb, case.node, inputs, batch, target))
        bb.emit_func_output(out)
    return bb.get()


def described_kernel(case, batch, target):
    """The description of the operator's CUDA kernel, as "main", and its constants in order."""
    mod = emit_operator(case, batch, target)
    (func,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    passed = mod["main"].body.blocks[0].bindings[0].value.args[1]
    constants = [c.value.numpy() for c in passed if isinstance(c, tvm.ir.GenericConst)]
    return func.with_attr("global_symbol", "main"), constants


def check_compiled(case, batch, target_name, runs):
    """The compiled operator gives what the reference does, for each list of inputs in `runs`."""
    target = named_target(target_name)
    executable = build(emit_operator(case, batch, target), target)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    for inputs in runs:
        actual = machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()
        np.testing.assert_array_equal(actual, execute(case.node, inputs), strict=True)


def check_emulated(case, target_name, inputs):
    """So does the operator's default CUDA kernel, emulated; races are errors."""
    target = get_target(target_name)
    mod = apply_default_schedules(emit_operator(case, len(inputs[0]), target), target)
    actual = emulate_network(mod, target, *inputs, races=True)
    np.testing.assert_array_equal(actual, execute(case.node, inputs), strict=True)
