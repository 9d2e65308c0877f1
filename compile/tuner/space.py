"""The design space of `linear`, whatever the target: that of the CPU or that of CUDA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tvm
from tvm import s_tir
from tvm.target import Target

from intswin.compile.schedules import cuda_gemm, cuda_gemm_space, gemm, gemm_space
from intswin.compile.schedules.cuda_gemm_space import CudaGemmShape, Dp4aTile, MmaTile
from intswin.compile.schedules.gemm_space import GemmShape, GemmTile
from intswin.compile.targets import is_cuda

Shape: TypeAlias = GemmShape | CudaGemmShape
Tile: TypeAlias = GemmTile | MmaTile | Dp4aTile


def shape_of(workload: tvm.IRModule, target: Target) -> Shape:
    """The problem that the unscheduled kernel "main" poses."""
    if is_cuda(target):
        return cuda_gemm.gemm_shape(workload["main"], target)
    return gemm.gemm_shape(s_tir.Schedule(workload))


def fields(shape: Shape) -> tuple[str, ...]:
    """The decisions, in their order."""
    if isinstance(shape, CudaGemmShape):
        return cuda_gemm_space.fields(shape.layout)
    return gemm_space.FIELDS


def candidates(shape: Shape, field: str, made: Mapping[str, int]) -> dict[int, int]:
    """The values that a field may take after the fields before it, with their odds."""
    if isinstance(shape, CudaGemmShape):
        return cuda_gemm_space.candidates(shape, field, made)
    return gemm_space.candidates(shape, field, made)


def default_tile(shape: Shape) -> Tile:
    """The tile that is used when no record says better."""
    if isinstance(shape, CudaGemmShape):
        return cuda_gemm_space.default_tile(shape)
    return gemm_space.default_tile(shape)


def tile(target: Target, values: Sequence[int]) -> Tile:
    """The tile with these decisions; their number says which of a target's spaces it is of.

    Raises:
        TypeError: no space has so many.
    """
    kinds: list[type] = [GemmTile]
    if is_cuda(target):
        kinds = list(cuda_gemm_space.TILES.values())
    for kind in kinds:
        if len(dataclasses.fields(kind)) == len(values):
            return kind(*values)
    raise TypeError(f"no tile has {len(values)} decisions")


def decided(shape: Shape, made: Mapping[str, int]) -> Tile:
    """The tile of all decisions."""
    if isinstance(shape, CudaGemmShape):
        return cuda_gemm_space.TILES[shape.layout](**made)
    return GemmTile(**made)


def matrix(shape: Shape) -> tuple:
    """What kernels share whose best tiles resemble each other: the weight's layout and size."""
    if isinstance(shape, CudaGemmShape):
        return shape.layout, shape.columns, shape.depth
    return shape.blocks, shape.depth


def decide(workload: tvm.IRModule, target: Target, chosen: Tile | None) -> s_tir.Schedule:
    """A schedule whose trace holds the decisions of a tile, by default that of the shape.

    Raises:
        ValueError: the tile is not in the space of this kernel.
    """
    schedule = s_tir.Schedule(workload)
    if is_cuda(target):
        assert not isinstance(chosen, GemmTile)
        cuda_gemm.schedule_linear(schedule, target, chosen)
    else:
        assert chosen is None or isinstance(chosen, GemmTile)
        gemm.schedule_linear(schedule, target, chosen)
    return schedule


def finished(schedule: s_tir.Schedule, target: Target) -> tvm.IRModule:
    """The kernel "main" that runs, from a schedule that a tile or a record's trace has decided."""
    if not is_cuda(target):
        return schedule.mod
    func = cuda_gemm.kernel(schedule.mod["main"], target)
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
