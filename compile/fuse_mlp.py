"""Join each MLP with its LayerNorm and residual, where a GPU computes all of it in one kernel.

As in fuse_layer_norm.py, this is not the graph that is stored. The semantics of the joined operator
are in docs/integer-semantics.md section 3.10.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from tvm.target import Target

from intswin.compile.operators import norm_mlp
from intswin.compile.operators.cuda_linear import weight_layout
from intswin.compile.schedules.cuda_norm_mlp_space import has_tiles
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import IntegerGraph, Node

# Multiply-accumulates of a GEMM up to which one kernel is tried, as in fuse_layer_norm.py: with
# more, a GEMM has enough blocks to be worth two kernels, which load each weight fewer times.
_MOST_PRODUCTS = 1 << 28


def fuse_mlps(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph with a node "norm_mlp" for each such MLP; for a CPU, the graph itself."""
    if not is_cuda(target):
        return graph
    readers = collections.Counter(name for node in graph.nodes for name in node.inputs)
    by_name = {node.name: node for node in graph.nodes}
    nodes: list[Node] = []
    fused: set[str] = set()
    for node in graph.nodes:
        before = _before(node, by_name)
        if before is None or any(readers[one.name] > 1 for one in before):
            nodes.append(node)
            continue
        joined = _fused(*before, node)
        if not _fits(joined, batch, target):
            nodes.append(node)
            continue
        nodes.append(joined)
        fused |= {one.name for one in before}
    kept = [node for node in nodes if node.name not in fused]
    return IntegerGraph(graph.input, kept, graph.input_name)


def _before(second: Node, by_name: Mapping[str, Node]) -> tuple[Node, Node] | None:
    """The LayerNorm and the first `linear` of an MLP whose last node this is, if it is one."""
    first = by_name.get(second.inputs[0])
    norm = None if first is None else by_name.get(first.inputs[0])
    if first is None or norm is None:
        return None
    if (norm.op, first.op, second.op) != ("layer_norm", "linear", "linear"):
        return None
    outs = norm.attrs["out"], first.attrs["out"], second.attrs["out"]
    fits = (
        outs == ("u8", "u8", "i16")
        and len(first.inputs) == 1
        and second.inputs[1:] == norm.inputs
        and second.attrs["activation"] == "none"
        and "rows" not in norm.tensors
    )
    return (norm, first) if fits else None


def _fits(node: Node, batch: int, target: Target) -> bool:
    """Whether a joined node is one kernel: a small problem, for tensor cores, that has a tile."""
    hidden, channels = node.tensors["weight"].shape
    rows = batch * node.out.shape[0]
    return (
        rows * channels * hidden <= _MOST_PRODUCTS
        and channels % 32 == 0
        and hidden % 32 == 0
        and weight_layout(target, channels, rows) == "mma"
        and weight_layout(target, hidden, rows) == "mma"
        and has_tiles(norm_mlp.shape_of(node, batch, target))
    )


def _fused(norm: Node, first: Node, second: Node) -> Node:
    renamed = {f"{name}2": tensor for name, tensor in second.tensors.items()}
    return dataclasses.replace(
        second,
        op="norm_mlp",
        inputs=norm.inputs,
        tensors={**norm.tensors, **first.tensors, **renamed},
        attrs={**first.attrs, "shift": norm.attrs["shift"]},
    )
