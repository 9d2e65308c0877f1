"""The proof that a module computes in integers alone.

It is given on what LLVM or the CUDA code generator receives: the TIR after every lowering pass,
whose every expression, buffer, variable and constant has a type; and on the Relax function that
calls the kernels. Device functions, CUDA source that a kernel calls, are those of
schedules/cuda_device_functions.py and no others: each is a few instructions on integers, to be
read.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection
from typing import Any

import tvm
from tvm import ir, tirx
from tvm_ffi import structural_walk

from intswin.compile.schedules import cuda_device_functions

# Relax operators that call a kernel of the module or only look at a tensor differently.
_RELAX_OPS = {"relax.call_tir", "relax.reshape"}
# Calls that leave the module: what they compute cannot be seen.
_EXTERNAL_CALLS = re.compile(
    r"tirx\.(call_(pure_)?extern|call_c?packed|tvm_call|call_ffi|cuda\.|ptx)"
)
_LAUNCH = "tirx.tvm_call_packed_lowered"
_DEVICE_FUNCTION_CALL = "tirx.cuda.func_call"
_OPERATIONS = (
    *(tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod),
    *(tirx.Min, tirx.Max, tirx.LShift, tirx.RShift, tirx.BitwiseAnd, tirx.BitwiseOr),
    *(tirx.BitwiseXor, tirx.BitwiseNot, tirx.Cast, tirx.Select, ir.TensorLoad, ir.Call),
)


class FloatOperationError(Exception):
    """A module that should compute in integers does not, or calls what cannot be checked."""


@dataclasses.dataclass
class IntegerOnlyReport:
    """What was checked.

    Attributes:
        functions: names of the kernels.
        operations: arithmetic, loads and intrinsics in their code by the type of the result, such
            as "int32"; a vector operation counts once, and so does the body of a loop.
        device_functions: calls of each device function (GPU kernels only).
    """

    functions: list[str]
    operations: dict[str, int]
    device_functions: dict[str, int] = dataclasses.field(default_factory=dict)


def verify_integer_only(
    mod: tvm.IRModule, launched: Collection[str] = (), float_kernels: str | None = None
) -> IntegerOnlyReport:
    """Check every function of `mod`, PrimFuncs and Relax functions.

    Args:
        mod: the module.
        launched: what the PrimFuncs may call by name: a GPU's kernels, which are checked too.
        float_kernels: how the names of PrimFuncs start that are neither checked nor reported; for
            comparisons with other ways (compile/separate_gelu.py), never for a network of ours.

    Raises:
        FloatOperationError: names the function and the operation.
    """
    counts: collections.Counter[str] = collections.Counter()
    called: collections.Counter[str] = collections.Counter()
    names = []
    for gvar, func in mod.functions.items():
        name = str(gvar.name_hint)
        is_kernel = isinstance(func, tirx.PrimFunc)
        if is_kernel and float_kernels is not None and name.startswith(float_kernels):
            continue
        found = _walk(func, is_kernel, launched, counts, called)
        if found:
            raise FloatOperationError(f"{name}: {found}")
        if is_kernel:
            names.append(name)
    return IntegerOnlyReport(
        sorted(names), dict(sorted(counts.items())), dict(sorted(called.items()))
    )


def _walk(
    func: Any,
    is_kernel: bool,
    launched: Collection[str],
    counts: collections.Counter[str],
    called: collections.Counter[str],
) -> str:
    """What is wrong with `func`, the operation rather than the variables it touches; or nothing."""
    variables: list[str] = []
    operations: list[str] = []

    def check(value: Any) -> None:
        dtype = _dtype(value)
        if _is_float(dtype):
            found = variables if isinstance(value, tirx.Var) else operations
            found.append(f"{dtype} in {_describe(value)}")
        elif isinstance(value, ir.Call) and _is_foreign(value, is_kernel, launched):
            operations.append(f"a call that cannot be checked, {_describe(value)}")
        if isinstance(value, ir.Call) and _name(value) == _DEVICE_FUNCTION_CALL:
            called[str(value.args[0].value)] += 1
        elif is_kernel and dtype and _computes(value):
            counts[re.sub(r"x\d+$", "", dtype)] += 1

    structural_walk(func, check)
    return next(iter(operations + variables), "")


def _computes(value: Any) -> bool:
    return isinstance(value, _OPERATIONS) and isinstance(value.ty, ir.PrimType)


def _dtype(value: Any) -> str:
    """The element type of an expression, a variable or what a pointer points to; "" for others."""
    type_ = getattr(value, "ty", None)
    type_ = getattr(type_, "element_type", type_)
    return str(getattr(type_, "dtype", ""))


def _is_float(dtype: str) -> bool:
    return "float" in dtype or dtype.startswith("tf32")


def _is_foreign(call: ir.Call, is_kernel: bool, launched: Collection[str]) -> bool:
    name = _name(call)
    if not is_kernel:
        return name not in _RELAX_OPS
    if name == _LAUNCH:
        return str(getattr(call.args[0], "value", "")) not in launched
    if name == _DEVICE_FUNCTION_CALL:
        function, source = str(call.args[0].value), str(call.args[-1].value)
        known = function in cuda_device_functions.DEVICE_FUNCTIONS
        return not known or source != cuda_device_functions.source_of(function)
    return bool(_EXTERNAL_CALLS.match(name))


def _name(call: ir.Call) -> str:
    return str(getattr(call.op, "name", call.op))


def _describe(value: Any) -> str:
    text = str(value).split("\n# Metadata omitted")[0]
    text = re.sub(r"\s+", " ", text).strip()
    return f"{type(value).__name__} {text[:200]}"
