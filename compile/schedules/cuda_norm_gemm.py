"""LayerNorm and the GEMM behind it in one CUDA kernel, for int8 tensor cores.

A block of threads normalises its rows of the residual stream to shared memory, all channels, while
the first slices of the weight are on their way; then it multiplies as cuda_gemm_mma.py does, with
x in place. Blocks that have the same rows normalise them again, so a block can have several tiles
of columns, one after another (`turns`): the slices of all their weights are one sequence.

The normalised numbers are those of the two operators: the same code computes them
(cuda_layer_norm_row.py). They lie in shared memory slice by slice, as copies of x would.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_gemm_grid, cuda_tiles, simd
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, permutation
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_gemm_mma import MmaKernel
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_layer_norm_row import LayerNormRow
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmShape, NormGemmTile, shared_bytes

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
    types = [
        (param.name, tuple(map(int, param.ty.shape)), str(param.ty.dtype)) for param in func.params
    ]
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(OP)
            args = cuda_tiles.declare(types)
            with cuda_gemm_grid.blocks(shape.gemm, tile, tile.turns) as place:
                _Kernel(shape, tile, args, place).emit()
    return simd.finished(builder.get(), OP).without_attr("global_symbol")


class _Kernel(MmaKernel):
    """What one block of threads computes."""

    tile: NormGemmTile

    def __init__(
        self, shape: NormGemmShape, tile: NormGemmTile, args: dict[str, Buffer], place: Place
    ) -> None:
        names = [field.name for field in dataclasses.fields(Arguments)]
        gemm = Arguments(**{name: args.get(name) for name in names})
        super().__init__(shape.gemm, tile, gemm, place, shared_bytes(shape, tile))
        self.copied = self.slices * tile.turns
        self.norm, self.norm_args = shape.norm, args
        self.x = self.shared + tirx.const(tile.stages * tile.stage_bytes, "uint32")

    def emit(self) -> None:
        """Emit the whole of it: load ahead, normalise, multiply, write."""
        tile, ahead = self.tile, self.tile.stages - 1
        total = self.copied
        self._plan_loads_of_weight()
        for i in range(max(ahead, 1)):
            self._load(int32(i), i)
        self._normalise()
        self._clear()
        self._plan_multiplication()
        if total == 1:
            T.evaluate(cuda.cp_async_wait(0))
            cuda.synchronize()
            self._multiply(self.x, self.shared)
        else:
            with T.serial(0, total) as i:
                T.evaluate(cuda.cp_async_wait(ahead - 1))
                # All threads' copies are there, and nobody reads the slot that is filled next.
                cuda.synchronize()
                if total > ahead:
                    with T.If(i + ahead < total):
                        with T.Then():
                            self._copies(i + ahead, (i + ahead) % tile.stages)
                T.evaluate(cuda.cp_async_commit())
                self._multiply(self._slice_of_x(i), T.Bind(self._slot(i % tile.stages)))
                if tile.turns > 1:
                    self._end_turn(i)
        if tile.turns > 1:
            return
        if tile.depth_warps == 1:
            self._write()
            return
        self._reduce_depth()
        with T.If(self.depth_warp == 0):
            with T.Then():
                self._write()

    def _end_turn(self, i: Expr) -> None:
        """Write a tile of columns and begin the next one, if this is the last slice of one."""
        if self.slices == 1:
            self._write(i)
            self._clear()
            return
        with T.If(i % self.slices == self.slices - 1):
            with T.Then():
                self._write(T.Bind(i // self.slices))
                self._clear()

    def _slice_of_x(self, i: Expr) -> Expr:
        size = self.tile.block_rows * self.tile.block_depth
        return T.Bind(self.x + (i % self.slices * size).astype("uint32"))

    def _copies(self, slice_: Expr, slot: Expr) -> None:
        """Start copying a slice of the weight."""
        base = T.Bind(self._slot(slot))
        if self.tile.turns == 1:
            self.rows_of_weight.start(slice_, base)
            return
        groups = slice_ // self.slices * (self.tile.block_columns // 32)
        self.rows_of_weight.start(slice_ % self.slices, base, groups)

    def _normalise(self) -> None:
        """Write the block's rows, normalised, to shared memory; those that do not exist, too."""
        tile = self.tile
        at_once = tile.threads // tile.lanes
        lane = T.Bind(self.thread % tile.lanes)
        shift = T.Bind(self.norm_args["params"][1].astype("int32"))
        if at_once >= tile.block_rows:
            self._normalise_row(self.thread // tile.lanes, lane, shift, at_once > tile.block_rows)
            return
        passes = -(-tile.block_rows // at_once)
        with T.serial(0, passes) as i:
            row = i * at_once + self.thread // tile.lanes
            self._normalise_row(row, lane, shift, tile.block_rows % at_once > 0)

    def _normalise_row(self, row: Expr, lane: Expr, shift: Expr, partial: bool) -> None:
        """A row of the block, if it has so many."""
        tile = self.tile
        row = T.Bind(row)
        norm = LayerNormRow(self.norm, tile.lanes, self.norm_args, self.row + row, lane, shift)
        norm.load()
        norm.statistics()
        chunks = tile.block_depth // CHUNK
        base = T.Bind(self.x + (row * tile.block_depth).astype("uint32"))
        permuted = T.Bind(permutation(row, chunks))
        packed = cuda.registers(2)

        def store(vector: Expr, results: list[Expr]) -> None:
            chunk = T.Bind(vector // 2)
            slice_ = chunk // chunks * (tile.block_rows * tile.block_depth)
            within = (chunk % chunks ^ permuted) * CHUNK + vector % 2 * 8
            for half in range(2):
                T.buffer_store(packed, cuda.pack_u8(*results[4 * half : 4 * half + 4]), [half])
            address = base + (slice_ + within).astype("uint32")
            T.evaluate(cuda.store_shared_8(address, cuda.pointer(packed, 0)))

        if not partial:
            norm.write(store)
            return
        with T.If(row < int32(tile.block_rows)):
            with T.Then():
                norm.write(store)
