"""Logs when a job ends: only workloads with records stay, whenever the process is killed."""

import contextlib
import itertools
import json

import numpy as np
import pytest
import tvm_ffi
from tvm.s_tir import meta_schedule as ms

import graphs
from intswin.compile import tuning_log
from intswin.compile.targets import get_target
from intswin.compile.tuner import compaction, space
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.store import JOURNAL, Store
from intswin.compile.tuner.tasks import extract_tasks
from operator_runner import emit_operator

TARGET = get_target("llvm")
RENAMES = 4  # of a compaction that moves workloads


@pytest.fixture(scope="module")
def tasks():
    rng = np.random.default_rng(0)
    cases = [graphs.random_linear(rng, 8, 16, 16 * n, zero_point=0) for n in range(1, 7)]
    return extract_tasks([(emit_operator(case, 1, TARGET), 1) for case in cases], TARGET)


@pytest.fixture
def keys(tasks):
    return [task.key for task in tasks]


def add(store, task, count, seconds):
    for number, tile in enumerate(propose(task.shape, {}, [], count, seed=0)):
        store.add_trials(task, {tile: seconds / (number + 1)})
        schedule = space.decide(task.module, TARGET, tile)
        store.add_record(task, schedule, seconds / (number + 1))


@pytest.fixture
def folder(tmp_path, tasks):
    """The log of a job that was killed: one to five records of each of six workloads."""
    store = Store(tmp_path, TARGET)
    for number, task in enumerate(tasks):
        add(store, task, min(number + 1, 5), 1e-3)
    store.close()
    return tmp_path


def meaning(folder):
    """Times and traces by workload as the compiler reads them; TVM has to read the same ones."""
    log = tuning_log.read_log(folder)
    assert not log.broken
    files = [str(folder / name) for name in (tuning_log.WORKLOADS, tuning_log.RECORDS)]
    by_tvm = {}
    for record in ms.database.JSONDatabase(*files).get_all_tuning_records():
        key = str(tvm_ffi.structural_hash(record.workload.mod) % 2**64)
        by_tvm.setdefault(key, []).append(float(record.run_secs[0]))
    for key, records in log.records.items():
        assert sorted(by_tvm[key]) == pytest.approx([record.seconds for record in records])
    assert by_tvm.keys() == log.records.keys()
    return {key: [(r.seconds, r.trace) for r in found] for key, found in log.records.items()}


def contents(folder):
    return [(folder / name).read_bytes() for name in (tuning_log.WORKLOADS, tuning_log.RECORDS)]


def stored_keys(folder):
    return [json.loads(line)[0] for line in tuning_log.read_lines(folder / tuning_log.WORKLOADS)]


def stop_after(monkeypatch, renames):
    """Make the next compaction stop when it has replaced so many files."""
    replaced = itertools.count()

    def write_file(path, data):
        if next(replaced) == renames:
            raise KeyboardInterrupt
        path.write_bytes(data)

    monkeypatch.setattr(compaction, "write_file", write_file)


def test_only_workloads_with_records_stay(folder, keys):
    before, lines = meaning(folder), (folder / tuning_log.WORKLOADS).read_text().splitlines()
    assert [len(before[key]) for key in keys] == [1, 2, 3, 4, 5, 5]
    compaction.compact(folder, [keys[0], keys[2]])
    kept = [keys[n] for n in (1, 3, 4, 5)]
    assert meaning(folder) == {key: before[key][: compaction.BEST_RECORDS] for key in kept}
    assert sorted(stored_keys(folder)) == sorted(kept)
    assert set((folder / tuning_log.WORKLOADS).read_text().splitlines()) < set(lines)


def test_a_second_time_changes_nothing(folder, keys):
    compaction.compact(folder, keys[:2])
    before = [path.stat().st_ino for path in sorted(folder.iterdir())]
    compaction.compact(folder, [])
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == before


@pytest.mark.parametrize("renames", range(RENAMES + 1))
def test_killed_between_renames(folder, tasks, keys, monkeypatch, renames):
    """Nothing that is kept is lost or mistaken; the next job adds to it and finishes the work."""
    before, kept = meaning(folder), [keys[n] for n in (1, 3, 5)]
    best = {key: before[key][: compaction.BEST_RECORDS] for key in kept}
    with monkeypatch.context() as patch:
        stop_after(patch, renames)
        with pytest.raises(KeyboardInterrupt) if renames < RENAMES else contextlib.nullcontext():
            compaction.compact(folder, set(keys) - set(kept))
    assert meaning(folder) == (best if renames else before)

    store = Store(folder, TARGET)
    for task in (tasks[0], tasks[5]):  # one that went, and one that was moved
        add(store, task, 1, 1e-6)
    store.forget(set(keys) - {keys[0], *kept})
    store.close()
    after = meaning(folder)
    assert sorted(stored_keys(folder)) == sorted(after) == sorted([keys[0], *kept])
    assert after[keys[0]][0][0] == after[keys[5]][0][0] == 1e-6
    assert after[keys[5]][1:] == best[keys[5]][:-1]
    assert [after[key] for key in kept[:2]] == [best[key] for key in kept[:2]]


def test_broken_lines_go_without_their_neighbours(folder, keys):
    before = meaning(folder)
    for name in (tuning_log.WORKLOADS, tuning_log.RECORDS):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(["torn", *lines[1:], lines[0][:40]]))
    compaction.compact(folder, [])
    others = {key: before[key][: compaction.BEST_RECORDS] for key in keys[1:]}
    assert meaning(folder) == others
    assert sorted(stored_keys(folder)) == sorted(others)


def test_records_are_added_behind_a_compaction(folder, tasks, keys):
    store = Store(folder, TARGET)
    store.forget(keys[1:5])
    for task in tasks[1:3]:
        add(store, task, 1, 1e-6)
    store.close()
    assert meaning(folder).keys() == {keys[n] for n in (0, 1, 2, 5)}


def test_everything_is_dropped_but_the_trials(folder, keys):
    journal = (folder / JOURNAL).read_bytes()
    store = Store(folder, TARGET)
    store.forget(keys)
    store.close()
    assert contents(folder) == [b"", b""]
    assert (folder / JOURNAL).read_bytes() == journal
    again = Store(folder, TARGET)
    again.close()
    assert again.trials == store.trials
    assert again.trials.keys() == set(keys)


@pytest.mark.parametrize("name", [tuning_log.WORKLOADS, tuning_log.RECORDS])
def test_a_reader_meanwhile(folder, keys, monkeypatch, name):
    """A compaction when the reader has read only one of the two files is noticed."""
    read_lines = tuning_log.read_lines
    pending = [keys[:3]]

    def read_slowly(path):
        lines = read_lines(path)
        if path.name == name and pending:
            compaction.compact(folder, pending.pop())
        return lines

    before = meaning(folder)
    monkeypatch.setattr(tuning_log, "read_lines", read_slowly)
    log = tuning_log.read_log(folder)
    assert not log.broken
    found = {key: [(r.seconds, r.trace) for r in records] for key, records in log.records.items()}
    assert found == {key: before[key][: compaction.BEST_RECORDS] for key in keys[3:]}


def test_no_log_is_made(tmp_path):
    assert compaction.compact(tmp_path, []) == {}
    assert list(tmp_path.iterdir()) == []
