"""How long 32 candidates of an int8 GEMM take: MetaSchedule's own builder and runner, and ours.

Ours also checks what each candidate computes. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from intswin.compile.bench import machine_conditions
from intswin.compile.emit import emit
from intswin.compile.host_cpu import usable_cores
from intswin.compile.targets import get_target
from intswin.compile.tune import TuneOptions, read_networks
from intswin.compile.tuner import space, worker
from intswin.compile.tuner.libraries import BUILD_SECONDS
from intswin.compile.tuner.machines import RUN_SECONDS, Machines
from intswin.compile.tuner.processes import Pool
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.tasks import Task, extract_tasks
from intswin.models.command import script_command
from intswin.models.errors import IntswinError, run_script
from intswin.models.files import check_writable, write_file


def main() -> None:
    """Parse the flags, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="swin_micro", help="whose largest GEMM is taken")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("docs/results/tuner_throughput.json"))
    arguments = parser.parse_args()
    check_writable(arguments.output)
    console = Console(highlight=False)
    target = get_target("llvm")
    networks = read_networks(TuneOptions(networks=(arguments.network,)), console)
    tasks = extract_tasks([(emit(networks[0], 1, target), 1)], target)
    task = max(tasks, key=lambda task: task.spec.operations)
    tiles = propose(task.shape, {}, [], arguments.candidates, 0)
    console.print("MetaSchedule's builder and runner")
    rows = [{"who": "MetaSchedule", **_stock(task, tiles, target)}]
    builders, machines = Pool(usable_cores()), Machines.local(target)
    try:
        for batch in ("first batch", "next batch"):  # the first one starts the processes
            console.print(f"intswin, {batch}")
            ours = _ours(task, tiles, target, builders, machines)
            rows.append({"who": f"intswin, {batch}", **ours})
    finally:
        builders.close()
        machines.close()
    result = {
        **machine_conditions(),
        "command": script_command(),
        "kernel": task.spec.description,
        "rows": rows,
    }
    console.print(str(write_file(arguments.output, json.dumps(result, indent=1).encode())))
    console.print(_table(result))


def _stock(task: Task, tiles: list[space.Tile], target: Target) -> dict[str, Any]:
    """LocalBuilder and LocalRunner, with the time limits of ours."""
    inputs = [
        ms.builder.BuilderInput(space.decide(task.module, target, tile).mod, target)
        for tile in tiles
    ]
    start = time.monotonic()
    builder = ms.builder.LocalBuilder(max_workers=usable_cores(), timeout_sec=BUILD_SECONDS)
    built = builder.build(inputs)
    paths = [result.artifact_path for result in built if result.artifact_path is not None]
    failures = [result.error_msg for result in built if result.error_msg is not None]
    middle = time.monotonic()
    config = ms.runner.EvaluatorConfig(number=1, repeat=15, min_repeat_ms=1)
    runner = ms.runner.LocalRunner(timeout_sec=RUN_SECONDS, evaluator_config=config)
    arguments = ms.arg_info.ArgInfo.from_prim_func(task.module["main"])
    futures = runner.run([ms.runner.RunnerInput(path, "cpu", arguments) for path in paths])
    measured = [future.result().run_secs for future in futures]
    count = sum(seconds is not None for seconds in measured)
    row = _row(start, middle, len(tiles), len(paths), count)
    return {**row, "first_failure": failures[0].splitlines()[0] if failures else ""}


def _ours(
    task: Task, tiles: list[space.Tile], target: Target, builders: Pool, machines: Machines
) -> dict[str, Any]:
    """The warm workers of `intswin tune`."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        arguments = [
            (task.workload_json, str(target), tile, f"{folder}/{i}.so")
            for i, tile in enumerate([None, *tiles])
        ]
        reference, *built = builders.map(BUILD_SECONDS, worker.build, arguments)
        if not isinstance(reference, str):
            raise IntswinError(f"the default schedule cannot be built: {reference}")
        paths = [path for path in built if isinstance(path, str)]
        middle = time.monotonic()
        measured = machines.measure(task.spec, reference, paths, float("inf"))
        count = sum(isinstance(seconds, float) for seconds in measured)
        failures = [str(library) for library in built if not isinstance(library, str)]
        row = _row(start, middle, len(tiles), len(paths), count)
        return {**row, "first_failure": failures[0] if failures else ""}


def _row(start: float, middle: float, tried: int, built: int, measured: int) -> dict[str, Any]:
    end = time.monotonic()
    return {
        "candidates": tried,
        "built": built,
        "measured": measured,
        "build_seconds": round(middle - start, 2),
        "measure_seconds": round(end - middle, 2),
    }


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['kernel']}, {result['cpu']}"
    table = Table(
        "who", "candidates", "built", "measured", "build s", "measure s", "first failure",
        title=title,
    )  # fmt: skip
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in result["rows"]:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    run_script(main)
