"""A block's rows, normalised to shared memory, where a GEMM in the same kernel reads them.

The numbers are those of the LayerNorm kernel: the same code computes them (cuda_layer_norm_row.py).
They lie slice by slice, each as a copy of a slice of x would (cuda_gemm_copies.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, permutation
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_layer_norm_row import LayerNormRow, RowConstants, load_params
from intswin.compile.schedules.cuda_layer_norm_space import vectors_of
from intswin.compile.schedules.layer_norm import LayerNormShape

_WORDS = 4  # of a vector of x, registers of a lane
_MOST_WORDS = 32  # that a lane has of rows which it has loaded and not normalised yet
_MOST_VECTORS = 4  # whose gamma and beta, 16 registers each, a lane keeps for all of its rows


@dataclasses.dataclass(frozen=True)
class RowsTile:
    """How a block of threads normalises its rows.

    Attributes:
        block_rows: rows that there is room for.
        block_depth: channels of a slice.
        threads: of the block.
        lanes: of a warp that normalise a row together, a power of two.
        rows: how many are normalised, the first ones.
        cluster: blocks that have the same rows: each normalises a part of them, for all.
    """

    block_rows: int
    block_depth: int
    threads: int
    lanes: int
    rows: int
    cluster: int = 1

    @property
    def part(self) -> int:
        """Rows that a block normalises."""
        return -(-self.rows // self.cluster)


class NormalisedRows:
    """The rows of a block of threads.

    Args:
        shape: the LayerNorm, to uint8.
        tile: of the block.
        args: buffers as for `LayerNormRow`; the shift of the results is params[1].
        place: the thread and the block's first row.
        address: in shared memory.
        rank: of the block in its cluster, all of whose blocks have to have started.
    """

    def __init__(
        self,
        shape: LayerNormShape,
        tile: RowsTile,
        args: Mapping[str, Buffer],
        place: Place,
        address: Expr,
        rank: Expr | int = 0,
    ) -> None:
        self._shape, self._tile, self._args, self._place = shape, tile, args, place
        self._address, self._rank = address, rank
        self._slice_bytes = tile.block_rows * tile.block_depth
        self._constants: RowConstants | None = None

    def slice_address(self, index: Expr) -> Expr:
        """Of a slice."""
        return self._address + (index * self._slice_bytes).astype("uint32")

    def emit(self) -> None:
        """Normalise this block's part; a row behind the last that exists repeats that.

        It waits for the kernel before this one. In a cluster, the others' parts are there behind
        the barrier that follows.
        """
        tile = self._tile
        at_once = tile.threads // tile.lanes
        self._lane = T.Bind(self._place.thread % tile.lanes)
        self._eps, shift = load_params(self._args["params"])
        self._shift = T.Bind(shift.astype("int32"))
        first = T.Bind(self._place.thread // tile.lanes)
        if vectors_of(self._shape) <= _MOST_VECTORS * tile.lanes:
            self._constants = RowConstants(self._shape, tile.lanes, self._args, self._lane)
        passes = -(-tile.part // at_once)
        words = -(-vectors_of(self._shape) // tile.lanes) * _WORDS
        if passes * words <= _MOST_WORDS:  # all rows are read before the first is waited for
            numbers = [T.Bind(first + i * at_once) for i in range(passes)]
            located = [self._located(number) for number in numbers]
            T.evaluate(cuda.wait_for_grid())
            for _, norm in located:
                norm.load()
            for i, (number, (row, norm)) in enumerate(zip(numbers, located, strict=True)):
                self._normalise(number, row, norm, (i + 1) * at_once > tile.part)
            return
        T.evaluate(cuda.wait_for_grid())
        with T.serial(0, passes) as i:
            number = T.Bind(i * at_once + first)
            row, norm = self._located(number)
            norm.load()
            self._normalise(number, row, norm, tile.part % at_once > 0)

    def _located(self, number: Expr) -> tuple[Expr, LayerNormRow]:
        """A row of this block's part: its number among the block's, and where it is."""
        tile, row = self._tile, number
        if tile.cluster > 1:
            row = T.Bind(self._rank * tile.part + number)
        place = self._place.row + row
        scalars = self._eps, self._shift
        norm = LayerNormRow(self._shape, tile.lanes, self._args, place, self._lane, *scalars)
        norm.locate()
        return row, norm

    def _normalise(self, number: Expr, row: Expr, norm: LayerNormRow, partial: bool) -> None:
        """Normalise a row that is loaded; `partial`: if the part has so many."""
        tile, conditions = self._tile, []
        if partial:
            conditions.append(number < int32(tile.part))
        if tile.cluster > 1 and tile.rows % tile.cluster:
            conditions.append(row < int32(tile.rows))
        norm.statistics()
        chunks = tile.block_depth // CHUNK
        bases = [T.Bind(self._address + (row * tile.block_depth).astype("uint32"))]
        if tile.cluster > 1:
            bases = [T.Bind(cuda.map_shared(bases[0], int32(i))) for i in range(tile.cluster)]
        permuted = T.Bind(permutation(row, chunks))
        packed = cuda.registers(2)

        def store(vector: Expr, results: list[Expr]) -> None:
            chunk = T.Bind(vector // 2)
            slice_ = chunk // chunks * self._slice_bytes
            within = (chunk % chunks ^ permuted) * CHUNK + vector % 2 * 8
            for half in range(2):
                T.buffer_store(packed, cuda.pack_u8(*results[4 * half : 4 * half + 4]), [half])
            offset = T.Bind((slice_ + within).astype("uint32"))
            write = cuda.store_shared_8 if tile.cluster == 1 else cuda.store_cluster_8
            for base in bases:
                T.evaluate(write(base + offset, cuda.pointer(packed, 0)))

        if not conditions:
            norm.write(store, self._constants)
            return
        with T.If(tirx.all(*conditions)):
            with T.Then():
                norm.write(store, self._constants)
