"""Latency, peak memory, time to compile and to tune against batch, image size and network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from intswin.compile.peers import coordinator, scaling, tuning_cost
from intswin.compile.peers.process import CompetitorError
from intswin.models.errors import IntswinError, run_script
from intswin.models.files import check_writable, write_file

NETWORKS = [
    "swin_micro",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window12_384",
]


def main() -> None:
    """Parse the flags, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="at batch 1")
    parser.add_argument("--batch-network", default=NETWORKS[1], help="at every batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--threads", type=int, default=coordinator.default_threads())
    parser.add_argument("--rounds", type=int, default=15, help="bursts of each")
    # One at a time: compile times are a result.
    parser.add_argument("--builders", type=int, default=1, help="compiled at the same time")
    parser.add_argument("--trials", type=int, default=32, help="of each kernel that is tuned")
    parser.add_argument("--work", type=Path, default=Path("out/scaling"), help="files to keep")
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_scaling.json"))
    options = scaling.ScalingOptions(**vars(parser.parse_args()))
    check_writable(options.output)
    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {message}", file=sys.stderr, flush=True)

    try:
        result = scaling.measure(options, progress)
    except CompetitorError as error:
        raise IntswinError(str(error)) from error
    result["tuning"] = tuning_cost.measure(
        options.networks, options.trials, options.work / "tuning", progress
    )
    stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if any("reason" not in point for point in result["points"]):
        image = options.output.with_suffix(".png")
        stdout.print(str(write_file(image, scaling.chart(result))), soft_wrap=True)
    document = json.dumps(result, indent=1).encode()
    stdout.print(str(write_file(options.output, document)), soft_wrap=True)
    stdout.print(scaling.table(result))
    stdout.print(tuning_cost.table(result["tuning"]))


if __name__ == "__main__":
    run_script(main)
