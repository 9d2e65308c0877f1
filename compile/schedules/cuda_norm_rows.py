"""A block's rows, normalised to shared memory, where a GEMM in the same kernel reads them.

The numbers are those of the LayerNorm kernel: the same code computes them (cuda_layer_norm_row.py).
They lie slice by slice, each as a copy of a slice of x would (cuda_gemm_copies.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, permutation
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_layer_norm_row import LayerNormRow
from intswin.compile.schedules.layer_norm import LayerNormShape


class RowsTile(Protocol):
    """What is asked of a tile."""

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        ...

    @property
    def block_depth(self) -> int:
        """Channels of a slice."""
        ...

    @property
    def threads(self) -> int:
        """Of a block."""
        ...

    @property
    def lanes(self) -> int:
        """Of a warp that normalise a row together, a power of two."""
        ...


@dataclasses.dataclass(frozen=True)
class WholeRows:
    """A tile with one slice of all channels; attributes as in `RowsTile`."""

    block_rows: int
    block_depth: int
    threads: int
    lanes: int


class NormalisedRows:
    """The rows of a block of threads.

    Args:
        shape: the LayerNorm, to uint8.
        tile: of the block.
        args: buffers as for `LayerNormRow`; the shift of the results is params[1].
        place: the thread and the block's first row.
        address: in shared memory.
    """

    def __init__(
        self,
        shape: LayerNormShape,
        tile: RowsTile,
        args: Mapping[str, Buffer],
        place: Place,
        address: Expr,
    ) -> None:
        self._shape, self._tile, self._args, self._place = shape, tile, args, place
        self._address = address
        self._slice_bytes = tile.block_rows * tile.block_depth

    def slice_address(self, index: Expr) -> Expr:
        """Of a slice."""
        return self._address + (index * self._slice_bytes).astype("uint32")

    def emit(self, after_loads: Callable[[], None] | None = None) -> None:
        """Normalise all of the rows; one behind the last that exists repeats that.

        `after_loads` emits what comes once x is on its way; before it, if rows come in passes.
        """
        tile, thread = self._tile, self._place.thread
        at_once = tile.threads // tile.lanes
        lane = T.Bind(thread % tile.lanes)
        shift = T.Bind(self._args["params"][1].astype("int32"))
        if at_once >= tile.block_rows:
            partial = at_once > tile.block_rows
            self._row(thread // tile.lanes, lane, shift, partial, after_loads)
            return
        if after_loads is not None:
            after_loads()
        with T.serial(0, -(-tile.block_rows // at_once)) as i:
            row = i * at_once + thread // tile.lanes
            self._row(row, lane, shift, tile.block_rows % at_once > 0)

    def _row(
        self,
        row: Expr,
        lane: Expr,
        shift: Expr,
        partial: bool,
        after_loads: Callable[[], None] | None = None,
    ) -> None:
        """A row of the block; `partial`: if it has so many."""
        tile = self._tile
        row = T.Bind(row)
        norm = LayerNormRow(self._shape, tile.lanes, self._args, self._place.row + row, lane, shift)
        norm.load()
        if after_loads is not None:
            after_loads()
        norm.statistics()
        chunks = tile.block_depth // CHUNK
        base = T.Bind(self._address + (row * tile.block_depth).astype("uint32"))
        permuted = T.Bind(permutation(row, chunks))
        packed = cuda.registers(2)

        def store(vector: Expr, results: list[Expr]) -> None:
            chunk = T.Bind(vector // 2)
            slice_ = chunk // chunks * self._slice_bytes
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
