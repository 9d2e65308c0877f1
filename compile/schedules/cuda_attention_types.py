"""What both CUDA attention kernels take."""

from __future__ import annotations

import dataclasses

from intswin.compile.schedules.cuda_intrinsics import Buffer


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The buffers of an attention kernel, each flat, in the order of its PrimFunc's parameters.

    Attributes:
        qkv: int8, B * R * 3 * heads * d.
        rows: int32, W * n.
        params: int32, 4.
        bias: int16, in the kernel's order; None without one.
        pattern: int32, W; None without a bias.
        y: uint8, B * R * heads * d.
    """

    qkv: Buffer
    rows: Buffer
    params: Buffer
    bias: Buffer | None
    pattern: Buffer | None
    y: Buffer
