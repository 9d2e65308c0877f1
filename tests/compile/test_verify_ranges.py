"""Interval analysis: sound, tight where it has to be, and a refusal for each thing it checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphs
from intswin.compile import operator_ranges
from intswin.compile.range_check import Check
from intswin.compile.verify_ranges import verify_ranges
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph
from intswin.models.integer_ops import execute
from intswin.models.integer_reference import run_all

EVERYTHING = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}


def swin() -> IntegerGraph:
    return graphs.tiny_swin_graph(np.random.default_rng(0), activation="igelu")


def vit() -> IntegerGraph:
    return graphs.tiny_vit_graph(np.random.default_rng(0), activation="shiftgelu")


def first(graph: IntegerGraph, op: str):
    return next(n for n in graph.nodes if n.op == op)


def analyse(case: graphs.Case) -> Check:
    """The ranges of one operator whose inputs use all of their dtypes."""
    check = Check(case.node, case.specs)
    intervals = [EVERYTHING[s.dtype] for s in case.specs]
    check.record("output", *getattr(operator_ranges, case.node.op)(check, *intervals))
    return check


def range_of(check: Check, intermediate: str) -> tuple[int, int]:
    (found,) = [(r.lo, r.hi) for r in check.ranges if r.intermediate == intermediate]
    return found


@pytest.mark.parametrize("graph", [swin(), vit()])
def test_valid_networks_pass_and_hold_what_they_compute(graph):
    ranges = verify_ranges(graph)
    assert {r.node for r in ranges} == {n.name for n in graph.nodes}
    assert all(-r.limit - 1 <= r.lo <= r.hi <= r.limit for r in ranges)
    outputs = {r.node: r for r in ranges if r.intermediate == "output"}
    rng = np.random.default_rng(1)
    images = graphs.random_array(rng, (4, *graph.input.shape), "uint8", extreme=True)
    for name, values in run_all(graph, images, checked=True).items():
        if name != graph.input_name:
            assert outputs[name].lo <= values.min() and values.max() <= outputs[name].hi


MAKERS = [
    lambda rng, extreme: graphs.random_linear(rng, 2, 9, 3, "i16", residual=True, extreme=extreme),
    lambda rng, extreme: graphs.random_linear(rng, 2, 9, 3, "i32", extreme=extreme),
    lambda rng, extreme: graphs.random_linear(rng, 2, 9, 3, activation="igelu", extreme=extreme),
    lambda rng, extreme: graphs.random_linear(
        rng, 2, 9, 3, activation="shiftgelu", extreme=extreme
    ),
    lambda rng, extreme: graphs.random_layer_norm(rng, 2, 7, "i16", extreme=extreme),
    lambda rng, extreme: graphs.random_layer_norm(rng, 2, 5, group=4, extreme=extreme),
    lambda rng, extreme: graphs.random_attention(rng, 2, 5, 2, 3, patterns=2, extreme=extreme),
    lambda rng, extreme: graphs.random_mean_pool(rng, 9, 3, extreme=extreme),
    lambda rng, extreme: graphs.random_add_constant(rng, 3, 3, extreme=extreme),
]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(MAKERS), st.booleans())
def test_bounds_hold_at_the_ends_of_the_domains(seed, make, extreme):
    """Accepted parameters overflow nowhere, and outputs lie within the bounds."""
    rng = np.random.default_rng(seed)
    case = make(rng, extreme)
    lo, hi = range_of(analyse(case), "output")
    for extreme_input in (False, True):
        y = execute(case.node, case.inputs(rng, 2, extreme_input), checked=True)
        assert lo <= y.min() and y.max() <= hi


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_bounds_of_acc_are_reached(seed):
    rng = np.random.default_rng(seed)
    case = graphs.random_linear(rng, 1, 20, 4)
    weight, bias = (case.node.tensors[name].astype(int).tolist() for name in ("weight", "bias"))
    most = [sum(255 * w for w in row if w > 0) + b for row, b in zip(weight, bias, strict=True)]
    least = [sum(255 * w for w in row if w < 0) + b for row, b in zip(weight, bias, strict=True)]
    assert range_of(analyse(case), "acc") == (min(least), max(most))


def test_one_more_than_fits_is_refused():
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 1, 4096, 2, "i32")
    case.node.tensors["weight"][:] = 127
    bias = case.node.tensors["bias"]
    bias[:] = (1 << 31) - 1 - 255 * 127 * 4096
    assert range_of(analyse(case), "acc")[1] == (1 << 31) - 1
    bias[1] += 1
    case.node.float_name = "layers.0.mlp.fc1"
    with pytest.raises(
        IntswinError, match=r"^linear \(linear, layers\.0\.mlp\.fc1\): acc can reach .*2147483648"
    ):
        analyse(case)


def test_a_sum_too_long_for_int32_is_refused_whatever_the_bias():
    """70 000 products of 255 * 127: the sum leaves int32 though the bias would bring it back."""
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 1, 70_000, 1, "i32")
    case.node.tensors["weight"][:] = 127
    case.node.tensors["bias"][:] = -(1 << 31)
    with pytest.raises(IntswinError, match=r"sum of x \* weight can reach"):
        analyse(case)


def test_relu_makes_the_next_bounds_no_wider_and_clamps_at_0():
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 1, 16, 4, zero_point=0)
    case.node.tensors["mult"] //= 4
    lo, hi = range_of(analyse(case), "output")
    assert lo == 0 and 0 < hi < 255


def test_largest_attention_and_layer_norm_fit():
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, 1, 1024, 1, 128, patterns=1)
    case.node.tensors["params"][:] = [0, 32767, 32767, 22]
    case.node.tensors["bias"][0, 0, 0, :2] = [-32768, 32767]
    check = analyse(case)
    assert range_of(check, "o") == (-128 * 255 * 1024, 127 * 255 * 1024)
    assert range_of(check, "u")[1] <= 1 << 17
    assert range_of(check, "A * out_mult + zero_point")[1] < 1 << 31
    case = graphs.random_layer_norm(rng, 1, 4096, "i16", extreme=True)
    case.node.tensors["params"][:] = (1 << 54) - 1
    check = analyse(case)
    assert range_of(check, "S1")[0] == -(1 << 27)
    assert range_of(check, "N' before sat16")[1] <= 1 << 15


def put(op: str, tensor: str, value, index=...):
    def mutate(graph: IntegerGraph) -> None:
        first(graph, op).tensors[tensor][index] = value

    return mutate


def attribute(op: str, name: str, value):
    return lambda graph: first(graph, op).attrs.update({name: value})


def retype(op: str, tensor: str, dtype: str):
    def mutate(graph: IntegerGraph) -> None:
        tensors = first(graph, op).tensors
        tensors[tensor] = tensors[tensor].astype(dtype)

    return mutate


def drop(op: str, tensor: str):
    return lambda graph: first(graph, op).tensors.pop(tensor)


def activated(index: int, value: int):
    def mutate(graph: IntegerGraph) -> None:
        node = next(n for n in graph.nodes if "act_params" in n.tensors)
        node.tensors["act_params"][index] = value

    return mutate


def merging(mutate):
    """Apply to the first patch merging."""
    return lambda graph: mutate(
        next(n for n in graph.nodes if n.op == "layer_norm" and "rows" in n.tensors)
    )


SWIN = [
    (put("linear", "bias", (1 << 31) - 1, 2), "acc can reach"),
    (put("linear", "weight", -128, (0, 0)), r"weight is in \[-128"),
    (put("linear", "pre", 25, 1), "pre is in .*25"),
    (put("linear", "pre", -1, 1), "pre is in .*-1"),
    (put("linear", "mult", 32768, 1), "mult is in .*32768"),
    (put("linear", "mult", -1, 1), "mult is in .*-1"),
    (retype("linear", "weight", "int16"), "weight is int16"),
    (retype("linear", "bias", "int64"), "bias is int64"),
    (drop("linear", "pre"), "tensors are"),
    (attribute("linear", "out", "u16"), "out is u16"),
    (attribute("linear", "activation", "relu"), "activation is relu"),
    (lambda g: first(g, "linear").attrs.pop("activation"), "attribute activation is missing"),
    (lambda g: g.nodes[4].attrs.update(frac=8), "frac is 8"),
    (lambda g: g.nodes[4].attrs.update(zero_point=1), "zero_point is in"),
    (lambda g: g.nodes[8].attrs.update(zero_point=256), "zero_point is in"),
    (activated(0, 11), r"k is in \[11"),
    (activated(0, 5), r"k is in \[5"),
    (activated(1, 1 << 16), "qb, q1, e are"),
    (activated(4, 25), "pre is in"),
    (activated(5, 32768), "mult is in"),
    (put("layer_norm", "gamma", 32768, 0), "gamma is in"),
    (put("layer_norm", "beta", 1 << 30, 0), "beta is in"),
    (put("layer_norm", "params", 0), "eps is in"),
    (put("layer_norm", "params", 1 << 54), "eps is in"),
    (attribute("layer_norm", "shift", 25), "shift is 25"),
    (attribute("layer_norm", "shift", -1), "shift is -1"),
    (attribute("layer_norm", "out", "s8"), "out is s8"),
    (retype("layer_norm", "params", "int32"), "params is int32"),
    (merging(lambda n: n.tensors["rows"].put(0, 64)), "rows is in"),
    (merging(lambda n: n.tensors["rows"].put(0, -1)), "rows is in"),
    (merging(lambda n: n.tensors.update(rows=n.tensors["rows"][:, 0])), "rows has shape"),
    (put("attention", "rows", 1, (0, 0)), "rows is not a permutation"),
    (put("attention", "pattern", 2, 0), "pattern is in"),
    (put("attention", "params", 25, 0), "pre is in"),
    (put("attention", "params", 32768, 1), "mult is in"),
    (put("attention", "params", -1, 2), "out_mult is in"),
    (put("attention", "params", 7, 3), "out_shift is in"),
    (put("attention", "params", 23, 3), "out_shift is in"),
    (retype("attention", "bias", "int32"), "bias is int32"),
    (drop("attention", "pattern"), "tensors are"),
    (drop("attention", "rows"), "rows is missing"),
    (attribute("attention", "d", 129), "d is in"),
    (attribute("attention", "heads", 2), "reads 48 channels, not 96"),
    (put("mean_pool", "params", -(1 << 31) + 1, 0), None),
    (put("mean_pool", "params", (1 << 31) - 1, 0), "acc can reach"),
    (put("mean_pool", "params", 25, 1), "pre is in"),
    (put("mean_pool", "params", -1, 2), "mult is in"),
    (attribute("patchify", "patch", 5), "do not tile"),
    (attribute("patchify", "patch", 0), "1 pixel or more"),
    (lambda g: setattr(first(g, "linear").out, "dtype", "int8"), "declared int8"),
    (lambda g: setattr(g.nodes[6].out, "shape", (64, 17)), "weight is int8"),
    (lambda g: setattr(g.nodes[5].out, "shape", (63, 16)), "the output is declared"),
    (lambda g: setattr(g.nodes[2], "inputs", ["nothing"]), r"reads \['nothing'\]"),
    (lambda g: setattr(g.nodes[2], "inputs", ["patchify_0"]), "inputs are"),
    (lambda g: setattr(g.nodes[2], "inputs", ["linear_1", "linear_1"]), "has 2 inputs"),
    (lambda g: setattr(g.nodes[6], "inputs", ["attention_5", "layer_norm_3"]), "inputs are"),
    (lambda g: setattr(g.nodes[2], "name", "image"), "another tensor of this name"),
    (lambda g: setattr(g.nodes[2], "op", "softmax"), "there is no such operator"),
    (lambda g: g.nodes.pop(), "the last operator makes uint8"),
    (lambda g: g.nodes.clear(), "no operators"),
    (lambda g: setattr(g.input, "dtype", "int16"), "the input is int16"),
    (lambda g: setattr(g.input, "shape", (32, 32)), "reads a uint8 image"),
]
VIT = [
    (put("add_constant", "constant", 1 << 30, (0, 0)), "constant is in"),
    (put("add_constant", "rows", 16, 0), "rows is in"),
    (retype("add_constant", "constant", "int64"), "constant is int64"),
    (put("gather_rows", "rows", 17), "rows is in"),
    (put("gather_rows", "rows", -1), "rows is in"),
    (activated(3, 1), "qb, q1, e are"),
]
CASES = [(swin, *case) for case in SWIN] + [(vit, *case) for case in VIT]


@pytest.mark.parametrize(("make", "mutate", "message"), CASES)
def test_each_refusal(make, mutate, message):
    graph = make()
    mutate(graph)
    if message is None:
        verify_ranges(graph)
        return
    with pytest.raises(IntswinError, match=message) as refused:
        verify_ranges(graph)
    assert "\n" not in str(refused.value)
