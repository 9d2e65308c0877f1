"""Tune the kernels of networks for a target and keep the results in a log: `intswin tune`.

The job works in batches. Each builds the candidates of one kernel in parallel, measures and checks
them one after the other, and appends what it found to the log, so that a job that is killed loses
the batch in flight. A schedule becomes a record only when it is measured again, in turns with the
default and with the best record, and is faster than both.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from tvm import IRModule
from tvm.target import Target

from intswin.compile import tuning_log
from intswin.compile.emit import emit
from intswin.compile.host_cpu import usable_cores
from intswin.compile.pipeline import (
    CompileOptions,
    load_calibration,
    load_float_network,
    quantize_network,
)
from intswin.compile.targets import check_versions, get_target
from intswin.compile.tuner import space
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.libraries import Libraries
from intswin.compile.tuner.machines import Machines
from intswin.compile.tuner.prepare import next_candidates, prepare
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.compile.tuner.state import BATCH, State, hints_for
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.table import Progress
from intswin.compile.tuner.tasks import Task, extract_tasks
from intswin.compile.tvm_runtime import use_all_cores
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph

_WORTH = 0.99  # of the time of what it replaces: a record has to be more than 1 % faster
_COMPARE_ROUNDS = 7
_COMPARED = 2  # candidates of a batch that are measured again
_GIVE_UP = 3.0  # times the best: a candidate that slow is not measured well


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What to tune.

    Attributes:
        networks: of the pipeline: the kernels of every combination with activations and batches.
        num_classes: None for the networks' own.
        onnx: an ONNX file instead of `networks`.
        trials: candidates of each kernel, those of earlier runs on the same log included.
        hours: after which no batch starts; None for no limit.
        logs: folder that gets a folder for the target.
        move_aside: rename a log with another fingerprint instead of refusing it.
        rpc_tracker: "host:port" of TVM's tracker, to measure on its servers.
        rpc_key: which servers.
        builds: folder of candidates built ahead: they are tried first.
        prepare: fill `builds` and measure nothing.
        built_only: try nothing else and build nothing.
        jobs: candidates that are built at a time; None: as many as there are cores.
    """

    networks: tuple[str, ...]
    activations: tuple[str, ...] = ("relu",)
    batches: tuple[int, ...] = (1,)
    num_classes: int | None = None
    onnx: Path | None = None
    target: str = "llvm"
    trials: int = 64
    hours: float | None = None
    logs: Path = Path("tuning_logs")
    move_aside: bool = False
    rpc_tracker: str | None = None
    rpc_key: str | None = None
    builds: Path | None = None
    prepare: bool = False
    built_only: bool = False
    jobs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise IntswinError(f"{self.trials} trials are not possible; use 1 or more")
        if bool(self.rpc_tracker) != bool(self.rpc_key):
            raise IntswinError("give both --rpc-tracker and --rpc-key, or none of them")
        if (self.prepare or self.built_only) and self.builds is None:
            raise IntswinError("--prepare and --built-only need a folder: --builds FOLDER")
        if self.prepare and self.built_only:
            raise IntswinError("give --prepare or --built-only, not both")
        if self.jobs is not None and self.jobs < 1:
            raise IntswinError(f"{self.jobs} jobs are not possible; use 1 or more")


def tune(
    options: TuneOptions,
    console: Console,
    networks: list[IntegerGraph] | None = None,
    emitter: Callable[[IntegerGraph, int, Target], IRModule] = emit,
) -> Path:
    """Run the job; returns the folder of the log.

    Args:
        options: the job.
        console: shows the progress.
        networks: what `read_networks` gave for these options; None: it is called.
        emitter: makes the module of a network, a batch and a target.

    Raises:
        IntswinError: the networks or the target cannot be used, or the log is refused.
    """
    deadline = (
        time.monotonic() + 3600 * options.hours if options.hours is not None else float("inf")
    )
    check_versions()
    use_all_cores()
    target = get_target(options.target)
    folder = options.logs / tuning_log.log_name(target)
    store = Store(folder, target, options.move_aside)
    try:
        if store.broken:
            console.print(f"{folder}: {store.broken} broken lines are skipped", soft_wrap=True)
        if networks is None:
            networks = read_networks(options, console)
        modules = [
            (emitter(graph, batch, target), batch)
            for graph, batch in itertools.product(networks, options.batches)
        ]
        tasks = extract_tasks(modules, target)
        run_job(tasks, target, store, options, deadline, console)
        if not options.prepare:
            store.trim()
    finally:
        store.close()
    return folder


