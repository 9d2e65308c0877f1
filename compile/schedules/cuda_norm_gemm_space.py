"""What a search may choose in the kernel of LayerNorm and a GEMM, and the default choice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from intswin.compile.schedules import cuda_gemm_space
from intswin.compile.schedules.cuda_gemm_model import cycles
from intswin.compile.schedules.cuda_gemm_space import BLOCK_DEPTHS
from intswin.compile.schedules.cuda_gemm_tiles import (
    FIRST_WITH_ASYNC_COPIES,
    GPUS,
    CudaGemmShape,
    MmaTile,
)
from intswin.compile.schedules.layer_norm import LayerNormShape

# As in cuda_gemm_space.py.
SPACE_VERSION = 1
_MOST_VECTORS = 16  # of 8 channels, that a lane keeps in registers
_VECTOR = 8
# That normalising takes, for a channel and for a lane's scalars of a row.
_INSTRUCTIONS, _ROW_INSTRUCTIONS = 14, 150


@dataclasses.dataclass(frozen=True)
class NormGemmShape:
    """The problem: a `layer_norm` to uint8, and a `linear` without a residual that reads it.

    Attributes:
        arch: 75, 80, 89 or 90.
        batch: images.
        in_rows: rows of an input image.
        rows: rows of an output image.
        gather: input rows that make a normalised row.
        channels: channels of an input row.
        indexed: whether there is a table of the input rows of each normalised row.
        columns: N.
        out: "u8", "s8", "i16" or "i32".
        activation: "none", "igelu" or "shiftgelu".
        frac: fraction bits of an 8-bit result.
    """

    arch: int
    batch: int
    in_rows: int
    rows: int
    gather: int
    channels: int
    indexed: bool
    columns: int
    out: str
    activation: str
    frac: int

    @property
    def depth(self) -> int:
        """Channels of a normalised row (K)."""
        return self.gather * self.channels

    @property
    def norm(self) -> LayerNormShape:
        """The LayerNorm, whose last shift is an argument of the kernel."""
        return LayerNormShape(
            self.batch,
            self.in_rows,
            self.rows,
            self.gather,
            self.channels,
            self.indexed,
            "uint8",
            0,
        )

    @property
    def gemm(self) -> CudaGemmShape:
        """The GEMM."""
        return CudaGemmShape(
            arch=self.arch,
            layout="mma",
            rows=self.batch * self.rows,
            columns=self.columns,
            depth=self.depth,
            out=self.out,
            activation=self.activation,
            frac=self.frac,
            residual=False,
        )


@dataclasses.dataclass(frozen=True)
class NormGemmTile(MmaTile):
    """The tile of the kernel, in the order in which it is decided; slices are of the weight alone.

    Attributes:
        lanes: of a warp that normalise a row together, a power of two.
    """

    lanes: int

    @property
    def weight_offset(self) -> int:
        """Slices hold nothing else."""
        return 0


def candidates(shape: NormGemmShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice; never empty.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it.
    """
    gemm = functools.partial(cuda_gemm_space.candidates, shape.gemm, field, made)
    rows, columns = made.get("block_rows", 0), made.get("block_columns", 0)
    limit = GPUS[shape.arch].shared_bytes
    left = limit - rows * shape.depth  # for the slices, of which two have to fit if there are two
    if field == "block_rows":
        values = [b for b in gemm() if 2 * 32 * 32 <= limit - b * shape.depth]
    elif field == "block_columns":
        values = [b for b in gemm() if 2 * b * 32 <= left]
    elif field == "block_depth":
        values = [
            b
            for b in BLOCK_DEPTHS
            if shape.depth % b == 0 and min(2, shape.depth // b) * columns * b <= left
        ]
    elif field == "stages":
        values = _stages(shape, made, left)
    elif field == "lanes":
        values = _lanes(shape, made)
    else:
        values = list(gemm())
    return dict.fromkeys(values, 1)


def default_tile(shape: NormGemmShape) -> NormGemmTile:
    """The tile that is used when no record says better: the fastest of some by a rough model."""
    return min(_defaults(shape), key=lambda tile: _cycles(shape, tile))


def shared_bytes(shape: NormGemmShape, tile: NormGemmTile) -> int:
    """Shared memory of a block: the slices and all of x; later the sums."""
    slices_and_x = tile.stages * tile.stage_bytes + tile.block_rows * shape.depth
    return max(slices_and_x, tile.sum_bytes)


def _stages(shape: NormGemmShape, made: Mapping[str, int], left: int) -> list[int]:
    slices, size = shape.depth // made["block_depth"], made["block_columns"] * made["block_depth"]
    # A copy that is not asynchronous is done before the multiplication, however far ahead.
    most = slices if shape.arch >= FIRST_WITH_ASYNC_COPIES else 2
    return [s for s in (2, 3, 4, 5, 6) if s <= most and s * size <= left] if slices > 1 else [1]


def _lanes(shape: NormGemmShape, made: Mapping[str, int]) -> list[int]:
    """Numbers with which all threads have a row, no lane is idle, and registers are enough."""
    rows, vectors = made["block_rows"], shape.depth // _VECTOR
    threads = 32 * made["row_warps"] * made["column_warps"] * made["depth_warps"]
    fitting = [
        n for n in (1, 2, 4, 8, 16) if n * rows >= threads and n <= vectors <= n * _MOST_VECTORS
    ]
    return [*fitting, 32]


def _defaults(shape: NormGemmShape) -> list[NormGemmTile]:
    """Blocks of warps that have 32 to 64 rows and columns each, with all that goes with them."""
    names = ("block_rows", "block_columns", "row_warps", "column_warps")
    made = [dict(zip(names, block, strict=True)) for block in cuda_gemm_space.MMA_BLOCKS]
    for field in (field.name for field in dataclasses.fields(NormGemmTile)):
        made = [{**one, field: value} for one in made for value in _tried(shape, field, one)]
    return [NormGemmTile(**one) for one in made]


def _tried(shape: NormGemmShape, field: str, made: Mapping[str, int]) -> list[int]:
    """Values of a field among the defaults: what is made already, if it is valid; else all.

    Of lanes the fewest: each of them computes a row's scalars.
    """
    values = list(candidates(shape, field, made))
    if field in made:
        return [made[field]] if made[field] in values else []
    return values[:1] if field == "lanes" else values


def _cycles(shape: NormGemmShape, tile: NormGemmTile) -> float:
    normalising = tile.block_rows * (_INSTRUCTIONS * shape.depth + _ROW_INSTRUCTIONS * tile.lanes)
    return cycles(shape.gemm, tile, shared_bytes(shape, tile), normalising)
