"""Which block of results a block of threads of a GEMM has."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules.cuda_gemm_tiles import CudaGemmShape, CudaGemmTile
from intswin.compile.schedules.cuda_intrinsics import Expr


@dataclasses.dataclass(frozen=True)
class Place:
    """A thread, and the first row and column of its block's results."""

    thread: Expr
    row: Expr
    column: Expr


@contextlib.contextmanager
def clusters(count: int, blocks: int, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """Launch `count` clusters of `blocks` blocks (1: no clusters); yields a block and a thread."""
    with contextlib.ExitStack() as launch:
        if blocks > 1:
            launch.enter_context(T.launch_thread("clusterCtaIdx.x", blocks))
        block = launch.enter_context(T.launch_thread("blockIdx.x", count * blocks))
        yield block, launch.enter_context(T.launch_thread("threadIdx.x", threads))


def block_count(shape: CudaGemmShape, tile: CudaGemmTile) -> int:
    """How many blocks of threads cover the results."""
    return -(-shape.rows // tile.block_rows) * -(-shape.columns // tile.block_columns)


@contextlib.contextmanager
def blocks(shape: CudaGemmShape, tile: CudaGemmTile) -> Iterator[Place]:
    """Launch the blocks of threads that cover the results; what is emitted inside is a thread's."""
    column_tiles = -(-shape.columns // tile.block_columns)
    with T.launch_thread("blockIdx.x", block_count(shape, tile)) as block:
        with T.launch_thread("threadIdx.x", tile.threads) as thread:
            # Neighbouring blocks share rows of x, which is the larger operand.
            row = T.Bind(tirx.truncdiv(block, int32(column_tiles)) * tile.block_rows)
            column = T.Bind(tirx.truncmod(block, int32(column_tiles)) * tile.block_columns)
            yield Place(thread, row, column)
