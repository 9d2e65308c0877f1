"""A timm Swin with a place to look at, or to quantize, each tensor that a method quantizes.

What FQ-ViT and PTQ4ViT need for fake quantization: both are re-implemented on this from their
published formulas, to compare accuracy. Nothing here is part of an integer network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from timm.models import SwinTransformer
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from intswin.models.errors import IntswinError

Quantizer = Callable[[Tensor], Tensor]


class Point(nn.Module):
    """Passes a tensor on, through `quantizer` if there is one; keeps it while `kept` is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer: Quantizer | None = None
        self.kept: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.kept is not None:
            self.kept.append(x)
            if x.requires_grad:
                x.retain_grad()
        return x if self.quantizer is None else self.quantizer(x)

    @property
    def values(self) -> Tensor:
        """What was kept, joined along the first axis."""
        assert self.kept
        return torch.cat([x.detach() for x in self.kept])

    @property
    def gradients(self) -> Tensor:
        """The loss's gradients of what was kept."""
        assert self.kept
        return torch.cat([x.grad if x.grad is not None else torch.zeros_like(x) for x in self.kept])


class PointedLayer(nn.Module):
    """A linear layer or convolution with points before and after; `weight` may be replaced."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.input, self.output = layer, Point(), Point()

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.output(self.layer(self.input(x)))


class PointedAttention(nn.Module):
    """timm's WindowAttention; `softmax` may be replaced by one that quantizes its result."""

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.attention = attention
        self.q, self.k, self.v = Point(), Point(), Point()
        self.products, self.scores = Point(), Point()
        self.probabilities, self.output = Point(), Point()
        self.softmax: Quantizer = lambda scores: scores.softmax(-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(windows, n, C) -> the same shape."""
        a = cast(Any, self.attention)
        windows, n, _ = x.shape
        qkv = a.qkv(x).reshape(windows, n, 3, a.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        products = self.products(self.q(q * a.scale) @ self.k(k).transpose(-2, -1))
        scores = self.scores(products + a._get_rel_pos_bias())
        if mask is not None:  # not quantized: it is -100 or 0
            count = mask.shape[0]
            masked = scores.reshape(-1, count, a.num_heads, n, n) + mask[None, :, None]
            scores = masked.reshape(-1, a.num_heads, n, n)
        probabilities = self.probabilities(self.softmax(scores))
        context = self.output(probabilities @ self.v(v))
        return a.proj(context.transpose(1, 2).reshape(windows, n, -1))


class PointedBlock(nn.Module):
    """timm's SwinTransformerBlock with points on the residual stream."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.block, self.middle, self.end = block, Point(), Point()

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        b = cast(Any, self.block)
        x = self.middle(x + b._attn(b.norm1(x)))
        return self.end(x + b.mlp(b.norm2(x)))


def with_points(model: nn.Module) -> nn.Module:
    """A copy of a timm Swin with points everywhere.

    Raises:
        IntswinError: it is no Swin.
    """
    if not isinstance(model, SwinTransformer):
        raise IntswinError(f"{type(model).__name__} is not a Swin; the table compares Swin alone")
    swin: Any = copy.deepcopy(model).eval().requires_grad_(False)
    for stage in swin.layers:
        for block in stage.blocks:
            block.attn = PointedAttention(block.attn)
    for parent in list(swin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.Linear, nn.Conv2d)):
                setattr(parent, name, PointedLayer(child))
    for stage in swin.layers:
        for i, block in enumerate(stage.blocks):
            stage.blocks[i] = PointedBlock(block)
        if not isinstance(stage.downsample, nn.Identity):
            stage.downsample = nn.Sequential(stage.downsample, Point())
    swin.patch_embed = nn.Sequential(swin.patch_embed, Point())
    return cast(nn.Module, swin)


def stream_points(swin: nn.Module) -> Iterator[Point]:
    """The points of the residual stream, which are what LayerNorms read."""
    for module in swin.modules():
        if isinstance(module, PointedBlock):
            yield from (module.middle, module.end)
        elif isinstance(module, nn.Sequential) and isinstance(module[-1], Point):
            yield module[-1]


def keep(points: list[Point]) -> None:
    """Start to keep the values of these points."""
    for point in points:
        point.kept = []


def forget(points: list[Point]) -> None:
    """Stop, and free them."""
    for point in points:
        point.kept = None


def uniform(x: Tensor, scale: Tensor, zero_point: Tensor | float, low: int, high: int) -> Tensor:
    """Fake quantization: scale * (clamp(round(x / scale) + zero_point) - zero_point)."""
    return scale * (((x / scale).round() + zero_point).clamp(low, high) - zero_point)


def symmetric_weight(weight: Tensor) -> Tensor:
    """Int8 weights by output channel: scale = max|w| / 127."""
    flat = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    scale = flat.reshape(-1, *[1] * (weight.ndim - 1))
    return uniform(weight, scale, 0.0, -127, 127)
