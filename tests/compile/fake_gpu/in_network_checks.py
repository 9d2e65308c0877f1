"""Tests of the choice of tiles inside a network, in an environment of the fake GPU.

Times mean nothing there, so a stand-in says how fast a graph is; all else is real.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from intswin.compile import artifact
from intswin.compile.emit import emit
from intswin.compile.targets import get_target
from intswin.compile.tuner import cuda_in_network, space
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.cuda_in_network import Case, choose, contenders
from intswin.compile.tuner.libraries import Libraries
from intswin.compile.tuner.processes import Pool
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.state import State
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.tasks import extract_tasks
from intswin.models.errors import IntswinError

TARGET = get_target("cuda-h100")
OPS = ("norm_mlp", "norm_linear")  # of the kernels that have something to choose


@pytest.fixture(scope="module")
def case():
    stored = artifact.read(Path(os.environ["FAKE_GPU_NETWORKS"]) / "cuda-h100.intswin")
    module = emit(stored.graph(), 2, TARGET)
    return Case("tiny", 2, module, stored.library, stored.metadata)


@pytest.fixture(scope="module")
def tasks(case):
    """One of each operator."""
    found = {task.spec.op: task for task in extract_tasks([(case.module, 2)], TARGET)}
    return [found[op] for op in OPS]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    pool = Pool(2)
    yield Libraries(TARGET, None, pool, tmp_path_factory.mktemp("libraries"))
    pool.close()


@pytest.fixture
def store(tmp_path, tasks):
    """Of each task the default, two that are a little slower alone, a slow one, a failed one."""
    store = Store(tmp_path / "cuda-h100", TARGET)
    for task in tasks:
        tiles = propose(task.shape, {}, [], 5, seed=0)
        results = dict(zip(tiles, (1e-6, 1.2e-6, 1.4e-6, 9e-6, "failed"), strict=True))
        store.add_trials(task, results)
    yield store
    store.close()


@pytest.fixture
def shares(monkeypatch):
    """How much of the first graph's time the graphs take: for all, the last, or both at the end."""
    found = {"first": [], "last": [], "end": []}

    def stand_in(_cuda, _stream, graphs, _replays, rounds):
        assert all(graphs)
        given = found["first"]
        if rounds == cuda_in_network._FINAL_ROUNDS:
            given = found["last"] or given
        if rounds == 2 * cuda_in_network._FINAL_ROUNDS:
            given = found["end"] or found["last"] or given
        return [[share * (1 + 0.1 * n) for n in range(rounds)] for share in given[: len(graphs)]]

    monkeypatch.setattr(cuda_in_network, "time_graphs", stand_in)
    return found


def run(case, store, libraries, decided=None, minutes=5.0):
    console = Console(highlight=False, width=200)
    decided = {} if decided is None else decided
    choose(case, TARGET, store, libraries, decided, time.monotonic() + 60 * minutes, console)
    return decided


def reopened(store):
    store.close()
    return Store(store.folder, TARGET)


def test_the_contenders(store, tasks):
    """Not what failed or is slow; the present choice comes first, the default is always there."""
    task = tasks[0]
    default, second, third, *_ = store.trials[task.key]
    assert contenders(State(task, TARGET, store, 0)) == [default, second, third]
    store.add_record(task, space.decide(task.module, TARGET, third), 1.4e-6)
    assert contenders(State(task, TARGET, reopened(store), 0)) == [third, default, second]


def test_the_fastest_in_the_network_becomes_the_only_record(case, store, tasks, libraries, shares):
    shares["first"] = [1.0, 0.98, 0.97]
    shares["last"] = [1.0, 0.96, 0.97]  # the third tile, and the second
    decided = run(case, store, libraries)
    store = reopened(store)
    for task in tasks:
        third = list(store.trials[task.key])[2]
        (record,) = store.log.records[task.key]
        assert space.tile_of_trace(record.trace, TARGET) == third == decided[task.key]
        assert record.seconds == 1.4e-6  # alone
    assert set(decided) == {task.key for task in tasks}


def test_a_gain_that_may_be_noise_changes_nothing(case, store, tasks, libraries, shares):
    shares["first"] = [1.0, 0.9995, 1.01]
    decided = run(case, store, libraries)
    assert not reopened(store).log.records
    assert decided == {task.key: space.default_tile(task.shape) for task in tasks}


def test_choices_that_together_gain_nothing_are_not_kept(case, store, tasks, libraries, shares):
    shares["first"], shares["end"] = [1.0, 0.98, 0.97], [1.0, 0.9995]
    decided = run(case, store, libraries)
    assert not reopened(store).log.records
    assert decided == {task.key: space.default_tile(task.shape) for task in tasks}


def test_where_the_default_is_fastest_there_is_no_record(case, store, tasks, libraries, shares):
    for task in tasks:
        third = list(store.trials[task.key])[2]
        store.add_record(task, space.decide(task.module, TARGET, third), 1e-7)
    store = reopened(store)
    assert len(store.log.records) == len(tasks)
    shares["first"] = [1.0, 0.9, 0.95]
    run(case, store, libraries)
    assert not reopened(store).log.records


def test_what_was_decided_elsewhere_and_what_has_no_time_stays(
    case, store, tasks, libraries, shares
):
    shares["first"] = [1.0, 0.9, 0.8]
    elsewhere = {tasks[0].key: list(store.trials[tasks[0].key])[1]}
    assert run(case, store, libraries, dict(elsewhere), minutes=-1.0) == elsewhere
    assert set(run(case, store, libraries, elsewhere)) == {task.key for task in tasks}
    assert set(reopened(store).log.records) == {tasks[1].key}


def test_a_contender_with_other_logits_is_refused(case, store, libraries, shares, monkeypatch):
    shares["first"] = [1.0, 0.9, 0.8]
    logits = iter(range(100))
    monkeypatch.setattr(
        cuda_in_network._Replayed, "_logits", lambda *_: np.full((2, 10), next(logits), np.int32)
    )
    with pytest.raises(IntswinError, match="tiny: the logits are others with"):
        run(case, store, libraries)
    assert not reopened(store).log.records


def test_an_artifact_of_another_version(case, store, libraries, monkeypatch):
    monkeypatch.setattr(cuda_in_network, "workloads", lambda _module: [""])
    with pytest.raises(IntswinError, match="artifact of tiny is of another version of intswin"):
        run(case, store, libraries)


def test_what_has_to_be_built_ahead(case, store, tasks, tmp_path):
    found = cuda_in_network.missing(case, TARGET, store, Builds(tmp_path / "builds", TARGET))
    tiles = {state.task.key: [] for state, _ in found}
    for state, tile in found:
        tiles[state.task.key].append(tile)
    assert tiles == {task.key: list(store.trials[task.key])[:3] for task in tasks}
