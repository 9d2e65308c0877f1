"""All fusions of operators for a target, in the order in which they compose."""

from __future__ import annotations

from tvm.target import Target

from intswin.compile.fuse_layer_norm import fuse_layer_norms
from intswin.compile.fuse_mlp import fuse_mlps
from intswin.models.integer_graph import IntegerGraph


def fuse_for_target(graph: IntegerGraph, batch: int, target: Target) -> IntegerGraph:
    """The graph whose nodes are the kernels of a target; for a CPU, the graph itself.

    MLPs come first: what of them is not joined as a whole may still be in pairs.
    """
    return fuse_layer_norms(fuse_mlps(graph, batch, target), batch, target)
