"""What a search may choose in the kernel of LayerNorm and a whole MLP, and the default choice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

from intswin.compile.schedules.cuda_gemm_tiles import (
    GPUS,
    GROUP,
    MOST_ACCUMULATORS,
    REGISTERS,
    STEP,
    CudaGemmShape,
)
from intswin.compile.schedules.cuda_shared_product import Warps
from intswin.compile.schedules.layer_norm import LayerNormShape

# As in cuda_gemm_space.py.
SPACE_VERSION = 1
_FIRST_WITH_CLUSTERS = 90
_MOST_WARPS = 16
_OTHER_REGISTERS = 48  # that a thread needs at least beside its accumulators
_MOST_VECTORS = 16  # of 8 channels, that a lane keeps in registers
_VECTOR = 8
_WARPS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclasses.dataclass(frozen=True)
class NormMlpShape:
    """The problem: y = linear(activation(linear(layer_norm(x)))) + x.

    Attributes:
        arch: 75, 80, 89 or 90.
        batch: images.
        rows: rows of an image.
        channels: C, of x and y.
        hidden: H, outputs of the first `linear`.
        activation: of it: "none", "igelu" or "shiftgelu".
        frac: fraction bits of its result.
    """

    arch: int
    batch: int
    rows: int
    channels: int
    hidden: int
    activation: str
    frac: int

    @property
    def norm(self) -> LayerNormShape:
        """The LayerNorm, whose last shift is an argument of the kernel."""
        return LayerNormShape(self.batch, self.rows, self.rows, 1, self.channels, False, "uint8", 0)

    @property
    def first(self) -> CudaGemmShape:
        """The first GEMM."""
        return CudaGemmShape(
            arch=self.arch,
            layout="mma",
            rows=self.batch * self.rows,
            columns=self.hidden,
            depth=self.channels,
            out="u8",
            activation=self.activation,
            frac=self.frac,
            residual=False,
        )

    @property
    def second(self) -> CudaGemmShape:
        """The second GEMM."""
        return dataclasses.replace(
            self.first,
            columns=self.channels,
            depth=self.hidden,
            out="i16",
            activation="none",
            frac=0,
            residual=True,
        )


@dataclasses.dataclass(frozen=True)
class NormMlpTile:
    """The tile of the kernel, in the order in which it is decided.

    Attributes:
        block_rows: rows of a cluster.
        cluster: blocks of threads that share the hidden channels.
        row_warps: warps that share the rows in the first GEMM.
        column_warps: that share the block's hidden channels.
        out_row_warps: warps that share the rows in the second GEMM.
        out_column_warps: that share its columns.
        out_depth_warps: that share the block's hidden channels; as many warps as in the first.
        lanes: of a warp that normalise a row together, a power of two.
        ahead: 1 to load the second weight before the rows are normalised, 0 after it.
    """

    block_rows: int
    cluster: int
    row_warps: int
    column_warps: int
    out_row_warps: int
    out_column_warps: int
    out_depth_warps: int
    lanes: int
    ahead: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps

    @property
    def first(self) -> Warps:
        """How the first GEMM is shared."""
        return Warps(self.row_warps, self.column_warps, 1)

    @property
    def second(self) -> Warps:
        """How the second GEMM is shared."""
        return Warps(self.out_row_warps, self.out_column_warps, self.out_depth_warps)


@dataclasses.dataclass(frozen=True)
class SharedMemory:
    """Where in a block's shared memory its parts start, in bytes.

    The first weight and the normalised rows are at the start; when both have been read, the partial
    sums of the second GEMM are there.

    Attributes:
        rows: of the normalised rows.
        hidden: of the result of the first GEMM.
        second_weight: of it.
        size: of all.
    """

    rows: int
    hidden: int
    second_weight: int
    size: int


def shared_memory(shape: NormMlpShape, rows: int, cluster: int, copies: int) -> SharedMemory:
    """The shared memory of a block with `copies` partial sums of every result."""
    own = shape.hidden // cluster
    weight = shape.channels * own
    start = max(weight + rows * shape.channels, copies * rows * shape.channels * 4)
    second_weight = start + rows * own
    return SharedMemory(weight, start, second_weight, second_weight + weight)


def shared_bytes(shape: NormMlpShape, tile: NormMlpTile) -> int:
    """Shared memory of a block."""
    return shared_memory(shape, tile.block_rows, tile.cluster, tile.out_depth_warps).size


def has_tiles(shape: NormMlpShape) -> bool:
    """Whether there is a tile for the shape; without one, `candidates` has nothing to give."""
    return bool(_block_rows(shape))


def candidates(shape: NormMlpShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice.

    Never empty for a shape that `has_tiles`.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it.
    """
    if field == "block_rows":
        return dict.fromkeys(_block_rows(shape), 1)
    if field == "cluster":
        return dict.fromkeys(_clusters(shape, made["block_rows"]), 1)
    if field == "lanes":
        return dict.fromkeys(_lanes(shape, made), 1)
    if field == "ahead":
        return {0: 1, 1: 1}
    names = _WARP_FIELDS[: _WARP_FIELDS.index(field)]
    chosen = tuple(made[name] for name in names)
    fitting = _warps(shape, made["block_rows"], made["cluster"])
    return dict.fromkeys(
        sorted({warps[len(names)] for warps in fitting if warps[: len(names)] == chosen}), 1
    )


