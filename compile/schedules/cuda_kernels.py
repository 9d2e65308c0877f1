"""The CUDA kernels with a search space, by the attribute "intswin.op" of their descriptions.

A tile is chosen in a MetaSchedule trace, then the kernel is written for it. What may be chosen can
depend on what was chosen before: a search makes each schedule here instead of changing a decision
in a trace.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tvm import s_tir, tirx
from tvm.target import Target

from intswin.compile.schedules import (
    cuda_attention,
    cuda_attention_space,
    cuda_gemm,
    cuda_gemm_space,
    cuda_gemm_tiles,
    cuda_layer_norm,
    cuda_layer_norm_space,
    cuda_norm_attention,
    cuda_norm_attention_space,
    cuda_norm_gemm,
    cuda_norm_gemm_space,
    cuda_norm_mlp,
    cuda_norm_mlp_space,
    cuda_norm_msa,
    cuda_tiles,
)
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.layer_norm import LayerNormShape


class Space(Protocol):
    """What the module of each space has."""

    def candidates(self, shape: Any, field: str, made: Mapping[str, int]) -> dict[int, int]:
        """The values of a tile's field after the fields before it, with their odds."""
        ...

    def default_tile(self, shape: Any) -> Any:
        """The tile that is used when no record says better."""
        ...


@dataclasses.dataclass(frozen=True)
class _Family:
    """The kernels of one operator.

    Attributes:
        shape_of: the problem that a description poses.
        space: what may be chosen for a shape.
        tile_type: of a shape.
        write: the kernel, of its description, the shape and the tile.
    """

    shape_of: Callable[[tirx.PrimFunc, Target], Any]
    space: Space
    tile_type: Callable[[Any], type]
    write: Callable[[tirx.PrimFunc, Any, Any], tirx.PrimFunc]


_FAMILIES = {
    "linear": _Family(
        shape_of=cuda_gemm.shape_of,
        space=cuda_gemm_space,
        tile_type=lambda shape: cuda_gemm_tiles.TILES[shape.layout],
        write=cuda_gemm.kernel,
    ),
    "attention": _Family(
        shape_of=lambda func, _target: cuda_tiles.described(func, AttentionShape),
        space=cuda_attention_space,
        tile_type=lambda _shape: cuda_attention_space.MmaAttentionTile,
        write=cuda_attention.kernel,
    ),
    "layer_norm": _Family(
        shape_of=lambda func, _target: cuda_tiles.described(func, LayerNormShape),
        space=cuda_layer_norm_space,
        tile_type=lambda _shape: cuda_layer_norm_space.LayerNormTile,
        write=cuda_layer_norm.kernel,
    ),
    cuda_norm_gemm.OP: _Family(
        shape_of=cuda_norm_gemm.shape_of,
        space=cuda_norm_gemm_space,
        tile_type=lambda _shape: cuda_norm_gemm_space.NormGemmTile,
        write=cuda_norm_gemm.kernel,
    ),
    cuda_norm_attention.OP: _Family(
        shape_of=cuda_norm_attention.shape_of,
        space=cuda_norm_attention_space,
        tile_type=lambda _shape: cuda_norm_attention_space.NormAttentionTile,
        write=cuda_norm_attention.kernel,
    ),
    cuda_norm_msa.OP: _Family(
        shape_of=cuda_norm_msa.shape_of,
        space=cuda_norm_attention_space,
        tile_type=lambda _shape: cuda_norm_attention_space.NormAttentionTile,
        write=cuda_norm_msa.kernel,
    ),
    cuda_norm_mlp.OP: _Family(
        shape_of=cuda_norm_mlp.shape_of,
        space=cuda_norm_mlp_space,
        tile_type=lambda _shape: cuda_norm_mlp_space.NormMlpTile,
        write=cuda_norm_mlp.kernel,
    ),
}
OPERATORS = tuple(_FAMILIES)


def shape_of(func: tirx.PrimFunc, target: Target) -> Any:
    """The problem that a description poses."""
    return _family(func).shape_of(func, target)


def schedule(sch: s_tir.Schedule, target: Target, tile: Any = None) -> None:
    """Decide on `tile`, by default that of the shape, for the description "main" in `sch`.

    Raises:
        ValueError: `tile` is not in the space of this shape.
    """
    space, shape = _family(sch.mod["main"]).space, shape_of(sch.mod["main"], target)
    candidates = functools.partial(space.candidates, shape)
    cuda_tiles.decide(sch, candidates, tile or space.default_tile(shape))


def kernel(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The kernel of a description that `schedule`, or the trace of a record, has annotated."""
    family, shape = _family(func), shape_of(func, target)
    return family.write(func, shape, cuda_tiles.decided(func, family.tile_type(shape)))


def _family(func: tirx.PrimFunc) -> _Family:
    return _FAMILIES[str(func.attrs["intswin.op"])]
