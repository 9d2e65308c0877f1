"""Interval analysis of single integer operators: how large every intermediate can get.

Each function follows its operator through docs/integer-semantics.md section 3, from the intervals
of its inputs and from the constants that the node stores, and gives the interval of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from intswin.compile.range_check import INT64, Bounds, Check

Interval = tuple[int, int]
_DTYPES = {"u8": "uint8", "s8": "int8", "i16": "int16", "i32": "int32"}


def half(s: int) -> int:
    """2^(s-1), or 0 for no shift."""
    return (1 << s) >> 1


def _clamp(lo: Bounds, hi: Bounds, dtype: str) -> Interval:
    """The interval over all channels after saturation to `dtype`."""
    info = np.iinfo(dtype)
    return (
        min(max(int(np.min(lo)), info.min), info.max),
        min(max(int(np.max(hi)), info.min), info.max),
    )


def _requant16(
    check: Check, acc: tuple[Bounds, Bounds], pre: Bounds, mult: Bounds, name: str = "acc"
) -> tuple[Bounds, Bounds]:
    """Section 2; every step is monotone because mult >= 0. `name` is what the page calls `acc`."""
    check.parameter("pre", pre, 0, 24)
    check.parameter("mult", mult, 0, 32767)
    check.record(name, *acc)
    lo, hi = (np.clip(np.right_shift(v, pre), -32768, 32767) * mult + (1 << 14) for v in acc)
    check.record("a * mult + 2^14", lo, hi)
    lo, hi = np.right_shift(lo, 15), np.right_shift(hi, 15)
    check.record("h", lo, hi, (1 << 15) - 1)
    return lo, hi


def _requant8(
    check: Check, bounds: tuple[Bounds, Bounds], zero_point: int, frac: int, dtype: str
) -> Interval:
    offset = (zero_point << frac) + half(frac)
    lo, hi = bounds[0] + offset, bounds[1] + offset
    check.record("h + zero_point", lo, hi)
    return _clamp(lo >> frac, hi >> frac, dtype)


def patchify(check: Check, x: Interval) -> Interval:
    """3.1."""
    check.tensors()
    patch = check.attribute("patch")
    spec = check.inputs[0]
    check.require(
        isinstance(patch, int) and patch >= 1 and len(spec.shape) == 3 and spec.dtype == "uint8",
        f"reads a uint8 image in patches of 1 pixel or more, not {spec.dtype} {spec.shape}",
    )
    patch, (height, width, channels) = int(patch), spec.shape
    check.require(
        height % patch == 0 and width % patch == 0,
        f"patches of {patch} do not tile an image of {height} x {width}",
    )
    check.makes("uint8", (height // patch * (width // patch), patch * patch * channels))
    return x


def linear(check: Check, x: Interval, residual: Interval | None = None) -> Interval:
    """3.2: sums of products from the stored weights, channel by channel."""
    out = str(check.attribute("out", list(_DTYPES)))
    activation = str(check.attribute("activation", ["none", "igelu", "shiftgelu"]))
    check.reads("uint8", *["int16"] * (residual is not None))
    rows, k = check.inputs[0].shape
    n = check.node.out.shape[-1]
    extra = {} if activation == "none" else {"act_params": ("int32", (6,))}
    vector = ("int32", (n,))
    check.tensors(weight=("int8", (n, k)), bias=vector, pre=vector, mult=vector, **extra)
    check.makes(_DTYPES[out], (rows, n))
    t = {name: value.astype(np.int64) for name, value in check.node.tensors.items()}
    check.parameter("weight", t["weight"], -127, 127)

    # From 0, not from x[0]: a partial sum lacks some of the terms.
    lo = np.minimum(t["weight"], 0).sum(axis=1) * x[1]
    hi = np.maximum(t["weight"], 0).sum(axis=1) * x[1]
    check.record("sum of x * weight", lo, hi)
    h = _requant16(check, (lo + t["bias"], hi + t["bias"]), t["pre"], t["mult"])
    if activation == "igelu":
        h = _igelu(check, _clamp(*h, "int16"))
    elif activation == "shiftgelu":
        h = _shiftgelu(check, _clamp(*h, "int16"))

    if out in ("u8", "s8"):
        zero_point = int(check.attribute("zero_point"))
        check.parameter("zero_point", zero_point, 0, 255 if out == "u8" else 0)
        return _requant8(check, h, zero_point, int(check.attribute("frac", [6, 7])), _DTYPES[out])
    if residual is not None:
        check.require(out == "i16", f"a residual is added to int16, not to {out}")
        check.require(
            check.inputs[1].shape == check.node.out.shape,
            f"the residual is {check.inputs[1].shape}, the output {check.node.out.shape}",
        )
        h = h[0] + residual[0], h[1] + residual[1]
        check.record("h + residual", *h)
    return _clamp(*h, _DTYPES[out])


def _activation_params(check: Check, constants: Callable[[int], list[int]]) -> tuple[int, ...]:
    """qb, q1, e, pre, mult of 3.3; the first three have to be what k makes them."""
    k, *fixed, pre, mult = (int(v) for v in check.node.tensors["act_params"])
    check.parameter("k", k, 6, 10)
    check.require(
        fixed == constants(k), f"qb, q1, e are {fixed}, not {constants(k)} as k = {k} makes them"
    )
    return *fixed, pre, mult


def _igelu(check: Check, t: Interval) -> tuple[Bounds, Bounds]:
    qb, q1, e, pre, mult = _activation_params(
        check,
        lambda k: [
            math.floor(1.769 * math.sqrt(2) * 2**k),
            math.floor(2 * 4**k / 0.2888),
            2 * k - 11,
        ],
    )
    check.record("v * v", 0, qb * qb)
    check.record("L", q1 - qb * qb, q1)
    check.record("q1 + L", 0, 2 * q1)
    return _activation_requant16(check, t, (0, (2 * q1) >> e), pre, mult)


def _shiftgelu(check: Check, t: Interval) -> tuple[Bounds, Bounds]:
    *_, pre, mult = _activation_params(check, lambda k: [0, 0, 0])
    p = [v + (v >> 1) + (v >> 3) + (v >> 4) for v in t]
    check.record("p", *p)
    d = min(p[0], -p[1], 0)  # the most negative of p - M and -M
    check.record("i", 0, -(d + (d >> 1) - (d >> 4)))
    check.record("2^k - f / 2 shifted", 0, 1 << 15)
    check.record("A << 15", 0, 1 << 30)
    check.record("A + Bx", 1 << 15, 1 << 16)
    return _activation_requant16(check, t, (0, 1 << 15), pre, mult)


def _activation_requant16(
    check: Check, t: Interval, g: Interval, pre: int, mult: int
) -> tuple[Bounds, Bounds]:
    check.record("g", *g)
    lo, hi = min(t[0] * g[1], 0), max(t[1] * g[1], 0)
    check.record("P", lo, hi)
    acc = lo + half(pre), hi + half(pre)
    return _requant16(check, acc, pre, mult, "P + half(pre)")


def layer_norm(check: Check, x: Interval) -> Interval:
    """3.4: bounds of N from Samuelson's inequality, |N| <= sqrt(C-1) sqrt(V)."""
    out = str(check.attribute("out", ["u8", "i16"]))
    shift = int(check.attribute("shift", list(range(25))))
    check.reads("int16")
    rows, c = check.inputs[0].shape
    extra = {}
    if "rows" in check.node.tensors:
        extra["rows"] = ("int32", (None, None))
        group = check.node.tensors["rows"].shape
        check.require(len(group) == 2, f"rows has shape {group}, not (R, G)")
        check.parameter("rows", check.node.tensors["rows"], 0, rows - 1)
        rows, c = group[0], group[1] * c
    check.require(1 <= c <= 4096, f"normalises {c} channels, not 1 to 4096")
    check.tensors(gamma=("int32", (c,)), beta=("int32", (c,)), params=("int64", (1,)), **extra)
    check.makes(_DTYPES[out], (rows, c))
    gamma, beta = (check.node.tensors[name].astype(np.int64) for name in ("gamma", "beta"))
    eps = int(check.node.tensors["params"][0])
    check.parameter("gamma", gamma, -32767, 32767)
    check.parameter("beta", beta, -(1 << 30) + 1, (1 << 30) - 1)
    check.parameter("eps", eps, 1, (1 << 54) - 1)

    largest, spread = max(abs(x[0]), abs(x[1])), x[1] - x[0]
    check.record("S1", min(c * x[0], 0), max(c * x[1], 0))
    check.record("C * S2", 0, (c * largest) ** 2, INT64)
    v_hi = (c * spread) ** 2 // 4 + eps  # a variance is at most a quarter of the squared spread
    check.record("V", eps, v_hi, (1 << 56) - 1)
    check.record("C * x", c * x[0], c * x[1])
    check.record("N", -(c - 1) * spread, (c - 1) * spread)
    c2 = ((c - 1).bit_length() + 1) >> 1
    e, sums, shifted = [], [], []
    for j in range((eps.bit_length() - 29) >> 1, ((v_hi.bit_length() - 29) >> 1) + 1):
        v_j = min(v_hi, (1 << (2 * j + 30)) - 1)  # the largest V of this j
        n = min((c - 1) * spread, math.isqrt((c - 1) * v_j))
        e.append(j + c2)
        right = max(j + c2, 0)
        sums.append(n + half(right))
        shifted.append((n + half(right)) >> right << max(-j - c2, 0))
    check.record("e", min(e), max(e), 30)  # what an int32 can be shifted by
    check.record("N + half(e)", -max(sums), max(sums))
    check.record("N' before sat16", -max(shifted), max(shifted))
    n_hi = min(max(shifted), 32767)
    lo, hi = (n * 32767 + (1 << 14) for n in (-n_hi - 1, n_hi))  # r <= 32767
    check.record("N' * r + 2^14", lo, hi)
    lo, hi = lo >> 15, hi >> 15
    check.record("Z", lo, hi)
    lows, highs = np.minimum(gamma * lo, gamma * hi), np.maximum(gamma * lo, gamma * hi)
    check.record("Z * gamma", lows, highs)
    check.record("Z * gamma + beta", lows + beta, highs + beta)
    return _clamp((lows + beta) >> shift, (highs + beta) >> shift, _DTYPES[out])


