"""LayerNorm and a GEMM in one CUDA kernel, emulated, equal the two operators bit for bit."""

import itertools
import random

import numpy as np
import pytest
from tvm import s_tir

from cuda_emulator import emulate
from intswin.compile.schedules import cuda_kernels
from intswin.compile.schedules.cuda_gemm_tiles import GPUS
from intswin.compile.schedules.cuda_norm_gemm_space import (
    NormGemmShape,
    NormGemmTile,
    candidates,
    default_tile,
    shared_bytes,
)
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from norm_linear import random_norm_linear
from operator_runner import described_kernel

_EPILOGUES = itertools.cycle([{"zero_point": 0}, {"out": "s8"}, {"activation": "igelu"}])


@pytest.mark.parametrize(
    ("target_name", "problem", "epilogue"),
    [
        (target, *both)
        for target, problems in (
            (
                "cuda-h100",
                [
                    # rows, channels, columns, group: rows are masked, one slice
                    (49, 96, 96, 1, NormGemmTile(64, 96, 96, 2, 3, 1, 1, 4)),
                    # slots are filled again
                    (70, 256, 64, 1, NormGemmTile(32, 32, 64, 2, 1, 1, 3, 8)),
                    # depth shared by four warps, columns cut, patch merging
                    (20, 96, 40, 4, NormGemmTile(16, 32, 128, 1, 1, 4, 3, 16)),
                    # more lanes than the block's rows need
                    (33, 64, 96, 1, NormGemmTile(32, 32, 64, 2, 1, 1, 1, 8)),
                    # rows in passes, the last one not full
                    (50, 32, 64, 1, NormGemmTile(64, 64, 32, 1, 1, 1, 1, 1)),
                    (30, 256, 96, 1, NormGemmTile(16, 96, 32, 1, 3, 1, 4, 32)),
                ],
            ),
            ("cuda-t4", [(49, 96, 96, 1, NormGemmTile(32, 96, 32, 2, 1, 1, 2, 2))]),
        )
        for both in zip(problems, _EPILOGUES, strict=False)
    ],
    ids=str,
)
@pytest.mark.parametrize("extreme", [False, True])
def test_tiles(target_name, problem, epilogue, extreme):
    rows, channels, columns, group, tile = problem
    rng = np.random.default_rng(rows)
    target, batch = get_target(target_name), 2 if rows < 40 else 1
    case, norm, linear = random_norm_linear(
        rng, rows, channels, columns, group=group, extreme=extreme, **epilogue
    )
    func, constants = described_kernel(case, batch, target)
    sch = s_tir.Schedule(func)
    cuda_kernels.schedule(sch, target, tile)
    kernel = cuda_kernels.kernel(sch.mod["main"], target)
    (x,) = case.inputs(rng, batch, extreme)
    expected = integer_ops.execute(linear, [integer_ops.execute(norm, [x])])
    np.testing.assert_array_equal(integer_ops.execute(case.node, [x]), expected)
    actual = np.empty_like(expected)
    emulate(kernel, target, [x, *constants, actual], races=True)
    np.testing.assert_array_equal(actual, expected)


def _random_shape(rng, arch):
    gather = rng.choice([1, 4])
    depth = rng.choice([32, 96, 224, 768, 1536, 2048])
    rows = rng.choice([1, 49, 784])
    return NormGemmShape(
        arch=arch,
        batch=rng.choice([1, 128]),
        in_rows=rows * gather,
        rows=rows,
        gather=gather,
        channels=depth // gather,
        indexed=gather > 1,
        columns=rng.choice([10, 32, 96, 288, 1000, 4096]),
        out="u8",
        activation="none",
        frac=7,
    )


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
def test_every_draw_is_a_tile(arch):
    rng = random.Random(arch)
    for _ in range(40):
        shape = _random_shape(rng, arch)
        default = default_tile(shape)
        made, of_default = {}, {}
        for field in NormGemmTile.__dataclass_fields__:
            made[field] = rng.choice(list(candidates(shape, field, made)))
            assert getattr(default, field) in candidates(shape, field, of_default)
            of_default[field] = getattr(default, field)
        tile = NormGemmTile(**made)
        assert 32 <= tile.threads <= 512
        assert shared_bytes(shape, tile) <= GPUS[arch].shared_bytes
        assert shape.depth % tile.block_depth == 0
        slices = shape.depth // tile.block_depth
        assert tile.stages == slices == 1 or 2 <= tile.stages <= slices
        if tile.lanes < 32:  # all threads normalise, and none has more than 16 vectors
            assert tile.lanes * tile.block_rows >= tile.threads
            assert shape.depth <= 8 * 16 * tile.lanes
        if arch == 75:  # copies are not asynchronous
            assert tile.stages <= 2


def test_tiles_of_another_shape_are_refused():
    target = get_target("cuda-h100")
    case, *_ = random_norm_linear(np.random.default_rng(4), 49, 96, 96)
    func, _ = described_kernel(case, 1, target)
    with pytest.raises(ValueError, match="lanes=16 is not one of"):
        tile = NormGemmTile(64, 96, 96, 2, 3, 1, 1, 16)
        cuda_kernels.schedule(s_tir.Schedule(func), target, tile)
