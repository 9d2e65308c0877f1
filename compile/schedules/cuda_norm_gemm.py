"""LayerNorm and the GEMM behind it in one CUDA kernel, for int8 tensor cores.

A block of threads normalises its rows of the residual stream to shared memory, all channels
(cuda_norm_rows.py), while the first slices of the weight are on their way; then it multiplies as
cuda_gemm_mma.py does, with x in place. Blocks that have the same rows normalise them again, so this
is for small problems (fuse_layer_norm.py).
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import cuda_gemm_grid, cuda_tiles, simd
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_gemm_mma import MmaKernel
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_norm_gemm_space import (
    NormGemmShape,
    NormGemmTile,
    shared_bytes,
)
from intswin.compile.schedules.cuda_norm_rows import NormalisedRows, RowsTile

OP = "norm_linear"
_DTYPES = {"u8": "uint8", "s8": "int8", "i16": "int16", "i32": "int32"}


def describe(shape: NormGemmShape, weight: tuple[int, ...], padded: int) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first.

    Args:
        shape: the problem.
        weight: shape of the packed weight.
        padded: output channels of the requantization constants.

    Its arguments: x int16 (B, R', c); where `shape.indexed`, rows int32 (R, G); gamma and beta
    int32 (K,); params int64 (2,): eps and the shift of section 3.4; then those of a `linear`
    (operators/cuda_linear.py) behind its x.
    """
    parameters: list[cuda_tiles.Parameter] = [
        ("x", (shape.batch, shape.in_rows, shape.channels), "int16")
    ]
    if shape.indexed:
        parameters.append(("rows", (shape.rows, shape.gather), "int32"))
    parameters += [("gamma", (shape.depth,), "int32"), ("beta", (shape.depth,), "int32")]
    parameters += [("params", (2,), "int64"), ("weight", weight, "int8")]
    parameters.append(("requantization", (3, padded), "int32"))
    if shape.activation != "none":
        parameters.append(("act_params", (6,), "int32"))
    if shape.out in ("u8", "s8"):
        parameters.append(("offset", (1,), "int32"))
    parameters.append(("y", (shape.batch, shape.rows, shape.columns), _DTYPES[shape.out]))
    return cuda_tiles.describe(OP, shape, parameters)


def shape_of(func: tirx.PrimFunc, _target: Target) -> NormGemmShape:
    """The problem that a description poses."""
    return cuda_tiles.described(func, NormGemmShape)


def kernel(func: tirx.PrimFunc, shape: NormGemmShape, tile: NormGemmTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(OP)
            args = cuda_tiles.declare(cuda_tiles.parameters_of(func))
            with cuda_gemm_grid.blocks(shape.gemm, tile) as place:
                _Kernel(shape, tile, args, place).emit()
    return simd.finished(builder.get(), OP).without_attr("global_symbol")


class NormMmaKernel(MmaKernel):
    """A product whose x, `rows`, is normalised in the kernel while the weight is on its way."""

    rows: NormalisedRows

    @property
    def _weight_first(self) -> bool:
        return True

    def _load_x(self, slices: int) -> None:
        for _ in range(slices):  # the first is of the whole weight so far
            T.evaluate(cuda.cp_async_commit())
        self.rows.emit()

    def _copy_x(self, _slice: Expr, _base: Expr) -> None:
        """Nothing: it is there."""

    def _x_address(self, slice_: Expr, _slot: Expr) -> Expr:
        return self.rows.slice_address(slice_)


class _Kernel(NormMmaKernel):
    """What one block of threads computes."""

    tile: NormGemmTile

    def __init__(
        self, shape: NormGemmShape, tile: NormGemmTile, args: dict[str, Buffer], place: Place
    ) -> None:
        gemm = Arguments.named(args)
        memory = cuda.shared_memory(shared_bytes(shape, tile))
        super().__init__(shape.gemm, tile, gemm, place, memory)
        x = self.shared + tirx.const(tile.stages * tile.stage_bytes, "uint32")
        rows = RowsTile(
            tile.block_rows, tile.block_depth, tile.threads, tile.lanes, tile.block_rows
        )
        self.rows = NormalisedRows(shape.norm, rows, args, place, x)

    def _plan_loads(self) -> None:
        self._plan_loads_of_weight()
