"""How cost grows: latency, time to compile and memory against batch, image size and network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from intswin.compile.bench import machine_conditions, summary
from intswin.compile.bench_report import OTHERS, OURS, figure_bytes
from intswin.compile.peers import coordinator
from intswin.compile.peers.benchmark import DEMO_PHOTOS
from intswin.compile.peers.competitors import OURS as OUR_COMPETITORS
from intswin.compile.peers.task import Task
from intswin.models.command import script_command


@dataclass(frozen=True)
class ScalingOptions:
    """What to measure; scripts/experiment_cpu_scaling.py says what each is."""

    networks: list[str]
    batch_network: str
    batches: list[int]
    threads: int
    rounds: int
    builders: int
    trials: int
    work: Path
    output: Path


def measure(options: ScalingOptions, progress: coordinator.Progress) -> dict[str, Any]:
    """Compile our ReLU network of each kind and time them in turns.

    Raises:
        CompetitorError: a network does not exist.
    """
    points = [(name, 1) for name in options.networks]
    points += [(options.batch_network, batch) for batch in options.batches]
    load = [round(value, 2) for value in os.getloadavg()]
    race = coordinator.run(
        [_task(options, name, batch) for name, batch in dict.fromkeys(points)],
        options.rounds,
        options.builders,
        progress,
    )
    return {
        **machine_conditions(),
        "threads": options.threads,
        "rounds": options.rounds,
        "command": script_command(),
        "load_before": load,
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "foreign_cores": round(race.foreign_cores, 3),
        "batch_network": options.batch_network,
        "points": [_point(entrant) for entrant in race.entrants],
    }


def table(result: dict[str, Any]) -> Table:
    """A line for each network and batch."""
    shown = Table(
        "network", "batch", "median ms", "p95 ms", "ms an image", "compile s", "compile MB",
        "run MB", title=f"intswin ReLU, {result['threads']} threads, {result['cpu']}",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    for point in result["points"]:
        if "reason" in point:
            shown.add_row(point["network"], str(point["batch"]), f"not measured: {point['reason']}")
            continue
        shown.add_row(
            point["network"],
            str(point["batch"]),
            f"{point['median_ms']:.2f}",
            f"{point['p95_ms']:.2f}",
            f"{point['median_ms'] / point['batch']:.2f}",
            f"{point['compile_seconds']:.1f}",
            f"{point['compile_peak_mb']:.0f}",
            f"{point['peak_mb']:.0f}",
        )
    return shown


def chart(result: dict[str, Any]) -> bytes:
    """PNG: time an image against the batch; latency, compile time and memory by network."""
    points = [point for point in result["points"] if "reason" not in point]
    by_batch = [point for point in points if point["network"] == result["batch_network"]]
    by_batch.sort(key=lambda point: point["batch"])
    networks = [point for point in points if point["batch"] == 1]
    with figure_bytes(15, 4.2) as (figure, png):
        batch_axes, *bar_axes = figure.subplots(1, 4)
        batches = [point["batch"] for point in by_batch]
        batch_axes.plot(batches, [p["median_ms"] / p["batch"] for p in by_batch], "o-", color=OURS)
        batch_axes.set_xscale("log", base=2)
        batch_axes.set_xticks(batches, [str(batch) for batch in batches])
        batch_axes.set_ylim(bottom=0)
        batch_axes.set(xlabel="batch", ylabel="ms an image")
        batch_axes.set_title(result["batch_network"], fontsize=10)
        panels = (
            ("median_ms", "latency at batch 1, ms"),
            ("compile_seconds", "time to compile, s"),
            ("compile_peak_mb", "peak memory, MB (dark: running)"),
        )
        for axes, (field, title) in zip(bar_axes, panels, strict=True):
            values = [point[field] for point in networks]
            axes.bar(range(len(values)), values, color=OTHERS)
            for place, value in enumerate(values):
                axes.text(place, value, f"{value:.4g}", ha="center", va="bottom", fontsize=8)
            labels = [point["network"].replace("_", "\n") for point in networks]
            axes.set_xticks(range(len(values)), labels, fontsize=7)
            axes.set_title(title, fontsize=10)
        bar_axes[2].bar(range(len(networks)), [p["peak_mb"] for p in networks], color=OURS)
        for axes in (batch_axes, *bar_axes):
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"intswin ReLU, {result['threads']} threads, {result['cpu']}", fontsize=11)
    return png.getvalue()


def _task(options: ScalingOptions, network: str, batch: int) -> Task:
    relu = next(c for c in OUR_COMPETITORS if c.activation == "relu")
    folder = options.work.resolve() / f"{network}_b{batch}"
    return Task(relu, network, batch, options.threads, str(folder), str(DEMO_PHOTOS))


def _point(entrant: coordinator.Entrant) -> dict[str, Any]:
    task = entrant.task
    point: dict[str, Any] = {"network": task.network, "batch": task.batch}
    if entrant.reason:
        return {**point, "reason": entrant.reason}
    samples = [t for times in entrant.rounds for t in times]
    numbers = summary(samples, task.batch)
    del numbers["samples_ms"]
    return {
        **point,
        **numbers,
        "round_median_ms": [round(1e3 * float(np.median(times)), 4) for times in entrant.rounds],
        "compile_seconds": entrant.prepared["compile_seconds"],
        "compile_peak_mb": entrant.prepared["compile_peak_mb"],
        "load_seconds": entrant.first["seconds"],
        "peak_mb": entrant.first["peak_mb"],
        "bit_exact": entrant.first["bit_exact"],
    }
