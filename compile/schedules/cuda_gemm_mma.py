"""The GEMM kernel for int8 tensor cores (sm_75 and later), written out for a shape and a tile.

A block of threads computes `block_rows` by `block_columns` results. Its slices of x and of the
weight, `block_depth` deep, go from global to shared memory by cp.async, `stages` - 1 slices ahead
of the multiplication. x lies there row by row with the 16-byte chunks of a row permuted, so that
the 8 rows of an ldmatrix are in different banks (cuda_gemm_copies.py); the weight comes packed in
the order in which a warp's lanes read it (operators/cuda_linear.py).

sm_75 has no cp.async and copies at once. The barriers are right for both: a slot is written only
behind the barrier that follows its last read, and is read only behind the next.

Warps share the block's rows, columns and, where a problem has too few results to fill the GPU, its
depth: `depth_warps` warps have accumulators of the same results and are summed in shared memory.
The epilogue works on the accumulators and stores 8 neighbouring columns at once. Rows, columns and
depth that do not fill the tiles are clamped, masked and zero-filled here. Offsets fit int32
(cuda_offsets.py): rows are clamped before they are multiplied by the depth, and only rows that
exist are multiplied by the columns.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, RowCopies, permutation
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments
from intswin.compile.schedules.cuda_gemm_grid import Place, block_count
from intswin.compile.schedules.cuda_gemm_tiles import (
    GROUP,
    PIECE,
    STEP,
    CudaGemmShape,
    MmaTile,
    few_blocks,
    starts_early,
)
from intswin.compile.schedules.cuda_gemm_write import AccumulatorWriter, LanePlace
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

# The epilogue's constants and residual are loaded first for a warp of so few 16x32 results, where
# there are few blocks.
_EARLY = 2


class MmaKernel:
    """What one block of threads computes."""

    def __init__(
        self,
        shape: CudaGemmShape,
        tile: MmaTile,
        args: Arguments,
        place: Place,
        memory: Buffer | None = None,
    ) -> None:
        """`memory` is the block's shared memory, if not just the tile's."""
        self.shape, self.tile, self.args, self.thread = shape, tile, args, place.thread
        self.row, self.column = place.row, place.column
        self.slices = -(-shape.depth // tile.block_depth)
        self.steps = tile.block_depth // STEP
        self.row_blocks = tile.warp_rows // 16
        self.groups = tile.warp_columns // GROUP
        if memory is None:
            memory = cuda.shared_memory(tile.shared_bytes)
        self.shared = T.Bind(cuda.shared_address(cuda.pointer(memory, 0)))
        self.lane = T.Bind(self.thread % 32)
        warp = T.Bind(self.thread // 32)
        self.row_warp = T.Bind(warp % tile.row_warps)
        self.column_warp = T.Bind(warp // tile.row_warps % tile.column_warps)
        self.depth_warp = T.Bind(warp // (tile.row_warps * tile.column_warps))
        self.acc = cuda.registers(self.row_blocks * self.groups * 16)
        self.a = cuda.registers(self.row_blocks * 4)
        self.b = cuda.registers(self.groups * 8)

    def emit(self) -> None:
        """Emit the whole of it: load ahead, multiply, reduce, write."""
        ahead = self.tile.stages - 1
        self._plan_loads()
        self._load_constants(max(ahead, 1))
        self._load_x(max(ahead, 1))
        for index in range(int(self.acc.shape[0])):
            T.buffer_store(self.acc, int32(0), [index])
        self._plan_multiplication()
        if self.slices == 1:
            T.evaluate(cuda.cp_async_wait(0))
            cuda.synchronize()
            self._multiply(int32(0))
        else:
            with T.serial(0, self.slices) as i:
                T.evaluate(cuda.cp_async_wait(ahead - 1))
                # All threads' copies are there, and nobody reads the slot that is filled next.
                cuda.synchronize()
                if self.slices > ahead:
                    with T.If(i + ahead < self.slices):
                        with T.Then():
                            self._copies(i + ahead, (i + ahead) % self.tile.stages)
                T.evaluate(cuda.cp_async_commit())
                self._multiply(i)
        if self.tile.depth_warps == 1:
            self._write()
            return
        self._reduce_depth()
        with T.If(self.depth_warp == 0):
            with T.Then():
                self._write()

    def _slot(self, slot: Expr) -> Expr:
        return self.shared + (slot * self.tile.stage_bytes).astype("uint32")

    def _plan_loads(self) -> None:
        """What of the copies' addresses does not depend on the slice."""
        tile = self.tile
        self.rows_of_x = RowCopies(
            self.args.x, self.shape.rows, self.shape.depth, tile.block_rows, tile.block_depth
        )
        self.rows_of_x.plan(self.thread, tile.threads, self.row)
        self._plan_loads_of_weight()

    def _plan_loads_of_weight(self) -> None:
        """A group of columns is a row of the packed weight, in the order in which it is read."""
        tile = self.tile
        self.rows_of_weight = RowCopies(
            self.args.weight,
            -(-self.shape.columns // GROUP),
            -(-self.shape.depth // STEP) * PIECE,
            tile.block_columns // GROUP,
            self.steps * PIECE,
            permuted=False,
        )
        group = self.column // GROUP
        self.rows_of_weight.plan(self.thread, tile.threads, group, tile.weight_offset)

    def _load_constants(self, slices: int) -> None:
        """Load what no kernel writes, where waiting for it would show: for the first slices."""
        if self._weight_first:
            for i in range(min(slices, self.slices)):
                self._copy_weight(int32(i), T.Bind(self._slot(int32(i))))
        self._plan_write()

    @property
    def _weight_first(self) -> bool:
        """Whether the weight is loaded before anything of x: it waits for no other kernel."""
        return starts_early(self.shape.arch, block_count(self.shape, self.tile))

    def _plan_write(self) -> None:
        """Load the constants of the epilogue's first group, where few others hide the wait."""
        few = few_blocks(self.shape.arch, block_count(self.shape, self.tile))
        self.early = few and self.groups * self.row_blocks <= _EARLY
        if self.early:
            self.writer = self._writer()
            self.writer.load_columns(0, cuda.load_early)

    def _load_x(self, slices: int) -> None:
        """Start copying the first slices, each as a group of its own; then the residual."""
        T.evaluate(cuda.wait_for_grid())
        for i in range(slices):
            if i < self.slices:
                base = T.Bind(self._slot(int32(i)))
                self._copy_x(int32(i), base)
                if not self._weight_first:
                    self._copy_weight(int32(i), base)
            T.evaluate(cuda.cp_async_commit())
        if self.early:
            self.writer.load_residual(0)

    def _copies(self, slice_: Expr, slot: Expr) -> None:
        base = T.Bind(self._slot(slot))
        self._copy_x(slice_, base)
        self._copy_weight(slice_, base)

    def _copy_x(self, slice_: Expr, base: Expr) -> None:
        self.rows_of_x.start(slice_, base)

    def _copy_weight(self, slice_: Expr, base: Expr) -> None:
        self.rows_of_weight.start(slice_, base)

    def _plan_multiplication(self) -> None:
        """This lane's offsets in a slot: its row of `a`, its bytes of `b`."""
        tile = self.tile
        chunks = tile.block_depth // CHUNK
        row = T.Bind(self.row_warp * tile.warp_rows + self.lane % 16)
        self.a_row = T.Bind((row * tile.block_depth).astype("uint32"))
        self.a_permutation = T.Bind(permutation(self.lane % 16, chunks))
        first = self.column_warp * (self.groups * self.steps * PIECE)
        b_offset = tile.weight_offset + first + self.lane * CHUNK
        self.b_offset = T.Bind(b_offset.astype("uint32"))

    def _x_address(self, _slice: Expr, slot: Expr) -> Expr:
        """Where a slice of x is: where its slot is."""
        return slot

    def _multiply(self, slice_: Expr) -> None:
        """Accumulate this warp's steps of a slice."""
        tile, slot = self.tile, T.Bind(self._slot(slice_ % self.tile.stages))
        a_base = T.Bind(self._x_address(slice_, slot) + self.a_row)
        b_base = T.Bind(slot + self.b_offset)
        for i in range(self.steps // tile.depth_warps):
            step = int32(i) if tile.depth_warps == 1 else self.depth_warp + i * tile.depth_warps
            chunk = (step * 2 + self.lane // 16) ^ self.a_permutation
            a = T.Bind(a_base + (chunk * CHUNK).astype("uint32"))
            b = T.Bind(b_base + (step * PIECE).astype("uint32"))
            for m in range(self.row_blocks):
                offset = tirx.const(m * 16 * tile.block_depth, "uint32")
                T.evaluate(cuda.ldmatrix_x4(cuda.pointer(self.a, 4 * m), a + offset))
            for n in range(self.groups):
                for half in range(2):
                    offset = tirx.const(n * self.steps * PIECE + half * 512, "uint32")
                    registers = cuda.pointer(self.b, 8 * n + 4 * half)
                    T.evaluate(cuda.load_shared_16(registers, b + offset))
            for m in range(self.row_blocks):
                for n in range(self.groups * 4):
                    acc = cuda.pointer(self.acc, (m * self.groups * 4 + n) * 4)
                    a_registers = cuda.pointer(self.a, 4 * m)
                    T.evaluate(cuda.mma_u8s8(acc, a_registers, cuda.pointer(self.b, 2 * n)))

    def _reduce_depth(self) -> None:
        """Add the other depth warps' accumulators to those of the first."""
        tile, registers = self.tile, int(self.acc.shape[0])
        warps = tile.row_warps * tile.column_warps
        warp = self.column_warp * tile.row_warps + self.row_warp

        def address(depth_warp: Expr, register: int) -> Expr:
            quads = ((depth_warp - 1) * warps + warp) * (registers // 4) + register // 4
            return self.shared + ((quads * 32 + self.lane) * 16).astype("uint32")

        cuda.synchronize()  # the slices have been read
        with T.If(self.depth_warp > 0):
            with T.Then():
                for i in range(0, registers, 4):
                    values = cuda.pointer(self.acc, i)
                    T.evaluate(cuda.store_shared_16(address(self.depth_warp, i), values))
        cuda.synchronize()
        part = cuda.registers(4)
        with T.If(self.depth_warp == 0):
            with T.Then():
                for other in range(1, tile.depth_warps):
                    for i in range(0, registers, 4):
                        T.evaluate(
                            cuda.load_shared_16(cuda.pointer(part, 0), address(int32(other), i))
                        )
                        for j in range(4):
                            T.buffer_store(self.acc, self.acc[i + j] + part[j], [i + j])

    def _writer(self) -> AccumulatorWriter:
        tile = self.tile
        place = LanePlace(
            row=self.row + self.row_warp * tile.warp_rows + self.lane // 4,
            offsets=[8 * r for r in range(self.row_blocks * 2)],
            column=self.column + self.column_warp * tile.warp_columns + self.lane % 4 * 8,
            groups=self.groups,
        )
        return AccumulatorWriter(self.shape, self.args, place, tile)

    def _write(self) -> None:
        writer = self.writer if self.early else self._writer()
        writer.write(self.acc)
