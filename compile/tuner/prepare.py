"""Build candidates ahead, on a machine that cannot measure them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from tvm.target import Target

from intswin.compile.tuner import worker
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.state import State, hints_for

# The limit of a candidate: what the machine has to do beside must not make one fail for good.
_BUILD_SECONDS = 120.0


def next_candidates(states: Iterable[State], builds: Builds, seed: int) -> list[tuple[State, Tile]]:
    """What is not built of every kernel's next batch, and of what it is compared with.

    Most urgent kernels come first; those that have their trials are left out.
    """
    every = list(states)
    wanted = []
    for state in sorted(filter(lambda s: s.urgency, every), key=lambda s: -s.urgency):
        tiles = dict.fromkeys(state.missing() + state.proposals(hints_for(state, every), seed))
        wanted += [(state, t) for t in tiles if builds.get(state.task, t) is None]
    return wanted


def prepare(
    wanted: list[tuple[State, Tile]],
    target: Target,
    builds: Builds,
    jobs: int,
    deadline: float,
    console: Console,
) -> None:
    """Build candidates.

    Args:
        wanted: tiles of kernels, those of one kernel together.
        target: of the code.
        builds: get the candidates.
        jobs: candidates that are built at a time.
        deadline: by time.monotonic(); what is not built by then is left for the next run.
        console: shows the progress.
    """
    last = dict(wanted)  # the last tile of each kernel
    console.print(f"{len(wanted)} candidates of {len(last)} kernels to build, {jobs} at a time")
    pool, start, failed = Pool(jobs), time.monotonic(), 0
    try:
        with tempfile.TemporaryDirectory(prefix="intswin-build-") as scratch:
            results = pool.results(
                _BUILD_SECONDS, worker.build, _arguments(wanted, target, Path(scratch))
            )
            with Progress(console=console) as progress:
                bar = progress.add_task("built", total=len(wanted))
                for done, ((state, tile), built) in enumerate(
                    zip(wanted, results, strict=True), start=1
                ):
                    builds.add(state.task, tile, built)
                    failed += isinstance(built, WorkerError)
                    if isinstance(built, str):
                        Path(built).unlink()
                    progress.advance(bar)
                    speed = 60 * done / (time.monotonic() - start)
                    if tile == last[state]:
                        console.print(
                            f"{state.row.name}: {done}/{len(wanted)} built, {failed} failed, "
                            f"{speed:.0f} a minute",
                            soft_wrap=True,
                        )
                    if time.monotonic() > deadline:
                        console.print(f"out of time: {done}/{len(wanted)} built, {failed} failed")
                        break
    finally:
        pool.close()


def _arguments(
    wanted: list[tuple[State, Tile]], target: Target, scratch: Path
) -> list[tuple[str, str, Tile, str]]:
    workloads = {state: state.task.workload_json for state, _ in wanted}
    return [
        (workloads[state], str(target), tile, str(scratch / f"{number}.so"))
        for number, (state, tile) in enumerate(wanted)
    ]
