"""The whole comparison: batches one after the other, the report written after each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from intswin.compile import artifact, cpu_peak, operator_profile
from intswin.compile.bench import INTEGER, machine_conditions
from intswin.compile.peers import coordinator, process, report, torch_float
from intswin.compile.peers.competitors import COMPETITORS, OURS, PACKAGES
from intswin.compile.peers.ours import UNTUNED, artifact_path
from intswin.compile.peers.task import SEED, Competitor, Task
from intswin.models.command import script_command
from intswin.models.errors import IntswinError
from intswin.models.files import check_writable, write_file

PROFILE_CALLS, PROFILE_TURNS = 5, 8
DEMO_PHOTOS = Path(__file__).parents[2] / "models" / "assets" / "photos"

stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure; scripts/bench_cpu.py says what each is."""

    network: str
    batch: list[int]
    threads: int
    rounds: int
    only: list[str]
    data: Path | None
    profile: bool
    builders: int
    work: Path
    output: Path | None


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure, print and write.

    Raises:
        IntswinError: nobody is chosen, or the result cannot be written.
    """
    chosen = [c for c in COMPETITORS if any(part in c.name for part in options.only)]
    if not chosen:
        names = " ".join(c.name for c in COMPETITORS)
        raise IntswinError(f"--only {' '.join(options.only)} is nobody; there are: {names}")
    path = options.output or Path(f"docs/results/bench_cpu_{options.network}.json")
    check_writable(path)
    conditions = machine_conditions(PACKAGES)
    result: dict[str, Any] = {
        "network": options.network,
        "threads": options.threads,
        "rounds": options.rounds,
        **conditions,
        "command": script_command(),
        "torch_preloads": [
            Path(file).name
            for file in torch_float.environment(options.threads)["LD_PRELOAD"].split()
        ],
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "batches": [],
    }
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((options.work / "inductor").resolve()))
    start = time.monotonic()

    def progress(message: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {message}", file=sys.stderr, flush=True)

    for batch in options.batch:
        tasks = [_task(options, competitor, batch, conditions["versions"]) for competitor in chosen]
        progress(f"batch {batch}")
        try:
            race = coordinator.run(tasks, options.rounds, options.builders, progress)
        except process.CompetitorError as error:
            raise IntswinError(f"the inputs cannot be made: {error}") from error
        result["batches"].append(report.batch_result(race, batch))
        result["load_after"] = [round(load, 2) for load in os.getloadavg()]
        result["warnings"] = report.warnings(result)
        report.write(result, path)
    if options.profile:
        _profile(options, result, path, progress)
    for warning in result["warnings"]:
        stdout.print(f"warning: {warning}", style="bold")
    for written in report.write(result, path):
        stdout.print(str(written), soft_wrap=True)
    for table in report.tables(result):
        stdout.print(table)
    for line in report.conclusions(result):
        stdout.print(line)
    return result


def _profile(
    options: BenchmarkOptions, result: dict[str, Any], path: Path, progress: coordinator.Progress
) -> None:
    """Time the kernels of ours alone on the machine; adds to `result`."""
    progress("measuring the CPU's peak")
    peak = cpu_peak.measure(options.threads)
    result["peak"] = dataclasses.asdict(peak)
    for part in result["batches"]:
        part["operators"] = {}
        tasks = [
            _task(options, competitor, part["batch"], result["versions"])
            for competitor in OURS
            # A GELU that is not fused is a kernel that the graph has no operator for.
            if competitor.activation in (*INTEGER, UNTUNED)
            and "median_ms" in part["competitors"].get(competitor.name, {})
        ]
        progress(f"timing kernels in turns, batch {part['batch']}")
        for task, runs in zip(tasks, _kernel_times(tasks), strict=True):
            competitor = task.competitor
            graph = artifact.read(artifact_path(task)).graph()
            rows = operator_profile.profile(graph, task.batch, runs)
            part["operators"][competitor.name] = operator_profile.to_json(rows)
            title = f"{competitor.label}, {options.network}, batch {task.batch}"
            if competitor.name == report.BASE:
                operations = sum(row.operations for row in rows)
                seconds = 1e-3 * part["competitors"][competitor.name]["median_ms"]
                part["peak_share"] = round(1e-9 * operations / seconds / peak.gops, 4)
                file = path.with_name(f"{path.stem}_roofline_b{task.batch}.png")
                title_long = f"{title}, {options.threads} threads, {result['cpu']}"
                write_file(file, operator_profile.roofline(title_long, rows, peak))
                stdout.print(str(file), soft_wrap=True)
            stdout.print(operator_profile.table(title, rows, peak))


def _kernel_times(tasks: Sequence[Task]) -> list[list[operator_profile.KernelTimes]]:
    """For each task, what its kernels took in each of PROFILE_TURNS * PROFILE_CALLS calls."""
    runs: list[list[operator_profile.KernelTimes]] = [[] for _ in tasks]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(process.served(task))[0] for task in tasks]
        for _ in range(PROFILE_TURNS):
            for worker, times in zip(workers, runs, strict=True):
                request = {"do": "kernels", "calls": PROFILE_CALLS}
                times.extend(worker.ask(request, coordinator.BURST_TIMEOUT)["kernels"])
                time.sleep(coordinator.PAUSE)
    return runs


def _task(
    options: BenchmarkOptions, competitor: Competitor, batch: int, versions: dict[str, str]
) -> Task:
    """The folder's name has a digest of what its files depend on."""
    data = str((options.data or DEMO_PHOTOS).resolve())
    depends = json.dumps([versions, data, SEED], sort_keys=True).encode()
    digest = hashlib.sha256(depends).hexdigest()[:8]
    folder = options.work.resolve() / f"{options.network}_b{batch}_{digest}"
    return Task(competitor, options.network, batch, options.threads, str(folder), data)
