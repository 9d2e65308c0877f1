"""The attention kernels for CUDA (docs/integer-semantics.md section 3.5).

Tensor cores (cuda_attention_mma.py) where the target has them for int8, else dp4a
(cuda_attention_dp4a.py). The bias comes in the order of the kernel: `arrange_bias`. The kernel for
tensor cores has a search space and is described at first (cuda_tiles.py); that for dp4a has none.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import (
    cuda_attention_dp4a,
    cuda_attention_fragments,
    cuda_attention_mma,
    cuda_tiles,
    simd,
)
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import MmaAttentionTile
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.targets import has_mma


def arrange_bias(bias: np.ndarray, target: Target) -> np.ndarray:
    """Rearrange int16 (P, heads, n, n) as the kernel for `target` reads it."""
    kernel = cuda_attention_fragments if has_mma(target) else cuda_attention_dp4a
    return kernel.arrange_bias(bias)


def describe(
    shape: AttentionShape, bias_shape: tuple[int, ...] | None, target: Target
) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first: a description, or the kernel itself for dp4a."""
    if has_mma(target):
        return cuda_tiles.describe("attention", shape, _parameters(shape, bias_shape))
    return attention_kernel(shape, bias_shape, None)


def kernel(func: tirx.PrimFunc, shape: AttentionShape, tile: MmaAttentionTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    bias_shape = None
    if shape.patterns:
        bias_shape = tuple(int(extent) for extent in func.params[3].ty.shape)
    return attention_kernel(shape, bias_shape, tile).without_attr("global_symbol")


def attention_kernel(
    shape: AttentionShape,
    bias_shape: tuple[int, ...] | None,
    tile: MmaAttentionTile | None,
) -> tirx.PrimFunc:
    """Make the PrimFunc of all layers of a shape, for a GPU.

    Its arguments: qkv int8 (B, R, 3 * heads * d); rows int32 (W, n); params int32 (4,); where there
    are patterns, bias int16 of `bias_shape` and pattern int32 (W,); the output y uint8
    (B, R, heads * d). Without a `tile` it is the kernel for dp4a, else that for tensor cores.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("attention")
            flat = cuda_tiles.declare(_parameters(shape, bias_shape))
            args = Arguments(**{"bias": None, "pattern": None, **flat})
            if tile is None:
                cuda_attention_dp4a.emit_dp4a(shape, args)
            else:
                cuda_attention_mma.emit_mma(shape, tile, args)
    return simd.finished(builder.get(), "attention")


def _parameters(
    shape: AttentionShape, bias_shape: tuple[int, ...] | None
) -> list[cuda_tiles.Parameter]:
    channels = shape.heads * shape.d
    parameters: list[cuda_tiles.Parameter] = [
        ("qkv", (shape.batch, shape.rows, 3 * channels), "int8"),
        ("rows", (shape.windows, shape.tokens), "int32"),
        ("params", (4,), "int32"),
    ]
    if bias_shape is not None:
        parameters += [("bias", bias_shape, "int16"), ("pattern", (shape.windows,), "int32")]
    parameters.append(("y", (shape.batch, shape.rows, channels), "uint8"))
    return parameters
