"""The compiled LayerNorm equals the reference bit for bit."""

import numpy as np
import pytest

import graphs
from operator_runner import VECTOR_TARGETS, check_compiled


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
    check_compiled(case, batch, target, [case.inputs(rng, batch)])


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize("seed", range(4))
def test_ends_of_the_ranges(target, seed):
    rng = np.random.default_rng(seed)
    channels, out = [(16, "u8"), (96, "i16"), (48, "u8"), (1024, "i16")][seed]
    case = graphs.random_layer_norm(rng, 40, channels, out, group=4, extreme=True)
    check_compiled(case, 1, target, (case.inputs(rng, 1, extreme=True) for _ in range(4)))


@pytest.mark.parametrize("target", VECTOR_TARGETS)
def test_smallest_and_largest_variance(target):
    rng = np.random.default_rng(0)
    case, x = graphs.extreme_variances(rng, 20)
    check_compiled(case, 1, target, [[x]])
