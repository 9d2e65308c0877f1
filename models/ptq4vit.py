"""PTQ4ViT (Yuan et al., arXiv 2111.12293) as fake quantization, W8A8.

From its formulas: uniform symmetric int8, one scale a tensor; what softmax and GELU give is
quantized on two ranges of 2^(k-1) steps each whose scales differ by a power of two (twin uniform
quantization, section 3.1, eq. 5-6); scales are searched, weights and activations in turns, for the
least sum of (dL/dO)^2 (O_q - O)^2 over a layer's output O (Hessian guided, section 3.2, eq. 9,
algorithm 1). L is the cross entropy against the float network's own decision.
As in the published configuration, the patch embedding's input stays float and its weight has a
scale for each channel. Ours: at most ROWS rows of each layer are looked at in the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intswin.models.quantization_points import (
    Point,
    PointedAttention,
    PointedLayer,
    Quantizer,
    forget,
    keep,
    symmetric_weight,
    uniform,
    with_points,
)

HALF = 128  # 2^(k-1)
ROWS = 512
PRODUCTS = 64  # windows that the search of a matrix product looks at
MAX_SHIFT = 12

Option = TypeVar("Option")


def ptq4vit(
    model: nn.Module, images: Tensor, *, candidates: int = 100, rounds: int = 3
) -> nn.Module:
    """A copy of a Swin that computes as PTQ4ViT quantizes it.

    Args:
        model: float Swin in eval mode.
        images: normalised calibration images (n, 3, H, W); the paper takes 32.
        candidates: scales that each search tries, evenly between 0 and 1.2 of min-max.
        rounds: of searching the two operands in turns.

    Raises:
        IntswinError: the model is no Swin.
    """
    swin = with_points(model)
    layers = [m for m in swin.modules() if isinstance(m, PointedLayer)]
    attentions = [m for m in swin.modules() if isinstance(m, PointedAttention)]
    after_gelu = {
        id(m.fc2) for m in swin.modules() if hasattr(m, "fc2") and isinstance(m.act, nn.GELU)
    }
    points = [p for m in layers for p in (m.input, m.output)]
    for m in attentions:
        points += [m.q, m.k, m.v, m.products, m.probabilities, m.output]
    keep(points)
    with torch.enable_grad():
        logits = swin(images.clone().requires_grad_(True))
        F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    with torch.no_grad():
        for module in layers:
            _quantize_layer(module, id(module) in after_gelu, candidates, rounds)
        for attention in attentions:
            _quantize_products(attention, candidates, rounds)
    forget(points)
    return swin


def symmetric(x: Tensor, scale: Tensor) -> Tensor:
    """Int8 with one scale."""
    return uniform(x, scale, 0.0, -HALF, HALF - 1)


def twin_softmax(x: Tensor, shift: int) -> Tensor:
    """Probabilities: steps of 1 / 2^(k-1), and 2^shift finer ones for those within their reach."""
    coarse = torch.tensor(1 / HALF, dtype=x.dtype, device=x.device)
    fine = coarse / 2**shift
    small = uniform(x, fine, 0.0, 0, HALF - 1)
    return torch.where(x < HALF * fine, small, uniform(x, coarse, 0.0, 0, HALF - 1))


def twin_gelu(x: Tensor, fine: Tensor, shift: int) -> Tensor:
    """After GELU: negative values in `fine` steps that just cover them, others 2^shift coarser."""
    positive = uniform(x, fine * 2**shift, 0.0, 0, HALF - 1)
    return torch.where(x < 0, uniform(x, fine, 0.0, -HALF, 0), positive)


def hessian_distance(output: Tensor, exact: Tensor, gradient: Tensor) -> Tensor:
    """Sum of squared gradient times squared error: equation 9."""
    return (gradient * (output - exact)).square().sum()


def _scales(largest: Tensor, count: int) -> Tensor:
    """`count` scales, evenly up to 1.2 times the one that maps `largest` to the last step."""
    return largest.clamp(min=1e-12) / (HALF - 0.5) * torch.linspace(1.2 / count, 1.2, count)


def _best(options: Sequence[Option], distance: Callable[[Option], Tensor]) -> Option:
    """The option of least distance."""
    return options[int(torch.stack([distance(option) for option in options]).argmin())]


def _symmetrics(largest: Tensor, count: int) -> list[Quantizer]:
    return [partial(symmetric, scale=scale) for scale in _scales(largest, count)]


def _quantize_layer(module: PointedLayer, after_gelu: bool, candidates: int, rounds: int) -> None:
    layer = module.layer
    if isinstance(layer, nn.Conv2d):
        layer.weight.data = symmetric_weight(layer.weight.data)
        return
    x = module.input.values.flatten(0, -2)
    exact = module.output.values.flatten(0, -2)
    gradient = module.output.gradients.flatten(0, -2)
    inputs = _symmetrics(x.abs().max(), candidates)
    if after_gelu:
        fine = (-x.min()).clamp(min=1e-12) / HALF
        inputs = [partial(twin_gelu, fine=fine, shift=m) for m in range(MAX_SHIFT + 1)]
    rows = _some(len(x), ROWS)
    x, exact, gradient = x[rows], exact[rows], gradient[rows]

    def error(x: Tensor, weight: Tensor) -> Tensor:
        return hessian_distance(F.linear(x, weight, layer.bias), exact, gradient)

    float_weight = layer.weight.data
    weights = [q(float_weight) for q in _symmetrics(float_weight.abs().max(), candidates)]
    read, weight, quantizer = x, float_weight, inputs[0]
    for _ in range(rounds):
        weight = _best(weights, partial(error, read))
        chosen = weight
        quantizer = _best(inputs, lambda q, w=chosen: error(q(x), w))  # type: ignore[misc]
        read = quantizer(x)
    layer.weight.data, module.input.quantizer = weight, quantizer


def _quantize_products(attention: PointedAttention, candidates: int, rounds: int) -> None:
    """Scales of q k^T and of probabilities v."""
    a = attention
    shifts: list[Quantizer] = [partial(twin_softmax, shift=m) for m in range(MAX_SHIFT + 1)]
    queries = _symmetrics(a.q.values.abs().max(), candidates)
    a.q.quantizer, a.k.quantizer = _search_product(
        a.q, a.k, a.products, queries, candidates, rounds, transpose=True
    )
    a.probabilities.quantizer, a.v.quantizer = _search_product(
        a.probabilities, a.v, a.output, shifts, candidates, rounds, transpose=False
    )


def _search_product(
    left: Point,
    right: Point,
    product: Point,
    lefts: list[Quantizer],
    candidates: int,
    rounds: int,
    *,
    transpose: bool,
) -> tuple[Quantizer, Quantizer]:
    """The best quantizers of both operands of a matrix product."""
    rights = _symmetrics(right.values.abs().max(), candidates)
    some = _some(len(left.values), PRODUCTS)
    one, two = left.values[some], right.values[some]
    exact, gradient = product.values[some], product.gradients[some]

    def error(one: Tensor, two: Tensor) -> Tensor:
        result = one @ (two.transpose(-2, -1) if transpose else two)
        return hessian_distance(result, exact, gradient)

    best_left, best_right, read = lefts[0], rights[0], two
    for _ in range(rounds):
        other = read
        best_left = _best(lefts, lambda q, t=other: error(q(one), t))  # type: ignore[misc]
        first = best_left(one)
        best_right = _best(rights, lambda q, o=first: error(o, q(two)))  # type: ignore[misc]
        read = best_right(two)
    return best_left, best_right


def _some(count: int, most: int) -> Tensor:
    """The same random choice of rows each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
