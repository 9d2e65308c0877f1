"""The graph that kernels are emitted from: operators that share a kernel are joined to one."""

from __future__ import annotations

from tvm.target import Target

from intswin.compile.fuse_attention import fuse_attention, fuse_msa
from intswin.compile.fuse_layer_norm import fuse_layer_norms
from intswin.compile.fuse_mlp import fuse_mlps
from intswin.models.integer_graph import IntegerGraph


def fuse_for_target(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """Join what a kernel for `target` computes together; for a CPU, the graph itself.

    The larger unions come first: what they leave over may be part of a smaller one.
    """
    for fuse in (fuse_msa, fuse_attention, fuse_mlps, fuse_layer_norms):
        graph = fuse(graph, batch, target)
    return graph
