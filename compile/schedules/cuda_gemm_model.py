"""A rough model of how long a CUDA GEMM takes, by which a tile is chosen without a search.

Of 753 tiles of the 50 GEMMs of swin_tiny and swin_base that wgmma computes, measured on an H100,
those that it chose took 1.13 times as long as the fastest (geometric mean; 1.95 at most).
"""

from __future__ import annotations

from intswin.compile.schedules.cuda_gemm_tiles import (
    FIRST_WITH_ASYNC_COPIES,
    GPUS,
    REGISTERS,
    CudaGemmShape,
    CudaGemmTile,
    Dp4aTile,
    MmaTile,
    WgmmaTile,
)

_WGMMA_PRODUCTS = 4096  # multiply-accumulates of a multiprocessor in a cycle, sm_90a


def cycles(
    shape: CudaGemmShape,
    tile: CudaGemmTile,
    shared_bytes: int = 0,
    before: float = 0.0,
) -> float:
    """About how long the kernel takes.

    The blocks of a multiprocessor share its throughput and hide each other's latency: a wave of
    them takes the longer of what all need and what one needs alone.

    Args:
        shape: the problem.
        tile: of a block.
        shared_bytes: that a block has, if not the tile's.
        before: instructions of single lanes before the multiplication.
    """
    gpu = GPUS[shape.arch]
    blocks = -(-shape.rows // tile.block_rows) * -(-shape.columns // tile.block_columns)
    results = tile.block_rows * tile.block_columns
    slices = -(-shape.depth // tile.block_depth)
    depth = slices * tile.block_depth
    epilogue = 10 if shape.activation == "none" else 24  # instructions for a result
    per_cycle = gpu.products
    if isinstance(tile, WgmmaTile):
        depth_warps, stages, summed = 1, tile.stages, 0
        per_cycle = _WGMMA_PRODUCTS
        own = tile.block_columns // tile.column_warpgroups
        reads = results * depth * (64 + own) / (64 * own) / 128
    elif isinstance(tile, MmaTile):
        depth_warps = tile.depth_warps
        stages = tile.stages if shape.arch >= FIRST_WITH_ASYNC_COPIES else 1
        warps = tile.row_warps * tile.column_warps
        reads = (tile.warp_rows + tile.warp_columns) * warps * depth / 128
        summed = 300 + 60 * (depth_warps - 1) if depth_warps > 1 else 0
    else:
        depth_warps, stages, summed = 1, 2, 0
        # 3 cycles a load of 4 words by a warp.
        loads = (tile.thread_rows + tile.thread_columns) / 4 * tile.threads / 32
        reads = loads * 3 * depth / 4
    # A multiprocessor does 128 lanes of an instruction a cycle and gets 40 bytes from the L2.
    products = results * depth / per_cycle
    loads = (tile.block_rows + tile.block_columns) * depth / 40
    work = max(products, loads, reads) + results * epilogue / 100 + 300 + 40 * slices
    # A warp has a quarter of a multiprocessor's units. The rest: launch and first loads, slices
    # that are not loaded ahead far enough, the reduction, the epilogue.
    alone = max(products, reads) * max(1, 128 / tile.threads)
    alone += 1500 + slices * (100 + 600 / stages) + summed
    alone += results / (tile.threads // depth_warps) * epilogue * 2
    work += before / 100
    alone += before / tile.threads * 4

    registers = _registers(tile, slices)
    by_registers = REGISTERS // (min(registers, 255) * tile.threads)
    by_threads = gpu.threads // tile.threads
    by_shared_memory = gpu.shared_bytes // (shared_bytes or tile.shared_bytes)
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
    if isinstance(tile, WgmmaTile):
        return accumulators + 40
    accumulators *= tile.depth_warps
    return accumulators + 40 if slices == 1 else 45 + 13 * accumulators // 10
