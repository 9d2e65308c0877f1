"""The report of the GPU benchmark: one table, a bar chart, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from intswin.compile.bench_report import figure_bytes
from intswin.models.files import write_file

_OURS = ("#0b3954", "#2a6f97", "#61a5c2", "#89c2d9", "#a9d6e5", "#c9e4ef")
_TORCH = ("#7f2d1f", "#9c3d2a", "#c8553d", "#d97b5f", "#e29578", "#ecb39c", "#f0c6b2", "#f6ddd0")


def table(result: dict[str, Any]) -> Table:
    """A line for each contestant, a column for each network and batch: ms, and times ReLU's."""
    cases = result["cases"]
    headings = [f"{_short(case['network'])} b{case['batch']}" for case in cases]
    shown = Table("median ms (multiple of ours ReLU)", *headings, title=result["device"])
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, label in _labels(result).items():
        cells = []
        for case in cases:
            row = case["rows"].get(name, {})
            cells.append(f"{row['median_ms']:.3f} ({row['ratio']:.2f})" if "ratio" in row else "-")
        shown.add_row(label, *cells)
    return shown


def conclusions(result: dict[str, Any]) -> Iterator[str]:
    """A line for each case: how many times faster our ReLU network is; and what is missing."""
    for case in result["cases"]:
        name = f"{_short(case['network'])} batch {case['batch']}"
        known = ", ".join(f"{other} {value:.2f}x" for other, value in case["speedups"].items())
        yield f"{name}: ReLU is faster by: {known or 'not measured'}"
        for row in case["rows"].values():
            if "reason" in row:
                yield f"{name}: {row['label']}: not measured: {row['reason']}"


def write(result: dict[str, Any], path: Path) -> list[Path]:
    """Write the JSON to `path`, and the chart beside it when there is something to draw."""
    written = [write_file(path, json.dumps(result, indent=1).encode())]
    if any("median_ms" in row for case in result["cases"] for row in case["rows"].values()):
        written.append(write_file(path.with_suffix(".png"), chart(result)))
    return written


def chart(result: dict[str, Any]) -> bytes:
    """PNG: a group of bars for each network and batch, milliseconds on a logarithmic axis."""
    labels, cases = _labels(result), result["cases"]
    ours = [name for name in labels if name.startswith("ours")]
    colors = dict(zip(ours, _OURS, strict=False))
    colors |= dict(zip([name for name in labels if name not in ours], _TORCH, strict=False))
    width = 0.86 / len(labels)
    with figure_bytes(2.5 + 2.6 * len(cases), 5.2) as (figure, png):
        axes = figure.subplots()
        for place, (name, label) in enumerate(labels.items()):
            heights = [case["rows"].get(name, {}).get("median_ms", np.nan) for case in cases]
            left = np.arange(len(cases)) - 0.43 + width * (place + 0.5)
            axes.bar(left, heights, width, label=label, color=colors.get(name, "#999999"))
        axes.set_yscale("log")
        axes.set_ylabel("ms a batch (median)")
        axes.set_xticks(
            range(len(cases)),
            [f"{_short(case['network'])}\nbatch {case['batch']}" for case in cases],
        )
        axes.set_title(f"{result['device']}, driver for CUDA {result['driver']}", fontsize=10)
        axes.grid(axis="y", which="both", linewidth=0.3, color="#cccccc")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png.getvalue()


def _labels(result: dict[str, Any]) -> dict[str, str]:
    """Of all contestants that were measured anywhere, ours first."""
    found = {
        name: row["label"]
        for case in result["cases"]
        for name, row in case["rows"].items()
        if "median_ms" in row
    }
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("ours")))


def _short(network: str) -> str:
    return "_".join(network.split("_")[:2])
