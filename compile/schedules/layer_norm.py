"""The LayerNorm kernel (docs/integer-semantics.md section 3.4), written out in vectors.

A task normalises a group of at most 16 rows in three steps: the sums of every row; the square root
and the reciprocal, for which a lane is a row, so that they cost little and divide nothing; the
output of every row. The root and the quotient are found bit by bit from the top: both are defined
by their value alone, and are what Newton's method and a division would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import simd
from intswin.compile.schedules.simd import Expr, Simd, cast, const, let, load, splat, store

_GROUP = 16  # rows: the lanes of the step between the sums and the output
_TASKS = 4  # the number of groups is a multiple, for balance on 2 and 4 cores


@dataclasses.dataclass(frozen=True)
class LayerNormShape:
    """What a kernel is compiled for.

    Attributes:
        batch: images.
        in_rows: rows of an input image.
        rows: rows of an output image.
        gather: input rows that make an output row.
        channels: channels of an input row.
        indexed: whether there is a table of the input rows of each output row.
        out: "uint8" or "int16".
        shift: the last right shift.
    """

    batch: int
    in_rows: int
    rows: int
    gather: int
    channels: int
    indexed: bool
    out: str
    shift: int


def layer_norm_kernel(shape: LayerNormShape, isa: Simd) -> tirx.PrimFunc:
    """Make the PrimFunc of all layers of a shape, for a CPU.

    Its arguments: x int16 (B, R', c); rows int32 (R, G) where `shape.indexed`; gamma int16 (C);
    beta int32 (C); eps int64 (1); the output y (B, R, C) of dtype `shape.out`, C = G * c.
    """
    total = shape.batch * shape.rows
    tasks = -(-total // _GROUP)
    tasks += -tasks % _TASKS if total > _TASKS else 0
    group = -(-total // tasks)
    width = shape.gather * shape.channels
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("layer_norm")
            x = T.arg("x", T.buffer((shape.batch, shape.in_rows, shape.channels), "int16"))
            rows = None
            if shape.indexed:
                rows = T.arg("rows", T.buffer((shape.rows, shape.gather), "int32"))
            gamma = T.arg("gamma", T.buffer((width,), "int16"))
            beta = T.arg("beta", T.buffer((width,), "int32"))
            eps = T.arg("eps", T.buffer((1,), "int64"))
            y = T.arg("y", T.buffer((shape.batch, shape.rows, width), shape.out))
            kernel = _Kernel(shape, isa, x, rows, gamma, beta, eps, y)
            with T.parallel(0, -(-total // group)) as task:
                # The last group starts early enough to be whole: some rows are computed twice.
                first = let(tirx.min(task * group, total - group))
                kernel.group(first, group)
    return simd.finished(builder.get(), "layer_norm")


@dataclasses.dataclass
class _Kernel:
    shape: LayerNormShape
    isa: Simd
    x: simd.Buffer
    rows: simd.Buffer | None
    gamma: simd.Buffer
    beta: simd.Buffer
    eps: simd.Buffer
    y: simd.Buffer

    def group(self, first: Expr, count: int) -> None:
        """Normalise the rows [first, first + count) of the batch."""
        sums = simd.scratch((_GROUP,), "int32")  # S1
        radicand = simd.scratch((_GROUP,), "int32")  # W
        exponent = simd.scratch((_GROUP,), "int32")  # e
        reciprocal = simd.scratch((_GROUP,), "int32")  # r
        with T.serial(0, count) as m:
            self._statistics(first + m, m, sums, radicand, exponent)
        for at in range(0, count, self.isa.lanes):
            w = let(load(radicand, [at], self.isa.lanes))
            store(reciprocal, _reciprocal_root(w), [at])
        with T.serial(0, count) as m:
            scalars = [let(buffer[m]) for buffer in (sums, exponent, reciprocal)]
            self._output(first + m, *scalars)

    def _place(self, row: Expr) -> tuple[Expr, Expr]:
        """Image and row in it."""
        if self.shape.batch == 1:
            return tirx.const(0, "int32"), row
        count = tirx.const(self.shape.rows, "int32")
        return let(tirx.truncdiv(row, count)), let(tirx.truncmod(row, count))

    def _source(self, i: Expr, g: Expr) -> Expr:
        """Input row of part g of output row i."""
        return i if self.rows is None else let(self.rows[i, g])

    def _statistics(
        self, row: Expr, m: Expr, sums: simd.Buffer, radicand: simd.Buffer, exponent: simd.Buffer
    ) -> None:
        """S1, W and e of one row."""
        shape, lanes = self.shape, self.isa.lanes
        b, i = self._place(row)
        # S2 in two int32 halves: a square has at most 31 bits, so at most 4096 times 16 bits each.
        parts = simd.scratch((3, lanes), "int32")
        for part in range(3):
            store(parts, const(0, load(parts, [0, 0], lanes)), [part, 0])
        tail = simd.scratch((3,), "int32")
        for part in range(3):
            T.buffer_store(tail, tirx.const(0, "int32"), [part])
        with T.serial(0, shape.gather) as g:
            source = self._source(i, g)
            for at, count in _chunks(shape.channels, 2 * lanes):
                _accumulate(
                    self.isa, parts if count > 1 else tail, load(self.x, [b, source, at], count)
                )
        s1, low, high = (
            let(simd.reduce("add", load(parts, [part, 0], lanes)) + tail[part]) for part in range(3)
        )
        s2 = (high.astype("int64") << tirx.const(16, "int64")) + low.astype("int64")
        wide = let(s1.astype("int64"))
        width = tirx.const(shape.gather * shape.channels, "int64")
        v = let(width * s2 - wide * wide + self.eps[0])
        j = let((simd.bit_length(v) - 29) >> 1)
        zero = tirx.const(0, "int32")
        right = tirx.max(j, zero).astype("int64") * tirx.const(2, "int64")
        left = tirx.max(-j, zero).astype("int64") * tirx.const(2, "int64")
        T.buffer_store(radicand, ((v >> right) << left).astype("int32"), [m])
        T.buffer_store(exponent, j + _root_bits(shape.gather * shape.channels), [m])
        T.buffer_store(sums, s1, [m])

    def _output(self, row: Expr, s1: Expr, exponent: Expr, reciprocal: Expr) -> None:
        """Write a row of y."""
        shape = self.shape
        b, i = self._place(row)
        zero = tirx.const(0, "int32")
        right = let(tirx.max(exponent, zero))
        left = let(tirx.max(-exponent, zero))
        half = let((tirx.const(1, "int32") << right) >> 1)
        r = let(reciprocal.astype("int16"))
        width = shape.gather * shape.channels
        with T.serial(0, shape.gather) as g:
            source = self._source(i, g)
            for at, count in _chunks(shape.channels, self.isa.lanes):
                channel = g * shape.channels + at
                x = cast(load(self.x, [b, source, at], count), "int32")
                n = x * const(width, x) - splat(s1, count)
                n = ((n << splat(left, count)) + splat(half, count)) >> splat(right, count)
                z = self.isa.multiply_round_q15(simd.clamp(n, "int16"), splat(r, count))
                gamma = cast(load(self.gamma, [channel], count), "int32")
                a = cast(z, "int32") * gamma + load(self.beta, [channel], count)
                store(self.y, simd.clamp(a >> const(shape.shift, a), shape.out), [b, i, channel])


def _chunks(extent: int, lanes: int) -> Iterator[tuple[Expr, int]]:
    """Open the loops that cover [0, extent): one over vectors, one over what is left."""
    whole = extent // lanes
    if whole:
        with T.serial(0, whole) as v:
            yield v * lanes, lanes
    if extent % lanes:
        with T.serial(0, extent % lanes) as c:
            yield whole * lanes + c, 1


def _accumulate(isa: Simd, parts: simd.Buffer, x: Expr) -> None:
    """Add x, and the low and high 16 bits of its squares, to the three rows of `parts`."""
    x = let(x)
    if simd.lanes_of(x) == 1:
        total = cast(x, "int32")
        square = simd.bits(let(total * total), "uint32")
    else:
        pairs = {"vnni": "llvm.x86.avx512.pmaddw.d.512", "avx2": "llvm.x86.avx2.pmadd.wd"}
        total, square = _pair_sums(pairs.get(isa.kind), x, isa.lanes)
    square = let(square)
    low = simd.bits(square & const(0xFFFF, square), "int32")
    high = simd.bits(square >> const(16, square), "int32")
    for part, value in enumerate((total, low, high)):
        if simd.lanes_of(x) == 1:
            T.buffer_store(parts, parts[part] + value, [part])
        else:
            store(parts, load(parts, [part, 0], isa.lanes) + value, [part, 0])


def _pair_sums(multiply_add: str | None, x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Sums of two neighbours (or of a lane of either half) of x, and of their squares.

    A sum of two squares is at most 2^31: it fits when it is taken as unsigned.
    """
    wide = f"int32x{lanes}"
    if multiply_add:
        square = simd.intrinsic(wide, multiply_add, x, x)
        return simd.intrinsic(wide, multiply_add, x, const(1, x)), simd.bits(square, "uint32")
    halves = [
        let(cast(tirx.Shuffle([x], list(range(at, at + lanes))), "int32")) for at in (0, lanes)
    ]
    squares = [simd.bits(half * half, "uint32") for half in halves]
    return halves[0] + halves[1], squares[0] + squares[1]


def _root_bits(channels: int) -> int:
    """c2 = ceil(log2(C) / 2)."""
    return ((channels - 1).bit_length() + 1) >> 1


def _reciprocal_root(w: Expr) -> Expr:
    """min(2^29 // floor(sqrt(w)), 32767) of w in [2^28, 2^30), bit by bit."""
    lanes = simd.lanes_of(w)
    # Loops over scratch: TVM's simplifier would expand a chain of bindings exponentially.
    root, quotient = simd.scratch((lanes,), "int32"), simd.scratch((lanes,), "int32")
    store(root, const(1 << 14, w), [0])  # the root is in [2^14, 2^15), and so is r
    store(quotient, const(1 << 14, w), [0])

    def best(result: simd.Buffer, fits: Callable[[Expr], Expr]) -> None:
        with T.serial(0, 14) as step:
            bit = let(tirx.const(1 << 13, "int32") >> step)
            now = let(load(result, [0], lanes))
            larger = let(now + splat(bit, lanes))
            store(result, tirx.Select(fits(larger), larger, now), [0])

    best(root, lambda candidate: candidate * candidate <= w)
    r = let(load(root, [0], lanes))
    best(quotient, lambda candidate: candidate * r <= const(1 << 29, w))
    return load(quotient, [0], lanes)
