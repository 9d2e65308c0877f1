"""The CUDA kernels with a search space, by the attribute "intswin.op" of their descriptions."""

from __future__ import annotations

from typing import Any, Protocol

from tvm import s_tir, tirx
from tvm.target import Target

from intswin.compile.schedules import cuda_attention, cuda_gemm, cuda_layer_norm


class _Family(Protocol):
    """What the module of each has."""

    def shape_of(self, func: tirx.PrimFunc, target: Target) -> Any: ...

    def schedule(self, sch: s_tir.Schedule, target: Target, tile: Any = None) -> Any: ...

    def kernel(self, func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc: ...


_FAMILIES: dict[str, _Family] = {
    "linear": cuda_gemm,
    "attention": cuda_attention,
    "layer_norm": cuda_layer_norm,
}
OPERATORS = tuple(_FAMILIES)


def shape_of(func: tirx.PrimFunc, target: Target) -> Any:
    """The problem that a description poses."""
    return _family(func).shape_of(func, target)


def schedule(sch: s_tir.Schedule, target: Target, tile: Any = None) -> None:
    """Decide on `tile`, by default that of the shape, for the description "main" in `sch`.

    Raises:
        ValueError: `tile` is not in its space.
    """
    _family(sch.mod["main"]).schedule(sch, target, tile)


def kernel(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The kernel of a description that `schedule`, or the trace of a record, has annotated."""
    return _family(func).kernel(func, target)


def _family(func: tirx.PrimFunc) -> _Family:
    return _FAMILIES[str(func.attrs["intswin.op"])]
