"""Join each LayerNorm with the GEMM that reads it, where a GPU computes both in one kernel.

The network's graph keeps two operators, which is what quantization makes, the reference runs and an
artifact stores. Their fused form has the constants and attributes of both, and their semantics
(docs/integer-semantics.md section 3.8).
"""

from __future__ import annotations

import dataclasses

from tvm.target import Target

from intswin.compile.fuse_nodes import join_chains
from intswin.compile.operators.cuda_linear import weight_layout
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import IntegerGraph, Node

# Multiply-accumulates of a GEMM up to which both in one kernel were faster on an H100 (those of
# swin_tiny for one image have 2^27 at most); docs/results/gpu_speed.md has the numbers.
_MOST_PRODUCTS = 1 << 28
_MOST_CHANNELS = 2048  # all of 16 rows are in shared memory, beside slices of the weight


def fuse_layer_norms(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph with a node "norm_linear" for each such pair; for a CPU, the graph itself."""
    if not is_cuda(target):
        return graph

    def join(pair: tuple[Node, ...]) -> Node | None:
        norm, linear = pair
        return _fused(norm, linear) if _fits(norm, linear, batch, target) else None

    return join_chains(graph, 2, join)


def _fits(norm: Node, linear: Node, batch: int, target: Target) -> bool:
    """Whether both are one kernel: a small problem, for tensor cores by mma.

    Every block of threads normalises its rows for itself. That costs less than a kernel more does,
    while the GEMM has few blocks and both kernels are mostly latency.
    """
    if (norm.op, linear.op, norm.attrs.get("out")) != ("layer_norm", "linear", "u8"):
        return False
    (outputs, channels), rows = linear.tensors["weight"].shape, batch * linear.out.shape[0]
    gathered = norm.tensors["rows"].shape[1] if "rows" in norm.tensors else 1
    return (
        len(linear.inputs) == 1
        and rows * channels * outputs <= _MOST_PRODUCTS
        and channels % 32 == 0
        and channels // gathered % 8 == 0  # a lane reads 8 channels at once
        and channels <= _MOST_CHANNELS
        and weight_layout(target, channels, rows) == "mma"
    )


def _fused(norm: Node, linear: Node) -> Node:
    return dataclasses.replace(
        linear,
        op="norm_linear",
        inputs=norm.inputs,
        tensors={**norm.tensors, **linear.tensors},
        attrs={**linear.attrs, "shift": norm.attrs["shift"]},
    )
