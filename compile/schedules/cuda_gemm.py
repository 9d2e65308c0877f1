"""`linear` on CUDA: a tile is chosen in a MetaSchedule trace, then the kernel is written for it.

The PrimFunc of operators/cuda_linear.py says what to compute. `schedule_linear` changes nothing in
it but an annotation: every field of the tile is a decision in the trace (`sample_categorical`), so
that records are MetaSchedule's own, and the block "y" is annotated with the decisions. `kernel`
writes the PrimFunc that runs from the annotated one alone, whether a schedule or a record annotated
it. What may be chosen depends on what was chosen before: a search makes its schedules here instead
of changing a decision in a trace.
"""

from __future__ import annotations

import math

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules.cuda_gemm_dp4a import emit_dp4a
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_mma import emit_mma
from intswin.compile.schedules.cuda_gemm_space import (
    TILES,
    CudaGemmShape,
    CudaGemmTile,
    MmaTile,
    candidates,
    default_tile,
    fields,
)
from intswin.compile.targets import cuda_arch

_ANNOTATION = "intswin.tile"


def schedule_linear(
    sch: s_tir.Schedule, target: Target, tile: CudaGemmTile | None = None
) -> CudaGemmTile:
    """Decide on `tile`, by default that of the shape, for the PrimFunc "main" in `sch`.

    Raises:
        ValueError: `tile` is not in the space of this PrimFunc.
    """
    shape = gemm_shape(sch.mod["main"], target)
    return _decide(sch, shape, tile or default_tile(shape))


def sample_linear(sch: s_tir.Schedule, target: Target) -> CudaGemmTile:
    """Decide on a tile drawn by the random state of `sch`."""
    return _decide(sch, gemm_shape(sch.mod["main"], target), None)


def gemm_shape(func: tirx.PrimFunc, target: Target) -> CudaGemmShape:
    """The problem that a PrimFunc of operators/cuda_linear.py poses."""
    batch, rows, depth = (int(extent) for extent in func.params[0].ty.shape)
    attrs = {name: func.attrs[f"intswin.{name}"] for name in ("layout", "out", "activation")}
    return CudaGemmShape(
        arch=cuda_arch(target),
        rows=batch * rows,
        columns=int(func.params[-1].ty.shape[2]),
        depth=depth,
        frac=int(func.attrs["intswin.frac"]),
        residual=bool(func.attrs["intswin.residual"]),
        **{name: str(value) for name, value in attrs.items()},
    )


def kernel(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The kernel of a PrimFunc that `schedule_linear`, or the trace of a record, has annotated."""
    shape = gemm_shape(func, target)
    sch = s_tir.Schedule(func.with_attr("global_symbol", "main"))
    decisions = sch.get(sch.get_sblock("y")).annotations[_ANNOTATION]
    tile = TILES[shape.layout](*(int(value) for value in decisions))
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("linear")
            args = _arguments(func, shape)
            if isinstance(tile, MmaTile):
                emit_mma(shape, tile, args)
            else:
                emit_dp4a(shape, tile, args)
    attrs = dict(func.attrs.items()) | {"tirx.is_scheduled": True, "tirx.noalias": True}
    return builder.get().with_attr(attrs)


def _decide(sch: s_tir.Schedule, shape: CudaGemmShape, tile: CudaGemmTile | None) -> CudaGemmTile:
    made: dict[str, int] = {}
    variables = []
    for field in fields(shape.layout):
        odds = candidates(shape, field, made)
        values = list(odds)
        decision = None
        if tile is not None:
            value = getattr(tile, field)
            if value not in odds:
                raise ValueError(f"{field}={value} is not one of {values}")
            decision = values.index(value)
        probabilities = [weight / sum(odds.values()) for weight in odds.values()]
        variable = sch.sample_categorical(values, probabilities, decision)
        made[field] = int(sch.get(variable))
        variables.append(variable)
    sch.annotate(sch.get_sblock("y"), _ANNOTATION, variables)
    return TILES[shape.layout](**made)


def _arguments(func: tirx.PrimFunc, shape: CudaGemmShape) -> Arguments:
    """Declare the parameters of `func` in the PrimFunc that is being built, and view them flat."""
    types = [
        (param.name, list(map(int, param.ty.shape)), str(param.ty.dtype)) for param in func.params
    ]
    arguments = [T.arg(name, T.buffer(extents, dtype)) for name, extents, dtype in types]
    flat = [
        T.decl_buffer((math.prod(extents),), dtype, data=argument.data)
        for argument, (_, extents, dtype) in zip(arguments, types, strict=True)
    ]
    x, weight, requantization, *optional, y = flat
    return Arguments(
        x=x,
        weight=weight,
        requantization=requantization,
        act_params=optional.pop(0) if shape.activation != "none" else None,
        offset=optional.pop(0) if shape.out in ("u8", "s8") else None,
        residual=optional.pop(0) if shape.residual else None,
        y=y,
    )
