"""A block's rows, normalised to shared memory, where a GEMM in the same kernel reads them.

The numbers are those of the LayerNorm kernel: the same code computes them (cuda_layer_norm_row.py).
They lie slice by slice, each as a copy of a slice of x would (cuda_gemm_copies.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, permutation
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_layer_norm_row import LayerNormRow, RowConstants
from intswin.compile.schedules.cuda_layer_norm_space import vectors_of
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmTile
from intswin.compile.schedules.layer_norm import LayerNormShape

_MOST_VECTORS = 4  # whose gamma and beta, 16 registers each, a lane keeps for all of its rows


class NormalisedRows:
    """The rows of a block of threads.

    Args:
        shape: the LayerNorm, to uint8.
        tile: of the block.
        args: buffers as for `LayerNormRow`; the shift of the results is params[1].
        place: the thread and the block's first row.
        address: in shared memory.
        rows: how many of the block's are normalised, the first ones.
        cluster: blocks that share them: each normalises a part of them, for all.
        rank: of this one in the cluster, whose blocks have all started.
    """

    def __init__(
        self,
        shape: LayerNormShape,
        tile: NormGemmTile,
        args: Mapping[str, Buffer],
        place: Place,
        address: Expr,
        rows: int,
        cluster: int = 1,
        rank: Expr | None = None,
    ) -> None:
        self._shape, self._tile, self._args, self._place = shape, tile, args, place
        self._address, self._rows = address, rows
        self._cluster, self._rank = cluster, rank
        self._slice_bytes = tile.block_rows * tile.block_depth
        self._constants: RowConstants | None = None

    def slice_address(self, index: Expr) -> Expr:
        """Of a slice."""
        return self._address + (index * self._slice_bytes).astype("uint32")

    def emit(self) -> None:
        """Normalise this block's part; a row behind the last that exists repeats that.

        In a cluster, the others' parts are there behind the barrier that follows.
        """
        tile, thread, rows = self._tile, self._place.thread, -(-self._rows // self._cluster)
        at_once = tile.threads // tile.lanes
        lane = T.Bind(thread % tile.lanes)
        shift = T.Bind(self._args["params"][1].astype("int32"))
        if vectors_of(self._shape) <= _MOST_VECTORS * tile.lanes:
            self._constants = RowConstants(self._shape, tile.lanes, self._args, lane)
        if at_once >= rows:
            self._row(thread // tile.lanes, lane, shift, at_once > rows)
            return
        with T.serial(0, -(-rows // at_once)) as i:
            self._row(i * at_once + thread // tile.lanes, lane, shift, rows % at_once > 0)

    def _row(self, row: Expr, lane: Expr, shift: Expr, partial: bool) -> None:
        """A row of this block's part; `partial`: if the part has so many."""
        tile, conditions = self._tile, []
        row = T.Bind(row)
        if partial:
            conditions.append(row < int32(-(-self._rows // self._cluster)))
        if self._cluster > 1:
            row = T.Bind(self._rank * -(-self._rows // self._cluster) + row)
            if self._rows % self._cluster:
                conditions.append(row < int32(self._rows))
        of_all = self._place.row + row
        norm = LayerNormRow(
            self._shape, tile.lanes, self._args, of_all, lane, shift, self._constants
        )
        norm.load()
        norm.statistics()
        chunks = tile.block_depth // CHUNK
        base = T.Bind(self._address + (row * tile.block_depth).astype("uint32"))
        bases = [base]
        if self._cluster > 1:
            bases = [T.Bind(cuda.map_shared(base, int32(i))) for i in range(self._cluster)]
        permuted = T.Bind(permutation(row, chunks))
        packed = cuda.registers(2)

        def store(vector: Expr, results: list[Expr]) -> None:
            chunk = T.Bind(vector // 2)
            slice_ = chunk // chunks * self._slice_bytes
            within = (chunk % chunks ^ permuted) * CHUNK + vector % 2 * 8
            for half in range(2):
                T.buffer_store(packed, cuda.pack_u8(*results[4 * half : 4 * half + 4]), [half])
            offset = T.Bind((slice_ + within).astype("uint32"))
            write = cuda.store_shared_8 if self._cluster == 1 else cuda.store_cluster_8
            for to in bases:
                T.evaluate(write(to + offset, cuda.pointer(packed, 0)))

        if not conditions:
            norm.write(store)
            return
        with T.If(tirx.all(*conditions)):
            with T.Then():
                norm.write(store)
