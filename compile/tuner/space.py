"""The design spaces of the kernels that are tuned, whatever the operator and the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tvm
from tvm import s_tir
from tvm.target import Target

from intswin.compile.schedules import (
    cuda_attention_space,
    cuda_gemm_space,
    cuda_gemm_tiles,
    cuda_kernels,
    cuda_layer_norm_space,
    cuda_norm_attention_space,
    cuda_norm_gemm_space,
    cuda_norm_mlp_space,
    gemm,
    gemm_space,
)
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import MmaAttentionTile
from intswin.compile.schedules.cuda_gemm_tiles import CudaGemmShape, Dp4aTile, MmaTile, WgmmaTile
from intswin.compile.schedules.cuda_kernels import Space
from intswin.compile.schedules.cuda_layer_norm_space import LayerNormTile
from intswin.compile.schedules.cuda_norm_attention_space import (
    NormAttentionShape,
    NormAttentionTile,
    NormMsaShape,
)
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmShape, NormGemmTile
from intswin.compile.schedules.cuda_norm_mlp_space import NormMlpShape, NormMlpTile
from intswin.compile.schedules.gemm_space import GemmShape, GemmTile
from intswin.compile.schedules.layer_norm import LayerNormShape
from intswin.compile.targets import is_cuda

Shape: TypeAlias = (
    GemmShape
    | CudaGemmShape
    | NormGemmShape
    | NormAttentionShape
    | NormMsaShape
    | NormMlpShape
    | AttentionShape
    | LayerNormShape
)
Tile: TypeAlias = (
    GemmTile
    | MmaTile
    | WgmmaTile
    | Dp4aTile
    | NormGemmTile
    | NormAttentionTile
    | NormMlpTile
    | MmaAttentionTile
    | LayerNormTile
)

_SPACES: dict[type, Space] = {
    GemmShape: gemm_space,
    CudaGemmShape: cuda_gemm_space,
    NormGemmShape: cuda_norm_gemm_space,
    NormAttentionShape: cuda_norm_attention_space,
    NormMsaShape: cuda_norm_attention_space,
    NormMlpShape: cuda_norm_mlp_space,
    AttentionShape: cuda_attention_space,
    LayerNormShape: cuda_layer_norm_space,
}
# What `matrix` is about.
_SHARED: dict[type, tuple[str, ...]] = {
    GemmShape: ("blocks", "depth"),
    CudaGemmShape: ("layout", "columns", "depth"),
    NormGemmShape: ("columns", "depth"),
    NormAttentionShape: ("tokens", "channels"),
    NormMsaShape: ("tokens", "channels"),
    NormMlpShape: ("channels", "hidden"),
    AttentionShape: ("tokens", "d"),
    LayerNormShape: ("gather", "channels"),
}
_TILES: dict[type, type[Tile]] = {
    GemmShape: GemmTile,
    NormGemmShape: NormGemmTile,
    NormAttentionShape: NormAttentionTile,
    NormMsaShape: NormAttentionTile,
    NormMlpShape: NormMlpTile,
    AttentionShape: MmaAttentionTile,
    LayerNormShape: LayerNormTile,
}


def shape_of(workload: tvm.IRModule, target: Target) -> Shape:
    """The problem that the unscheduled kernel "main" poses."""
    if is_cuda(target):
        return cuda_kernels.shape_of(workload["main"], target)
    return gemm.gemm_shape(s_tir.Schedule(workload))


def fields(shape: Shape) -> tuple[str, ...]:
    """The decisions, in their order."""
    return tuple(field.name for field in dataclasses.fields(_tile_type(shape)))


def candidates(shape: Shape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take after the fields before it, with their odds."""
    return _SPACES[type(shape)].candidates(shape, field, made)


def default_tile(shape: Shape) -> Tile:
    """The tile that is used when no record says better."""
    return _SPACES[type(shape)].default_tile(shape)


def tile(target: Target, values: Sequence[int]) -> Tile:
    """The tile with these decisions; their number says which of a target's spaces it is of.

    Raises:
        TypeError: no space has so many.
    """
    kinds: list[type[Tile]] = [GemmTile]
    if is_cuda(target):
        kinds = [MmaTile, WgmmaTile, Dp4aTile, NormGemmTile, NormMlpTile]
        kinds += [NormAttentionTile, MmaAttentionTile, LayerNormTile]
    for kind in kinds:
        if len(dataclasses.fields(kind)) == len(values):
            return kind(*values)
    raise TypeError(f"no tile has {len(values)} decisions")


def tile_of_trace(trace: list, target: Target) -> Tile:
    """The tile that a record's trace, as JSON, decided for."""
    instructions, decisions = trace
    sampled = [instructions[index] for index, _ in decisions]
    values = [one[2][0][decision] for one, (_, decision) in zip(sampled, decisions, strict=True)]
    return tile(target, values)


def decided(shape: Shape, made: Mapping[str, int]) -> Tile:
    """The tile of all decisions."""
    return _tile_type(shape)(**made)


def matrix(shape: Shape) -> tuple:
    """What kernels share whose best tiles resemble each other: those of one matrix, for a GEMM."""
    names = _SHARED[type(shape)]
    return type(shape).__name__, *(getattr(shape, name) for name in names)


def decide(workload: tvm.IRModule, target: Target, chosen: Tile | None) -> s_tir.Schedule:
    """A schedule whose trace holds the decisions of a tile, by default that of the shape.

    Raises:
        ValueError: the tile is not in the space of this kernel.
    """
    schedule = s_tir.Schedule(workload)
    if is_cuda(target):
        cuda_kernels.schedule(schedule, target, chosen)
    else:
        assert chosen is None or isinstance(chosen, GemmTile)
        gemm.schedule_linear(schedule, target, chosen)
    return schedule


def finished(schedule: s_tir.Schedule, target: Target) -> tvm.IRModule:
    """The kernel "main" that runs, from a schedule that a tile or a record's trace has decided."""
    if not is_cuda(target):
        return schedule.mod
    func = cuda_kernels.kernel(schedule.mod["main"], target)
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def _tile_type(shape: Shape) -> type[Tile]:
    if isinstance(shape, CudaGemmShape):
        return cuda_gemm_tiles.TILES[shape.layout]
    return _TILES[type(shape)]
