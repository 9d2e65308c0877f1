"""CPU schedule of `linear`: one register tile, from the first product to the stored byte.

A tile is `rows` rows by `blocks` blocks of 8 or 16 columns, accumulated over all input channels in
vector registers; its epilogue (requantization, activation, residual) reads them there. One parallel
loop runs over groups of tiles. By default a group is one tile and column panels are outermost, so
that a core keeps a panel of the weight in its caches while rows stream by.

Every field of a `GemmTile` is a decision in the schedule's trace (`sample_categorical`), so records
are MetaSchedule's own. What may be chosen depends on what was chosen before: a search makes its
schedules here (docs/tuning.md) instead of changing a decision in a trace.
"""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import ExprRV, LoopRV
from tvm.s_tir.schedule.analysis import has_block
from tvm.target import Target

from intswin.compile.schedules import x86_intrinsics
from intswin.compile.schedules.gemm_space import GemmShape, GemmTile, candidates, default_tile
from intswin.compile.schedules.x86_intrinsics import (
    AVX2_DOT,
    AVX2_REQUANTIZE,
    VNNI_DOT,
    VNNI_REQUANTIZE,
)

INTRINSICS = {"vnni": VNNI_DOT, "avx2": AVX2_DOT}
REQUANTIZE = {"vnni": VNNI_REQUANTIZE, "avx2": AVX2_REQUANTIZE}


def schedule_linear(sch: s_tir.Schedule, target: Target, tile: GemmTile | None = None) -> None:
    """Schedule the PrimFunc of `operators/linear.py` in `sch`; `tile` defaults by shape.

    Raises:
        ValueError: `tile` is not in the space of this PrimFunc.
    """
    shape = gemm_shape(sch)
    _schedule(sch, _Choices(sch, shape, tile or default_tile(shape)))


def sample_linear(sch: s_tir.Schedule) -> GemmTile:
    """Schedule like `schedule_linear` with a tile drawn by the random state of `sch`."""
    choices = _Choices(sch, gemm_shape(sch), None)
    _schedule(sch, choices)
    return GemmTile(**choices.made)


def gemm_shape(sch: s_tir.Schedule) -> GemmShape:
    """The problem that the PrimFunc in `sch` solves."""
    acc = sch.get(sch.get_sblock("acc"))
    batch, rows, blocks, _ = (int(extent) for extent in acc.writes[0].source.shape)
    layout = str(sch.mod["main"].attrs["intswin.layout"])
    return GemmShape(layout, batch, rows, blocks, int(acc.iter_vars[4].dom.extent))


class _Choices:
    """The decisions of a schedule: those of a tile, or random ones."""

    def __init__(self, sch: s_tir.Schedule, shape: GemmShape, tile: GemmTile | None) -> None:
        self._sch, self._shape, self._tile = sch, shape, tile
        self.made: dict[str, int] = {}

    def __call__(self, field: str) -> ExprRV:
        odds = candidates(self._shape, field, self.made)
        values = list(odds)
        decision = None
        if self._tile is not None:
            value = getattr(self._tile, field)
            if value not in odds:
                raise ValueError(f"{field}={value} is not one of {values}")
            decision = values.index(value)
        probabilities = [weight / sum(odds.values()) for weight in odds.values()]
        variable = self._sch.sample_categorical(values, probabilities, decision)
        self.made[field] = int(self._sch.get(variable))
        return variable


def _schedule(sch: s_tir.Schedule, choices: _Choices) -> None:
    func = sch.mod["main"]
    layout = str(func.attrs["intswin.layout"])
    acc = sch.get_sblock("acc")
    cropped = has_block(sch, "tile")
    main = sch.get_sblock("tile" if cropped else "y")

    if has_block(sch, "x_padded"):
        _parallel_rows(sch, sch.get_sblock("x_padded"))
    batch, rows, cols = sch.get_loops(main)
    columns = int(sch.get(acc).writes[0].source.shape[3])
    row_out, row_in = sch.split(rows, [None, choices("rows")])
    block_out, block_in, lane = sch.split(cols, [None, choices("blocks"), columns])
    sch.reorder(batch, row_out, block_out, row_in, block_in, lane)
    outer, tile_loop = _tasks(sch, choices, sch.fuse(batch, row_out), block_out)
    sch.parallel(outer)
    stages = [name for name in ("activated", "product", "h") if has_block(sch, name)]
    for name in stages:
        sch.compute_at(sch.get_sblock(name), tile_loop, preserve_unit_loops=True)
    sch.compute_at(acc, tile_loop, preserve_unit_loops=True)
    if cropped:
        sch.reverse_compute_at(sch.get_sblock("y"), tile_loop, preserve_unit_loops=True)
    sch.vectorize(lane)
    sch.unroll(block_in)
    sch.unroll(row_in)
    for name in stages:
        *_, row, block, lane = sch.get_loops(sch.get_sblock(name))
        sch.unroll(row)
        sch.unroll(block)
        if name != "product" and layout in REQUANTIZE:
            x86_intrinsics.register()
            sch.tensorize(lane, REQUANTIZE[layout])
        else:
            sch.vectorize(lane)
    _schedule_accumulation(sch, acc, layout, choices)


def _tasks(
    sch: s_tir.Schedule, choices: _Choices, rows: LoopRV, columns: LoopRV
) -> tuple[LoopRV, LoopRV]:
    """Group the loops over the register tiles of all rows and columns.

    Returns:
        the loop over tasks, and the innermost loop over the tiles of a task.
    """
    row_task, row_tile = sch.split(rows, [None, choices("row_tiles")])
    column_task, column_tile = sch.split(columns, [None, choices("column_tiles")])
    choices("order")
    tasks, tiles = [column_task, row_task], [column_tile, row_tile]
    if choices.made["order"] & 2:
        tasks.reverse()
    if choices.made["order"] & 1:
        tiles.reverse()
    sch.reorder(*tasks, *tiles)
    return sch.fuse(*tasks), tiles[1]


def _schedule_accumulation(
    sch: s_tir.Schedule, acc: s_tir.schedule.SBlockRV, layout: str, choices: _Choices
) -> None:
    """The loop over input channels around the unrolled register tile."""
    _, _, _, _, row, block, lane, depth, *inner = sch.get_loops(acc)
    sch.reorder(depth, row, block, lane, *inner)
    depth, unrolled = sch.split(depth, [None, choices("unroll")])
    for loop in (unrolled, row, block):
        sch.unroll(loop)
    if layout not in INTRINSICS:
        sch.vectorize(lane)
    init = sch.decompose_reduction(acc, depth)
    *_, row, block, init_lane = sch.get_loops(init)
    sch.unroll(row)
    sch.unroll(block)
    sch.vectorize(init_lane)
    if layout in INTRINSICS:
        x86_intrinsics.register()
        sch.tensorize(lane, INTRINSICS[layout])


def _parallel_rows(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> None:
    *outer, _ = sch.get_loops(block)
    sch.parallel(sch.fuse(*outer))
