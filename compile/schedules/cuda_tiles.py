"""What all CUDA kernels with a search space share: parameters, a description, decisions on a tile.

Such a kernel is written out for a shape and a tile. What a network has at first, and what a tuning
log knows the kernel by, is a description: a PrimFunc with a block "y". Every field of the tile is a
decision in a MetaSchedule trace (`sample_categorical`), so that records are MetaSchedule's own, and
the block is annotated with them; the kernel is written from the annotated description alone,
whether a search, a record or the default has decided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules.cuda_intrinsics import Buffer

Tile = TypeVar("Tile")
Shape = TypeVar("Shape")
Parameter = tuple[str, tuple[int, ...], str]  # name, shape, dtype

_ANNOTATION = "intswin.tile"
_BLOCK = "y"


def parameters_of(func: tirx.PrimFunc) -> list[Parameter]:
    """The parameters of a description, for its kernel."""
    return [
        (param.name, tuple(map(int, param.ty.shape)), str(param.ty.dtype)) for param in func.params
    ]


def declare(parameters: Sequence[Parameter]) -> dict[str, Buffer]:
    """Declare parameters of the PrimFunc that is being built; gives flat views of them by name."""
    arguments = [T.arg(name, T.buffer(extents, dtype)) for name, extents, dtype in parameters]
    return {
        name: T.decl_buffer((math.prod(extents),), dtype, data=argument.data)
        for argument, (name, extents, dtype) in zip(arguments, parameters, strict=True)
    }


def describe(op: str, shape: Any, parameters: Sequence[Parameter]) -> tirx.PrimFunc:
    """Say which kernel of operator `op` is wanted, not how it computes; the output comes last.

    The fields of the dataclass `shape` are attributes, each prefixed with "intswin.".
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(op)
            buffers = [T.arg(name, T.buffer(extents, dtype)) for name, extents, dtype in parameters]
            whole = [buffer[tuple(slice(0, e) for e in buffer.shape)] for buffer in buffers]
            with T.sblock(_BLOCK):
                T.reads(*whole[:-1])
                T.writes(whole[-1])
                T.evaluate(0)
    attrs = {f"intswin.{name}": value for name, value in vars(shape).items()}
    return builder.get().with_attr({"intswin.op": op, **attrs})


def described(func: tirx.PrimFunc, kind: type[Shape]) -> Shape:
    """The shape, of dataclass `kind`, that `describe` was given."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: func.attrs[f"intswin.{name}"] for name in names})


def decide(
    sch: s_tir.Schedule,
    candidates: Callable[[str, Mapping[str, int]], Mapping[int, int]],
    tile: Any,
) -> None:
    """Decide on `tile` for the description "main" in `sch`.

    Args:
        sch: its trace gets the decisions, in the order of the tile's fields.
        candidates: gives, of a field and the fields before it, the values with their odds.
        tile: a dataclass.

    Raises:
        ValueError: `tile` is not in the space.
    """
    made: dict[str, int] = {}
    variables = []
    for field, value in vars(tile).items():
        odds = candidates(field, made)
        values = list(odds)
        if value not in odds:
            raise ValueError(f"{field}={value} is not one of {values}")
        probabilities = [weight / sum(odds.values()) for weight in odds.values()]
        variables.append(sch.sample_categorical(values, probabilities, values.index(value)))
        made[field] = value
    sch.annotate(sch.get_sblock(_BLOCK), _ANNOTATION, variables)


def decided(func: tirx.PrimFunc, kind: type[Tile]) -> Tile:
    """The tile that a description was annotated with by `decide` or by the trace of a record."""
    sch = s_tir.Schedule(func.with_attr("global_symbol", "main"))
    values = sch.get(sch.get_sblock(_BLOCK)).annotations[_ANNOTATION]
    return kind(*(int(value) for value in values))
