"""From real scales to the integers that the operators take (docs/integer-semantics.md, 2 and 3).

Everything here is offline float64 arithmetic; nothing here runs in a compiled network.
"""

from __future__ import annotations

import math

import numpy as np

from intswin.models.errors import IntswinError
from intswin.models.integer_math import BIAS_LIMIT, LN2_STEP, MAX_PRE

_WEIGHT_LIMIT = 127


class ScaleTooFineError(Exception):
    """An output scale is finer than the accumulator's: widen it by `factor` and quantize again."""

    def __init__(self, name: str, factor: float) -> None:
        super().__init__(name, factor)
        self.name = name
        self.factor = factor


def half(shift: np.ndarray | int) -> np.ndarray:
    """The rounding term of a right shift: 2^(shift-1), and 0 for a shift of 0."""
    return (np.int64(1) << np.asarray(shift, dtype=np.int64)) >> 1


def fixed_point(ratio: np.ndarray | float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Section 2: (pre, mult) with ratio * 2^pre = mult / 2^15 and mult in [2^14, 2^15).

    Args:
        ratio: real factor from one accumulator unit to one unit of h; any shape.
        name: of the tensor, for the error.

    Raises:
        ScaleTooFineError: a ratio is 1 or more.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    largest = float(ratio.max())
    # just below 1 the multiplier would round to 2^15, which is ratio 1 again
    if largest >= 1 - 2**-16:
        raise ScaleTooFineError(name, largest * 1.001)
    pre = np.floor(-np.log2(np.maximum(ratio, 2.0**-60))).astype(np.int64)
    pre = np.clip(pre, 0, MAX_PRE)
    mult = np.rint(ratio * 2.0 ** (pre + 15)).astype(np.int64)
    rounded_up = mult == 2**15
    again = rounded_up & (pre > 0)
    pre = np.where(again, pre - 1, pre)
    mult = np.where(again, 2**14, np.minimum(mult, 2**15 - 1))
    return pre.astype(np.int32), mult.astype(np.int32)


def quantize_weight(
    weight: np.ndarray, bias: np.ndarray, input_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 weights per output channel.

    Args:
        weight: float64 (N, K).
        bias: float64 (N,), so that a channel without weights still gets a usable scale.
        input_scale: of the activation that it multiplies.

    Returns:
        int8 (N, K) in [-127, 127] and its scales, float64 (N,).
    """
    largest = np.abs(weight).max(axis=1)
    scale = np.maximum(largest / _WEIGHT_LIMIT, np.abs(bias) / (input_scale * BIAS_LIMIT))
    scale = np.where(scale > 0, scale, 1.0)
    quantized = np.rint(weight / scale[:, None])
    return np.clip(quantized, -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8), scale


def linear_parameters(
    weight: np.ndarray,
    bias: np.ndarray,
    input_scale: float,
    input_zero_point: int,
    h_scale: np.ndarray,
    name: str,
) -> dict[str, np.ndarray]:
    """Tensors of a `linear` node.

    Args:
        weight: float64 (N, K).
        bias: float64 (N,).
        input_scale: of x.
        input_zero_point: of x.
        h_scale: float64 (N,): the real value of one unit of `h` in each channel.
        name: of the output, for errors.
    """
    quantized, weight_scale = quantize_weight(weight, bias, input_scale)
    unit = input_scale * weight_scale
    pre, mult = fixed_point(unit / h_scale, name)
    offset = input_zero_point * quantized.astype(np.int64).sum(axis=1)
    integer_bias = np.rint(bias / unit).astype(np.int64) - offset + half(pre)
    return {
        "weight": quantized,
        "bias": integer_bias.astype(np.int32),
        "pre": pre,
        "mult": mult,
    }


def layer_norm_parameters(
    gamma: np.ndarray,
    beta: np.ndarray,
    epsilon: float,
    input_scale: float,
    out_scale: float,
    out_zero_point: int,
) -> tuple[dict[str, np.ndarray], int]:
    """Tensors of a `layer_norm` node and its attribute `shift` (section 3.4)."""
    channels = gamma.size
    c2 = math.ceil(math.log2(channels) / 2)
    unit_gamma = gamma * 2.0 ** (c2 - 14) / out_scale
    unit_beta = beta / out_scale + out_zero_point
    shift = 24
    while shift > 1 and (
        np.abs(np.rint(unit_gamma * 2.0**shift)).max() > 32767
        or np.abs(np.rint(unit_beta * 2.0**shift)).max() + 2 ** (shift - 1) >= 2**30
    ):
        shift -= 1
    eps = max(1, round(epsilon * channels**2 / input_scale**2))
    tensors = {
        "gamma": np.rint(unit_gamma * 2.0**shift).astype(np.int32),
        "beta": (np.rint(unit_beta * 2.0**shift) + half(shift)).astype(np.int32),
        "params": np.array([eps], dtype=np.int64),
    }
    return tensors, shift


def gelu_exponent(low: float, high: float) -> int:
    """K of section 3.3: the largest <= 10 with max(|low|, |high|) within 2^14 * 2^-k."""
    reach = max(-low, high, 1e-6)
    return max(6, min(10, math.floor(14 - math.log2(reach))))


def gelu_parameters(activation: str, k: int, h_scale: float, name: str) -> np.ndarray:
    """`act_params` of section 3.3, int32 (6,): [k, qb, q1, e, pre, mult].

    Args:
        activation: "igelu" or "shiftgelu".
        k: the input's scale is 2^-k.
        h_scale: real value of one unit of the h that comes out.
        name: of the output, for errors.
    """
    if activation == "igelu":
        qb = math.floor(1.769 * math.sqrt(2) * 2**k)
        q1 = math.floor(2 * 4**k / 0.2888)
        e = 2 * k - 11
        unit = 2.0**-k * 2**e / (2 * q1)
    else:
        qb = q1 = e = 0
        unit = 2.0**-k / 2**15
    pre, mult = fixed_point(unit / h_scale, name)
    return np.array([k, qb, q1, e, int(pre), int(mult)], dtype=np.int32)


def attention_parameters(
    score_unit: float, value_scale: float, out_scale: float, name: str
) -> np.ndarray:
    """`params` of section 3.5, int32 (4,): [pre, mult, out_mult, out_shift].

    Args:
        score_unit: real value (a natural logarithm) of one unit of q.k.
        value_scale: of v.
        out_scale: of the output.
        name: of the output, for errors.

    Raises:
        IntswinError: one unit of q.k is so large that the softmax only picks maxima.
    """
    if score_unit / LN2_STEP / 16 >= 1 - 2**-16:
        raise IntswinError(
            f"{name}: one int8 step of q.k changes a score by {score_unit:.2g}, too much for an "
            "8-bit softmax; is the network trained?"
        )
    pre, mult = fixed_point(score_unit / LN2_STEP / 16, name)
    ratio = value_scale / (256 * out_scale)
    out_shift = min(22, math.floor(15 - math.log2(ratio)))
    out_mult = min(32767, round(ratio * 2**out_shift))
    return np.array([int(pre), int(mult), out_mult, out_shift], dtype=np.int32)


def symmetric_scale(low: float, high: float, steps: float) -> float:
    """Scale that maps the larger of |low|, |high| to `steps`."""
    return max(-low, high, 1e-9) / steps


def asymmetric_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of a uint8 that spans [low, high], low <= 0 <= high."""
    scale = max(high - low, 1e-9) / 255
    return scale, int(np.clip(round(-low / scale), 0, 255))
