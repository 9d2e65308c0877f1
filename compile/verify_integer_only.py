"""The proof that a module computes in integers alone.

It is given on what LLVM receives: the TIR after every lowering pass, whose every expression,
buffer, variable and constant has a type; and on the Relax function that calls the kernels.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import tvm
from tvm import ir, tirx
from tvm_ffi import structural_walk

# Relax operators that call a kernel of the module or only look at a tensor differently.
_RELAX_OPS = {"relax.call_tir", "relax.reshape"}
# Calls that leave the module: what they compute cannot be seen.
_EXTERNAL_CALLS = re.compile(r"tirx\.(call_(pure_)?extern|call_c?packed|tvm_call)")
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
    """

    functions: list[str]
    operations: dict[str, int]


def verify_integer_only(mod: tvm.IRModule) -> IntegerOnlyReport:
    """Check every function of `mod`, PrimFuncs and Relax functions.

    Raises:
        FloatOperationError: names the function and the operation.
    """
    counts: collections.Counter[str] = collections.Counter()
    names = []
    for gvar, func in mod.functions.items():
        name = str(gvar.name_hint)
        is_kernel = isinstance(func, tirx.PrimFunc)
        found = _walk(func, is_kernel, counts)
        if found:
            raise FloatOperationError(f"{name}: {found}")
        if is_kernel:
            names.append(name)
    return IntegerOnlyReport(sorted(names), dict(sorted(counts.items())))


def _walk(func: Any, is_kernel: bool, counts: collections.Counter[str]) -> str:
    """What is wrong with `func`, the operation rather than the variables it touches; or nothing."""
    variables: list[str] = []
    operations: list[str] = []

    def check(value: Any) -> None:
        dtype = _dtype(value)
        if _is_float(dtype):
            found = variables if isinstance(value, tirx.Var) else operations
            found.append(f"{dtype} in {_describe(value)}")
        elif isinstance(value, ir.Call) and _is_foreign(value, is_kernel):
            operations.append(f"a call that cannot be checked, {_describe(value)}")
        if is_kernel and isinstance(value, _OPERATIONS) and isinstance(value.ty, ir.PrimType):
            counts[re.sub(r"x\d+$", "", dtype)] += 1

    structural_walk(func, check)
    return next(iter(operations + variables), "")


def _dtype(value: Any) -> str:
    """The element type of an expression, a variable or what a pointer points to; "" for others."""
    type_ = getattr(value, "ty", None)
    type_ = getattr(type_, "element_type", type_)
    return str(getattr(type_, "dtype", ""))


def _is_float(dtype: str) -> bool:
    return "float" in dtype or dtype.startswith("tf32")


def _is_foreign(call: ir.Call, is_kernel: bool) -> bool:
    name = str(getattr(call.op, "name", call.op))
    return bool(_EXTERNAL_CALLS.match(name)) if is_kernel else name not in _RELAX_OPS


def _describe(value: Any) -> str:
    text = str(value).split("\n# Metadata omitted")[0]
    text = re.sub(r"\s+", " ", text).strip()
    return f"{type(value).__name__} {text[:200]}"
