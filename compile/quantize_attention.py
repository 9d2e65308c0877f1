"""Recognises attention in the float graph by its index tables, and quantizes it as one operator.

softmax(factor * q k^T + constants) v, with q, k and v three views of linear layers of one input:
the views say which row is which token of which window, and which channel belongs to which head,
however the importer spelled the windows, the shift and the heads.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from intswin.compile.quantize_views import View, elements, is_permutation
from intswin.models.errors import IntswinError
from intswin.models.integer_math import LN2_STEP


@dataclasses.dataclass
class Scores:
    """q k^T of G = windows * heads products, natural layout (G, n, n).

    Attributes:
        q, k: views of shape (G, n, d), in real units with their factors.
        q_name, k_name: float values, for their calibrated ranges.
        factor: what the products were multiplied by.
        bias: float64 (G, n, n), what was added to them; None when nothing was.
        normalized: whether softmax was applied.
    """

    q: View
    k: View
    q_name: str
    k_name: str
    factor: float = 1.0
    bias: np.ndarray | None = None
    normalized: bool = False

    @classmethod
    def of(cls, q: View, k: View, q_name: str, k_name: str) -> Scores:
        """From q (..., n, d) and the transposed k (..., d, n)."""
        if q.index.shape[-2] != k.index.shape[-1]:
            raise IntswinError("attention between different numbers of queries and keys")
        queries = q.index.reshape(-1, *q.index.shape[-2:])
        keys = k.index.reshape(-1, *k.index.shape[-2:]).transpose(1, 2)
        return cls(q.moved(queries), k.moved(keys), q_name, k_name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, n, n)."""
        groups, tokens, _ = self.q.index.shape
        return groups, tokens, tokens

    def add(self, view: View, constant: torch.Tensor) -> None:
        """Add a constant to a view of the scores."""
        bias = np.zeros(self.shape) if self.bias is None else self.bias.copy()
        addend = constant.double().broadcast_to(view.index.shape).reshape(-1).numpy()
        bias.reshape(-1)[view.index.reshape(-1).numpy()] += addend
        self.bias = bias

    def scale(self, factor: float) -> None:
        """Multiply everything so far by a number."""
        self.factor *= factor
        if self.bias is not None:
            self.bias = self.bias * factor

    def require_natural(self, view: View, what: str) -> None:
        """Refuse a view of the scores whose last axes are not (query, key)."""
        groups, tokens, _ = self.shape
        natural = elements(groups * tokens * tokens)
        if not torch.equal(view.index.reshape(-1), natural):
            raise IntswinError(f"{what} does not see attention scores as (..., query, key)")


@dataclasses.dataclass
class Layout:
    """Where the G products of an attention live.

    Attributes:
        rows: int32 (windows, n): the row of each token.
        columns: per head, the channels of q, k and v in their sources: three int64 (heads, d).
        group_of: int64 (windows, heads): which product it is.
    """

    rows: np.ndarray
    columns: tuple[np.ndarray, np.ndarray, np.ndarray]
    group_of: np.ndarray


def find_layout(q: View, k: View, v: View, name: str) -> Layout:
    """Split the products into windows and heads.

    Args:
        q: view of shape (G, n, d).
        k: view of shape (G, n, d).
        v: view of shape (G, n, d).
        name: of the attention's value, for errors.

    Raises:
        IntswinError: they are not windows times heads over one set of rows.
    """
    parts = [_rows_and_columns(view, name) for view in (q, k, v)]
    rows = parts[0][0]
    if not all(np.array_equal(rows, other) for other, _ in parts[1:]):
        raise IntswinError(f"{name}: queries, keys and values come from different tokens")
    windows: dict[bytes, int] = {}
    heads: dict[bytes, int] = {}
    position = []
    for row, column in zip(rows, parts[0][1], strict=True):
        window = windows.setdefault(row.tobytes(), len(windows))
        position.append((window, heads.setdefault(column.tobytes(), len(heads))))
    if len(set(position)) != len(rows) or len(rows) != len(windows) * len(heads):
        raise IntswinError(f"{name}: attention is not a set of heads in every window")
    group_of = np.zeros((len(windows), len(heads)), dtype=np.int64)
    for group, (window, head) in enumerate(position):
        group_of[window, head] = group
    for _, columns in parts:
        if not (columns[group_of] == columns[group_of[:1]]).all():
            raise IntswinError(f"{name}: a head uses other channels in other windows")
    first = group_of[0]
    table = rows[group_of[:, 0]]
    if not is_permutation(table, table.size):
        raise IntswinError(f"{name}: windows do not cover every token exactly once")
    q_columns, k_columns, v_columns = (columns[first] for _, columns in parts)
    return Layout(table.astype(np.int32), (q_columns, k_columns, v_columns), group_of)


def bias_tables(scores: Scores, layout: Layout) -> dict[str, np.ndarray]:
    """`bias` and `pattern` of section 3.5, or nothing when there is no bias.

    Windows with equal tables share one: a shifted Swin stage has at most four distinct masks.
    """
    if scores.bias is None:
        return {}
    fixed = np.clip(np.rint(scores.bias / LN2_STEP), -32768, 32767).astype(np.int16)
    known: dict[bytes, int] = {}
    tables: list[np.ndarray] = []
    pattern: list[int] = []
    for groups in layout.group_of:
        table = fixed[groups]  # (heads, n, n)
        pattern.append(known.setdefault(table.tobytes(), len(known)))
        if len(known) > len(tables):
            tables.append(table)
    return {"bias": np.stack(tables), "pattern": np.array(pattern, dtype=np.int32)}


def _rows_and_columns(view: View, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (G, n) and columns (G, d) of a view (G, n, d)."""
    index = view.index.numpy()
    rows, columns = index // view.channels, index % view.channels
    if not ((rows == rows[:, :, :1]).all() and (columns == columns[:, :1, :]).all()):
        raise IntswinError(f"{name}: attention's operands are not rows by channels")
    return rows[:, :, 0], columns[:, 0, :]
