"""Step 4: float network + calibrated ranges -> integer network.

Walks the float operators once, in order. Each float value is kept as a view of an integer tensor
(`quantize_views`); a linear layer stays pending until its consumer decides its epilogue (ReLU,
GELU, residual addition, or the int8 operands of attention). Operators are matched by what they
are, never by a module's name. docs/integer-semantics.md defines what is emitted.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math

import numpy as np
import torch

from intswin.compile import quantize_parameters as parameters
from intswin.compile.float_graph import FloatGraph, FloatOp
from intswin.compile.quantize_attention import Scores
from intswin.compile.quantize_emit import LAYOUT_OPS, Emitter, PendingLinear, Ranges
from intswin.compile.quantize_emit_attention import emit_attention
from intswin.compile.quantize_views import (
    View,
    elements,
    in_order,
    is_permutation,
    per_channel,
    through_layout,
)
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import Attribute, IntegerGraph, TensorSpec
from intswin.models.preprocess import Preprocess

MAX_WIDENINGS = 50  # a widened scale fits at once; a pass takes a second for a large network
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class QuantizedNetwork:
    """An integer network and how its tensors relate to the float one.

    Attributes:
        graph: what is executed.
        views: node name -> index table of the float value `node.float_name`: element i of the float
            value is element views[name].flat[i] of the node's (rows, channels) output.
    """

    graph: IntegerGraph
    views: dict[str, np.ndarray]


def quantize(
    graph: FloatGraph,
    ranges: Ranges,
    extremes: Ranges,
    preprocess: Preprocess,
    gelu: str = "igelu",
) -> QuantizedNetwork:
    """Quantize a simplified float network.

    Args:
        graph: from `simplify`.
        ranges: value name -> (low, high), by the chosen calibration method: 8-bit tensors.
        extremes: the same by min-max: 16-bit tensors, which have room for outliers.
        preprocess: its mean and std are folded into the patch embedding.
        gelu: "igelu" or "shiftgelu": what a GELU becomes.

    Raises:
        IntswinError: the network has an operator or a layout that has no integer form.
    """
    widen: dict[str, float] = {}
    name = ""
    for _ in range(MAX_WIDENINGS):
        try:
            return _Quantizer(graph, ranges, extremes, preprocess, gelu, widen).run()
        except parameters.ScaleTooFineError as error:
            name = error.name
            widen[name] = widen.get(name, 1.0) * error.factor
            _log.info("scale of %s widened by %.3g", name, widen[name])
    raise IntswinError(
        f"value {name} finds no scale that suits its accumulator; is the network trained?"
    )


class _Quantizer:
    def __init__(
        self,
        graph: FloatGraph,
        ranges: Ranges,
        extremes: Ranges,
        preprocess: Preprocess,
        gelu: str,
        widen: dict[str, float],
    ) -> None:
        self.graph, self.preprocess, self.gelu = graph, preprocess, gelu
        self.out = Emitter(graph, ranges, extremes, widen)
        self.values = self.out.values
        self.consumers: dict[str, list[FloatOp]] = collections.defaultdict(list)
        for op in graph.ops:
            for name in op.value_args:
                self.consumers[name].append(op)

    def run(self) -> QuantizedNetwork:
        _, channels, height, width = self.graph.input_shape
        if channels != 3:
            raise IntswinError(f"the network takes {channels} channels; RGB images have 3")
        image = TensorSpec((height, width, 3), "uint8", 1.0)
        self.out.specs["image"] = image
        pixels = elements(height * width * 3).reshape(1, height, width, 3)
        self.values["image"] = View("image", 3, pixels.permute(0, 3, 1, 2))
        handlers = {
            "nn.conv2d": self._conv2d, "matmul": self._matmul, "add": self._add,
            "multiply": self._multiply, "divide": self._multiply, "nn.relu": self._activation,
            "nn.gelu": self._activation, "nn.layer_norm": self._layer_norm,
            "nn.softmax": self._softmax, "mean": self._mean,
        }  # fmt: skip
        last_reader = {name: op.name for op in self.graph.ops for name in op.value_args}
        for op in self.graph.ops:
            if op.op in LAYOUT_OPS:
                self.values[op.name] = through_layout(op, self.values)
            elif op.op in handlers:
                handlers[op.op](op)
            else:
                raise IntswinError(
                    f"operator {op.op!r} ({op.name}) has no integer form; intswin quantizes the "
                    "operators of Swin, ViT and DeiT networks"
                )
            for name in op.value_args:  # index tables of a large network fill gigabytes
                if last_reader[name] == op.name:
                    self.values.pop(name, None)
        self._logits()
        return QuantizedNetwork(IntegerGraph(image, self.out.nodes), self.out.views)

    # --- linear layers ----------------------------------------------------------------------

    def _conv2d(self, op: FloatOp) -> None:
        weight = op.args[1].double().numpy()
        features, _, kernel, kernel_x = weight.shape
        height, width, _ = self.out.specs["image"].shape
        strides = [int(s) for s in op.attrs.strides]
        plain = self.values[op.args[0]].source == "image" and int(op.attrs.groups) == 1
        if not plain or strides != [kernel, kernel_x] or kernel != kernel_x or height % kernel:
            raise IntswinError(f"convolution {op.name} is not a patch embedding of the image")
        rows = (height // kernel) * (width // kernel)
        patches = self.out.emit(
            "patchify", ["image"], {}, {"patch": kernel},
            TensorSpec((rows, kernel * kernel * 3), "uint8", 1.0), "",
        )  # fmt: skip
        # (pixel / 255 - mean) / std, folded: the network takes raw pixels
        mean, std = np.array(self.preprocess.mean), np.array(self.preprocess.std)
        folded = weight / (255 * std)[None, :, None, None]
        bias = -(weight.sum(axis=(2, 3)) * (mean / std)).sum(axis=1)
        matrix = folded.transpose(0, 2, 3, 1).reshape(features, -1)
        linear = PendingLinear(patches, rows, matrix, bias, op.name)
        order = elements(rows * features).reshape(1, *op.shape[2:], features)
        self.values[op.name] = View(linear, features, order.permute(0, 3, 1, 2))

    def _matmul(self, op: FloatOp) -> None:
        left, right = op.args
        if isinstance(left, str) and isinstance(right, str):
            self._attention_matmul(op)
            return
        if not isinstance(left, str) or right.ndim != 2:
            raise IntswinError(f"matmul {op.name} of a constant by a tensor is not supported")
        view = self.out.activation_view(left)
        rows = view.rows(left)
        source = str(view.source)
        count = self.out.specs[source].shape[0]
        if rows.shape[1] != 1:
            raise IntswinError(f"matmul {op.name} joins several rows; not supported")
        order = rows[:, 0]
        if not is_permutation(order, count):
            source = self._gather(source, order)
            order = np.arange(len(order))
            count = len(order)
        weight = right.double().numpy().T * view.factor
        features = weight.shape[0]
        linear = PendingLinear(source, count, weight, np.zeros(features), op.name)
        self.values[op.name] = in_order(linear, order, features, op.shape)

    def _gather(self, source: str, rows: np.ndarray) -> str:
        spec = dataclasses.replace(
            self.out.specs[source], shape=(len(rows), self.out.specs[source].shape[1])
        )
        tensors = {"rows": rows.astype(np.int32)}
        return self.out.emit("gather_rows", [source], tensors, {}, spec, "")

    def _activation(self, op: FloatOp) -> None:
        view = self.values[op.args[0]]
        linear = self._open_linear(view)
        if linear is None or linear.activation != "none":
            raise IntswinError(f"{op.op} {op.name} does not follow a linear layer")
        linear.activation = "relu" if op.op == "nn.relu" else self.gelu
        linear.pre_activation, linear.value = linear.value, op.name
        self.values[op.name] = view

    def _open_linear(self, view: View) -> PendingLinear | None:
        """The pending linear layer behind a value, when an epilogue may still be folded into it."""
        linear = view.source
        if not isinstance(linear, PendingLinear) or linear.node or view.factor != 1:
            return None
        return linear if len(self._readers(linear.value)) == 1 else None

    def _readers(self, name: str) -> set[str]:
        """Operators that compute with a value, seen through any layout."""
        readers: set[str] = set()
        pending = [name]
        while pending:
            for op in self.consumers[pending.pop()]:
                if op.op in LAYOUT_OPS:
                    pending.append(op.name)
                else:
                    readers.add(op.name)
        return readers

    # --- element-wise -----------------------------------------------------------------------

    def _add(self, op: FloatOp) -> None:
        names = op.value_args
        if len(names) == 2:
            self._add_residual(op)
            return
        (name,) = names
        view = self.values[name]
        constant = next(arg for arg in op.args if isinstance(arg, torch.Tensor))
        if isinstance(view.source, Scores):
            view.source.add(view, constant)
            self.values[op.name] = view
            return
        linear = self._open_linear(view)
        vector = per_channel(view, constant) if linear is not None else None
        if linear is not None and vector is not None and linear.activation == "none":
            linear.bias = linear.bias + vector
            linear.value = op.name
            self.values[op.name] = view
            return
        self._add_constant(op, name, constant)

    def _add_constant(self, op: FloatOp, name: str, constant: torch.Tensor) -> None:
        """A position embedding, and the class token that was concatenated before it."""
        view = self.out.residual_view(name)
        source = str(view.source)
        rows = view.rows(name)
        if rows.shape[1] != 1 or view.factor != 1:
            raise IntswinError(f"add {op.name} of a constant to this layout is not supported")
        scale = self.out.specs[source].scale
        table = constant.double().broadcast_to(op.shape).reshape(len(rows), -1).numpy().copy()
        inserted = rows[:, 0] < 0
        flat = view.index.reshape(len(rows), -1).numpy()
        table[inserted] += view.constants[-1 - flat[inserted]]
        tensors = {
            "rows": rows[:, 0].astype(np.int32),
            "constant": np.rint(table / scale).astype(np.int32),
        }
        spec = TensorSpec(table.shape, "int16", scale)
        self.out.result(op, "add_constant", [source], tensors, {}, spec)

    def _add_residual(self, op: FloatOp) -> None:
        candidates = [n for n in op.value_args if self._open_linear(self.values[n])]
        if not candidates:
            raise IntswinError(f"add {op.name} does not add a linear layer to a residual stream")
        branch = candidates[-1]
        residual = next(n for n in op.value_args if n != branch)
        stream = self.out.residual_view(residual)
        view = self.values[branch]
        linear = view.source
        assert isinstance(linear, PendingLinear)
        if linear.activation != "none" or not torch.equal(view.index, stream.index):
            raise IntswinError(f"add {op.name}: its operands lie in different orders")
        linear.value = op.name
        node = self.out.linear(linear, "i16", op.name, residual=str(stream.source))
        self.values[op.name] = View(node, view.channels, view.index)
        self.out.views[node] = view.index.numpy()

    def _multiply(self, op: FloatOp) -> None:
        constants = [arg for arg in op.args if isinstance(arg, torch.Tensor)]
        (name,) = op.value_args or ("",)
        if len(constants) != 1 or (op.op == "divide" and op.args[1] is not constants[0]):
            raise IntswinError(f"{op.op} {op.name} of two tensors has no integer form")
        constant = constants[0] if op.op == "multiply" else 1 / constants[0]
        view = self.values[name]
        if constant.numel() == 1:
            if isinstance(view.source, Scores):
                view.source.scale(float(constant))
                self.values[op.name] = view
            else:
                scaled = dataclasses.replace(view, factor=view.factor * float(constant))
                self.values[op.name] = scaled
            return
        linear = self._open_linear(view)
        vector = per_channel(view, constant) if linear is not None else None
        if linear is None or vector is None or linear.activation != "none":
            raise IntswinError(f"{op.op} {op.name} by a vector does not follow a linear layer")
        linear.weight = linear.weight * vector[:, None]
        linear.bias = linear.bias * vector
        linear.value = op.name
        self.values[op.name] = view

    # --- normalisation, pooling, attention -----------------------------------------------------

    def _layer_norm(self, op: FloatOp) -> None:
        name = op.args[0]
        view = self.out.residual_view(name)
        source = str(view.source)
        rows = view.rows(name)
        groups = rows.shape[1]
        gamma, beta = (arg.double().numpy() for arg in op.args[1:3])
        if gamma.size != groups * view.channels or (rows < 0).any() or view.factor != 1:
            raise IntswinError(f"layer_norm {op.name} does not normalise whole rows")
        channels = gamma.size
        count = self.out.specs[source].shape[0]
        if groups == 1 and is_permutation(rows, count):
            tables: dict[str, np.ndarray] = {}
            order = rows[:, 0]
        else:
            tables = {"rows": rows.astype(np.int32)}
            order = np.arange(len(rows))
        out = "i16" if self._feeds_stream(op.name) else "u8"
        spec = TensorSpec((len(rows), channels), "int16", self.out.stream_scale(op.name))
        if out == "u8":
            spec = TensorSpec((len(rows), channels), "uint8", self.out.u8_scale(op.name), 128)
        tensors, shift = parameters.layer_norm_parameters(
            gamma, beta, float(op.attrs.epsilon), self.out.specs[source].scale, spec.scale,
            spec.zero_point,
        )  # fmt: skip
        index = in_order("", order, channels, op.shape).index
        attrs: dict[str, Attribute] = {"out": out, "shift": shift}
        self.out.result(op, "layer_norm", [source], {**tables, **tensors}, attrs, spec, index)

    def _mean(self, op: FloatOp) -> None:
        name = op.args[0]
        view = self.out.activation_view(name)
        source = str(view.source)
        spec = self.out.specs[source]
        rows, channels = spec.shape
        axes = sorted(int(a) % view.index.ndim for a in op.attrs.axis)
        kept = [d for i, d in enumerate(view.index.shape) if i not in axes]
        order = view.rows(name)
        if math.prod(kept) != channels or not is_permutation(order, rows) or view.factor != 1:
            raise IntswinError(f"mean {op.name} does not average all tokens of each channel")
        scale = self.out.u8_scale(op.name)
        pre, mult = parameters.fixed_point(spec.scale / rows / (scale / 128) / 256, op.name)
        bias = int(-256 * spec.zero_point * rows + parameters.half(pre))
        tensors = {"params": np.array([bias, int(pre), int(mult)], dtype=np.int32)}
        self.out.result(
            op, "mean_pool", [source], tensors, {}, TensorSpec((1, channels), "uint8", scale, 128)
        )

    def _softmax(self, op: FloatOp) -> None:
        view = self.values[op.args[0]]
        scores = view.source
        if not isinstance(scores, Scores) or int(op.attrs.axis) % len(op.shape) != (
            len(op.shape) - 1
        ):
            raise IntswinError(f"softmax {op.name} is not over attention scores; not supported")
        scores.require_natural(view, f"softmax {op.name}")
        scores.normalized = True
        self.values[op.name] = view

    def _attention_matmul(self, op: FloatOp) -> None:
        left, right = (self.values[name] for name in op.args)
        if isinstance(left.source, Scores):
            emit_attention(self.out, op)
            return
        scores = Scores.of(left, right, *op.args)
        index = elements(math.prod(op.shape)).reshape(op.shape)
        self.values[op.name] = View(scores, op.shape[-1], index)

    def _logits(self) -> None:
        view = self.values[self.graph.output]
        linear = view.source
        natural = elements(view.index.numel())
        if (
            not isinstance(linear, PendingLinear)
            or linear.activation != "none"
            or not torch.equal(view.index.reshape(-1), natural)
        ):
            raise IntswinError("the network does not end in a linear classifier")
        node = self.out.linear(linear, "i32", self.graph.output)
        self.out.views[node] = view.index.numpy()

    def _feeds_stream(self, name: str) -> bool:
        """Whether a value is normalised or added to, rather than multiplied by a weight."""
        operators = {op.name: op.op for op in self.graph.ops}
        kinds = {operators[reader] in ("matmul", "mean") for reader in self._readers(name)}
        if kinds == {True, False}:
            raise IntswinError(f"{name} feeds both a GEMM and a residual stream; not supported")
        return kinds == {False}