def default_tile(shape: NormMlpShape) -> NormMlpTile:
    """The tile that is used when no record says better: the fastest of all by a rough model."""
    return min(_tiles(shape), key=lambda tile: _cycles(shape, tile))


_WARP_FIELDS = (
    *("row_warps", "column_warps"),
    *("out_row_warps", "out_column_warps", "out_depth_warps"),
)


def _block_rows(shape: NormMlpShape) -> list[int]:
    rows = shape.batch * shape.rows
    return [b for b in (16, 32, 64) if (b < 2 * rows or b == 16) and _clusters(shape, b)]


def _clusters(shape: NormMlpShape, rows: int) -> list[int]:
    """Sizes of a cluster for blocks of `rows` rows; none where their weights fit no block."""
    sizes = (1, 2, 4, 8) if shape.arch >= _FIRST_WITH_CLUSTERS else (1,)
    return [c for c in sizes if shape.hidden % (GROUP * c) == 0 and _warps(shape, rows, c)]


@functools.cache
def _warps(shape: NormMlpShape, rows: int, cluster: int) -> list[tuple[int, ...]]:
    """All ways to share both GEMMs: values of the fields `_WARP_FIELDS`."""
    own = shape.hidden // cluster
    firsts = [
        (r, c, 1)
        for r in _WARPS
        for c in _WARPS
        if r * c <= _MOST_WARPS and _divides(rows, own, r, c) and _has_registers(rows * own, r * c)
    ]
    return [
        (*first[:2], r, c, d)
        for first in firsts
        for r in _WARPS
        for c in _WARPS
        for d in _WARPS
        if r * c * d == first[0] * first[1]
        and _divides(rows, shape.channels, r, c)
        and own // STEP % d == 0
        and _has_registers(rows * shape.channels * d, r * c * d)
        and shared_memory(shape, rows, cluster, d).size <= GPUS[shape.arch].shared_bytes
    ]


def _divides(rows: int, columns: int, row_warps: int, column_warps: int) -> bool:
    return rows % (16 * row_warps) == 0 and columns % (GROUP * column_warps) == 0


def _has_registers(results: int, warps: int) -> bool:
    """Whether a block that accumulates so many results has registers for them."""
    accumulators = results // (32 * warps)
    return (
        accumulators <= MOST_ACCUMULATORS
        and 32 * warps * (accumulators + _OTHER_REGISTERS) <= REGISTERS
    )


def _lanes(shape: NormMlpShape, made: Mapping[str, int]) -> list[int]:
    """Numbers with which all threads have a row, no lane is idle, and registers are enough."""
    rows, vectors = made["block_rows"], shape.channels // _VECTOR
    threads = 32 * made["row_warps"] * made["column_warps"]
    fitting = [
        n for n in (1, 2, 4, 8, 16) if n * rows >= threads and n <= vectors <= n * _MOST_VECTORS
    ]
    return [*fitting, 32]


def _tiles(shape: NormMlpShape) -> Iterator[NormMlpTile]:
    for rows in _block_rows(shape):
        for cluster in _clusters(shape, rows):
            for warps in _warps(shape, rows, cluster):
                made = dict(zip(_WARP_FIELDS, warps, strict=True), block_rows=rows)
                for lanes in _lanes(shape, made):
                    others = {"cluster": cluster, "lanes": lanes, "ahead": 0}
                    yield NormMlpTile(**made, **others)


def _cycles(shape: NormMlpShape, tile: NormMlpTile) -> float:
    """About how long the kernel takes; nothing of it was measured.

    A block loads its weights while it normalises its rows, then one thing follows the other. What
    is added up is the time of a warp where it waits for results, and of the block where its units
    are full.
    """
    gpu, own, rows = GPUS[shape.arch], shape.hidden // tile.cluster, tile.block_rows
    warps = tile.threads // 32
    loading = 2 * shape.channels * own / 40  # bytes of a cycle, of a multiprocessor
    passes = -(-rows * tile.lanes // tile.threads)
    normalising = 600.0 + passes * (14 * -(-shape.channels // tile.lanes) + 250)
    normalising = max(normalising, rows * (14 * shape.channels + 150 * tile.lanes) / 100)
    products = 2 * rows * shape.channels * own / gpu.products
    of_first = 16 * rows * own // (tile.row_warps * tile.column_warps) // 8192 + 35
    outs = tile.out_row_warps * tile.out_column_warps
    of_second = 16 * rows * shape.channels // outs // 8192 + 35
    waiting = shape.channels // STEP * of_first + own // STEP // tile.out_depth_warps * of_second
    epilogue = 10 if shape.activation == "none" else 24  # instructions for a result
    instructions = rows * own * epilogue + rows * shape.channels * (4 * tile.out_depth_warps + 6)
    results = max(instructions / 100, instructions / warps / 32 * 2)
    alone = max(loading / 2, normalising) + loading / 2 + max(products, waiting) + results + 1500
    if tile.out_depth_warps > 1:
        alone += 150
    if tile.cluster > 1:  # 14 bytes of a cycle from other blocks, and two barriers
        alone += 1000 + rows * shape.channels * 4 / 14
    work = loading + products + results
    clusters = -(-shape.batch * shape.rows // rows)
    resident = gpu.shared_bytes // shared_bytes(shape, tile)
    resident = max(1, min(resident, gpu.threads // tile.threads))
    whole, rest = divmod(clusters * tile.cluster, gpu.processors * resident)
    cycles = whole * max(alone, resident * work)
    if rest:
        cycles += max(alone, -(-rest // gpu.processors) * work)
    return cycles
