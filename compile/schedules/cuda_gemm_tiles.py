"""The problem that a CUDA GEMM poses, the tiles that kernels are written out for, and the GPUs."""

from __future__ import annotations

import dataclasses

MOST_ACCUMULATORS = 128  # int32 registers of a thread
REGISTERS = 65536  # of a multiprocessor, and so of a block
FIRST_WITH_ASYNC_COPIES = 80
_FIRST_WITH_DEPENDENT_LAUNCH = 90
GROUP = 32  # columns of a group of the packed weight
STEP = 32  # input channels of an mma
PIECE = GROUP * STEP  # bytes of a group of the packed weight in a step
WGMMA_ALIGNMENT = 1024  # bytes; of a slice in shared memory


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What limits tiles, and what a default is chosen by.

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


GPUS = {
    70: Gpu(80, 96 << 10, 2048, 256),
    75: Gpu(40, 64 << 10, 1024, 1024),  # of a T4: 130 TOPS at 1.59 GHz
    80: Gpu(108, 163 << 10, 2048, 2048),
    89: Gpu(128, 99 << 10, 1536, 1024),
    90: Gpu(132, 227 << 10, 2048, 2600),  # mma.sync reaches some 60 % of what wgmma does
}


def few_blocks(arch: int, blocks: int) -> bool:
    """Whether a kernel of so many blocks leaves multiprocessors with one or two, or none.

    Others do not hide there what a block waits for.
    """
    return blocks <= 2 * GPUS[arch].processors


def starts_early(arch: int, blocks: int) -> bool:
    """Whether a kernel of so many blocks starts before the one before it has ended.

    See dependent_launch.py.
    """
    return arch >= _FIRST_WITH_DEPENDENT_LAUNCH and few_blocks(arch, blocks)


@dataclasses.dataclass(frozen=True)
class CudaGemmShape:
    """The problem.

    Attributes:
        arch: 70, 75, 80, 89 or 90.
        layout: of the packed weight, "wgmma", "mma" or "dp4a": which kernel.
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

    @property
    def weight_offset(self) -> int:
        """Bytes of a slice before those of the weight: those of x."""
        return self.block_rows * self.block_depth

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a slice."""
        return self.weight_offset + self.block_columns * self.block_depth


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
    def sum_bytes(self) -> int:
        """Shared memory of the accumulators that are summed at the end."""
        return (self.depth_warps - 1) * self.block_rows * self.block_columns * 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the slices, and later the sums."""
        return max(self.stages * self.stage_bytes, self.sum_bytes)


@dataclasses.dataclass(frozen=True)
class WgmmaTile(_BlockTile):
    """The tile of the kernel for sm_90a, in the order in which it is decided.

    Attributes:
        row_warpgroups: groups of four warps that share the rows; divides block_rows / 64.
        column_warpgroups: that share the columns; divides block_columns / 32.
        stages: slices in shared memory; all there are, or two more than are on their way.
    """

    row_warpgroups: int
    column_warpgroups: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 128 * self.row_warpgroups * self.column_warpgroups

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, which need not be aligned itself."""
        return self.stages * self.stage_bytes + WGMMA_ALIGNMENT


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
        return 2 * self.stage_bytes


CudaGemmTile = MmaTile | WgmmaTile | Dp4aTile
TILES: dict[str, type[CudaGemmTile]] = {"wgmma": WgmmaTile, "mma": MmaTile, "dp4a": Dp4aTile}
