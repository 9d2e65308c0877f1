"""The integer graph as a Relax module: one call_tir an operator, constants as Relax constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm
from tvm import relax, tirx
from tvm.target import Target

from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.operators import (
    add_constant,
    attention,
    gather_rows,
    layer_norm,
    linear,
    mean_pool,
    norm_attention,
    norm_linear,
    norm_mlp,
    norm_msa,
    patchify,
)
from intswin.compile.schedules.cuda_offsets import check_batch
from intswin.compile.targets import is_cuda
from intswin.models.integer_graph import IntegerGraph

_OPERATORS = {
    "add_constant": add_constant.emit,
    "attention": attention.emit,
    "gather_rows": gather_rows.emit,
    "layer_norm": layer_norm.emit,
    "linear": linear.emit,
    "norm_attention": norm_attention.emit,
    "norm_linear": norm_linear.emit,
    "norm_mlp": norm_mlp.emit,
    "norm_msa": norm_msa.emit,
    "mean_pool": mean_pool.emit,
    "patchify": patchify.emit,
}


def emit(
    graph: IntegerGraph,
    batch: int,
    target: Target,
    others: Mapping[str, Callable[..., relax.Expr]] | None = None,
) -> tvm.IRModule:
    """Build `main(image: uint8 (B, H, W, 3)) -> int32 (B, classes)`.

    Args:
        graph: the network; its last node gives the logits (1, classes).
        batch: images in one call.
        target: what the module will be compiled for; it decides how weights are packed.
        others: emitters of operators that no integer network has.

    Returns:
        a module of `main` and unscheduled PrimFuncs. Layers of one shape share a PrimFunc, whose
        attribute "intswin.op" says which operator it is.

    Raises:
        IntswinError: the batch is too large for CUDA kernels.
    """
    if is_cuda(target):
        check_batch(graph, batch)
    graph = fuse_for_target(graph, batch, target)
    bb = relax.BlockBuilder()
    image_type = relax.TensorType([batch, *graph.input.shape], graph.input.dtype)
    image = relax.Var(graph.input_name, image_type)
    values: dict[str, relax.Expr] = {graph.input_name: image}
    operators = {**_OPERATORS, **(others or {})}
    with bb.function("main", [image]):
        with bb.dataflow():
            for node in graph.nodes:
                inputs = [values[name] for name in node.inputs]
                values[node.name] = operators[node.op](bb, node, inputs, batch, target)
            last = graph.nodes[-1].out.shape
            logits = bb.emit(relax.op.reshape(values[graph.nodes[-1].name], (batch, last[-1])))
            logits = bb.emit_output(logits)
        bb.emit_func_output(logits)
    return _private_kernels(bb.get())


def emit_kernels(graph: IntegerGraph, batch: int, target: Target) -> tvm.IRModule:
    """Build a function `kernel_<i>` for each of `different_nodes`, to be called alone.

    It takes the inputs of node i of the fused graph, (B, *shape) each, and gives its output.
    """
    graph = fuse_for_target(graph, batch, target)
    bb = relax.BlockBuilder()
    for index in different_nodes(graph):
        node = graph.nodes[index]
        inputs = [
            relax.Var(f"x{i}", relax.TensorType([batch, *spec.shape], spec.dtype))
            for i, spec in enumerate(map(graph.spec, node.inputs))
        ]
        with bb.function(f"kernel_{index}", inputs):
            with bb.dataflow():
                emitted = _OPERATORS[node.op](bb, node, inputs, batch, target)
                out = bb.emit_output(emitted)
            bb.emit_func_output(out)
    return _private_kernels(bb.get())


def different_nodes(graph: IntegerGraph) -> list[int]:
    """The first node of each kind: operator, attributes, and shapes of inputs and constants."""
    kinds: dict[tuple, int] = {}
    for index, node in enumerate(graph.nodes):
        shapes = [graph.spec(name).shape for name in node.inputs]
        constants = sorted((key, tensor.shape) for key, tensor in node.tensors.items())
        attrs = tuple(sorted(node.attrs.items()))
        kinds.setdefault((node.op, attrs, str(shapes), str(constants)), index)
    return list(kinds.values())


def _private_kernels(mod: tvm.IRModule) -> tvm.IRModule:
    """Drop the PrimFuncs' own names: equal ones may come from kernels of different shapes."""
    for gvar, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc):
            mod[gvar] = func.without_attr("global_symbol")
    return mod
