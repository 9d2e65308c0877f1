"""Networks for comparison in benchmarks: a GELU that is not fused into its GEMM.

The first GEMM of an MLP writes its requantized int16 to memory; a kernel of its own reads it and
writes uint8. That kernel is the integer i-GELU, as I-BERT has it, or on a GPU a float GELU as
FasterTransformer has it between int8 GEMMs. `intswin compile` never makes such a network, and its
integer-only check refuses the float one: here it is told which kernel may use floats, and the
artifact's report does not list it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import Expr
from tvm.target import Target

from intswin.compile.emit import emit
from intswin.compile.operators.expressions import (
    emit_compute,
    int32,
    narrow,
    narrowing_offset,
    requant16,
)
from intswin.compile.operators.integer_gelu import igelu
from intswin.compile.pipeline import (
    Compiled,
    CompileOptions,
    build_integer_network,
    compile_network,
    load_calibration,
    load_float_network,
    quantize_network,
)
from intswin.compile.schedules.cuda_separate_gelu import separate_gelu_kernel
from intswin.compile.targets import get_target, is_cuda
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph, Node, TensorSpec

_OP = "separate_gelu"
# What the benchmarks call them, and the kernels.
_KINDS = {"igelu-unfused": "igelu", "float-gelu": "float"}


def compile_activation(options: CompileOptions, name: str) -> Compiled:
    """Compile a network with an activation as the benchmarks name it.

    Args:
        options: the activation is set here.
        name: one of names.ACTIVATIONS, which `compile_network` compiles, "igelu-unfused" or
            "float-gelu"; it becomes the artifact's activation.

    Raises:
        IntswinError: see `pipeline.compile_network`; or floats are asked for on a CPU.
    """
    kind = _KINDS.get(name)
    options = dataclasses.replace(options, activation=name if kind is None else "igelu")
    if kind is None:
        return compile_network(options)
    target = get_target(options.target)
    if kind == "float" and not is_cuda(target):
        raise IntswinError(f"{name} is made for GPUs, not for {options.target}")
    network = load_float_network(options)
    calibration = load_calibration(options, network, lambda _message: None)
    graph = quantize_network(options, network, calibration).graph
    module = emit_separate(graph, options.batch, target, kind)
    floats = _OP if kind == "float" else None
    compiled = build_integer_network(
        options, network, graph, target, module=module, float_kernels=floats
    )
    return dataclasses.replace(compiled, metadata={**compiled.metadata, "activation": name})


def emit_activation(graph: IntegerGraph, batch: int, target: Target, name: str) -> tvm.IRModule:
    """What `compile_activation` compiles of a network with the activation `name`."""
    kind = _KINDS.get(name)
    return emit(graph, batch, target) if kind is None else emit_separate(graph, batch, target, kind)


def emit_separate(graph: IntegerGraph, batch: int, target: Target, kind: str) -> tvm.IRModule:
    """Like `emit.emit`, with the GELUs of `graph` as kernels of the kind "igelu" or "float"."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += (
            _separated(node, kind) if node.attrs.get("activation", "none") != "none" else [node]
        )
    graph = IntegerGraph(graph.input, nodes, graph.input_name)
    return emit(graph, batch, target, {_OP: _emit_gelu})


def _separated(node: Node, kind: str) -> list[Node]:
    """The GEMM of a node alone, and its GELU."""
    tensors = {name: tensor for name, tensor in node.tensors.items() if name != "act_params"}
    wide = f"{node.name}_wide"
    scale = 2.0 ** -int(node.tensors["act_params"][0])
    gemm = Node(
        name=wide,
        op=node.op,
        inputs=node.inputs,
        tensors=tensors,
        attrs={"out": "i16", "zero_point": 0, "frac": 0, "activation": "none"},
        out=TensorSpec(node.out.shape, "int16", scale),
    )
    gelu = Node(
        name=node.name,
        op=_OP,
        inputs=[wide],
        tensors={"act_params": node.tensors["act_params"]},
        attrs={**node.attrs, "kind": kind},
        out=node.out,
    )
    return [gemm, gelu]


def _emit_gelu(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit t int16 (B, R, N) -> uint8 (B, R, N)."""
    emit_kernel = _emit_on_cuda if is_cuda(target) else _emit_on_cpu
    return emit_kernel(bb, node, inputs, batch)


def _emit_on_cpu(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int
) -> relax.Expr:
    """The expressions of the fused i-GELU, in a loop of their own."""
    frac, act_params = int(node.attrs["frac"]), node.tensors["act_params"]
    args = [*inputs, act_params.astype(np.int32), np.array([narrowing_offset(node)], np.int16)]

    def compute(t: te.Tensor, params: te.Tensor, offset: te.Tensor) -> te.Tensor:
        pre, mult = params[4], params[5]

        def element(*at: Expr) -> Expr:
            product = igelu(t(*at).astype("int32"), params) + ((int32(1) << pre) >> int32(1))
            h = requant16(product, pre, mult).astype("int16")
            return narrow(h, offset[0], frac, "uint8")

        return te.compute(t.shape, element, "y")

    return emit_compute(bb, _OP, compute, args)


def _emit_on_cuda(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int
) -> relax.Expr:
    kind, frac = str(node.attrs["kind"]), int(node.attrs["frac"])
    act_params = node.tensors["act_params"]
    if kind == "igelu":
        arrays = [act_params.astype(np.int32), np.array([narrowing_offset(node)], np.int32)]
    else:
        scale = 2.0 ** -int(act_params[0])
        zero_point = int(node.attrs["zero_point"])
        arrays = [np.array([scale, 1 / node.out.scale, zero_point], np.float32).view(np.int32)]
    rows, channels = node.out.shape
    shape = (batch, rows, channels)
    gvar = bb.add_func(separate_gelu_kernel(shape, kind, frac), _OP)
    constants = [relax.const(array, str(array.dtype)) for array in arrays]
    out = relax.TensorType(shape, node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [*inputs, *constants], out))
