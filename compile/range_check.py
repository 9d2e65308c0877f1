"""What one operator's range analysis found, and the refusals it can make."""

from __future__ import annotations

import dataclasses

import numpy as np

from intswin.models.errors import IntswinError
from intswin.models.integer_graph import Node, TensorSpec

Bounds = int | np.ndarray  # one bound, or one for each channel (int64)

INT32 = (1 << 31) - 1
INT64 = (1 << 63) - 1


@dataclasses.dataclass(frozen=True)
class OperatorRange:
    """What one intermediate of one operator can hold.

    Attributes:
        node: name of the operator.
        intermediate: its name in docs/integer-semantics.md.
        lo: smallest possible value.
        hi: largest possible value.
        limit: largest value that the arithmetic allows; the smallest is -limit - 1.
    """

    node: str
    intermediate: str
    lo: int
    hi: int
    limit: int


class Check:
    """Checks of one operator; `ranges` lists the intermediates in the order of computation."""

    def __init__(self, node: Node, inputs: list[TensorSpec]) -> None:
        self.node = node
        self.inputs = inputs
        self.ranges: list[OperatorRange] = []

    def refuse(self, what: str) -> None:
        """Raise IntswinError naming the operator and, where known, the float layer."""
        float_name = f", {self.node.float_name}" if self.node.float_name else ""
        raise IntswinError(f"{self.node.name} ({self.node.op}{float_name}): {what}")

    def require(self, ok: bool, what: str) -> None:
        """Refuse unless `ok`; `what` says what should be."""
        if not ok:
            self.refuse(what)

    def record(self, name: str, lo: Bounds, hi: Bounds, limit: int = INT32) -> None:
        """Note the range of an intermediate over all channels; refuse it beyond the limit."""
        low, high = int(np.min(lo)), int(np.max(hi))
        self.ranges.append(OperatorRange(self.node.name, name, low, high, limit))
        if low < -limit - 1 or high > limit:
            self.refuse(
                f"{name} can reach [{low}, {high}], beyond {limit}: "
                "check the weights of this layer and the calibration of its input"
            )

    def parameter(self, name: str, value: Bounds, lo: int, hi: int) -> None:
        """Refuse a parameter outside [lo, hi]."""
        low, high = int(np.min(value)), int(np.max(value))
        self.require(lo <= low and high <= hi, f"{name} is in [{low}, {high}], not in [{lo}, {hi}]")

    def tensors(self, **expected: tuple[str, tuple[int | None, ...]]) -> None:
        """Refuse unless the node has exactly these tensors; None leaves a dimension open."""
        stored = self.node.tensors
        self.require(
            set(stored) == set(expected),
            f"tensors are {sorted(stored)}, not {sorted(expected)}",
        )
        for name, (dtype, shape) in expected.items():
            t = stored[name]
            fits = len(t.shape) == len(shape) and all(
                have == want or want is None for have, want in zip(t.shape, shape, strict=True)
            )
            wanted = str(shape).replace("None", "any")
            self.require(
                t.dtype == dtype and fits and t.size > 0,
                f"{name} is {t.dtype} {t.shape}, not {dtype} {wanted}",
            )

    def attribute(self, name: str, allowed: list | None = None) -> int | str:
        """An attribute; refuse it when it is missing or not one of `allowed`."""
        value = self.node.attrs.get(name)
        self.require(value is not None, f"attribute {name} is missing")
        assert value is not None
        if allowed is not None:
            self.require(value in allowed, f"{name} is {value}, not one of {allowed}")
        return value

    def reads(self, *dtypes: str) -> None:
        """Refuse unless the inputs are (rows, channels) of these dtypes."""
        have = [(s.dtype, len(s.shape)) for s in self.inputs]
        self.require(
            have == [(dtype, 2) for dtype in dtypes],
            f"inputs are {[s.dtype for s in self.inputs]}, not {list(dtypes)} of (rows, channels)",
        )

    def makes(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Refuse unless the output spec is this."""
        out = self.node.out
        self.require(
            (out.dtype, tuple(out.shape)) == (dtype, shape),
            f"the output is declared {out.dtype} {out.shape}, but is {dtype} {shape}",
        )
