"""FQ-ViT (Lin et al., arXiv 2111.13824) as fake quantization, W8A8.

From its formulas: min-max uint8 activations and int8 weights by output channel; what LayerNorm
reads, the residual stream, has a power-of-two factor for each channel (section 3.3, eq. 12-14:
X_q = clip(round(X / (2^alpha s)) + zp), alpha in 0..3 of least error); softmax gives powers of two
(log-int-softmax, section 3.4, eq. 20-21: exp by I-BERT's integer polynomial, then
Attn_q = clip(log2(round(sum / exp))) and probabilities 2^-Attn_q).
Left out: the integer arithmetic inside LayerNorm, which has no scale to choose.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from intswin.models.quantization_points import (
    Point,
    PointedAttention,
    PointedLayer,
    Quantizer,
    keep,
    stream_points,
    symmetric_weight,
    uniform,
    with_points,
)

FACTORS = 3  # alpha is 0 to 3


def fq_vit(model: nn.Module, images: Tensor, attention_bits: int = 8) -> nn.Module:
    """A copy of a Swin that computes as FQ-ViT quantizes it.

    Args:
        model: float Swin in eval mode.
        images: normalised calibration images (n, 3, H, W).
        attention_bits: of the exponents of the probabilities; the paper shows 8 and 4.

    Raises:
        IntswinError: the model is no Swin.
    """
    swin = with_points(model)
    stream = list(stream_points(swin))
    plain: list[Point] = []
    for module in swin.modules():
        if isinstance(module, PointedLayer):
            plain.append(module.input)
            module.layer.weight.data = symmetric_weight(module.layer.weight.data)
        elif isinstance(module, PointedAttention):
            plain.extend((module.q, module.k, module.v, module.products, module.scores))
            plain.append(module.output)
    # ranges are those of the float network: weights were set, activations are not quantized yet
    keep(plain + stream)
    with torch.no_grad():
        swin(images)
    steps: dict[Point, float] = {}  # none where a range has one value
    for point in plain:
        scale, zero_point = min_max(point.values)
        steps[point] = float(scale)
        point.quantizer = _uint8(scale, zero_point)
        point.kept = None
    for point in stream:
        scales, zero_point = power_of_two_factors(point.values)
        point.quantizer = _uint8(scales, zero_point)
        point.kept = None
    for module in swin.modules():
        if isinstance(module, PointedAttention):
            # the scores' step is the integer exponential's unit
            module.softmax = partial(
                log_int_softmax, step=steps[module.scores], bits=attention_bits
            )
    return swin


def _uint8(scale: Tensor, zero_point: Tensor) -> Quantizer:
    return partial(uniform, scale=scale, zero_point=zero_point, low=0, high=255)


def min_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a uint8 that spans the values and 0."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    return scale, (-low / scale).round().clamp(0, 255)


def power_of_two_factors(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (C,) = s * 2^alpha by channel, and one zero point, of values (..., C).

    The layer's min-max scale is 2^3 s; each channel takes the alpha of least squared error.
    """
    largest, zero_point = min_max(values)
    flat = values.reshape(-1, values.shape[-1])
    candidates = torch.stack([largest / 2 ** (FACTORS - alpha) for alpha in range(FACTORS + 1)])
    errors = torch.stack(
        [(uniform(flat, s, zero_point, 0, 255) - flat).square().sum(0) for s in candidates]
    )
    return candidates[errors.argmin(0)], zero_point


def log_int_softmax(scores: Tensor, step: float, bits: int) -> Tensor:
    """Probabilities that are powers of two, 0 beyond 2^-(2^bits - 1).

    Args:
        scores: multiples of `step`, any shape; softmax is over the last axis.
        step: real value of one unit.
        bits: of the exponents.
    """
    integers = (scores / step).round()
    exponentials = _integer_exp((integers - integers.amax(-1, keepdim=True)).double(), step)
    total = exponentials.sum(-1, keepdim=True)
    ratio = (total / exponentials.clamp(min=1e-300)).round()
    # log2, rounded: up from 1.5 times a power of two
    floor = ratio.log2().floor()
    exponent = torch.where(ratio - 2**floor >= 2 ** (floor - 1), floor + 1, floor)
    kept = exponent < 2**bits
    return torch.where(kept, 2.0**-exponent, 0.0).to(scores.dtype)


def _integer_exp(x: Tensor, step: float) -> Tensor:
    """I-BERT's exp of x <= 0 in units of `step` (arXiv 2101.01321), by an arbitrary scale."""
    a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
    shifts = 30
    ln2 = math.floor(-math.log(2) / step)  # negative
    x = x.clamp(min=shifts * ln2)
    z = (x / ln2).floor()
    p = x - ln2 * z
    polynomial = (p + math.floor(b / step)) * p + math.floor(c / step**2)
    return (polynomial * 2 ** (shifts - z)).floor().clamp(min=0) * a
