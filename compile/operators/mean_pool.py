"""`mean_pool`: the average of all rows (docs/integer-semantics.md section 3.6)."""

from __future__ import annotations

import numpy as np
from tvm import relax, te
from tvm.target import Target

from intswin.compile.operators.expressions import emit_compute, int32, requant16, saturate
from intswin.models.integer_graph import Node

_FRAC = 7
_OFFSET = (128 << _FRAC) + ((1 << _FRAC) >> 1)  # the zero point and the rounding


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x uint8 (B, R, C) -> uint8 (B, 1, C)."""
    params = node.tensors["params"].astype(np.int32)

    def compute(x: te.Tensor, params: te.Tensor) -> te.Tensor:
        _, rows, channels = (int(extent) for extent in x.shape)
        r = te.reduce_axis((0, rows), "r")
        acc = te.compute(
            (batch, channels), lambda b, c: te.sum(x[b, r, c].astype("int32"), axis=r), "acc"
        )

        def requantized(b: te.Var, one: te.Var, c: te.Var) -> te.Tensor:
            h = requant16(acc[b, c] * int32(256) + params[0], params[1], params[2])
            return saturate((h + int32(_OFFSET)) >> int32(_FRAC), "uint8").astype("uint8")

        return te.compute((batch, 1, channels), requantized, "y")

    return emit_compute(bb, "mean_pool", compute, [inputs[0], params])
