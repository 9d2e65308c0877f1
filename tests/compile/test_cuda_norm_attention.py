"""LayerNorm, q, k, v and attention in one CUDA kernel, emulated, equal the three operators."""

import random

import numpy as np
import pytest
from tvm import s_tir

from cuda_emulator import emulate
from intswin.compile.schedules import cuda_kernels
from intswin.compile.schedules.cuda_gemm_tiles import GPUS
from intswin.compile.schedules.cuda_norm_attention_space import (
    NormAttentionShape,
    NormAttentionTile,
    candidates,
    default_tile,
    fits,
    gemm_tile,
    shared_bytes,
)
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from norm_attention import random_norm_attention
from operator_runner import described_kernel


@pytest.mark.parametrize(
    ("target_name", "problem", "tile"),
    [
        # windows, tokens, heads, channels, patterns: rows are masked
        pytest.param(
            *("cuda-h100", (2, 49, 3, 96, 2), NormAttentionTile(1, 3, 1, 4)),
            marks=pytest.mark.slow,
        ),
        # three heads normalise 17, 17 and 15 rows
        ("cuda-h100", (2, 49, 3, 96, 2), NormAttentionTile(3, 3, 1, 4)),
        # wgmma by three warpgroups, 8 queries a warp; by one, a block alone
        ("cuda-h100", (1, 49, 2, 128, 1), NormAttentionTile(2, 3, 1, 8)),
        ("cuda-h100", (1, 50, 1, 64, 0), NormAttentionTile(1, 1, 1, 4)),
        # depth shared by warps; 8 queries a warp
        ("cuda-h100", (1, 16, 2, 384, 1), NormAttentionTile(2, 1, 2, 8)),
        # no bias; rows in passes, the last one not full
        ("cuda-h100", (3, 20, 1, 64, 0), NormAttentionTile(1, 1, 1, 8)),
        # the rows of one head of a cluster have ended before its part
        ("cuda-h100", (1, 10, 8, 32, 1), NormAttentionTile(8, 3, 1, 1)),
        ("cuda-h100", (1, 64, 1, 32, 1), NormAttentionTile(1, 3, 1, 2)),
        # several slices, slots are filled again
        ("cuda-t4", (1, 33, 2, 896, 1), NormAttentionTile(1, 3, 1, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("extreme", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tiles(target_name, problem, tile, extreme):
    windows, tokens, heads, channels, patterns = problem
    rng = np.random.default_rng(tokens)
    target, batch = get_target(target_name), 2 if windows == 1 and tokens < 64 else 1
    case, nodes = random_norm_attention(
        rng, windows, tokens, heads, channels, patterns=patterns, extreme=extreme
    )
    func, constants = described_kernel(case, batch, target)
    sch = s_tir.Schedule(func)
    cuda_kernels.schedule(sch, target, tile)
    kernel = cuda_kernels.kernel(sch.mod["main"], target)
    (x,) = case.inputs(rng, batch, extreme)
    expected = x
    for node in nodes:
        expected = integer_ops.execute(node, [expected])
    np.testing.assert_array_equal(integer_ops.execute(case.node, [x]), expected)
    actual = np.empty_like(expected)
    emulate(kernel, target, [x, *constants, actual], races=True)
    np.testing.assert_array_equal(actual, expected)


def _random_shape(rng, arch):
    heads = rng.choice([1, 3, 24])
    return NormAttentionShape(
        arch=arch,
        batch=rng.choice([1, 8]),
        rows=3136,
        windows=64,
        tokens=rng.choice([1, 16, 49, 64]),
        heads=heads,
        channels=rng.choice([32, 96, 224, 384, 768, 1024]),
        patterns=rng.choice([0, 4]),
        frac=7,
    )


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
def test_every_draw_is_a_tile(arch):
    rng = random.Random(arch)
    shapes = [_random_shape(rng, arch) for _ in range(60)]
    assert sum(map(fits, shapes)) > 40
    for shape in filter(fits, shapes):
        default = default_tile(shape)
        made, of_default = {}, {}
        for field in NormAttentionTile.__dataclass_fields__:
            made[field] = rng.choice(list(candidates(shape, field, made)))
            assert getattr(default, field) in candidates(shape, field, of_default)
            of_default[field] = getattr(default, field)
        tile = NormAttentionTile(**made)
        gemm = gemm_tile(shape, tile)
        assert shape.block_rows * 2 <= gemm.threads <= 512  # a warp for each strip
        assert shared_bytes(shape, tile) <= GPUS[arch].shared_bytes
        assert shape.channels % gemm.block_depth == 0
        assert shape.heads % tile.cluster == 0
        assert tile.cluster == 1 or arch == 90
        slices = shape.channels // gemm.block_depth
        assert gemm.stages == slices == 1 or 2 <= gemm.stages <= slices
        assert shape.channels <= 8 * 16 * tile.lanes
        if arch == 75:  # copies are not asynchronous
            assert gemm.stages <= 2


def test_default_tiles():
    """Those of swin_tiny for one image are close to the fastest that were measured."""
    swin = {"arch": 90, "batch": 1, "rows": 3136, "tokens": 49, "patterns": 4, "frac": 7}
    stages = [
        NormAttentionShape(**swin, windows=windows, heads=heads, channels=32 * heads)
        for windows, heads in ((64, 3), (16, 6), (4, 12), (1, 24))
    ]
    assert list(map(default_tile, stages)) == [
        NormAttentionTile(cluster=3, column_warps=1, depth_warps=1, lanes=4),
        NormAttentionTile(cluster=6, column_warps=3, depth_warps=1, lanes=16),
        NormAttentionTile(cluster=6, column_warps=3, depth_warps=1, lanes=32),
        NormAttentionTile(cluster=8, column_warps=3, depth_warps=1, lanes=32),
    ]


def test_what_does_not_fit():
    shape = _random_shape(random.Random(0), 75)
    assert not fits(NormAttentionShape(**{**vars(shape), "tokens": 64, "channels": 1024}))


def test_tiles_of_another_shape_are_refused():
    target = get_target("cuda-h100")
    case, _ = random_norm_attention(np.random.default_rng(4), 1, 16, 1, 64)
    func, _ = described_kernel(case, 1, target)
    with pytest.raises(ValueError, match="cluster=2 is not one of"):
        cuda_kernels.schedule(s_tir.Schedule(func), target, NormAttentionTile(2, 3, 1, 4))
