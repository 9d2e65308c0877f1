"""What a search may choose in the kernels of LayerNorm, q, k, v and attention, and the default.

One ends with the attention, one with the projection and the residual behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import SHORT, STRIP
from intswin.compile.schedules.cuda_gemm_space import BLOCK_DEPTHS
from intswin.compile.schedules.cuda_gemm_tiles import (
    FIRST_WITH_ASYNC_COPIES,
    GPUS,
    CudaGemmShape,
)
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmTile
from intswin.compile.schedules.cuda_wgmma_functions import ROW_BYTES
from intswin.compile.schedules.layer_norm import LayerNormShape

# As in cuda_gemm_space.py.
SPACE_VERSION = 1
D = 32  # channels of a head: a group of the packed weight, and an mma's depth
COLUMNS = 3 * D  # of q, k and v of a head
_MOST_VECTORS = 16  # of 8 channels, that a lane keeps in registers
_MOST_THREADS = 512
_MOST_STAGES = 8
_FIRST_WITH_CLUSTERS = 90
_FIRST_WITH_WGMMA = 90
_WGMMA_ROWS = 64  # of a multiplication
_PORTABLE_CLUSTER = 8  # blocks that are possible on any GPU with clusters
_LARGEST_CLUSTER = 16  # on sm_90, if all of a cluster's GPC is allowed for it


@dataclasses.dataclass(frozen=True)
class NormAttentionShape:
    """The problem: `layer_norm` to uint8, the `linear` to q, k and v, and their `attention`.

    Attributes:
        arch: 75, 80, 89 or 90.
        batch: images.
        rows: rows (tokens) of an image.
        windows: windows of an image.
        tokens: tokens of a window, at most 64.
        heads: heads of 32 channels.
        channels: channels of x, which are normalised.
        patterns: distinct biases of the scores; 0: none.
        frac: fraction bits of q, k and v.
    """

    arch: int
    batch: int
    rows: int
    windows: int
    tokens: int
    heads: int
    channels: int
    patterns: int
    frac: int

    @property
    def block_rows(self) -> int:
        """Rows of a block of threads: a window, in whole strips."""
        return -(-self.tokens // STRIP) * STRIP

    @property
    def norm(self) -> LayerNormShape:
        """The LayerNorm of the windows' tokens, in their order."""
        tokens = self.windows * self.tokens
        return LayerNormShape(
            self.batch, self.rows, tokens, 1, self.channels, True, "uint8", shift=0
        )

    @property
    def gemm(self) -> CudaGemmShape:
        """The product of a block of threads."""
        return CudaGemmShape(
            arch=self.arch,
            layout="mma",
            rows=self.block_rows,
            columns=COLUMNS,
            depth=self.channels,
            out="s8",
            activation="none",
            frac=self.frac,
            residual=False,
        )

    @property
    def wgmma(self) -> bool:
        """Whether the tensor cores read x and the weight in shared memory, all at once.

        They multiply 64 rows at a time, and know rows of 64 or 128 bytes.
        """
        return (
            self.arch >= _FIRST_WITH_WGMMA
            and self.block_rows == _WGMMA_ROWS
            and self.channels % min(ROW_BYTES) == 0
            and _stages(self, self.channels) > 0
        )

    @property
    def row_bytes(self) -> int:
        """Of a slice of x, for wgmma."""
        return max(size for size in ROW_BYTES if self.channels % size == 0)

    @property
    def attention(self) -> AttentionShape:
        """The attention."""
        return AttentionShape(
            self.batch, self.rows, self.windows, self.tokens, self.heads, D, self.patterns
        )

    @property
    def clusters(self) -> list[int]:
        """Numbers of blocks that can share a window."""
        if self.arch < _FIRST_WITH_CLUSTERS:
            return [1]
        return [n for n in range(1, _PORTABLE_CLUSTER + 1) if self.heads % n == 0]

    @property
    def output_bytes(self) -> int:
        """Shared memory of a block for what it computes behind its attention."""
        return 0


@dataclasses.dataclass(frozen=True)
class NormMsaShape(NormAttentionShape):
    """The same and what is behind it: y = linear(attention(linear(layer_norm(x)))) + x.

    As many `channels` as the heads have, and all heads of a window in a cluster: a block multiplies
    what all of them have attended to with the weight of 32 columns of y.
    """

    @property
    def clusters(self) -> list[int]:
        """All heads of a window; none where that is no cluster."""
        possible = self.arch >= _FIRST_WITH_CLUSTERS and 2 <= self.heads <= _LARGEST_CLUSTER
        return [self.heads] if possible and self.channels == self.heads * D else []

    @property
    def output_bytes(self) -> int:
        """Of the attention's results of all heads, and the weight of the block's columns."""
        return (self.block_rows + D) * self.channels

    @property
    def projection(self) -> CudaGemmShape:
        """The second product, of the whole network's rows."""
        return dataclasses.replace(
            self.gemm,
            rows=self.batch * self.rows,
            columns=self.channels,
            out="i16",
            frac=0,
            residual=True,
        )


