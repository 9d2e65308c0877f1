"""Step 2: the imported float network without what importers leave in it.

Folds constants, drops operators that change nothing (padding by zero, broadcasts to the same
shape), recognises a GELU that an ONNX opset below 20 spells with erf, removes dead code, and names
every value after its operator, so that calibration files and reports can be read.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import torch

from intswin.compile.float_graph import FloatGraph, FloatOp, evaluate

_NO_OP_IF_SAME_SHAPE = {"copy", "nn.pad", "broadcast_to", "reshape", "squeeze", "expand_dims"}


def simplify(graph: FloatGraph) -> FloatGraph:
    """Return the equivalent network with the fewest operators that the quantizer must know."""
    return _rename(_remove_dead(_fuse_erf_gelu(_fold(graph))))


def _fold(graph: FloatGraph) -> FloatGraph:
    """Evaluate what depends on constants alone and bypass what changes nothing."""
    constants: dict[str, torch.Tensor | tuple] = {}
    alias: dict[str, str] = {}
    shapes = {graph.input: graph.input_shape}
    ops: list[FloatOp] = []

    def resolve(arg: object) -> object:
        if isinstance(arg, tuple):
            return tuple(resolve(a) for a in arg)
        if isinstance(arg, str):
            name = alias.get(arg, arg)
            return constants.get(name, name)
        return arg

    for original in graph.ops:
        op = dataclasses.replace(original, args=tuple(resolve(a) for a in original.args))
        if op.op == "shape_of" and isinstance(op.args[0], str):
            constants[op.name] = shapes[op.args[0]]
        elif not op.value_args:
            constants[op.name] = evaluate(op, {})
        elif (
            op.op in _NO_OP_IF_SAME_SHAPE
            and isinstance(op.args[0], str)
            and shapes[op.args[0]] == op.shape
        ):
            alias[op.name] = op.args[0]
        else:
            shapes[op.name] = op.shape
            ops.append(op)
    return FloatGraph(graph.input, graph.input_shape, ops, alias.get(graph.output, graph.output))


def _fuse_erf_gelu(graph: FloatGraph) -> FloatGraph:
    """Replace x * 0.5 * (1 + erf(x / sqrt(2))), in any order of its factors, by nn.gelu."""
    producers = {op.name: op for op in graph.ops}

    def factors(arg: object) -> list[object]:
        op = producers.get(arg) if isinstance(arg, str) else None
        if op is not None and op.op == "multiply":
            return [f for a in op.args for f in factors(a)]
        return [arg]

    def erf_argument(arg: object) -> str | None:
        """The x of 1 + erf(x / sqrt(2))."""
        add = producers.get(arg) if isinstance(arg, str) else None
        if add is None or add.op != "add":
            return None
        erf = next((producers.get(a) for a in add.args if isinstance(a, str)), None)
        if erf is None or erf.op != "erf" or not any(_is_scalar(a, 1.0) for a in add.args):
            return None
        scaled = producers.get(erf.args[0])
        if scaled is None:
            return None
        x = next((a for a in scaled.args if isinstance(a, str)), None)
        divided = scaled.op == "divide" and _is_scalar(scaled.args[1], math.sqrt(2))
        times = scaled.op == "multiply" and any(_is_scalar(a, math.sqrt(0.5)) for a in scaled.args)
        return x if divided or times else None

    ops = []
    for op in graph.ops:
        parts = factors(op.name) if op.op == "multiply" else []
        xs = [x for x in map(erf_argument, parts) if x is not None]
        halves = any(_is_scalar(part, 0.5) for part in parts)
        if len(parts) == 3 and len(xs) == 1 and xs[0] in parts and halves:
            ops.append(FloatOp(op.name, "nn.gelu", (xs[0],), None, op.shape))
        else:
            ops.append(op)
    return dataclasses.replace(graph, ops=ops)


def _is_scalar(arg: object, value: float) -> bool:
    return (
        isinstance(arg, torch.Tensor)
        and arg.numel() == 1
        and math.isclose(float(arg), value, rel_tol=1e-4)
    )


def _remove_dead(graph: FloatGraph) -> FloatGraph:
    live = {graph.output}
    kept: list[FloatOp] = []
    for op in reversed(graph.ops):
        if op.name in live:
            live.update(op.value_args)
            kept.append(op)
    return dataclasses.replace(graph, ops=kept[::-1])


def _rename(graph: FloatGraph) -> FloatGraph:
    """Name values "layer_norm_0", "matmul_3": the same at every import of a network."""
    count: collections.Counter[str] = collections.Counter()
    names = {graph.input: "image"}

    def rename(arg: object) -> object:
        if isinstance(arg, tuple):
            return tuple(rename(a) for a in arg)
        return names[arg] if isinstance(arg, str) else arg

    ops = []
    for op in graph.ops:
        kind = op.op.removeprefix("nn.")
        names[op.name] = f"{kind}_{count[kind]}"
        count[kind] += 1
        args = tuple(rename(a) for a in op.args)
        ops.append(dataclasses.replace(op, name=names[op.name], args=args))
    return FloatGraph("image", graph.input_shape, ops, names[graph.output])
