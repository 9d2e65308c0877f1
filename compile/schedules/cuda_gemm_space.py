"""What a search may choose in a CUDA GEMM kernel, and the choice made without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Part of the fingerprint of tuning logs: increase it when the kernels do something else with a tile
# than before, so that records of the old space are neither used nor compared with new ones.
SPACE_VERSION = 1

_SHARED_BYTES = {70: 96, 75: 64, 80: 163, 89: 99, 90: 227}  # KiB that a block may have, by arch
_PROCESSORS = {70: 80, 75: 40, 80: 108, 89: 128, 90: 132}  # multiprocessors: V100, T4, A100, ...
_MOST_ACCUMULATORS = 128  # int32 registers of a thread
_MOST_THREADS = 512
_CACHE_BYTES = 48 << 10  # of shared memory for a block by default: a few blocks share a processor


@dataclasses.dataclass(frozen=True)
class CudaGemmShape:
    """The problem.

    Attributes:
        arch: 70, 75, 80, 89 or 90.
        layout: of the packed weight, "mma" or "dp4a": which kernel.
        rows: of all images together (M).
        columns: N.
        depth: K.
        out: "u8", "s8", "i16" or "i32".
        activation: "none", "igelu" or "shiftgelu".
        frac: fraction bits of an 8-bit result.
        residual: whether one is added.
    """

    arch: int
    layout: str
    rows: int
    columns: int
    depth: int
    out: str
    activation: str
    frac: int
    residual: bool


@dataclasses.dataclass(frozen=True)
class MmaTile:
    """The tile of the tensor core kernel, in the order in which it is decided.

    Attributes:
        block_rows: rows of x of a block of threads.
        block_columns: output channels of a block.
        block_depth: input channels of a slice in shared memory.
        row_warps: warps that share the rows; divides block_rows / 16.
        column_warps: warps that share the columns; divides block_columns / 32.
        depth_warps: warps that share the steps of 32 of a slice; divides their number.
        stages: slices in shared memory.
    """

    block_rows: int
    block_columns: int
    block_depth: int
    row_warps: int
    column_warps: int
    depth_warps: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps * self.depth_warps

    @property
    def warp_rows(self) -> int:
        """Rows of a warp."""
        return self.block_rows // self.row_warps

    @property
    def warp_columns(self) -> int:
        """Columns of a warp."""
        return self.block_columns // self.column_warps

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a slice."""
        return (self.block_rows + self.block_columns) * self.block_depth

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the slices, and later the accumulators to be summed."""
        sums = (self.depth_warps - 1) * self.block_rows * self.block_columns * 4
        return max(self.stages * self.stage_bytes, sums)


@dataclasses.dataclass(frozen=True)
class Dp4aTile:
    """The tile of the dp4a kernel, in the order in which it is decided.

    Attributes:
        block_rows: rows of x of a block of threads.
        block_columns: output channels of a block.
        block_depth: input channels of a slice in shared memory.
        thread_rows: rows of a thread, in groups of 4.
        thread_columns: columns of a thread, in groups of 4.
    """

    block_rows: int
    block_columns: int
    block_depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.block_rows // self.thread_rows) * (self.block_columns // self.thread_columns)

    @property
    def shared_bytes(self) -> int:
        """Two slices."""
        return 2 * (self.block_rows + self.block_columns) * self.block_depth


CudaGemmTile = MmaTile | Dp4aTile
TILES: dict[str, type[MmaTile] | type[Dp4aTile]] = {"mma": MmaTile, "dp4a": Dp4aTile}


def fields(layout: str) -> tuple[str, ...]:
    """The decisions of the kernel for a layout, in their order."""
    return tuple(field.name for field in dataclasses.fields(TILES[layout]))


def candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice; never empty.

    Args:
        shape: the problem.
        field: one of `fields(shape.layout)`.
        made: the fields before it.
    """
    function = _mma_candidates if shape.layout == "mma" else _dp4a_candidates
    return dict.fromkeys(function(shape, field, made), 1)


def default_tile(shape: CudaGemmShape) -> CudaGemmTile:
    """The tile that is used when no record says better: the cheapest of a few by a rough model."""
    return min(_defaults(shape), key=lambda tile: _cost(shape, tile))


