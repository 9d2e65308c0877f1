"""docs/integer-semantics.md section 3 a second time: Python integers, one element after the other.

Python integers do not wrap, so `i32` and `i64` assert that every intermediate fits, and the other
assertions are the bounds that the page states. Slow on purpose: no NumPy arithmetic.
"""

from __future__ import annotations

import math

import numpy as np

from intswin.models.integer_graph import Node

Rows = list[list[int]]


def i32(x: int) -> int:
    assert -(2**31) <= x < 2**31, f"{x} leaves int32"
    return x


def i64(x: int) -> int:
    assert -(2**63) <= x < 2**63, f"{x} leaves int64"
    return x


def clamp(x: int, lo: int, hi: int) -> int:
    return lo if x < lo else min(x, hi)


def half(s: int) -> int:
    return (1 << s) >> 1


def rshift(x: int, s: int) -> int:
    return i32(i32(x) + half(s)) >> s


def requant16(acc: int, pre: int, mult: int) -> int:
    a = clamp(i32(acc) >> pre, -32768, 32767)
    h = i32(i32(a * mult) + 2**14) >> 15
    assert abs(h) <= 32767
    return h


def requant8(h: int, zero_point: int, frac: int) -> int:
    return i32(h + (zero_point << frac) + half(frac)) >> frac


