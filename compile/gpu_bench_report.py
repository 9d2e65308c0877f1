"""The report of the GPU benchmark: one table, a bar chart for each case, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from intswin.compile.bench_report import OTHERS, OURS, draw_bars, figure_bytes
from intswin.models.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 2  # side by side


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
            cells.append(_cell(row))
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
    """PNG: a panel for each network and batch, a bar of images a second for each contestant."""
    panels = []
    for case in result["cases"]:
        rows = [(name, row) for name, row in case["rows"].items() if "median_ms" in row]
        if rows:
            panels.append((case, sorted(rows, key=lambda item: item[1]["median_ms"])))
    lines = -(-len(panels) // _PANELS)
    most = max(len(rows) for _, rows in panels)
    size = 9 * min(_PANELS, len(panels)), 0.6 + lines * (0.9 + 0.28 * most)
    with figure_bytes(*size) as (figure, png):
        grid = figure.subplots(lines, min(_PANELS, len(panels)), squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for axes, (case, rows) in zip(grid.flat, panels, strict=False):
            _draw(axes, case, rows)
        figure.suptitle(f"{result['device']}, driver for CUDA {result['driver']}", fontsize=11)
    return png.getvalue()


def _draw(axes: Axes, case: dict[str, Any], rows: list[tuple[str, dict[str, Any]]]) -> None:
    speeds = [1e3 * case["batch"] / row["median_ms"] for _, row in rows]
    colors = [OURS if name.startswith("ours") else OTHERS for name, _ in rows]
    texts = [
        f"{speed:.0f}  ({row['median_ms']:.3f} ms"
        + (f", {row['ratio']:.2f}x)" if "ratio" in row else ")")
        for speed, (_, row) in zip(speeds, rows, strict=True)
    ]
    draw_bars(axes, [row["label"] for _, row in rows], speeds, texts, colors)
    axes.set_xlabel("images a second (median ms a batch, times ours ReLU)")
    axes.set_title(f"{_short(case['network'])}, batch {case['batch']}", fontsize=11)


def _cell(row: dict[str, Any]) -> str:
    if "median_ms" not in row:
        return "-"
    return f"{row['median_ms']:.3f}" + (f" ({row['ratio']:.2f})" if "ratio" in row else "")


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
