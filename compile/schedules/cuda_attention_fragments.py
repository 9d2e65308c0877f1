"""Fragments of the tensor core attention kernel, loaded in its orders.

With lane = 4 g + t (the orders are explained in cuda_attention_mma.py):

    q     row g or g + 8 of a strip, its 8 bytes from 8 t on
    k     key 16 pair + 2 block + 4 (g / 2) + g % 2, the same bytes
    v     keys 16 pair + 4 t .. + 3, channels 4 g .. 4 g + 3: a word for each channel
    bias  the lane's scores of a strip and a pair of blocks, 16 bytes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_math as math
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_space import STRIP, strips_of
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr

PAIR = 16  # keys of two blocks of 8 columns
STEP = 32  # depth of an mma


def arrange_bias(bias: np.ndarray) -> np.ndarray:
    """Rearrange int16 (P, heads, n, n) as lanes read it: (P, heads, strips, pairs, 32, 8).

    The last axis is (block of the pair, half of the strip, neighbour); zeros fill up the rest.
    """
    patterns, heads, n, _ = bias.shape
    padding = [(0, 0), (0, 0), (0, -n % STRIP), (0, -n % PAIR)]
    padded = np.pad(bias.astype(np.int16), padding)
    split = padded.reshape(patterns, heads, -(-n // STRIP), 2, 8, -(-n // PAIR), 4, 2, 2)
    lanes = split.transpose(0, 1, 2, 5, 4, 6, 7, 3, 8)
    return np.ascontiguousarray(lanes).reshape(*lanes.shape[:4], 32, 8)


@dataclasses.dataclass(frozen=True)
class Qkv:
    """Where q, k and v of a warp's head and window lie, in global or in shared memory.

    Attributes:
        buffer: int8, flat.
        width: elements of a row.
        part: elements from a channel of q to that of k, and from k to v.
        first: the first channel of q in a row.
        row: the row of a token of the window.
    """

    buffer: Buffer
    width: int
    part: int
    first: Expr
    row: Callable[[Expr], Expr]


@dataclasses.dataclass(frozen=True)
class WarpPlace:
    """What a warp does."""

    head: Expr
    window: Expr
    first_strip: Expr
    first_image: Expr


class Fragments:
    """What a warp has of q, k, v and the bias of one head of one window."""

    def __init__(
        self,
        shape: AttentionShape,
        args: Arguments,
        qkv: Qkv,
        place: WarpPlace,
        lane: Expr,
        pairs: int,
        kept: int,
        halves: int,
    ) -> None:
        """Of `pairs` pairs of blocks of keys, with the bias of `kept` strips.

        A strip has 8 queries for each of its `halves`, one or two.
        """
        self.shape, self.args, self.qkv, self.lane = shape, args, qkv, lane
        self.pairs, self.halves = pairs, halves
        self.steps = -(-shape.d // STEP)
        self.g, self.t = T.Bind(lane // 4), T.Bind(lane % 4)
        # This lane's key of block 0, and the bytes of it that it loads.
        self.first_key = T.Bind(self.g // 2 * 4 + self.g % 2)
        self.channel = [T.Bind(self._clamped(8 * self.t, step, 8)) for step in range(self.steps)]
        self.v_channel = [T.Bind(self._clamped(4 * self.g, step, 4)) for step in range(self.steps)]
        self.q = cuda.registers(4 * self.steps)
        self.k = cuda.registers(4 * pairs * self.steps)
        self.v = cuda.registers(-(-pairs // 2) * 8 * self.steps)
        self.words = cuda.registers(4)
        self.bias = None
        if args.pattern is not None:
            self.table = T.Bind(args.pattern[place.window] * shape.heads + place.head)
            self.bias = cuda.registers(8 * pairs * kept)

    def query(self, step: int) -> Expr:
        """Fragment `a` of 32 channels."""
        return cuda.pointer(self.q, 4 * step)

    def key(self, pair: int, block: int, step: int) -> Expr:
        """Fragment `b` of 8 keys and 32 channels."""
        return cuda.pointer(self.k, ((2 * pair + block) * self.steps + step) * 2)

    def value(self, k_step: int, step: int, block: int) -> Expr:
        """Fragment `b` of 32 keys and 8 channels."""
        return cuda.pointer(self.v, self._place(2 * k_step, step, block))

    def _clamped(self, channel: Expr, step: int, count: int) -> Expr:
        """First of `count` channels of this head, in 32 from 32 `step` on, that may be loaded."""
        last = min(self.shape.d - STEP * step, STEP) - count
        inside = channel if last == STEP - count else tirx.min(channel, int32(last))
        return inside + STEP * step

    def row(self, token: Expr, last: int | None) -> Expr:
        """Give the row of a token; tokens behind `last` stand for it."""
        return self.qkv.row(token if last is None else tirx.min(token, int32(last)))

    def _load(self, registers: Buffer, at: int, part: int, row: Expr, channel: Expr, size: int):  # noqa: ANN202
        offset = row * self.qkv.width + part * self.qkv.part + self.qkv.first + channel
        source = cuda.pointer(self.qkv.buffer, offset)
        shared = self.qkv.buffer.scope().startswith("shared")
        load = cuda.load_global if shared else cuda.load_activation
        T.evaluate(load(cuda.pointer(registers, at), source, size))

    def load_queries(self, strip: Expr) -> None:
        """Fragments of the queries of a strip."""
        queries = 8 * self.halves
        last = None if self.shape.tokens % queries == 0 else self.shape.tokens - 1
        first = strip * queries + self.g
        rows = [self.row(first + 8 * half, last) for half in range(self.halves)]
        for step in range(self.steps):
            cut = self.shape.d - STEP * step < STEP
            for i in range(4):
                # Word by word: the two of a row are no neighbours in the fragment.
                at, channel = 4 * step + i, self.channel[step] + i // 2 * 4
                if i % 2 >= self.halves:
                    T.buffer_store(self.q, int32(0), [at])
                    continue
                self._load(self.q, at, 0, rows[i % 2], channel, 4)
                if cut:  # channels behind the head's last
                    q = tirx.Select(self.t < int32(2), self.q[at], int32(0))
                    T.buffer_store(self.q, q, [at])

    def load_keys(self, first: Expr | int, count: int) -> None:
        """Fragments of the keys from `first` on."""
        for pair, block in blocks_of(count):
            token = self.first_key + (first + PAIR * pair + 2 * block)
            row = self.row(token, self._last(first, count, PAIR * (pair + 1)))
            for step in range(self.steps):
                at = ((2 * pair + block) * self.steps + step) * 2
                self._load(self.k, at, 1, row, self.channel[step], 8)

    def _last(self, first: Expr | int, count: int, end: int) -> int | None:
        """The last token, where keys up to `first` + `end` go beyond it."""
        return self.shape.tokens - 1 if end > count else None

    def load_values(self, first: Expr | int, count: int) -> None:
        """Fragments of the values of the keys from `first` on."""
        for pair in range(-(-count // PAIR)):
            token = first + PAIR * pair + 4 * self.t
            last = self._last(first, count, PAIR * (pair + 1))
            rows = [self.row(token + i, last) for i in range(4)]
            for step in range(self.steps):
                for i, row in enumerate(rows):
                    self._load(self.words, i, 2, row, self.v_channel[step], 4)
                words = [T.Bind(self.words[i]) for i in range(4)]
                for b, word in enumerate(math.transpose_bytes(words)):
                    T.buffer_store(self.v, word, [self._place(pair, step, b)])
        if -(-count // PAIR) % 2:
            for step in range(self.steps):
                for b in range(4):
                    at = self._place(-(-count // PAIR), step, b)
                    T.buffer_store(self.v, int32(0), [at])

    def _place(self, pair: int, step: int, block: int) -> int:
        return ((pair // 2 * self.steps + step) * 4 + block) * 2 + pair % 2

    def load_bias(self, strip: Expr, first: Expr | int, count: int, kept: int) -> None:
        """The bias of a strip and the keys from `first` on."""
        strips, pairs = strips_of(self.shape), -(-self.shape.tokens // PAIR)
        word = cuda.registers(4)
        if self.halves == 1:  # the table has both halves of 16 queries together
            strip, second = T.Bind(strip // 2), T.Bind(strip % 2 > 0)
        strip = tirx.min(strip, int32(strips - 1))
        row = T.Bind((self.table * strips + strip) * pairs + tirx.truncdiv(first, PAIR))
        for pair in range(-(-count // PAIR)):
            source = cuda.pointer(self.args.bias, ((row + pair) * 32 + self.lane) * 8)
            T.evaluate(cuda.load_global(cuda.pointer(word, 0), source, 16))
            words = {i: word[i] for i in range(4)}
            if self.halves == 1:
                words = {i: T.Bind(tirx.Select(second, word[i + 1], word[i])) for i in (0, 2)}
            for i, both in words.items():
                for neighbour, value in enumerate(math.unpack_bias(both)):
                    at = (kept * self.pairs + pair) * 8 + 2 * i + neighbour
                    T.buffer_store(self.bias, value, [at])


def blocks_of(count: int) -> Iterator[tuple[int, int]]:
    """Pairs and their blocks that have one of `count` keys."""
    for pair in range(-(-count // PAIR)):
        for block in range(2):
            if lanes_of(count, pair, block, 0):
                yield pair, block


def lanes_of(count: int, pair: int, block: int, neighbour: int) -> int:
    """Lanes t of a quad that have one of `count` keys in a column of theirs."""
    left = count - (PAIR * pair + 2 * block + neighbour)
    return min(max(-(-left // 4), 0), 4)
