"""The compiled LayerNorm equals the reference bit for bit."""

import numpy as np
import pytest

import graphs
from intswin.models.integer_ops import execute
from operator_runner import VECTOR_TARGETS, compile_operator


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize(
    ("rows", "channels", "group", "out", "batch"),
    [
        (784, 96, 1, "u8", 1),
        (49, 96, 4, "u8", 1),
        (50, 192, 1, "i16", 4),
        (1, 768, 1, "u8", 1),
        (7, 40, 4, "i16", 4),  # no whole vectors
    ],
)
def test_realistic(target, rows, channels, group, out, batch):
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, rows, channels, out, group=group)
    inputs = case.inputs(rng, batch)
    actual = compile_operator(case, batch, target)(*inputs)
    np.testing.assert_array_equal(actual, execute(case.node, inputs), strict=True)


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize("seed", range(4))
def test_ends_of_the_ranges(target, seed):
    rng = np.random.default_rng(seed)
    channels, out = [(16, "u8"), (96, "i16"), (48, "u8"), (1024, "i16")][seed]
    case = graphs.random_layer_norm(rng, 40, channels, out, group=4, extreme=True)
    run = compile_operator(case, 1, target)
    for _ in range(4):
        inputs = case.inputs(rng, 1, extreme=True)
        np.testing.assert_array_equal(run(*inputs), execute(case.node, inputs), strict=True)


@pytest.mark.parametrize("target", VECTOR_TARGETS)
def test_smallest_and_largest_variance(target):
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 20, 1024, "i16", group=4)
    case.node.tensors["params"][:] = 1
    x = np.full((1, 80, 1024), -32768, np.int16)
    x[0, :20] = 32767
    x[0, 20:40, ::2] = 32767  # the largest variance
    x[0, 40:60, 5] += 1  # one channel off by one
    x[0, 60:] = rng.integers(-1, 2, (20, 1024))
    case.node.tensors["rows"][:] = np.arange(80).reshape(20, 4)
    actual = compile_operator(case, 1, target)(x)
    np.testing.assert_array_equal(actual, execute(case.node, [x]), strict=True)
