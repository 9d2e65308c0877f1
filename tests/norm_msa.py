"""An attention joined with all of its block, as tests need it."""

from __future__ import annotations

import dataclasses

import graphs
from intswin.models.integer_graph import Node
from intswin.models.integer_ops import as_second
from norm_attention import random_norm_attention


def random_norm_msa(
    rng: graphs.Rng,
    windows: int,
    tokens: int,
    heads: int,
    *,
    patterns: int = 1,
    extreme: bool = False,
) -> tuple[graphs.Case, list[Node]]:
    """The joined operator, and the four that it consists of; the last one adds x."""
    channels = 32 * heads
    attention, nodes = random_norm_attention(
        rng, windows, tokens, heads, channels, patterns=patterns, extreme=extreme
    )
    projection = graphs.random_linear(
        rng, windows * tokens, channels, channels, out="i16", residual=True, extreme=extreme
    ).node
    node = dataclasses.replace(
        projection,
        op="norm_msa",
        inputs=["x"],
        tensors={**attention.node.tensors, **as_second(projection.tensors)},
        attrs=attention.node.attrs,
    )
    return graphs.Case(node, attention.specs), [*nodes, projection]
