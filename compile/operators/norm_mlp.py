"""`layer_norm` and the two `linear` of an MLP as one operator (fuse_mlp.py), for CUDA."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.target import Target

from intswin.compile.operators import cuda_linear
from intswin.compile.schedules import cuda_norm_mlp, simd
from intswin.compile.schedules.cuda_norm_mlp_space import NormMlpShape
from intswin.compile.targets import cuda_arch
from intswin.models.integer_graph import Node
from intswin.models.integer_ops import second_linear


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R, C) -> (B, R, C)."""
    (x,) = inputs
    shape = shape_of(node, batch, target)
    arrays = [node.tensors[name].astype(np.int32) for name in ("gamma", "beta")]
    arrays.append(np.array([node.tensors["params"][0], node.attrs["shift"]], np.int64))
    first = cuda_linear.constants(node, "mma")
    second = cuda_linear.constants(second_linear(node), "mma")
    padded = first[1].shape[1], second[1].shape[1]
    func = cuda_norm_mlp.describe(shape, first[0].shape, second[0].shape, padded)
    gvar = bb.add_func(func, cuda_norm_mlp.OP)
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [x, *simd.constants(*arrays, *first, *second)], out))


def shape_of(node: Node, batch: int, target: Target) -> NormMlpShape:
    """The problem that a node "norm_mlp" poses."""
    hidden, channels = node.tensors["weight"].shape
    return NormMlpShape(
        arch=cuda_arch(target),
        batch=batch,
        rows=node.out.shape[0],
        channels=channels,
        hidden=hidden,
        activation=str(node.attrs["activation"]),
        frac=int(node.attrs["frac"]),
    )
