"""Choose the tiles of CUDA kernels by how fast the whole network is with them.

The tuner measures a kernel behind itself. In a network it follows another one: what it loads before
its input is there then costs nothing, its weights are not in the nearer caches, and its blocks find
the multiprocessors as the kernel before leaves them. So the fastest few of a kernel's trials take
its place in a recorded network one after the other, and the one with which the whole network is
fastest becomes the kernel's only record; none where that is the default.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tvm
import tvm_ffi
from rich.console import Console
from tvm.target import Target

from intswin.compile.cuda_runtime import CudaNetwork, open_device
from intswin.compile.cuda_timing import record_graph, time_graphs
from intswin.compile.tuner import space
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.in_network import workloads
from intswin.compile.tuner.libraries import Libraries
from intswin.compile.tuner.processes import WorkerError
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.state import State
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.tasks import Task, extract_tasks
from intswin.compile.tuner.worker import load_kernel
from intswin.models.errors import IntswinError

CONTENDERS = 12  # of a kernel, with the present choice and the default
_PASSES = 3  # at most, over all kernels: what is best for one depends on its neighbours
_NOT_SLOWER = 1.5  # times the fastest trial: what is slower alone is not tried
_SAMPLE_SECONDS = 1e-3
_ROUNDS, _FINAL_ROUNDS = 11, 61
_FINALISTS = 2
_WORTH = 0.999  # of the network's time: another choice has to gain more than 0.1 %


@dataclasses.dataclass(frozen=True)
class Case:
    """A network for one batch.

    Attributes:
        name: for people.
        batch: images of a call.
        module: what `emit` makes of it.
        library: of its artifact, compiled with whatever tiles.
        metadata: of its artifact.
    """

    name: str
    batch: int
    module: tvm.IRModule
    library: bytes
    metadata: dict[str, Any]


def missing(case: Case, target: Target, store: Store, builds: Builds) -> list[tuple[State, Tile]]:
    """What `choose` compares and is not built yet."""
    tasks = extract_tasks([(case.module, case.batch)], target)
    return [
        (state, tile)
        for state in (State(task, target, store, 0) for task in tasks)
        for tile in contenders(state)
        if builds.get(state.task, tile) is None
    ]


def contenders(state: State) -> list[Tile]:
    """The tiles that are compared in a network, the present choice first; none: nothing to choose.

    What the journal knows to fail, or to be slow alone, is not among them.
    """
    times = {tile: s for tile, s in state.trials.items() if s is not None}
    limit = _NOT_SLOWER * min(times.values(), default=0.0)
    fastest = [tile for tile in sorted(times, key=lambda tile: times[tile]) if times[tile] <= limit]
    present = state.default_tile if state.best is None else state.best
    found = list(dict.fromkeys([present, state.default_tile, *fastest]))[:CONTENDERS]
    return found if len(found) > 1 else []


def choose(
    case: Case,
    target: Target,
    store: Store,
    libraries: Libraries,
    decided: dict[str, Tile],
    deadline: float,
    console: Console,
) -> None:
    """Choose the tiles of a network's kernels, those with the most work first.

    Args:
        case: the network.
        target: of this GPU.
        store: has the trials, and gets the records.
        libraries: makes the candidates.
        decided: by the hashes of their workloads, what was chosen in other networks; what is
            chosen here is added.
        deadline: by time.monotonic(); kernels whose turn has not come by then keep their records.
        console: is told what changes.

    Raises:
        IntswinError: the artifact is not of this version, or its GPU is another one.
    """
    tasks = {task.key: task for task in extract_tasks([(case.module, case.batch)], target)}
    tiles = {key: contenders(State(task, target, store, 0)) for key, task in tasks.items()}
    tiles |= {key: [decided[key]] for key in tasks if key in decided}
    paths = _paths(tasks, tiles, libraries, console)
    # All other kernels stay as the artifact has them.
    present = {key: found[0] for key, found in tiles.items() if found and found[0] in paths[key]}
    network = _Replayed(case, {key: paths[key][tile] for key, tile in present.items()})
    work = {key: tasks[key].calls * tasks[key].spec.operations for key in present}
    order = sorted(present.keys() - decided.keys(), key=lambda key: (-work[key], key))

    def improve(key: str) -> bool:
        if time.monotonic() > deadline:
            return False
        decided[key] = present[key]
        others = [tile for tile in paths[key] if tile != present[key]]
        best = network.fastest(key, [paths[key][tile] for tile in others])
        if best is None:
            return False
        tile = present[key] = decided[key] = others[best.place]
        network.replace(key, paths[key][tile])
        what = f"{tile} for {tasks[key].spec.description}"
        console.print(f"{case.name}: {100 * best.gain:.2f} % faster with {what}", soft_wrap=True)
        return True

    for _ in range(_PASSES):
        if not any([improve(key) for key in order]):  # a list: every kernel has its turn
            break
    if time.monotonic() > deadline:
        console.print(f"{case.name}: out of time")
    gain, summary = network.gain()
    console.print(f"{case.name}: {summary}", soft_wrap=True)
    if gain < 1 - _WORTH:  # what seemed faster was noise
        decided |= {key: tiles[key][0] for key in decided.keys() & present.keys()}
        return
    changed = [key for key, tile in present.items() if tile != tiles[key][0]]
    store.forget(changed)
    for key in changed:
        if present[key] == space.default_tile(tasks[key].shape):
            continue  # needs no record
        seconds = store.trials[key][present[key]]
        assert seconds is not None  # a trial that failed is no contender
        schedule = space.decide(tasks[key].module, target, present[key])
        store.add_record(tasks[key], schedule, seconds)


def _paths(
    tasks: Mapping[str, Task],
    tiles: Mapping[str, list[Tile]],
    libraries: Libraries,
    console: Console,
) -> dict[str, dict[Tile, str]]:
    """The library of each tile of a kernel, of those for which there is one."""
    wanted = [(tasks[key], tile) for key, found in tiles.items() for tile in found]
    paths: dict[str, dict[Tile, str]] = {key: {} for key in tasks}
    failed: dict[str, list[WorkerError]] = {}
    for (task, tile), library in zip(wanted, libraries.get(wanted), strict=True):
        if isinstance(library, WorkerError):
            failed.setdefault(task.spec.description, []).append(library)
        else:
            paths[task.key][tile] = library
    for name, reasons in failed.items():
        console.print(f"{name}: {len(reasons)} tiles are left out: {reasons[0]}", soft_wrap=True)
    return paths


class _Best(NamedTuple):
    """Of some libraries: its place, and the share of the network's time that it gains."""

    place: int
    gain: float


