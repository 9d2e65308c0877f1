"""Random problems for one `linear` kernel of CUDA, and what the NumPy reference makes of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from intswin.compile.operators import linear
from intswin.compile.quantize_parameters import gelu_parameters
from intswin.compile.tuner.kernel_data import KernelSpec, random_requantization
from intswin.models.integer_graph import Node, TensorSpec
from intswin.models.integer_ops import execute

_ROWS = 1024  # that the reference computes: the first and the last ones, and some between


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of a kernel, and part of its result.

    Attributes:
        arguments: all but the output, in the kernel's order.
        rows: of all images together, ascending.
        expected: the output in these rows, (len(rows), N).
    """

    arguments: list[np.ndarray]
    rows: np.ndarray
    expected: np.ndarray


def random_problem(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """Activations, weights and residuals uniform over their dtypes, and all kinds of parameters.

    Half of the columns are requantized so that results fill the int16 range, half with any
    parameters: those saturate.
    """
    batch, rows, depth = spec.arguments[0][0]
    channels, out_dtype = spec.arguments[-1][0][2], spec.arguments[-1][1]
    x = rng.integers(0, 256, (batch, rows, depth), np.uint8)
    residual = None
    if spec.residual:
        residual = rng.integers(-32768, 32768, (batch, rows, channels), np.int16)
    attrs: dict[str, int | str] = {
        "out": spec.out,
        "activation": spec.activation,
        "frac": spec.frac,
        "zero_point": int(rng.integers(0, 129)) if spec.out == "u8" else 0,
    }
    tensors = _parameters(channels, depth, rng)
    if spec.activation != "none":
        k = int(rng.integers(6, 11))
        parameters = gelu_parameters(spec.activation, k, 2.0**-k * 1.01, "random")
        tensors["act_params"] = np.asarray(parameters).astype(np.int32)
    out = TensorSpec((rows, channels), out_dtype, 1.0)
    inputs = ["x", "residual"][: 1 + spec.residual]
    node = Node("linear", "linear", inputs, tensors, attrs, out)
    chosen = _some_rows(batch * rows, rng)
    parts = [x.reshape(-1, depth)[chosen][None]]
    if residual is not None:
        parts.append(residual.reshape(-1, channels)[chosen][None])
    return Problem(
        arguments=_arguments(spec, node, x, residual),
        rows=chosen,
        expected=execute(node, parts)[0],
    )


def _parameters(channels: int, depth: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    bias, pre, mult = random_requantization(channels, depth, rng)
    return {
        "weight": rng.integers(-127, 128, (channels, depth), np.int8),
        "bias": bias.astype(np.int32),
        "pre": pre.astype(np.int32),
        "mult": mult.astype(np.int32),
    }


def _arguments(
    spec: KernelSpec, node: Node, x: np.ndarray, residual: np.ndarray | None
) -> list[np.ndarray]:
    """What the emitted operator passes to its kernel: inputs, and constants in its own layout."""
    arrays = [x] if residual is None else [x, residual]
    bb = relax.BlockBuilder()
    inputs = [
        relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        for name, array in zip(node.inputs, arrays, strict=True)
    ]
    with bb.function("main", inputs):
        with bb.dataflow():
            target = Target(json.loads(spec.target))
            out = bb.emit_output(linear.emit(bb, node, inputs, len(x), target))
        bb.emit_func_output(out)
    main = bb.get()["main"]
    calls = [binding.value for block in main.body.blocks for binding in block.bindings]
    (passed,) = (call.args[1] for call in calls if isinstance(call, relax.Call))
    given = dict(zip(node.inputs, arrays, strict=True))
    arguments = [
        one.value.numpy() if isinstance(one, tvm.ir.GenericConst) else given[one.name]
        for one in passed
    ]
    for array, (shape, dtype) in zip(arguments, spec.arguments[:-1], strict=True):
        assert (array.shape, str(array.dtype)) == (shape, dtype)
    return arguments


def _some_rows(count: int, rng: np.random.Generator) -> np.ndarray:
    if count <= _ROWS:
        return np.arange(count)
    ends = _ROWS // 4
    between = rng.choice(np.arange(ends, count - ends), _ROWS - 2 * ends, replace=False)
    return np.concatenate([np.arange(ends), np.sort(between), np.arange(count - ends, count)])
