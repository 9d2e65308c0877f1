"""Operators joined with their times, and the CPU's measured limits."""

import numpy as np
import pytest

from intswin.compile import cpu_peak, operator_profile
from intswin.compile.cpu_peak import CpuPeak
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph, Node, TensorSpec
from norm_linear import random_norm_linear
from norm_mlp import random_norm_mlp

PEAK = CpuPeak("vpdpbusd zmm", 1000.0, 20.0, 200.0)


@pytest.fixture
def graph():
    def linear(name, source, out):
        tensors = {"weight": np.zeros((16, 16), np.int8)}
        attrs = {"out": "u8", "activation": "none"}
        return Node(name, "linear", [source], tensors, attrs, TensorSpec(out, "uint8", 1.0))

    rows = np.arange(98, dtype=np.int32).reshape(2, 49)
    return IntegerGraph(
        TensorSpec((98, 16), "uint8", 1.0),
        [
            linear("linear_0", "image", (98, 16)),
            linear("linear_1", "linear_0", (98, 16)),
            Node(
                "attention_0",
                "attention",
                ["linear_1"],
                {"rows": rows},
                {"heads": 1, "d": 16},
                TensorSpec((98, 16), "uint8", 1.0),
            ),
        ],
    )


def runs(*microseconds):
    kernels = [("linear", microseconds[0]), ("linear", microseconds[1]), ("att", microseconds[2])]
    timed = [(name, 1e-6 * us) for name, us in kernels]
    return [[("vm.builtin.alloc_storage", 1.0), *timed]] * 3


def test_layers_of_one_shape_are_one_row(graph):
    attention, linear = operator_profile.profile(graph, 2, runs(10, 20, 50))
    assert (linear.layers, attention.layers) == (2, 1)
    assert linear.us == pytest.approx(30)
    assert linear.operations == 2 * (2 * 2 * 98 * 16 * 16)
    assert linear.bytes == 2 * (2 * 98 * 16 * 2 + 16 * 16)
    # q k^T and p v, in two windows of 49 tokens, for two images
    assert attention.operations == 2 * 2 * (2 * 2 * 49 * 49 * 16)
    assert linear.gops == pytest.approx(linear.operations / 30e-6 / 1e9)


def test_an_mlp():
    case, _ = random_norm_mlp(np.random.default_rng(0), 49, 32, 64, activation="igelu")
    graph = IntegerGraph(case.specs[0], [case.node], "x")
    (row,) = operator_profile.profile(graph, 2, [[("norm_mlp", 1e-5)]])
    assert row.what == "layer_norm, MLP 49x32 -> 64 igelu -> 32 i16 + residual"
    assert row.operations == 2 * 2 * (2 * 49 * 32 * 64)


def test_a_layer_norm_within_a_gemm():
    """What it normalises is neither written nor read; its constants are."""
    case, *_ = random_norm_linear(np.random.default_rng(0), 49, 32, 64, group=4)
    graph = IntegerGraph(case.specs[0], [case.node], "x")
    (row,) = operator_profile.profile(graph, 2, [[("norm_linear", 1e-5)]])
    assert (row.op, row.what) == ("norm_linear", "layer_norm, linear 49x128 -> 64 u8")
    assert row.operations == 2 * (2 * 49 * 128 * 64)
    read, written = 4 * 49 * 32 * 2, 49 * 64
    norm = 2 * 4 * 128 + 8 + 4 * 4 * 49  # gamma and beta, eps, rows
    gemm = 64 * 128 + 3 * 4 * 64  # weight; bias, pre and mult
    assert row.bytes == 2 * (read + written) + norm + gemm


def test_other_kernels_than_operators_are_refused(graph):
    with pytest.raises(IntswinError, match="1 kernels for 3 operators"):
        operator_profile.profile(graph, 1, [[("linear", 1e-6)]])


def test_table_and_roofline(graph):
    rows = operator_profile.profile(graph, 1, runs(10, 20, 50))
    table = operator_profile.table("network", rows, PEAK)
    assert table.row_count == len(rows) + 1
    assert list(table.columns[3].cells)[-1] == "100.0"
    assert operator_profile.roofline("network", rows, PEAK).startswith(b"\x89PNG")


def test_peak_is_that_of_a_cpu():
    peak = cpu_peak.measure(1)
    assert 5 < peak.gops < 10_000
    assert 0.5 < peak.memory_gbs < 1000
    assert peak.cache_gbs > 0.5 * peak.memory_gbs


def test_missing_compiler_is_told(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(IntswinError, match="install gcc"):
        cpu_peak.measure(1)
