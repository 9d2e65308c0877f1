"""What a GPU can do at most, and how far a network's operators are from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from intswin.compile.operator_profile import ROWS_SHOWN, OperatorTime

_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class GpuPeak:
    """Limits of one GPU.

    Attributes:
        tops: int8 operations, 10^12 a second, dense; a multiply-accumulate is two.
        gbs: bytes from and to memory, 10^9 a second.
        source: where the numbers are from.
    """

    tops: float
    gbs: float
    source: str

    def least_us(self, row: OperatorTime) -> float:
        """Microseconds that the row needs at least: its operations or its bytes."""
        by_operations = row.operations / (self.tops * _TERA)
        return 1e6 * max(by_operations, row.bytes / (self.gbs * _GIGA))


# Dense int8 of the tensor cores; Hopper's sheets print the rate with sparsity, which is twice that.
# V100's has none: it is four times the fp32 rate of 15.7 TFLOP/s, because a dp4a has four
# multiply-accumulates and is taken to issue like an fp32 one.
_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet"
_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
_V100 = GpuPeak(62.8, 900, "NVIDIA Tesla V100 GPU accelerator data sheet, SXM2")
# By the device's whole name: other cards of a chip are slower or faster.
_DATA_SHEETS = {
    "NVIDIA H200": GpuPeak(1979, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "NVIDIA H100 80GB HBM3": GpuPeak(1979, 3350, f"{_HOPPER}, SXM"),
    "NVIDIA H100 PCIe": GpuPeak(1513, 2000, f"{_HOPPER}, PCIe"),
    "NVIDIA A100-SXM4-80GB": GpuPeak(624, 2039, f"{_AMPERE}, 80GB SXM"),
    "NVIDIA A100-SXM4-40GB": GpuPeak(624, 1555, f"{_AMPERE}, 40GB SXM"),
    "NVIDIA GeForce RTX 4090": GpuPeak(660.6, 1008, "NVIDIA Ada GPU architecture, RTX 4090"),
    "Tesla T4": GpuPeak(130, 320, "NVIDIA T4 Tensor Core GPU product brief"),
    "Tesla V100-SXM2-16GB": _V100,
    "Tesla V100-SXM2-32GB": _V100,
}


def data_sheet(device: str) -> GpuPeak | None:
    """The limits of a device by its name; None for one that is not listed here."""
    return _DATA_SHEETS.get(device)


def table(label: str, rows: list[OperatorTime], peak: GpuPeak | None) -> Table:
    """The operators, most expensive first, and a line of the whole network."""
    limits = f"; {peak.tops:g} TOPS, {peak.gbs:g} GB/s ({peak.source})" if peak else ""
    shown = Table(
        "operator", "layers", "us", "share %", "MB", "TOPS", "GB/s", "% of limit",
        title=label + limits,
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    total = sum(row.us for row in rows)
    whole = OperatorTime(
        "whole network",
        "",
        sum(row.layers for row in rows),
        total,
        sum(row.operations for row in rows),
        sum(row.bytes for row in rows),
    )
    least = sum(peak.least_us(row) for row in rows) if peak else 0.0
    for row in [*rows[:ROWS_SHOWN], whole]:
        limit = least if row is whole else peak.least_us(row) if peak else 0.0
        shown.add_row(
            row.what,
            str(row.layers),
            f"{row.us:.1f}",
            f"{100 * row.us / total:.1f}",
            f"{row.bytes / 1e6:.1f}",
            f"{row.gops / 1e3:.1f}" if row.operations else "",
            f"{row.gbs:.0f}",
            f"{100 * limit / row.us:.0f}" if peak else "",
        )
    return shown


def to_json(rows: list[OperatorTime], peak: GpuPeak | None) -> list[dict[str, Any]]:
    """The rows as JSON objects; `least_us` is the limit where it is known."""
    return [
        {
            **dataclasses.asdict(row),
            "us": round(row.us, 3),
            **({"least_us": round(peak.least_us(row), 3)} if peak else {}),
        }
        for row in rows
    ]
