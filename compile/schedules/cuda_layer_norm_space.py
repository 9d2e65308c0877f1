"""What a search may choose in a CUDA LayerNorm kernel, and the choice made without a search."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from intswin.compile.schedules.layer_norm import LayerNormShape

# As in cuda_gemm_space.py.
SPACE_VERSION = 1
_ENOUGH_WARPS = 2112  # 16 for each of an H100's multiprocessors
_MOST_VECTORS = 16  # of a lane


@dataclasses.dataclass(frozen=True)
class LayerNormTile:
    """What a warp and a block do.

    Attributes:
        lanes: of a warp that share a row, a power of two; the others have other rows.
        warps: of a block.
    """

    lanes: int
    warps: int


def candidates(shape: LayerNormShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds; any combination of them is valid.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it, on which nothing depends here.
    """
    return dict.fromkeys(_lanes(shape) if field == "lanes" else [1, 2, 4, 8], 1)


def default_tile(shape: LayerNormShape) -> LayerNormTile:
    """As few lanes a row as leave enough warps and 4 vectors or fewer to a lane; else more."""
    lanes = 32
    for n in reversed(_lanes(shape)):
        warps = -(-shape.batch * shape.rows * n // 32)
        idle = -vectors_of(shape) % n
        if -(-vectors_of(shape) // n) > 4 or (warps < _ENOUGH_WARPS and not idle):
            break
        lanes = n
    return LayerNormTile(lanes, warps=4)


def width_of(shape: LayerNormShape) -> int:
    """Channels of a vector: up to 16 bytes of x."""
    return math.gcd(shape.channels, 8)


def vectors_of(shape: LayerNormShape) -> int:
    """Vectors of a row."""
    return shape.gather * shape.channels // width_of(shape)


def _lanes(shape: LayerNormShape) -> list[int]:
    vectors = vectors_of(shape)
    return [n for n in (1, 2, 4, 8, 16, 32) if n == 32 or n <= vectors <= n * _MOST_VECTORS]
