"""`linear`: int8 GEMM with requantization, activation and residual in its epilogue (section 3.2).

The weight is packed when the module is emitted, in the order that the target's multiply-accumulate
instruction reads. Rows and columns are padded to whole tiles inside the kernel; what the caller
sees is exactly (B, rows, N).
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr
from tvm.target import Target

from intswin.compile.operators import cuda_linear, packed_weight
from intswin.compile.operators.expressions import (
    DTYPES,
    add_saturating,
    emit_compute,
    int32,
    narrow,
    narrowing_offset,
    requant16,
)
from intswin.compile.operators.integer_gelu import GELUS
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import Node

_ROW_TILES = (8, 7, 6, 5)  # a row count without such a divisor is padded


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x uint8 (B, R, K) [, residual int16 (B, R, N)] -> (B, R, N)."""
    if is_cuda(target):
        return cuda_linear.emit(bb, node, inputs, batch, target)
    layout = packed_weight.weight_layout(target)
    columns = packed_weight.COLUMNS[layout]
    weight = node.tensors["weight"]
    channels = weight.shape[0]
    out, activation = str(node.attrs["out"]), str(node.attrs["activation"])
    is_narrow, has_activation, has_residual = out in ("u8", "s8"), activation != "none", inputs[1:]

    def blocks(name: str, dtype: str) -> np.ndarray:
        vector = np.pad(node.tensors[name], (0, -channels % columns))
        return vector.astype(dtype).reshape(-1, columns)

    args = [inputs[0], packed_weight.pack_weight(weight, layout)]
    args += [blocks("bias", "int32"), blocks("pre", "int32"), blocks("mult", "int16")]
    if has_activation:
        args += _activation_constants(node.tensors["act_params"], columns)
    if is_narrow:
        args.append(np.array([narrowing_offset(node)], "int16"))
    args += inputs[1:]

    def compute(x: te.Tensor, w: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        constants = list(rest)
        h = _requantized("h", _accumulated(x, w, layout), *constants[:3])
        if has_activation:
            h = _activated(activation, h, *constants[3:7])

        def epilogue(h: Expr, b: Expr, r: Expr, n: Expr) -> Expr:
            if is_narrow:
                return narrow(h, constants[-1][0], int(node.attrs["frac"]), DTYPES[out])
            if has_residual:
                residual = constants[-1]
                row = tirx.min(r, int32(int(residual.shape[1]) - 1))
                return add_saturating(h, residual[b, row, tirx.min(n, int32(channels - 1))])
            return h.astype(DTYPES[out])

        return _written(h, int(x.shape[1]), channels, epilogue)

    attrs: dict[str, int | str] = {"layout": layout, "out": out, "activation": activation}
    return emit_compute(bb, "linear", compute, args, attrs)


def padded_rows(rows: int) -> int:
    """The number of rows that the kernel computes: at least `rows`, divisible into row tiles."""
    while rows >= min(_ROW_TILES) and all(rows % tile for tile in _ROW_TILES):
        rows += 1
    return rows


def _accumulated(x: te.Tensor, w: te.Tensor, layout: str) -> te.Tensor:
    """`acc` int32 (B, padded rows, blocks of columns, columns)."""
    batch, rows, depth = (int(extent) for extent in x.shape)
    x = _zero_padded(x, depth + -depth % packed_weight.input_channel_group(layout))
    last_row = int32(rows - 1)
    axes = packed_weight.reduction_axes(w, layout)

    def sum_(b: Expr, r: Expr, block: Expr, lane: Expr) -> Expr:
        k, right = packed_weight.weight_element(w, layout, block, lane, axes)
        # Rows of the padding repeat the last one.
        left = x[b, tirx.min(r, last_row) if padded_rows(rows) > rows else r, k]
        if layout == "plain":
            # Through int16, so that LLVM finds 16-bit multiply-accumulate instructions.
            left, right = left.astype("int16"), right.astype("int16")
        return te.sum(left.astype("int32") * right.astype("int32"), axis=axes)

    shape = (batch, padded_rows(rows), int(w.shape[0]), packed_weight.COLUMNS[layout])
    return te.compute(shape, sum_, "acc")


def _zero_padded(x: te.Tensor, channels: int) -> te.Tensor:
    """`x` (B, R, K) with zeros up to `channels` input channels."""
    batch, rows, depth = (int(extent) for extent in x.shape)
    if depth == channels:
        return x
    zero = tirx.const(0, "uint8")
    return te.compute(
        (batch, rows, channels),
        lambda b, r, k: tirx.if_then_else(k < depth, x[b, r, k], zero),
        "x_padded",
    )


def _requantized(
    name: str, acc: te.Tensor, bias: te.Tensor, pre: te.Tensor, mult: te.Tensor
) -> te.Tensor:
    """requant16(acc + bias) as int16; bias, pre and mult are (blocks or 1, columns)."""

    def requantize(b: Expr, r: Expr, block: Expr, lane: Expr) -> Expr:
        i = block if int(bias.shape[0]) > 1 else int32(0)
        wide = mult[i, lane].astype("int32")
        return requant16(acc[b, r, block, lane] + bias[i, lane], pre[i, lane], wide).astype("int16")

    return te.compute(acc.shape, requantize, name)


def _activation_constants(act_params: np.ndarray, columns: int) -> list[np.ndarray]:
    """[k, qb, q1, e], and the final requantization as `_requantized` takes it."""
    pre, mult = int(act_params[4]), int(act_params[5])
    vectors = [(((1 << pre) >> 1), "int32"), (pre, "int32"), (mult, "int16")]
    requantization = [np.full((1, columns), value, dtype) for value, dtype in vectors]
    return [act_params[:4].astype("int32"), *requantization]


def _activated(
    activation: str, h: te.Tensor, constants: te.Tensor, *requantization: te.Tensor
) -> te.Tensor:
    """The integer GELU of `h`, int16."""
    product = te.compute(
        h.shape, lambda *i: GELUS[activation](h(*i).astype("int32"), constants), "product"
    )
    return _requantized("activated", product, *requantization)


def _written(h: te.Tensor, rows: int, channels: int, epilogue) -> te.Tensor:  # noqa: ANN001
    """`y` (B, rows, channels) from the blocks of `h`: cut from `tile` where those are more."""
    batch, tiled_rows, blocks, columns = (int(extent) for extent in h.shape)
    exact = (tiled_rows, blocks * columns) == (rows, channels)
    y = te.compute(
        (batch, tiled_rows, blocks * columns),
        lambda b, r, n: epilogue(h[b, r, n // columns, n % columns], b, r, n),
        "y" if exact else "tile",
    )
    if exact:
        return y
    return te.compute((batch, rows, channels), lambda b, r, n: y[b, r, n], "y")
