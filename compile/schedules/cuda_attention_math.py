"""The integer softmax of section 3.5 in few instructions, as both CUDA attention kernels use it.

A score t is kept with the 15 fraction bits that the rounding shift of requant16 drops,

    T = a * mult + (bias << 15)          t = (T + 2^14) >> 15,    -2^31 < T < 2^31 - 2^14

so that bias and shift cost nothing and the maximum is that of T. For the row's top
M = ((max T + 2^14) | (2^15 - 1)) - 2^14 the bits of the unsigned difference M - T are u = m - t
above bit 15: m * 2^15 + 32767 minus t * 2^15 plus a fraction never borrows.

The i-exp for u = 256 z + f is, with the floors of section 3.5 taken apart,

    p = ((g >> z) + 1) >> 1              g = (l >> 4) * 22466 >> 20        9 bits

and X = A - f * (B - C f) of the constants below has g as its upper 9 bits for each of the 256
values of f (tests/compile/test_cuda_attention.py tries them all). The shift by z, which is not
limited to 9 here, gives zero from 32 on, and p = ((X >> z >> 16) + 2^7) >> 8: so two elements are
rounded by one addition, in the halves of a word, and a permutation of bytes takes p out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr, signed, unsigned

EXPONENTIAL = (4278009928, 11218942, 11221)  # A, B, C; margins of 0.2 % of a step to both sides
_FIRST_RECIPROCAL = 23860  # of the values whose result is never above, the one closest to it
LOWEST = int(np.iinfo(np.int32).min)  # below every score


class Scalars:
    """`params`, and what follows from them; loaded where this is made."""

    def __init__(self, params: Buffer, d: int) -> None:
        pre, self.mult, out_mult, self._out_shift = (T.Bind(params[i]) for i in range(4))
        self._out_mult = out_mult
        one = int32(1)
        self._offset = T.Bind((int32(128) << self._out_shift) + ((one << self._out_shift) >> 1))
        # (16 acc + half(pre)) >> pre, with half(pre) / 16 in the accumulator: below 1 it is lost
        # in the shift anyway.
        self.start = T.Bind((one << pre) >> 5)
        self._pre = pre
        self._right = T.Bind(tirx.max(pre - 4, int32(0)))
        self._unsaturated = (d - 1).bit_length() + 4  # from this `pre` on: |acc| <= 2^14 d

    def saturate(self, acc: Buffer, indices: Sequence[int]) -> None:
        """Clamp accumulators so that `score` need not: only where 16 bits can be left."""
        with T.If(self._pre < int32(self._unsaturated)):
            with T.Then():
                left = T.Bind(tirx.max(int32(4) - self._pre, int32(0)))
                low = T.Bind(int32(-32768) << self._right)
                high = T.Bind((int32(32768) << self._right) - 1)
                for index in indices:
                    value = tirx.max(tirx.min(acc[index] << left, high), low)
                    T.buffer_store(acc, value, [index])

    def score(self, acc: Expr, bias: Expr | None) -> Expr:
        """T of a saturated accumulator; `bias` is shifted left by 15."""
        product = (acc >> self._right) * self.mult
        return product if bias is None else product + bias

    def output(self, o: Expr, row: Row) -> Expr:
        """The output for o = sum p v, before it is saturated to uint8."""
        o = (o + row.half) >> row.k
        a = (o * row.reciprocal + int32(1 << 11)) >> int32(12)
        return (a * self._out_mult + self._offset) >> self._out_shift


class Row:
    """What normalises a row: k, half(k) and r = 2^(k + 20) // s of s = sum p.

    With x = s << (10 - k), of 18 bits, r = 2^30 // x. y = 2^31 / x comes from a line and two steps
    of Newton, each rounded down, which leave y >> 1 equal to r or 1 less; all 2^17 values of x are
    tried in tests/compile/test_cuda_attention.py.
    """

    def __init__(self, s: Expr) -> None:
        zeros = T.Bind(cuda.leading_zeros(s))
        self.k = T.Bind(int32(24) - zeros)
        self.half = T.Bind((int32(1) << self.k) >> 1)
        x = T.Bind(s << (zeros - 14))
        y = T.Bind(int32(_FIRST_RECIPROCAL) - (x >> 4))
        y = T.Bind(y + ((y * (_error(x, y) >> 14)) >> 17))
        y = T.Bind(y + ((y * (_error(x, y) >> 8)) >> 23))
        r = T.Bind(y >> 1)
        rest = int32(1 << 30) - r * x
        self.reciprocal = T.Bind(tirx.Select(rest >= x, r + 1, r))


def _error(x: Expr, y: Expr) -> Expr:
    """2^31 - x y, which is small, in arithmetic modulo 2^32."""
    return signed(tirx.const(1 << 31, "uint32") - unsigned(x) * unsigned(y))


def top(maximum: Expr) -> Expr:
    """M of the largest T of a row, a uint32."""
    m = ((maximum + int32(1 << 14)) | int32(32767)) - int32(1 << 14)
    return T.Bind(unsigned(T.Bind(m)))


def exponential(m: Expr, score: Expr) -> Expr:
    """X >> z of a score below the top `m`, a uint32; see `pack_probabilities`."""
    distance = T.Bind(m - unsigned(score))
    f = T.Bind(cuda.shift_right(distance, 15) & tirx.const(255, "uint32"))
    a, b, c = EXPONENTIAL
    # Modulo 2^32: adding -B is one instruction less than subtracting what it is part of.
    slope = f * tirx.const(c, "uint32") + tirx.const((1 << 32) - b, "uint32")
    x = T.Bind(slope * f + tirx.const(a, "uint32"))
    return T.Bind(cuda.shift_right(x, cuda.shift_right(distance, 23)))


def pack_probabilities(y0: Expr, y1: Expr, y2: Expr, y3: Expr) -> Expr:
    """Give p of four results of `exponential` in the bytes of an int32, the first lowest."""
    half = tirx.const(0x00800080, "uint32")
    low = T.Bind(cuda.permute_bytes(y0, y1, 0x7632) + half)
    high = T.Bind(cuda.permute_bytes(y2, y3, 0x7632) + half)
    return signed(T.Bind(cuda.permute_bytes(low, high, 0x7531)))


def transpose_bytes(words: Sequence[Expr]) -> list[Expr]:
    """Four words of 4 bytes: word i of the result has byte i of each, the first's lowest."""
    pairs = [T.Bind(cuda.permute_bytes(words[i], words[i + 1], 0x5140)) for i in (0, 2)]
    later = [T.Bind(cuda.permute_bytes(words[i], words[i + 1], 0x7362)) for i in (0, 2)]
    return [
        signed(T.Bind(cuda.permute_bytes(low, high, selector)))
        for low, high in (pairs, later)
        for selector in (0x5410, 0x7632)
    ]


def unpack_bias(word: Expr) -> tuple[Expr, Expr]:
    """The two int16 in a word, shifted left by 15."""
    return (word << int32(16)) >> int32(1), (word >> int32(16)) << int32(15)
