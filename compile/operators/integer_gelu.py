"""The integer GELUs of docs/integer-semantics.md section 3.3: baselines that replace nothing.

Both take h = round(x / 2^-k) and end with a requantization; `act_params` is int32 (6,).
"""

from __future__ import annotations

from intswin.compile.operators.expressions import int32, let, requant16
from tvm import te, tirx
from tvm.ir import Expr


def gelu(activation: str, h: Expr, act_params: te.Tensor) -> Expr:
    """`activation` ("igelu" or "shiftgelu") of int32 `h` in int16's range; int32."""
    function = igelu if activation == "igelu" else shiftgelu
    pre, mult = act_params[4], act_params[5]
    rounding = (int32(1) << pre) >> int32(1)
    return let(h, lambda t: requant16(function(t, act_params) + rounding, pre, mult), "t")


def igelu(t: Expr, act_params: te.Tensor) -> Expr:
    """I-BERT's GELU (arXiv 2101.01321, eq. 8): t times (1 + a clipped parabola for erf)."""
    qb, q1, e = act_params[1], act_params[2], act_params[3]

    def product(v: Expr) -> Expr:
        parabola = q1 - v * v
        signed = tirx.Select(t >= int32(0), parabola, int32(0) - parabola)
        return t * ((q1 + signed) >> e)

    return let(qb - tirx.min(tirx.max(t, int32(0) - t), qb), product, "v")


def shiftgelu(t: Expr, act_params: te.Tensor) -> Expr:
    """I-ViT's x * sigmoid(1.702 x) (arXiv 2207.01405) with exponentials by shifts."""
    k = act_params[0]

    def product(p: Expr) -> Expr:
        top = tirx.max(p, int32(0))
        a, b = _shiftexp(p - top, k), _shiftexp(int32(0) - top, k)
        return let(a, lambda a: t * tirx.truncdiv(a << int32(15), a + b), "a")

    return let(t + (t >> int32(1)) + (t >> int32(3)) + (t >> int32(4)), product, "p")


def _shiftexp(d: Expr, k: Expr) -> Expr:
    """2^15 exp(d / 2^k) for d <= 0."""

    def power(i: Expr) -> Expr:
        n = tirx.min(i >> k, int32(15))
        f = i & ((int32(1) << k) - int32(1))
        return (((int32(1) << k) - (f >> int32(1))) << (int32(15) - k)) >> n

    return let(int32(0) - (d + (d >> int32(1)) - (d >> int32(4))), power, "i")
