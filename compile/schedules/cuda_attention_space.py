"""What a search may choose in a CUDA attention kernel, and the choice made without a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from intswin.compile.schedules.attention import AttentionShape

# As in cuda_gemm_space.py.
SPACE_VERSION = 1
STRIP = 16  # queries that a warp multiplies at once: the rows of an mma
SHORT = 64  # up to so many tokens keys, values and bias of a strip stay in registers
# Warps of a launch that fill any GPU several times over (132 multiprocessors of 16): more of them
# than that are better spent on reusing what is in registers.
_ENOUGH_WARPS = 8192


@dataclasses.dataclass(frozen=True)
class MmaAttentionTile:
    """What a warp and a block of the tensor core kernel do.

    Attributes:
        strips: of 16 queries that a warp does with the same keys and values.
        images: that a warp does one after another with the same bias.
        warps: of a block, which works on neighbouring strips and heads.
    """

    strips: int
    images: int
    warps: int


def candidates(shape: AttentionShape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take, with their odds; any combination of them is valid.

    Args:
        shape: the problem.
        field: one of the tile's.
        made: the fields before it, on which nothing depends here.
    """
    return dict.fromkeys(_values(shape, field), 1)


def default_tile(shape: AttentionShape) -> MmaAttentionTile:
    """One strip of one image a warp, and more as soon as there are warps enough."""
    strips, images = 1, 1
    for s in _values(shape, "strips")[:2]:
        for i in _values(shape, "images")[:4]:
            if warps_of(shape, s, i) >= _ENOUGH_WARPS:
                strips, images = s, i
    return MmaAttentionTile(strips, images, warps=4)


def strips_of(shape: AttentionShape) -> int:
    """Strips of a window."""
    return -(-shape.tokens // STRIP)


def warps_of(shape: AttentionShape, strips: int, images: int) -> int:
    """Warps that all work is for when one does `strips` of `images`."""
    groups = -(-strips_of(shape) // strips) * -(-shape.batch // images)
    return groups * shape.heads * shape.windows


def _values(shape: AttentionShape, field: str) -> list[int]:
    short = shape.tokens <= SHORT
    if field == "strips":
        return [s for s in (1, 2, 4) if s == 1 or (short and s <= strips_of(shape))]
    if field == "images":
        return [i for i in (1, 2, 4, 8, 16) if i == 1 or (short and i <= shape.batch)]
    return [1, 2, 4, 8]
