"""The compiled attention equals the reference bit for bit."""

import numpy as np
import pytest
import tvm

import graphs
from intswin.compile.targets import get_target
from intswin.models.errors import IntswinError
from operator_runner import VECTOR_TARGETS, check_compiled, emit_operator


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize(
    ("windows", "tokens", "heads", "d", "patterns", "batch"),
    [
        (16, 49, 3, 32, 4, 1),
        (4, 49, 2, 32, 0, 4),
        (2, 144, 2, 32, 2, 1),
        (1, 197, 2, 64, 0, 1),
        (3, 1, 2, 16, 1, 4),  # a softmax over one token
        (2, 5, 1, 48, 2, 1),
        (1, 64, 1, 128, 1, 1),  # whole vectors of keys
    ],
)
def test_realistic(target, windows, tokens, heads, d, patterns, batch):
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, windows, tokens, heads, d, patterns=patterns)
    check_compiled(case, batch, target, [case.inputs(rng, batch)])


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize("seed", range(6))
def test_ends_of_the_ranges(target, seed):
    rng = np.random.default_rng(seed)
    tokens = [16, 49, 20, 7, 100, 1][seed]
    case = graphs.random_attention(rng, 3, tokens, 2, 32, patterns=seed % 3, extreme=True)
    check_compiled(case, 1, target, (case.inputs(rng, 1, extreme=True) for _ in range(4)))


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize("level", [-32768, -30300, 31500, 32767])
def test_scores_that_leave_16_bits(target, level):
    """Rows whose maximum is near the ends of int16 or beyond, in sums that would saturate."""
    rng = np.random.default_rng(level & 7)
    case = graphs.random_attention(rng, 4, 20, 2, 32, patterns=2)
    near = level + rng.integers(-600, 601, case.node.tensors["bias"].shape)
    case.node.tensors["bias"] = np.clip(near, -32768, 32767).astype(np.int16)
    check_compiled(case, 1, target, [case.inputs(rng)])


@pytest.mark.parametrize("target", VECTOR_TARGETS)
def test_every_distance_to_the_maximum(target):
    """All u from 0 to beyond 9 octaves: with q = 0 the bias alone is the score."""
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, 1, 64, 1, 16)
    # Token 0 is the maximum; the others are `u` below it.
    bias = -np.arange(64 * 64).reshape(1, 1, 64, 64)
    bias[..., 0] = 0
    case.node.tensors["bias"] = bias.astype(np.int16)
    case.node.tensors["rows"][:] = np.arange(64)
    qkv = rng.integers(-128, 128, (1, 64, 48)).astype(np.int8)
    qkv[..., :16] = 0

    def runs():
        for key in range(64):
            # Attention of one other token against the maximum shows its probability.
            qkv[..., 32:] = 0
            qkv[0, key, 32:] = 127
            yield [qkv]

    check_compiled(case, 1, target, runs())


def test_layers_of_one_shape_share_a_kernel():
    rng = np.random.default_rng(0)
    target = get_target("llvm")
    module = emit_operator(graphs.random_attention(rng, 4, 49, 2, 32), 1, target)
    other = emit_operator(graphs.random_attention(rng, 4, 49, 2, 32), 1, target)
    tvm.ir.assert_structural_equal(module["attention"], other["attention"])


def test_aarch64_code_is_vectorised():
    target = get_target("llvm-aarch64")
    case = graphs.random_attention(np.random.default_rng(0), 4, 49, 2, 32)
    executable = tvm.compile(emit_operator(case, 1, target), target=target)
    kernel = executable.mod.imports[0].inspect_source("asm")
    assert "smlal" in kernel
    assert "sqrdmulh" in kernel


def test_refuses_heads_that_fill_no_vector():
    case = graphs.random_attention(np.random.default_rng(0), 1, 4, 1, 8)
    with pytest.raises(IntswinError, match="multiple of 16"):
        emit_operator(case, 1, get_target("llvm"))
