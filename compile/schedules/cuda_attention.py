"""The attention kernels for CUDA (docs/integer-semantics.md section 3.5).

Tensor cores (cuda_attention_mma.py) where the target has them for int8, else dp4a
(cuda_attention_dp4a.py). The bias comes in the order of the kernel: `arrange_bias`.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import (
    cuda_attention_dp4a,
    cuda_attention_fragments,
    cuda_attention_mma,
    simd,
)
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import MmaAttentionTile, default_tile
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.targets import has_mma


def arrange_bias(bias: np.ndarray, target: Target) -> np.ndarray:
    """Rearrange int16 (P, heads, n, n) as the kernel for `target` reads it."""
    kernel = cuda_attention_fragments if has_mma(target) else cuda_attention_dp4a
    return kernel.arrange_bias(bias)


def attention_kernel(
    shape: AttentionShape,
    bias_shape: tuple[int, ...] | None,
    target: Target,
    tile: MmaAttentionTile | None = None,
) -> tirx.PrimFunc:
    """Make the PrimFunc of all layers of a shape, for a GPU.

    Its arguments: qkv int8 (B, R, 3 * heads * d); rows int32 (W, n); params int32 (4,); where there
    are patterns, bias int16 of `bias_shape` and pattern int32 (W,); the output y uint8
    (B, R, heads * d). `tile` is for tensor cores, by default that of the shape.
    """
    channels = shape.heads * shape.d
    arguments: list[tuple[str, tuple[int, ...], str]] = [
        ("qkv", (shape.batch, shape.rows, 3 * channels), "int8"),
        ("rows", (shape.windows, shape.tokens), "int32"),
        ("params", (4,), "int32"),
    ]
    if bias_shape is not None:
        arguments += [("bias", bias_shape, "int16"), ("pattern", (shape.windows,), "int32")]
    arguments.append(("y", (shape.batch, shape.rows, channels), "uint8"))
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("attention")
            declared = [T.arg(name, T.buffer(extents, dtype)) for name, extents, dtype in arguments]
            flat = {
                name: T.decl_buffer((math.prod(extents),), dtype, data=buffer.data)
                for buffer, (name, extents, dtype) in zip(declared, arguments, strict=True)
            }
            args = Arguments(**{"bias": None, "pattern": None, **flat})
            if has_mma(target):
                cuda_attention_mma.emit_mma(shape, tile or default_tile(shape), args)
            else:
                cuda_attention_dp4a.emit_dp4a(shape, args)
    return simd.finished(builder.get(), "attention")
