"""`attention`: softmax(q k^T + bias) v in windows given by index tables (section 3.5)."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.target import Target

from intswin.compile.schedules import cuda_attention, simd
from intswin.compile.schedules.attention import AttentionShape, attention_kernel, padded_tokens
from intswin.compile.targets import is_cuda
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import Node


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit qkv int8 (B, R, 3 * heads * d) -> uint8 (B, R, heads * d).

    A kernel for a CPU, or for a GPU without int8 tensor cores, needs no schedule.

    Raises:
        IntswinError: the kernel does not take heads of so many channels.
    """
    (qkv,) = inputs
    rows, bias = node.tensors["rows"], node.tensors.get("bias")
    heads, d = int(node.attrs["heads"]), int(node.attrs["d"])
    if d % 16:
        raise IntswinError(f"{node.name}: heads of {d} channels; a multiple of 16 is needed")
    windows, tokens = rows.shape
    shape = AttentionShape(
        batch=batch,
        rows=rows.size,
        windows=windows,
        tokens=tokens,
        heads=heads,
        d=d,
        patterns=0 if bias is None else bias.shape[0],
    )
    arrays = [rows.astype(np.int32), node.tensors["params"].astype(np.int32)]
    if bias is not None:
        arrays.append(_arranged(bias.astype(np.int16), target))
        arrays.append(node.tensors["pattern"].astype(np.int32))
    if is_cuda(target):
        bias_shape = None if bias is None else arrays[2].shape
        kernel = cuda_attention.describe(shape, bias_shape, target)
    else:
        kernel = attention_kernel(shape, simd.Simd.of(target))
    gvar = bb.add_func(kernel, "attention")
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [qkv, *simd.constants(*arrays)], out))


def _arranged(bias: np.ndarray, target: Target) -> np.ndarray:
    """The bias (P, heads, n, n) as the kernel for `target` reads it."""
    if is_cuda(target):
        return cuda_attention.arrange_bias(bias, target)
    tokens = bias.shape[3]
    padding = padded_tokens(tokens, simd.Simd.of(target)) - tokens
    return np.pad(bias, [(0, 0), (0, 0), (0, 0), (0, padding)])
