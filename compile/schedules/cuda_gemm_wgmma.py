"""The GEMM kernel for the int8 tensor cores of sm_90a, by wgmma.

As in cuda_gemm_mma.py a block of threads computes `block_rows` by `block_columns` results from
slices that cp.async brings to shared memory. But here the tensor cores read both operands there by
themselves, while the threads go on to load: a warpgroup starts the multiplication of a slice and
then waits for that of the slice before.

Slices are loaded `stages` - 2 ahead, if there are more than `stages`. What slice i + stages - 2
overwrites is slice i - 2: every thread has waited for its multiplication before it came to the
barrier of slice i.

Warpgroups share the block's rows and columns.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import RowCopies
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_grid import Place, block_count
from intswin.compile.schedules.cuda_gemm_tiles import (
    WGMMA_ALIGNMENT,
    CudaGemmShape,
    WgmmaTile,
    starts_early,
)
from intswin.compile.schedules.cuda_gemm_write import AccumulatorWriter, LanePlace
from intswin.compile.schedules.cuda_intrinsics import Expr

_ROWS = 64  # of a multiplication
_STEP = 32  # its depth


class WgmmaKernel:
    """What one block of threads computes."""

    def __init__(
        self, shape: CudaGemmShape, tile: WgmmaTile, args: Arguments, place: Place
    ) -> None:
        self.shape, self.tile, self.args, self.place = shape, tile, args, place
        self.slices = -(-shape.depth // tile.block_depth)
        self.ahead = self.slices if tile.stages == self.slices else tile.stages - 2
        self.row_blocks = tile.block_rows // tile.row_warpgroups // _ROWS
        self.columns = tile.block_columns // tile.column_warpgroups
        shared = cuda.shared_memory(tile.shared_bytes)
        address = cuda.shared_address(cuda.pointer(shared, 0))
        above = address + (WGMMA_ALIGNMENT - 1)
        self.shared = T.Bind(above // WGMMA_ALIGNMENT * WGMMA_ALIGNMENT)
        warpgroup = T.Bind(place.thread // 128)
        self.row = T.Bind(warpgroup % tile.row_warpgroups * (self.row_blocks * _ROWS))
        self.column = T.Bind(warpgroup // tile.row_warpgroups * self.columns)
        self.acc = cuda.registers(self.row_blocks * self.columns // 2)

    def emit(self) -> None:
        """Emit the whole of it: load ahead, multiply, write."""
        tile, place, shape = self.tile, self.place, self.shape
        self.x = RowCopies(self.args.x, shape.rows, shape.depth, tile.block_rows, tile.block_depth)
        channels = int(self.args.weight.shape[0]) // shape.depth
        self.weight = RowCopies(
            self.args.weight, channels, shape.depth, tile.block_columns, tile.block_depth
        )
        self.x.plan(place.thread, tile.threads, place.row)
        offset = tile.block_rows * tile.block_depth
        self.weight.plan(place.thread, tile.threads, place.column, offset)
        for index in range(int(self.acc.shape[0])):
            T.buffer_store(self.acc, int32(0), [index])
        weight_first = starts_early(shape.arch, block_count(shape, tile))
        slots = [T.Bind(self._slot(int32(i))) for i in range(self.ahead)]
        if weight_first:  # it waits for no other kernel
            for i, slot in enumerate(slots):
                self.weight.start(int32(i), slot)
        T.evaluate(cuda.wait_for_grid())
        for i, slot in enumerate(slots):
            self.x.start(int32(i), slot)
            if not weight_first:
                self.weight.start(int32(i), slot)
            T.evaluate(cuda.cp_async_commit())
        if self.slices == 1:
            self._slice(int32(0))
        else:
            with T.serial(0, self.slices) as i:
                self._slice(i)
        T.evaluate(cuda.wgmma_results(self.acc))
        lane, warp = place.thread % 32, place.thread // 32 % 4
        results = LanePlace(
            row=place.row + self.row + warp * 16 + lane // 4,
            offsets=[_ROWS * m + 8 * half for m in range(self.row_blocks) for half in (0, 1)],
            column=place.column + self.column + lane % 4 * 8,
            groups=self.columns // 32,
        )
        AccumulatorWriter(shape, self.args, results, tile).write(self.acc)

    def _slot(self, slice_: Expr) -> Expr:
        slot = slice_ % self.tile.stages
        return self.shared + (slot * self.tile.stage_bytes).astype("uint32")

    def _copies(self, slice_: Expr) -> None:
        slot = T.Bind(self._slot(slice_))
        self.x.start(slice_, slot)
        self.weight.start(slice_, slot)

    def _slice(self, i: Expr) -> None:
        """Wait for a slice, start to multiply it, start to load another one."""
        T.evaluate(cuda.cp_async_wait(self.ahead - 1))
        T.evaluate(cuda.async_proxy_fence())
        # All threads' copies are there, and the multiplication before the last one has ended.
        cuda.synchronize()
        self._multiply(T.Bind(self._slot(i)))
        if self.slices > self.ahead:
            with T.If(i + self.ahead < self.slices):
                with T.Then():
                    self._copies(i + self.ahead)
        T.evaluate(cuda.cp_async_commit())
        T.evaluate(cuda.wgmma_wait_1())

    def _multiply(self, slot: Expr) -> None:
        tile, depth = self.tile, self.tile.block_depth
        a_offset = self.row * depth
        b_offset = tile.block_rows * depth + self.column * depth
        a, b = (
            T.Bind(cuda.wgmma_descriptor(slot + offset.astype("uint32"), depth))
            for offset in (a_offset, b_offset)
        )
        T.evaluate(cuda.wgmma_fence())
        for step in range(min(depth, self.shape.depth) // _STEP):
            for m in range(self.row_blocks):
                acc = cuda.pointer(self.acc, m * self.columns // 2)
                step_of_a = a + T.uint64((m * _ROWS * depth + step * _STEP) // 16)
                step_of_b = b + T.uint64(step * _STEP // 16)
                T.evaluate(cuda.wgmma_u8s8(acc, step_of_a, step_of_b, self.columns))
        T.evaluate(cuda.wgmma_commit())
