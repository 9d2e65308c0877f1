"""Join each attention with the LayerNorm and GEMM before it, where a GPU has one kernel for all.

Where the heads of a window can be a cluster of blocks, the projection and the residual behind it
are joined, too. As in fuse_layer_norm.py, the network's graph keeps its operators; the fused one
has the constants and attributes of all, and their semantics (docs/integer-semantics.md sections 3.9
and 3.11).
"""

from __future__ import annotations

import dataclasses

from tvm.target import Target

from intswin.compile.fuse_nodes import join_chains
from intswin.compile.operators import norm_attention, norm_msa
from intswin.compile.operators.cuda_linear import weight_layout
from intswin.compile.schedules import cuda_norm_attention_space
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import IntegerGraph, Node
from intswin.models.integer_ops import as_second

# Multiply-accumulates of the GEMM, and channels that each head of a window normalises, up to which
# one kernel was faster on an H200; docs/results/gpu_speed.md has the numbers.
_MOST_PRODUCTS = 1 << 28
_MOST_NORMALISED = 64 * 192
_NAMES = {"rows": "rows", "params": "score_params", "bias": "score_bias", "pattern": "pattern"}


def fuse_msa(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph with a node "norm_msa" for each such four; for a CPU, the graph itself."""
    if not is_cuda(target):
        return graph

    def join(four: tuple[Node, ...]) -> Node | None:
        norm, linear, attention, projection = four
        joined = _fused(norm, linear, attention, batch, target)
        return None if joined is None else _projected(joined, projection, batch, target)

    return join_chains(graph, 4, join)


def fuse_attention(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph with a node "norm_attention" for each such triple; for a CPU, the graph itself."""
    if not is_cuda(target):
        return graph

    def join(triple: tuple[Node, ...]) -> Node | None:
        norm, linear, attention = triple
        return _fused(norm, linear, attention, batch, target)

    return join_chains(graph, 3, join)


def _fused(norm: Node, linear: Node, attention: Node, batch: int, target: Target) -> Node | None:
    """All three as one; None where they are no such triple, or there is no kernel for it.

    Every head of a window normalises it, or, in a cluster of sm_90, a part of it. That costs less
    than two kernels more do, while a GPU has few windows and all is mostly latency.
    """
    if (norm.op, linear.op, attention.op) != ("layer_norm", "linear", "attention"):
        return None
    if "rows" in norm.tensors or norm.attrs["out"] != "u8" or len(linear.inputs) > 1:
        return None
    (outputs, channels), rows = linear.tensors["weight"].shape, batch * linear.out.shape[0]
    tokens = attention.tensors["rows"].shape[1]
    if (
        rows * channels * outputs > _MOST_PRODUCTS
        or not cuda_norm_attention_space.takes(tokens, int(attention.attrs["d"]), channels)
        or weight_layout(target, channels, rows) != "mma"
    ):
        return None
    node = dataclasses.replace(
        attention,
        op="norm_attention",
        inputs=norm.inputs,
        tensors={
            **norm.tensors,
            **linear.tensors,
            **{_NAMES[name]: tensor for name, tensor in attention.tensors.items()},
        },
        attrs={**attention.attrs, **linear.attrs, "shift": norm.attrs["shift"]},
    )
    shape = norm_attention.shape_of(node, batch, target)
    space = cuda_norm_attention_space
    return node if space.fits(shape) and space.normalised(shape) <= _MOST_NORMALISED else None


def _projected(attention: Node, projection: Node, batch: int, target: Target) -> Node | None:
    """A "norm_attention" with the projection behind it, which adds what was normalised, as one."""
    if (
        projection.op != "linear"
        or projection.inputs[1:] != attention.inputs
        or (projection.attrs["out"], projection.attrs["activation"]) != ("i16", "none")
    ):
        return None
    node = dataclasses.replace(
        projection,
        op="norm_msa",
        inputs=attention.inputs,
        tensors={**attention.tensors, **as_second(projection.tensors)},
        attrs=attention.attrs,
    )
    fits = cuda_norm_attention_space.fits(norm_msa.shape_of(node, batch, target))
    return node if fits else None
