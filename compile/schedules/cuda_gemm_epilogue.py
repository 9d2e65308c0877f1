"""The epilogue of the CUDA GEMMs: from int32 accumulators to stored bytes, in registers.

A thread has the accumulators of 8 or 4 neighbouring columns of a row and writes their results by
one store. Shifts and additions of docs/integer-semantics.md are taken together where that is exact:

    (((a * mult + 2^14) >> 15) + c) >> s  =  (a * mult + 2^14 + (c << 15)) >> (15 + s)

A floor of a floor is one floor. With |a * mult| < 2^30 and |c| <= 2^15 nothing leaves int32: c is
the zero point with the rounding term (below 2^15: the quantizer keeps it in int16), or a residual.
The last saturation is that of the packing instruction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32, saturate
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gelu import IntegerGelu
from intswin.compile.schedules.cuda_gemm_tiles import CudaGemmShape
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

Load = Callable[[Expr, Expr, int], Expr]  # cuda.load_global or cuda.load_early

_SIZES = {"u8": 1, "s8": 1, "i16": 2, "i32": 4}
_PACK: dict[str, Callable[..., Expr]] = {  # as many results as a word has
    "u8": cuda.pack_u8,
    "s8": cuda.pack_s8,
    "i16": cuda.pack_s16,
    "i32": lambda value: value,
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The buffers of a GEMM, each flat, in the order of its PrimFunc's parameters.

    Attributes:
        x: uint8, M * K.
        weight: int8, packed.
        requantization: int32, 3 * padded N: bias, pre, mult.
        act_params: int32, 6; None without an activation.
        offset: int32, 1: what is added before the last shift; None for wide results.
        residual: int16, M * N; None without one.
        y: M * N.
    """

    x: Buffer
    weight: Buffer
    requantization: Buffer
    act_params: Buffer | None
    offset: Buffer | None
    residual: Buffer | None
    y: Buffer

    @classmethod
    def named(cls, buffers: Mapping[str, Buffer]) -> Arguments:
        """Those that `buffers` has by these names."""
        return cls(**{field.name: buffers.get(field.name) for field in dataclasses.fields(cls)})

    @classmethod
    def of_second(cls, buffers: Mapping[str, Buffer]) -> Arguments:
        """Those of a kernel's second GEMM, weight2 and requantization2: x is added to its result.

        Its own x is not among them.
        """
        return cls(
            x=buffers["x"],
            weight=buffers["weight2"],
            requantization=buffers["requantization2"],
            act_params=None,
            offset=None,
            residual=buffers["x"],
            y=buffers["y"],
        )


