"""Emits the nodes of an integer network: scales, linear layers with their epilogue, bookkeeping.

`quantize.py` decides what to emit and when; this file knows what it looks like.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
import torch

from intswin.compile import quantize_parameters as parameters
from intswin.compile.float_graph import FloatGraph, FloatOp
from intswin.compile.quantize_attention import Scores
from intswin.compile.quantize_views import View, identity
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import Attribute, Node, TensorSpec

RESIDUAL_STEPS = 16384  # the calibrated maximum of a residual stream; int16 leaves 2x headroom
LAYOUT_OPS = {
    "reshape", "permute_dims", "squeeze", "expand_dims", "broadcast_to", "strided_slice", "take",
    "concat", "split", "tuple_get_item", "copy",
}  # fmt: skip
Ranges = dict[str, tuple[float, float]]


@dataclasses.dataclass(eq=False)
class PendingLinear:
    """A linear layer whose epilogue is not decided yet."""

    input: str
    rows: int
    weight: np.ndarray  # float64 (N, K)
    bias: np.ndarray  # float64 (N,)
    value: str  # the float value that it makes so far
    activation: str = "none"
    pre_activation: str = ""
    node: str = ""  # once emitted


class Emitter:
    """The integer network so far.

    Attributes:
        values: float value name -> the view that it is.
        specs: integer tensor name -> what it is.
        nodes: operators in execution order.
        views: node name -> index table of the float value that it approximates.
    """

    def __init__(
        self,
        graph: FloatGraph,
        ranges: Ranges,
        extremes: Ranges,
        widen: dict[str, float],
    ) -> None:
        self.ranges, self.extremes, self.widen = ranges, extremes, widen
        self.values: dict[str, View] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.nodes: list[Node] = []
        self.views: dict[str, np.ndarray] = {}
        self._count: collections.Counter[str] = collections.Counter()
        self._stream = _residual_streams(graph)

    def u8_scale(self, name: str) -> float:
        """Scale of a symmetric uint8 activation, zero point 128."""
        return parameters.symmetric_scale(*self.ranges[name], 127) * self.widen.get(name, 1)

    def stream_scale(self, name: str) -> float:
        """One scale for all values that residual additions join."""
        stream = self._stream[name]
        members = [n for n, root in self._stream.items() if root == stream and n in self.extremes]
        reach = max(max(-low, high) for low, high in (self.extremes[n] for n in members))
        return max(reach, 1e-9) / RESIDUAL_STEPS * self.widen.get(stream, 1)

    def result(
        self,
        op: FloatOp,
        kind: str,
        inputs: list[str],
        tensors: dict[str, np.ndarray],
        attrs: dict[str, Attribute],
        spec: TensorSpec,
        index: torch.Tensor | None = None,
    ) -> None:
        """Emit a node and record the float value as a view of it (in its own order by default)."""
        node = self.emit(kind, inputs, tensors, attrs, spec, op.name)
        rows, channels = spec.shape
        if index is None:
            view = identity(node, rows, channels, op.shape)
        else:
            view = View(node, channels, index)
        self.values[op.name] = view
        self.views[node] = view.index.numpy()

    def emit(
        self,
        kind: str,
        inputs: list[str],
        tensors: dict[str, np.ndarray],
        attrs: dict[str, Attribute],
        spec: TensorSpec,
        float_name: str,
    ) -> str:
        """Append a node; its name, which is also its output's, is returned."""
        name = f"{kind}_{self._count[kind]}"
        self._count[kind] += 1
        self.nodes.append(Node(name, kind, inputs, tensors, attrs, spec, float_name))
        self.specs[name] = spec
        return name

    # --- materialising ----------------------------------------------------------------------

    def activation_view(self, name: str) -> View:
        """The value as a view of a uint8 tensor, emitting a pending linear layer if need be."""
        view = self._materialize(name, "u8")
        if self.specs[str(view.source)].dtype != "uint8":
            raise IntswinError(f"{name} feeds both a GEMM and a residual stream; not supported")
        return view

    def residual_view(self, name: str) -> View:
        """The value as a view of an int16 tensor, emitting a pending linear layer if need be."""
        view = self._materialize(name, "i16")
        if self.specs[str(view.source)].dtype != "int16":
            raise IntswinError(f"{name} feeds both a GEMM and a residual stream; not supported")
        return view

    def _materialize(self, name: str, out: str) -> View:
        view = self.values[name]
        if isinstance(view.source, PendingLinear):
            linear = view.source
            node = linear.node or self.linear(linear, out, linear.value)
            return dataclasses.replace(view, source=node)
        if isinstance(view.source, Scores):
            raise IntswinError(f"{name}: attention scores are used outside attention")
        return view

    def linear(self, linear: PendingLinear, out: str, name: str, residual: str = "") -> str:
        """Emit a linear layer; `name` is the float value that its output approximates."""
        zero_point, frac = 0, 0
        if out == "i16":
            scale = self.stream_scale(name)
        elif out == "i32":
            low, high = self.extremes[name]
            scale = parameters.symmetric_scale(low, high, RESIDUAL_STEPS) * self.widen.get(name, 1)
        elif linear.activation == "none":
            scale, zero_point, frac = self.u8_scale(name), 128, 7
        else:
            low, high = self.ranges[name]
            scale, zero_point = parameters.asymmetric_scale(low, high)
            scale *= self.widen.get(name, 1)
            frac = 6
        h_scale = scale / 2**frac
        spec = self.specs[linear.input]
        attrs: dict[str, Attribute] = {
            "out": out, "zero_point": zero_point, "frac": frac, "activation": "none"
        }  # fmt: skip
        extra: dict[str, np.ndarray] = {}
        key = name
        if linear.activation in ("igelu", "shiftgelu"):
            attrs["activation"] = linear.activation
            key = linear.pre_activation
            k = parameters.gelu_exponent(*self.extremes[key])
            k = max(6, k - math.ceil(math.log2(self.widen.get(key, 1))))
            extra["act_params"] = parameters.gelu_parameters(linear.activation, k, h_scale, name)
            h_scale = 2.0**-k
        h_scales = np.full(linear.bias.shape, h_scale)
        tensors = parameters.linear_parameters(
            linear.weight, linear.bias, spec.scale, spec.zero_point, h_scales,
            self._stream.get(key, key) if out == "i16" else key,
        )  # fmt: skip
        dtype = {"u8": "uint8", "i16": "int16", "i32": "int32"}[out]
        shape = (linear.rows, linear.bias.size)
        inputs = [linear.input, residual] if residual else [linear.input]
        out_spec = TensorSpec(shape, dtype, scale, zero_point)
        linear.node = self.emit("linear", inputs, {**tensors, **extra}, attrs, out_spec, name)
        return linear.node


def _residual_streams(graph: FloatGraph) -> dict[str, str]:
    """Union of values joined by additions and layout: value name -> its stream's name."""
    parent: dict[str, str] = {graph.input: graph.input}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for op in graph.ops:
        parent[op.name] = op.name
        if op.op == "add" or op.op in LAYOUT_OPS:
            for name in op.value_args:
                parent[find(name)] = op.name
    return {name: find(name) for name in parent}
