"""`layer_norm` and the `linear` that reads it as one operator (fuse_layer_norm.py), for CUDA."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.target import Target

from intswin.compile.operators import cuda_linear
from intswin.compile.schedules import cuda_norm_gemm, simd
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmShape
from intswin.compile.targets import cuda_arch
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R', c) -> (B, R, N)."""
    (x,) = inputs
    in_rows, channels = (int(extent) for extent in x.ty.shape.values[1:])
    rows = node.tensors.get("rows")
    shape = NormGemmShape(
        arch=cuda_arch(target),
        batch=batch,
        in_rows=in_rows,
        rows=node.out.shape[0],
        gather=1 if rows is None else rows.shape[1],
        channels=channels,
        indexed=rows is not None,
        columns=node.out.shape[1],
        out=str(node.attrs["out"]),
        activation=str(node.attrs["activation"]),
        frac=int(node.attrs["frac"]),
    )
    arrays = [] if rows is None else [rows.astype(np.int32)]
    arrays += [node.tensors[name].astype(np.int32) for name in ("gamma", "beta")]
    arrays.append(np.array([node.tensors["params"][0], node.attrs["shift"]], np.int64))
    weight, requantization, *others = cuda_linear.constants(node, "mma")
    arrays += [weight, requantization, *others]
    func = cuda_norm_gemm.describe(shape, weight.shape, requantization.shape[1])
    gvar = bb.add_func(func, cuda_norm_gemm.OP)
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [x, *simd.constants(*arrays)], out))
