"""A LayerNorm joined with the GEMM behind it, as tests need it."""

from __future__ import annotations

import dataclasses

import graphs
from intswin.models.integer_graph import Node


def random_norm_linear(
    rng: graphs.Rng,
    rows: int,
    channels: int,
    columns: int,
    *,
    group: int = 1,
    extreme: bool = False,
    **epilogue: object,
) -> tuple[graphs.Case, Node, Node]:
    """The joined operator, and the two that it consists of.

    `group` as in `graphs.random_layer_norm`; `epilogue` is given to `graphs.random_linear`.
    """
    norm = graphs.random_layer_norm(rng, rows, channels, group=group, extreme=extreme)
    linear = graphs.random_linear(rng, rows, group * channels, columns, extreme=extreme, **epilogue)
    node = dataclasses.replace(
        linear.node,
        op="norm_linear",
        inputs=["x"],
        tensors={**norm.node.tensors, **linear.node.tensors},
        attrs={**linear.node.attrs, "shift": norm.node.attrs["shift"]},
    )
    return graphs.Case(node, norm.specs), norm.node, linear.node
