"""An attention joined with the LayerNorm and the GEMM before it, as tests need it."""

from __future__ import annotations

import dataclasses

import graphs
from intswin.models.integer_graph import Node


def random_norm_attention(
    rng: graphs.Rng,
    windows: int,
    tokens: int,
    heads: int,
    channels: int,
    *,
    patterns: int = 1,
    extreme: bool = False,
) -> tuple[graphs.Case, list[Node]]:
    """The joined operator, and the three that it consists of."""
    rows = windows * tokens
    norm = graphs.random_layer_norm(rng, rows, channels, extreme=extreme)
    linear = graphs.random_linear(rng, rows, channels, 3 * heads * 32, "s8", extreme=extreme)
    attention = graphs.random_attention(
        rng, windows, tokens, heads, 32, patterns=patterns, extreme=extreme
    )
    renamed = {
        {"params": "score_params", "bias": "score_bias"}.get(name, name): tensor
        for name, tensor in attention.node.tensors.items()
    }
    node = dataclasses.replace(
        attention.node,
        op="norm_attention",
        inputs=["x"],
        tensors={**norm.node.tensors, **linear.node.tensors, **renamed},
        attrs={**attention.node.attrs, **linear.node.attrs, "shift": norm.node.attrs["shift"]},
    )
    return graphs.Case(node, norm.specs), [norm.node, linear.node, attention.node]