class Epilogue:
    """Code for `width` neighbouring columns of the rows that a thread has.

    Made where its scalars may be loaded. `load_columns` and `load_residual` start what `store`
    needs for a row.
    """

    def __init__(self, shape: CudaGemmShape, args: Arguments, width: int, rows: int) -> None:
        """Of `rows` rows at a time, each loaded by `load_residual` under its number."""
        self._shape, self._args, self._width = shape, args, width
        self._columns = [cuda.registers(width) for _ in range(3)]
        self._packed = cuda.registers(width)
        if args.residual is not None:
            words = width // 2
            self._residual = cuda.registers(rows * words)
        self._last_shift, self._rounding = int32(15), int32(1 << 14)
        if args.offset is not None:
            self._last_shift = int32(15 + shape.frac)
            self._rounding = T.Bind((args.offset[0] << int32(15)) + int32(1 << 14))
        if args.act_params is not None:
            self._act_params = [T.Bind(args.act_params[i]) for i in range(6)]
            self._gelu = IntegerGelu(shape.activation, self._act_params[:4])
            self._half = T.Bind((int32(1) << self._act_params[4]) >> int32(1))

    @property
    def whole(self) -> bool:
        """Whether rows end behind whole groups of `width` columns, so that stores are aligned."""
        return self._shape.columns % self._width == 0

    def load_columns(self, column: Expr, load: Load = cuda.load_global) -> None:
        """Load the constants of the columns from `column` on, a multiple of the width."""
        padded = int(self._args.requantization.shape[0]) // 3
        # Columns behind the padding are computed in vain, with the last ones' constants.
        column = T.Bind(tirx.min(column, int32(padded - self._width)))
        for i, registers in enumerate(self._columns):
            for at in range(0, self._width, 4):
                source = cuda.pointer(self._args.requantization, i * padded + column + at)
                T.evaluate(load(cuda.pointer(registers, at), source, 16))

    def load_residual(self, index: int, row: Expr, column: Expr) -> None:
        """Load row number `index`'s residual, of the last row where `row` is beyond it."""
        residual, width, shape = self._args.residual, self._width, self._shape
        if residual is None:
            return
        row = tirx.min(row, int32(shape.rows - 1))
        words = width // 2
        if self.whole:
            last = int32(shape.columns - width)
            at = row * shape.columns + tirx.min(column, last)
            registers = cuda.pointer(self._residual, index * words)
            T.evaluate(cuda.load_activation(registers, cuda.pointer(residual, at), 2 * width))
            return
        halves = cuda.registers(2)
        for word in range(words):
            for half in range(2):
                inside = tirx.min(column + (2 * word + half), int32(shape.columns - 1))
                source = cuda.pointer(residual, row * shape.columns + inside)
                T.evaluate(cuda.load_activation(cuda.pointer(halves, half), source, 2))
            packed = (halves[1] << int32(16)) | halves[0]
            T.buffer_store(self._residual, packed, [index * words + word])

    def store(self, index: int, row: Expr, column: Expr, acc: list[Expr]) -> None:
        """Write the results of accumulators `acc` to a row that exists, from `column` on.

        `index` is the row's number in `load_residual`.
        """
        size, shape = _SIZES[self._shape.out], self._shape
        if not self.whole:
            results = [self._result(index, i, value) for i, value in enumerate(acc)]
            for i, result in enumerate(results):
                with T.If(column + i < int32(shape.columns)):
                    with T.Then():
                        value = saturate(result, str(self._args.y.dtype)) if size < 4 else result
                        T.buffer_store(
                            self._args.y,
                            value.astype(str(self._args.y.dtype)),
                            [row * shape.columns + column + i],
                        )
            return
        packed, total = self.packed(index, acc), self._width * size
        for at in range(0, total, 16):
            target = cuda.pointer(self._args.y, row * shape.columns + column + at // size)
            registers = cuda.pointer(packed, at // 4)
            T.evaluate(cuda.store_global(target, registers, min(total, 16)))

    def packed(self, index: int, acc: list[Expr]) -> Buffer:
        """The results as they are stored, in registers until the next call; `index` as above."""
        results = [self._result(index, i, value) for i, value in enumerate(acc)]
        per_word = 4 // _SIZES[self._shape.out]
        for word in range(self._width // per_word):
            part = results[word * per_word : (word + 1) * per_word]
            T.buffer_store(self._packed, _PACK[self._shape.out](*part), [word])
        return self._packed

    def _result(self, index: int, i: int, acc: Expr) -> Expr:
        """The result of column `i`, before it is saturated to the output's dtype."""
        bias, pre, mult = (registers[i] for registers in self._columns)
        a = saturate((acc + bias) >> pre, "int16")
        if self._args.act_params is not None:
            t = (a * mult + int32(1 << 14)) >> int32(15)
            p = T.Bind(self._gelu.product(t) + self._half)
            pre, mult = self._act_params[4], self._act_params[5]
            a = saturate(p >> pre, "int16")
        rounding = self._rounding
        if self._args.residual is not None:
            word = self._residual[index * (self._width // 2) + i // 2]
            residual = word >> int32(16) if i % 2 else (word << int32(16)) >> int32(16)
            rounding = residual * int32(1 << 15) + rounding
        return T.Bind((a * mult + rounding) >> self._last_shift)
