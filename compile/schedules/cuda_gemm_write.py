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
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue, Load
from intswin.compile.schedules.cuda_gemm_tiles import GROUP, CudaGemmShape, MmaTile, WgmmaTile
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

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


class AccumulatorWriter:
    """The epilogue of a lane; made where its scalars may be loaded."""

    def __init__(
        self, shape: CudaGemmShape, args: Arguments, place: LanePlace, tile: MmaTile | WgmmaTile
    ) -> None:
        self._shape, self._place, self._tile = shape, place, tile
        self._epilogue = Epilogue(shape, args, _WIDTH, len(place.offsets))
        self._row, self._loaded = T.Bind(place.row), -1

    def load_columns(self, group: int, load: Load = cuda.load_global) -> None:
        """Load the constants that the results of a group need."""
        self._epilogue.load_columns(self._column(group), load)

    def load_residual(self, group: int) -> None:
        """Load the residual of a group; the next `write` takes both from registers."""
        for r, offset in enumerate(self._place.offsets):
            self._epilogue.load_residual(r, self._row + offset, self._column(group))
        self._loaded = group

    def write(self, acc: Buffer) -> None:
        """Emit the epilogue of all results that exist."""
        for group in range(self._place.groups):
            if group != self._loaded:
                self.load_columns(group)
                self.load_residual(group)
            self._write_group(acc, group, self._column(group))

    def _column(self, group: int) -> Expr:
        return T.Bind(self._place.column + group * GROUP)

    def _write_group(self, acc: Buffer, group: int, column: Expr) -> None:
        shape, tile, groups = self._shape, self._tile, self._place.groups
        for r, offset in enumerate(self._place.offsets):
            row = T.Bind(self._row + offset)
            conditions = []
            if shape.rows % tile.block_rows:
                conditions.append(row < int32(shape.rows))
            if shape.columns % tile.block_columns:
                conditions.append(column < int32(shape.columns))
            at = [
                (((r // 2) * groups + group) * 4 + i // 2) * 4 + r % 2 * 2 + i % 2
                for i in range(_WIDTH)
            ]
            values = [acc[index] for index in at]
            if not conditions:
                self._epilogue.store(r, row, column, values)
                continue
            with T.If(tirx.all(*conditions)):
                with T.Then():
                    self._epilogue.store(r, row, column, values)
