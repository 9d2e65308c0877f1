"""Where the time of one of our networks goes, operator by operator, against the CPU's limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from intswin.compile.bench_report import OTHERS, OURS, figure_bytes
from intswin.compile.cpu_peak import CpuPeak
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph, Node

KernelTimes = Sequence[tuple[str, float]]
ROWS_SHOWN = 25
_COLORS = {"linear": OURS, "attention": "#c8553d"}


@dataclass(frozen=True)
class OperatorTime:
    """One kind of operator of one shape, all its layers together, for one batch.

    Attributes:
        what: the operator and its sizes.
        op: of docs/integer-semantics.md section 3.
        layers: how many of them the network has.
        us: microseconds of all of them, medians.
        operations: int8 operations of all of them; a multiply-accumulate is two.
        bytes: inputs, constants and outputs of all of them, each counted once.
    """

    what: str
    op: str
    layers: int
    us: float
    operations: int
    bytes: int

    @property
    def gops(self) -> float:
        """10^9 operations a second."""
        return self.operations / self.us / 1e3

    @property
    def gbs(self) -> float:
        """10^9 bytes a second."""
        return self.bytes / self.us / 1e3


def profile(graph: IntegerGraph, batch: int, runs: Sequence[KernelTimes]) -> list[OperatorTime]:
    """Join what the kernels took in some runs with what they had to do; most expensive first.

    Args:
        graph: the one that the kernels were emitted from: that of fuse_kernels.py.
        batch: images of a run.
        runs: names and seconds of the kernels, in their order.

    Raises:
        IntswinError: the compiled code has not one kernel for each operator.
    """
    # What is left without the virtual machine's bookkeeping runs in the order of the graph.
    kernels = [[t for name, t in run if not name.startswith("vm.builtin.")] for run in runs]
    if any(len(times) != len(graph.nodes) for times in kernels):
        raise IntswinError(
            f"{len(kernels[0])} kernels for {len(graph.nodes)} operators; "
            "this artifact cannot be profiled by operator"
        )
    medians = 1e6 * np.median(np.array(kernels), axis=0)
    found: dict[str, OperatorTime] = {}
    for node, us in zip(graph.nodes, medians, strict=True):
        what, operations = _work(node, batch)
        old = found.get(what, OperatorTime(what, node.op, 0, 0.0, 0, 0))
        found[what] = OperatorTime(
            what,
            node.op,
            old.layers + 1,
            old.us + float(us),
            old.operations + operations,
            old.bytes + _bytes(graph, node, batch),
        )
    return sorted(found.values(), key=lambda row: -row.us)


def table(label: str, rows: list[OperatorTime], peak: CpuPeak) -> Table:
    """The operators, and a line of the whole network."""
    total = sum(row.us for row in rows)
    shown = Table(
        "operator", "layers", "us", "share %", "GOPS", "% of peak", "GB/s",
        title=f"{label}; peak {peak.gops:.0f} GOPS ({peak.instruction}), "
        f"memory {peak.memory_gbs:.0f} GB/s, cache {peak.cache_gbs:.0f} GB/s",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    operations, size = sum(row.operations for row in rows), sum(row.bytes for row in rows)
    layers = sum(row.layers for row in rows)
    whole = OperatorTime("whole network", "", layers, total, operations, size)
    for row in [*rows[:ROWS_SHOWN], whole]:
        shown.add_row(
            row.what,
            str(row.layers),
            f"{row.us:.0f}",
            f"{100 * row.us / total:.1f}",
            f"{row.gops:.0f}" if row.operations else "",
            f"{100 * row.gops / peak.gops:.1f}" if row.operations else "",
            f"{row.gbs:.1f}",
        )
    return shown


def to_json(rows: list[OperatorTime]) -> list[dict[str, Any]]:
    """The rows as JSON objects."""
    return [
        {**dataclasses.asdict(row), "us": round(row.us, 2), "gops": round(row.gops, 1)}
        for row in rows
    ]


def roofline(title: str, rows: list[OperatorTime], peak: CpuPeak) -> bytes:
    """PNG: operators as points, operations a byte against GOPS, area as share of the time."""
    points = [row for row in rows if row.operations]
    total = sum(row.us for row in rows)
    with figure_bytes(8, 5.5) as (figure, png):
        axes = figure.subplots()
        intensity = [row.operations / row.bytes for row in points]
        span = np.geomspace(
            min(intensity) / 2, max(*intensity, peak.gops / peak.memory_gbs) * 2, 99
        )
        limits = (
            (peak.memory_gbs, f"memory, {peak.memory_gbs:.0f} GB/s", "-"),
            (peak.cache_gbs, f"cache, {peak.cache_gbs:.0f} GB/s", "--"),
        )
        for bandwidth, label, style in limits:
            roof = np.minimum(peak.gops, span * bandwidth)
            axes.plot(span, roof, style, color="#444444", linewidth=1.2, label=label)
        axes.text(
            span[-1], peak.gops * 1.06, f"{peak.instruction}, {peak.gops:.0f} GOPS", ha="right"
        )
        for op, color in _COLORS.items():
            chosen = [row for row in points if row.op == op]
            axes.scatter(
                [row.operations / row.bytes for row in chosen],
                [row.gops for row in chosen],
                s=[max(12.0, 2500 * row.us / total) for row in chosen],
                color=color,
                alpha=0.75,
                edgecolors="white",
                label=f"{op} ({sum(row.us for row in chosen) / total:.0%} of the time)",
            )
        axes.set(xscale="log", yscale="log", xlabel="int8 operations a byte", ylabel="GOPS")
        axes.set_title(title, fontsize=10)
        legend = axes.legend(loc="lower right", frameon=False, fontsize=9)
        for handle in legend.legend_handles:
            set_sizes = getattr(handle, "set_sizes", None)
            if set_sizes is not None:
                set_sizes([40])
        axes.grid(which="major", color=OTHERS, linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    return png.getvalue()


def _work(node: Node, batch: int) -> tuple[str, int]:
    """The operator with its sizes, and its int8 operations."""
    rows, channels = (*node.out.shape, 1)[:2]
    if node.op in ("linear", "norm_linear"):
        depth = node.tensors["weight"].shape[1]
        activation = node.attrs["activation"]
        kind = f" {activation}" if activation != "none" else ""
        residual = " + residual" if len(node.inputs) > 1 else ""
        norm = "layer_norm, " if node.op == "norm_linear" else ""
        what = f"{norm}linear {rows}x{depth} -> {channels} {node.attrs['out']}{kind}{residual}"
        return what, 2 * batch * rows * depth * channels
    if node.op == "norm_mlp":
        hidden, activation = node.tensors["weight"].shape[0], node.attrs["activation"]
        kind = f" {activation}" if activation != "none" else ""
        what = f"layer_norm, MLP {rows}x{channels} -> {hidden}{kind} -> {channels} i16 + residual"
        return what, 4 * batch * rows * channels * hidden
    if node.op in ("attention", "norm_attention", "norm_msa"):
        windows, tokens = node.tensors["rows"].shape
        heads, d = int(node.attrs["heads"]), int(node.attrs["d"])
        what = f"attention {windows} windows, {tokens} tokens, {heads} heads of {d}"
        operations = 4 * batch * windows * tokens * tokens * heads * d
        if node.op == "attention":
            return what, operations
        depth = node.tensors["weight"].shape[1]
        what = f"layer_norm, linear {rows}x{depth} -> {3 * channels}, {what}"
        operations += 2 * batch * rows * depth * 3 * channels
        if node.op == "norm_attention":
            return what, operations
        what = f"{what}, linear {channels} -> {channels} i16 + residual"
        return what, operations + 2 * batch * rows * channels * channels
    return f"{node.op} {rows}x{channels} {node.out.dtype}", 0


def _bytes(graph: IntegerGraph, node: Node, batch: int) -> int:
    specs = [node.out, *(graph.spec(name) for name in node.inputs)]
    moving = sum(math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in specs)
    return batch * moving + sum(tensor.nbytes for tensor in node.tensors.values())
