"""`linear` on CUDA: the kernel that is written for a shape and a tile.

The description is the PrimFunc of operators/cuda_linear.py, which says what to compute
(schedules/cuda_tiles.py says what happens to it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import cuda_gemm_grid, cuda_tiles
from intswin.compile.schedules.cuda_gemm_dp4a import Dp4aKernel
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_mma import MmaKernel
from intswin.compile.schedules.cuda_gemm_tiles import (
    CudaGemmShape,
    CudaGemmTile,
)
from intswin.compile.schedules.cuda_gemm_wgmma import WgmmaKernel
from intswin.compile.targets import cuda_arch

# By the layout of the packed weight; each takes the tile of its layout (cuda_gemm_tiles.TILES).
_KERNELS: dict[str, Callable[..., Any]] = {
    "wgmma": WgmmaKernel,
    "mma": MmaKernel,
    "dp4a": Dp4aKernel,
}


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


def kernel(func: tirx.PrimFunc, shape: CudaGemmShape, tile: CudaGemmTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("linear")
            args = _arguments(func, shape)
            with cuda_gemm_grid.blocks(shape, tile) as place:
                _KERNELS[shape.layout](shape, tile, args, place).emit()
    attrs = dict(func.attrs.items()) | {"tirx.is_scheduled": True, "tirx.noalias": True}
    return builder.get().with_attr(attrs)


def _arguments(func: tirx.PrimFunc, shape: CudaGemmShape) -> Arguments:
    """Declare the parameters of `func` in the PrimFunc that is being built, and view them flat."""
    flat = cuda_tiles.declare(cuda_tiles.parameters_of(func)).values()
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
