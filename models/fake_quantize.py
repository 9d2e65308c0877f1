"""The integer network in torch, with gradients: quantization-aware training, and a fast evaluator.

Every operator's forward value is that of docs/integer-semantics.md, computed in integers (a GEMM in
float32, which holds its integers exactly below 2^24); its gradient is that of the float operator it
approximates, zero where the integer saturates (straight-through estimator, Bengio et al., arXiv
1308.3432). Weights are those of the float network, quantized anew at each step on the scales that
calibration chose, so that what is trained is what will be compiled.

Tensors are float32 that hold integers minus their zero point: "steps". Shapes are (batch, rows,
channels), as in the integer network.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intswin.models.distill_loss import LossWeights, TaughtLoss, label_loss, logit_divergence
from intswin.models.errors import IntswinError
from intswin.models.fake_quantize_math import (
    fixed_point,
    half,
    integer_attention,
    integer_layer_norm,
    quantize_weight,
    quotient,
    requant16,
    straight_through,
)
from intswin.models.integer_graph import IntegerGraph, Node, TensorSpec
from intswin.models.integer_math import LN2_STEP
from intswin.models.preprocess import Preprocess

_PARAMETRIC = (nn.Linear, nn.Conv2d, nn.LayerNorm)
LIMITS = {"u8": (0, 255), "s8": (-128, 127), "i16": (-32768, 32767)}


class FakeQuantized(nn.Module):
    """A float network that computes as its integer network would.

    Args:
        network: timm Swin with ReLU. Its parameters are read at each forward, not copied.
        graph: the integer network that was quantized from it.
        preprocess: the network's own.

    Raises:
        IntswinError: the two do not belong together, or an operator has no gradient here.
    """

    def __init__(self, network: nn.Module, graph: IntegerGraph, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.graph, self.preprocess = network, graph, preprocess
        self.logit_scale = graph.nodes[-1].out.scale
        linears = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
        self.operators = nn.ModuleList()
        for node in graph.nodes:
            if node.op == "linear" and node.attrs["activation"] == "none" and linears:
                source = graph.spec(node.inputs[0])
                self.operators.append(_Linear(node, source, linears.pop(0), preprocess))
            elif node.op == "layer_norm" and norms:
                self.operators.append(_LayerNorm(node, graph.spec(node.inputs[0]), norms.pop(0)))
            elif node.op in _OTHERS:
                self.operators.append(_OTHERS[node.op](node))
            else:
                raise IntswinError(
                    f"{node.name}: quantization-aware training needs a Swin whose MLPs have ReLU"
                )
        if linears or norms:
            raise IntswinError("the integer network was made from another network")
        self.to(next(network.parameters()).device)

    def freeze_constants(self) -> None:
        """Freeze relative position biases, which the integer network holds as constants."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_("relative_position_bias_table" not in name)

    def of(self, network: nn.Module) -> FakeQuantized:
        """Another set of weights on the same scales."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.network = network
        modules = [m for m in network.modules() if isinstance(m, _PARAMETRIC)]
        other.operators = nn.ModuleList()
        for operator in self.operators:
            if isinstance(operator, (_Linear, _LayerNorm)):
                operator = copy.copy(operator)  # noqa: PLW2901
                operator.read = (modules.pop(0),)
            other.operators.append(operator)
        return other

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> float32 logits (N, classes), in real units.

        Pixels are rounded to the uint8 that the integer network reads.
        """
        mean = torch.tensor(self.preprocess.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.preprocess.std, device=images.device).view(3, 1, 1)
        pixels = ((images.float() * std + mean) * 255).round().clamp(0, 255)
        values = self.run_all(pixels.permute(0, 2, 3, 1))
        return values[self.graph.nodes[-1].name][:, 0] * self.logit_scale

    def run_all(self, pixels: Tensor) -> dict[str, Tensor]:
        """Every tensor of the network in steps, from pixels (N, H, W, 3), any dtype."""
        values = {self.graph.input_name: pixels.float()}
        with torch.autocast(pixels.device.type, enabled=False), _exact_float32():
            for node, operator in zip(self.graph.nodes, self.operators, strict=True):
                values[node.name] = operator(*(values[name] for name in node.inputs))
        return values


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """No TF32 inside: its sums are not exact below 2^24."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class QuantizedDistillation(TaughtLoss):
    """Loss of the fake-quantized network under the float teacher: KL of classes, cross entropy."""

    def __init__(self, student: FakeQuantized, teacher: nn.Module, weights: LossWeights) -> None:
        super().__init__(teacher)
        self.student, self.weights = student, weights

    def forward(self, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """As BlockDistillation, without terms of blocks and stages."""
        with torch.no_grad():
            taught = self.teacher(images)
        logits = self.student(images)
        classes = logit_divergence(logits, taught, self.weights.temperature)
        labels = label_loss(logits, targets)
        loss = self.weights.logits * classes + self.weights.labels * labels
        zero = torch.zeros_like(classes)
        return loss, torch.stack((classes, zero, zero, labels)).detach()


class _Linear(nn.Module):
    """Section 3.2, without the GELUs."""

    def __init__(
        self, node: Node, source: TensorSpec, module: nn.Module, preprocess: Preprocess
    ) -> None:
        super().__init__()
        # read, not owned: the float network owns its parameters
        self.read = (module,)
        self.node_name, self.input_scale = node.name, source.scale
        self.out = str(node.attrs["out"])
        self.frac, self.zero_point = int(node.attrs["frac"]), int(node.attrs["zero_point"])
        self.mean, self.std = preprocess.mean, preprocess.std
        stored = torch.from_numpy(node.tensors["weight"]).double()
        with torch.no_grad():
            weight, bias = self._float_parameters()
            if weight.shape != stored.shape:
                raise IntswinError(f"{node.name} was made from another network")
            weight, bias = weight.cpu(), bias.cpu()
            scale = quantize_weight(weight, bias, self.input_scale)
            if not torch.equal((weight / scale[:, None]).round().clamp(-127, 127), stored):
                raise IntswinError(f"{node.name} was made from other weights")
            parts = weight.new_tensor(node.out.part_scales or (node.out.scale,))
            h_scale = parts.repeat_interleave(len(weight) // len(parts)) / 2**self.frac
        self.register_buffer("h_scale", h_scale, persistent=False)

    def _float_parameters(self) -> tuple[Tensor, Tensor]:
        """Float64 weight (N, K) and bias (N,); those of the patch embedding take raw pixels."""
        (module,) = self.read
        weight = cast(Tensor, module.weight).double()
        own_bias = cast("Tensor | None", module.bias)
        bias = weight.new_zeros(len(weight)) if own_bias is None else own_bias.double()
        if weight.ndim == 4:
            mean = weight.new_tensor(self.mean)
            std = weight.new_tensor(self.std)
            bias = bias - (weight.sum((2, 3)) * (mean / std)).sum(1)
            weight = (weight / (255 * std)[:, None, None]).permute(0, 2, 3, 1).flatten(1)
        return weight, bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weight, bias = self._float_parameters()
        scale = quantize_weight(weight.detach(), bias.detach(), self.input_scale)
        unit = self.input_scale * scale
        steps = weight / scale[:, None]
        exact = steps.detach().round().clamp(-127, 127)
        acc = F.linear(x, straight_through(steps, exact).float())
        bias_steps = bias / unit

        with torch.no_grad():
            h_scale = cast(Tensor, self.h_scale)
            pre, mult = fixed_point(unit / h_scale)
            total = acc.round().int() + (bias_steps.round().int() + half(pre))
            h = requant16(total, pre, mult)
            if self.out == "i32":
                y = h
            elif self.out == "i16":
                y = (h if residual is None else h + residual.int()).clamp(*LIMITS["i16"])
            else:
                rounding = (self.zero_point << self.frac) + int(half(self.frac))
                y = ((h + rounding) >> self.frac).clamp(*LIMITS[self.out]) - self.zero_point
        ratio = (unit / h_scale / 2**self.frac).float()
        surrogate = (acc + bias_steps.float()) * ratio
        if residual is not None:
            surrogate = surrogate + residual
        if self.out != "i32":
            low, high = LIMITS[self.out]
            surrogate = surrogate.clamp(low - self.zero_point, high - self.zero_point)
        return straight_through(surrogate, y.float())


class _LayerNorm(nn.Module):
    """Section 3.4."""

    rows: Tensor | None

    def __init__(self, node: Node, source: TensorSpec, module: nn.LayerNorm) -> None:
        super().__init__()
        self.read = (module,)
        self.input_scale, self.output_scale = source.scale, node.out.scale
        self.out, self.zero_point = str(node.attrs["out"]), node.out.zero_point
        self.shift = int(node.attrs["shift"])
        self.eps = int(node.tensors["params"][0])
        rows = node.tensors.get("rows")
        self.register_buffer(
            "rows", None if rows is None else torch.from_numpy(rows).long(), persistent=False
        )
        if node.tensors["gamma"].size != module.weight.numel():
            raise IntswinError(f"{node.name} was made from another network")

    def forward(self, x: Tensor) -> Tensor:
        (module,) = self.read
        if self.rows is not None:
            x = x[:, self.rows].flatten(2)
        channels = x.shape[2]
        c2 = math.ceil(math.log2(channels) / 2)
        low, high = LIMITS[self.out]
        with torch.no_grad():
            unit = 2.0 ** (c2 - 14) * 2.0**self.shift / self.output_scale
            gamma = (module.weight.double() * unit).round().clamp(-32767, 32767).long()
            zero = quotient(module.bias.double(), self.output_scale) + self.zero_point
            limit = 2**30 - 2**self.shift
            beta = (zero * 2.0**self.shift).round().clamp(-limit, limit).long() + half(self.shift)
            z = integer_layer_norm(x.detach(), self.eps, c2)
            y = ((z * gamma + beta) >> self.shift).clamp(low, high) - self.zero_point
        real = F.layer_norm(
            x * self.input_scale, module.normalized_shape, module.weight, module.bias, module.eps
        )
        surrogate = (real / self.output_scale).clamp(low - self.zero_point, high - self.zero_point)
        return straight_through(surrogate, y.float())


class _Attention(nn.Module):
    """Section 3.5."""

    bias: Tensor | None
    rows: Tensor
    inverse: Tensor

    def __init__(self, node: Node) -> None:
        super().__init__()
        tensors = {k: torch.from_numpy(v).long() for k, v in node.tensors.items()}
        self.heads, self.d = int(node.attrs["heads"]), int(node.attrs["d"])
        self.params = [int(v) for v in node.tensors["params"]]
        self.register_buffer("rows", tensors["rows"], persistent=False)
        self.register_buffer("inverse", tensors["rows"].flatten().argsort(), persistent=False)
        bias = tensors["bias"][tensors["pattern"]] if "bias" in tensors else None
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, qkv: Tensor) -> Tensor:
        pre, mult, out_mult, out_shift = self.params
        windows, tokens = self.rows.shape
        split = qkv[:, self.rows].reshape(len(qkv), windows, tokens, 3, self.heads, self.d)
        q, k, v = split.permute(3, 0, 1, 4, 2, 5)
        with torch.no_grad():
            y = integer_attention(q, k, v, self.bias, (pre, mult, out_mult, out_shift))
        # real scores and what one unit of v is in units of the output
        scores = (q @ k.transpose(-1, -2)) * (16 * mult / 2**15 / 2**pre * LN2_STEP)
        if self.bias is not None:
            scores = scores + self.bias * LN2_STEP
        surrogate = (scores.softmax(-1) @ v) * (256 * out_mult / 2**out_shift)
        joined = straight_through(surrogate.clamp(-128, 127), y.float())
        by_row = joined.transpose(2, 3).reshape(len(qkv), windows * tokens, self.heads * self.d)
        return by_row[:, self.inverse]


class _MeanPool(nn.Module):
    """Section 3.6; steps have no zero point, so `bias` is half(pre) alone."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        _, self.pre, self.mult = (int(v) for v in node.tensors["params"])

    def forward(self, x: Tensor) -> Tensor:
        total = 256 * x.sum(1, keepdim=True)
        pre, mult = (torch.tensor(v, device=x.device) for v in (self.pre, self.mult))
        with torch.no_grad():
            h = requant16(total.round().int() + half(pre), pre, mult)
            y = ((h + (128 << 7) + int(half(7))) >> 7).clamp(0, 255) - 128
        surrogate = total * (self.mult / 2**15 / 2**self.pre / 128)
        return straight_through(surrogate.clamp(-128, 127), y.float())


class _Patchify(nn.Module):
    """Section 3.1."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.patch = int(node.attrs["patch"])

    def forward(self, pixels: Tensor) -> Tensor:
        n, height, width, channels = pixels.shape
        p = self.patch
        cut = pixels.reshape(n, height // p, p, width // p, p, channels).transpose(2, 3)
        return cut.reshape(n, (height // p) * (width // p), p * p * channels)


class _GatherRows(nn.Module):
    """Section 3.7."""

    rows: Tensor

    def __init__(self, node: Node) -> None:
        super().__init__()
        rows = torch.from_numpy(node.tensors["rows"]).long()
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.rows]


_OTHERS: dict[str, Any] = {
    "attention": _Attention,
    "mean_pool": _MeanPool,
    "patchify": _Patchify,
    "gather_rows": _GatherRows,
}
