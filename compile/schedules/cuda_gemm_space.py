"""What a search may choose in a CUDA GEMM kernel, and the choice made without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from intswin.compile.schedules.cuda_gemm_model import cycles
from intswin.compile.schedules.cuda_gemm_tiles import (
    FIRST_WITH_ASYNC_COPIES,
    GPUS,
    MOST_ACCUMULATORS,
    REGISTERS,
    WGMMA_ALIGNMENT,
    CudaGemmShape,
    CudaGemmTile,
    Dp4aTile,
    MmaTile,
    WgmmaTile,
)
from intswin.compile.schedules.cuda_wgmma_functions import COLUMNS, ROW_BYTES

# Part of the fingerprint of tuning logs: increase it when the kernels do something else with a tile
# than before, so that records of the old space are neither used nor compared with new ones.
SPACE_VERSION = 1

_OTHER_REGISTERS = 48  # that a thread needs at least beside its accumulators
_OTHER_REGISTERS_OF_WGMMA = 40  # whose operands stay in shared memory
_MOST_THREADS = 512
BLOCK_DEPTHS = (32, 64, 96, 128, 192, 256)
_WARPS = (1, 2, 3, 4, 6, 8)

# Defaults: rows, columns, and the warps (or a thread's results) that share each.
MMA_BLOCKS = (
    *((256, 128, 4, 2), (128, 192, 4, 2), (128, 128, 2, 2), (128, 96, 4, 1), (128, 64, 4, 1)),
    *((64, 128, 2, 2), (64, 96, 4, 1), (64, 64, 2, 2), (64, 32, 4, 1), (32, 64, 2, 2)),
    *((32, 32, 2, 1), (16, 64, 1, 2), (16, 32, 1, 1)),
)
_DP4A_BLOCKS = (
    *((128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 4), (32, 64, 4, 4)),
    *((32, 32, 4, 4), (16, 32, 4, 4)),
)


def candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice; never empty.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it.
    """
    function = _CANDIDATES[shape.layout]
    return dict.fromkeys(function(shape, field, made), 1)


def default_tile(shape: CudaGemmShape) -> CudaGemmTile:
    """The tile that is used when no record says better: the fastest of some by a rough model."""
    tiles = _DEFAULTS[shape.layout](shape)
    return min(tiles, key=lambda tile: cycles(shape, tile))


