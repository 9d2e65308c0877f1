"""CUDA kernels by their default schedules, emulated, equal the reference and have no race.

Attention and LayerNorm have files of their own.
"""

import numpy as np
import pytest

import graphs
from operator_runner import check_emulated

# dp4a, and tensor cores.
CUDA_TARGETS = ["cuda-v100", "cuda-h100"]

pytestmark = pytest.mark.parametrize("target", CUDA_TARGETS)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    "epilogue",
    [
        {"zero_point": 0},
        {},
        {"out": "s8"},
        {"out": "i16"},
        {"out": "i16", "residual": True},
        {"out": "i32"},
        {"activation": "igelu"},
        {"activation": "shiftgelu"},
    ],
    ids=str,
)
def test_linear(target, epilogue, extreme):
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 49, 96, 64, extreme=extreme, **epilogue)
    check_emulated(case, target, case.inputs(rng, 2, extreme))


@pytest.mark.parametrize(
    ("rows", "k", "n"), [(64, 48, 96), (1, 64, 10), (3, 33, 5), (197, 32, 21), (8, 512, 40)]
)
def test_linear_shapes(target, rows, k, n):
    rng = np.random.default_rng(1)
    case = graphs.random_linear(rng, rows, k, n, zero_point=0)
    check_emulated(case, target, case.inputs(rng, 1))


def test_small_operators(target):
    rng = np.random.default_rng(4)
    for case in (
        graphs.patchify_case(24, 16, 4),
        graphs.random_mean_pool(rng, 49, 72),
        graphs.random_gather_rows(rng, 20, 24, 9),
        graphs.random_add_constant(rng, 16, 40),
    ):
        check_emulated(case, target, case.inputs(rng, 2))