def attention(check: Check, x: Interval) -> Interval:
    """3.5."""
    heads, d = int(check.attribute("heads")), int(check.attribute("d"))
    check.parameter("heads", heads, 1, 1 << 16)
    check.parameter("d", d, 1, 128)
    check.reads("int8")
    rows, channels = check.inputs[0].shape
    check.require(
        channels == 3 * heads * d, f"reads {channels} channels, not {3 * heads * d} of q, k, v"
    )
    t = check.node.tensors
    check.require("rows" in t, "tensor rows is missing")
    tables: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "rows": ("int32", (None, None)),
        "params": ("int32", (4,)),
    }
    if "bias" in t:
        n = t["rows"].shape[-1]
        tables["bias"] = ("int16", (None, heads, n, n))
        tables["pattern"] = ("int32", t["rows"].shape[:1])
    check.tensors(**tables)
    n = t["rows"].shape[1]
    check.parameter("n", n, 1, 1024)
    check.require(
        np.array_equal(np.sort(t["rows"], axis=None), np.arange(rows)),
        f"rows is not a permutation of 0 to {rows - 1}",
    )
    check.makes("uint8", (rows, heads * d))
    pre, mult, out_mult, out_shift = (int(v) for v in t["params"])
    check.parameter("out_mult", out_mult, 0, 32767)
    check.parameter("out_shift", out_shift, 8, 22)

    products = [x[0] * x[0], x[0] * x[1], x[1] * x[1]]
    lo, hi = min(*products, 0) * d, max(products) * d
    check.record("sum of q * k", lo, hi)
    acc = lo * 16 + half(pre), hi * 16 + half(pre)
    score = _requant16(check, acc, pre, mult, "acc * 16 + half(pre)")
    if "bias" in t:
        check.parameter("pattern", t["pattern"], 0, len(t["bias"]) - 1)
        score = score[0] + int(t["bias"].min()), score[1] + int(t["bias"].max())
    check.record("t", *score)
    check.record("u", 0, int(score[1]) - int(score[0]))
    check.record("l", 380857 - 255 * (999 - 255), 380857)
    check.record("p before its shift", 1 << 20, (380857 >> 4) * 22466 + (1 << 29))
    check.record("s", 255, 255 * n)
    check.record("o", min(255 * n * x[0], 0), max(255 * n * x[1], 0))

    v = max(abs(x[0]), abs(x[1]))
    # With s in [2^(k+7), 2^(k+8)): o' <= v s / 2^k + 1/2 and r <= 2^(k+20) / s <= 2^13.
    k = (255 * n).bit_length() - 8
    check.record("o + half(k)", -255 * n * v, 255 * n * v + half(k))
    check.record("o'", -v << 8, v << 8)
    check.record("2^(k+20)", 1 << 20, 1 << (k + 20))
    product = (v << 20) + (1 << 12)
    check.record("o' * r + half(12)", -product, product + (1 << 11))
    a = (product + (1 << 11)) >> 12
    check.record("A", -a, a)
    offset = (128 << out_shift) + half(out_shift)
    lo, hi = offset - a * out_mult, offset + a * out_mult
    check.record("A * out_mult + zero_point", lo, hi)
    return _clamp(lo >> out_shift, hi >> out_shift, "uint8")