@dataclasses.dataclass(frozen=True)
class NormAttentionTile:
    """What a block of threads, which has one head of one window, does; in the order of decision.

    A warp of each 16 rows, as attention has it, for each share of the columns and of the depth.

    Attributes:
        cluster: blocks, of neighbouring heads of a window, that normalise it together.
        column_warps: warps that share q, k and v; warpgroups, where wgmma multiplies.
        depth_warps: warps that share the steps of 32 of a slice; 1 with wgmma.
        lanes: of a warp that normalise a row together, a power of two.
    """

    cluster: int
    column_warps: int
    depth_warps: int
    lanes: int


def candidates(shape: NormAttentionShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds in a random choice; never empty.

    Args:
        shape: the problem, one that `fits`.
        field: one of the tile's.
        made: the fields before it.
    """
    return dict.fromkeys(_values(shape, field, made), 1)


def fits(shape: NormAttentionShape) -> bool:
    """Whether there is a tile: a cluster, and enough shared memory."""
    return bool(shape.clusters) and _block_depth(shape) > 0


def normalised(shape: NormAttentionShape) -> int:
    """Elements that a block has to normalise at least, where heads share the work."""
    return -(-shape.tokens // max(shape.clusters)) * shape.channels


def default_tile(shape: NormAttentionShape) -> NormAttentionTile:
    """The tile that is used when no record says better.

    With as many warps as there may be, a multiprocessor has registers for one block.
    """
    blocks = shape.batch * shape.windows * shape.heads
    warps = max if blocks <= GPUS[shape.arch].processors else min
    made = {"cluster": max(shape.clusters)}
    for field in ("column_warps", "depth_warps"):
        made[field] = warps(_values(shape, field, made))
    lanes = _values(shape, "lanes", made)
    threads = 32 * shape.block_rows // STRIP * made["column_warps"] * made["depth_warps"]
    # Most lanes with which all rows are normalised at once; else the fewest there are.
    once = [n for n in lanes if n * -(-shape.tokens // made["cluster"]) <= threads]
    return NormAttentionTile(**made, lanes=max(once, default=min(lanes)))


def gemm_tile(shape: NormAttentionShape, tile: NormAttentionTile) -> NormGemmTile:
    """The tile of the product."""
    return NormGemmTile(
        block_rows=shape.block_rows,
        block_columns=COLUMNS,
        block_depth=_block_depth(shape),
        row_warps=shape.block_rows // STRIP,
        column_warps=tile.column_warps,
        depth_warps=tile.depth_warps,
        stages=_stages(shape, _block_depth(shape)),
        lanes=tile.lanes,
    )


def qkv_offset(shape: NormAttentionShape, tile: NormAttentionTile) -> int:
    """Bytes of shared memory before q, k and v: slices and normalised rows, later the sums."""
    gemm = gemm_tile(shape, tile)
    slices_and_x = gemm.stages * gemm.stage_bytes + shape.block_rows * shape.channels
    return max(slices_and_x, gemm.sum_bytes)


def output_offset(shape: NormAttentionShape, tile: NormAttentionTile) -> int:
    """Bytes of shared memory before those for what is behind the attention."""
    return qkv_offset(shape, tile) + shape.block_rows * COLUMNS


def shared_bytes(shape: NormAttentionShape, tile: NormAttentionTile) -> int:
    """Shared memory of a block."""
    return output_offset(shape, tile) + shape.output_bytes


def _values(shape: NormAttentionShape, field: str, made: Mapping[str, int]) -> list[int]:
    strips = shape.block_rows // STRIP
    if field == "cluster":
        return shape.clusters
    if field == "column_warps":
        return [1, 3]
    if field == "depth_warps":
        if shape.wgmma:
            return [1]
        warps = strips * made["column_warps"]
        limit = GPUS[shape.arch].shared_bytes - shape.block_rows * COLUMNS - shape.output_bytes
        return [
            w
            for w in (1, 2, 3, 4, 6, 8)
            if _block_depth(shape) // 32 % w == 0
            and 32 * warps * w <= _MOST_THREADS
            and (w - 1) * shape.block_rows * COLUMNS * 4 <= limit
        ]
    vectors = shape.channels // 8
    return [n for n in (1, 2, 4, 8, 16, 32) if n <= vectors <= n * _MOST_VECTORS]


def _block_depth(shape: NormAttentionShape) -> int:
    """Input channels of a slice of the weight: all, or as many as there is room for twice; 0."""
    depths = [d for d in (shape.channels, *reversed(BLOCK_DEPTHS)) if shape.channels % d == 0]
    return next((depth for depth in depths if _stages(shape, depth)), 0)


def _stages(shape: NormAttentionShape, block_depth: int) -> int:
    """Slices that are in shared memory together: as many as there is room for; 0: too few."""
    left = GPUS[shape.arch].shared_bytes - shape.block_rows * (shape.channels + COLUMNS)
    left -= shape.output_bytes
    slices = shape.channels // block_depth
    # A copy that is not asynchronous is done before the multiplication, however far ahead.
    most = _MOST_STAGES if shape.arch >= FIRST_WITH_ASYNC_COPIES else 2
    stages = min(slices, left // (COLUMNS * block_depth), most)
    return stages if stages >= min(slices, 2) else 0


def takes(tokens: int, d: int, channels: int) -> bool:
    """Whether there is a kernel for windows of so many tokens, heads and inputs of so many."""
    most = 32 * _MOST_VECTORS * 8
    return tokens <= SHORT and d == D and channels % D == 0 and channels <= most
