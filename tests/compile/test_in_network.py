"""Kernels with default and with tuned schedules, timed inside a network."""

import os

import numpy as np
from tvm import tirx

import graphs
from intswin.compile import tuning_log
from intswin.compile.emit import emit
from intswin.compile.targets import get_target
from intswin.compile.tuner import in_network

TARGET = get_target("llvm")


def test_every_kernel_with_a_space_is_timed_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, "before")
    graph = graphs.tiny_swin_graph(np.random.default_rng(0))
    found = in_network.compare(graph, 2, TARGET, tmp_path)
    functions = emit(graph, 2, TARGET).functions.values()
    kernels = [f for f in functions if isinstance(f, tirx.PrimFunc) and tuning_log.is_tunable(f)]
    hashes = {tuning_log.workload_hash(tuning_log.workload_module(f)) for f in kernels}
    assert hashes
    assert {key for key, _, _ in found} == hashes
    assert all(default > 0 and tuned > 0 for _, default, tuned in found)
    assert os.environ[tuning_log.FOLDERS_VARIABLE] == "before"