def run_job(
    tasks: list[Task],
    target: Target,
    store: Store,
    options: TuneOptions,
    deadline: float,
    console: Console,
) -> None:
    """Tune tasks, or prepare them, until all is done or the deadline has passed.

    The deadline is one by time.monotonic().
    """
    builds = None if options.builds is None else Builds(options.builds, target)
    jobs = options.jobs or usable_cores()
    states = [State(task, target, store, options.trials) for task in tasks]
    if builds is not None and builds.broken:
        console.print(
            f"{options.builds}: {builds.broken} broken files are not used", soft_wrap=True
        )
    if builds is not None and options.prepare:
        wanted = next_candidates(states, builds, options.seed)
        prepare(wanted, target, builds, jobs, deadline, console)
        return
    if builds is not None:
        builds.check_any()
    machines = (
        Machines.behind_tracker(options.rpc_tracker, options.rpc_key)
        if options.rpc_tracker and options.rpc_key
        else Machines.local(target)
    )
    builders = Pool(jobs)
    try:
        with tempfile.TemporaryDirectory(prefix="intswin-tune-") as scratch:
            peak = None if options.rpc_tracker else machines.peak(target, Path(scratch))
            if peak:
                console.print(f"peak of the int8 instruction: {peak / 1e9:.0f} GOPS")
            libraries = Libraries(target, builds, builders, Path(scratch), options.built_only)
            job = _Job(target, store, options, builds, libraries, machines)
            with Progress([state.row for state in states], peak, deadline, console) as progress:
                while time.monotonic() < deadline:
                    state = max(states, key=lambda state: state.urgency, default=None)
                    if state is None or not state.urgency:
                        break
                    note = job.batch(state, hints_for(state, states))
                    progress.update(state.row, note)
    finally:
        builders.close()
        machines.close()


