"""NumPy reference of every operator of docs/integer-semantics.md section 3.

Written from the formulas, with their names, and independent of TVM: compiled code has to equal it
bit for bit. A batch is the leading axis of every activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from intswin.models.integer_graph import Attribute, Node
from intswin.models.integer_math import (
    bit_length,
    fits,
    floor_sqrt,
    half,
    matmul,
    requant8,
    requant16,
    saturate,
)

Work = type[np.integer]
_OF_SECOND = ("weight", "bias", "pre", "mult")


def execute(node: Node, inputs: list[np.ndarray], checked: bool = False) -> np.ndarray:
    """Run one operator.

    Args:
        node: the operator with its constants.
        inputs: activations, (B, rows, channels); patchify takes images (B, height, width, 3) uint8.
        checked: compute in int64 and raise where an int32 would have wrapped (slower).

    Returns:
        (B, rows, channels) in the dtype of `node.out`.

    Raises:
        OverflowError: `checked`, and an intermediate leaves int32.
        ValueError: no such operator.
    """
    operator = _OPERATORS.get(node.op)
    if operator is None:
        raise ValueError(f"{node.name}: there is no operator {node.op}")
    return operator(node, inputs, np.int64 if checked else np.int32)


def _patchify(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.1: (B, H, W, 3) -> (B, H/p * W/p, p * p * 3)."""
    p = int(node.attrs["patch"])
    images = inputs[0]
    b, height, width, channels = images.shape
    down, across = height // p, width // p
    patches = images.reshape(b, down, p, across, p, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, down * across, p * p * channels)


