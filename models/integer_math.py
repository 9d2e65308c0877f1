"""Integer arithmetic of docs/integer-semantics.md sections 1 and 2 on NumPy arrays.

Arrays hold int32, or int64 in checked mode: there `fits` raises where an int32 would have wrapped.
"""

from __future__ import annotations

import math

import numpy as np

INT32 = np.iinfo(np.int32)
MAX_PRE = 24  # the largest first shift of a requantization
LN2_STEP = math.log(2) / 256  # scale of attention scores
BIAS_LIMIT = float(2**24)  # steps: keeps a dead channel's bias far from int32's end


def fits(x: np.ndarray, what: str) -> np.ndarray:
    """Return `x`; in checked mode (int64 arrays) first make sure that an int32 could hold it.

    Raises:
        OverflowError: an element is outside int32; the message names the intermediate.
    """
    if x.dtype == np.int64 and x.size and (x.min() < INT32.min or x.max() > INT32.max):
        raise OverflowError(f"{what} leaves int32: [{x.min()}, {x.max()}]")
    return x


def half(s: int | np.ndarray) -> int | np.ndarray:
    """What a right shift by `s` must add to round to nearest: 2^(s-1), or 0 for no shift."""
    return (1 << s) >> 1


def requant16(acc: np.ndarray, pre: int | np.ndarray, mult: int | np.ndarray) -> np.ndarray:
    """Section 2: an accumulator, half(pre) already added, to 16 bits.

    Works in place to save memory traffic: `acc` holds the result afterwards.

    Args:
        acc: int32 (or int64 when checked), (..., N).
        pre: right shift, 0 to 24; one, or (N,).
        mult: multiplier in 1/2^15, 0 to 32767; one, or (N,).

    Returns:
        `acc`, now `h` in [-32767, 32767].
    """
    fits(acc, "acc")
    acc >>= pre
    np.clip(acc, -32768, 32767, out=acc)
    acc *= mult
    acc += 1 << 14
    fits(acc, "a * mult")
    acc >>= 15
    return acc


def requant8(h: np.ndarray, zero_point: int, frac: int, dtype: type[np.integer]) -> np.ndarray:
    """Section 2: `h` with `frac` fraction bits to uint8 or int8, in place on `h`."""
    h += (zero_point << frac) + half(frac)
    h >>= frac
    return saturate(h, dtype)


def saturate(x: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """Clamp to the range of `dtype` and convert: sat8u, sat8 and sat16 of section 1."""
    info = np.iinfo(dtype)
    return np.clip(x, info.min, info.max, out=x).astype(dtype)


def matmul(a: np.ndarray, b: np.ndarray, bound: int, work: type[np.integer]) -> np.ndarray:
    """Exact product of two integer matrices (or stacks of them).

    NumPy has no BLAS for integers. A float product of integers is exact, in any order of summation
    and with fused multiply-adds, while every partial sum is an integer that the mantissa holds:
    below 2^24 in float32, below 2^53 in float64.

    Args:
        a: integers, (..., m, k).
        b: integers, (..., k, n).
        bound: no smaller than sum_k |a| |b| of any element of the product; below 2^53.
        work: dtype of the result.

    Returns:
        (..., m, n).
    """
    kind = np.float32 if bound < 1 << 24 else np.float64
    return np.matmul(a.astype(kind), b.astype(kind)).astype(work)


def bit_length(x: np.ndarray) -> np.ndarray:
    """Bits of each positive int64: x is in [2^(n-1), 2^n)."""
    n = np.frexp(x.astype(np.float64))[1].astype(np.int64)
    n -= (x >> (n - 1)) == 0  # the conversion to float64 may have rounded up to the next power of 2
    return n


def floor_sqrt(x: np.ndarray) -> np.ndarray:
    """Exact floor(sqrt(x)) of int64 in [0, 2^62)."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x  # float64 is one off, at most, on either side
    root += (root + 1) * (root + 1) <= x
    return root
