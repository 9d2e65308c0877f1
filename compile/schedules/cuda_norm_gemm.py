"""LayerNorm and the GEMM behind it in one CUDA kernel, for int8 tensor cores.

A block of threads normalises its rows of the residual stream to shared memory, all channels
(cuda_norm_rows.py), while the first slices of the weight are on their way; then it multiplies as
cuda_gemm_mma.py or cuda_gemm_wgmma.py does, with x in place. Blocks that have the same rows
normalise them again, so a block can have several tiles of columns, one after another (`turns`): the
slices of all their weights are one sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_gemm_grid, cuda_tiles, simd
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_gemm_mma import GROUP, MmaKernel
from intswin.compile.schedules.cuda_gemm_wgmma import WgmmaKernel
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_norm_gemm_space import (
    NormGemmShape,
    NormGemmTile,
    NormWgmmaTile,
    shared_bytes,
)
from intswin.compile.schedules.cuda_norm_rows import NormalisedRows

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


def kernel(
    func: tirx.PrimFunc, shape: NormGemmShape, tile: NormGemmTile | NormWgmmaTile
) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    types = [
        (param.name, tuple(map(int, param.ty.shape)), str(param.ty.dtype)) for param in func.params
    ]
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(OP)
            args = cuda_tiles.declare(types)
            with cuda_gemm_grid.blocks(shape.gemm, tile, tile.turns) as place:
                _KERNELS[shape.layout](shape, tile, args, place).emit()
    return simd.finished(builder.get(), OP).without_attr("global_symbol")


class _MmaKernel(MmaKernel):
    """What one block of threads computes with mma."""

    tile: NormGemmTile

    def __init__(
        self, shape: NormGemmShape, tile: NormGemmTile, args: dict[str, Buffer], place: Place
    ) -> None:
        super().__init__(shape.gemm, tile, _of_gemm(args), place, shared_bytes(shape, tile))
        self.copied = self.slices * tile.turns
        x = self.shared + tirx.const(tile.stages * tile.stage_bytes, "uint32")
        self.x = NormalisedRows(shape.norm, tile, args, place, x)

    def emit(self) -> None:
        """Emit the whole of it: load ahead, normalise, multiply, write."""
        tile = self.tile
        self._plan_loads_of_weight()
        for i in range(max(tile.stages - 1, 1)):
            self._load(int32(i), i)
        self.x.emit()
        self._plan_multiplication()
        if tile.turns == 1:
            self._turn(int32(0))
            return
        with T.serial(0, tile.turns) as turn:
            self._turn(turn)

    def _turn(self, turn: Expr) -> None:
        """Compute a tile of columns."""
        self._clear()
        if self.slices == 1:
            self._slice(turn, int32(0))
        else:
            with T.serial(0, self.slices) as i:
                self._slice(turn, i)
        if self.tile.depth_warps == 1:
            self._write(turn)
            return
        self._reduce_depth()
        with T.If(self.depth_warp == 0):
            with T.Then():
                self._write(turn)

    def _slice(self, turn: Expr, i: Expr) -> None:
        """Multiply a slice of a tile, and start to load another one."""
        ahead, stages = self.tile.stages - 1, self.tile.stages
        T.evaluate(cuda.cp_async_wait(max(ahead - 1, 0)))
        # All threads' copies are there, and nobody reads the slot that is filled next.
        cuda.synchronize()
        number = T.Bind(turn * self.slices + i)
        if self.copied > max(ahead, 1):
            with T.If(number + ahead < self.copied):
                with T.Then():
                    self._copies(number + ahead, (number + ahead) % stages)
        T.evaluate(cuda.cp_async_commit())
        slot = T.Bind(self._slot(number % stages))
        self._multiply(T.Bind(self.x.slice_address(i)), slot)

    def _copies(self, slice_: Expr, slot: Expr) -> None:
        """Start copying a slice of the weight."""
        base = T.Bind(self._slot(slot))
        if self.tile.turns == 1:
            self.rows_of_weight.start(slice_, base)
            return
        groups = slice_ // self.slices * (self.tile.block_columns // GROUP)
        self.rows_of_weight.start(slice_ % self.slices, base, groups)


class _WgmmaKernel(WgmmaKernel):
    """What one block of threads computes with wgmma."""

    tile: NormWgmmaTile

    def __init__(
        self, shape: NormGemmShape, tile: NormWgmmaTile, args: dict[str, Buffer], place: Place
    ) -> None:
        slices = shape.depth // tile.block_depth
        super().__init__(
            shape.gemm,
            tile,
            _of_gemm(args),
            place,
            shared_bytes(shape, tile),
            slices * tile.turns,
        )
        x = self.shared + tirx.const(tile.stages * tile.stage_bytes, "uint32")
        self.x_rows = NormalisedRows(shape.norm, tile, args, place, x)

    def emit(self) -> None:
        """Emit the whole of it: load ahead, normalise, multiply, write."""
        self._plan_loads_of_weight()
        self._load_ahead()
        self.x_rows.emit()
        if self.tile.turns == 1:
            self._turn(int32(0))
            return
        with T.serial(0, self.tile.turns) as turn:
            self._turn(turn)

    def _turn(self, turn: Expr) -> None:
        """Compute a tile of columns."""
        self._clear()
        if self.slices == 1:
            self._slice(turn)
        else:
            with T.serial(0, self.slices) as i:
                self._slice(T.Bind(turn * self.slices + i))
        self._write(turn * self.tile.block_columns)

    def _x_of(self, slice_: Expr, _slot: Expr) -> Expr:
        return self.x_rows.slice_address(slice_ % self.slices)

    def _copies(self, slice_: Expr) -> None:
        """Start copying a slice of the weight."""
        slot = T.Bind(self._slot(slice_))
        if self.tile.turns == 1:
            self.weight.start(slice_, slot)
            return
        rows = slice_ // self.slices * self.tile.block_columns
        self.weight.start(slice_ % self.slices, slot, rows)


def _of_gemm(args: dict[str, Buffer]) -> Arguments:
    return Arguments(
        **{field.name: args.get(field.name) for field in dataclasses.fields(Arguments)}
    )


_KERNELS: dict[str, Callable[..., Any]] = {"mma": _MmaKernel, "wgmma": _WgmmaKernel}
