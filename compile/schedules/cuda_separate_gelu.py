"""A GELU as a kernel of its own, between two GEMMs: what benchmarks compare the fused ones with.

FasterTransformer's way with floats: dequantize, GELU (erf), requantize; and the unfused i-GELU that
the paper's ReLU is compared with. Both read what a GEMM wrote as int16, so their traffic is half of
that of an int32 matrix. No network that intswin compiles has them (compile/separate_gelu.py).

Offsets fit int32 (cuda_offsets.py): those of the last block reach less than a block behind the end.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32, saturate
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gelu import IntegerGelu
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

_THREADS = 256
_VALUES = 8  # of a thread: 16 bytes of int16
_SQRT_HALF = 0.5**0.5


def separate_gelu_kernel(shape: tuple[int, int, int], kind: str, frac: int) -> tirx.PrimFunc:
    """Make the PrimFunc for `shape` (B, R, N), N a multiple of 8.

    Its arguments: t int16 (B, R, N); for the kind "igelu" act_params int32 (6,) and offset int32
    (1,) as `linear` has them, for "float" int32 (3,), the bits of float32 numbers: t's scale, one
    over that of y, and y's zero point; the output y uint8 (B, R, N).
    """
    size = math.prod(shape)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("separate_gelu")
            t = T.arg("t", T.buffer(shape, "int16"))
            if kind == "igelu":
                act_params = T.arg("act_params", T.buffer((6,), "int32"))
                offset = T.arg("offset", T.buffer((1,), "int32"))
            else:
                scales = T.arg("scales", T.buffer((3,), "int32"))
            y = T.arg("y", T.buffer(shape, "uint8"))
            flat_t = T.decl_buffer((size,), "int16", data=t.data)
            flat_y = T.decl_buffer((size,), "uint8", data=y.data)
            blocks = -(-size // (_THREADS * _VALUES))
            with T.launch_thread("blockIdx.x", blocks) as block:
                with T.launch_thread("threadIdx.x", _THREADS) as thread:
                    at = T.Bind((block * _THREADS + thread) * _VALUES)
                    function = (
                        _Integer(act_params, offset, frac) if kind == "igelu" else _Float(scales)
                    )
                    with T.If(at < int32(size)):
                        with T.Then():
                            _write(flat_t, flat_y, at, function)
    attrs = {"intswin.op": "separate_gelu", "tirx.is_scheduled": True, "tirx.noalias": True}
    return builder.get().with_attr(attrs)


class _Integer:
    """Section 3.3's i-GELU and the rest of the epilogue of `linear`."""

    def __init__(self, act_params: Buffer, offset: Buffer, frac: int) -> None:
        params = [T.Bind(act_params[i]) for i in range(6)]
        self._pre, self._mult, self._shift = params[4], params[5], int32(15 + frac)
        self._half = T.Bind((int32(1) << self._pre) >> int32(1))
        self._rounding = T.Bind((offset[0] << int32(15)) + int32(1 << 14))
        self._gelu = IntegerGelu("igelu", params[:4])

    def __call__(self, t: Expr) -> Expr:
        p = T.Bind(self._gelu.product(t) + self._half)
        a = saturate(p >> self._pre, "int16")
        return T.Bind((a * self._mult + self._rounding) >> self._shift)


class _Float:
    """0.5 x (1 + erf(x / sqrt(2))) in float32."""

    def __init__(self, scales: Buffer) -> None:
        self._scale, self._inverse, self._zero_point = (
            T.Bind(tirx.reinterpret("float32", scales[i])) for i in range(3)
        )

    def __call__(self, t: Expr) -> Expr:
        x = T.Bind(t.astype("float32") * self._scale)
        half, one = tirx.const(0.5, "float32"), tirx.const(1.0, "float32")
        gelu = half * x * (one + tirx.erf(x * tirx.const(_SQRT_HALF, "float32")))
        return T.Bind(tirx.nearbyint(gelu * self._inverse + self._zero_point).astype("int32"))


def _write(t: Buffer, y: Buffer, at: Expr, function: _Integer | _Float) -> None:
    """The values from `at` on."""
    words, packed = cuda.registers(_VALUES // 2), cuda.registers(_VALUES // 4)
    T.evaluate(cuda.load_global(cuda.pointer(words, 0), cuda.pointer(t, at), 2 * _VALUES))
    for word in range(_VALUES // 4):
        results = []
        for i in (2 * word, 2 * word + 1):
            results.append(function((words[i] << int32(16)) >> int32(16)))
            results.append(function(words[i] >> int32(16)))
        T.buffer_store(packed, cuda.pack_u8(*results), [word])
    T.evaluate(cuda.store_global(cuda.pointer(y, at), cuda.pointer(packed, 0), _VALUES))