def _mma_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    columns = made.get("block_columns", 0)
    rows, depth = made.get("block_rows", 0), made.get("block_depth", 0)
    if field == "block_rows":
        return [b for b in (16, 32, 64, 96, 128, 192, 256) if b < 2 * shape.rows or b == 16]
    if field == "block_columns":
        return [
            b
            for b in (32, 64, 96, 128, 192, 256)
            if (b < shape.columns + 32 or b == 32) and rows * b <= 256 * 128
        ]
    if field == "block_depth":
        most = _shared_bytes(shape) // (rows + columns)
        steps = -(-shape.depth // 32)
        # Two slices have to fit where there are two.
        return [
            b
            for b in (32, 64, 96, 128, 192, 256)
            if b // 32 <= steps and b * (1 if b // 32 == steps else 2) <= most
        ]
    if field == "row_warps":
        # The least that leaves accumulators for every thread with as many columns warps as can be.
        return [w for w in (1, 2, 4, 8) if rows % (16 * w) == 0 and _fits(rows // w, columns, w)]
    if field == "column_warps":
        warp_rows = rows // made["row_warps"]
        return [
            w
            for w in (1, 2, 4, 8)
            if columns % (32 * w) == 0
            and warp_rows * columns // w <= 32 * _MOST_ACCUMULATORS
            and 32 * w * made["row_warps"] <= _MOST_THREADS
        ]
    if field == "depth_warps":
        warps = made["row_warps"] * made["column_warps"]
        sums = rows * columns * 4
        return [
            w
            for w in (1, 2, 4, 8)
            if depth // 32 % w == 0
            and 32 * w * warps <= _MOST_THREADS
            and (w - 1) * sums <= _shared_bytes(shape)
        ]
    slices = -(-shape.depth // depth)
    if slices == 1:
        return [1]
    stage = (rows + columns) * depth
    return [s for s in (2, 3, 4, 5) if s <= max(slices, 2) and s * stage <= _shared_bytes(shape)]


def _fits(warp_rows: int, columns: int, row_warps: int) -> bool:
    """Whether some number of column warps leaves few enough accumulators to a thread."""
    return any(
        columns % (32 * w) == 0
        and warp_rows * columns // w <= 32 * _MOST_ACCUMULATORS
        and 32 * w * row_warps <= _MOST_THREADS
        for w in (1, 2, 4, 8)
    )


def _dp4a_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    if field == "block_rows":
        return [b for b in (16, 32, 64, 128) if b < 2 * shape.rows or b == 16]
    if field == "block_columns":
        return [b for b in (32, 64, 128) if b < shape.columns + 32 or b == 32]
    if field == "block_depth":
        return [b for b in (16, 32, 64) if b < shape.depth + 16]
    rows, columns = made["block_rows"], made["block_columns"]
    most, least = 8, 64  # rows or columns and threads
    if field == "thread_rows":
        return [t for t in (4, 8) if rows // t * (columns // 4) >= least or t == 4]
    return [t for t in (4, most) if t == 4 or rows // made["thread_rows"] * (columns // t) >= least]


def _shared_bytes(shape: CudaGemmShape) -> int:
    return _SHARED_BYTES[shape.arch] << 10


# (block rows, block columns, row warps, column warps)
_MMA_BLOCKS = (
    (256, 128, 4, 2),
    (128, 192, 4, 2),
    (128, 128, 2, 2),
    (128, 96, 4, 1),
    (128, 64, 4, 1),
    (64, 128, 2, 2),
    (64, 96, 2, 1),
    (64, 64, 2, 2),
    (64, 32, 2, 1),
    (32, 64, 1, 2),
    (32, 32, 1, 1),
    (16, 32, 1, 1),
)


def _defaults(shape: CudaGemmShape) -> list[CudaGemmTile]:
    if shape.layout == "dp4a":
        blocks = ((128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 4), (32, 32, 4, 4), (16, 32, 4, 4))
        depth = 32 if shape.depth >= 32 else 16
        return [Dp4aTile(m, n, depth, tm, tn) for m, n, tm, tn in blocks]
    tiles: list[CudaGemmTile] = []
    steps = -(-shape.depth // 32)
    for m, n, row_warps, column_warps in _MMA_BLOCKS:
        warps = row_warps * column_warps
        # Small blocks share the depth until there are warps to hide latency with.
        depth_warps = max(1, 4 // warps)
        depth = 32 * max(depth_warps, next(d for d in (4, 3, 2, 1) if steps % d == 0 or d == 1))
        depth = min(depth, 32 * max(steps, depth_warps))
        while depth_warps > 1 and (depth // 32 > steps or depth // 32 % depth_warps):
            depth_warps //= 2
            depth = 32 * max(depth_warps, next(d for d in (4, 3, 2, 1) if steps % d == 0 or d == 1))
        slices = -(-shape.depth // depth)
        stages = 1 if slices == 1 else max(2, min(4, slices, _CACHE_BYTES // ((m + n) * depth)))
        tile = MmaTile(m, n, depth, row_warps, column_warps, depth_warps, stages)
        if tile.shared_bytes <= _shared_bytes(shape):
            tiles.append(tile)
    return tiles


def _cost(shape: CudaGemmShape, tile: CudaGemmTile) -> float:
    """Time in arbitrary units: waves of blocks, each of slices and an epilogue.

    A slice takes its loads or its products, whichever is longer, and the epilogue counts like 128
    input channels. A block needs 4 warps to keep its share of a processor busy.
    """
    blocks = -(-shape.rows // tile.block_rows) * -(-shape.columns // tile.block_columns)
    results = tile.block_rows * tile.block_columns
    loads = 24 * (tile.block_rows + tile.block_columns)
    depth = -(-shape.depth // tile.block_depth) * tile.block_depth
    split = tile.depth_warps if isinstance(tile, MmaTile) else 1
    block = depth * max(results, loads) + 128 * results + 2000 * (depth // split) ** 1
    resident = 4  # blocks of a processor that overlap
    waves = -(-blocks // (_PROCESSORS[shape.arch] * resident))
    busy = min(blocks / (_PROCESSORS[shape.arch]), resident * waves)
    return block * max(1.0, busy)
