"""A block's window attention in one CUDA kernel, emulated, equals the four operators."""

import random

import numpy as np
import pytest
from tvm import s_tir

from cuda_emulator.emulate import emulate_program
from cuda_emulator.lowering import lower
from intswin.compile.schedules import cuda_kernels
from intswin.compile.schedules.cuda_gemm_tiles import GPUS
from intswin.compile.schedules.cuda_norm_attention_space import (
    NormAttentionTile,
    NormMsaShape,
    candidates,
    default_tile,
    fits,
    gemm_tile,
    output_offset,
    shared_bytes,
)
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from norm_msa import random_norm_msa
from operator_runner import described_kernel


@pytest.mark.parametrize(
    ("problem", "tile"),
    [
        # windows, tokens, heads, patterns: rows are masked, more warps than strips
        ((2, 49, 3, 2), NormAttentionTile(3, 3, 1, 4)),
        # wgmma, slices of 128 bytes and of 64
        ((1, 49, 4, 1), NormAttentionTile(4, 1, 1, 8)),
        ((1, 64, 2, 1), NormAttentionTile(2, 3, 1, 4)),
        # depth shared by warps; no bias
        ((1, 16, 2, 0), NormAttentionTile(2, 1, 2, 8)),
        # a cluster that has to be allowed, of which one block normalises nothing
        pytest.param((1, 10, 12, 1), NormAttentionTile(12, 3, 1, 32), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tiles(problem, tile):
    windows, tokens, heads, patterns = problem
    rng = np.random.default_rng(tokens)
    target, batch = get_target("cuda-h100"), 2 if windows == 1 else 1
    program = None
    for extreme in (False, True):
        case, nodes = random_norm_msa(
            rng, windows, tokens, heads, patterns=patterns, extreme=extreme
        )
        func, constants = described_kernel(case, batch, target)
        if program is None:  # constants are arguments: the next problem is of the same kernel
            sch = s_tir.Schedule(func)
            cuda_kernels.schedule(sch, target, tile)
            program = lower(cuda_kernels.kernel(sch.mod["main"], target), target)
        (x,) = case.inputs(rng, batch, extreme)
        *attention, projection = nodes
        inner = x
        for node in attention:
            inner = integer_ops.execute(node, [inner])
        expected = integer_ops.execute(projection, [inner, x])
        np.testing.assert_array_equal(integer_ops.execute(case.node, [x]), expected)
        actual = np.empty_like(expected)
        emulate_program(program, target, [x, *constants, actual], races=True)
        np.testing.assert_array_equal(actual, expected)


def _shape(arch=90, heads=3, channels=None, tokens=49):
    return NormMsaShape(arch, 1, 3136, 64, tokens, heads, channels or 32 * heads, 4, 7)


@pytest.mark.parametrize("heads", [2, 3, 6, 12, 16])
@pytest.mark.parametrize("tokens", [1, 49, 64])
def test_every_draw_is_a_tile(heads, tokens):
    shape, rng = _shape(heads=heads, tokens=tokens), random.Random(heads)
    assert fits(shape)
    for _ in range(5):
        made: dict[str, int] = {}
        for field in NormAttentionTile.__dataclass_fields__:
            made[field] = rng.choice(list(candidates(shape, field, made)))
        tile = NormAttentionTile(**made)
        assert tile.cluster == heads
        assert shape.block_rows * 2 <= gemm_tile(shape, tile).threads <= 512
        rest = shared_bytes(shape, tile) - output_offset(shape, tile)
        assert rest == shape.block_rows * shape.channels + 32 * shape.channels
        assert shared_bytes(shape, tile) <= GPUS[90].shared_bytes
    assert default_tile(shape).cluster == heads


def test_what_does_not_fit():
    assert not fits(_shape(arch=89))  # no clusters
    assert not fits(_shape(heads=1))
    assert not fits(_shape(heads=17))
    assert not fits(_shape(heads=3, channels=128))  # the residual has other columns
