"""CPU schedules of the operators that do little arithmetic: one parallel loop, vectors inside."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV
from tvm.target import Target

_VECTOR = 64  # elements; LLVM cuts a longer vector into registers


def schedule_rows(sch: s_tir.Schedule, target: Target) -> None:
    """`gather_rows`, `add_constant`: rows in parallel, channels in vectors."""
    batch, row, channel = sch.get_loops(sch.get_sblock("y"))
    sch.parallel(sch.fuse(batch, row))
    _vectorize(sch, channel)


def schedule_patchify(sch: s_tir.Schedule, target: Target) -> None:
    """`patchify`: patches in parallel; a vector is what is adjacent in the image."""
    batch, row, column = sch.get_loops(sch.get_sblock("y"))
    sch.parallel(sch.fuse(batch, row))
    _, adjacent = sch.split(column, [None, int(sch.mod["main"].attrs["intswin.vector"])])
    sch.vectorize(adjacent)


def schedule_mean_pool(sch: s_tir.Schedule, target: Target) -> None:
    """`mean_pool`: panels of channels in parallel, accumulated over all rows."""
    acc, out = sch.get_sblock("acc"), sch.get_sblock("y")
    batch, one, channel = sch.get_loops(out)
    panel, lane = sch.split(channel, [None, _width(sch, channel)])
    outer = sch.fuse(batch, one, panel)
    sch.parallel(outer)
    sch.vectorize(lane)
    sch.compute_at(acc, outer, preserve_unit_loops=True)
    *_, lane, row = sch.get_loops(acc)
    sch.reorder(row, lane)
    sch.vectorize(lane)
    init = sch.decompose_reduction(acc, row)
    sch.vectorize(sch.get_loops(init)[-1])


def _vectorize(sch: s_tir.Schedule, loop: LoopRV) -> None:
    _, lane = sch.split(loop, [None, _width(sch, loop)])
    sch.vectorize(lane)


def _width(sch: s_tir.Schedule, loop: LoopRV) -> int:
    """The longest vector that divides the loop: no remainder, no predicate."""
    extent = int(sch.get(loop).extent)
    return next(width for width in range(_VECTOR, 0, -1) if extent % width == 0)
