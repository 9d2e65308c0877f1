"""Every operator of the reference against Python integers, at the ends of its ranges."""

import numpy as np
import pytest
import python_integers
from hypothesis import given, settings
from hypothesis import strategies as st

import graphs
from graphs import Case
from intswin.models.integer_graph import Node, TensorSpec
from intswin.models.integer_math import bit_length, floor_sqrt, matmul, requant16
from intswin.models.integer_ops import execute, igelu, shiftgelu

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=150, deadline=None)


def agree(case: Case, inputs: list[np.ndarray]) -> None:
    """Fast, checked and Python-integer results are one; no intermediate leaves int32."""
    expected = python_integers.run(case.node, inputs)
    for checked in (False, True):
        result = execute(case.node, inputs, checked)
        assert result.dtype == case.node.out.dtype
        np.testing.assert_array_equal(result, expected)


def agree_random(case: Case, rng: np.random.Generator) -> None:
    for extreme in (False, True):
        agree(case, case.inputs(rng, batch=2, extreme=extreme))


@some
@given(
    seed=seeds,
    rows=st.integers(1, 3),
    k=st.integers(1, 40),
    n=st.integers(1, 6),
    out=st.sampled_from(["u8", "s8", "i16", "i32"]),
    activation=st.sampled_from(["none", "igelu", "shiftgelu"]),
    residual=st.booleans(),
    extreme=st.booleans(),
)
def test_linear(*, seed, rows, k, n, out, activation, residual, extreme):
    rng = np.random.default_rng(seed)
    case = graphs.random_linear(
        rng,
        rows,
        k,
        n,
        out,
        activation=activation,
        residual=residual and out == "i16",
        extreme=extreme,
    )
    agree_random(case, rng)


def test_relu_is_the_clamp_of_zero_point_0():
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 4, 32, 8, zero_point=0)
    inputs = case.inputs(rng, 3)
    agree(case, inputs)
    case.node.attrs["out"], case.node.out.dtype = "i16", "int16"
    h = python_integers.run(case.node, inputs)
    case.node.attrs["out"], case.node.out.dtype = "u8", "uint8"
    y = execute(case.node, inputs)
    assert (y[h < 0] == 0).all() and (y[h > 64] > 0).all() and (h < 0).any() and (h > 64).any()


def test_linear_larger_than_float32_holds():
    """3000 products of 255 * 127 pass 2^24: the sum is exact only in float64."""
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 1, 3000, 2, "i32", extreme=True)
    case.node.tensors["weight"] = np.full((2, 3000), 127, np.int8)
    case.node.tensors["bias"] = np.array([-255 * 127 * 3000 + 17, 0], np.int32)
    case.node.tensors["pre"][:] = [0, 24]
    case.node.tensors["mult"][:] = 32767
    agree(case, [np.full((1, 1, 3000), 255, np.uint8)])
    assert execute(case.node, [np.full((1, 1, 3000), 255, np.uint8)])[0, 0, 0] == 17


@pytest.mark.parametrize("activation", ["igelu", "shiftgelu"])
@pytest.mark.parametrize("k", range(6, 11))
def test_activation_of_every_int16(activation, k):
    params = graphs.act_params(activation, k, 2.0**-k * 1.01)
    t = np.arange(-32768, 32768, dtype=np.int32)
    _, qb, q1, e, pre, mult = (int(v) for v in params)
    product = igelu(t, qb, q1, e) if activation == "igelu" else shiftgelu(t, k)
    result = requant16(product + ((1 << pre) >> 1), pre, mult)
    expected = [python_integers.activate(v, activation, params.tolist()) for v in t.tolist()]
    assert result.tolist() == expected


@some
@given(
    seed=seeds,
    rows=st.integers(1, 3),
    channels=st.integers(1, 70),
    group=st.sampled_from([1, 4]),
    out=st.sampled_from(["u8", "i16"]),
    extreme=st.booleans(),
)
def test_layer_norm(*, seed, rows, channels, group, out, extreme):
    rng = np.random.default_rng(seed)
    case = graphs.random_layer_norm(rng, rows, channels, out, group=group, extreme=extreme)
    agree_random(case, rng)


@some
@given(
    st.integers(1, 600),
    st.sampled_from([1, 3, (1 << 28) - 1, 1 << 40, (1 << 54) - 1]),
    st.integers(-32768, 32767),
    st.integers(-32768, 32767),
    st.integers(0, 600),
)
def test_layer_norm_of_two_values(channels, eps, low, high, highs):
    """Smallest and largest V: equal values, one spike (Samuelson's bound is met), half and half."""
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 1, channels, "i16", extreme=True)
    case.node.tensors["params"][0] = eps
    x = np.full((1, 1, channels), low, np.int16)
    x[..., : min(highs, channels)] = high
    agree(case, [x])
    x[:] = low
    x[..., -1] = high
    agree(case, [x])


def test_layer_norm_at_its_largest():
    rng = np.random.default_rng(0)
    case = graphs.random_layer_norm(rng, 4, 4096, "i16", extreme=True)
    case.node.tensors["params"][0] = (1 << 54) - 1
    x = np.full((1, 4, 4096), -32768, np.int16)
    x[0, 0, ::2] = 32767
    x[0, 1, 0] = 32767
    x[0, 2] = 32767
    for eps in (1, (1 << 54) - 1):
        case.node.tensors["params"][0] = eps
        agree(case, [x])


