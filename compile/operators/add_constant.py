"""`add_constant`: class token and position embedding (docs/integer-semantics.md section 3.7)."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.target import Target

from intswin.compile.operators.expressions import emit_compute, int32, saturate
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R', C) -> int16 (B, R, C); a negative entry of `rows` reads zeros."""
    rows, constant = (node.tensors[name].astype(np.int32) for name in ("rows", "constant"))

    def compute(x: te.Tensor, rows: te.Tensor, constant: te.Tensor) -> te.Tensor:
        def sum_(b: te.Var, i: te.Var, c: te.Var) -> tirx.Expr:
            taken = x[b, tirx.max(rows[i], int32(0)), c].astype("int32")
            kept = tirx.Select(rows[i] >= int32(0), taken, int32(0))
            return saturate(kept + constant[i, c], "int16").astype("int16")

        return te.compute((batch, *node.out.shape), sum_, "y")

    return emit_compute(bb, "add_constant", compute, [inputs[0], rows, constant])
