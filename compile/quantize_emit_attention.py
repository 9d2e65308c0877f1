"""Emits a recognised attention: one int8 linear layer for q | k | v, and the operator over it."""

from __future__ import annotations

import numpy as np
import torch

from intswin.compile import quantize_parameters as parameters
from intswin.compile.float_graph import FloatOp
from intswin.compile.quantize_attention import Scores, bias_tables, find_layout
from intswin.compile.quantize_emit import Emitter, PendingLinear
from intswin.compile.quantize_views import View, elements
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import Attribute, TensorSpec


def emit_attention(out: Emitter, op: FloatOp) -> None:
    """Emit what a matmul of attention probabilities by v makes (sections 3.2 and 3.5).

    Args:
        out: the network so far; its value of the matmul's left side is a view of `Scores`.
        op: that matmul.

    Raises:
        IntswinError: q, k and v are not what the operator takes.
    """
    left, right = (out.values[name] for name in op.args)
    scores = left.source
    assert isinstance(scores, Scores)
    scores.require_natural(left, f"matmul {op.name}")
    if not scores.normalized or left.factor != 1:
        raise IntswinError(f"matmul {op.name} of attention scores without a softmax")
    v = right.moved(right.index.reshape(-1, *right.index.shape[-2:]))
    layout = find_layout(scores.q, scores.k, v, op.name)
    windows, tokens = layout.rows.shape
    _, heads = layout.group_of.shape
    dim = op.shape[-1]
    operands = ((scores.q, scores.q_name), (scores.k, scores.k_name), (v, op.args[1]))
    qkv, scales = _qkv(out, operands, layout.columns, op.name)
    factor = scores.factor * scores.q.factor * scores.k.factor
    out_scale = out.u8_scale(op.name)
    params = parameters.attention_parameters(
        scales[0] * scales[1] * factor, scales[2] * v.factor, out_scale, op.name
    )
    tensors = {"rows": layout.rows, **bias_tables(scores, layout), "params": params}
    row = torch.from_numpy(layout.rows)
    by_head = row[:, None, :, None] * (heads * dim) + (
        elements(heads * dim).reshape(1, heads, 1, dim)
    )
    index = torch.empty((windows * heads, tokens, dim), dtype=torch.int32)
    index[torch.from_numpy(layout.group_of)] = by_head
    spec = TensorSpec((windows * tokens, heads * dim), "uint8", out_scale, 128)
    attrs: dict[str, Attribute] = {"heads": heads, "d": dim}
    out.result(op, "attention", [qkv], tensors, attrs, spec, index.reshape(op.shape))


def _qkv(
    out: Emitter,
    operands: tuple[tuple[View, str], ...],
    columns: tuple[np.ndarray, ...],
    name: str,
) -> tuple[str, list[float]]:
    """One int8 linear layer for q | k | v, channels in (head, d) order, and their scales."""
    weights, biases, h_scales, scales = [], [], [], []
    inputs = set()
    for (view, value), channels in zip(operands, columns, strict=True):
        linear = view.source
        if not isinstance(linear, PendingLinear) or linear.activation != "none" or linear.node:
            raise IntswinError(f"{name}: q, k and v are not outputs of linear layers")
        inputs.add((linear.input, linear.rows))
        flat = channels.reshape(-1)
        weights.append(linear.weight[flat])
        biases.append(linear.bias[flat])
        low, high = out.ranges[value]
        scale = parameters.symmetric_scale(low, high, 127) / abs(view.factor)
        scale *= out.widen.get(name, 1)
        scales.append(scale)
        h_scales.append(np.full(flat.size, scale / 128))
    if len(inputs) != 1:
        raise IntswinError(f"{name}: q, k and v come from different tensors")
    ((source, rows),) = inputs
    weight, bias = np.concatenate(weights), np.concatenate(biases)
    spec = out.specs[source]
    tensors = parameters.linear_parameters(
        weight, bias, spec.scale, spec.zero_point, np.concatenate(h_scales), name
    )
    attrs: dict[str, Attribute] = {
        "out": "s8", "zero_point": 0, "frac": 7, "activation": "none"
    }  # fmt: skip
    linear_out = TensorSpec((rows, weight.shape[0]), "int8", 0.0, part_scales=tuple(scales))
    return out.emit("linear", [source], tensors, attrs, linear_out, ""), scales
