"""CPU schedule of `linear`: one register tile, from the first product to the stored byte.

A tile is `rows` rows by `blocks` blocks of 8 or 16 columns, accumulated over all input channels in
vector registers; its epilogue (requantization, activation, residual) reads them there. One parallel
loop runs over the tiles, column panels outermost, so that a core keeps a panel of the weight in its
caches while rows stream by.
"""

from __future__ import annotations

import dataclasses

from intswin.compile.schedules.x86_intrinsics import (
    AVX2_DOT,
    AVX2_REQUANTIZE,
    VNNI_DOT,
    VNNI_REQUANTIZE,
)
from tvm import s_tir
from tvm.s_tir.schedule.analysis import has_block
from tvm.target import Target


@dataclasses.dataclass
class GemmTile:
    """What a search may choose.

    Attributes:
        rows: rows of the register tile; divides the padded number of rows.
        blocks: blocks of columns of the register tile; divides their number.
        unroll: steps of the loop over input channels in one iteration; divides their number.
    """

    rows: int
    blocks: int
    unroll: int


_INTRINSICS = {"vnni": VNNI_DOT, "avx2": AVX2_DOT}
_REQUANTIZE = {"vnni": VNNI_REQUANTIZE, "avx2": AVX2_REQUANTIZE}
# (rows, blocks) by preference: 32 registers hold accumulators, weights and an activation on
# AVX-512 and NEON, 16 on AVX2. The first that divides the matrix is taken.
_ROWS = {"vnni": (7, 8, 6, 5), "avx2": (4, 5, 6, 3), "plain": (7, 8, 6, 5)}
_BLOCKS = {"vnni": (2, 3, 1), "avx2": (2, 1), "plain": (1,)}


def default_tile(layout: str, rows: int, blocks: int) -> GemmTile:
    """The tile for a matrix of `rows` (padded) by `blocks` blocks of columns."""
    return GemmTile(
        rows=_first_divisor(rows, _ROWS[layout], rows if rows < 5 else 1),
        blocks=_first_divisor(blocks, _BLOCKS[layout], 1),
        unroll=1,
    )


def schedule_linear(sch: s_tir.Schedule, target: Target, tile: GemmTile | None = None) -> None:
    """Schedule the PrimFunc of `operators/linear.py` in `sch`; `tile` defaults by shape."""
    func = sch.mod["main"]
    layout = str(func.attrs["intswin.layout"])
    acc = sch.get_sblock("acc")
    cropped = has_block(sch, "tile")
    main = sch.get_sblock("tile" if cropped else "y")
    _, padded_rows, blocks, columns = (int(e) for e in sch.get(acc).writes[0].source.shape)
    tile = tile or default_tile(layout, padded_rows, blocks)

    if has_block(sch, "x_padded"):
        _parallel_rows(sch, sch.get_sblock("x_padded"))
    batch, rows, cols = sch.get_loops(main)
    row_out, row_in = sch.split(rows, [None, tile.rows])
    block_out, block_in, lane = sch.split(cols, [None, tile.blocks, columns])
    sch.reorder(block_out, batch, row_out, row_in, block_in, lane)
    outer = sch.fuse(block_out, batch, row_out)
    sch.parallel(outer)
    stages = [name for name in ("activated", "product", "h") if has_block(sch, name)]
    for name in stages:
        sch.compute_at(sch.get_sblock(name), outer, preserve_unit_loops=True)
    sch.compute_at(acc, outer, preserve_unit_loops=True)
    if cropped:
        sch.reverse_compute_at(sch.get_sblock("y"), outer, preserve_unit_loops=True)
    sch.vectorize(lane)
    sch.unroll(block_in)
    sch.unroll(row_in)
    for name in stages:
        *_, row, block, lane = sch.get_loops(sch.get_sblock(name))
        sch.unroll(row)
        sch.unroll(block)
        if name != "product" and layout in _REQUANTIZE:
            sch.tensorize(lane, _REQUANTIZE[layout])
        else:
            sch.vectorize(lane)
    _schedule_accumulation(sch, acc, layout, tile)


def _schedule_accumulation(
    sch: s_tir.Schedule, acc: s_tir.schedule.SBlockRV, layout: str, tile: GemmTile
) -> None:
    """The loop over input channels around the unrolled register tile."""
    _, _, row, block, lane, depth, *inner = sch.get_loops(acc)
    sch.reorder(depth, row, block, lane, *inner)
    depth, unrolled = sch.split(depth, [None, tile.unroll])
    for loop in (unrolled, row, block):
        sch.unroll(loop)
    if layout not in _INTRINSICS:
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, depth)
    *_, row, block, init_lane = sch.get_loops(init)
    sch.unroll(row)
    sch.unroll(block)
    sch.vectorize(init_lane)
    if layout in _INTRINSICS:
        sch.tensorize(lane, _INTRINSICS[layout])


def _parallel_rows(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> None:
    *outer, _ = sch.get_loops(block)
    sch.parallel(sch.fuse(*outer))


def _first_divisor(extent: int, choices: tuple[int, ...], otherwise: int) -> int:
    return next((c for c in choices if extent % c == 0), otherwise)
