"""Int8 weights in the order in which a CPU's multiply-accumulate instruction reads them."""

from __future__ import annotations

import numpy as np
from tvm import te
from tvm.ir import Expr
from tvm.target import Target

from intswin.compile.targets import has_avx2, has_vnni

# Output channels of a block: the int32 lanes of an accumulator.
COLUMNS = {"vnni": 16, "avx2": 8, "plain": 16}


def weight_layout(target: Target) -> str:
    """The layout of `pack_weight` that the GEMM schedule for `target` expects."""
    return "vnni" if has_vnni(target) else "avx2" if has_avx2(target) else "plain"


def pack_weight(weight: np.ndarray, layout: str) -> np.ndarray:
    """Rearrange an int8 weight (N, K), padded with zeros to whole blocks.

    Returns:
        vnni: (N/16, K/4, 16, 4), a block is one operand of vpdpbusd.
        avx2: (N/8, K/4, 2, 8, 2), element [p, n, j] is input channel 2 j + p: those that remain in
            16-bit lanes when the four bytes of an activation are masked (p = 0) or shifted.
        plain: (N/16, K, 16).
    """
    columns, depth = COLUMNS[layout], input_channel_group(layout)
    padded = np.pad(weight, [(0, -weight.shape[0] % columns), (0, -weight.shape[1] % depth)])
    n, k = padded.shape
    blocks = padded.reshape(n // columns, columns, k // depth, depth)
    if layout == "avx2":
        pairs = blocks.reshape(n // 8, 8, k // 4, 2, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 4, 1, 3))
    packed = np.ascontiguousarray(blocks.transpose(0, 2, 1, 3))
    return packed[..., 0] if layout == "plain" else packed


def input_channel_group(layout: str) -> int:
    """Input channels that one block holds; their number is padded to a multiple of it."""
    return 1 if layout == "plain" else 4


def reduction_axes(w: te.Tensor, layout: str) -> list:
    """The reduction axes of a product with a packed weight, the blocks' axis first."""
    extents = {"plain": (), "vnni": (4,), "avx2": (2, 2)}[layout]
    return [te.reduce_axis((0, extent), "k") for extent in (int(w.shape[1]), *extents)]


def weight_element(w: te.Tensor, layout: str, block: Expr, lane: Expr, axes: list) -> tuple:
    """(input channel, the packed weight's element) that meet at an iteration of the axes."""
    if layout == "plain":
        (k,) = axes
        return k, w[block, k, lane]
    if layout == "vnni":
        group, k = axes
        return group * 4 + k, w[block, group, lane, k]
    group, parity, pair = axes
    return group * 4 + pair * 2 + parity, w[block, group, parity, lane, pair]
