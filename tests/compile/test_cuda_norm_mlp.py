"""LayerNorm and an MLP in one CUDA kernel, emulated, equal the three operators bit for bit."""

import itertools
import random

import numpy as np
import pytest
from tvm import s_tir
from tvm_ffi import structural_equal

from cuda_emulator.emulate import emulate_program
from cuda_emulator.lowering import lower
from intswin.compile.schedules import cuda_kernels
from intswin.compile.schedules.cuda_gemm_tiles import GPUS
from intswin.compile.schedules.cuda_norm_mlp_space import (
    NormMlpShape,
    NormMlpTile,
    candidates,
    default_tile,
    has_tiles,
    shared_bytes,
)
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from norm_mlp import random_norm_mlp
from operator_runner import described_kernel

_EPILOGUES = itertools.cycle(
    [{"zero_point": 0}, {"activation": "igelu"}, {}, {"activation": "shiftgelu"}]
)


@pytest.mark.parametrize(
    ("target_name", "problem", "epilogue"),
    [
        (target, *both)
        for target, problems in (
            (
                "cuda-h100",
                [
                    # rows, channels, hidden: a block alone, rows are masked
                    (20, 32, 64, NormMlpTile(16, 1, 1, 2, 1, 1, 2, 4, 0)),
                    # a cluster of two, rows and depth shared
                    (33, 64, 256, NormMlpTile(32, 2, 2, 2, 1, 2, 2, 4, 1)),
                    # of four, with more groups and row blocks than warps
                    (32, 96, 256, NormMlpTile(32, 4, 1, 2, 2, 1, 1, 32, 0)),
                    # of eight, which have fewer quads than threads
                    (10, 32, 512, NormMlpTile(16, 8, 1, 2, 1, 1, 2, 4, 1)),
                    (49, 96, 384, NormMlpTile(64, 2, 4, 3, 4, 3, 1, 8, 0)),
                    # rows in passes, and quads
                    (20, 64, 64, NormMlpTile(16, 1, 1, 1, 1, 1, 1, 8, 1)),
                ],
            ),
            ("cuda-a100", [(20, 96, 128, NormMlpTile(16, 1, 1, 4, 1, 1, 4, 8, 1))]),
            ("cuda-t4", [(20, 32, 64, NormMlpTile(16, 1, 1, 2, 1, 1, 2, 4, 1))]),
        )
        for both in zip(problems, _EPILOGUES, strict=False)
    ],
    ids=str,
)
def test_tiles(target_name, problem, epilogue):
    rows, channels, hidden, tile = problem
    rng = np.random.default_rng(rows)
    target, batch = get_target(target_name), 2 if rows < 40 else 1
    program = None
    for extreme in (False, True):
        case, nodes = random_norm_mlp(rng, rows, channels, hidden, extreme=extreme, **epilogue)
        func, constants = described_kernel(case, batch, target)
        if program is None:  # constants are arguments: the next problem is of the same kernel
            first_func, program = func, _program(func, tile, target)
        assert structural_equal(func, first_func, map_free_vars=True)
        (x,) = case.inputs(rng, batch, extreme)
        norm, first, second = nodes
        inner = integer_ops.execute(first, [integer_ops.execute(norm, [x])])
        expected = integer_ops.execute(second, [inner, x])
        np.testing.assert_array_equal(integer_ops.execute(case.node, [x]), expected)
        actual = np.empty_like(expected)
        emulate_program(program, target, [x, *constants, actual], races=True)
        np.testing.assert_array_equal(actual, expected)


def _program(func, tile, target):
    sch = s_tir.Schedule(func)
    cuda_kernels.schedule(sch, target, tile)
    return lower(cuda_kernels.kernel(sch.mod["main"], target), target)


def _random_shape(rng, arch):
    return NormMlpShape(
        arch=arch,
        batch=rng.choice([1, 128]),
        rows=rng.choice([1, 49, 784]),
        channels=rng.choice([32, 96, 160, 192, 384, 768]),
        hidden=rng.choice([32, 64, 384, 768, 1536, 3072]),
        activation="none",
        frac=6,
    )


def _check_tile(shape, tile):
    """What the kernel counts on."""
    own = shape.hidden // tile.cluster
    assert own * tile.cluster == shape.hidden
    assert tile.cluster == 1 or shape.arch == 90
    assert 32 <= tile.threads <= 512
    assert tile.out_row_warps * tile.out_column_warps * tile.out_depth_warps * 32 == tile.threads
    for rows, columns, warps, depth in (
        (tile.block_rows, own, tile.first, shape.channels),
        (tile.block_rows, shape.channels, tile.second, own),
    ):
        assert rows % (16 * warps.rows) == 0
        assert columns % (32 * warps.columns) == 0
        assert depth % (32 * warps.depth) == 0
        assert rows * columns // (warps.rows * warps.columns) // 32 <= 128
    both_weights, hidden = 2 * shape.channels * own, tile.block_rows * own
    assert both_weights + hidden <= shared_bytes(shape, tile) <= GPUS[shape.arch].shared_bytes
    if tile.lanes < 32:  # all threads normalise, and none has more than 16 vectors
        assert tile.lanes * tile.block_rows >= tile.threads
        assert shape.channels <= 8 * 16 * tile.lanes


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
def test_every_draw_is_a_tile(arch):
    rng, tried = random.Random(arch), 0
    for _ in range(120):
        shape = _random_shape(rng, arch)
        if not has_tiles(shape):
            continue
        tried += 1
        default = default_tile(shape)
        made, of_default = {}, {}
        for field in NormMlpTile.__dataclass_fields__:
            made[field] = rng.choice(list(candidates(shape, field, made)))
            assert getattr(default, field) in candidates(shape, field, of_default)
            of_default[field] = getattr(default, field)
        _check_tile(shape, NormMlpTile(**made))
        _check_tile(shape, default)
    assert tried > 10


def test_swin_tiny_has_tiles_where_its_weights_fit():
    def fits(arch, rows, channels):
        return has_tiles(NormMlpShape(arch, 1, rows, channels, 4 * channels, "none", 6))

    stages = [(3136, 96), (784, 192), (196, 384), (49, 768)]
    assert [fits(90, *stage) for stage in stages] == [True, True, True, False]
    assert [fits(80, *stage) for stage in stages] == [True, False, False, False]
    assert not any(fits(75, *stage) for stage in stages)


def test_tiles_of_another_shape_are_refused():
    target = get_target("cuda-h100")
    case, _ = random_norm_mlp(np.random.default_rng(4), 49, 96, 384)
    func, _ = described_kernel(case, 1, target)
    with pytest.raises(ValueError, match="cluster=16 is not one of"):
        tile = NormMlpTile(32, 16, 1, 2, 1, 2, 1, 8, 0)
        cuda_kernels.schedule(s_tir.Schedule(func), target, tile)
