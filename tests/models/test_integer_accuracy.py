"""How far the integer approximations are from the real functions.

The bounds are what was measured, rounded up: a change of a formula that costs accuracy fails here.
"""

import math

import numpy as np
import pytest

import graphs
from intswin.models.integer_math import requant8, requant16
from intswin.models.integer_ops import execute, igelu, probability, shiftgelu


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def snr_db(real: np.ndarray, approximation: np.ndarray) -> float:
    return 10 * math.log10((real**2).mean() / ((real - approximation) ** 2).mean())


@pytest.mark.parametrize("factor", [0.999, 0.5, 0.4999, 0.031, 1.7e-3, 9.9e-5, 3.1e-6])
def test_requantize_is_within_one_step_of_exact_rounding(factor):
    """h: half a step from `acc >> pre`, half from the product, half from the 15-bit multiplier."""
    rng = np.random.default_rng(0)
    limit = min(2**14 / factor, 2**30)
    acc = rng.uniform(-limit, limit, 100_000).astype(np.int64)
    pre, mult = (int(v) for v in graphs.requant_params(factor))
    assert 2**14 <= mult < 2**15
    h = requant16(acc + graphs.half(pre), pre, mult)
    assert np.abs(h - acc * factor).max() < 1.5
    y = requant8(h.copy(), 128, 7, np.uint8)
    exact = np.clip(np.floor(acc * factor / 128 + 128.5), 0, 255)
    assert np.abs(y - exact).max() <= 1
    assert (y != exact).mean() < 0.02


def test_iexp():
    """Half a step of 1/255 and 0.2 % of the parabola."""
    u = np.arange(9 << 8)
    assert np.abs(probability(u) / 255 - 2.0 ** (-u / 256)).max() < 0.004


@pytest.mark.parametrize("deviation", [0.1, 1, 4, 10])
@pytest.mark.parametrize(("tokens", "largest", "row"), [(49, 0.013, 0.015), (197, 0.025, 0.03)])
def test_softmax(tokens, largest, row, deviation):
    """Largest error of a probability, and the mean over rows of the summed errors."""
    x = np.random.default_rng(0).normal(0, deviation, (200, tokens))
    t = np.rint(x * 256 / math.log(2)).astype(np.int64)
    p = probability(t.max(axis=1, keepdims=True) - t).astype(float)
    error = np.abs(p / p.sum(axis=1, keepdims=True) - softmax(x))
    assert error.max() < largest
    assert error.sum(axis=1).mean() < row


@pytest.mark.parametrize("k", range(6, 11))
def test_igelu(k):
    t = np.arange(-32768, 32768)
    x = t / 2**k
    qb, q1, e = graphs.igelu_constants(k)
    y = igelu(t, qb, q1, e) * 2.0 ** (e - k) / (2 * q1)
    clipped = np.minimum(np.abs(x / math.sqrt(2)), 1.769)
    polynomial = x / 2 * (1 + np.sign(x) * (1 - 0.2888 * (clipped - 1.769) ** 2))
    gelu = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert (np.abs(y - polynomial) < 4.5e-4 + 3e-5 * np.abs(x)).all()  # 15-bit g, then t * g
    assert (
        np.abs(y - gelu) < 0.0184 + 3e-5 * np.abs(x)
    ).all()  # of which 0.0182 is I-BERT's polynomial


@pytest.mark.parametrize("k", range(6, 11))
def test_shiftgelu(k):
    t = np.arange(-32768, 32768)
    x = t / 2**k
    y = shiftgelu(t, k) * 2.0 ** -(k + 15)
    sigmoid = 1 / (1 + np.exp(np.clip(-1.702 * x, -700, 700)))
    gelu = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert np.abs(y - x * sigmoid).max() < 0.017
    assert np.abs(y - gelu).max() < 0.028  # of which 0.0203 is the sigmoid's


@pytest.mark.parametrize("amplitude", [3, 30, 4000])
@pytest.mark.parametrize("channels", [32, 96, 384, 1536, 4096])
@pytest.mark.parametrize(("out", "error_in_std"), [("u8", 0.62 * 6 / 128), ("i16", 0.007)])
def test_layer_norm(channels, amplitude, out, error_in_std):
    """uint8: half a step and little more. int16: what 1 / 2^c2 of 14 bits leaves, times gamma."""
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 50, channels, out)
    gain, offset = rng.normal(1, 0.2, channels), rng.normal(0, 0.2, channels)
    scale, zero_point = case.node.out.scale, case.node.out.zero_point
    c2 = math.ceil(math.log2(channels) / 2)
    gamma, beta, shift = graphs.layer_norm_params(gain, offset, scale, zero_point, c2)
    case.node.tensors |= {
        "gamma": gamma.astype(np.int32),
        "beta": beta.astype(np.int32),
        "params": np.array([1], np.int64),
    }
    case.node.attrs["shift"] = shift
    means = rng.normal(0, amplitude, (1, 50, 1))
    x = np.rint(np.clip(rng.normal(means, amplitude, (1, 50, channels)), -32768, 32767))
    y = (execute(case.node, [x.astype(np.int16)]).astype(float) - zero_point) * scale
    real = (x - x.mean(axis=2, keepdims=True)) / x.std(axis=2, keepdims=True) * gain + offset
    info = np.iinfo(case.node.out.dtype)
    real = np.clip(real, (info.min - zero_point) * scale, (info.max - zero_point) * scale)
    assert np.abs(y - real).max() < error_in_std


@pytest.mark.parametrize("deviation", [0.5, 2, 6])
@pytest.mark.parametrize(("tokens", "d", "snr"), [(49, 32, 33), (144, 32, 29), (197, 64, 27)])
def test_attention(tokens, d, snr, deviation):
    """Against float softmax of the same int8 q, k, v; the output step alone allows about `snr`."""
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, 1, tokens, 2, d, patterns=0)
    qkv = rng.integers(-127, 128, (1, tokens, 6 * d)).astype(np.int8)
    factor = deviation / (math.sqrt(d) * 73.3**2)  # softmax input of one unit of q * k
    step = 100 / 128  # of the output, in steps of v
    pre, mult = (int(v) for v in graphs.requant_params(factor * 256 / math.log(2) / 16))
    case.node.tensors["params"][:] = [pre, mult, round(2**22 / (256 * step)), 22]
    y = (execute(case.node, [qkv])[0].astype(float) - 128) * step
    rows = case.node.tensors["rows"][0]
    q, k, v = qkv[0, rows].reshape(tokens, 3, 2, d).astype(float).transpose(1, 2, 0, 3)
    real = softmax(q @ k.swapaxes(1, 2) * factor) @ v
    expected = np.clip(real.transpose(1, 0, 2).reshape(tokens, -1), -128 * step, 127 * step)
    assert snr_db(expected, y[rows]) > snr


@pytest.mark.parametrize("rows", [144, 196, 1024])
def test_mean_pool(rows):
    """One step of its output."""
    rng = np.random.default_rng(0)
    case = graphs.random_mean_pool(rng, rows, 64)
    pre, mult = (int(v) for v in graphs.requant_params(0.9 * 128 / (256 * rows)))
    case.node.tensors["params"][:] = [-128 * 256 * rows + graphs.half(pre), pre, mult]
    x = np.clip(np.rint(rng.normal(128, 40, (3, rows, 64))), 0, 255)
    y = execute(case.node, [x.astype(np.uint8)])[:, 0].astype(float)
    assert np.abs(y - 128 - 0.9 * (x.mean(axis=1) - 128)).max() < 0.52
