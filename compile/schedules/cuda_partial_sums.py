"""Sums of partial products: of warps of a block that share the depth, and of a cluster's blocks.

Warps write their accumulators to shared memory. A sum is read, added and written back there by one
thread, then each block of the cluster takes its share of the results and reads those of all blocks
through distributed shared memory. Integers: any order of the additions gives the same sums.

A quad is 4 neighbouring columns of a row, 16 bytes: what a thread takes at a time. The 8 rows and
32 columns that a warp has in a quarter of its accumulators are 64 quads, in the order of their rows
and columns except that where lane // 4 is odd the two quads of a lane are swapped: the lanes of a
warp write the same quad of theirs, and read neighbouring ones, in different banks.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_tiles import GROUP
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_shared_product import SharedProduct

WIDTH = 4  # columns of a quad
_QUADS = 64  # of 8 rows and 32 columns
_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Share:
    """Which quad of the block's rows a thread has in a pass.

    Attributes:
        row, column: of its first number.
        exists: None where all threads have one.
        address: of it in the block's first partial sums.
    """

    row: Expr
    column: Expr
    exists: Expr | None
    address: Expr


class PartialSums:
    """The partial sums of `rows` by `columns` results.

    Args:
        rows: of the block; the blocks of a cluster have the same ones.
        columns: of all results, in each block.
        copies: warps of a block that share the depth.
        cluster: blocks of a cluster.
        threads: of a block.
        address: of rows * columns * 4 bytes for each copy, in the shared memory of every block.
    """

    def __init__(
        self, rows: int, columns: int, copies: int, cluster: int, threads: int, address: Expr
    ) -> None:
        self._columns, self._copies, self._cluster = columns, copies, cluster
        self._threads, self._address = threads, address
        self._quads = rows * columns // WIDTH
        self._quad = cuda.registers(WIDTH)

    def write(self, product: SharedProduct) -> None:
        """Write a warp's accumulators."""
        groups = self._columns // GROUP
        swapped = T.Bind(product.lane // 4 % 2)
        base = T.Bind(
            self._address
            + (product.depth_warp * (self._quads * _BYTES) + product.lane * 32).astype("uint32")
        )
        for m in range(product.row_blocks):
            for n in range(product.groups):
                block = (product.first_row_block + m) * groups + product.first_group + n
                first = T.Bind(base + (block * (2 * _QUADS * _BYTES)).astype("uint32"))
                for half in range(2):
                    results = product.results(m, n, half)
                    for quad in range(2):
                        for i in range(WIDTH):
                            T.buffer_store(self._quad, results[4 * quad + i], [i])
                        at = (swapped ^ quad) * _BYTES + half * (_QUADS * _BYTES)
                        target = first + at.astype("uint32")
                        T.evaluate(cuda.store_shared_16(target, cuda.pointer(self._quad, 0)))

    def add_copies(self, thread: Expr) -> None:
        """Add the copies to the first one; behind a barrier of the block after `write`."""
        if self._copies == 1:
            return
        acc = cuda.registers(WIDTH)
        for first in range(0, self._quads, self._threads):
            index = T.Bind(thread + first)
            if first + self._threads <= self._quads:
                self._add_copies(index, acc)
                continue
            with T.If(index < int32(self._quads)):
                with T.Then():
                    self._add_copies(index, acc)

    def _add_copies(self, index: Expr, acc: Buffer) -> None:
        address = T.Bind(self._address + (index * _BYTES).astype("uint32"))
        T.evaluate(cuda.load_shared_16(cuda.pointer(acc, 0), address))
        for copy in range(1, self._copies):
            source = address + tirx.const(copy * self._quads * _BYTES, "uint32")
            T.evaluate(cuda.load_shared_16(cuda.pointer(self._quad, 0), source))
            for i in range(WIDTH):
                T.buffer_store(acc, acc[i] + self._quad[i], [i])
        T.evaluate(cuda.store_shared_16(address, cuda.pointer(acc, 0)))

    def shares(self, thread: Expr, rank: Expr) -> list[Share]:
        """The thread's quads of the results of block `rank` of the cluster, in passes."""
        own = self._quads // self._cluster
        shares = []
        for first in range(0, own, self._threads):
            within = T.Bind(thread + first)
            exists = T.Bind(within < int32(own)) if first + self._threads > own else None
            quad = T.Bind(rank * own + within)
            block, place = T.Bind(quad // _QUADS), T.Bind(quad % _QUADS)
            group, rows = T.Bind(block // 2), block % 2 * 8
            groups = self._columns // GROUP
            lane = T.Bind(place // 2)
            of_lane = place % 2 ^ lane // 4 % 2
            row = T.Bind(group // groups * 16 + rows + lane // 4)
            column = T.Bind(group % groups * GROUP + lane % 4 * 8 + of_lane * WIDTH)
            address = T.Bind(self._address + (quad * _BYTES).astype("uint32"))
            shares.append(Share(row, column, exists, address))
        return shares

    def total(self, share: Share, rank: Expr, sums: Buffer) -> None:
        """Write the sums of a quad that exists, of all blocks of the cluster, to registers `sums`.

        Behind a barrier of the cluster (of the block, where it has no other one). Each block starts
        with the next one, so that they do not all read the same block at once.
        """
        if self._cluster == 1:
            T.evaluate(cuda.load_shared_16(cuda.pointer(sums, 0), share.address))
            return
        parts = cuda.registers(WIDTH * self._cluster)
        for i in range(self._cluster):
            other = T.Bind((rank + 1 + i) % self._cluster)
            source = cuda.map_shared(share.address, other)
            T.evaluate(cuda.load_cluster_16(cuda.pointer(parts, i * WIDTH), source))
        for j in range(WIDTH):
            total = parts[j]
            for i in range(1, self._cluster):
                total = total + parts[i * WIDTH + j]
            T.buffer_store(sums, total, [j])
