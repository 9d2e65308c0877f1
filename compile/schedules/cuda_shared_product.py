"""A product of int8 tensor cores whose operands are whole in shared memory.

x lies row by row with the 16-byte chunks of a row permuted (cuda_gemm_copies.py), the weight packed
(operators/cuda_linear.py), the steps of a group of 32 columns one after another. Nothing is loaded
meanwhile, so the steps need no barrier between them.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, permutation
from intswin.compile.schedules.cuda_gemm_tiles import GROUP, PIECE, STEP
from intswin.compile.schedules.cuda_intrinsics import Expr


@dataclasses.dataclass(frozen=True)
class Warps:
    """How the warps of a block share a product.

    Attributes:
        rows: warps that share the rows; divides their blocks of 16.
        columns: that share the columns; divides their groups of 32.
        depth: that share the steps of 32; divides their number.
    """

    rows: int
    columns: int
    depth: int


class SharedProduct:
    """A warp's part of the product: its accumulators, and where they belong.

    Attributes:
        row_blocks: of 16 rows, that the warp has.
        groups: of 32 columns.
        acc: int32; of block m of the rows and group n those from (m * groups + n) * 16 on, four for
            each 8 columns of the mma: two of row lane // 4, two of the row 8 below. So a lane has
            the columns 8 * (lane % 4) .. + 7 of a group.
        first_row_block, first_group: of the block's rows and columns, that the warp starts with.
        depth_warp: number of the warp among those that share the depth.
    """

    def __init__(self, rows: int, columns: int, depth: int, warps: Warps, thread: Expr) -> None:
        """Of `rows` by `columns` results of a block; `thread` is the number of this one."""
        self._depth, self._warps = depth, warps
        self.row_blocks = rows // 16 // warps.rows
        self.groups = columns // GROUP // warps.columns
        self.lane = T.Bind(thread % 32)
        warp = T.Bind(thread // 32)
        self.first_row_block = T.Bind(warp % warps.rows * self.row_blocks)
        self.first_group = T.Bind(warp // warps.rows % warps.columns * self.groups)
        self.depth_warp = T.Bind(warp // (warps.rows * warps.columns))
        self.acc = cuda.registers(self.row_blocks * self.groups * 16)
        self._a = cuda.registers(self.row_blocks * 4)
        self._b = cuda.registers(self.groups * 8)

    def multiply(self, x: Expr, weight: Expr) -> None:
        """Compute the accumulators from uint8 rows and a packed weight at these addresses."""
        for index in range(int(self.acc.shape[0])):
            T.buffer_store(self.acc, int32(0), [index])
        steps, depth_warps = self._depth // STEP, self._warps.depth
        row = T.Bind(self.first_row_block * 16 + self.lane % 16)
        a_base = T.Bind(x + (row * self._depth).astype("uint32"))
        permuted = T.Bind(permutation(self.lane % 16, self._depth // CHUNK))
        b_offset = self.first_group * (steps * PIECE) + self.lane * CHUNK
        b_base = T.Bind(weight + b_offset.astype("uint32"))
        for i in range(steps // depth_warps):
            step = int32(i) if depth_warps == 1 else self.depth_warp + i * depth_warps
            chunk = (step * 2 + self.lane // 16) ^ permuted
            a = T.Bind(a_base + (chunk * CHUNK).astype("uint32"))
            b = T.Bind(b_base + (step * PIECE).astype("uint32"))
            self._step(a, b, steps)

    def _step(self, a: Expr, b: Expr, steps: int) -> None:
        for m in range(self.row_blocks):
            offset = tirx.const(m * 16 * self._depth, "uint32")
            T.evaluate(cuda.ldmatrix_x4(cuda.pointer(self._a, 4 * m), a + offset))
        for n in range(self.groups):
            for half in range(2):
                offset = tirx.const(n * steps * PIECE + half * 512, "uint32")
                registers = cuda.pointer(self._b, 8 * n + 4 * half)
                T.evaluate(cuda.load_shared_16(registers, b + offset))
        for m in range(self.row_blocks):
            for n in range(self.groups * 4):
                acc = cuda.pointer(self.acc, (m * self.groups * 4 + n) * 4)
                b_registers = cuda.pointer(self._b, 2 * n)
                T.evaluate(cuda.mma_u8s8(acc, cuda.pointer(self._a, 4 * m), b_registers))

    def results(self, m: int, n: int, half: int) -> list[Expr]:
        """The lane's 8 columns of group `n` in row lane // 4 of block `m`, or the row 8 below."""
        first = (m * self.groups + n) * 16 + 2 * half
        return [self.acc[first + i // 2 * 4 + i % 2] for i in range(8)]
