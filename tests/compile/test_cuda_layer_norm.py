"""CUDA LayerNorm, emulated, equals the reference bit for bit."""

import math

import numpy as np
import pytest

import graphs
from cuda_emulator import emulate
from intswin.compile.schedules.cuda_layer_norm import layer_norm_kernel
from intswin.compile.schedules.cuda_layer_norm_space import LayerNormTile, candidates, default_tile
from intswin.compile.schedules.layer_norm import LayerNormShape
from intswin.compile.targets import get_target
from intswin.models.integer_ops import execute
from operator_runner import check_emulated

TARGET = "cuda-h100"  # the kernel is the same for all; pack_u8 and pack_s16 are not


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    ("rows", "channels", "group", "out", "batch"),
    [
        (49, 32, 1, "u8", 1),
        (49, 96, 1, "u8", 2),
        (9, 192, 1, "i16", 1),
        (5, 384, 4, "u8", 1),
        (3, 768, 1, "u8", 1),
        (7, 40, 4, "i16", 2),
        (7, 20, 1, "u8", 1),  # vectors of 4, 2 and 1 channels
        (5, 6, 1, "i16", 1),
        (5, 7, 1, "u8", 1),
        (2, 1, 1, "u8", 1),
    ],
)
def test_shapes(rows, channels, group, out, batch, extreme):
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, rows, channels, out, group=group, extreme=extreme)
    check_emulated(case, TARGET, case.inputs(rng, batch, extreme))


def test_volta():
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 10, 96, "u8")
    check_emulated(case, "cuda-v100", case.inputs(rng))


def test_smallest_and_largest_variance():
    rng = np.random.default_rng(0)
    case, x = graphs.extreme_variances(rng, 4)
    check_emulated(case, TARGET, [x])


def test_every_tile():
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 21, 96, "u8")
    (x,) = case.inputs(rng)
    tensors = case.node.tensors
    shape = LayerNormShape(
        batch=1,
        in_rows=21,
        rows=21,
        gather=1,
        channels=96,
        indexed=False,
        out="uint8",
        shift=int(case.node.attrs["shift"]),
    )
    assert list(candidates(shape, "lanes", {})) == [1, 2, 4, 8, 32]
    for lanes in (1, 4, 32):
        y = np.zeros((1, 21, 96), np.uint8)
        kernel = layer_norm_kernel(shape, LayerNormTile(lanes, warps=2))
        arrays = [x, tensors["gamma"], tensors["beta"], tensors["params"], y]
        emulate(kernel, get_target(TARGET), arrays)
        np.testing.assert_array_equal(y, execute(case.node, [x]))


@pytest.mark.parametrize(("batch", "lanes"), [(1, 8), (128, 4)])
def test_default_tiles(batch, lanes):
    shape = LayerNormShape(batch, 3136, 3136, 1, 96, False, "uint8", 12)
    assert default_tile(shape).lanes == lanes


def test_reciprocal_root():
    """The steps of `_reciprocal_root` at both ends of the W of every root."""
    root = np.arange(1 << 14, 1 << 15, dtype=np.int64)
    w = np.concatenate([root * root, root * root + 2 * root])
    x = w >> 14
    z = 35900 - (x >> 2) - (x >> 4)
    for _ in range(3):
        e = (3 << 30) - (z * z >> 14) * x
        assert z.max() ** 2 < 1 << 31 and 0 <= e.min() and e.max() < 1 << 32
        z = z * (e >> 16) >> 15
    near = x * z >> 15
    near += ((w - near * near) >> 4) * z >> 26
    exact = np.array([math.isqrt(int(v)) for v in w])
    np.testing.assert_array_equal(near + ((near + 1) ** 2 <= w), exact)
    r = z + ((((1 << 29) - z * exact) >> 3) * z >> 26)
    np.testing.assert_array_equal(r + ((r + 1) * exact <= 1 << 29), (1 << 29) // exact)
