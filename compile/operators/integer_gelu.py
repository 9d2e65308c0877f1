"""The integer GELUs of docs/integer-semantics.md section 3.3, which ReLU networks do without.

Both take int32 `t` in int16's range, of scale 2^-k, and give P = t * g before its requantization.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from intswin.compile.operators.expressions import int32, let


def igelu(t: Expr, act_params: te.Tensor) -> Expr:
    """I-BERT's GELU (arXiv 2101.01321, eq. 8): t times (1 + a clipped parabola for erf)."""
    qb, q1, e = act_params[1], act_params[2], act_params[3]

    def product(v: Expr) -> Expr:
        parabola = q1 - v * v
        signed = tirx.Select(t >= int32(0), parabola, int32(0) - parabola)
        return t * ((q1 + signed) >> e)

    return let(qb - tirx.min(tirx.max(t, int32(0) - t), qb), product, "v")


def shiftgelu(t: Expr, act_params: te.Tensor) -> Expr:
    """I-ViT's x * sigmoid(1.702 x) (arXiv 2207.01405) with exponentials by shifts.

    One of the two exponentials is 2^15, so with d = 2^15 exp(-|p|) and D = 2^15 + d the quotient is
    2^30 // D for p >= 0 and (d << 15) // D = 2^15 - ceil(2^30 / D) for p < 0.
    """
    k = act_params[0]

    def product(p: Expr) -> Expr:
        d = _shiftexp(tirx.min(p, int32(0) - p), k)
        return let(d + int32(1 << 15), lambda d: t * _quotient(p, d), "denominator")

    return let(t + (t >> int32(1)) + (t >> int32(3)) + (t >> int32(4)), product, "p")


GELUS = {"igelu": igelu, "shiftgelu": shiftgelu}  # by the attribute "activation"


def _shiftexp(d: Expr, k: Expr) -> Expr:
    """2^15 exp(d / 2^k) for d <= 0."""

    def power(i: Expr) -> Expr:
        n = tirx.min(i >> k, int32(15))
        f = i & ((int32(1) << k) - int32(1))
        return (((int32(1) << k) - (f >> int32(1))) << (int32(15) - k)) >> n

    return let(
        d, lambda d: let(int32(0) - (d + (d >> int32(1)) - (d >> int32(4))), power, "i"), "d"
    )


def _quotient(p: Expr, denominator: Expr) -> Expr:
    """2^30 // D where p >= 0, 2^15 - ceil(2^30 / D) elsewhere, for D in [2^15, 2^16].

    No SIMD unit divides integers. Two Newton steps from a line give 2^30 // D or one less (a test
    checks every D), so one comparison of the remainder makes it exact.
    """

    def refine(r: Expr) -> Expr:
        error = int32(1 << 30) - denominator * r
        return r + ((r * (error >> int32(13))) >> int32(17))

    def exact(r: Expr) -> Expr:
        def select(remainder: Expr) -> Expr:
            short = remainder >= denominator
            floor = r + tirx.Select(short, int32(1), int32(0))
            rest = remainder - tirx.Select(short, denominator, int32(0))
            below = int32(1 << 15) - floor - tirx.min(rest, int32(1))
            return tirx.Select(p >= int32(0), floor, below)

        return let(int32(1 << 30) - r * denominator, select, "remainder")

    # 48/17 - 32/17 x is within 1/17 of 1/x on [1/2, 1]; x = D / 2^16, the quotient 2^14 / x.
    line = int32(46261) - ((denominator * int32(30840)) >> int32(16))
    return let(line, lambda r: let(refine(r), lambda r: let(refine(r), exact, "r2"), "r1"), "r0")
