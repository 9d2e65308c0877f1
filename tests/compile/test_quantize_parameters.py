"""Integers from real scales, over the whole range of scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intswin.compile import quantize_parameters as parameters
from intswin.models.integer_math import MAX_PRE

RATIOS = st.floats(2.0**-38, 0.9999)


@given(RATIOS)
def test_fixed_point_represents_the_ratio(ratio):
    """Section 2: within half a unit of 15 bits, and only tiny ratios use small multipliers."""
    pre, mult = (int(v) for v in parameters.fixed_point(ratio, "x"))
    assert 0 <= pre <= MAX_PRE
    assert 0 <= mult < 2**15
    if pre < MAX_PRE:
        assert mult >= 2**14
        assert mult / 2 ** (15 + pre) == pytest.approx(ratio, rel=2.0**-14)
    else:
        assert abs(mult / 2 ** (15 + pre) - ratio) <= 2.0 ** -(15 + pre) / 2 * 1.001


@given(st.floats(1.0, 1e6))
def test_a_ratio_of_one_or_more_asks_for_a_wider_scale(ratio):
    with pytest.raises(parameters.ScaleTooFineError) as caught:
        parameters.fixed_point(np.array([0.1, ratio]), "out")
    assert caught.value.name == "out"
    parameters.fixed_point(ratio / caught.value.factor, "out")  # enough, then


@given(st.integers(0, 2**32))
def test_weights_are_within_half_a_step(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 7)) * 10.0 ** rng.uniform(-4, 2, (5, 1))
    weight[2] = 0
    bias = rng.normal(size=5)
    quantized, scale = parameters.quantize_weight(weight, bias, 0.02)
    assert np.abs(quantized).max() <= 127
    assert (np.abs(quantized * scale[:, None] - weight) <= scale[:, None] * 0.5001).all()
    assert (np.abs(bias / (scale * 0.02)) <= 2**24 + 1).all()  # the dead channel too


@pytest.mark.parametrize(("reach", "k"), [(0.1, 10), (16.0, 10), (16.1, 9), (100.0, 7), (1e4, 6)])
def test_gelu_exponent(reach, k):
    assert parameters.gelu_exponent(-reach / 2, reach) == k


def test_igelu_constants_are_the_pages():
    """The values that docs/integer-semantics.md quotes for k = 10."""
    k, qb, q1, e, _, _ = parameters.gelu_parameters("igelu", 10, 0.01, "x")
    assert (k, qb, e) == (10, 2561, 9)
    assert q1 - qb * qb == 702_885  # the least L
    assert 2 * q1 >> e < 2**15


@given(st.floats(1e-3, 1e3), st.floats(1e-5, 10), st.integers(1, 12))
def test_layer_norm_never_leaves_32_bits(spread, out_scale, log_channels):
    rng = np.random.default_rng(0)
    channels = 2**log_channels
    gamma, beta = rng.normal(size=channels) * spread, rng.normal(size=channels) * spread
    tensors, shift = parameters.layer_norm_parameters(gamma, beta, 1e-5, 0.001, out_scale, 128)
    largest = 2**15 * np.abs(tensors["gamma"].astype(np.int64)) + np.abs(
        tensors["beta"].astype(np.int64)
    )
    if shift > 1:
        assert largest.max() < 2**31
        assert np.abs(tensors["gamma"]).max() <= 32767


@pytest.mark.parametrize("ratio", [1.0, 1.9, 2.0, 7.3, 300.0])
def test_attention_output_multiplier(ratio):
    """out_mult / 2^out_shift = s_v / (256 s_out) with 14 bits or more."""
    _, _, mult, shift = parameters.attention_parameters(1e-3, 0.01 * ratio, 0.01, "x")
    assert 8 <= shift <= 22
    assert mult < 2**15
    assert mult / 2.0**shift == pytest.approx(ratio / 256, rel=2.0**-13)