def _mma_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    gpu, rows, columns = GPUS[shape.arch], made.get("block_rows", 0), made.get("block_columns", 0)
    if field == "block_rows":
        values = [b for b in (16, 32, 64, 96, 128, 192, 256) if b < 2 * shape.rows or b == 16]
    elif field == "block_columns":
        values = [
            b
            for b in (32, 64, 96, 128, 192, 256)
            if (b < shape.columns + 32 or b == 32) and _row_warps(rows, b)
        ]
    elif field == "block_depth":
        steps = -(-shape.depth // 32)
        # Where there is more than one slice, two have to fit.
        values = [
            b
            for b in BLOCK_DEPTHS
            if b // 32 <= steps
            and b * (rows + columns) * (1 if b // 32 == steps else 2) <= gpu.shared_bytes
        ]
    elif field == "row_warps":
        values = _row_warps(rows, columns)
    elif field == "column_warps":
        values = [w for w in _WARPS if _fits(rows, columns, made["row_warps"], w)]
    elif field == "depth_warps":
        warps = made["row_warps"] * made["column_warps"]
        values = [
            w
            for w in _WARPS
            if made["block_depth"] // 32 % w == 0
            and _has_registers(rows * columns // warps, 32 * w * warps)
            and (w - 1) * rows * columns * 4 <= gpu.shared_bytes
        ]
    else:
        slices = -(-shape.depth // made["block_depth"])
        stage = (rows + columns) * made["block_depth"]
        # A copy that is not asynchronous is done before the multiplication, however far ahead.
        most = max(slices, 2) if shape.arch >= FIRST_WITH_ASYNC_COPIES else 2
        values = [s for s in (2, 3, 4, 5) if s <= most and s * stage <= gpu.shared_bytes]
        values = values if slices > 1 else [1]
    return values


def _wgmma_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    limit = GPUS[shape.arch].shared_bytes - WGMMA_ALIGNMENT
    rows, columns = made.get("block_rows", 0), made.get("block_columns", 0)
    if field == "block_rows":
        return [b for b in (64, 128, 192, 256) if b < shape.rows + 64]
    if field == "block_columns":
        return [b for b in COLUMNS if b < shape.columns + 32 and _row_warpgroups(rows, b)]
    if field == "block_depth":
        return [b for b in ROW_BYTES if b <= shape.depth and 3 * b * (rows + columns) <= limit]
    if field == "row_warpgroups":
        return _row_warpgroups(rows, columns)
    if field == "column_warpgroups":
        return _column_warpgroups(rows, columns, made["row_warpgroups"])
    slices = -(-shape.depth // made["block_depth"])
    most = limit // ((rows + columns) * made["block_depth"])
    return [s for s in range(1, 7) if s <= most and (s == slices or 3 <= s < slices)]


def _row_warpgroups(rows: int, columns: int) -> list[int]:
    """Numbers of warpgroups that can share the rows; none where a block is too large for any."""
    return [
        w for w in (1, 2, 3, 4) if rows % (64 * w) == 0 and _column_warpgroups(rows, columns, w)
    ]


def _column_warpgroups(rows: int, columns: int, row_warpgroups: int) -> list[int]:
    """Numbers that can share the columns, with registers for the results: none are spilled."""
    return [
        w
        for w in (1, 2)
        if columns % w == 0
        and columns // w in COLUMNS
        and _has_registers(
            rows * columns // (4 * row_warpgroups * w),
            128 * row_warpgroups * w,
            _OTHER_REGISTERS_OF_WGMMA,
        )
    ]


def _row_warps(rows: int, columns: int) -> list[int]:
    """Numbers of warps that can share the rows; none where a block is too large for its threads."""
    return [
        w
        for w in _WARPS
        if rows % (16 * w) == 0 and any(_fits(rows, columns, w, other) for other in _WARPS)
    ]


def _fits(rows: int, columns: int, row_warps: int, column_warps: int) -> bool:
    """Whether the warps divide the block's columns and have registers for its results."""
    return columns % (32 * column_warps) == 0 and _has_registers(
        rows * columns // (row_warps * column_warps), 32 * row_warps * column_warps
    )


def _has_registers(warp_results: int, threads: int, others: int = _OTHER_REGISTERS) -> bool:
    """Whether threads whose warps have so many results fit a block without spilling."""
    accumulators = warp_results // 32
    return (
        accumulators <= MOST_ACCUMULATORS
        and threads <= _MOST_THREADS
        and threads * (accumulators + others) <= REGISTERS
    )


def _dp4a_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    rows, columns = made.get("block_rows", 0), made.get("block_columns", 0)
    if field == "block_rows":
        return [b for b in (16, 32, 64, 128) if b < 2 * shape.rows or b == 16]
    if field == "block_columns":
        return [b for b in (32, 64, 128) if b < shape.columns + 32 or b == 32]
    if field == "block_depth":
        return [b for b in (16, 32, 64) if b < shape.depth + 16]
    # 4 or 8 rows or columns, as long as two warps have something to do and 16 do not.
    if field == "thread_rows":
        threads = {t: rows // t * (columns // 4) for t in (4, 8)}
        return [
            t for t, most in threads.items() if (t == 4 or most >= 64) and most <= 2 * _MOST_THREADS
        ]
    threads = {t: rows // made["thread_rows"] * (columns // t) for t in (4, 8)}
    return [t for t, n in threads.items() if (t == 4 or n >= 64) and n <= _MOST_THREADS]


def _mma_defaults(shape: CudaGemmShape) -> list[CudaGemmTile]:
    """Blocks of warps that have 32 to 64 rows and columns each, with every depth."""
    tiles: list[CudaGemmTile] = []
    for rows, columns, row_warps, column_warps in MMA_BLOCKS:
        made = {"block_rows": rows, "block_columns": columns}
        if columns > 32 and columns >= shape.columns + 32:
            continue
        made |= {"row_warps": row_warps, "column_warps": column_warps}
        for depth in _mma_candidates(shape, "block_depth", made):
            made["block_depth"] = depth
            for depth_warps in _mma_candidates(shape, "depth_warps", made):
                made["depth_warps"] = depth_warps
                stages = _mma_candidates(shape, "stages", made)
                tiles += [MmaTile(**made, stages=number) for number in stages]
    space = set(_mma_candidates(shape, "block_rows", {}))
    return [tile for tile in tiles if tile.block_rows in space]


def _wgmma_defaults(shape: CudaGemmShape) -> list[CudaGemmTile]:
    """All tiles: a few hundred."""
    made: list[dict[str, int]] = [{}]
    for field in dataclasses.fields(WgmmaTile):
        made = [
            {**one, field.name: value}
            for one in made
            for value in _wgmma_candidates(shape, field.name, one)
        ]
    return [WgmmaTile(**one) for one in made]


def _dp4a_defaults(shape: CudaGemmShape) -> list[CudaGemmTile]:
    depth = 32 if shape.depth > 16 else 16
    tiles: list[CudaGemmTile] = []
    for rows, columns, thread_rows, thread_columns in _DP4A_BLOCKS:
        if rows in _dp4a_candidates(shape, "block_rows", {}) and columns in _dp4a_candidates(
            shape, "block_columns", {}
        ):
            tiles.append(Dp4aTile(rows, columns, depth, thread_rows, thread_columns))
    return tiles


_CANDIDATES = {"wgmma": _wgmma_candidates, "mma": _mma_candidates, "dp4a": _dp4a_candidates}
_DEFAULTS = {"wgmma": _wgmma_defaults, "mma": _mma_defaults, "dp4a": _dp4a_defaults}
