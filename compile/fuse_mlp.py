"""Join each MLP with its LayerNorm and residual, where a GPU computes all of it in one kernel.

As in fuse_layer_norm.py, this is not the graph that is stored. The semantics of the joined operator
are in docs/integer-semantics.md section 3.10.
"""

from __future__ import annotations

import dataclasses

from tvm.target import Target

from intswin.compile.fuse_nodes import join_chains
from intswin.compile.operators import norm_mlp
from intswin.compile.schedules.cuda_norm_mlp_space import has_tiles
from intswin.compile.targets import has_mma, is_cuda
from intswin.models.integer_graph import IntegerGraph, Node
from intswin.models.integer_ops import as_second

# Multiply-accumulates of a GEMM up to which one kernel is tried, as in fuse_layer_norm.py: with
# more, a GEMM has enough blocks to be worth two kernels, which load each weight fewer times.
_MOST_PRODUCTS = 1 << 28


def fuse_mlps(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph with a node "norm_mlp" for each such MLP; for a CPU, the graph itself."""
    if not is_cuda(target):
        return graph

    def join(chain: tuple[Node, ...]) -> Node | None:
        if not _is_mlp(*chain):
            return None
        joined = _fused(*chain)
        return joined if _fits(joined, batch, target) else None

    return join_chains(graph, 3, join)


def _is_mlp(norm: Node, first: Node, second: Node) -> bool:
    """Whether these are a LayerNorm and the MLP behind it, with the residual."""
    if (norm.op, first.op, second.op) != ("layer_norm", "linear", "linear"):
        return False
    outs = norm.attrs["out"], first.attrs["out"], second.attrs["out"]
    return (
        outs == ("u8", "u8", "i16")
        and len(first.inputs) == 1
        and second.inputs[1:] == norm.inputs
        and second.attrs["activation"] == "none"
        and "rows" not in norm.tensors
    )


def _fits(node: Node, batch: int, target: Target) -> bool:
    """Whether a joined node is one kernel: a small problem, for tensor cores, that has a tile."""
    hidden, channels = node.tensors["weight"].shape
    return (
        batch * node.out.shape[0] * channels * hidden <= _MOST_PRODUCTS
        and channels % 32 == 0
        and hidden % 32 == 0
        and has_mma(target)
        and has_tiles(norm_mlp.shape_of(node, batch, target))
    )


def _fused(norm: Node, first: Node, second: Node) -> Node:
    return dataclasses.replace(
        second,
        op="norm_mlp",
        inputs=norm.inputs,
        tensors={**norm.tensors, **first.tensors, **as_second(second.tensors)},
        attrs={**first.attrs, "shift": norm.attrs["shift"]},
    )
