"""`linear` on CUDA: a tile is chosen in a MetaSchedule trace, then the kernel is written for it.

The description is the PrimFunc of operators/cuda_linear.py, which says what to compute
(schedules/cuda_tiles.py says what happens to it). What may be chosen depends on what was chosen
before: a search makes its schedules here instead of changing a decision in a trace.
"""

from __future__ import annotations

import functools

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import cuda_tiles
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
)
from intswin.compile.targets import cuda_arch


def schedule(sch: s_tir.Schedule, target: Target, tile: CudaGemmTile | None = None) -> CudaGemmTile:
    """Decide on `tile`, by default that of the shape, for the PrimFunc "main" in `sch`.

    Raises:
        ValueError: `tile` is not in the space of this PrimFunc.
    """
    shape = shape_of(sch.mod["main"], target)
    return _decide(sch, shape, tile or default_tile(shape))


def sample(sch: s_tir.Schedule, target: Target) -> CudaGemmTile:
    """Decide on a tile drawn by the random state of `sch`."""
    return _decide(sch, shape_of(sch.mod["main"], target), None)


def shape_of(func: tirx.PrimFunc, target: Target) -> CudaGemmShape:
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
    """The kernel of a PrimFunc that `schedule`, or the trace of a record, has annotated."""
    shape = shape_of(func, target)
    tile = cuda_tiles.decided(func, TILES[shape.layout])
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
    space = functools.partial(candidates, shape)
    return cuda_tiles.decide(sch, TILES[shape.layout], space, tile)


def _arguments(func: tirx.PrimFunc, shape: CudaGemmShape) -> Arguments:
    """Declare the parameters of `func` in the PrimFunc that is being built, and view them flat."""
    types = [
        (param.name, tuple(map(int, param.ty.shape)), str(param.ty.dtype)) for param in func.params
    ]
    flat = cuda_tiles.declare(types).values()
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
