"""Integer expressions that several operators share, and how a TE compute enters a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from intswin.models.integer_graph import Node
from intswin.models.integer_math import half

DTYPES = {"u8": "uint8", "s8": "int8", "i16": "int16", "i32": "int32"}  # by the attribute "out"


def int32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(value, "int32")


def saturate(x: Expr, dtype: str) -> Expr:
    """Clamp int32 `x` to the range of `dtype`; the result is still int32."""
    limits = np.iinfo(dtype)
    return tirx.max(tirx.min(x, int32(int(limits.max))), int32(int(limits.min)))


def narrowing_offset(node: Node) -> int:
    """What requant8 (section 2) adds before its shift: the zero point and the rounding."""
    frac = int(node.attrs["frac"])
    return (int(node.attrs["zero_point"]) << frac) + int(half(frac))


def narrow(h: Expr, offset: Expr, frac: int, dtype: str) -> Expr:
    """Int16 `h` of `frac` fractional bits as an 8-bit `dtype`, with `offset` int16 of its node."""
    # A sum that saturates is one that the clamp to 8 bits would have cut anyway.
    return clamp(add_saturating(h, offset) >> tirx.const(frac, "int16"), dtype)


def add_saturating(a: Expr, b: Expr) -> Expr:
    """A + b of int16, clamped to int16."""
    return tirx.call_llvm_pure_intrin("int16", "llvm.sadd.sat", a, b)


def clamp(x: Expr, dtype: str) -> Expr:
    """Int16 `x` clamped to an 8-bit `dtype` and converted."""
    limits = np.iinfo(dtype)
    low, high = (tirx.const(int(limit), "int16") for limit in (limits.min, limits.max))
    return tirx.max(tirx.min(x, high), low).astype(dtype)


def requant16(acc: Expr, pre: Expr, mult: Expr) -> Expr:
    """docs/integer-semantics.md section 2; int32 in and out, `acc` holds half(pre) already."""
    return (saturate(acc >> pre, "int16") * mult + int32(1 << 14)) >> int32(15)


def let(value: Expr, body: Callable[[tirx.Var], Expr], name: str) -> Expr:
    """`body(value)` with `value` computed once, however often the body names it."""
    var = tirx.Var(name, str(value.ty.dtype))
    return tirx.Let(var, value, body(var))


def emit_compute(
    bb: relax.BlockBuilder,
    op: str,
    compute: Callable[..., te.Tensor],
    args: Sequence[relax.Expr | np.ndarray],
    attrs: dict[str, int | str] | None = None,
) -> relax.Var:
    """Call `compute` on TE placeholders for `args` and emit a call_tir of the PrimFunc it gives.

    Calls with equal computations share one PrimFunc, so numbers that differ between layers belong
    in `args`: NumPy arrays become constants of the Relax function, which the executable carries.
    The PrimFunc has the attribute "intswin.op" = `op`, by which schedules find it, and `attrs`,
    each prefixed with "intswin.".

    Returns:
        the output, of the shape and dtype of the tensor that `compute` returns.
    """
    exprs = [relax.const(a, str(a.dtype)) if isinstance(a, np.ndarray) else a for a in args]
    tensors = []
    for index, expr in enumerate(exprs):
        info = expr.ty
        shape = [int(extent) for extent in info.shape]
        tensors.append(te.placeholder(shape, str(info.dtype), f"arg{index}"))
    out = compute(*tensors)
    func = te.create_prim_func([*tensors, out]).without_attr("global_symbol")
    func = func.with_attr("intswin.op", op)
    for key, value in (attrs or {}).items():
        func = func.with_attr(f"intswin.{key}", value)
    gvar = bb.add_func(func, op)
    shape = [int(extent) for extent in out.shape]
    return bb.emit(relax.call_tir(gvar, exprs, relax.TensorType(shape, str(out.dtype))))
