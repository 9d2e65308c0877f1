"""The report of the comparison: one JSON object, a table a batch, and a bar chart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from intswin.compile.bench import summary
from intswin.compile.bench_report import OTHERS, OURS, draw_medians, figure_bytes
from intswin.compile.peers.coordinator import Entrant, Race
from intswin.models.files import write_file

BASE = "ours-relu"
_GELUS = {"ours-igelu": "igelu_to_relu", "ours-igelu-unfused": "unfused_igelu_to_relu"}
BUSY_LOAD, BUSY_CORES = 0.5, 0.1  # above them the numbers are not worth much


def batch_result(race: Race, batch: int) -> dict[str, Any]:
    """One batch as JSON: a row for each competitor, measured or not, and the conclusions."""
    measured = [entrant for entrant in race.entrants if entrant.rounds and not entrant.reason]
    names = [entrant.task.competitor.name for entrant in measured]
    base = measured[names.index(BASE) if BASE in names else 0] if measured else None
    result: dict[str, Any] = {
        "batch": batch,
        "foreign_cores": round(race.foreign_cores, 3),
        "idle_workers_cores": round(race.idle_cores, 3),
        "ratio_to": base.task.competitor.name if base else None,
        "competitors": {
            entrant.task.competitor.name: _row(entrant, base) for entrant in race.entrants
        },
    }
    return {**result, **_conclusions(result["competitors"])}


def warnings(result: dict[str, Any]) -> list[str]:
    """Why the numbers may be wrong."""
    found = []
    if result["load_before"][0] > BUSY_LOAD:
        found.append(f"the machine was busy before: load average {result['load_before'][0]:.2f}")
    for row in result["batches"]:
        if row["foreign_cores"] > BUSY_CORES:
            found.append(
                f"batch {row['batch']}: other processes used {row['foreign_cores']:.2f} cores"
            )
        if row["idle_workers_cores"] > BUSY_CORES:
            found.append(
                f"batch {row['batch']}: idle competitors used {row['idle_workers_cores']:.2f} cores"
            )
    return found


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """A table for each batch, fastest first; who was not measured is last, with the reason."""
    for part in result["batches"]:
        title = f"{result['network']}, batch {part['batch']}, {result['threads']} threads"
        table = Table(
            "competitor", "median ms", "p95 ms", "images/s", f"time / {part['ratio_to']}",
            "cosine", "SNR dB", "bit-exact", title=f"{title}, {result['cpu']}",
        )  # fmt: skip
        for column in table.columns[1:]:
            column.justify = "right"
        for row in _sorted(part):
            if "reason" in row:
                table.add_row(f"{row['label']}: not measured: {row['reason']}")
                continue
            table.add_row(
                row["label"],
                f"{row['median_ms']:.2f}",
                f"{row['p95_ms']:.2f}",
                f"{row['images_per_s']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['cosine']:.4f}",
                f"{row['snr_db']:.1f}",
                {True: "yes", None: ""}[row.get("bit_exact")],
            )
        yield table


def conclusions(result: dict[str, Any]) -> Iterator[str]:
    """One line a batch: ours against the fastest peer, ReLU against i-GELU, share of the peak."""
    for part in result["batches"]:
        if part["ratio_to"] is None:
            yield f"batch {part['batch']}: nothing was measured"
            continue
        line = []
        if "fastest_peer" in part:
            label = part["competitors"][part["fastest_peer"]]["label"]
            line.append(f"fastest peer {label} {part['fastest_peer_ratio']:.2f}x")
        if "igelu_to_relu" in part:
            line.append(f"i-GELU {part['igelu_to_relu']:.2f}x")
        if "unfused_igelu_to_relu" in part:
            line.append(f"unfused {part['unfused_igelu_to_relu']:.2f}x")
        if "peak_share" in part:
            line.append(f"{100 * part['peak_share']:.0f} % of the peak end to end")
        if line:
            yield f"batch {part['batch']}, against {part['ratio_to']}: " + "; ".join(line)


def write(result: dict[str, Any], path: Path) -> list[Path]:
    """Write the JSON to `path` and the chart beside it; IntswinError when that is impossible."""
    written = [write_file(path, json.dumps(result, indent=1).encode())]
    if any(
        "median_ms" in row for part in result["batches"] for row in part["competitors"].values()
    ):
        written.append(write_file(path.with_suffix(".png"), chart(result)))
    return written


def chart(result: dict[str, Any]) -> bytes:
    """PNG: a panel for each batch, a bar for each competitor, ours in dark."""
    panels = []
    for part in result["batches"]:
        rows = [row for row in _sorted(part) if "median_ms" in row]
        if rows:
            panels.append((part, rows))
    most = max(len(rows) for _, rows in panels)
    with figure_bytes(7.5 * len(panels), 1.6 + 0.28 * most) as (figure, png):
        for axes, (part, rows) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            colors = [OURS if row["ours"] else OTHERS for row in rows]
            draw_medians(axes, [row["label"] for row in rows], rows, colors)
            axes.set_title(f"batch {part['batch']}", fontsize=11)
            axes.set_xlabel(f"median ms a batch (95th percentile), multiple of {part['ratio_to']}")
        figure.suptitle(
            f"{result['network']}, {result['threads']} threads, {result['cpu']}", fontsize=11
        )
    return png.getvalue()


def _row(entrant: Entrant, base: Entrant | None) -> dict[str, Any]:
    competitor = entrant.task.competitor
    row: dict[str, Any] = {
        "label": competitor.label,
        "activation": competitor.activation,
        "ours": competitor.name.startswith("ours-"),
    }
    if entrant.reason or not entrant.rounds or base is None:
        return {**row, "reason": entrant.reason or "no rounds"}
    samples = [t for times in entrant.rounds for t in times]
    numbers = summary(samples, entrant.task.batch, [t for times in base.rounds for t in times])
    del numbers["samples_ms"]
    milliseconds = [1e3 * np.array(times) for times in entrant.rounds]
    return {
        **row,
        **numbers,
        "calls": len(samples),
        "round_median_ms": [round(float(np.median(t)), 4) for t in milliseconds],
        "round_min_ms": [round(float(t.min()), 4) for t in milliseconds],
        "cosine": round(entrant.cosine, 6),
        "snr_db": round(min(entrant.snr_db, 999.0), 2),
        "bit_exact": entrant.first.get("bit_exact"),
        "load_seconds": entrant.first["seconds"],
        "peak_mb": entrant.first["peak_mb"],
    }


def _conclusions(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest peer, and ReLU against i-GELU, where they were measured."""
    measured = {name: row for name, row in rows.items() if "median_ms" in row}
    peers = {name: row["median_ms"] for name, row in measured.items() if not row["ours"]}
    found: dict[str, Any] = {}
    if peers:
        found["fastest_peer"] = min(peers, key=lambda name: peers[name])
        found["fastest_peer_ratio"] = measured[found["fastest_peer"]]["ratio"]
    for name, key in _GELUS.items():
        if BASE in measured and name in measured:
            found[key] = measured[name]["ratio"]
    return found


def _sorted(part: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(part["competitors"].values(), key=lambda row: row.get("median_ms", float("inf")))