def run(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """The operator on a batch: arrays (B, rows, channels) in and out."""
    function = globals()[node.op]
    tensors = {name: value.tolist() for name, value in node.tensors.items()}
    images = [
        function(tensors, node.attrs, *(x.tolist() for x in image))
        for image in zip(*inputs, strict=True)
    ]
    result = np.array(images, node.out.dtype)  # raises where a value does not fit
    assert result.shape[1:] == node.out.shape
    return result


def patchify(tensors: dict, attrs: dict, image: list) -> Rows:
    p = attrs["patch"]
    return [
        [image[top + ky][left + kx][c] for ky in range(p) for kx in range(p) for c in range(3)]
        for top in range(0, len(image), p)
        for left in range(0, len(image[0]), p)
    ]


def linear(tensors: dict, attrs: dict, x: Rows, residual: Rows | None = None) -> Rows:
    out: Rows = []
    for i, row in enumerate(x):
        out.append([])
        for n, weight in enumerate(tensors["weight"]):
            acc = 0
            for value, w in zip(row, weight, strict=True):
                acc = i32(acc + value * w)
            acc = i32(acc + tensors["bias"][n])
            h = requant16(acc, tensors["pre"][n], tensors["mult"][n])
            if attrs["activation"] != "none":
                h = activate(h, attrs["activation"], tensors["act_params"])
            zero_point, frac = attrs["zero_point"], attrs["frac"]
            if attrs["out"] == "u8":
                y = clamp(requant8(h, zero_point, frac), 0, 255)
            elif attrs["out"] == "s8":
                y = clamp(i32(h + half(frac)) >> frac, -128, 127)
            elif attrs["out"] == "i16":
                y = clamp(h + residual[i][n], -32768, 32767) if residual else h
            else:
                y = h
            out[-1].append(y)
    return out


def activate(t: int, kind: str, act_params: list[int]) -> int:
    k, qb, q1, e, pre, mult = act_params
    if kind == "igelu":
        v = qb - min(abs(t), qb)
        parabola = i32(q1 - i32(v * v))
        assert parabola > 0
        g = i32(q1 + parabola if t >= 0 else q1 - parabola) >> e
        assert 0 <= g < 2**15
    else:
        p = t + (t >> 1) + (t >> 3) + (t >> 4)
        m = max(p, 0)
        a, b = shiftexp(p - m, k), shiftexp(-m, k)
        assert 2**15 in (a, b) and 0 <= min(a, b)
        g = i32(a << 15) // (a + b)
        assert 0 <= g <= 2**15
    product = i32(t * g)
    return requant16(i32(product + half(pre)), pre, mult)


def shiftexp(d: int, k: int) -> int:
    i = -(d + (d >> 1) - (d >> 4))
    assert 0 <= i < 2**18
    n = min(i >> k, 15)
    f = i & (2**k - 1)
    return i32((2**k - (f >> 1)) << (15 - k)) >> n


def newton_sqrt(w: int) -> int:
    """Section 3.4: from 2^15, 5 steps, one correction."""
    r = 2**15
    for _ in range(5):
        r = (r + w // r) >> 1
    return r - 1 if r * r > w else r


def layer_norm(tensors: dict, attrs: dict, x: Rows) -> Rows:
    eps = tensors["params"][0]
    if "rows" in tensors:
        x = [[v for row in group for v in x[row]] for group in tensors["rows"]]
    out: Rows = []
    for row in x:
        c = len(row)
        s1 = i32(sum(row))
        s2 = sum(v * v for v in row)
        v = i64(i64(c * s2) - s1 * s1 + eps)
        assert 1 <= v < 2**56
        j = (v.bit_length() - 29) >> 1
        w = v >> (2 * j) if j >= 0 else v << (-2 * j)
        assert 2**28 <= w < 2**30
        root = newton_sqrt(w)
        assert root == math.isqrt(w)
        r = min(2**29 // root, 32767)
        assert 2**14 <= r < 2**15
        c2 = next(i for i in range(99) if 4**i >= c)
        e = j + c2
        out.append([])
        for channel, value in enumerate(row):
            n = i32(i32(c * value) - s1)
            n = rshift(n, e) if e >= 0 else i32(n << -e)
            assert abs(n) <= 2**15
            n = clamp(n, -32768, 32767)
            z = i32(i32(n * r) + 2**14) >> 15
            assert abs(z) <= 2**15
            y = i32(z * tensors["gamma"][channel] + tensors["beta"][channel]) >> attrs["shift"]
            limits = (0, 255) if attrs["out"] == "u8" else (-32768, 32767)
            out[-1].append(clamp(y, *limits))
    return out


def attention(tensors: dict, attrs: dict, qkv: Rows) -> Rows:
    heads, d = attrs["heads"], attrs["d"]
    out: Rows = [[0] * (heads * d) for _ in qkv]
    for w, rows in enumerate(tensors["rows"]):
        for head in range(heads):
            q, k, v = (
                [qkv[row][(part * heads + head) * d :][:d] for row in rows] for part in range(3)
            )
            for i, row in enumerate(rows):
                bias = [0] * len(rows)
                if "bias" in tensors:
                    bias = tensors["bias"][tensors["pattern"][w]][head][i]
                y = attend(q[i], k, v, bias, tensors["params"])
                out[row][head * d : (head + 1) * d] = y
    return out


def attend(q: list[int], k: Rows, v: Rows, bias: list[int], params: list[int]) -> list[int]:
    """One query of one head."""
    pre, mult, out_mult, out_shift = params
    scores = []
    for key, b in zip(k, bias, strict=True):
        acc = sum(x * y for x, y in zip(q, key, strict=True))
        t = requant16(i32(acc * 16 + half(pre)), pre, mult) + b
        assert abs(t) <= 2**16
        scores.append(t)
    p = [probability(max(scores) - t) for t in scores]
    s = sum(p)
    assert 255 in p and 255 <= s <= 255 * len(k)
    shift = s.bit_length() - 8
    assert 0 <= shift <= 10
    r = i32(2 ** (shift + 20)) // s
    assert 2**12 < r <= 2**13
    out = []
    for channel in range(len(v[0])):
        o = i32(sum(weight * row[channel] for weight, row in zip(p, v, strict=True)))
        assert abs(o) <= 128 * s
        o = rshift(o, shift)
        assert abs(o) <= 2**15
        a = rshift(o * r, 12)
        assert abs(a) <= 2**15 + 8
        y = i32(i32(a * out_mult) + (128 << out_shift) + half(out_shift)) >> out_shift
        out.append(clamp(y, 0, 255))
    return out


def probability(u: int) -> int:
    assert 0 <= u <= 2**17
    z = min(u >> 8, 9)
    f = u & 255
    parabola = 380857 - f * (999 - f)
    assert 191137 <= parabola <= 380857
    p = i32((parabola >> 4) * 22466 + (2**20 << z)) >> (21 + z)
    assert 0 <= p <= 255
    return p


def mean_pool(tensors: dict, attrs: dict, x: Rows) -> Rows:
    bias, pre, mult = tensors["params"]
    y = []
    for channel in range(len(x[0])):
        acc = i32(i32(256 * sum(row[channel] for row in x)) + bias)
        y.append(clamp(requant8(requant16(acc, pre, mult), 128, 7), 0, 255))
    return [y]


def gather_rows(tensors: dict, attrs: dict, x: Rows) -> Rows:
    return [x[row] for row in tensors["rows"]]


def add_constant(tensors: dict, attrs: dict, x: Rows) -> Rows:
    return [
        [
            clamp(i32((x[row][c] if row >= 0 else 0) + constant[c]), -32768, 32767)
            for c in range(len(constant))
        ]
        for row, constant in zip(tensors["rows"], tensors["constant"], strict=True)
    ]
