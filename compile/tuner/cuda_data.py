"""Random problems for one CUDA kernel, and what the NumPy reference makes of them."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from intswin.compile.operators import (
    attention,
    layer_norm,
    linear,
    norm_attention,
    norm_linear,
    norm_mlp,
    norm_msa,
)
from intswin.compile.quantize_parameters import attention_parameters, gelu_parameters
from intswin.compile.schedules import cuda_norm_attention_space
from intswin.compile.tuner.kernel_data import KernelSpec, random_requantization
from intswin.models.integer_graph import Node, TensorSpec
from intswin.models.integer_ops import as_second, execute

_ROWS = 1024  # of a GEMM that the reference computes: the first and last ones, and some between
_IMAGE_ROWS = 6400  # about so many of other operators, whole images: the first, the last, some more
_OPERATORS = {
    "linear": linear,
    "attention": attention,
    "layer_norm": layer_norm,
    "norm_linear": norm_linear,
    "norm_attention": norm_attention,
    "norm_mlp": norm_mlp,
    "norm_msa": norm_msa,
}


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
    """Inputs uniform over their dtypes, and all kinds of parameters.

    Half of the channels, or of the bias tables of an attention, get parameters as networks have
    them, half any parameters: those saturate.
    """
    problems = {
        "linear": _linear,
        "attention": _attention,
        "layer_norm": _layer_norm,
        "norm_linear": _norm_linear,
        "norm_attention": _norm_attention,
        "norm_mlp": _norm_mlp,
        "norm_msa": _norm_msa,
    }
    return problems[spec.op](spec, rng)


def _linear(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """Half of the columns are requantized so that results fill the int16 range."""
    batch, rows, depth = spec.arguments[0][0]
    channels, out_dtype = spec.arguments[-1][0][2], spec.arguments[-1][1]
    x = rng.integers(0, 256, (batch, rows, depth), np.uint8)
    inputs = [x]
    if spec.number("residual"):
        inputs.append(rng.integers(-32768, 32768, (batch, rows, channels), np.int16))
    out, activation = spec.text("out"), spec.text("activation")
    tensors, attrs = _parameters(spec, channels, depth, out, activation, rng)
    result = TensorSpec((rows, channels), out_dtype, 1.0)
    node = Node("linear", "linear", ["x", "residual"][: len(inputs)], tensors, attrs, result)
    chosen = _some_rows(batch * rows, rng)
    parts = [array.reshape(-1, array.shape[-1])[chosen][None] for array in inputs]
    return Problem(_arguments(spec, node, inputs), chosen, execute(node, parts)[0])


def _attention(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """An attention alone."""
    heads, d = spec.number("heads"), spec.number("d")
    tensors = _scores(spec, heads, d, rng)
    qkv = rng.integers(-128, 128, spec.arguments[0][0], np.int8)
    out = TensorSpec((tensors["rows"].size, heads * d), "uint8", 1.0, 128)
    node = Node("attention", "attention", ["qkv"], tensors, {"heads": heads, "d": d}, out)
    return _of_some_images(spec, node, qkv, rng)


def _scores(
    spec: KernelSpec, heads: int, d: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Constants; scores of any deviation: from nearly equal ones to ones that leave 16 bits."""
    windows, tokens, patterns = (spec.number(name) for name in ("windows", "tokens", "patterns"))
    rows = windows * tokens
    unit = np.exp2(rng.uniform(-1, 6)) / (74**2 * math.sqrt(d))  # 74: of uniform bytes
    tensors = {
        "rows": rng.permutation(rows).reshape(windows, tokens).astype(np.int32),
        "params": attention_parameters(unit, 1.0, float(rng.uniform(0.5, 2.0)), "random"),
    }
    if patterns:
        shape = (patterns, heads, tokens, tokens)
        bias = np.rint(rng.normal(0, 100, shape))
        bias[1:][rng.random(bias[1:].shape) < 0.4] = -32768  # masked
        wild = rng.random((patterns, heads, 1, 1)) < 0.5
        bias = np.where(wild, rng.integers(-32768, 32768, shape), bias)
        tensors["bias"] = bias.astype(np.int16)
        tensors["pattern"] = rng.integers(0, patterns, windows).astype(np.int32)
    return tensors


