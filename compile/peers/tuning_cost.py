"""What tuning a network costs, from nothing and on a log that has all of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from intswin.compile.peers.coordinator import Progress
from intswin.compile.targets import get_target
from intswin.compile.tune import TuneOptions, read_networks, tune
from intswin.compile.tuner.store import Store


def measure(
    networks: Iterable[str], trials: int, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Tune each network with ReLU at batch 1, twice: the second time there is nothing left to do.

    Args:
        networks: of the pipeline.
        trials: of each kernel.
        folder: gets the logs; those of an earlier measurement are deleted.
        progress: is given one line a network.
    """
    found = []
    for network in networks:
        progress(f"tuning {network}")
        logs = folder / network
        shutil.rmtree(logs, ignore_errors=True)
        options = TuneOptions(networks=(network,), trials=trials, logs=logs)
        console = Console(quiet=True)
        graphs = read_networks(options, console)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            log_folder = tune(options, console, graphs)
            seconds.append(round(time.monotonic() - start, 1))
        store = Store(log_folder, get_target(options.target))
        store.close()
        found.append(
            {
                "network": network,
                "kernels": len(store.trials),
                "trials": sum(map(len, store.trials.values())),
                "faster_kernels": len(store.log.records),
                "from_nothing_seconds": seconds[0],
                "from_log_seconds": seconds[1],
            }
        )
    return found


def table(result: list[dict[str, Any]]) -> Table:
    """A line for each network."""
    shown = Table(
        "network", "kernels", "trials", "faster than by default", "from nothing s", "from a log s",
        title="tuning, ReLU, batch 1",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in result:
        shown.add_row(*(str(value) for value in row.values()))
    return shown
