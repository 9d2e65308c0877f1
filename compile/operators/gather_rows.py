"""`gather_rows`: rows of a tensor by a table (docs/integer-semantics.md section 3.7)."""

from __future__ import annotations

import numpy as np
from tvm import relax, te
from tvm.target import Target

from intswin.compile.operators.expressions import emit_compute
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x (B, R', C) of any dtype -> (B, R, C)."""

    def compute(x: te.Tensor, rows: te.Tensor) -> te.Tensor:
        shape = (batch, *node.out.shape)
        return te.compute(shape, lambda b, i, c: x[b, rows[i], c], "y")

    return emit_compute(
        bb, "gather_rows", compute, [inputs[0], node.tensors["rows"].astype(np.int32)]
    )
