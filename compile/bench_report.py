"""The report of `intswin bench`: tables for the terminal, JSON, and a bar chart."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from intswin.models.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS = "#2a6f97", "#a9c5d6"  # bars

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
    names = list(result["variants"])
    with figure_bytes(8, 1.2 + 0.5 * len(names)) as (figure, png):
        axes = figure.subplots()
        labels = [LABELS[name] for name in names]
        colors = [OURS if name == result["ratio_to"] else OTHERS for name in names]
        draw_medians(axes, labels, list(result["variants"].values()), colors)
        axes.set_xlabel(f"median ms a batch (95th percentile), multiple of {result['ratio_to']}")
        axes.set_title(
            f"{result['network']}, batch {result['batch']}, {result['target']}, "
            f"{result['threads']} threads\n{result['cpu']}",
            fontsize=10,
        )
    return png.getvalue()


@contextlib.contextmanager
def figure_bytes(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A new figure, `width` by `height` inches, and where its PNG is when the block ends."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - it draws without a display

    figure, png = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
    yield figure, png
    figure.savefig(png, format="png", dpi=150)


def draw_medians(
    axes: Axes, labels: Sequence[str], rows: Sequence[dict[str, Any]], colors: Sequence[str]
) -> None:
    """A bar of milliseconds for each row of `bench.summary`."""
    texts = [
        f"{row['median_ms']:.2f}  (p95 {row['p95_ms']:.2f})  {row['ratio']:.2f}x" for row in rows
    ]
    draw_bars(axes, labels, [row["median_ms"] for row in rows], texts, colors)


def draw_bars(
    axes: Axes,
    labels: Sequence[str],
    lengths: Sequence[float],
    texts: Sequence[str],
    colors: Sequence[str],
) -> None:
    """Horizontal bars, the first on top, each with a text behind its end."""
    widest = max(lengths)
    axes.barh(range(len(lengths)), lengths, color=colors)
    for place, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        axes.text(length + 0.015 * widest, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(lengths)), labels)
    axes.set_ylim(len(lengths) - 0.4, -0.6)
    axes.set_xlim(0, 1.7 * widest)
    axes.spines[["top", "right"]].set_visible(False)
