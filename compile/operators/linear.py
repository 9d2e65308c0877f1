"""`linear`: int8 GEMM with requantization, activation and residual in its epilogue (section 3.2).

The weight is packed when the module is emitted, in the layout that the target's multiply-accumulate
instruction reads. Rows and columns are padded to whole tiles inside the kernel; what the caller
sees is exactly (B, rows, N).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from intswin.compile.operators.expressions import (
    add_saturating,
    clamp,
    emit_compute,
    int32,
    requant16,
)
from intswin.compile.operators.integer_gelu import gelu
from intswin.compile.targets import has_avx2, has_vnni
from intswin.models.integer_graph import Node
from tvm import relax, te, tirx
from tvm.ir import Expr
from tvm.target import Target

_DTYPES = {"u8": "uint8", "s8": "int8", "i16": "int16", "i32": "int32"}
_ROW_TILES = (8, 7, 6, 5)  # a row count without such a divisor is padded


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x uint8 (B, R, K) [, residual int16 (B, R, N)] -> (B, R, N)."""
    weight = node.tensors["weight"]
    channels = weight.shape[0]
    layout = weight_layout(target)
    packed = pack_weight(weight, layout)
    columns = 8 if layout == "avx2" else 16
    out, activation = str(node.attrs["out"]), str(node.attrs["activation"])
    frac = int(node.attrs["frac"])
    # What is added before the last shift: the zero point and the rounding.
    offset = (int(node.attrs["zero_point"]) << frac) + ((1 << frac) >> 1)

    def per_channel(name: str, dtype: type) -> np.ndarray:
        vector = np.pad(node.tensors[name], (0, -channels % columns))
        return vector.astype(dtype).reshape(-1, columns)

    args = [
        *(inputs[0], packed),
        *(per_channel("bias", np.int32), per_channel("pre", np.int32)),
        per_channel("mult", np.int16),
    ]
    has_residual, has_activation = len(inputs) == 2, activation != "none"
    if out in ("u8", "s8"):
        args.append(np.array([offset], np.int16))
    if has_activation:
        args.extend(_activation_args(node.tensors["act_params"], columns))
    args.extend(inputs[1:])

    def compute(x: te.Tensor, w: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        bias, pre, mult, *others = rest
        residual = others.pop() if has_residual else None

        def epilogue(h: Expr, b: Expr, r: Expr, n: Expr) -> Expr:
            if out in ("u8", "s8"):
                # In int16, which vectors have twice as many of: a sum that saturates is one that
                # the clamp to 8 bits would have cut anyway.
                shifted = add_saturating(h, offsets[0]) >> tirx.const(frac, "int16")
                return clamp(shifted, _DTYPES[out])
            if residual is not None:
                row = tirx.min(r, int32(int(residual.shape[1]) - 1))
                column = n if channels % columns == 0 else tirx.min(n, int32(channels - 1))
                return add_saturating(h, residual[b, row, column])
            return h.astype(_DTYPES[out])

        h = _requantized("h", acc, bias, pre, mult)
        if has_activation:
            constants, *requantization = others
            product = te.compute(
                h.shape,
                lambda *i: _GELUS[activation](h[i].astype("int32"), constants),
                "product",
            )
            h = _requantized("activated", product, *requantization)

    attrs = {"layout": layout, "out": out, "activation": activation}
    return emit_compute(bb, "linear", compute, args, attrs)


def weight_layout(target: Target) -> str:
    """How `pack_weight` has to lay a weight out for the target's GEMM schedule."""
    return "vnni" if has_vnni(target) else "avx2" if has_avx2(target) else "plain"


def pack_weight(weight: np.ndarray, layout: str) -> np.ndarray:
    """Rearrange an int8 weight (N, K), padded with zeros to whole blocks.

    Returns:
        vnni: (N/16, K/4, 16, 4), a block is one operand of vpdpbusd.
        avx2: (N/8, K/4, 2, 8, 2), element [p, n, j] is input channel 2 j + p: those that remain in
            the 16-bit lanes when the four bytes of an activation are masked or shifted.
        plain: (N/16, K, 16).
    """
    columns = 8 if layout == "avx2" else 16
    depth = 1 if layout == "plain" else 4
    n, k = weight.shape
    padded = np.pad(weight, ((0, -n % columns), (0, -k % depth)))
    n, k = padded.shape
    if layout == "plain":
        return np.ascontiguousarray(padded.reshape(n // 16, 16, k).transpose(0, 2, 1))
    if layout == "vnni":
        return np.ascontiguousarray(padded.reshape(n // 16, 16, k // 4, 4).transpose(0, 2, 1, 3))
    blocks = padded.reshape(n // 8, 8, k // 4, 2, 2)
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3))


def padded_rows(rows: int) -> int:
    """The number of rows that the kernel computes: at least `rows`, divisible into row tiles."""
    while rows >= min(_ROW_TILES) and all(rows % tile for tile in _ROW_TILES):
        rows += 1
    return rows


def _gemm(
    x: te.Tensor,
    w: te.Tensor,
    layout: str,
    channels: int,
    requantize: Callable[..., Expr],
    epilogue: Callable[..., Expr],
) -> te.Tensor:
    """`acc` and `h` by column blocks, then `y` (B, R, channels): cut from `tile` where padded."""
    batch, rows, depth = (int(extent) for extent in x.shape)
    blocks = int(w.shape[0])
    columns = 8 if layout == "avx2" else 16
    tiled_rows = padded_rows(rows)
    if layout != "plain" and depth % 4:  # whole groups of four input channels
        x = _zero_padded(x, depth + -depth % 4)

    def row(r: Expr) -> Expr:
        return r if tiled_rows == rows else tirx.min(r, int32(rows - 1))

    def axis(extent: int, name: str) -> tirx.IterVar:
        return te.reduce_axis((0, extent), name)

    # Which input channel meets which element of the packed weight.
    if layout == "plain":
        reduction = [axis(depth, "k")]
    elif layout == "vnni":
        reduction = [axis(int(w.shape[1]), "ko"), axis(4, "ki")]
    else:
        reduction = [axis(int(w.shape[1]), "ko"), axis(2, "parity"), axis(2, "pair")]

    def product(b: Expr, r: Expr, no: Expr, ni: Expr) -> Expr:
        if layout == "plain":
            (k,) = reduction
            left, right = x[b, row(r), k], w[no, k, ni]
            # Through int16, so that 16-bit multiply-accumulate instructions are found.
            left, right = left.astype("int16"), right.astype("int16")
        elif layout == "vnni":
            ko, ki = reduction
            left, right = x[b, row(r), ko * 4 + ki], w[no, ko, ni, ki]
        else:
            ko, p, j = reduction
            left, right = x[b, row(r), ko * 4 + j * 2 + p], w[no, ko, p, ni, j]
        return te.sum(left.astype("int32") * right.astype("int32"), axis=reduction)

    acc = te.compute((batch, tiled_rows, blocks, columns), product, "acc")
    h = te.compute(acc.shape, lambda b, r, no, ni: requantize(acc[b, r, no, ni], no, ni), "h")
    exact = tiled_rows == rows and blocks * columns == channels
    y = te.compute(
        (batch, tiled_rows, blocks * columns),
        lambda b, r, n: epilogue(h[b, r, n // columns, n % columns], b, r, n),
        "y" if exact else "tile",
    )
    if exact:
        return y
    return te.compute((batch, rows, channels), lambda b, r, n: y[b, r, n], "y")


def _zero_padded(x: te.Tensor, channels: int) -> te.Tensor:
    """`x` (B, R, K) with zeros up to `channels` input channels."""
    batch, rows, depth = (int(extent) for extent in x.shape)
    zero = tirx.const(0, "uint8")
    return te.compute(
        (batch, rows, channels),
        lambda b, r, k: tirx.if_then_else(k < depth, x[b, r, k], zero),
        "x_padded",
    )
