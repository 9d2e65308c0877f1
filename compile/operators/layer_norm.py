"""`layer_norm`: LayerNorm with an integer square root, patch merging folded in (section 3.4)."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.target import Target

from intswin.compile.schedules import cuda_layer_norm, simd
from intswin.compile.schedules.layer_norm import LayerNormShape, layer_norm_kernel
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R', c) -> uint8 or int16 (B, R, G * c); a CPU's kernel needs no schedule."""
    (x,) = inputs
    in_rows, channels = (int(extent) for extent in x.ty.shape.values[1:])
    rows = node.tensors.get("rows")
    shape = LayerNormShape(
        batch=batch,
        in_rows=in_rows,
        rows=in_rows if rows is None else rows.shape[0],
        gather=1 if rows is None else rows.shape[1],
        channels=channels,
        indexed=rows is not None,
        out={"u8": "uint8", "i16": "int16"}[str(node.attrs["out"])],
        shift=int(node.attrs["shift"]),
    )
    arrays = [] if rows is None else [rows.astype(np.int32)]
    cuda = is_cuda(target)
    arrays.append(node.tensors["gamma"].astype(np.int32 if cuda else np.int16))
    arrays.append(node.tensors["beta"].astype(np.int32))
    arrays.append(node.tensors["params"].astype(np.int64))
    if cuda:
        kernel = cuda_layer_norm.describe(shape)
    else:
        kernel = layer_norm_kernel(shape, simd.Simd.of(target))
    gvar = bb.add_func(kernel, "layer_norm")
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [x, *simd.constants(*arrays)], out))
