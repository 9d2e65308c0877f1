"""What a search may choose in a CUDA GEMM kernel, and the choice made without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Part of the fingerprint of tuning logs: increase it when the kernels do something else with a tile
# than before, so that records of the old space are neither used nor compared with new ones.
SPACE_VERSION = 1

_MOST_ACCUMULATORS = 128  # int32 registers of a thread
_OTHER_REGISTERS = 48  # that it needs at least beside them
_REGISTERS = 65536  # of a multiprocessor, and so of a block
_MOST_THREADS = 512
_DEPTHS = (32, 64, 96, 128, 192, 256)
_WARPS = (1, 2, 3, 4, 6, 8)

# Defaults: rows, columns, and the warps (or a thread's results) that share each.
_MMA_BLOCKS = (
    *((256, 128, 4, 2), (128, 192, 4, 2), (128, 128, 2, 2), (128, 96, 4, 1), (128, 64, 4, 1)),
    *((64, 128, 2, 2), (64, 96, 4, 1), (64, 64, 2, 2), (64, 32, 4, 1), (32, 64, 2, 2)),
    *((32, 32, 2, 1), (16, 64, 1, 2), (16, 32, 1, 1)),
)
_DP4A_BLOCKS = (
    *((128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 4), (32, 64, 4, 4)),
    *((32, 32, 4, 4), (16, 32, 4, 4)),
)


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What a default is chosen by.

    Attributes:
        processors: multiprocessors of the largest card of the arch that is a target.
        shared_bytes: that a block may have, and that a multiprocessor has for its blocks.
        threads: that a multiprocessor has for its blocks.
        products: multiply-accumulates of a multiprocessor in a cycle, by the kernel's instruction.
    """

    processors: int
    shared_bytes: int
    threads: int
    products: int


_GPUS = {
    70: _Gpu(80, 96 << 10, 2048, 256),
    75: _Gpu(40, 64 << 10, 1024, 1024),  # of a T4: 130 TOPS at 1.59 GHz
    80: _Gpu(108, 163 << 10, 2048, 2048),
    89: _Gpu(128, 99 << 10, 1536, 1024),
    90: _Gpu(132, 227 << 10, 2048, 2600),  # mma.sync reaches some 60 % of what wgmma does
}
_FIRST_WITH_ASYNC_COPIES = 80


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
class _BlockTile:
    """What a tile says first.

    Attributes:
        block_rows: rows of x of a block of threads.
        block_columns: output channels of a block.
        block_depth: input channels of a slice in shared memory.
    """

    block_rows: int
    block_columns: int
    block_depth: int


@dataclasses.dataclass(frozen=True)
class MmaTile(_BlockTile):
    """The tile of the tensor core kernel, in the order in which it is decided.

    Attributes:
        row_warps: warps that share the rows; divides block_rows / 16.
        column_warps: warps that share the columns; divides block_columns / 32.
        depth_warps: warps that share the steps of 32 of a slice; divides their number.
        stages: slices in shared memory.
    """

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
class Dp4aTile(_BlockTile):
    """The tile of the dp4a kernel, in the order in which it is decided.

    Attributes:
        thread_rows: rows of a thread, in groups of 4.
        thread_columns: columns of a thread, in groups of 4.
    """

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


def candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice; never empty.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it.
    """
    function = _mma_candidates if shape.layout == "mma" else _dp4a_candidates
    return dict.fromkeys(function(shape, field, made), 1)


def default_tile(shape: CudaGemmShape) -> CudaGemmTile:
    """The tile that is used when no record says better: the fastest of some by a rough model."""
    tiles = _mma_defaults(shape) if shape.layout == "mma" else _dp4a_defaults(shape)
    return min(tiles, key=lambda tile: _cycles(shape, tile))


def _mma_candidates(shape: CudaGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    gpu, rows, columns = _GPUS[shape.arch], made.get("block_rows", 0), made.get("block_columns", 0)
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
            for b in _DEPTHS
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
        most = max(slices, 2) if shape.arch >= _FIRST_WITH_ASYNC_COPIES else 2
        values = [s for s in (2, 3, 4, 5) if s <= most and s * stage <= gpu.shared_bytes]
        values = values if slices > 1 else [1]
    return values


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


def _has_registers(warp_results: int, threads: int) -> bool:
    """Whether threads whose warps have so many results fit a block without spilling."""
    accumulators = warp_results // 32
    return (
        accumulators <= _MOST_ACCUMULATORS
        and threads <= _MOST_THREADS
        and threads * (accumulators + _OTHER_REGISTERS) <= _REGISTERS
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
    for rows, columns, row_warps, column_warps in _MMA_BLOCKS:
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


def _dp4a_defaults(shape: CudaGemmShape) -> list[CudaGemmTile]:
    depth = 32 if shape.depth > 16 else 16
    tiles: list[CudaGemmTile] = []
    for rows, columns, thread_rows, thread_columns in _DP4A_BLOCKS:
        if rows in _dp4a_candidates(shape, "block_rows", {}) and columns in _dp4a_candidates(
            shape, "block_columns", {}
        ):
            tiles.append(Dp4aTile(rows, columns, depth, thread_rows, thread_columns))
    return tiles


def _cycles(shape: CudaGemmShape, tile: CudaGemmTile) -> float:
    """About how long the kernel takes.

    The blocks of a multiprocessor share its throughput and hide each other's latency: a wave of
    them takes the longer of what all need and what one needs alone.
    """
    gpu = _GPUS[shape.arch]
    blocks = -(-shape.rows // tile.block_rows) * -(-shape.columns // tile.block_columns)
    results = tile.block_rows * tile.block_columns
    slices = -(-shape.depth // tile.block_depth)
    depth = slices * tile.block_depth
    epilogue = 10 if shape.activation == "none" else 24  # instructions for a result
    if isinstance(tile, MmaTile):
        depth_warps = tile.depth_warps
        stages = tile.stages if shape.arch >= _FIRST_WITH_ASYNC_COPIES else 1
        warps = tile.row_warps * tile.column_warps
        reads = (tile.warp_rows + tile.warp_columns) * warps * depth / 128
        summed = 300 + 60 * (depth_warps - 1) if depth_warps > 1 else 0
    else:
        depth_warps, stages, summed = 1, 2, 0
        # 3 cycles a load of 4 words by a warp.
        loads = (tile.thread_rows + tile.thread_columns) / 4 * tile.threads / 32
        reads = loads * 3 * depth / 4
    # A multiprocessor does 128 lanes of an instruction a cycle and gets 40 bytes from the L2.
    products = results * depth / gpu.products
    loads = (tile.block_rows + tile.block_columns) * depth / 40
    work = max(products, loads, reads) + results * epilogue / 100 + 300 + 40 * slices
    # A warp has a quarter of a multiprocessor's units. The rest: launch and first loads, slices
    # that are not loaded ahead far enough, the reduction, the epilogue.
    alone = max(products, reads) * max(1, 128 / tile.threads)
    alone += 1500 + slices * (100 + 600 / stages) + summed
    alone += results / (tile.threads // depth_warps) * epilogue * 2

    registers = _registers(tile, slices)
    by_registers = _REGISTERS // (min(registers, 255) * tile.threads)
    by_threads = gpu.threads // tile.threads
    by_shared_memory = gpu.shared_bytes // tile.shared_bytes
    resident = max(1, min(by_registers, by_threads, by_shared_memory, 16))
    whole, rest = divmod(blocks, gpu.processors * resident)
    cycles = whole * max(alone, resident * work)
    if rest:
        cycles += max(alone, -(-rest // gpu.processors) * work)
    return cycles


def _registers(tile: CudaGemmTile, slices: int) -> int:
    """About as many as a thread needs.

    For tensor cores what NVRTC 13.2 gave the GEMMs of swin_tiny for sm_90a: with one slice, columns
    are done one after the other; a loop over slices has all accumulators, and the steps of a slice
    loaded ahead.
    """
    accumulators = tile.block_rows * tile.block_columns // tile.threads
    if isinstance(tile, Dp4aTile):
        return accumulators + 56 + tile.block_depth // 3
    accumulators *= tile.depth_warps
    return accumulators + 40 if slices == 1 else 45 + 13 * accumulators // 10