def _linear(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.2: int8 GEMM, requantization, activation and residual."""
    t, out = node.tensors, node.attrs["out"]
    bound = 255 * int(np.abs(t["weight"].astype(np.int32)).sum(axis=1).max())
    acc = matmul(inputs[0], t["weight"].T, bound, work)
    acc += t["bias"]
    h = requant16(acc, t["pre"], t["mult"])
    h = _activate(h, node, work)
    if out == "i32":
        return h.astype(np.int32)
    if out == "i16":
        if len(inputs) == 2:
            h += inputs[1]
        return saturate(h, np.int16)
    dtype = np.uint8 if out == "u8" else np.int8
    return requant8(h, int(node.attrs["zero_point"]), int(node.attrs["frac"]), dtype)


def _activate(h: np.ndarray, node: Node, work: Work) -> np.ndarray:
    """3.3: the MLP activation, as a table because `h` has 2^16 values and layers have more."""
    activation = node.attrs["activation"]
    if activation == "none":
        return h
    k, qb, q1, e, pre, mult = (int(v) for v in node.tensors["act_params"])
    t = np.arange(-(1 << 15), 1 << 15, dtype=work)
    product = igelu(t, qb, q1, e) if activation == "igelu" else shiftgelu(t, k)
    product += half(pre)
    return np.take(requant16(product, pre, mult), h + (1 << 15))


def igelu(t: np.ndarray, qb: int, q1: int, e: int) -> np.ndarray:
    """3.3: I-BERT's GELU (arXiv 2101.01321, eq. 8), before requantization.

    Args:
        t: int16 values in an int32 or int64 array, of scale S.
        qb: where the parabola ends, in units of S.
        q1: the value that stands for erf = 1.
        e: right shift that brings 1 + erf to 15 bits.

    Returns:
        P = t * g, of scale S * 2^e / (2 * q1).
    """
    v = qb - np.minimum(np.abs(t), qb)
    parabola = q1 - fits(v * v, "v * v")
    g = np.where(t >= 0, q1 + parabola, q1 - parabola) >> e
    return fits(t * g, "P")


def shiftgelu(t: np.ndarray, k: int) -> np.ndarray:
    """3.3: I-ViT's x * sigmoid(1.702 x) (arXiv 2207.01405), before requantization.

    Args:
        t: int16 values in an int32 or int64 array, of scale 2^-k.
        k: fraction bits of `t`.

    Returns:
        P = t * g, of scale 2^-(k + 15).
    """
    p = t + (t >> 1) + (t >> 3) + (t >> 4)
    top = np.maximum(p, 0)
    a = _shiftexp(p - top, k)
    b = _shiftexp(-top, k)
    g = fits(a << 15, "A << 15") // (a + b)
    return fits(t * g, "P")


def _shiftexp(d: np.ndarray, k: int) -> np.ndarray:
    """2^15 * exp(d / 2^k) for d <= 0: log2(e) and 2^-fraction by shifts."""
    i = -(d + (d >> 1) - (d >> 4))
    n = np.minimum(i >> k, 15)
    f = i & ((1 << k) - 1)
    return (((1 << k) - (f >> 1)) << (15 - k)) >> n


def _layer_norm(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.4: LayerNorm with an integer square root; patch merging reads through `rows`."""
    x = inputs[0]
    if "rows" in node.tensors:
        rows = node.tensors["rows"]
        x = x[:, rows].reshape(x.shape[0], rows.shape[0], rows.shape[1] * x.shape[2])
    channels = x.shape[2]
    c2 = ((channels - 1).bit_length() + 1) >> 1  # ceil(log2(C) / 2)

    x = x.astype(work)
    s1 = x.sum(axis=2, dtype=np.int64)
    real = x.astype(np.float64)
    s2 = np.einsum("brc,brc->br", real, real).astype(np.int64)  # exact: at most 2^42
    v = channels * s2 - s1 * s1 + int(node.tensors["params"][0])
    j = (bit_length(v) - 29) >> 1
    w = np.where(j >= 0, v >> np.maximum(2 * j, 0), v << np.maximum(-2 * j, 0))
    r = np.minimum((1 << 29) // floor_sqrt(w), 32767).astype(work)

    n = x * channels - s1.astype(work)[..., None]
    e = (j + c2).astype(work)[..., None]
    right, left = np.maximum(e, 0), np.maximum(-e, 0)
    n += half(right)
    fits(n, "N + half(e)")
    n >>= right
    n <<= left
    np.clip(fits(n, "N << -e"), -32768, 32767, out=n)
    n *= r[..., None]
    n += 1 << 14
    z = fits(n, "N' * r")
    z >>= 15
    z *= node.tensors["gamma"]
    z += node.tensors["beta"]
    y = fits(z, "Z * gamma + beta")
    y >>= int(node.attrs["shift"])
    return saturate(y, np.uint8 if node.attrs["out"] == "u8" else np.int16)


def _norm_linear(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.8: `layer_norm` to uint8, and the `linear` that reads it."""
    norm = dataclasses.replace(node, attrs={**node.attrs, "out": "u8"})
    return _linear(node, [_layer_norm(norm, inputs, work)], work)


def as_second(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a `linear` by the names from which `second_linear` takes them."""
    return {f"{name}2": tensors[name] for name in _OF_SECOND}


def second_linear(node: Node) -> Node:
    """The last `linear` of a `norm_mlp` or `norm_msa`: weight2, bias2, pre2 and mult2."""
    tensors = {name: node.tensors[f"{name}2"] for name in _OF_SECOND}
    attrs: dict[str, Attribute] = {"out": "i16", "zero_point": 0, "frac": 0, "activation": "none"}
    return dataclasses.replace(node, op="linear", tensors=tensors, attrs=attrs)


def _norm_mlp(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.10: `layer_norm` to uint8, the two `linear` of an MLP, and x added to their result."""
    hidden = _norm_linear(node, inputs, work)
    return _linear(second_linear(node), [hidden, inputs[0]], work)


def _attention(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.5: softmax(q k^T + bias) v in windows given by index tables."""
    t, heads, d = node.tensors, int(node.attrs["heads"]), int(node.attrs["d"])
    pre, mult, out_mult, out_shift = (int(v) for v in t["params"])
    qkv, rows = inputs[0], t["rows"]
    (windows, tokens), batch = rows.shape, qkv.shape[0]
    split = qkv[:, rows].reshape(batch, windows, tokens, 3, heads, d)
    q, k, v = split.transpose(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, tokens, d)

    acc = matmul(q, k.swapaxes(-1, -2), d << 14, work)
    acc <<= 4
    acc += half(pre)
    scores = requant16(acc, pre, mult)
    if "bias" in t:
        scores += t["bias"][t["pattern"]]
    u = scores.max(axis=-1, keepdims=True) - scores
    # Beyond 9 octaves p is 0, so 9 * 256 + 1 values of u are all there is.
    table = probability(np.arange((9 << 8) + 1, dtype=work))
    p = np.take(table, np.minimum(u, 9 << 8))
    s = p.sum(axis=-1, dtype=np.int64)
    o = matmul(p, v, 128 * 255 * tokens, work)

    shift = (bit_length(s) - 8).astype(work)
    r = ((1 << (shift + 20)) // s.astype(work))[..., None]
    shift = shift[..., None]
    o += half(shift)
    o >>= shift
    o *= r
    o += half(12)
    a = fits(o, "o' * r")
    a >>= 12
    a *= out_mult
    a += (128 << out_shift) + half(out_shift)
    y = fits(a, "A * out_mult")
    y >>= out_shift
    heads_last = saturate(y, np.uint8).transpose(0, 1, 3, 2, 4)
    result = np.empty((batch, qkv.shape[1], heads * d), np.uint8)
    result[:, rows] = heads_last.reshape(batch, windows, tokens, heads * d)
    return result


def probability(u: np.ndarray) -> np.ndarray:
    """3.5: I-BERT's i-exp (arXiv 2101.01321, eq. 13-15) of the distance to the row maximum.

    Args:
        u: m - t >= 0, in units of ln2 / 256, int32 or int64.

    Returns:
        uint8, 255 for u = 0.
    """
    z = np.minimum(u >> 8, 9)
    f = u & 255
    parabola = 380857 - f * (999 - f)
    p = fits((parabola >> 4) * 22466 + ((1 << 20) << z), "p before its shift") >> (21 + z)
    return p.astype(np.uint8)


def _norm_attention(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.9: `norm_linear` to q, k and v, and the `attention` that reads them."""
    t = node.tensors
    linear = {name: tensor for name, tensor in t.items() if name != "rows"}
    qkv = _norm_linear(dataclasses.replace(node, tensors=linear), inputs, work)
    names = {"rows": "rows", "score_params": "params", "score_bias": "bias", "pattern": "pattern"}
    scores = {names[name]: tensor for name, tensor in t.items() if name in names}
    return _attention(dataclasses.replace(node, tensors=scores), [qkv], work)


def _norm_msa(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.11: `norm_attention`, the `linear` that projects it, and x added to its result."""
    return _linear(second_linear(node), [_norm_attention(node, inputs, work), inputs[0]], work)


def _mean_pool(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.6: mean over rows."""
    bias, pre, mult = (int(v) for v in node.tensors["params"])
    acc = inputs[0].sum(axis=1, keepdims=True, dtype=work)
    acc *= 256
    acc += bias
    return requant8(requant16(acc, pre, mult), 128, 7, np.uint8)


def _gather_rows(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.7: y[i] = x[rows[i]]."""
    return inputs[0][:, node.tensors["rows"]]


def _add_constant(node: Node, inputs: list[np.ndarray], work: Work) -> np.ndarray:
    """3.7: y[i] = x[rows[i]] + constant[i], where a negative row stands for zeros."""
    rows = node.tensors["rows"]
    y = inputs[0][:, np.maximum(rows, 0)].astype(work)
    y[:, rows < 0] = 0
    y += node.tensors["constant"]
    return saturate(fits(y, "x + constant"), np.int16)


_OPERATORS: dict[str, Callable[[Node, list[np.ndarray], Work], np.ndarray]] = {
    "patchify": _patchify,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "norm_linear": _norm_linear,
    "norm_mlp": _norm_mlp,
    "attention": _attention,
    "norm_attention": _norm_attention,
    "norm_msa": _norm_msa,
    "mean_pool": _mean_pool,
    "gather_rows": _gather_rows,
    "add_constant": _add_constant,
}
