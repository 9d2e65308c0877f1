"""`layer_norm`, the `linear` to q, k and v, and `attention` as one operator, for CUDA.

fuse_attention.py makes it.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.target import Target

from intswin.compile.operators import cuda_linear
from intswin.compile.schedules import cuda_attention, cuda_norm_attention, simd
from intswin.compile.schedules.cuda_norm_attention_space import NormAttentionShape
from intswin.compile.targets import cuda_arch
from intswin.models.integer_graph import Node


def shape_of(node: Node, batch: int, target: Target) -> NormAttentionShape:
    """The problem that a node poses."""
    windows, tokens = node.tensors["rows"].shape
    bias = node.tensors.get("score_bias")
    return NormAttentionShape(
        arch=cuda_arch(target),
        batch=batch,
        rows=node.out.shape[0],
        windows=windows,
        tokens=tokens,
        heads=int(node.attrs["heads"]),
        channels=node.tensors["gamma"].size,
        patterns=0 if bias is None else bias.shape[0],
        frac=int(node.attrs["frac"]),
    )


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R, C) -> uint8 (B, R, heads * 32)."""
    shape = shape_of(node, batch, target)
    arrays, weight, bias = constants(node, shape, target)
    func = cuda_norm_attention.describe(shape, weight, bias)
    gvar = bb.add_func(func, cuda_norm_attention.OP)
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [*inputs, *simd.constants(*arrays)], out))


def constants(
    node: Node, shape: NormAttentionShape, target: Target
) -> tuple[list[np.ndarray], tuple[int, ...], tuple[int, ...] | None]:
    """What the kernel reads behind x, and the shapes of the packed weight and arranged bias."""
    tensors = node.tensors
    arrays = [tensors[name].astype(np.int32) for name in ("rows", "gamma", "beta")]
    arrays.append(np.array([tensors["params"][0], node.attrs["shift"]], np.int64))
    weight, requantization, offset = cuda_linear.constants(node, "wgmma" if shape.wgmma else "mma")
    arrays += [weight, requantization, offset, tensors["score_params"].astype(np.int32)]
    bias_shape = None
    if "score_bias" in tensors:
        bias = cuda_attention.arrange_bias(tensors["score_bias"].astype(np.int16), target)
        arrays += [bias, tensors["pattern"].astype(np.int32)]
        bias_shape = bias.shape
    return arrays, weight.shape, bias_shape
