"""What a search may choose in the schedule of a GEMM, and the choice made without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Part of the fingerprint of tuning logs: increase it when gemm.py does something else with a tile
# than before, so that records of the old space are neither used nor compared with new ones.
SPACE_VERSION = 1

# (rows, blocks) by preference: 32 registers hold accumulators, weights and an activation on
# AVX-512 and NEON, 16 on AVX2. The first that divides the matrix is taken.
_ROWS = {"vnni": (7, 8, 6, 5), "avx2": (4, 5, 6, 3), "plain": (7, 8, 6, 5)}
_BLOCKS = {"vnni": (2, 3, 1), "avx2": (2, 1), "plain": (1,)}
# Accumulators (rows * blocks) that a search may try; with more, registers would be spilled.
_MOST_ACCUMULATORS = {"vnni": 30, "avx2": 14, "plain": 8}
_UNROLLS = (1, 2, 3, 4, 6, 8)
_MOST_UNROLLED = 128  # multiply-accumulates in the innermost loop's body, for its code size


@dataclasses.dataclass(frozen=True)
class GemmShape:
    """The problem.

    Attributes:
        layout: of the packed weight.
        batch: images.
        rows: padded rows of an image.
        blocks: blocks of columns.
        depth: iterations of the loop over (groups of) input channels.
    """

    layout: str
    batch: int
    rows: int
    blocks: int
    depth: int


@dataclasses.dataclass(frozen=True)
class GemmTile:
    """What a search may choose, in the order in which it is decided.

    Attributes:
        rows: rows of the register tile; divides the padded number of rows.
        blocks: blocks of columns of the register tile; divides their number.
        row_tiles: register tiles in the rows of one task; divides their number in all images.
        column_tiles: register tiles in the columns of one task; divides their number.
        order: 2 * (tasks that share rows are neighbours) + (tiles of a task that share rows are
            neighbours); otherwise those that share columns are.
        unroll: steps of the loop over input channels in one iteration; divides their number.
    """

    rows: int
    blocks: int
    row_tiles: int = 1
    column_tiles: int = 1
    order: int = 0
    unroll: int = 1


FIELDS = tuple(field.name for field in dataclasses.fields(GemmTile))


def default_tile(shape: GemmShape) -> GemmTile:
    """The tile that is used when no record says better."""
    few_rows = shape.rows if shape.rows < 5 else 1
    return GemmTile(
        rows=_first_divisor(shape.rows, _ROWS[shape.layout], few_rows),
        blocks=_first_divisor(shape.blocks, _BLOCKS[shape.layout], 1),
    )


def candidates(shape: GemmShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice.

    Args:
        shape: the problem.
        field: of GemmTile.
        made: the fields before it.
    """
    most, default = _MOST_ACCUMULATORS[shape.layout], default_tile(shape)
    if field == "rows":  # larger tiles load less for each product
        fitting = {*_divisors(shape.rows, most), default.rows}
        return {rows: rows for rows in sorted(fitting)}
    if field == "blocks":
        fitting = {*_divisors(shape.blocks, max(1, most // made["rows"]))}
        if made["rows"] == default.rows:
            fitting.add(default.blocks)
        return {blocks: blocks for blocks in sorted(fitting)}
    if field == "row_tiles":
        extent = shape.batch * shape.rows // made["rows"]
        return dict.fromkeys(_divisors(extent, extent), 1)
    if field == "column_tiles":
        extent = shape.blocks // made["blocks"]
        return dict.fromkeys(_divisors(extent, extent), 1)
    if field == "order":
        return dict.fromkeys(range(4), 1)
    most = max(1, _MOST_UNROLLED // (made["rows"] * made["blocks"]))
    return {u: 1 for u in _UNROLLS if shape.depth % u == 0 and u <= most}


def _divisors(extent: int, most: int) -> list[int]:
    return [d for d in range(1, min(extent, most) + 1) if extent % d == 0]


def _first_divisor(extent: int, choices: tuple[int, ...], otherwise: int) -> int:
    return next((c for c in choices if extent % c == 0), otherwise)
