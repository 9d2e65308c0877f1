"""The report of `intswin bench`: tables for the terminal, JSON, and a bar chart."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from intswin.models.files import write_file

LABELS = {
    "relu": "int8 ReLU",
    "igelu": "int8 i-GELU",
    "shiftgelu": "int8 ShiftGELU",
    "float": "float32 GELU, TVM",
    "torch": "float32 GELU, PyTorch eager",
}
KERNELS_SHOWN = 20


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """One table of the variants, and one of kernels for each variant that was profiled."""
    title = (
        f"{result['network']}, batch {result['batch']}, {result['target']}, "
        f"{result['threads']} threads, {result['cpu']}"
    )
    table = Table(
        "variant", "median ms", "p95 ms", "images/s", f"time / {result['ratio_to']}", title=title
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result["variants"].items():
        table.add_row(
            LABELS[name],
            f"{row['median_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['images_per_s']:.1f}",
            f"{row['ratio']:.2f}",
        )
    yield table
    for name, kernels in result.get("kernels_ms", {}).items():
        yield _kernel_table(LABELS[name], kernels)


def write(result: dict[str, Any], path: Path) -> list[Path]:
    """Write the JSON to `path` and a bar chart beside it.

    Raises:
        IntswinError: they cannot be written.
    """
    return [
        write_file(path, json.dumps(result, indent=1).encode()),
        write_file(path.with_suffix(".png"), _chart(result)),
    ]


def _kernel_table(label: str, kernels: dict[str, float]) -> Table:
    total = sum(kernels.values())
    table = Table("kernel", "ms a batch", "%", title=f"{label}: {total:.2f} ms in kernels")
    for column in table.columns[1:]:
        column.justify = "right"
    shown = list(kernels.items())[:KERNELS_SHOWN]
    for name, milliseconds in shown:
        table.add_row(name, f"{milliseconds:.3f}", f"{100 * milliseconds / total:.1f}")
    rest = len(kernels) - len(shown)
    if rest > 0:
        left = total - sum(milliseconds for _, milliseconds in shown)
        table.add_row(f"{rest} others", f"{left:.3f}", f"{100 * left / total:.1f}")
    return table


def _chart(result: dict[str, Any]) -> bytes:
    """Horizontal bars of the medians, as PNG."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = list(result["variants"])
    rows = list(result["variants"].values())
    medians = [row["median_ms"] for row in rows]
    colors = ["#2a6f97" if name == result["ratio_to"] else "#a9c5d6" for name in names]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(names)), layout="constrained")
    axes.barh(range(len(names)), medians, color=colors)
    widest = max(medians)
    for place, row in enumerate(rows):
        text = f"{row['median_ms']:.2f}  (p95 {row['p95_ms']:.2f})  {row['ratio']:.2f}x"
        axes.text(row["median_ms"] + 0.015 * widest, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.55 * widest)
    axes.set_xlabel(f"median ms a batch (95th percentile), multiple of {result['ratio_to']}")
    axes.set_title(
        f"{result['network']}, batch {result['batch']}, {result['target']}, "
        f"{result['threads']} threads\n{result['cpu']}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()