class _Replayed:
    """One call of a network, whose kernels can be replaced and launched again as a graph.

    The kernels of workloads have another shift than the network's own LayerNorms, so the logits are
    not those of the network; but whatever tiles they have, they are the same.
    """

    def __init__(self, case: Case, libraries: Mapping[str, str]) -> None:
        """Load the network and, by the hash of its workload, the library of every kernel."""
        self._cuda, _ = open_device(0)
        self._stream = self._cuda.new_stream()
        self._network = CudaNetwork(case.library, case.metadata)  # has the constants
        size = self._network.preprocess.image_size
        images = np.random.default_rng(0).integers(0, 256, (case.batch, size, size, 3), np.uint8)
        self._calls = self._network.kernel_calls(images)
        self._keys = workloads(case.module)
        if len(self._keys) != len(self._calls):
            raise IntswinError(
                f"the artifact of {case.name} is of another version of intswin: remove it"
            )
        self._name = case.name
        self._loaded: dict[str, Any] = {}
        self._present = {key: self._load(path) for key, path in libraries.items()}
        self._first = self._record(self._present)

    def replace(self, key: str, library: str) -> None:
        """Use another library for the kernels of a workload from now on."""
        self._present[key] = self._load(library)

    def fastest(self, key: str, libraries: Sequence[str]) -> _Best | None:
        """Which library for a workload makes the network faster than now; None: none of them.

        Raises:
            IntswinError: with one of them the logits are others.
        """
        if not libraries:
            return None
        graphs = [self._record({})]
        expected = self._logits(graphs[0])
        for library in libraries:
            graphs.append(self._record({key: self._load(library)}))
            if not np.array_equal(self._logits(graphs[-1]), expected):
                raise IntswinError(f"{self._name}: the logits are others with {library}")
        order = np.argsort(self._relative(graphs, _ROUNDS)[1:])[:_FINALISTS]
        finalists = [int(index) for index in order]
        relative = self._relative([graphs[0], *(graphs[1 + i] for i in finalists)], _FINAL_ROUNDS)
        for graph in graphs:
            self._cuda.free_graph(graph)
        best = int(np.argmin(relative[1:]))
        if relative[1 + best] > _WORTH:
            return None
        return _Best(finalists[best], 1 - float(relative[1 + best]))

    def gain(self) -> tuple[float, str]:
        """The share of the network's time that all choices together have gained; it in words."""
        spans = self._seconds([self._first, self._record({})], 2 * _FINAL_ROUNDS)
        before, after = 1e3 * np.median(spans, axis=1)
        gain = 1 - float(np.median(spans[1] / spans[0]))
        return gain, f"{before:.4f} -> {after:.4f} ms ({100 * gain:.2f} % faster)"

    def _load(self, library: str) -> Any:
        if library not in self._loaded:
            self._loaded[library] = load_kernel(library)
        return self._loaded[library]

    def _record(self, other: Mapping[str, Any]) -> int:
        """A graph of the network with the present kernels, but for other ones of some workloads.

        The present ones were recorded before.
        """
        kernels = {**self._present, **other}
        calls = [
            dataclasses.replace(call, function=kernels[key]) if key in kernels else call
            for call, key in zip(self._calls, self._keys, strict=True)
        ]
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), self._stream):
            for call, key in zip(calls, self._keys, strict=True):
                if key in other:  # loads its code, which cannot be done while a graph is recorded
                    call()
            return record_graph(self._cuda, self._stream, calls)

    def _logits(self, graph: int) -> np.ndarray:
        self._cuda.launch_graph(graph, self._stream)
        logits = np.empty((self._network.batch, len(self._network.classes)), np.int32)
        address = self._calls[-1].arguments[-1].data_ptr()
        self._cuda.copy_out(logits.ctypes.data, address, logits.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        return logits

    def _relative(self, graphs: Sequence[int], rounds: int) -> np.ndarray:
        """Seconds of each graph as a share of those of the first one in the same round."""
        spans = self._seconds(graphs, rounds)
        return np.median(spans / spans[0], axis=1)

    def _seconds(self, graphs: Sequence[int], rounds: int) -> np.ndarray:
        """Of a replay: (graphs, rounds)."""
        (first,) = time_graphs(self._cuda, self._stream, graphs[:1], 2, 3)
        replays = max(1, round(_SAMPLE_SECONDS / float(np.median(first))))
        return np.array(time_graphs(self._cuda, self._stream, graphs, replays, rounds))