def mean_pool(check: Check, x: Interval) -> Interval:
    """3.6."""
    check.reads("uint8")
    rows, channels = check.inputs[0].shape
    check.parameter("R", rows, 1, 1 << 14)
    check.tensors(params=("int32", (3,)))
    check.makes("uint8", (1, channels))
    bias, pre, mult = (int(v) for v in check.node.tensors["params"])
    check.record("256 * sum of x", 0, 256 * rows * x[1])
    h = _requant16(check, (bias, 256 * rows * x[1] + bias), pre, mult)
    return _requant8(check, h, 128, 7, "uint8")


def gather_rows(check: Check, x: Interval) -> Interval:
    """3.7."""
    check.reads(check.inputs[0].dtype)
    check.tensors(rows=("int32", (None,)))
    table, (rows, channels) = check.node.tensors["rows"], check.inputs[0].shape
    check.parameter("rows", table, 0, rows - 1)
    check.makes(check.inputs[0].dtype, (len(table), channels))
    return x


def add_constant(check: Check, x: Interval) -> Interval:
    """3.7."""
    check.reads("int16")
    rows, channels = check.inputs[0].shape
    check.tensors(rows=("int32", (None,)), constant=("int32", (None, channels)))
    table, constant = check.node.tensors["rows"], check.node.tensors["constant"].astype(np.int64)
    check.require(len(table) == len(constant), f"{len(table)} rows, but {len(constant)} constants")
    check.parameter("rows", table, -(1 << 31), rows - 1)
    check.parameter("constant", constant, -(1 << 30) + 1, (1 << 30) - 1)
    check.makes("int16", constant.shape)
    lo, hi = constant + min(x[0], 0), constant + max(x[1], 0)  # an absent row is 0
    check.record("x + constant", lo, hi)
    return _clamp(lo, hi, "int16")
