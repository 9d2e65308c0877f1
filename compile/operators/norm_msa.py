"""`norm_attention`, the projection behind it and the residual as one operator, for CUDA.

fuse_attention.py makes it.
"""

from __future__ import annotations

from tvm import relax
from tvm.target import Target

from intswin.compile.operators import cuda_linear, norm_attention
from intswin.compile.schedules import cuda_norm_msa, simd
from intswin.compile.schedules.cuda_norm_attention_space import NormMsaShape
from intswin.models.integer_graph import Node
from intswin.models.integer_ops import second_linear


def shape_of(node: Node, batch: int, target: Target) -> NormMsaShape:
    """The problem that a node poses."""
    return NormMsaShape(**vars(norm_attention.shape_of(node, batch, target)))


def emit(
    bb: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], batch: int, target: Target
) -> relax.Expr:
    """Emit x int16 (B, R, C) -> (B, R, C)."""
    shape = shape_of(node, batch, target)
    arrays, weight, bias = norm_attention.constants(node, shape, target)
    second = cuda_linear.constants(second_linear(node), "mma")
    func = cuda_norm_msa.describe(shape, weight, bias, second[0].shape)
    gvar = bb.add_func(func, cuda_norm_msa.OP)
    out = relax.TensorType([batch, *node.out.shape], node.out.dtype)
    return bb.emit(relax.call_tir(gvar, [*inputs, *simd.constants(*arrays, *second)], out))
