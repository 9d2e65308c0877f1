"""SIMD expressions for kernels written out in TIR vectors: attention and LayerNorm.

What differs between CPUs is here: the lanes of a vector, the instruction that multiplies and
accumulates 8-bit numbers, and the 16-bit multiplications that keep the high half. `lanes` of 1 is
plain scalar code. Nothing here needs a target feature that `Simd.of` has not looked for.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
import tvm
from tvm import tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.targets import has_avx2, has_vnni

Expr: TypeAlias = tirx.Expr
Buffer: TypeAlias = tirx.Buffer


@dataclasses.dataclass(frozen=True)
class Simd:
    """How a CPU's vectors are used.

    Attributes:
        kind: "vnni", "avx2", "neon" or "plain" (any LLVM target).
        lanes: int32 lanes of one accumulator; int16 vectors have as many.
        depth: products that one multiply-accumulate adds up in a lane.
        registers: accumulators that a tile may keep.
    """

    kind: str
    lanes: int
    depth: int
    registers: int

    @staticmethod
    def of(target: Target) -> Simd:
        """The vectors of `target`'s CPU."""
        if has_vnni(target):
            return Simd("vnni", 16, 4, 20)
        if has_avx2(target):
            return Simd("avx2", 8, 2, 8)
        kind = "neon" if "aarch64" in str(target.attrs.get("mtriple", "")) else "plain"
        return Simd(kind, 8, 1, 8)

    @property
    def left_dtype(self) -> str:
        """Dtype of the operand that `dot` broadcasts."""
        return "uint8" if self.depth == 4 else "int16"

    @property
    def right_dtype(self) -> str:
        """Dtype of the operand of `dot` that has `depth` neighbours in every lane."""
        return "int8" if self.depth == 4 else "int16"

    @property
    def left_offset(self) -> int:
        """What is added to an int8 so that it becomes a `left_dtype`."""
        return 128 if self.depth == 4 else 0

    def dot(self, acc: Expr, left: Expr, right: Expr) -> Expr:
        """Add `depth` products to every int32 lane of `acc`, exactly.

        Args:
            acc: int32 x lanes.
            left: the same `depth` numbers for every lane, one `left_dtype` x depth.
            right: `right_dtype` x (lanes * depth), the depth innermost.
        """
        if self.kind == "vnni":
            left = broadcast_word(left, "uint8x64")
            return intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, left, right)
        if self.kind == "avx2":
            left = broadcast_word(left, "int16x16")
            return acc + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", left, right)
        wide = f"int32x{self.lanes}"
        return acc + splat(left, self.lanes).astype(wide) * right.astype(wide)

    def multiply_round_q15(self, a: Expr, b: Expr) -> Expr:
        """(a * b + 2^14) >> 15 of int16 vectors that are not both -2^15."""
        names = {
            ("vnni", 16): "llvm.x86.avx2.pmul.hr.sw",
            ("vnni", 32): "llvm.x86.avx512.pmul.hr.sw.512",
            ("avx2", 16): "llvm.x86.avx2.pmul.hr.sw",
            ("avx2", 8): "llvm.x86.ssse3.pmul.hr.sw.128",
            ("neon", 8): "llvm.aarch64.neon.sqrdmulh",
        }
        name = names.get((self.kind, lanes_of(a)))
        if name:
            return intrinsic(dtype_of(a), name, a, b)
        product = cast(a, "int32") * cast(b, "int32")
        return cast((product + const(1 << 14, product)) >> const(15, product), "int16")


def dtype_of(x: Expr) -> str:
    """Such as "int16x16"."""
    return str(x.ty.dtype)


def lanes_of(x: Expr) -> int:
    """1 for a scalar."""
    _, _, lanes = dtype_of(x).partition("x")
    return int(lanes or 1)


