"""Replace chains of operators by one, as the fusions of fuse_kernels.py do."""

from __future__ import annotations

import collections
from collections.abc import Callable

from intswin.models.integer_graph import IntegerGraph, Node


def join_chains(
    graph: IntegerGraph, length: int, join: Callable[[tuple[Node, ...]], Node | None]
) -> IntegerGraph:
    """The graph with one node for each chain that `join` joins.

    Args:
        graph: stays as it is.
        length: nodes of a chain. Each is the first input of the next, which alone reads it.
        join: is given each chain, and gives the node that takes its place and the name of its last
            one, or None.
    """
    readers = collections.Counter(name for node in graph.nodes for name in node.inputs)
    by_name = {node.name: node for node in graph.nodes}
    nodes: list[Node] = []
    joined_names: set[str] = set()
    for node in graph.nodes:
        chain = [node]
        while len(chain) < length:
            before = by_name.get(chain[0].inputs[0])
            if before is None or readers[before.name] > 1:
                break
            chain.insert(0, before)
        joined = join(tuple(chain)) if len(chain) == length else None
        if joined is not None:
            joined_names |= {one.name for one in chain[:-1]}
        nodes.append(joined or node)
    kept = [node for node in nodes if node.name not in joined_names]
    return IntegerGraph(graph.input, kept, graph.input_name)