@settings(max_examples=100, deadline=None)
@given(
    seed=seeds,
    windows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 2),
    d=st.integers(1, 8),
    patterns=st.integers(0, 2),
    extreme=st.booleans(),
)
def test_attention(*, seed, windows, tokens, heads, d, patterns, extreme):
    rng = np.random.default_rng(seed)
    case = graphs.random_attention(
        rng, windows, tokens, heads, d, patterns=patterns, extreme=extreme
    )
    agree_random(case, rng)


@pytest.mark.parametrize("value", [-128, 0, 127])
def test_attention_of_1024_equal_scores(value):
    """The largest row sum (255 * 1024) and, with v at its ends, the largest o."""
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, 1, 1024, 1, 1, patterns=0)
    case.node.tensors["rows"] = np.arange(1024, dtype=np.int32)[None]
    case.node.tensors["params"][2:] = [32767, 22]
    qkv = np.full((1, 1024, 3), value, np.int8)
    result = execute(case.node, [qkv])
    assert (result == execute(case.node, [qkv], checked=True)).all()
    scalar = python_integers.attend(
        [value], [[value]] * 1024, [[value]] * 1024, [0] * 1024, [0, 0, 32767, 22]
    )
    assert (result == scalar[0]).all()


def test_attention_with_128_channels_at_their_ends():
    rng = np.random.default_rng(0)
    case = graphs.random_attention(rng, 1, 4, 1, 128)
    case.node.tensors["params"][:] = [0, 32767, 32767, 8]
    for value in (-128, 127):
        agree(case, [np.full((1, 4, 384), value, np.int8)])


def test_attention_ignores_masked_tokens():
    rng = np.random.default_rng(1)
    case = graphs.random_attention(rng, 1, 6, 1, 8)
    case.node.tensors["bias"][:] = 0
    case.node.tensors["bias"][..., 3:] = -32768
    (qkv,) = case.inputs(rng)
    first = execute(case.node, [qkv])
    masked = case.node.tensors["rows"][0, 3:]
    qkv[:, masked, 8:] = rng.integers(-128, 128, (1, 3, 16))  # other keys and values
    assert (execute(case.node, [qkv]) == first).all()


@some
@given(seeds, st.integers(1, 60), st.integers(1, 5), st.booleans())
def test_mean_pool(seed, rows, channels, extreme):
    rng = np.random.default_rng(seed)
    agree_random(graphs.random_mean_pool(rng, rows, channels, extreme), rng)


@some
@given(seeds, st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_add_constant(seed, rows, channels, extreme):
    rng = np.random.default_rng(seed)
    agree_random(graphs.random_add_constant(rng, rows, channels, extreme), rng)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_gather_rows(dtype):
    rng = np.random.default_rng(0)
    agree_random(graphs.random_gather_rows(rng, 5, 3, 7, dtype=dtype), rng)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patchify(patch):
    rng = np.random.default_rng(0)
    agree_random(graphs.patchify_case(8, 12, patch), rng)


def test_checked_mode_finds_what_int32_loses():
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 1, 4, 1, "i32")
    case.node.tensors["weight"][:] = 127
    case.node.tensors["bias"][:] = (1 << 31) - 1
    x = [np.full((1, 1, 4), 1, np.uint8)]
    with pytest.raises(OverflowError, match="acc leaves int32"):
        execute(case.node, x, checked=True)
    execute(case.node, [x[0] * 0], checked=True)


def test_unknown_operator():
    node = Node("a", "softmax", ["x"], {}, {}, TensorSpec((1, 1), "int8", 1.0))
    with pytest.raises(ValueError, match="a: there is no operator softmax"):
        execute(node, [])


@given(st.integers(0, 2**62 - 1))
def test_floor_sqrt(x):
    root = int(floor_sqrt(np.array([x]))[0])
    assert root * root <= x < (root + 1) * (root + 1)


@given(st.integers(1, 2**62 - 1))
def test_bit_length(x):
    assert int(bit_length(np.array([x]))[0]) == x.bit_length()


@pytest.mark.parametrize("n", range(1, 62))
def test_bit_length_and_sqrt_around_powers_of_two(n):
    x = np.array([2**n - 1, 2**n, 2**n + 1])
    assert bit_length(x).tolist() == [v.bit_length() for v in x.tolist()]
    root = 2**n - 1 if n < 31 else 2**31 - 1
    squares = np.array([root * root - 1, root * root, root * root + 1])
    assert floor_sqrt(squares).tolist() == [root - 1, root, root]


def test_five_newton_steps_reach_every_root():
    """Section 3.4: at the two ends of each root's interval (the steps are monotone in between)."""
    roots = np.arange(1 << 14, 1 << 15)
    for w in (roots * roots, (roots + 1) ** 2 - 1):
        r = np.full_like(w, 1 << 15)
        for _ in range(5):
            r = (r + w // r) >> 1
        r -= r * r > w
        np.testing.assert_array_equal(r, roots)


def test_matmul_is_exact_at_the_mantissa():
    a = np.array([[4096, 1]], np.int32)
    b = np.array([[4096], [1]], np.int32)
    assert matmul(a, b, 4096 * 4096 + 1, np.int32).item() == 4096 * 4096 + 1