def _layer_norm(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """A LayerNorm alone."""
    _, rows, channels = spec.arguments[-1][0]
    shift, out_dtype = spec.number("shift"), spec.text("out")
    x, tensors = _normalised(spec, channels, shift, out_dtype, rng)
    tensors |= _picked_rows(spec, rows, rng)
    attrs: dict[str, int | str] = {"out": {"uint8": "u8", "int16": "i16"}[out_dtype]}
    out = TensorSpec((rows, channels), out_dtype, 1.0)
    node = Node("layer_norm", "layer_norm", ["x"], tensors, {**attrs, "shift": shift}, out)
    return _of_some_images(spec, node, x, rng)


def _norm_linear(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """A LayerNorm and the GEMM behind it."""
    (_, rows, columns), out_dtype = spec.arguments[-1]
    depth, shift = spec.number("gather") * spec.number("channels"), int(rng.integers(8, 20))
    x, tensors = _normalised(spec, depth, shift, "uint8", rng)
    tensors |= _picked_rows(spec, rows, rng)
    out_type = spec.text("out")
    of_gemm, attrs = _parameters(spec, columns, depth, out_type, spec.text("activation"), rng)
    out = TensorSpec((rows, columns), out_dtype, 1.0)
    attrs["shift"] = shift
    node = Node("norm_linear", "norm_linear", ["x"], {**tensors, **of_gemm}, attrs, out)
    return _of_some_images(spec, node, x, rng)


def _norm_attention(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """LayerNorm, the GEMM that makes q, k and v, and their attention."""
    x, node = _attended(spec, rng)
    return _of_some_images(spec, node, x, rng)


def _norm_msa(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """The same and a GEMM behind it; x is added to its results."""
    x, node = _attended(spec, rng)
    (_, rows, channels), out_dtype = spec.arguments[-1]
    tensors = node.tensors | _second(spec, channels, channels, rng)
    out = TensorSpec((rows, channels), out_dtype, 1.0)
    node = dataclasses.replace(node, op="norm_msa", tensors=tensors, out=out)
    return _of_some_images(spec, node, x, rng)


def _second(
    spec: KernelSpec, columns: int, depth: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Tensors of the last GEMM of several, to int16."""
    tensors, _ = _parameters(spec, columns, depth, "i16", "none", rng)
    return as_second(tensors)


def _attended(spec: KernelSpec, rng: np.random.Generator) -> tuple[np.ndarray, Node]:
    """Input and node of a `norm_attention`."""
    heads, d, channels = spec.number("heads"), cuda_norm_attention_space.D, spec.number("channels")
    shift = int(rng.integers(8, 20))
    x, tensors = _normalised(spec, channels, shift, "uint8", rng)
    of_gemm, attrs = _parameters(spec, 3 * heads * d, channels, "s8", "none", rng)
    names = {"params": "score_params", "bias": "score_bias"}
    scores = _scores(spec, heads, d, rng)
    tensors |= of_gemm | {names.get(name, name): tensor for name, tensor in scores.items()}
    attrs |= {"shift": shift, "heads": heads, "d": d}
    out = TensorSpec((tensors["rows"].size, heads * d), "uint8", 1.0, 128)
    return x, Node("norm_attention", "norm_attention", ["x"], tensors, attrs, out)


def _norm_mlp(spec: KernelSpec, rng: np.random.Generator) -> Problem:
    """A LayerNorm and the MLP behind it; x is added to its results."""
    (_, rows, channels), out_dtype = spec.arguments[-1]
    hidden, shift = spec.number("hidden"), int(rng.integers(8, 20))
    x, tensors = _normalised(spec, channels, shift, "uint8", rng)
    activation = spec.text("activation")
    of_first, attrs = _parameters(spec, hidden, channels, "u8", activation, rng)
    tensors |= of_first | _second(spec, channels, hidden, rng)
    out = TensorSpec((rows, channels), out_dtype, 1.0)
    node = Node("norm_mlp", "norm_mlp", ["x"], tensors, {**attrs, "shift": shift}, out)
    return _of_some_images(spec, node, x, rng)


def _normalised(
    spec: KernelSpec,
    channels: int,
    shift: int,
    out_dtype: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Input and constants; half of the channels are scaled so that results fill the range."""
    x = rng.integers(-32768, 32768, spec.arguments[0][0], np.int16)
    # Quieter rows: the smaller the variance, the more the exponent changes.
    x >>= rng.integers(0, 16, (*x.shape[:2], 1), np.int16)
    # Section 3.4: Z has 14 - c2 fraction bits; 3 deviations are half of the output's range.
    fraction = 14 - math.ceil(math.log2(channels) / 2) if channels > 1 else 14
    reach = np.iinfo(out_dtype).max - np.iinfo(out_dtype).min
    typical = np.exp2(shift - fraction) * reach / 6
    middle = np.iinfo(out_dtype).min + reach // 2 + 1
    wild = rng.random(channels) < 0.5
    gamma = np.where(wild, rng.integers(-32767, 32768, channels), rng.normal(typical, typical / 4))
    beta = np.where(wild, rng.integers(1 - (1 << 30), 1 << 30, channels), middle << shift)
    tensors: dict[str, np.ndarray] = {
        "gamma": np.clip(np.rint(gamma), -32767, 32767).astype(np.int32),
        "beta": np.clip(beta, 1 - (1 << 30), (1 << 30) - 1).astype(np.int32),
        "params": np.exp2(rng.uniform(0, 40, 1)).astype(np.int64),
    }
    return x, tensors


def _picked_rows(spec: KernelSpec, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The table of the input rows of each normalised one, where there is one."""
    if not spec.number("indexed"):
        return {}
    in_rows = spec.arguments[0][0][1]
    picked = rng.permutation(np.arange(rows * spec.number("gather")) % in_rows)
    return {"rows": picked.reshape(rows, -1).astype(np.int32)}


def _of_some_images(
    spec: KernelSpec, node: Node, x: np.ndarray, rng: np.random.Generator
) -> Problem:
    """The problem of an operator whose rows are not independent of each other."""
    (batch, rows, _), _ = spec.arguments[-1]
    count = min(batch, max(2, _IMAGE_ROWS // rows))
    others = rng.permutation(np.arange(1, max(batch - 1, 1)))[: max(count - 2, 0)]
    images = np.unique([0, batch - 1, *others])
    expected = execute(node, [x[images]])
    chosen = (images[:, None] * rows + np.arange(rows)).ravel()
    return Problem(_arguments(spec, node, [x]), chosen, expected.reshape(len(chosen), -1))


def _parameters(
    spec: KernelSpec,
    channels: int,
    depth: int,
    out: str,
    activation: str,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, int | str]]:
    """Constants and attributes of a GEMM."""
    attrs: dict[str, int | str] = {
        "out": out,
        "activation": activation,
        "frac": spec.number("frac"),
        "zero_point": int(rng.integers(0, 129)) if out == "u8" else 0,
    }
    bias, pre, mult = random_requantization(channels, depth, rng)
    tensors = {
        "weight": rng.integers(-127, 128, (channels, depth), np.int8),
        "bias": bias.astype(np.int32),
        "pre": pre.astype(np.int32),
        "mult": mult.astype(np.int32),
    }
    if activation != "none":
        k = int(rng.integers(6, 11))
        parameters = gelu_parameters(activation, k, 2.0**-k * 1.01, "random")
        tensors["act_params"] = np.asarray(parameters).astype(np.int32)
    return tensors, attrs


def _arguments(spec: KernelSpec, node: Node, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What the emitted operator passes to its kernel: inputs, and constants in its own layout."""
    bb, batch = relax.BlockBuilder(), len(arrays[0])
    inputs = [
        relax.Var(name, relax.TensorType(array.shape, str(array.dtype)))
        for name, array in zip(node.inputs, arrays, strict=True)
    ]
    with bb.function("main", inputs):
        with bb.dataflow():
            target = Target(json.loads(spec.target))
            out = bb.emit_output(_OPERATORS[spec.op].emit(bb, node, inputs, batch, target))
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
