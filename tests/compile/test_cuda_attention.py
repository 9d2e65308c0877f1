"""CUDA attention, emulated, equals the reference bit for bit."""

import numpy as np
import pytest

import graphs
from cuda_emulator import emulate
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention import arrange_bias, attention_kernel
from intswin.compile.schedules.cuda_attention_math import EXPONENTIAL
from intswin.compile.schedules.cuda_attention_space import (
    MmaAttentionTile,
    candidates,
    default_tile,
)
from intswin.compile.targets import get_target
from intswin.models.integer_ops import execute, probability
from operator_runner import check_emulated

CUDA_TARGETS = ["cuda-v100", "cuda-h100"]


@pytest.mark.parametrize("target", CUDA_TARGETS)
@pytest.mark.parametrize(
    ("windows", "tokens", "heads", "d", "patterns", "batch"),
    [
        (4, 49, 3, 32, 3, 1),
        (1, 85, 1, 64, 0, 1),
        (1, 221, 1, 16, 1, 1),  # scores computed twice
        (1, 20, 1, 48, 1, 2),  # keys and channels that fill no block
        (3, 1, 2, 16, 1, 2),
        (1, 16, 1, 128, 1, 1),
    ],
)
def test_shapes(target, windows, tokens, heads, d, patterns, batch):
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, windows, tokens, heads, d, patterns=patterns)
    check_emulated(case, target, case.inputs(rng, batch))


@pytest.mark.parametrize("target", CUDA_TARGETS)
@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 4))]
)
def test_ends_of_the_ranges(target, seed):
    rng = np.random.default_rng(seed)
    tokens = [49, 16, 20, 7, 70][seed]
    case = graphs.random_attention(rng, 2, tokens, 1, 32, patterns=seed % 3, extreme=True)
    check_emulated(case, target, case.inputs(rng, 1, extreme=True))


@pytest.mark.parametrize("target", CUDA_TARGETS)
@pytest.mark.parametrize("pre", [0, 5, 8, 9])
def test_scores_at_their_limits(target, pre):
    """Accumulators at both ends for `pre` around those from which on nothing saturates."""
    rng = np.random.default_rng(pre)
    case = graphs.random_attention(rng, 2, 20, 1, 32)
    case.node.tensors["params"][:2] = pre, 32767
    case.node.tensors["bias"][:] = rng.choice([-32768, 32767], case.node.tensors["bias"].shape)
    check_emulated(case, target, [rng.choice([-128, 127, 1], (1, 40, 96)).astype(np.int8)])


@pytest.mark.parametrize(
    ("batch", "tile"),
    [
        (3, MmaAttentionTile(strips=2, images=2, warps=1)),
        (1, MmaAttentionTile(strips=4, images=1, warps=8)),
        (3, MmaAttentionTile(strips=1, images=2, warps=2)),
    ],
    ids=str,
)
def test_tiles(batch, tile):
    rng = np.random.default_rng(0)
    target, (windows, tokens, heads, d) = get_target("cuda-h100"), (1, 49, 3, 32)
    case = graphs.random_attention(rng, windows, tokens, heads, d, patterns=2)
    (qkv,) = case.inputs(rng, batch)
    tensors = case.node.tensors
    bias = arrange_bias(tensors["bias"], target)
    shape = AttentionShape(batch, windows * tokens, windows, tokens, heads, d, 2)
    assert all(value in candidates(shape, name, {}) for name, value in vars(tile).items())
    y = np.zeros((batch, windows * tokens, heads * d), np.uint8)
    arrays = [qkv, tensors["rows"], tensors["params"], bias, tensors["pattern"], y]
    emulate(attention_kernel(shape, bias.shape, tile), target, arrays)
    np.testing.assert_array_equal(y, execute(case.node, [qkv]))


def test_default_tiles():
    swin = {"tokens": 49, "d": 32, "patterns": 4}
    small = AttentionShape(batch=1, rows=3136, windows=64, heads=3, **swin)
    large = AttentionShape(batch=128, rows=3136, windows=64, heads=3, **swin)
    assert default_tile(small) == MmaAttentionTile(strips=1, images=1, warps=4)
    assert default_tile(large) == MmaAttentionTile(strips=2, images=4, warps=4)


def test_exponential():
    """`exponential` and `pack_probabilities` for every u from 0 on, far beyond 9 octaves."""
    a, b, c = EXPONENTIAL
    u = np.arange(1 << 17, dtype=np.int64)
    f = u & 255
    x = a - (b - c * f) * f
    assert 0 <= x.min() and x.max() + (1 << 23) < 1 << 32
    p = ((x >> np.minimum(u >> 8, 32) >> 16) + (1 << 7)) >> 8
    np.testing.assert_array_equal(p, probability(u))


def test_reciprocal():
    """`Row`: one correction is enough for every normalised row sum."""
    x = np.arange(1 << 17, 1 << 18, dtype=np.int64)
    y = 23860 - (x >> 4)
    for narrow, shift in ((14, 17), (8, 23)):
        error = (1 << 31) - x * y
        product = y * (error >> narrow)
        assert np.abs(error).max() < 1 << 31 and np.abs(product).max() < 1 << 31
        y = y + (product >> shift)
    r = y >> 1
    np.testing.assert_array_equal(r + ((1 << 30) - r * x >= x), (1 << 30) // x)
