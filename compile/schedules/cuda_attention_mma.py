"""The attention kernel for int8 tensor cores (sm_75 and later): a warp does 16 queries at a time.

Nothing goes through shared memory. A warp loads q, k and v into the fragments of mma.m16n8k32
(cuda_device_functions.py), and the scores it gets are, after the softmax, the
fragment of p that it multiplies by v: what would have to be exchanged between the lanes is avoided
by the order in which keys and channels are taken, which a sum over them does not depend on. With
lane = 4 g + t:

    channels of q k^T  the 8 bytes from 8 t on of 32 channels are one load, of q and of k
    keys               column 2 t + i of blocks 2 q and 2 q + 1 is key 16 q + 4 t + i (+ 2), so that
                       the four scores of a lane in a row are 4 neighbouring keys, one word of p
    channels of v      column g of block b is channel 4 g + b: 4 keys by 4 channels that a lane
                       loads become, transposed, its words of all four blocks, and it gets 8
                       neighbouring channels of the output, one store

The row sums of p are the product with a matrix of ones. A window of up to SHORT tokens keeps its
keys, values and bias in registers for several strips or images; one of up to _SINGLE_PASS keeps a
strip's scores; a longer one computes them twice, for the maximum and for the sums, in chunks.

Offsets fit int32 (cuda_offsets.py): tokens behind a window's last one are clamped to it before the
row is looked up, images behind the last one are not worked on.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_math as math
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_fragments import (
    PAIR,
    STEP,
    Fragments,
    Qkv,
    WarpPlace,
    blocks_of,
    lanes_of,
)
from intswin.compile.schedules.cuda_attention_space import (
    SHORT,
    STRIP,
    MmaAttentionTile,
    strips_of,
    warps_of,
)
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.schedules.cuda_intrinsics import Expr

_SINGLE_PASS = 208  # tokens
_CHUNK = 64  # keys, of longer windows
_ONES = 0x01010101


def emit_mma(shape: AttentionShape, tile: MmaAttentionTile, args: Arguments) -> None:
    """Emit the kernel's body into the PrimFunc that is being built."""
    tasks = warps_of(shape, tile.strips, tile.images)
    with T.launch_thread("blockIdx.x", -(-tasks // tile.warps)) as block:
        with T.launch_thread("threadIdx.x", 32 * tile.warps) as thread:
            T.evaluate(cuda.wait_for_grid())
            task = T.Bind(block * tile.warps + tirx.truncdiv(thread, int32(32)))
            lane = T.Bind(tirx.truncmod(thread, int32(32)))
            place = _place(shape, tile, task)
            first = T.Bind(place.head * shape.d)
            channels = shape.heads * shape.d
            kernel = AttentionWarp(shape, tile, args, lane, place)
            kernel.read(Qkv(args.qkv, 3 * channels, channels, first, kernel.row))
            with where(task < int32(tasks) if tasks % tile.warps else None):
                kernel.load()
                kernel.emit()


def _place(shape: AttentionShape, tile: MmaAttentionTile, task: Expr) -> WarpPlace:
    groups = -(-strips_of(shape) // tile.strips)
    rest, group = divided(task, groups)
    rest, head = divided(rest, shape.heads)
    image, window = divided(rest, shape.windows)
    return WarpPlace(head, window, T.Bind(group * tile.strips), T.Bind(image * tile.images))


class where:
    """`with where(condition)`: an if without an else; no condition, no if."""

    def __init__(self, condition: Expr | None) -> None:
        self._frames = [] if condition is None else [T.If(condition), T.Then()]

    def __enter__(self) -> None:
        for frame in self._frames:
            frame.__enter__()

    def __exit__(self, *error: object) -> None:
        for frame in reversed(self._frames):
            frame.__exit__(*error)


class AttentionWarp:
    """One warp; `read` says where q, k and v are, then `load` and `emit` do the work.

    Args:
        shape: the problem.
        tile: strips and images of the warp.
        args: buffers; qkv is not used.
        lane: number of this one.
        place: head, window, and the first strip and image.
        queries: of a strip: 16, or 8 where there are warps enough; the mma's other rows are zero.
    """

    def __init__(
        self,
        shape: AttentionShape,
        tile: MmaAttentionTile,
        args: Arguments,
        lane: Expr,
        place: WarpPlace,
        queries: int = STRIP,
    ) -> None:
        self.shape, self.tile, self.args, self.lane, self.place = shape, tile, args, lane, place
        self.queries, self.halves = queries, queries // 8
        self.t = T.Bind(lane % 4)
        self.short = shape.tokens <= SHORT
        keys = shape.tokens if shape.tokens <= _SINGLE_PASS else _CHUNK
        self.kept = tile.strips if self.short else 1
        self.pairs = -(-keys // PAIR)
        self.steps = -(-shape.d // STEP)
        self.image_row: Expr = int32(0)  # of the image that is being worked on

    def read(self, qkv: Qkv) -> None:
        """Say where q, k and v are."""
        sizes = self.pairs, self.kept, self.halves
        self.f = Fragments(self.shape, self.args, qkv, self.place, self.lane, *sizes)

    def row(self, token: Expr) -> Expr:
        """Give the row in the batch of a token of the window."""
        row = self.args.rows[self.place.window * self.shape.tokens + token]
        return T.Bind(self.image_row + row)

    def load(self) -> None:
        """Load what does not depend on q, k and v."""
        self.scalars = math.Scalars(self.args.params, self.shape.d)
        if self.f.bias is not None and self.short:
            for i in range(self.tile.strips):
                self.f.load_bias(self._strip(i), 0, self.shape.tokens, i)

    def emit(self) -> None:
        """All images and strips of the warp, after `load`."""
        self.acc = cuda.registers(8 * self.pairs)
        self.p = cuda.registers(-(-self.pairs // 2) * 4)
        self.o = cuda.registers(16 * self.steps)
        self.sums = cuda.registers(4)
        self.ones = cuda.registers(2)
        for i in range(2):
            T.buffer_store(self.ones, int32(_ONES), [i])
        if self.tile.images == 1:
            self._image(self.place.first_image)
            return
        with T.serial(0, self.tile.images) as i:
            image = T.Bind(self.place.first_image + i)
            partial = self.shape.batch % self.tile.images
            with where(image < int32(self.shape.batch) if partial else None):
                self._image(image)

    def _image(self, image: Expr) -> None:
        shape = self.shape
        self.image_row = T.Bind(image * shape.rows)
        n = shape.tokens
        if self.short:
            self.f.load_keys(0, n)
            self.f.load_values(0, n)
        groups = strips_of(shape)
        for i in range(self.tile.strips):
            strip = self._strip(i)
            partial = groups % self.tile.strips > 0 and i > 0
            with where(strip < int32(groups) if partial else None):
                self.f.load_queries(strip)
                if n <= _SINGLE_PASS:
                    self._scores(strip, 0, n, i)
                    self._softmax(strip, 0, n)
                else:
                    self._two_passes(strip)
                self._output(strip)

    def _strip(self, i: int) -> Expr:
        """Number of this warp's strip `i` in its window."""
        return T.Bind(self.place.first_strip + i)

    def _scores(self, strip: Expr, first: Expr | int, count: int, kept: int) -> None:
        """Scores T of a strip and the keys from `first` on, in the accumulators."""
        if not self.short:
            self.f.load_keys(first, count)
            if self.f.bias is not None:
                self.f.load_bias(strip, first, count, 0)
                kept = 0
        indices = []
        for pair, block in blocks_of(count):
            acc = (2 * pair + block) * 4
            for i in range(4):
                T.buffer_store(self.acc, self.scalars.start, [acc + i])
            for step in range(self.steps):
                q, k = self.f.query(step), self.f.key(pair, block, step)
                T.evaluate(cuda.mma_s8s8(cuda.pointer(self.acc, acc), q, k))
            places = range(2 * self.halves)
            indices += [acc + i for i in places if lanes_of(count, pair, block, i % 2)]
        self.scalars.saturate(self.acc, indices)
        for index in indices:
            bias = None
            if self.f.bias is not None:
                bias = self.f.bias[kept * self.pairs * 8 + index]
            T.buffer_store(self.acc, self.scalars.score(self.acc[index], bias), [index])

    def _elements(self, count: int, half: int) -> Iterator[tuple[int, Expr | None]]:
        """Accumulators of a half of the strip, with the condition on which a lane has one."""
        for pair, block in blocks_of(count):
            for i in range(2):
                lanes = lanes_of(count, pair, block, i)
                if lanes:
                    condition = None if lanes == 4 else self.f.t < int32(lanes)
                    yield (2 * pair + block) * 4 + 2 * half + i, condition

    def _second_half(self, strip: Expr) -> Expr | None:
        """Whether a strip has more than 8 queries, where that is not sure."""
        if self.shape.tokens % STRIP in range(1, 9):
            return strip * STRIP + 8 < int32(self.shape.tokens)
        return None

    def _softmax(self, strip: Expr, first: Expr | int, count: int) -> None:
        """Multiply the values by the probabilities of the scores in the accumulators."""
        self._clear_probabilities(count)
        for half in range(self.halves):
            with where(self._second_half(strip) if half else None):
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
        for index in range(-(-count // STEP) * 4):
            T.buffer_store(self.p, int32(0), [index])

    def _probabilities(self, half: int, count: int, m: Expr) -> None:
        """Words of p of a half of the strip."""
        zero = tirx.const(0, "uint32")
        elements = dict(self._elements(count, half))
        for pair in range(-(-count // PAIR)):
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
            self.f.load_values(first, count)
        for k_step in range(-(-count // STEP)):
            p = cuda.pointer(self.p, 4 * k_step)
            T.evaluate(cuda.mma_u8s8(cuda.pointer(self.sums, 0), p, cuda.pointer(self.ones, 0)))
            for step in range(self.steps):
                for b in range(4):
                    o = cuda.pointer(self.o, (4 * step + b) * 4)
                    v = self.f.value(k_step, step, b)
                    T.evaluate(cuda.mma_u8s8(o, p, v))

    def _output(self, strip: Expr) -> None:
        """Normalise, requantize and store a strip."""
        shape = self.shape
        packed = cuda.registers(2)
        for half in range(self.halves):
            with where(self._second_half(strip) if half else None):
                token = T.Bind(strip * self.queries + self.f.g + 8 * half)
                row = math.Row(self.sums[2 * half])
                there = token < int32(shape.tokens) if shape.tokens % self.queries else None
                place = self.place_of(
                    token if there is None else tirx.min(token, int32(shape.tokens - 1))
                )
                for step in range(self.steps):
                    for i in range(2):
                        parts = [
                            self.scalars.output(self.o[(4 * step + b) * 4 + 2 * half + i], row)
                            for b in range(4)
                        ]
                        T.buffer_store(packed, cuda.pack_u8(*parts), [i])
                    conditions = [] if there is None else [there]
                    if shape.d - STEP * step < STEP:
                        conditions.append(self.f.t < int32(2))
                    with where(tirx.all(*conditions) if conditions else None):
                        self.store(place, self.f.channel[step], cuda.pointer(packed, 0))

    def place_of(self, token: Expr) -> Expr:
        """Where the results of a token that exists go, for `store`: here its row."""
        return self.row(token)

    def store(self, place: Expr, channel: Expr, packed: Expr) -> None:
        """Store the results of 8 channels of the head."""
        channels = self.shape.heads * self.shape.d
        at = place * channels + (self.place.head * self.shape.d + channel)
        T.evaluate(cuda.store_global(cuda.pointer(self.args.y, at), packed, 8))


def divided(x: Expr, divisor: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of a number that is not negative."""
    if divisor == 1:
        return x, int32(0)
    return T.Bind(tirx.truncdiv(x, int32(divisor))), T.Bind(tirx.truncmod(x, int32(divisor)))
