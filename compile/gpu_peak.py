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


# By a part of the device's name; NVIDIA's data sheets: dense int8 of the tensor cores, for V100
# four times the fp32 rate of 15.7 TFLOP/s (dp4a).
_DATA_SHEETS = {
    "H200": GpuPeak(1979, 4800, "data sheet H200 SXM"),
    "H100 PCIe": GpuPeak(1513, 2000, "data sheet H100 PCIe"),
    "H100": GpuPeak(1979, 3350, "data sheet H100 SXM"),
    "A100": GpuPeak(624, 2039, "data sheet A100 80GB SXM"),
    "4090": GpuPeak(660.6, 1008, "data sheet GeForce RTX 4090"),
    "T4": GpuPeak(130, 320, "data sheet T4"),
    "V100": GpuPeak(62.8, 900, "data sheet V100 SXM2"),
}


def data_sheet(device: str) -> GpuPeak | None:
    """The limits of a device by its name; None for one that is not listed here."""
    return next((peak for name, peak in _DATA_SHEETS.items() if name in device), None)


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
