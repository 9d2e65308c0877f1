"""CUDA schedules of the operators that do little arithmetic: neighbouring threads, short vectors.

What only moves data moves 16 bytes a thread where the rows allow; what computes in int32 takes
four elements, as many as a CUDA vector of int32 has, or one. Offsets fit int32 (cuda_offsets.py):
a thread has a vector of the output, and threads behind the last one do nothing.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target

_THREADS = 128
_LOAD = 16  # bytes
_LANES = 4  # int32 values of a vector


def schedule_gather_rows(sch: s_tir.Schedule, target: Target) -> None:
    """`gather_rows`: 16 bytes of a row a thread."""
    block = sch.get_sblock("y")
    *_, channel = sch.get_loops(block)
    dtype = str(sch.mod["main"].params[-1].ty.dtype)
    lanes = _LOAD // np.dtype(dtype).itemsize
    _, lane = sch.split(channel, [None, math.gcd(_extent(sch, channel), lanes)])
    sch.vectorize(lane)
    _bind(sch, block)


def schedule_add_constant(sch: s_tir.Schedule, target: Target) -> None:
    """`add_constant`: an element a thread; TVM writes no vectors with a choice in them."""
    block = sch.get_sblock("y")
    sch.split(sch.get_loops(block)[-1], [None, 1])
    _bind(sch, block)


def schedule_patchify(sch: s_tir.Schedule, target: Target) -> None:
    """`patchify`: a vector of what is adjacent in the image a thread."""
    block = sch.get_sblock("y")
    *_, column = sch.get_loops(block)
    adjacent = int(sch.mod["main"].attrs["intswin.vector"])
    lanes = math.gcd(adjacent, _LOAD)
    *_, lane = sch.split(column, [None, adjacent // lanes, lanes])
    sch.vectorize(lane)
    _bind(sch, block)


def schedule_mean_pool(sch: s_tir.Schedule, target: Target) -> None:
    """`mean_pool`: four channels of an image a thread, added over all rows."""
    acc, out = sch.get_sblock("acc"), sch.get_sblock("y")
    *_, channel = sch.get_loops(out)
    _, lane = sch.split(channel, [None, math.gcd(_extent(sch, channel), _LANES)])
    sch.vectorize(lane)
    thread = _bind(sch, out)
    sch.compute_at(acc, thread, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    *_, lane, row = sch.get_loops(acc)
    sch.reorder(row, lane)
    sch.vectorize(lane)
    sch.unroll(row)
    init = sch.decompose_reduction(acc, row)
    sch.vectorize(sch.get_loops(init)[-1])


def _bind(sch: s_tir.Schedule, block: SBlockRV) -> LoopRV:
    """Bind all loops of `block` but the innermost, a thread's; returns the loop of the threads."""
    outer = sch.fuse(*sch.get_loops(block)[:-1])
    blocks, thread = sch.split(outer, [None, _THREADS])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def _extent(sch: s_tir.Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)
