"""patchify, mean_pool, gather_rows and add_constant equal the reference bit for bit."""

import numpy as np
import pytest

import graphs
from operator_runner import TARGETS, check_compiled

_CASES = {
    "patchify": lambda rng, extreme: graphs.patchify_case(32, 48, 4),
    "patchify 2": lambda rng, extreme: graphs.patchify_case(6, 4, 2),
    "mean_pool": lambda rng, extreme: graphs.random_mean_pool(rng, 49, 96, extreme),
    "mean_pool odd": lambda rng, extreme: graphs.random_mean_pool(rng, 7, 21, extreme),
    "gather_rows": lambda rng, extreme: graphs.random_gather_rows(rng, 17, 24, 5),
    "gather_rows u8": lambda rng, extreme: graphs.random_gather_rows(rng, 9, 13, 1, dtype="uint8"),
    "add_constant": lambda rng, extreme: graphs.random_add_constant(rng, 16, 40, extreme),
}


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", _CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_operator(target, name, batch, extreme):
    rng = np.random.default_rng(0)
    case = _CASES[name](rng, extreme)
    check_compiled(case, batch, target, (case.inputs(rng, batch, extreme) for _ in range(3)))
