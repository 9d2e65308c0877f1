"""Our integer-only network against what people would use instead, on this CPU, in turns.

The peers come with `pip install '.[compile,peers]'`; whoever is missing or fails has a row that
says why. Files and compiled kernels are kept in --work, so that a second run starts quickly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from intswin.compile.peers import benchmark, coordinator
from intswin.models.errors import run_script


def main() -> None:
    """Parse the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="swin_tiny_patch4_window7_224", help="a timm Swin")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images in one call")
    parser.add_argument("--threads", type=int, default=coordinator.default_threads())
    parser.add_argument("--rounds", type=int, default=15, help="bursts of each competitor")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of competitors' names")
    parser.add_argument("--data", type=Path, help="calibration photos; default: the demo photos")
    parser.add_argument("--profile", action="store_true", help="ours by operator, and a roofline")
    parser.add_argument("--builders", type=int, default=3, help="competitors built at a time")
    parser.add_argument("--work", type=Path, default=Path("out/peers"), help="files to keep")
    parser.add_argument("--output", type=Path, help="default: docs/results/bench_cpu_NETWORK.json")
    benchmark.run(benchmark.BenchmarkOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_script(main)
