"""The integer arithmetic of docs/integer-semantics.md on torch tensors, and the straight-through.

A second implementation beside `integer_math` and `compile/quantize_parameters.py`, on any device;
tests compare them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from intswin.models.integer_math import BIAS_LIMIT, MAX_PRE


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, exact: Tensor) -> Tensor:
        return exact

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(surrogate: Tensor, exact: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `surrogate`."""
    return cast(Tensor, _StraightThrough.apply(surrogate, exact.to(surrogate.dtype)))


def half(shift: Tensor | int) -> Tensor:
    """The rounding term of a right shift."""
    shift = torch.as_tensor(shift)
    return (torch.ones_like(shift) << shift) >> 1


def quotient(values: Tensor, divisor: float) -> Tensor:
    """The correctly rounded quotient: by a number, a GPU multiplies with its reciprocal."""
    return values / torch.full_like(values, divisor)


def quantize_weight(weight: Tensor, bias: Tensor, input_scale: float) -> Tensor:
    """Float64 scales (N,) of weights (N, K), as compile/quantize_parameters.py chooses them."""
    largest = weight.abs().amax(1)
    scale = torch.maximum(quotient(largest, 127.0), quotient(bias.abs(), input_scale * BIAS_LIMIT))
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fixed_point(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Section 2: int32 (pre, mult) of float64 ratios; a ratio of 1 or more becomes almost 1."""
    ratio = ratio.clamp(max=1 - 2**-16)
    # Powers and logarithms are not exact on a GPU; exponents and shifts are.
    mantissa, exponent = torch.frexp(ratio.clamp(min=2.0**-60))
    pre = ((mantissa == 0.5).int() - exponent).clamp(0, MAX_PRE)
    mult = (ratio * (1 << (pre + 15).long())).round()
    again = (mult == 2**15) & (pre > 0)
    pre = torch.where(again, pre - 1, pre)
    mult = torch.where(again, 2.0**14, mult.clamp(max=2**15 - 1))
    return pre.int(), mult.int()


def requant16(acc: Tensor, pre: Tensor, mult: Tensor) -> Tensor:
    """Section 2, int32; `acc` already holds half(pre)."""
    return ((acc >> pre).clamp(-32768, 32767) * mult + 2**14) >> 15


def bit_length(value: Tensor) -> Tensor:
    """Of positive int64; frexp's rounding to 53 bits can be one too high, which is undone."""
    length = torch.frexp(value.double()).exponent.long()
    return torch.where(value >> (length - 1) == 0, length - 1, length)


def integer_layer_norm(x: Tensor, eps: int, c2: int) -> Tensor:
    """Z of section 3.4, int64 (N, rows, channels), from steps."""
    x = x.long()
    channels = x.shape[2]
    s1 = x.sum(2, keepdim=True)
    v = channels * (x * x).sum(2, keepdim=True) - s1 * s1 + eps
    j = (bit_length(v) - 29) >> 1
    w = torch.where(j >= 0, v >> (2 * j).clamp(min=0), v << (-2 * j).clamp(min=0))
    root = w.double().sqrt().floor().long()  # exact: w < 2^30
    r = (2**29 // root).clamp(max=32767)
    n = channels * x - s1
    e = j + c2
    right = e.clamp(min=0)
    n = ((n + half(right)) >> right) << (-e).clamp(min=0)
    return (n.clamp(-32768, 32767) * r + 2**14) >> 15


def integer_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, params: tuple[int, int, int, int]
) -> Tensor:
    """Section 3.5 in windows: steps (N, windows, heads, tokens, d) -> int64 steps, same shape."""
    pre, mult = (torch.tensor(p, device=q.device) for p in params[:2])
    out_mult, out_shift = params[2:]
    acc = (q @ k.transpose(-1, -2)).round().int()
    t = requant16(acc * 16 + half(pre), pre, mult)
    if bias is not None:
        t = t + bias
    u = t.amax(-1, keepdim=True) - t
    z, f = (u >> 8).clamp(max=9), u & 255
    parabola = 380857 - f * (999 - f)
    p = ((parabola >> 4) * 22466 + (2**20 << z)) >> (21 + z)
    s = p.sum(-1, keepdim=True)
    o = (p.float() @ v).round().long()
    shift = bit_length(s) - 8
    o = (o + half(shift)) >> shift
    r = (1 << (shift + 20)) // s
    a = (o * r + 2**11) >> 12
    rounding = (128 << out_shift) + ((1 << out_shift) >> 1)
    return ((a * out_mult + rounding) >> out_shift).clamp(0, 255) - 128
