"""A LayerNorm joined with the MLP behind it, as tests need it."""

from __future__ import annotations

import dataclasses

import graphs
from intswin.models.integer_graph import Node
from intswin.models.integer_ops import as_second


def random_norm_mlp(
    rng: graphs.Rng,
    rows: int,
    channels: int,
    hidden: int,
    *,
    extreme: bool = False,
    **epilogue: object,
) -> tuple[graphs.Case, list[Node]]:
    """The joined operator, and the three that it consists of.

    `epilogue` is given to `graphs.random_linear` for the first GEMM.
    """
    norm = graphs.random_layer_norm(rng, rows, channels, extreme=extreme)
    first = graphs.random_linear(rng, rows, channels, hidden, extreme=extreme, **epilogue)
    second = graphs.random_linear(
        rng, rows, hidden, channels, out="i16", residual=True, extreme=extreme
    )
    node = dataclasses.replace(
        second.node,
        op="norm_mlp",
        inputs=["x"],
        tensors={**norm.node.tensors, **first.node.tensors, **as_second(second.node.tensors)},
        attrs={**first.node.attrs, "shift": norm.node.attrs["shift"]},
    )
    return graphs.Case(node, norm.specs), [norm.node, first.node, second.node]
