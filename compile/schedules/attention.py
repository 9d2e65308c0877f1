"""The attention kernel (docs/integer-semantics.md section 3.5), written out in vectors.

A task is one head of one window of one image. It packs k and v for the multiply-accumulate
instruction, then takes a few queries at a time from their scores to their output, so that scores
and probabilities never leave the first-level cache.

The softmax runs in 16-bit lanes. Scores are summed with saturation, which is exact as long as
nothing within 9 octaves of the row's maximum saturates; a row whose maximum is outside
[_LOWEST_TOP, _HIGHEST_TOP] is done again in 32 bits. The i-exp is, for u = 256 z + f,

    p = (((l >> 4) * 22466 >> 20 >> z) + 1) >> 1

(the formula of section 3.5 with its floors taken apart), and the 16-bit products with rounded
constants in `_exponential` give the same (l >> 4) * 22466 >> 20 for each of the 256 values of f
(tests/compile/test_attention.py tries them all).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules import simd
from intswin.compile.schedules.simd import Expr, Simd, cast, const, let, load, splat, store

_REACH = 9 * 256 - 1 + 256  # the largest u that has to be told from others: z = 9 for all above
_SHIFT = 4 * 256  # added to u, so that z + 4 is a byte of it: `_exponential` shifts by z + 4
_LOWEST_TOP = -32768 + _REACH  # above it what saturated at -2^15 has p = 0
_SHARES = 32  # of the tasks: many enough for balance, few enough to allocate memory for each
_HIGHEST_TOP = 32767 - _SHIFT  # up to it u + _SHIFT fits 16 bits and nothing saturated at 2^15


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """What a kernel is compiled for.

    Attributes:
        batch: images.
        rows: rows (tokens) of an image.
        windows: windows of an image.
        tokens: tokens of a window, at most 1024.
        heads: heads.
        d: channels of a head, a multiple of 16 up to 128.
        patterns: distinct biases; 0: no bias.
    """

    batch: int
    rows: int
    windows: int
    tokens: int
    heads: int
    d: int
    patterns: int


def padded_tokens(tokens: int, isa: Simd) -> int:
    """Columns of the bias table: the keys of a window in whole vectors."""
    return tokens + -tokens % isa.lanes


def attention_kernel(shape: AttentionShape, isa: Simd) -> tirx.PrimFunc:
    """Make the PrimFunc of all layers of a shape, for a CPU.

    Its arguments: qkv int8 (B, R, 3 * heads * d); rows int32 (W, n); params int32 (4,); where there
    are patterns, bias int16 (P, heads, n, `padded_tokens`), whose padding is not used, and
    pattern int32 (W,); the output y uint8 (B, R, heads * d).
    """
    windows, tokens, heads = shape.windows, shape.tokens, shape.heads
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("attention")
            qkv = T.arg("qkv", T.buffer((shape.batch, shape.rows, 3 * heads * shape.d), "int8"))
            rows = T.arg("rows", T.buffer((windows, tokens), "int32"))
            params = T.arg("params", T.buffer((4,), "int32"))
            bias = pattern = None
            if shape.patterns:
                columns = padded_tokens(tokens, isa)
                extents = (shape.patterns, heads, tokens, columns)
                bias = T.arg("bias", T.buffer(extents, "int16"))
                pattern = T.arg("pattern", T.buffer((windows,), "int32"))
            y = T.arg("y", T.buffer((shape.batch, shape.rows, heads * shape.d), "uint8"))
            tasks = shape.batch * windows * heads
            shares = tirx.const(min(tasks, _SHARES), "int32")
            with T.parallel(0, shares) as share:
                kernel = _Kernel(shape, isa, qkv, rows, params, bias, pattern, y)
                first = let(tirx.truncdiv(share * tasks, shares))
                end = let(tirx.truncdiv((share + 1) * tasks, shares))
                with T.serial(first, end) as task:
                    kernel.task(task)
    return simd.finished(builder.get(), "attention")


@dataclasses.dataclass
class _Kernel:
    """What a share of the tasks needs; its arrays are reused from task to task."""

    shape: AttentionShape
    isa: Simd
    qkv: simd.Buffer
    rows: simd.Buffer
    params: simd.Buffer
    bias: simd.Buffer | None
    pattern_of: simd.Buffer | None
    y: simd.Buffer

    def __post_init__(self) -> None:
        shape, isa = self.shape, self.isa
        self.block = min(5 if isa.kind == "vnni" else 4, shape.tokens)  # queries at a time
        # Vectors of accumulators for each of them, on the stack: below 1 KiB.
        self.chunk = min(isa.registers // self.block, 8)
        self.vectors = padded_tokens(shape.tokens, isa) // isa.lanes  # of keys
        self.k_steps = shape.d // isa.depth
        self.v_steps = -(-shape.tokens // isa.depth)
        self.v_vectors = shape.d // isa.lanes
        lanes, depth = isa.lanes, isa.depth
        self.pre, self.mult, self.out_mult, self.out_shift = (
            let(self.params[index]) for index in range(4)
        )
        self.q = simd.scratch((shape.tokens, shape.d), isa.left_dtype)
        self.k = simd.scratch((self.vectors, self.k_steps, lanes * depth), isa.right_dtype)
        self.v = simd.scratch((self.v_vectors, self.v_steps, lanes * depth), isa.right_dtype)
        self.start = simd.scratch((self.vectors * lanes,), "int32")
        self.t = simd.scratch((self.block, self.vectors * lanes), "int16")
        if self.bias is not None:
            self.h = simd.scratch((self.block, self.vectors * lanes), "int16")
        self.p = simd.scratch((self.block, self.vectors * lanes), isa.left_dtype)

    def task(self, task: Expr) -> None:
        """One head of one window of one image."""
        shape = self.shape
        heads, windows = tirx.const(shape.heads, "int32"), tirx.const(shape.windows, "int32")
        self.head = let(tirx.truncmod(task, heads))
        self.window = let(tirx.truncmod(tirx.truncdiv(task, heads), windows))
        self.image = let(tirx.truncdiv(tirx.truncdiv(task, heads), windows))
        if self.pattern_of is not None:
            self.pattern = let(self.pattern_of[self.window])
        self._pack_q()
        self._pack_k()
        self._pack_v()
        with T.serial(0, -(-shape.tokens // self.block)) as step:
            # The last block starts early enough to be whole: some queries are computed twice.
            first = let(tirx.min(step * self.block, shape.tokens - self.block))
            self._scores(first)
            sums = [self._softmax(r, first + r) for r in range(self.block)]
            self._output(first, sums)

    def _row(self, token: Expr | int) -> Expr:
        """The row of a token of this window; tokens behind the last one stand for it."""
        last = self.shape.tokens - 1
        return let(self.rows[self.window, tirx.min(token, last)])

    def _load(self, part: int, row: Expr, at: Expr | int, lanes: int) -> Expr:
        """Columns [at, at + lanes) of q (part 0), k (1) or v (2) of this head."""
        column = (part * self.shape.heads + self.head) * self.shape.d + at
        return load(self.qkv, [self.image, row, column], lanes)

    def _pack_q(self) -> None:
        """Pack q, row by row, as the operand that is broadcast."""
        with T.serial(0, self.shape.tokens) as i:
            row = self._row(i)
            for at in range(0, self.shape.d, 16):
                q = self._load(0, row, at, 16)
                if self.isa.left_offset:
                    q = simd.bits(q, "uint8") ^ tirx.Broadcast(tirx.const(128, "uint8"), 16)
                else:
                    q = cast(q, "int16")
                store(self.q, q, [i, at])

    def _pack_k(self) -> None:
        """Pack k with `depth` channels of a key in a lane; make the accumulators' start values."""
        lanes, depth = self.isa.lanes, self.isa.depth
        with T.serial(0, self.vectors) as n:
            with T.serial(0, lanes) as lane:
                row = self._row(n * lanes + lane)
                with T.serial(0, self.k_steps) as step:
                    k = self._load(1, row, step * depth, depth)
                    k = k if self.isa.right_dtype == "int8" else cast(k, "int16")
                    store(self.k, k, [n, step, lane * depth])
            # (16 acc + half(pre)) >> pre, with half(pre) / 16 in the accumulator: below 1 it is
            # lost in the shift anyway.
            half = (tirx.const(1, "int32") << self.pre) >> 5
            total = simd.scratch((lanes,), "int32")
            store(total, tirx.Broadcast(tirx.const(0, "int32"), lanes), [0])
            if self.isa.left_offset:
                ones = tirx.Broadcast(tirx.const(self.isa.left_offset, "uint8"), depth)
                with T.serial(0, self.k_steps) as step:
                    k = load(self.k, [n, step, 0], lanes * depth)
                    store(total, self.isa.dot(load(total, [0], lanes), ones, k), [0])
            store(self.start, splat(half, lanes) - load(total, [0], lanes), [n * lanes])

    def _pack_v(self) -> None:
        """Pack v with `depth` keys of a channel in a lane."""
        lanes, depth = self.isa.lanes, self.isa.depth
        order = [lane + lanes * key for lane in range(lanes) for key in range(depth)]
        with T.serial(0, self.v_steps) as step:
            rows = [self._row(step * depth + key) for key in range(depth)]
            for n in range(self.v_vectors):
                parts = [let(self._load(2, row, n * lanes, lanes)) for row in rows]
                v = tirx.Shuffle(parts, order) if depth > 1 else parts[0]
                v = v if self.isa.right_dtype == "int8" else cast(v, "int16")
                store(self.v, v, [n, step, 0])

    def _multiply(
        self,
        count: int,
        steps: int,
        left: Callable[[int, Expr], Expr],
        right: Callable[[int, Expr], Expr],
        start: Callable[[int], Expr],
    ) -> list[list[Expr]]:
        """Multiply and accumulate a block of queries by `count` vectors.

        Args:
            count: vectors.
            steps: calls of `Simd.dot` for each accumulator.
            left: of a query and a step, what is broadcast.
            right: of a vector and a step, what has a lane a column.
            start: of a vector, where its accumulators start.

        Returns:
            accumulators [query][vector].
        """
        lanes = self.isa.lanes
        acc = [simd.scratch((count, lanes), "int32") for _ in range(self.block)]
        for r in range(self.block):
            for n in range(count):
                store(acc[r], start(n), [n, 0])
        with T.serial(0, steps) as step:
            rights = [let(right(n, step)) for n in range(count)]
            for r in range(self.block):
                word = let(left(r, step))
                for n in range(count):
                    store(
                        acc[r], self.isa.dot(load(acc[r], [n, 0], lanes), word, rights[n]), [n, 0]
                    )
        return [[let(load(row, [n, 0], lanes)) for n in range(count)] for row in acc]

    def _scores(self, first: Expr) -> None:
        """Scores t (and h) of the queries [first, first + block)."""
        zero, four = tirx.const(0, "int32"), tirx.const(4, "int32")
        left = let(tirx.max(four - self.pre, zero))
        right = let(tirx.max(self.pre - four, zero))
        mult = let(self.mult.astype("int16"))
        lanes, depth = self.isa.lanes, self.isa.depth

        def chunk(at: Expr | int, count: int) -> None:
            acc = self._multiply(
                count,
                self.k_steps,
                lambda r, step: load(self.q, [first + r, step * depth], depth),
                lambda n, step: load(self.k, [at + n, step, 0], lanes * depth),
                lambda n: load(self.start, [(at + n) * lanes], lanes),
            )
            for r in range(self.block):
                for n in range(count):
                    key = (at + n) * lanes
                    a = (acc[r][n] << splat(left, lanes)) >> splat(right, lanes)
                    h = self.isa.multiply_round_q15(simd.clamp(a, "int16"), splat(mult, lanes))
                    if self.bias is None:
                        store(self.t, h, [r, key])
                        continue
                    h = let(h)
                    store(self.h, h, [r, key])
                    b = load(self.bias, [self.pattern, self.head, first + r, key], lanes)
                    store(self.t, simd.add_saturating(h, b), [r, key])

        whole = self.vectors // self.chunk
        if whole:
            with T.serial(0, whole) as c:
                chunk(c * self.chunk, self.chunk)
        if self.vectors % self.chunk:
            chunk(whole * self.chunk, self.vectors % self.chunk)
        if self.shape.tokens % lanes:  # keys that are not there never are the maximum
            used = self.shape.tokens % lanes
            mask = tirx.Ramp(0, 1, lanes) < tirx.Broadcast(tirx.const(used, "int32"), lanes)
            for r in range(self.block):
                at = [r, (self.vectors - 1) * lanes]
                t = load(self.t, at, lanes)
                store(self.t, tirx.Select(mask, t, const(-32768, t)), at)

    def _softmax(self, r: int, query: Expr) -> Expr:
        """Probabilities p of a query; returns their sum."""
        lanes = self.isa.lanes
        top = simd.scratch((lanes,), "int16")
        total = simd.scratch((lanes,), "int16")  # at most 1024 / lanes * 255
        store(top, load(self.t, [r, 0], lanes), [0])
        with T.serial(1, self.vectors) as v:
            t = load(self.t, [r, v * lanes], lanes)
            store(top, tirx.max(load(top, [0], lanes), t), [0])
        m = let(simd.reduce("smax", load(top, [0], lanes)).astype("int32"))
        # From here on t holds u + _SHIFT, modulo 2^16.
        exact = tirx.all(m > _LOWEST_TOP, m <= _HIGHEST_TOP)
        with T.If(exact):
            with T.Then():
                base = let((m + _SHIFT).astype("int16"))
                with T.serial(0, self.vectors) as v:
                    at = [r, v * lanes]
                    store(self.t, splat(base, lanes) - load(self.t, at, lanes), at)
            with T.Else():
                self._distances_in_32_bits(r, query)
        store(total, tirx.Broadcast(tirx.const(0, "int16"), lanes), [0])
        with T.serial(0, self.vectors) as v:
            u = simd.bits(load(self.t, [r, v * lanes], lanes), "uint16")
            p = let(simd.bits(_exponential(u), "int16"))
            store(total, load(total, [0], lanes) + p, [0])
            p = p if self.isa.left_dtype == "int16" else cast(simd.bits(p, "uint16"), "uint8")
            store(self.p, p, [r, v * lanes])
        return let(simd.reduce("add", cast(load(total, [0], lanes), "int32")))

    def _distances_in_32_bits(self, r: int, query: Expr) -> None:
        """Put u + _SHIFT of a row for which 16-bit sums may have saturated into `t`."""
        n = self.shape.tokens
        top = simd.scratch((1,), "int32")

        def score(j: Expr) -> Expr:
            if self.bias is None:
                return self.t[r, j].astype("int32")
            bias = self.bias[self.pattern, self.head, query, j]
            return self.h[r, j].astype("int32") + bias.astype("int32")

        T.buffer_store(top, tirx.const(-(1 << 17), "int32"), [0])
        with T.serial(0, n) as j:
            T.buffer_store(top, tirx.max(top[0], score(j)), [0])
        with T.serial(0, n) as j:
            u = tirx.min(top[0] - score(j), tirx.const(_REACH, "int32"))
            T.buffer_store(self.t, (u + _SHIFT).astype("int16"), [r, j])
        with T.serial(n, self.vectors * self.isa.lanes) as j:
            T.buffer_store(self.t, tirx.const(_REACH + _SHIFT, "int16"), [r, j])

    def _output(self, first: Expr, sums: list[Expr]) -> None:
        """Outputs of the queries [first, first + block) from p, v and the sums of p."""
        lanes, depth = self.isa.lanes, self.isa.depth
        one = tirx.const(1, "int32")
        scales = []
        for s in sums:
            k = let(simd.bit_length(s) - 8)
            scales.append((k, let((one << k) >> 1), let(tirx.truncdiv(one << (k + 20), s))))
        offset = let((tirx.const(128, "int32") << self.out_shift) + ((one << self.out_shift) >> 1))
        rows = [self._row(first + r) for r in range(self.block)]

        def chunk(at: int, count: int) -> None:
            acc = self._multiply(
                count,
                self.v_steps,
                lambda r, step: load(self.p, [r, step * depth], depth),
                lambda n, step: load(self.v, [at + n, step, 0], lanes * depth),
                lambda n: tirx.Broadcast(tirx.const(0, "int32"), lanes),
            )
            for r, (k, half, reciprocal) in enumerate(scales):
                for n in range(count):
                    o = (acc[r][n] + splat(half, lanes)) >> splat(k, lanes)
                    a = o * splat(reciprocal, lanes)
                    a = (a + const(1 << 11, a)) >> const(12, a)
                    y = a * splat(self.out_mult, lanes) + splat(offset, lanes)
                    y = simd.clamp(y >> splat(self.out_shift, lanes), "uint8")
                    column = self.head * self.shape.d + (at + n) * lanes
                    store(self.y, y, [self.image, rows[r], column])

        for at in range(0, self.v_vectors, self.chunk):
            chunk(at, min(self.chunk, self.v_vectors - at))


def _exponential(u: Expr) -> Expr:
    """Compute p from u + _SHIFT; uint16 lanes."""
    u = let(tirx.min(u, const(_REACH + _SHIFT, u)))
    f = let((u << const(6, u)) & const(255 << 6, u))
    parabola = const(23807, u) - simd.multiply_high(f, const(63946, u) - f)
    p = simd.multiply_high(parabola, const(22462, u)) >> (u >> const(8, u))
    return (p + const(1, u)) >> const(1, u)
