"""The attention kernel for int8 tensor cores (sm_80 and later): a warp does 16 queries at a time.

Nothing goes through shared memory. A warp loads q, k and v from global memory into the fragments of
mma.m16n8k32 (schedules/cuda_intrinsics.py), and the scores it gets are, after the softmax, the
fragment of p that it multiplies by v: what would have to be exchanged between the lanes is avoided
by the order in which keys and channels are taken, which a sum over them does not depend on. With
lane = 4 g + t:

    channels of q k^T  the 8 bytes from 8 t on of 32 channels are one load, of q and of k
    keys               column 2 t + i of blocks 2 q and 2 q + 1 is key 16 q + 4 t + i (+ 2), so that
                       the four scores of a lane in a row are 4 neighbouring keys, one word of p
    channels of v      column g of block b is channel 4 g + b: 4 keys by 4 channels that a lane loads
                       become, transposed, its words of all four blocks, and it gets 8 neighbouring
                       channels of the output, one store

The row sums of p are the product with a matrix of ones. A window of up to SHORT tokens keeps its
keys, values and bias in registers for several strips or images; one of up to _SINGLE_PASS keeps a
strip's scores; a longer one computes them twice, for the maximum and for the sums, in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_math as math
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import (
    SHORT,
    STRIP,
    MmaAttentionTile,
    strips_of,
    warps_of,
)
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

_SINGLE_PASS = 208  # tokens
_CHUNK = 64  # keys, of longer windows
_PAIR = 16  # keys of two blocks of 8 columns
_STEP = 32  # depth of an mma
_ONES = 0x01010101


def arrange_bias(bias: np.ndarray) -> np.ndarray:
    """Rearrange int16 (P, heads, n, n) as lanes read it: (P, heads, strips, pairs, 32, 8).

    The last axis is (block of the pair, half of the strip, neighbour); zeros fill up the rest.
    """
    patterns, heads, n, _ = bias.shape
    padding = [(0, 0), (0, 0), (0, -n % STRIP), (0, -n % _PAIR)]
    padded = np.pad(bias.astype(np.int16), padding)
    split = padded.reshape(patterns, heads, -(-n // STRIP), 2, 8, -(-n // _PAIR), 4, 2, 2)
    lanes = split.transpose(0, 1, 2, 5, 4, 6, 7, 3, 8)
    return np.ascontiguousarray(lanes).reshape(*lanes.shape[:4], 32, 8)


def emit_mma(shape: AttentionShape, tile: MmaAttentionTile, args: Arguments) -> None:
    """Emit the kernel's body into the PrimFunc that is being built."""
    tasks = warps_of(shape, tile.strips, tile.images)
    with T.launch_thread("blockIdx.x", -(-tasks // tile.warps)) as block:
        with T.launch_thread("threadIdx.x", 32 * tile.warps) as thread:
            task = T.Bind(block * tile.warps + tirx.truncdiv(thread, int32(32)))
            kernel = _Kernel(shape, tile, args, T.Bind(tirx.truncmod(thread, int32(32))), task)
            with _where(task < int32(tasks) if tasks % tile.warps else None):
                kernel.emit()


class _where:
    """`with _where(condition)`: an if without an else; no condition, no if."""

    def __init__(self, condition: Expr | None) -> None:
        self._frames = [] if condition is None else [T.If(condition), T.Then()]

    def __enter__(self) -> None:
        for frame in self._frames:
            frame.__enter__()

    def __exit__(self, *error: object) -> None:
        for frame in reversed(self._frames):
            frame.__exit__(*error)


class _Kernel:
    """One warp."""

    def __init__(
        self, shape: AttentionShape, tile: MmaAttentionTile, args: Arguments, lane: Expr, task: Expr
    ) -> None:
        self.shape, self.tile, self.args, self.lane = shape, tile, args, lane
        self.g, self.t = T.Bind(lane // 4), T.Bind(lane % 4)
        groups = -(-strips_of(shape) // tile.strips)
        rest, group = _divided(task, groups)
        rest, self.head = _divided(rest, shape.heads)
        image, self.window = _divided(rest, shape.windows)
        self.first_strip = T.Bind(group * tile.strips)
        self.first_image = T.Bind(image * tile.images)
        self.short = shape.tokens <= SHORT
        self.width = 3 * shape.heads * shape.d
        self.steps = -(-shape.d // _STEP)
        keys = shape.tokens if shape.tokens <= _SINGLE_PASS else _CHUNK
        self.pairs = -(-keys // _PAIR)
        # This lane's key of block 0, and the bytes of it that it loads.
        self.key = T.Bind(self.g // 2 * 4 + self.g % 2)
        self.channel = [T.Bind(self._clamped(8 * self.t, step, 8)) for step in range(self.steps)]
        self.v_channel = [T.Bind(self._clamped(4 * self.g, step, 4)) for step in range(self.steps)]

    def emit(self) -> None:
        """All images and strips of the warp."""
        self.scalars = math.Scalars(self.args.params, self.shape.d)
        k_steps = -(-self.pairs // 2)
        self.q = cuda.registers(4 * self.steps)
        self.loaded = cuda.registers(4)
        self.acc = cuda.registers(8 * self.pairs)
        self.p = cuda.registers(4 * k_steps)
        self.o = cuda.registers(16 * self.steps)
        self.sums = cuda.registers(4)
        self.ones = cuda.registers(2)
        self.words = cuda.registers(4)
        self.k = cuda.registers(4 * self.pairs * self.steps)
        self.v = cuda.registers(8 * k_steps * self.steps)
        for i in range(2):
            T.buffer_store(self.ones, int32(_ONES), [i])
        if self.args.pattern is not None:
            pattern = self.args.pattern[self.window]
            self.table = T.Bind(pattern * self.shape.heads + self.head)
            kept = self.tile.strips if self.short else 1
            self.bias = cuda.registers(8 * self.pairs * kept)
            if self.short:
                for i in range(kept):
                    self._load_bias(self._strip(i), 0, self.shape.tokens, i)
        if self.tile.images == 1:
            self._image(self.first_image)
            return
        with T.serial(0, self.tile.images) as i:
            image = T.Bind(self.first_image + i)
            partial = self.shape.batch % self.tile.images
            with _where(image < int32(self.shape.batch) if partial else None):
                self._image(image)

    def _image(self, image: Expr) -> None:
        shape = self.shape
        self.image_row = T.Bind(image * shape.rows)
        n = shape.tokens
        if self.short:
            self._load_keys(0, n)
            self._load_values(0, n)
        groups = strips_of(shape)
        for i in range(self.tile.strips):
            strip = self._strip(i)
            partial = groups % self.tile.strips > 0 and i > 0
            with _where(strip < int32(groups) if partial else None):
                self._load_queries(strip)
                if n <= _SINGLE_PASS:
                    self._scores(strip, 0, n, i)
                    self._softmax(strip, 0, n)
                else:
                    self._two_passes(strip)
                self._output(strip)

    def _strip(self, i: int) -> Expr:
        """Number of this warp's strip `i` in its window."""
        return T.Bind(self.first_strip + i)

    def _clamped(self, channel: Expr, step: int, count: int) -> Expr:
        """First of `count` channels of this head, in 32 from 32 `step` on, that may be loaded."""
        last = min(self.shape.d - _STEP * step, _STEP) - count
        inside = channel if last == _STEP - count else tirx.min(channel, int32(last))
        return self.head * self.shape.d + inside + _STEP * step

    def _row(self, token: Expr, last: int | None) -> Expr:
        """Row in the batch of a token; tokens behind `last` stand for it."""
        if last is not None:
            token = tirx.min(token, int32(last))
        row = self.args.rows[self.window * self.shape.tokens + token]
        return T.Bind(self.image_row + row)

    def _load(self, registers: Buffer, at: int, part: int, row: Expr, channel: Expr, size: int):  # noqa: ANN202
        offset = row * self.width + part * self.shape.heads * self.shape.d + channel
        source = cuda.pointer(self.args.qkv, offset)
        T.evaluate(cuda.load_global(cuda.pointer(registers, at), source, size))

    def _load_queries(self, strip: Expr) -> None:
        last = None if self.shape.tokens % STRIP == 0 else self.shape.tokens - 1
        rows = [self._row(strip * STRIP + self.g + 8 * half, last) for half in range(2)]
        for step in range(self.steps):
            for half in range(2):
                self._load(self.loaded, 2 * half, 0, rows[half], self.channel[step], 8)
            cut = self.shape.d - _STEP * step < _STEP
            for half in range(2):
                for i in range(2):
                    q = self.loaded[2 * half + i]
                    if cut:  # channels behind the head's last
                        q = tirx.Select(self.t < int32(2), q, int32(0))
                    T.buffer_store(self.q, q, [4 * step + 2 * i + half])

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        """Pairs and their blocks that have one of `count` keys."""
        for pair in range(-(-count // _PAIR)):
            for block in range(2):
                if _lanes(count, pair, block, 0):
                    yield pair, block

    def _load_keys(self, first: Expr | int, count: int) -> None:
        """Fragments of the keys from `first` on."""
        for pair, block in self._blocks(count):
            token = self.key + (first + _PAIR * pair + 2 * block)
            row = self._row(token, self._last(first, count, _PAIR * (pair + 1)))
            for step in range(self.steps):
                at = ((2 * pair + block) * self.steps + step) * 2
                self._load(self.k, at, 1, row, self.channel[step], 8)

    def _last(self, first: Expr | int, count: int, end: int) -> int | None:
        """The last token, where keys up to `first` + `end` go beyond it."""
        return self.shape.tokens - 1 if end > count else None

    def _load_values(self, first: Expr | int, count: int) -> None:
        """Fragments of the values of the keys from `first` on."""
        for pair in range(-(-count // _PAIR)):
            token = first + _PAIR * pair + 4 * self.t
            last = self._last(first, count, _PAIR * (pair + 1))
            rows = [self._row(token + i, last) for i in range(4)]
            for step in range(self.steps):
                for i, row in enumerate(rows):
                    self._load(self.words, i, 2, row, self.v_channel[step], 4)
                words = [T.Bind(self.words[i]) for i in range(4)]
                for b, word in enumerate(math.transpose_bytes(words)):
                    T.buffer_store(self.v, word, [self._value(pair, step, b)])
        if -(-count // _PAIR) % 2:
            for step in range(self.steps):
                for b in range(4):
                    at = self._value(-(-count // _PAIR), step, b)
                    T.buffer_store(self.v, int32(0), [at])

    def _value(self, pair: int, step: int, block: int) -> int:
        return ((pair // 2 * self.steps + step) * 4 + block) * 2 + pair % 2

    def _load_bias(self, strip: Expr, first: Expr | int, count: int, kept: int) -> None:
        """The bias of a strip and the keys from `first` on."""
        strips, pairs = strips_of(self.shape), -(-self.shape.tokens // _PAIR)
        word = cuda.registers(4)
        strip = tirx.min(strip, int32(strips - 1))
        row = T.Bind((self.table * strips + strip) * pairs + tirx.truncdiv(first, _PAIR))
        for pair in range(-(-count // _PAIR)):
            source = cuda.pointer(self.args.bias, ((row + pair) * 32 + self.lane) * 8)
            T.evaluate(cuda.load_global(cuda.pointer(word, 0), source, 16))
            for i in range(4):
                for neighbour, value in enumerate(math.unpack_bias(word[i])):
                    at = (kept * self.pairs + pair) * 8 + 2 * i + neighbour
                    T.buffer_store(self.bias, value, [at])

    def _scores(self, strip: Expr, first: Expr | int, count: int, kept: int) -> None:
        """Scores T of a strip and the keys from `first` on, in the accumulators."""
        if not self.short:
            self._load_keys(first, count)
            if self.args.pattern is not None:
                self._load_bias(strip, first, count, 0)
                kept = 0
        indices = []
        for pair, block in self._blocks(count):
            acc = (2 * pair + block) * 4
            for i in range(4):
                T.buffer_store(self.acc, self.scalars.start, [acc + i])
            for step in range(self.steps):
                k = cuda.pointer(self.k, ((2 * pair + block) * self.steps + step) * 2)
                T.evaluate(
                    cuda.mma_s8s8(cuda.pointer(self.acc, acc), cuda.pointer(self.q, 4 * step), k)
                )
            indices += [acc + i for i in range(4) if _lanes(count, pair, block, i % 2)]
        self.scalars.saturate(self.acc, indices)
        for index in indices:
            bias = None
            if self.args.pattern is not None:
                bias = self.bias[kept * self.pairs * 8 + index]
            T.buffer_store(self.acc, self.scalars.score(self.acc[index], bias), [index])

    def _elements(self, count: int, half: int) -> Iterator[tuple[int, Expr | None]]:
        """Accumulators of a half of the strip, with the condition on which a lane has one."""
        for pair, block in self._blocks(count):
            for i in range(2):
                lanes = _lanes(count, pair, block, i)
                if lanes:
                    condition = None if lanes == 4 else self.t < int32(lanes)
                    yield (2 * pair + block) * 4 + 2 * half + i, condition

    def _second_half(self, strip: Expr) -> Expr | None:
        """Whether a strip has more than 8 queries, where that is not sure."""
        if self.shape.tokens % STRIP in range(1, 9):
            return strip * STRIP + 8 < int32(self.shape.tokens)
        return None

    def _softmax(self, strip: Expr, first: Expr | int, count: int) -> None:
        """Multiply the values by the probabilities of the scores in the accumulators."""
        self._clear_probabilities(count)
        for half in range(2):
            with _where(self._second_half(strip) if half else None):
                m = math.top(self._maximum_of_quad(self._maximum(half, count)))
                self._probabilities(half, count, m)
        self._clear_sums()
        self._accumulate(first, count)

    def _two_passes(self, strip: Expr) -> None:
        """The same for windows whose scores are not kept."""
        maxima = cuda.registers(2)
        for half in range(2):
            T.buffer_store(maxima, int32(math.LOWEST), [half])
        for first, count in self._chunks():
            self._scores(strip, first, count, 0)
            for half in range(2):
                m = tirx.max(maxima[half], self._maximum(half, count))
                T.buffer_store(maxima, m, [half])
        tops = [math.top(self._maximum_of_quad(maxima[half])) for half in range(2)]
        self._clear_sums()
        for first, count in self._chunks():
            self._scores(strip, first, count, 0)
            self._clear_probabilities(count)
            for half in range(2):
                self._probabilities(half, count, tops[half])
            self._accumulate(first, count)

    def _chunks(self) -> Iterator[tuple[Expr | int, int]]:
        """Open the loop over whole chunks of keys, then what is left."""
        whole = self.shape.tokens // _CHUNK
        with T.serial(0, whole) as chunk:
            yield T.Bind(chunk * _CHUNK), _CHUNK
        if self.shape.tokens % _CHUNK:
            yield whole * _CHUNK, self.shape.tokens % _CHUNK

    def _maximum(self, half: int, count: int) -> Expr:
        """This lane's largest score in a row."""
        values = []
        for index, condition in self._elements(count, half):
            value = self.acc[index]
            if condition is not None:
                value = tirx.Select(condition, value, int32(math.LOWEST))
            values.append(value)
        while len(values) > 1:
            pairs = [T.Bind(tirx.max(*values[i : i + 2])) for i in range(0, len(values) - 1, 2)]
            values = pairs + values[len(pairs) * 2 :]
        return values[0]

    def _maximum_of_quad(self, value: Expr) -> Expr:
        for lanes in (1, 2):
            value = T.Bind(value)
            value = tirx.max(value, cuda.shuffle_xor(value, lanes))
        return value

    def _clear_probabilities(self, count: int) -> None:
        """Zero what `_probabilities` does not write."""
        for index in range(-(-count // _STEP) * 4):
            T.buffer_store(self.p, int32(0), [index])

    def _probabilities(self, half: int, count: int, m: Expr) -> None:
        """Words of p of a half of the strip."""
        zero = tirx.const(0, "uint32")
        elements = dict(self._elements(count, half))
        for pair in range(-(-count // _PAIR)):
            parts = []
            for i in range(4):
                index = 8 * pair + i // 2 * 4 + 2 * half + i % 2
                if index not in elements:
                    parts.append(zero)
                    continue
                y = math.exponential(m, self.acc[index])
                condition = elements[index]
                parts.append(y if condition is None else T.Bind(tirx.Select(condition, y, zero)))
            T.buffer_store(self.p, math.pack_probabilities(*parts), [2 * pair + half])

    def _clear_sums(self) -> None:
        for registers in (self.o, self.sums):
            for index in range(int(registers.shape[0])):
                T.buffer_store(registers, int32(0), [index])

    def _accumulate(self, first: Expr | int, count: int) -> None:
        """Add p times v, and p times ones."""
        if not self.short:
            self._load_values(first, count)
        for k_step in range(-(-count // _STEP)):
            p = cuda.pointer(self.p, 4 * k_step)
            T.evaluate(cuda.mma_u8s8(cuda.pointer(self.sums, 0), p, cuda.pointer(self.ones, 0)))
            for step in range(self.steps):
                for b in range(4):
                    o = cuda.pointer(self.o, (4 * step + b) * 4)
                    v = cuda.pointer(self.v, self._value(2 * k_step, step, b))
                    T.evaluate(cuda.mma_u8s8(o, p, v))

    def _output(self, strip: Expr) -> None:
        """Normalise, requantize and store a strip."""
        shape = self.shape
        packed = cuda.registers(2)
        for half in range(2):
            with _where(self._second_half(strip) if half else None):
                token = T.Bind(strip * STRIP + self.g + 8 * half)
                row = math.Row(self.sums[2 * half])
                there = token < int32(shape.tokens) if shape.tokens % STRIP else None
                target = self._row(token, shape.tokens - 1 if there is not None else None)
                for step in range(self.steps):
                    for i in range(2):
                        parts = [
                            self.scalars.output(self.o[(4 * step + b) * 4 + 2 * half + i], row)
                            for b in range(4)
                        ]
                        T.buffer_store(packed, cuda.pack_u8(*parts), [i])
                    conditions = [] if there is None else [there]
                    if shape.d - _STEP * step < _STEP:
                        conditions.append(self.t < int32(2))
                    at = target * (shape.heads * shape.d) + self.channel[step]
                    y = cuda.pointer(self.args.y, at)
                    with _where(tirx.all(*conditions) if conditions else None):
                        T.evaluate(cuda.store_global(y, cuda.pointer(packed, 0), 8))


def _lanes(count: int, pair: int, block: int, neighbour: int) -> int:
    """Lanes t of a quad that have one of `count` keys in a column of theirs."""
    left = count - (_PAIR * pair + 2 * block + neighbour)
    return min(max(-(-left // 4), 0), 4)


def _divided(x: Expr, divisor: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of a number that is not negative."""
    if divisor == 1:
        return x, int32(0)
    return T.Bind(tirx.truncdiv(x, int32(divisor))), T.Bind(tirx.truncmod(x, int32(divisor)))
