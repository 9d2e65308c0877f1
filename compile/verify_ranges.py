"""Proof that no integer of a network overflows: intervals propagated from input to logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intswin.compile import operator_ranges
from intswin.compile.operator_ranges import Interval
from intswin.compile.range_check import Check, OperatorRange
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph

__all__ = ["OperatorRange", "verify_ranges"]

# What computes the output's interval, and how many inputs it may have.
_OPERATORS: dict[str, tuple[Callable[..., Interval], tuple[int, ...]]] = {
    "patchify": (operator_ranges.patchify, (1,)),
    "linear": (operator_ranges.linear, (1, 2)),
    "layer_norm": (operator_ranges.layer_norm, (1,)),
    "attention": (operator_ranges.attention, (1,)),
    "mean_pool": (operator_ranges.mean_pool, (1,)),
    "gather_rows": (operator_ranges.gather_rows, (1,)),
    "add_constant": (operator_ranges.add_constant, (1,)),
}


def verify_ranges(graph: IntegerGraph) -> list[OperatorRange]:
    """Bound every intermediate of every operator and check every parameter and shape.

    Activations start at the range of their dtype and get narrower where an operator cannot reach
    all of it. The bounds are those of docs/integer-semantics.md section 3, computed from the
    stored tensors.

    Returns:
        The intermediates in the order of computation.

    Raises:
        IntswinError: an int32 (or an int64, where the page says so) could overflow, a parameter is
            outside its domain, or a tensor has another dtype or shape than its operator needs. The
            message names the operator and the intermediate or parameter.
    """
    specs = {graph.input_name: graph.input}
    intervals: dict[str, Interval] = {graph.input_name: (0, 255)}
    if graph.input.dtype != "uint8":
        raise IntswinError(f"{graph.input_name}: the input is {graph.input.dtype}, not uint8")
    if not graph.nodes:
        raise IntswinError("the network has no operators")
    ranges: list[OperatorRange] = []
    for node in graph.nodes:
        unknown = [name for name in node.inputs if name not in specs]
        check = Check(node, [] if unknown else [specs[name] for name in node.inputs])
        check.require(not unknown, f"reads {unknown}, which no earlier operator makes")
        check.require(node.name not in specs, "there is another tensor of this name")
        check.require(node.op in _OPERATORS, "there is no such operator")
        bound, counts = _OPERATORS[node.op]
        check.require(len(node.inputs) in counts, f"has {len(node.inputs)} inputs, not {counts}")
        interval = bound(check, *(intervals[name] for name in node.inputs))
        info = np.iinfo(node.out.dtype)
        check.record("output", *interval, limit=int(info.max))
        specs[node.name], intervals[node.name] = node.out, interval
        ranges += check.ranges
    last = graph.nodes[-1]
    if last.out.dtype != "int32" or len(last.out.shape) != 2 or last.out.shape[0] != 1:
        raise IntswinError(
            f"{last.name}: the last operator makes {last.out.dtype} {last.out.shape}, "
            "not int32 (1, classes)"
        )
    return ranges
