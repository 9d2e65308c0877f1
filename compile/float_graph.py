"""Reads a float32 Relax function as a list of operators, and evaluates operators with torch.

Constant folding, calibration and the quantizer's index tables all need the meaning of the float
operators that importers produce. It is written down once here, on torch tensors: untuned compiled
code would take seconds for an image, and most of these operators never reach the compiled network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.tirx import BufferStore

from intswin.models.errors import IntswinError


@dataclasses.dataclass(frozen=True)
class FloatOp:
    """One binding of a float Relax function.

    Attributes:
        name: of the value that it makes.
        op: Relax operator without the "relax." prefix, such as "nn.layer_norm".
        args: each a value's name (str), a constant (torch.Tensor), or, for shapes, slices and
            tuples, a tuple of such or of numbers.
        attrs: the Relax call's attributes, or None.
        shape: of the value.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    attrs: Any
    shape: tuple[int, ...]

    @property
    def value_args(self) -> list[str]:
        """Names of the values read, tuples included."""
        flat: list[Any] = []
        for arg in self.args:
            flat.extend(arg if isinstance(arg, tuple) else (arg,))
        return [arg for arg in flat if isinstance(arg, str)]


@dataclasses.dataclass(frozen=True)
class FloatGraph:
    """A float network: `ops` in execution order from the value `input` to the value `output`."""

    input: str
    input_shape: tuple[int, ...]
    ops: list[FloatOp]
    output: str

    def run(
        self, image: torch.Tensor, visit: Callable[[FloatOp, torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """Evaluate the network for one image, float32 of `input_shape`.

        Args:
            image: normalised pixels.
            visit: called with every operator and its value, in order.

        Returns:
            The output value. Values are freed after their last use.
        """
        last_use = {name: i for i, op in enumerate(self.ops) for name in op.value_args}
        values = {self.input: image}
        for i, op in enumerate(self.ops):
            value = values[op.name] = evaluate(op, values)
            if visit is not None:
                visit(op, value)
            for name in op.value_args:
                if last_use[name] == i and name != self.output:
                    values.pop(name, None)
        return values[self.output]


def read_float_graph(mod: IRModule) -> FloatGraph:
    """Read `main` of an imported module.

    Raises:
        IntswinError: a binding is not a call of a known form, or a shape is not static.
    """
    function = mod["main"]
    names: dict[relax.Var, str] = {}
    ops: list[FloatOp] = []

    def name_of(var: relax.Var) -> str:
        while var in aliases:
            var = aliases[var]
        return names[var]

    def argument(expr: relax.Expr) -> Any:
        if isinstance(expr, GenericConst):
            return torch.from_numpy(np.array(expr.value.numpy()))
        if isinstance(expr, relax.ShapeExpr):
            return tuple(int(d) for d in expr.values)
        if isinstance(expr, relax.Tuple):
            return tuple(argument(field) for field in expr.fields)
        if isinstance(expr, relax.Var):
            return name_of(expr)
        return expr.value  # IntImm, FloatImm

    aliases: dict[relax.Var, relax.Var] = {}
    (param,) = function.params
    names[param] = str(param.name)
    for block in function.body.blocks:
        for binding in block.bindings:
            var, value = binding.var, binding.value
            if isinstance(value, relax.Var):
                aliases[var] = value
                continue
            names[var] = unique = f"{var.name}"
            if isinstance(value, GenericConst):
                ops.append(FloatOp(unique, "constant", (argument(value),), None, _shape(var)))
                continue
            if isinstance(value, relax.TupleGetItem):
                args: tuple[Any, ...] = (name_of(value.tuple_value), int(value.index))
                ops.append(FloatOp(unique, "tuple_get_item", args, None, _shape(var)))
                continue
            if not isinstance(value, relax.Call):
                raise IntswinError(f"cannot import the Relax expression {type(value).__name__}")
            op = str(getattr(value.op, "name", value.op)).removeprefix("relax.")
            if op == "call_tir":
                _require_copy(mod, value)
                ops.append(
                    FloatOp(unique, "copy", (argument(value.args[1])[0],), None, _shape(var))
                )
                continue
            args = tuple(argument(a) for a in value.args)
            ops.append(FloatOp(unique, op, args, value.attrs, _shape(var)))
    input_shape = tuple(int(d) for d in param.ty.shape)
    return FloatGraph(names[param], input_shape, ops, name_of(function.body.body))


def evaluate(op: FloatOp, values: Mapping[str, Any]) -> Any:
    """Compute one operator with torch; `values` holds the values that it reads, by name.

    Raises:
        IntswinError: the operator is not one that vision transformers import as.
    """

    def resolve(arg: Any) -> Any:
        if isinstance(arg, str):
            return values[arg]
        if isinstance(arg, tuple):
            return tuple(resolve(a) for a in arg)
        return arg

    function = _EVALUATE.get(op.op)
    if function is None:
        raise IntswinError(
            f"operator {op.op!r} (value {op.name}) is not supported; intswin handles the operators "
            "of Swin, ViT and DeiT networks"
        )
    return function(op, *(resolve(arg) for arg in op.args))


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _strided_slice(
    op: FloatOp, x: Any, axes: Any, begin: Any, end: Any, strides: Any = None
) -> Any:
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        stop = min(int(end[i]), x.shape[axis])
        index[axis] = slice(int(begin[i]), stop, int(strides[i]) if strides else 1)
    return x[tuple(index)]


def _take(op: FloatOp, x: Any, indices: Any) -> Any:
    axis = int(op.attrs.axis) if op.attrs.axis is not None else None
    source = x.reshape(-1) if axis is None else x
    axis = axis or 0
    indices = torch.as_tensor(indices)
    taken = source.index_select(axis, indices.reshape(-1).long())
    shape = (*source.shape[:axis], *indices.shape, *source.shape[axis + 1 :])
    return taken.reshape(shape)


def _pad(op: FloatOp, x: Any) -> Any:
    width = _ints(op.attrs.pad_width)
    if any(width):
        pairs = list(zip(width[::2], width[1::2], strict=True))
        return F.pad(x, [w for pair in reversed(pairs) for w in pair], value=op.attrs.pad_value)
    return x


def _split(op: FloatOp, x: Any) -> Any:
    sections = op.attrs.indices_or_sections
    axis = int(op.attrs.axis)
    if hasattr(sections, "value"):
        return torch.tensor_split(x, int(sections.value), axis)
    return torch.tensor_split(x, _ints(sections), axis)


def _squeeze(op: FloatOp, x: Any) -> Any:
    axes = range(x.ndim) if op.attrs.axis is None else _ints(op.attrs.axis)
    kept = [d for i, d in enumerate(x.shape) if not (i in {a % x.ndim for a in axes} and d == 1)]
    return x.reshape(kept)


def _expand_dims(op: FloatOp, x: Any) -> Any:
    rank = x.ndim + len(op.attrs.axis)
    shape = list(x.shape)
    for axis in sorted(a % rank for a in _ints(op.attrs.axis)):
        shape.insert(axis, 1)
    return x.reshape(shape)


def _conv2d(op: FloatOp, x: Any, weight: Any) -> Any:
    top, left, bottom, right = _ints(op.attrs.padding)
    x = F.pad(x, [left, right, top, bottom]) if any((top, left, bottom, right)) else x
    strides, dilation = _ints(op.attrs.strides), _ints(op.attrs.dilation)
    return F.conv2d(x, weight, None, strides, 0, dilation, int(op.attrs.groups))


def _layer_norm(op: FloatOp, x: Any, gamma: Any, beta: Any) -> Any:
    axes = sorted(a % x.ndim for a in _ints(op.attrs.axes))
    if axes != list(range(x.ndim - len(axes), x.ndim)):
        raise IntswinError(f"layer_norm {op.name} normalises axes {axes}; only trailing axes work")
    return F.layer_norm(x, x.shape[axes[0] :], gamma, beta, float(op.attrs.epsilon))


def _reduce_mean(op: FloatOp, x: Any) -> Any:
    return x.mean(_ints(op.attrs.axis), keepdim=bool(op.attrs.keepdims))


def _arange(op: FloatOp, start: Any, end: Any, step: Any) -> Any:
    return torch.arange(int(start), int(end), int(step))


def _astype(op: FloatOp, x: Any) -> Any:
    return x.to(getattr(torch, str(op.attrs.dtype)))


_EVALUATE: dict[str, Callable[..., Any]] = {
    "constant": lambda op, x: x,
    "copy": lambda op, x: x,
    "tuple_get_item": lambda op, x, index: x[index],
    # data movement: the quantizer also runs these on index tables
    "reshape": lambda op, x, shape: x.reshape(tuple(_ints(shape))),
    "permute_dims": lambda op, x: x.permute(
        _ints(op.attrs.axes) if op.attrs.axes is not None else tuple(reversed(range(x.ndim)))
    ),
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "broadcast_to": lambda op, x, shape: x.expand(tuple(_ints(shape))),
    "strided_slice": _strided_slice,
    "take": _take,
    "concat": lambda op, xs: torch.cat(xs, int(op.attrs.axis or 0)),
    "split": _split,
    "nn.pad": _pad,
    # arithmetic
    "add": lambda op, x, y: x + y,
    "subtract": lambda op, x, y: x - y,
    "multiply": lambda op, x, y: x * y,
    "divide": lambda op, x, y: x / y,
    "mod": lambda op, x, y: x % y,
    "less": lambda op, x, y: x < y,
    "where": lambda op, condition, x, y: torch.where(condition, x, y),
    "erf": lambda op, x: torch.erf(x),
    "sqrt": lambda op, x: torch.sqrt(x),
    "astype": _astype,
    "arange": _arange,
    "shape_of": lambda op, x: tuple(x.shape),
    "shape_to_tensor": lambda op, shape: torch.tensor(shape),
    # layers
    "nn.conv2d": _conv2d,
    "matmul": lambda op, x, y: x @ y,
    "nn.layer_norm": _layer_norm,
    "nn.softmax": lambda op, x: torch.softmax(x, int(op.attrs.axis)),
    "nn.relu": lambda op, x: torch.relu(x),
    "nn.gelu": lambda op, x: F.gelu(x),
    "mean": _reduce_mean,
}


def _shape(var: relax.Var) -> tuple[int, ...]:
    shape = getattr(var.ty, "shape", None)
    if shape is None:
        return ()
    try:
        return tuple(int(d) for d in shape)
    except TypeError:
        raise IntswinError(f"value {var.name} has no static shape; export fixed sizes") from None


def _require_copy(mod: IRModule, call: relax.Call) -> None:
    """The ONNX importer writes a pad by zero as a PrimFunc that copies; accept nothing else."""
    function = mod[call.args[0]]
    buffers = list(function.params)
    statement = function.body
    while not isinstance(statement, BufferStore):  # root block, loops, block: one child each
        statement = getattr(statement, "block", None) or getattr(statement, "body", None)
        if statement is None:
            break
    copies = (
        len(buffers) == 2
        and isinstance(statement, BufferStore)
        and getattr(statement.value, "indices", None) is not None  # a plain load
        and [int(d) for d in buffers[0].shape] == [int(d) for d in buffers[1].shape]
        and all(
            a.same_as(b) for a, b in zip(statement.indices, statement.value.indices, strict=True)
        )
    )
    if not copies:
        raise IntswinError(
            f"the importer made a {call.args[0].name_hint!r} that is not a plain copy (padding of "
            "a feature map?); use an image size that the window size divides at every stage"
        )
