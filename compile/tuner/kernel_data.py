"""What is known of a kernel that is tuned; random inputs for one `linear` kernel of a CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from tvm import tirx
from tvm.target import Target

from intswin.compile.quantize_parameters import gelu_parameters, half
from intswin.compile.targets import is_cuda

Arguments: TypeAlias = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """What a kernel takes and gives, small enough to be sent to a worker or a board.

    Attributes:
        arguments: (shape, dtype) of each, the output last.
        op: the operator.
        attributes: name and value of those that its PrimFunc has.
        operations: multiplications and additions, without padding: of the GEMM or both GEMMs,
            of the two products of an attention; of a LayerNorm about 8 for each number.
        target: JSON of the target of a CUDA kernel.
    """

    arguments: Arguments
    op: str
    attributes: tuple[tuple[str, int | str], ...]
    operations: int
    target: str = ""

    @staticmethod
    def of(func: tirx.PrimFunc, target: Target) -> KernelSpec:
        """The arguments and attributes of an unscheduled PrimFunc that `emit` made."""
        types = [param.ty for param in func.params]
        arguments = tuple((tuple(int(e) for e in t.shape), str(t.dtype)) for t in types)
        attributes = {
            name.removeprefix("intswin."): str(value) if isinstance(value, str) else int(value)
            for name, value in func.attrs.items()
            if name.startswith("intswin.")
        }
        op = str(attributes.pop("op"))
        return KernelSpec(
            arguments,
            op,
            tuple(sorted(attributes.items())),
            _operations(op, arguments, attributes),
            str(target) if is_cuda(target) else "",
        )

    def number(self, name: str) -> int:
        """The attribute `name`, an integer."""
        return int(dict(self.attributes)[name])

    def text(self, name: str) -> str:
        """The attribute `name`, a text."""
        return str(dict(self.attributes)[name])

    @property
    def description(self) -> str:
        """Such as "8x196x384 -> 1536 u8 igelu"."""
        (batch, rows, channels), dtype = self.arguments[-1]
        if self.op == "attention":
            names = ("windows", "tokens", "heads", "d")
            windows, tokens, heads, d = (self.number(name) for name in names)
            return f"attention {batch}x{windows} windows of {tokens}, {heads} heads of {d}"
        if self.op in ("norm_attention", "norm_msa"):
            names = ("windows", "tokens", "heads", "channels")
            windows, tokens, heads, depth = (self.number(name) for name in names)
            attention = f"attention {batch}x{windows} windows of {tokens}, {heads} heads"
            projection = ", projection" if self.op == "norm_msa" else ""
            return f"layer_norm, qkv of {depth} channels, {attention}{projection}"
        if self.op == "layer_norm":
            return f"layer_norm {batch}x{rows}x{channels} {dtype}"
        depth = _depth(self.arguments, dict(self.attributes))
        activation = self.text("activation")
        activation = "" if activation == "none" else f" {activation}"
        if self.op == "norm_mlp":
            hidden = self.number("hidden")
            return f"layer_norm, {batch}x{rows}x{channels} -> {hidden}{activation} -> {channels}"
        gemm = f"{batch}x{rows}x{depth} -> {channels} {self.text('out')}{activation}"
        return gemm if self.op == "linear" else f"layer_norm, {gemm}"


def _depth(arguments: Arguments, attributes: Mapping[str, int | str]) -> int:
    """Input channels of a GEMM; one that normalises its rows can join several of x to one."""
    return arguments[0][0][2] * int(attributes.get("gather", 1))


def _operations(op: str, arguments: Arguments, attributes: Mapping[str, int | str]) -> int:
    batch, rows, channels = arguments[-1][0]
    if op in ("linear", "norm_linear"):
        return 2 * batch * rows * channels * _depth(arguments, attributes)
    if op == "norm_mlp":
        return 4 * batch * rows * channels * int(attributes["hidden"])
    if op == "attention":
        return 4 * batch * rows * channels * int(attributes["tokens"])
    if op in ("norm_attention", "norm_msa"):
        each = 6 * int(attributes["channels"]) + 4 * int(attributes["tokens"])
        if op == "norm_msa":
            each += 2 * channels
        return batch * rows * channels * each
    return 8 * batch * rows * channels


def random_requantization(
    columns: int | tuple[int, ...], depth: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Int64 bias, pre and mult of shape `columns` for sums of `depth` products of full-range bytes.

    Half of the columns fill the int16 range, half have any parameters.
    """
    wild = rng.random(columns) < 0.5
    spread = 147 * 74 * math.sqrt(depth)  # of a sum of products of full-range bytes
    typical = max(0, round(math.log2(spread / 2**13)))
    pre = np.where(wild, rng.integers(0, 25, columns), typical)
    mult = np.where(wild, rng.integers(0, 32768, columns), rng.integers(16384, 32768, columns))
    # |products| stay below 2^27 (4096 input channels), so that nothing overflows an int32.
    sign = rng.choice([-1, 1], columns)
    bias = sign * np.exp2(rng.uniform(0, np.where(wild, 30, math.log2(spread)))).astype(np.int64)
    return bias, pre, mult


def random_inputs(spec: KernelSpec, rng: np.random.Generator) -> list[np.ndarray]:
    """All arguments of a `linear` kernel but the output, over docs/integer-semantics.md's domains.

    Activations, weights and residuals are uniform over their dtypes. Half of the columns are
    requantized so that results fill the int16 range, half with any parameters: those saturate.
    """
    (_, _, depth), columns = spec.arguments[0][0], spec.arguments[2][0]
    shapes = [shape for shape, _ in spec.arguments]
    bias, pre, mult = random_requantization(columns, depth, rng)
    inputs = [
        rng.integers(0, 256, shapes[0], np.uint8),
        rng.integers(-127, 128, shapes[1], np.int8),
        bias.astype(np.int32),
        pre.astype(np.int32),
        mult.astype(np.int16),
    ]
    activation = spec.text("activation")
    if activation != "none":
        k = int(rng.integers(6, 11))
        parameters = gelu_parameters(activation, k, 2.0**-k * 1.01, "random")
        shape = shapes[len(inputs) + 1]
        after, factor = int(parameters[4]), int(parameters[5])
        inputs += [
            parameters[:4].astype(np.int32),
            np.full(shape, half(after), np.int32),
            np.full(shape, after, np.int32),
            np.full(shape, factor, np.int16),
        ]
    for shape, dtype in spec.arguments[len(inputs) : -1]:
        if shape == (1,):  # (zero point << frac) + rounding
            inputs.append(rng.integers(0, (128 << 7) + 64, shape, np.int16, endpoint=True))
        else:  # the residual
            inputs.append(rng.integers(-32768, 32768, shape, dtype))
    return inputs
