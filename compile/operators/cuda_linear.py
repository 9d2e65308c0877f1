"""`linear` for CUDA: the weight in the kernel's order, and a plain description of what it computes.

The description is TE with two stages, `acc` and `y`; schedules/cuda_gemm.py writes the kernel. It
is what a tuning log knows the kernel by, and it runs on any target.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te
from tvm.ir import Expr
from tvm.target import Target

from intswin.compile.operators.expressions import (
    DTYPES,
    emit_compute,
    int32,
    let,
    narrowing_offset,
    requant16,
    saturate,
)
from intswin.compile.operators.integer_gelu import GELUS
from intswin.compile.targets import has_mma, has_wgmma
from intswin.models.integer_graph import Node

_DEPTHS = {"wgmma": 1, "mma": 32, "dp4a": 4}  # input channels are padded to multiples
# From where on wgmma was the faster one on an H100; docs/results/gpu_speed.md has the numbers.
_WGMMA_DEPTH, _WGMMA_ROWS = 256, 1568
COLUMNS = 32  # a group of output channels; weights and constants are padded to whole groups


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x uint8 (B, R, K) [, residual int16 (B, R, N)] -> (B, R, N)."""
    channels, depth = node.tensors["weight"].shape
    layout = weight_layout(target, depth, batch * node.out.shape[0])
    args = [inputs[0], *constants(node, layout), *inputs[1:]]
    attrs: dict[str, int | str] = {
        "layout": layout,
        "out": str(node.attrs["out"]),
        "activation": str(node.attrs["activation"]),
        "frac": int(node.attrs["frac"]),
        "residual": len(inputs) - 1,
    }

    def compute(x: te.Tensor, w: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        return _described(x, w, channels, attrs, list(rest))

    return emit_compute(bb, "linear", compute, args, attrs)


def constants(node: Node, layout: str) -> list[np.ndarray]:
    """What a kernel reads beside activations, in its order.

    Returns:
        the packed weight; int32 (3, padded N): bias, pre and mult; with an activation int32 (6,):
        act_params; for 8-bit results int32 (1,): what is added before the last shift.
    """
    weight = node.tensors["weight"]
    padding = [(0, 0), (0, -weight.shape[0] % COLUMNS)]
    requantization = np.stack([node.tensors[name] for name in ("bias", "pre", "mult")])
    arrays = [pack_weight(weight, layout), np.pad(requantization.astype(np.int32), padding)]
    if node.attrs["activation"] != "none":
        arrays.append(node.tensors["act_params"].astype(np.int32))
    if node.attrs["out"] in ("u8", "s8"):
        arrays.append(np.array([narrowing_offset(node)], np.int32))
    return arrays


def weight_layout(target: Target, depth: int, rows: int) -> str:
    """The layout of `pack_weight` for a GEMM of `rows` rows with `depth` input channels.

    Tensor cores take rows in copies of 16 bytes; rows that are no multiple of that do without.
    """
    if has_wgmma(target) and depth % 64 == 0 and depth >= _WGMMA_DEPTH and rows >= _WGMMA_ROWS:
        return "wgmma"
    return "mma" if has_mma(target) and depth % 16 == 0 else "dp4a"


def pack_weight(weight: np.ndarray, layout: str) -> np.ndarray:
    """Rearrange an int8 weight (N, K), padded with zeros to whole blocks.

    Returns:
        mma: (N/32, K/32, 2, 32, 16): for 32 channels and 32 inputs, what a lane of a warp needs of
            them as fragments `b` of mma.m16n8k32 (schedules/cuda_device_functions.py), those
            of two blocks of 8 channels, twice. A block b of the four holds the channels
            8 (g // 2) + 2 b + g % 2 as its columns g, so that a lane has 8 neighbouring channels
            in its accumulators and stores them at once.
        wgmma: (N, K), N padded to 32, each 32 channels in that order of the blocks b.
        dp4a: (K/4, N, 4), N padded to 32.
    """
    n, k = weight.shape
    padded = np.pad(weight, [(0, -n % COLUMNS), (0, -k % _DEPTHS[layout])])
    n, k = padded.shape
    if layout == "wgmma":
        # Channels are (group, g // 2, b, g % 2).
        split = padded.reshape(n // 32, 4, 4, 2, k).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(split.reshape(n, k))
    if layout == "dp4a":
        return np.ascontiguousarray(padded.reshape(n, k // 4, 4).transpose(1, 0, 2))
    # Channels are (group, g // 2, half, block of the half, g % 2), inputs (step, i, t, byte).
    split = padded.reshape(n // 32, 4, 2, 2, 2, k // 32, 2, 4, 4)
    packed = split.transpose(0, 5, 2, 1, 4, 7, 3, 6, 8)
    return np.ascontiguousarray(packed).reshape(n // 32, k // 32, 2, 32, 16)


def _weight_element(w: te.Tensor, layout: str, n: Expr, k: Expr) -> Expr:
    """The packed weight's element for output channel `n` and input channel `k`."""
    if layout == "dp4a":
        return w[k // 4, n, k % 4]
    block, g = n // 2 % 4, n % 32 // 8 * 2 + n % 2
    if layout == "wgmma":
        return w[n // 32 * 32 + block * 8 + g, k]
    lane = g * 4 + k % 16 // 4
    return w[n // 32, k // 32, block // 2, lane, block % 2 * 8 + k % 32 // 16 * 4 + k % 4]


def _described(
    x: te.Tensor,
    w: te.Tensor,
    channels: int,
    attrs: dict[str, int | str],
    rest: list[te.Tensor],
) -> te.Tensor:
    """Section 3.2 in TE; `rest` as `emit` passes it."""
    batch, rows, depth = (int(extent) for extent in x.shape)
    layout, out, activation = str(attrs["layout"]), str(attrs["out"]), str(attrs["activation"])
    requantization, frac = rest[0], int32(int(attrs["frac"]))
    k = te.reduce_axis((0, depth), "k")

    def product(b: Expr, r: Expr, n: Expr) -> Expr:
        right = _weight_element(w, layout, n, k)
        return te.sum(x[b, r, k].astype("int32") * right.astype("int32"), axis=k)

    acc = te.compute((batch, rows, channels), product, "acc")

    def epilogue(b: Expr, r: Expr, n: Expr) -> Expr:
        bias, pre, mult = (requantization[i, n] for i in range(3))
        h = requant16(acc[b, r, n] + bias, pre, mult)
        if activation != "none":
            params = rest[1]
            half = (int32(1) << params[4]) >> int32(1)
            h = let(h, lambda t: GELUS[activation](t, params), "t")
            h = requant16(h + half, params[4], params[5])
        if out in ("u8", "s8"):
            offset = rest[1 if activation == "none" else 2][0]
            return saturate((h + offset) >> frac, DTYPES[out]).astype(DTYPES[out])
        if attrs["residual"]:
            h = saturate(h + rest[-1][b, r, n].astype("int32"), "int16")
        return h.astype(DTYPES[out])

    return te.compute((batch, rows, channels), epilogue, "y")
