"""Float values as views of integer tensors (docs/integer-semantics.md, section 4).

An integer tensor is (rows, channels). A float value is a view: for each of its elements, which
element of which integer tensor it is. Reshapes, permutations, rolls, slices and concatenations of
the float graph are then evaluated on index tensors and leave no operator behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from intswin.compile.float_graph import FloatOp, evaluate
from intswin.models.errors import IntswinError


@dataclasses.dataclass
class View:
    """A float value in terms of an integer tensor.

    Attributes:
        source: what the elements come from; the caller's own handle.
        channels: of the source.
        index: int32, the float value's shape; flat element of the source, or -1 - i for
            element i of `constants`.
        factor: the value is factor * (dequantized element).
        constants: float64; elements that the value got from constants by concatenation.
    """

    source: object
    channels: int
    index: torch.Tensor
    factor: float = 1.0
    constants: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    def moved(self, index: torch.Tensor) -> View:
        """The same source seen through another index."""
        return dataclasses.replace(self, index=index)

    def rows(self, name: str) -> np.ndarray:
        """For a value whose last axis is whole source rows: the source row of each, or -1.

        Returns:
            int32 (value rows, groups): groups > 1 when a value row joins several source rows. A
            row of -1 comes from `constants`.

        Raises:
            IntswinError: the value is not made of whole source rows.
        """
        width = self.index.shape[-1]
        if width % self.channels:
            raise IntswinError(
                f"{name} has {width} channels, not whole rows of {self.channels}; this layout is "
                "not supported"
            )
        index = self.index.reshape(-1, width // self.channels, self.channels).numpy()
        rows = np.where(index[..., 0] >= 0, index[..., 0] // self.channels, -1)
        whole = rows[..., None] * self.channels + np.arange(self.channels, dtype=np.int32)
        if (
            not np.array_equal(
                np.where(rows[..., None] >= 0, index, -1), np.where(rows[..., None] >= 0, whole, -1)
            )
            or (index[rows < 0] >= 0).any()
        ):
            raise IntswinError(f"{name} mixes channels of a tensor; this layout is not supported")
        return rows


def through_layout(op: FloatOp, values: Mapping[str, View]) -> View:
    """Run an operator that only moves data on the index tables of what it reads.

    A constant that it joins to them becomes negative indices.

    Raises:
        IntswinError: it joins elements of different tensors.
    """
    read = {name: values[name] for name in op.value_args}
    base = next(iter(read.values()))
    if any(view.source is not base.source or view.factor != base.factor for view in read.values()):
        raise IntswinError(f"{op.op} {op.name} joins different tensors; not supported")
    constants = list(base.constants)
    args = op.args
    if op.op == "concat":
        fields: list[object] = []
        for field in args[0]:
            if isinstance(field, torch.Tensor):
                numbers = -1 - len(constants) - elements(field.numel())
                constants.extend(field.double().reshape(-1).tolist())
                fields.append(numbers.reshape(field.shape))
            else:
                fields.append(field)
        args = (tuple(fields),)
    indices = {name: view.index for name, view in read.items()}
    index = evaluate(dataclasses.replace(op, args=args), indices)
    return dataclasses.replace(base, index=index, constants=np.asarray(constants))


def identity(source: object, rows: int, channels: int, shape: tuple[int, ...]) -> View:
    """The view of a whole (rows, channels) tensor in its own order, shaped like the value."""
    return View(source, channels, elements(rows * channels).reshape(shape))


def in_order(source: object, order: np.ndarray, channels: int, shape: tuple[int, ...]) -> View:
    """The view whose value row i is row order[i] of a (rows, channels) tensor."""
    index = order[:, None] * channels + np.arange(channels)
    return View(source, channels, torch.from_numpy(index.astype(np.int32)).reshape(shape))


def elements(count: int) -> torch.Tensor:
    """0..count-1, int32: flat indices of a tensor's elements."""
    return torch.arange(count, dtype=torch.int32)


def is_permutation(rows: np.ndarray, count: int) -> bool:
    """Whether `rows` (any shape) lists each of 0..count-1 exactly once."""
    return rows.size == count and np.array_equal(np.sort(rows, axis=None), np.arange(count))


def per_channel(view: View, constant: torch.Tensor) -> np.ndarray | None:
    """The vector that a constant adds to (or multiplies) each source channel by, if it is one.

    Args:
        view: of the value that the constant is combined with.
        constant: broadcastable to the view's shape.

    Returns:
        float64 (channels,), or None when the constant differs between rows.
    """
    index = view.index.reshape(-1).numpy()
    if (index < 0).any():
        return None
    if torch.broadcast_shapes(constant.shape, view.index.shape) != view.index.shape:
        return None
    values = constant.double().broadcast_to(view.index.shape).reshape(-1).numpy()
    vector = np.zeros(view.channels)
    vector[index % view.channels] = values
    return vector if np.array_equal(vector[index % view.channels], values) else None
