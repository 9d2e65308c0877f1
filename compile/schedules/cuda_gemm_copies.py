"""Slices of a matrix on their way from global to shared memory, by cp.async.

Rows lie in shared memory one after another, with their 16-byte chunks permuted, so that 8 rows'
chunks of the same depth are in different banks. The permutation is the one that wgmma knows
(cuda_wgmma_functions.py).
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

CHUNK = 16  # bytes of a copy


class RowCopies:
    """A thread's share of copying slices of `tile_rows` rows, `tile_depth` bytes deep.

    Args:
        matrix: 8 bits an element, `rows` rows of `depth`.
        permuted: whether the chunks of a row are.
    """

    def __init__(
        self,
        matrix: Buffer,
        rows: int,
        depth: int,
        tile_rows: int,
        tile_depth: int,
        permuted: bool = True,
    ) -> None:
        self._matrix, self._rows, self._depth = matrix, rows, depth
        self._tile_rows, self._tile_depth, self._permuted = tile_rows, tile_depth, permuted
        self._chunks: list[tuple[Expr, Expr, Expr, Expr | None]] = []

    def plan(self, thread: Expr, threads: int, first_row: Expr, offset: int = 0) -> None:
        """Compute what of the addresses does not depend on the slice.

        Args:
            thread: number of this one.
            threads: that share the copies.
            first_row: of the tile; rows behind the matrix' last one repeat it.
            offset: bytes of a slot before the tile.
        """
        chunks = self._tile_depth // CHUNK
        total = self._tile_rows * chunks
        for first in range(0, total, threads):
            index = T.Bind(thread + first)
            row, chunk = T.Bind(index // chunks), T.Bind(index % chunks)
            source = tirx.min(first_row + row, int32(self._rows - 1)) * self._depth
            place = chunk ^ permutation(row, chunks) if self._permuted else chunk
            target = row * self._tile_depth + place * CHUNK + offset
            partial = index < int32(total) if first + threads > total else None
            self._chunks.append((T.Bind(source), chunk, T.Bind(target), partial))

    def start(self, slice_: Expr, slot: Expr) -> None:
        """Start copying a slice to the slot at an address; zeros where the rows have ended."""
        depth = T.Bind(slice_ * self._tile_depth)
        exact = self._depth % self._tile_depth == 0
        for source, chunk, target, partial in self._chunks:
            k = depth + chunk * CHUNK
            valid = None if exact else k < int32(self._depth)
            _copy_chunk(slot, target, self._matrix, source, k, valid, partial)


def permutation(row: Expr, chunks: int) -> Expr:
    """What the numbers of a row's chunks, of which there are so many, are xor-ed with."""
    if chunks % 8 == 0:
        return row % 8
    if chunks % 4 == 0:
        return row // 2 % 4
    return row // 4 % 2


def _copy_chunk(
    slot: Expr,
    target: Expr,
    buffer: Buffer,
    source: Expr,
    offset: Expr,
    valid: Expr | None,
    partial: Expr | None,
) -> None:
    """Copy from `source` + `offset` where `partial` holds; zeros where `valid` does not."""
    size: Expr | int = CHUNK
    if valid is not None:
        size = tirx.Select(valid, int32(CHUNK), int32(0))
        offset = tirx.Select(valid, offset, int32(0))
    copy = cuda.cp_async_16(
        slot + target.astype("uint32"), cuda.pointer(buffer, source + offset), size
    )
    if partial is None:
        T.evaluate(copy)
        return
    with T.If(partial):
        with T.Then():
            T.evaluate(copy)