def vector(dtype: str, lanes: int) -> str:
    """The name of a vector dtype; of the scalar one for 1 lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(x: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return x if lanes == 1 else tirx.Broadcast(x, lanes)


def const(value: int, like: Expr) -> Expr:
    """A constant of the dtype and lanes of `like`."""
    lanes = lanes_of(like)
    return splat(tirx.const(value, dtype_of(like).split("x")[0]), lanes)


def cast(x: Expr, dtype: str) -> Expr:
    """Convert the lanes of `x`.

    From signed to unsigned use `bits`: TVM's analysis of such a cast fails on negative ranges.
    """
    return x.astype(vector(dtype, lanes_of(x)))


def bits(x: Expr, dtype: str) -> Expr:
    """The same bits as lanes of another type of the same width."""
    return tirx.reinterpret(vector(dtype, lanes_of(x)), x)


def broadcast_word(x: Expr, dtype: str) -> Expr:
    """The 4 bytes of `x` again and again, as `dtype`."""
    lanes = {"uint8x64": 16, "int16x16": 8}[dtype]
    return tirx.reinterpret(dtype, tirx.Broadcast(tirx.reinterpret("int32", x), lanes))


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """Call a side-effect-free LLVM intrinsic."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def clamp(x: Expr, dtype: str) -> Expr:
    """Saturate the lanes of `x` to `dtype` and convert them."""
    limits = np.iinfo(dtype)
    low, high = (const(int(limit), x) for limit in (limits.min, limits.max))
    return cast(tirx.max(tirx.min(x, high), low), dtype)


def add_saturating(a: Expr, b: Expr) -> Expr:
    """Add signed lanes and clamp to their dtype."""
    return intrinsic(dtype_of(a), "llvm.sadd.sat", a, b)


def multiply_high(a: Expr, b: Expr) -> Expr:
    """The upper 16 bits of the products of uint16 lanes."""
    product = cast(a, "uint32") * cast(b, "uint32")
    return cast(product >> const(16, product), "uint16")


def reduce(kind: str, x: Expr) -> Expr:
    """Sum ("add") or maximum ("smax") over the lanes of `x`."""
    if lanes_of(x) == 1:
        return x
    return intrinsic(dtype_of(x).split("x")[0], f"llvm.vector.reduce.{kind}", x)


def bit_length(x: Expr) -> Expr:
    """Bits of a positive int32 or int64 scalar, as int32."""
    dtype = dtype_of(x)
    zeros = intrinsic(dtype, "llvm.ctlz", x, tirx.const(True, "bool"))
    return tirx.const(int(dtype[3:]), "int32") - zeros.astype("int32")


def load(buffer: Buffer, index: list[Expr | int], lanes: int) -> Expr:
    """`lanes` neighbours from `index` on."""
    return buffer.vload(index, vector(buffer.dtype, lanes))


def store(buffer: Buffer, value: Expr, index: list[Expr | int]) -> None:
    """Write the lanes of `value` to the neighbours from `index` on."""
    lanes = lanes_of(value)
    last = index[-1] if lanes == 1 else tirx.Ramp(index[-1], 1, lanes)
    T.buffer_store(buffer, value, [*index[:-1], last])


def scratch(shape: tuple[int, ...], dtype: str) -> Buffer:
    """An array of the thread that runs this iteration of the parallel loop.

    Below 1 KiB it is on the stack, where LLVM turns it into registers if all indices are constants.
    TVM takes a larger one from its workspace pool, by two function calls.
    """
    return T.alloc_buffer(shape, dtype, align=64)


def let(value: Expr) -> tirx.Var:
    """Compute `value` here, once."""
    return T.Bind(value)


def finished(func: tirx.PrimFunc, op: str) -> tirx.PrimFunc:
    """`func` as the PrimFunc of operator `op` that no schedule has to touch."""
    return func.with_attr({"intswin.op": op, "tirx.is_scheduled": True, "tirx.noalias": True})


def constants(*arrays: np.ndarray) -> list[tvm.relax.Constant]:
    """Arrays as Relax constants of their own dtype (int64 would become int32)."""
    return [tvm.relax.const(np.ascontiguousarray(a), str(a.dtype)) for a in arrays]