class _Job:
    """One batch after the other."""

    def __init__(
        self,
        target: Target,
        store: Store,
        options: TuneOptions,
        builds: Builds | None,
        libraries: Libraries,
        machines: Machines,
    ) -> None:
        self._target, self._store, self._options = target, store, options
        self._builds, self._libraries, self._machines = builds, libraries, machines

    def batch(self, state: State, hints: list[space.Tile]) -> str:
        """Try some candidates of a task; returns what came of it."""
        task = state.task
        tiles = self._tiles(state, hints)
        if not tiles:
            state.exhausted = True
            return "every tile was tried"
        missing = state.missing()
        built = self._libraries.get([(task, tile) for tile in missing + tiles])
        kept, libraries = built[: len(missing)], built[len(missing) :]
        if self._options.built_only and any(isinstance(one, WorkerError) for one in kept):
            state.exhausted = True
            return "what its candidates are compared with is not built"
        if not state.reference:
            state.reference = _library(kept[0], f"{task.spec.description}: the default schedule")
        if state.best is not None and not state.best_library:
            state.best_library = _library(kept[-1], f"{task.spec.description}: the best record")
        results = self._measure(state, tiles, libraries)
        self._store.add_trials(task, results)
        state.trials = self._store.trials[task.key]
        state.row.trials = len(state.trials)
        state.row.default = state.row.default or state.trials.get(state.default_tile)
        state.row.best = state.row.best or state.row.default
        failed = [reason for reason in results.values() if isinstance(reason, str)]
        note = f"{len(tiles)} tried" + (f", {len(failed)} failed ({failed[0]})" if failed else "")
        if self._improve(state, results, dict(zip(tiles, libraries, strict=True))):
            note += ", faster"
        kept_libraries = {state.reference, state.best_library}
        for library in libraries:
            if isinstance(library, str) and library not in kept_libraries:
                self._libraries.discard(library)
        return note

    def _tiles(self, state: State, hints: list[space.Tile]) -> list[space.Tile]:
        """The candidates of a batch: those built ahead, then proposals."""
        if self._builds is not None:
            built = [t for t in self._builds.tiles(state.task) if t not in state.trials]
            if built or self._options.built_only:
                return built[: min(BATCH, state.row.limit - len(state.trials))]
        return state.proposals(hints, self._options.seed)

    def _measure(
        self, state: State, tiles: list[space.Tile], libraries: list[str | WorkerError]
    ) -> dict[space.Tile, float | str]:
        """Seconds of each tile, or why there are none."""
        results: dict[space.Tile, float | str] = {
            tile: f"not built: {library}"
            for tile, library in zip(tiles, libraries, strict=True)
            if isinstance(library, WorkerError)
        }
        built = {
            tile: library
            for tile, library in zip(tiles, libraries, strict=True)
            if isinstance(library, str)
        }
        give_up = _GIVE_UP * state.row.best if state.row.best else float("inf")
        measured = self._machines.measure(
            state.task.spec, state.reference, list(built.values()), give_up
        )
        for tile, seconds in zip(built, measured, strict=True):
            results[tile] = str(seconds) if isinstance(seconds, WorkerError) else seconds
        return results

    def _improve(
        self,
        state: State,
        results: dict[space.Tile, float | str],
        libraries: dict[space.Tile, str | WorkerError],
    ) -> bool:
        """Make the fastest candidate a record if it holds against the default and the record."""
        task, row = state.task, state.row
        times = {
            tile: seconds
            for tile, seconds in results.items()
            if isinstance(seconds, float) and tile not in {state.default_tile, state.best}
        }
        if not times or not row.default:
            return False
        tiles = sorted(times, key=lambda tile: times[tile])[:_COMPARED]
        paths = [path for path in (state.reference, state.best_library) if path]
        seconds = self._machines.compare(
            task.spec, state.reference, paths + [str(libraries[t]) for t in tiles], _COMPARE_ROUNDS
        )
        if isinstance(seconds, WorkerError):
            return False
        old, new = seconds[: len(paths)], seconds[len(paths) :]
        if min(new) > _WORTH * min(old):
            return False
        tile = tiles[new.index(min(new))]
        # Records taken at different times compare by what they are relative to.
        row.best = (row.best or row.default) * min(new) / old[-1]
        schedule = space.decide(task.module, self._target, tile)
        self._store.add_record(task, schedule, row.best)
        if state.best_library:
            self._libraries.discard(state.best_library)
        state.best, state.best_library = tile, str(libraries[tile])
        return True


def _library(built: str | WorkerError, what: str) -> str:
    """The path of a library without which a task cannot go on."""
    if isinstance(built, WorkerError):
        raise IntswinError(f"{what} cannot be built: {built}")
    return built


def read_networks(options: TuneOptions, console: Console) -> list[IntegerGraph]:
    """The integer networks whose kernels are tuned, for every activation.

    Their kernels are those of the trained network whatever the calibration, so one photo will do.

    Raises:
        IntswinError: a network cannot be used.
    """
    graphs = []
    networks = (str(options.onnx),) if options.onnx else options.networks
    for network, activation in itertools.product(networks, options.activations):
        console.print(f"reading {network} {activation}")
        fields = CompileOptions(
            network=network,
            activation=activation,
            num_classes=options.num_classes,
            onnx=options.onnx,
            calibration_images=1,
        )
        loaded = load_float_network(fields)
        calibration = load_calibration(fields, loaded)
        graphs.append(quantize_network(fields, loaded, calibration).graph)
    return graphs
