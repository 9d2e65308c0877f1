"""Tune the networks whose logs are in the repository, unattended, within a given time.

    python scripts/tune_cpu.py --minutes 12

It tunes swin_micro and swin_tiny with ReLU and i-GELU at batch 1 and 8, for this CPU and for
x86-64-v3, into tuning_logs/, and writes each folder's README. Killed or out of time, it goes on
where it stopped when it is run again. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import shlex
import sys
import time
from pathlib import Path

import tvm
import tvm_ffi
from rich.console import Console

from intswin.compile import host_cpu, tuning_log
from intswin.compile.targets import get_target
from intswin.compile.tune import TuneOptions, read_networks, tune

# The share of the time, in this order; what one target does not use goes to the next.
TARGETS = {"llvm": 0.6, "llvm-x86-64-v3": 1.0}
NETWORKS = ("swin_tiny_patch4_window7_224", "swin_micro")


def main() -> None:
    """Parse the command line and tune each target in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything together")
    parser.add_argument("--trials", type=int, default=96, help="of each kernel, at most")
    parser.add_argument("--logs", type=Path, default=Path(__file__).parents[1] / "tuning_logs")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    console = Console(highlight=False)
    job = TuneOptions(
        networks=NETWORKS,
        activations=("relu", "igelu"),
        batches=(1, 8),
        trials=options.trials,
        logs=options.logs,
    )
    networks = read_networks(job, console)
    for target, share in TARGETS.items():
        hours = max(1e-6, share * (end - time.monotonic()) / 3600)
        console.print(f"tuning for {target}")
        folder = tune(dataclasses.replace(job, target=target, hours=hours), console, networks)
        write_readme(folder, target)


def write_readme(folder: Path, target: str) -> None:
    """Say next to a log where it comes from."""
    log = tuning_log.read_log(folder)
    trials = len((folder / "journal.jsonl").read_text().splitlines())
    kept = sum(map(len, log.records.values()))
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    command = shlex.join(["python", "scripts/tune_cpu.py", *sys.argv[1:]])
    (folder / "README.md").write_text(
        f"""# Tuning log of {folder.name}

- Networks: {", ".join(NETWORKS)}; ReLU and i-GELU; batch 1 and 8; target `{target}`.
- CPU: {host_cpu.cpu_name()} ({get_target("llvm").attrs["mcpu"]}), {host_cpu.usable_cores()} cores.
- Date: {date}. Command: `{command}`.
- Versions: apache-tvm {tvm.__version__}, apache-tvm-ffi {tvm_ffi.__version__}, \
Python {platform.python_version()}.
- {trials} trials; {len(log.records)} kernels are faster than by default, with {kept} records.

The files are MetaSchedule's JSON database; docs/tuning.md says how `intswin compile` uses them.
"""
    )


if __name__ == "__main__":
    main()
