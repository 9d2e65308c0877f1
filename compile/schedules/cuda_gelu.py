"""The integer GELUs of docs/integer-semantics.md section 3.3, as CUDA kernels compute them.

The values are those of operators/integer_gelu.py. What is named more than once goes through a
register: TVM would write it out at every place and, nested, needs minutes for it.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

_NAMES = 12  # registers that one product needs


class IntegerGelu:
    """Code for P = t * g, before its requantization; one at a time, for the registers' sake."""

    def __init__(self, activation: str, act_params: list[Expr]) -> None:
        """For "igelu" or "shiftgelu" and the first four values of `act_params`."""
        self._activation, self._act_params = activation, act_params
        self._registers = cuda.registers(_NAMES)

    def product(self, t: Expr) -> Expr:
        """P of an int32 in int16's range."""
        keep = _Names(self._registers)
        t = keep(t)
        if self._activation == "igelu":
            return _igelu(t, self._act_params, keep)
        return _shiftgelu(t, self._act_params[0], keep)


class _Names:
    """Values that are kept in registers."""

    def __init__(self, registers: Buffer) -> None:
        self._registers, self._used = registers, 0

    def __call__(self, value: Expr) -> Expr:
        index = self._used
        T.buffer_store(self._registers, value, [index])
        self._used += 1
        return self._registers[index]


def _igelu(t: Expr, act_params: list[Expr], keep: _Names) -> Expr:
    """I-BERT's: q1 + L is 2 q1 - v v, and q1 - L is v v."""
    _, qb, q1, e = act_params
    v = keep(tirx.max(qb - keep(tirx.max(t, int32(0) - t)), int32(0)))
    square = keep(v * v)
    return t * (keep(tirx.Select(t >= int32(0), q1 * int32(2) - square, square)) >> e)


def _shiftgelu(t: Expr, k: Expr, keep: _Names) -> Expr:
    """I-ViT's; d is the smaller of its two exponentials and 2^15, the other."""
    p = keep(t + (t >> int32(1)) + (t >> int32(3)) + (t >> int32(4)))
    m = keep(tirx.min(p, int32(0) - p))
    i = keep(int32(0) - (m + (m >> int32(1)) - (m >> int32(4))))
    one = int32(1) << k
    f = keep((i & (one - int32(1))) >> int32(1))
    d = keep((((one - f) << (int32(15) - k)) >> tirx.min(i >> k, int32(15))) + int32(1 << 15))
    # 2^30 // d by two Newton steps from a line, at most one too small (operators/integer_gelu.py).
    r = keep(int32(46261) - ((d * int32(30840)) >> int32(16)))
    for _ in range(2):
        r = keep(r + ((r * ((int32(1 << 30) - d * r) >> int32(13))) >> int32(17)))
    rest = keep(int32(1 << 30) - r * d)
    short = keep((rest >= d).astype("int32"))
    # 2^30 // d where p >= 0, and 2^15 - ceil(2^30 / d) elsewhere.
    exact = (rest - short * d == int32(0)).astype("int32")
    below = int32((1 << 15) - 1) - r - short + exact
    return t * keep(tirx.Select(p >= int32(0), r + short, below))
