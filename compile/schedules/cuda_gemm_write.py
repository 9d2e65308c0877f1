"""How a lane of a warp writes its accumulators of the tensor cores, through the epilogue.

A lane has 8 neighbouring columns of each group of 32, because the packed weight's channels are
ordered so (operators/cuda_linear.py), in accumulators of four multiplications by 8 columns each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue
from intswin.compile.schedules.cuda_gemm_tiles import CudaGemmShape, MmaTile, WgmmaTile
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

_GROUP = 32
_WIDTH = 8


@dataclasses.dataclass(frozen=True)
class LanePlace:
    """Where a lane's results are.

    Attributes:
        row: the first.
        offsets: of all of them from it; two for each multiplication's 16 rows, 8 apart.
        column: the first of the first group.
        groups: of 32 columns.
    """

    row: Expr
    offsets: Sequence[int]
    column: Expr
    groups: int


def write_accumulators(
    shape: CudaGemmShape, args: Arguments, acc: Buffer, place: LanePlace, tile: MmaTile | WgmmaTile
) -> None:
    """Emit the epilogue of all results that exist."""
    epilogue = Epilogue(shape, args, _WIDTH, len(place.offsets))
    first_row, first = T.Bind(place.row), place.column
    for group in range(place.groups):
        column = T.Bind(first + group * _GROUP)
        epilogue.load_columns(column)
        for r, offset in enumerate(place.offsets):
            epilogue.load_residual(r, first_row + offset, column)
        for r, offset in enumerate(place.offsets):
            row = T.Bind(first_row + offset)
            conditions = []
            if shape.rows % tile.block_rows:
                conditions.append(row < int32(shape.rows))
            if shape.columns % tile.block_columns:
                conditions.append(column < int32(shape.columns))
            at = [
                (((r // 2) * place.groups + group) * 4 + i // 2) * 4 + r % 2 * 2 + i % 2
                for i in range(_WIDTH)
            ]
            values = [acc[index] for index in at]
            if not conditions:
                epilogue.store(r, row, column, values)
                continue
            with T.If(tirx.all(*conditions)):
                with T.Then():
                    epilogue.store(r, row, column, values)
