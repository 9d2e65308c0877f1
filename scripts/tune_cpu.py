"""Tune the networks whose logs are in the repository, unattended, within a given time.

    python scripts/tune_cpu.py --minutes 12
    python scripts/tune_cpu.py --in-network llvm
    python scripts/tune_cpu.py --check

It tunes swin_micro and swin_tiny with ReLU and i-GELU at batch 1 and 8, for this CPU and for
x86-64-v3, and the GEMMs before an i-GELU in a kernel of its own, which bench_cpu.py compares with,
into tuning_logs/, and writes each folder's README. Killed or out of time, it goes on
where it stopped when it is run again. Nothing else should run on the machine meanwhile. With
--check it compiles all of these networks with the logs and compares them with the NumPy reference;
with --in-network it drops the records of a target that do not make a kernel faster in its networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import tvm
from rich.console import Console
from tvm import relax

from intswin.compile import host_cpu, tuning_log
from intswin.compile.build import build
from intswin.compile.emit import emit
from intswin.compile.separate_gelu import emit_separate
from intswin.compile.targets import get_target
from intswin.compile.tune import TuneOptions, read_networks, tune
from intswin.compile.tuner import in_network
from intswin.compile.tuner.log_readme import write_log_readme
from intswin.compile.tuner.store import Store
from intswin.models import integer_reference
from intswin.models.errors import run_script
from intswin.models.integer_graph import IntegerGraph

# The share of the time, in this order; what one target does not use goes to the next.
TARGETS = {"llvm": 0.6, "llvm-x86-64-v3": 1.0}
NETWORKS = ("swin_tiny_patch4_window7_224", "swin_micro")
ACTIVATIONS = ("relu", "igelu")
NAMES = [" ".join(pair) for pair in itertools.product(NETWORKS, ACTIVATIONS)]
UNFUSED = functools.partial(emit_separate, kind="igelu")


def main() -> None:
    """Parse the command line and tune each target in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything together")
    parser.add_argument("--trials", type=int, default=96, help="of each kernel, at most")
    parser.add_argument("--logs", type=Path, default=Path(__file__).parents[1] / "tuning_logs")
    parser.add_argument("--check", action="store_true", help="tune nothing, check the networks")
    parser.add_argument("--in-network", choices=TARGETS, help="tune nothing, drop records")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    console = Console(highlight=False)
    job = TuneOptions(
        networks=NETWORKS,
        activations=ACTIVATIONS,
        batches=(1, 8),
        trials=options.trials,
        logs=options.logs,
    )
    networks = read_networks(job, console)
    if options.check:
        sys.exit(0 if check(networks, job.batches, options.logs) else 1)
    if options.in_network:
        folder = drop_slower(networks, job.batches, options.in_network, options.logs)
        write_readme(folder, options.in_network)
        return
    for target, share in TARGETS.items():
        hours = max(0.0, share * (end - time.monotonic()) / 3600)
        console.print(f"tuning for {target}")
        tune(dataclasses.replace(job, target=target, hours=hours), console, networks)
        hours = max(0.0, share * (end - time.monotonic()) / 3600)
        separate = dataclasses.replace(job, target=target, hours=hours)
        gelus = [graph for graph, name in zip(networks, NAMES, strict=True) if "igelu" in name]
        folder = tune(separate, console, gelus, UNFUSED)
        write_readme(folder, target)


def check(networks: list[IntegerGraph], batches: tuple[int, ...], logs: Path) -> bool:
    """Whether all compiled networks equal the reference bit for bit; prints a line for each."""
    os.environ[tuning_log.FOLDERS_VARIABLE] = str(logs)
    rng = np.random.default_rng(0)
    exact = True
    for graph, name in zip(networks, NAMES, strict=True):
        shape = graph.input.shape
        images = rng.integers(0, 256, (max(batches), *shape), np.uint8)
        expected = integer_reference.run(graph, images)
        emitters = {name: emit, **({f"{name}, unfused": UNFUSED} if "igelu" in name else {})}
        for target_name, batch, label in itertools.product(TARGETS, batches, emitters):
            target = get_target(target_name)
            mod = emitters[label](graph, batch, target)
            tuned = tuning_log.apply_tuned_schedules(mod, target)
            changed = sum(not func.same_as(mod[gvar]) for gvar, func in tuned.functions.items())
            machine = relax.VirtualMachine(build(mod, target), tvm.cpu())
            actual = machine["main"](tvm.runtime.tensor(images[:batch])).numpy()
            equal = np.array_equal(actual, expected[:batch])
            exact &= equal
            verdict = "bit-exact" if equal else "DIFFERENT"
            print(f"{label} {target_name} batch {batch}: {changed} tuned kernels, {verdict}")
    return exact


def drop_slower(
    networks: list[IntegerGraph], batches: tuple[int, ...], target_name: str, logs: Path
) -> Path:
    """Drop the records that are not faster than the default inside the networks; the log."""
    target = get_target(target_name)
    slowdown: dict[str, float] = defaultdict(float)  # seconds that tuned schedules add
    for (graph, name), batch in itertools.product(zip(networks, NAMES, strict=True), batches):
        found = in_network.compare(graph, batch, target, logs)
        _, default, tuned = zip(*found, strict=True)
        milliseconds = f"{1e3 * sum(default):.2f} ms by default, {1e3 * sum(tuned):.2f} ms tuned"
        print(f"{name} batch {batch}: GEMMs {milliseconds}")
        for key, before, after in found:
            slowdown[key] += after - before
    folder = logs / tuning_log.log_name(target)
    store = Store(folder, target)
    slower = {
        key: seconds
        for key, seconds in slowdown.items()
        if seconds >= 0 and key in store.log.records
    }
    store.forget(slower)
    store.close()
    count = f"{len(slower)} of {len(store.log.records)} kernels"
    print(f"dropped the records of {count}; they cost {1e3 * sum(slower.values()):.2f} ms")
    return folder


def write_readme(folder: Path, target: str) -> None:
    """Say next to a log where it comes from."""
    tuned = (
        f"{', '.join(NETWORKS)}; ReLU, i-GELU and i-GELU in a kernel of its own; "
        f"batch 1 and 8; target `{target}`"
    )
    cpu = f"{host_cpu.cpu_name()} ({get_target('llvm').attrs['mcpu']})"
    write_log_readme(folder, tuned, f"CPU: {cpu}, {host_cpu.usable_cores()} cores")


if __name__ == "__main__":
    run_script(main)
